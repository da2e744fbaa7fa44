"""What each chip's stage of an ONNX model holds: nodes, stored tensors, and what it is given.

A node that stands for a node of the graph is in the stage of its chip, and in no other. All others
(constants, shapes, Identity, cheap work on inputs that the importer cloned) are in each stage that
needs their results. So no stage waits for a shape or a mask that another chip could send.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from onnx import NodeProto

from jaxpart.errors import FileFormatError, InputError, SharedDrawError
from jaxpart.export.manifest import HOST, Place
from jaxpart.ingest.onnx.importer import ImportedModel
from jaxpart.ingest.onnx.operation import is_shape, label, reads, subgraphs

# Operators whose results differ from run to run.
_RANDOM = frozenset(
    (
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    )
)


@dataclasses.dataclass
class StagePlan:
    """What one chip's stage holds. Dictionaries are used as ordered sets.

    Attributes:
      chip: the chip.
      own: positions of the nodes that this stage alone holds.
      copied: positions of the nodes that each stage holds that needs them.
      shapes: positions of Shape and Size nodes whose results the stage stores.
      stored: names of the tensors that the stage stores.
      given: name of a tensor that the stage is given -> the chip that sends it, or the host.
      sent: name of a tensor that the stage sends -> the chips that receive it, and the host.
    """

    chip: int
    own: dict[int, None] = dataclasses.field(default_factory=dict)
    copied: dict[int, None] = dataclasses.field(default_factory=dict)
    shapes: dict[int, None] = dataclasses.field(default_factory=dict)
    stored: dict[str, None] = dataclasses.field(default_factory=dict)
    given: dict[str, Place] = dataclasses.field(default_factory=dict)
    sent: dict[str, dict[Place, None]] = dataclasses.field(default_factory=dict)

    def send(self, name: str, to: Place) -> None:
        """Adds a receiver of a tensor."""
        self.sent.setdefault(name, {})[to] = None


class _Planner:
    """Plans stages; `stages` grows."""

    def __init__(self, imported: ImportedModel, chips: Mapping[str, int]) -> None:
        self.imported = imported
        self.nodes = imported.model.nodes
        self.chip = [None if name is None else chips[name] for name in imported.names]
        self.stages = {chip: StagePlan(chip) for chip in sorted(set(chips.values()))}
        self.maker: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            for result in filter(None, node.output):
                self.maker[result] = i
        self.inputs = {value.name for value in imported.source.graph.input}
        graph = imported.graph
        self.edges = {
            (graph.nodes[tensor.producer].name, graph.nodes[q].name)
            for tensor in graph.tensors
            for q in tensor.consumers
        }

    def run(self) -> tuple[StagePlan, ...]:
        for i, chip in enumerate(self.chip):
            if chip is not None:
                self.stages[chip].own[i] = None
        # First what chips send each other: what is cloned may read from it, but adds nothing to it.
        for i, chip in enumerate(self.chip):
            if chip is not None:
                self._receive(i, self.stages[chip])
        for i, chip in enumerate(self.chip):
            if chip is not None:
                self._complete(reads(self.nodes[i]), self.stages[chip])
        for name in dict.fromkeys(self.imported.model.outputs):
            self._output(name)
        stages = tuple(self.stages.values())
        self._check_random(stages)
        return stages

    def _receive(self, i: int, stage: StagePlan) -> None:
        """Plans what node `i` receives from nodes on other chips."""
        for name in reads(self.nodes[i]):
            value = self.imported.alias.get(name, name)
            u = self.maker.get(value)
            source = None if u is None else self.chip[u]
            if u is None or source is None or source == stage.chip:
                continue
            if (self.imported.names[u], self.imported.names[i]) not in self.edges:
                continue  # cloned into this consumer
            if source > stage.chip:
                raise InputError(
                    f"{label(self.nodes[i])} on chip {stage.chip} reads {value!r} from chip "
                    f"{source}, expected data that flows to higher chips: stages run in chip order"
                )
            stage.given[value] = source
            self.stages[source].send(value, stage.chip)

    def _complete(self, names: Iterable[str], stage: StagePlan) -> None:
        """Adds what a stage needs in order to have some values, without the help of other chips."""
        pending = list(names)[::-1]
        while pending:
            name = pending.pop()
            i = self.maker.get(name)
            if name in stage.given or name in stage.stored:
                continue
            if i is None:
                if name in self.imported.model.initializers:
                    stage.stored[name] = None
                elif name in self.inputs:
                    stage.given[name] = HOST
                else:
                    raise FileFormatError(f"nothing gives {name!r}, which chip {stage.chip} needs")
            elif is_shape(self.nodes[i]):
                stage.shapes[i] = None
            elif i not in stage.own and i not in stage.copied:
                stage.copied[i] = None
                pending += reads(self.nodes[i])[::-1]

    def _output(self, name: str) -> None:
        """Plans which stage sends an output of the model to the host."""
        value = self.imported.alias.get(name, name)
        i = self.maker.get(value)
        if i is None and name == value and name not in self.imported.model.initializers:
            return  # an input of the model itself: the host has it
        chip = None if i is None else self.chip[i]
        if chip is not None:
            stage = self.stages[chip]
        else:  # the first stage that has it, else the first of all
            stages = list(self.stages.values())
            having = (stage for stage in stages if self._has(stage, value, i))
            stage = next(having, stages[0])
        self._complete([name], stage)
        stage.send(name, HOST)

    def _has(self, stage: StagePlan, name: str, maker: int | None) -> bool:
        return name in stage.stored or maker in stage.copied or maker in stage.shapes

    def _check_random(self, stages: Iterable[StagePlan]) -> None:
        """Refuses random numbers that two stages would draw, each its own."""
        drawn: dict[int, int] = {}
        for stage in stages:
            for i in (*stage.own, *stage.copied):
                if not _is_random(self.nodes[i]):
                    continue
                if drawn.setdefault(i, stage.chip) != stage.chip:
                    raise SharedDrawError(
                        f"{label(self.nodes[i])} draws random numbers that chips {drawn[i]} and "
                        f"{stage.chip} both need, expected its consumers on one chip"
                    )


def _is_random(node: NodeProto) -> bool:
    """Whether a node, or one in its bodies, draws random numbers."""
    if node.op_type == "Dropout" and len(node.input) < 3:
        return False
    return node.op_type in _RANDOM or any(
        _is_random(inner) for body in subgraphs(node) for inner in body.node
    )


def plan_stages(imported: ImportedModel, chips: Mapping[str, int]) -> tuple[StagePlan, ...]:
    """Plans the stages of a model, in chip order; chips without a node have none.

    Args:
      imported: the model.
      chips: the chip of each node of its graph, by name.

    Raises:
      InputError: data flows to a lower chip.
      SharedDrawError: two chips would draw the same random numbers.
      FileFormatError: nothing gives a value that a node reads.
    """
    return _Planner(imported, chips).run()
