"""A partition of an ONNX model as one file that says where each node runs."""

from __future__ import annotations

from onnx import ModelProto

from jaxpart.errors import FileFormatError
from jaxpart.export.onnx.parts import LAYER, Parts
from jaxpart.export.onnx.plan import plan_stages
from jaxpart.ingest.onnx.importer import ImportedModel
from jaxpart.ingest.onnx.operation import reads
from jaxpart.results.result import Result

_IR_WITH_PLACES = 11  # the first version with configurations of devices
_CONFIGURATION = "jaxpart"


def annotated(imported: ImportedModel, result: Result, where: str) -> ModelProto:
    """The whole model in one file that says where each node runs.

    Nodes that stand for a node of the graph have the place of it, twice: as the pipeline stage of a
    device configuration (the number of the chip among those in use), and as "chip03" under the
    metadata key `layer_ann`. What stands for none has a place if one stage alone needs it. Weights
    in other files are referred to as in the model.

    Args:
      imported: the model.
      result: its partition.
      where: name of the model, for messages.

    Raises:
      InputError: as for `plan_stages`.
      FileFormatError: two nodes give one value.
    """
    parts = Parts(imported, where)
    plans = plan_stages(imported, result.chips())
    nodes = []
    for i in range(len(imported.model.nodes)):
        node = parts.named(i)
        holders = [s for s, plan in enumerate(plans) if i in plan.own]
        holders = holders or [s for s, plan in enumerate(plans) if i in plan.copied]
        if len(holders) == 1:
            place = node.device_configurations.add(configuration_id=_CONFIGURATION)
            place.pipeline_stage = holders[0]
            node.metadata_props.add(
                key=LAYER, value=_device(plans[holders[0]].chip, plans[-1].chip)
            )
        nodes.append(node)
    read = dict.fromkeys(name for node in nodes for name in reads(node))
    read.update(dict.fromkeys(parts.outputs))
    stored = [name for name in read if name in imported.model.initializers]
    model = parts.model(nodes, stored, (), parts.inputs, parts.outputs)
    model.ir_version = max(model.ir_version, _IR_WITH_PLACES)
    model.configuration.add(
        name=_CONFIGURATION,
        num_devices=len(plans),
        device=[_device(plan.chip, plans[-1].chip) for plan in plans],
    )
    check_places(model, where)
    return model


def check_places(model: ModelProto, where: str) -> None:
    """Checks what the onnx package does not: that all places of nodes exist.

    Args:
      model: an annotated model.
      where: its name, for messages.

    Raises:
      FileFormatError: a node names no configuration of the model, or a stage beyond its devices.
    """
    devices = {entry.name: entry.num_devices for entry in model.configuration}
    for node in model.graph.node:
        for place in node.device_configurations:
            if place.configuration_id not in devices:
                raise FileFormatError(
                    f"{where}: node {node.name!r} is placed by {place.configuration_id!r}, "
                    f"expected a configuration of the model: {', '.join(devices) or 'none'}"
                )
            if not 0 <= place.pipeline_stage < devices[place.configuration_id]:
                raise FileFormatError(
                    f"{where}: node {node.name!r} is in pipeline stage {place.pipeline_stage}, "
                    f"expected 0 to {devices[place.configuration_id] - 1}"
                )


def _device(chip: int, last: int) -> str:
    """The name of a chip: of one length, because ONNX Runtime matches beginnings of names."""
    return f"chip{chip:0{max(2, len(str(last)))}}"
