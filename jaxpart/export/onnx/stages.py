"""A partition of an ONNX model as one ONNX file for each chip in use."""

from __future__ import annotations

from pathlib import Path

from jaxpart.export.manifest import (
    HOST,
    RESULT,
    Content,
    Manifest,
    Place,
    Stage,
    StageInput,
    StageOutput,
    TensorInfo,
)
from jaxpart.export.onnx.data import Data
from jaxpart.export.onnx.parts import Parts
from jaxpart.export.onnx.plan import StagePlan, plan_stages
from jaxpart.ingest.onnx.importer import ImportedModel
from jaxpart.results.result import Result


def onnx_stages(
    imported: ImportedModel, result: Result, model_path: str, folder: Path, *, copy_data: bool
) -> tuple[Manifest, dict[str, Content]]:
    """The stages of a model.

    Args:
      imported: the model.
      result: its partition.
      model_path: where the model is; its external data is beside it.
      folder: where the stages will be.
      copy_data: whether stages hold copies of external data in any case.

    Returns:
      The manifest; name -> content of each file beside it.

    Raises:
      InputError: as for `plan_stages`; or a file of external data is missing.
      FileFormatError: two nodes give one value, or external data is not where the model says.
    """
    parts = Parts(imported, model_path)
    chips = result.chips()
    data = Data(model_path, folder, copy=copy_data)
    files: dict[str, Content] = {}
    stages = []
    plans = plan_stages(imported, chips)
    width = max(2, len(str(plans[-1].chip)))
    for plan in plans:
        stem = f"stage-{plan.chip:0{width}}"
        nodes = imported.model.nodes
        held = sorted((*plan.own, *plan.copied))
        proto = parts.model(
            (parts.named(i) for i in held),
            plan.stored,
            (nodes[i] for i in plan.shapes),
            plan.given,
            plan.sent,
        )
        beside = data.place(proto, stem)
        files[f"{stem}.onnx"] = proto.SerializeToString(deterministic=True)
        stages.append(_stage(plan, parts, f"{stem}.onnx", beside, chips))
    manifest = Manifest(
        "onnx",
        imported.graph.name,
        result.problem.graph.sha256,
        result.problem.mcm.name,
        tuple(TensorInfo(**parts.info(name)) for name in parts.inputs),
        tuple(TensorInfo(**parts.info(name)) for name in parts.outputs),
        tuple(stages),
    )
    return manifest, {**files, **data.files}


def _stage(
    plan: StagePlan, parts: Parts, file: str, beside: list[str], chips: dict[str, int]
) -> Stage:
    """A stage for the manifest; the hashes of its files are filled in when they are written."""
    graph = parts.imported.graph
    names = [node.name for node in graph.nodes]
    weight_bytes = sum(
        weight.bytes
        for weight in graph.weights
        if any(chips[names[q]] == plan.chip for q in weight.consumers)
    )
    return Stage(
        plan.chip,
        file,
        int(weight_bytes),
        tuple(StageInput(**parts.info(k), source=source) for k, source in plan.given.items()),
        tuple(
            StageOutput(**parts.info(name), to=tuple(sorted(to, key=_host_last)))
            for name, to in plan.sent.items()
        ),
        dict.fromkeys((file, RESULT, *beside), ""),
    )


def _host_last(place: Place) -> tuple[bool, Place]:
    return place == HOST, place
