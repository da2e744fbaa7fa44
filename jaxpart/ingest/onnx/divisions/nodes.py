"""The ways to divide the nodes of an ONNX model's graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnx import NodeProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.labels import Held, Work, divisions
from jaxpart.ingest.onnx.constant_values import ConstantValue
from jaxpart.ingest.onnx.divisions.table import cuts_of
from jaxpart.ingest.onnx.model import Model
from jaxpart.ingest.onnx.operation import label
from jaxpart.problem.division import Division

# A part of the dimension that is cut is the same run of elements in operand and result, wherever
# it begins.
_RUNS = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))


def node_divisions(
    model: Model,
    nodes: Sequence[NodeProto],
    alias: Mapping[str, str],
    constants: Mapping[str, ConstantValue],
    tensors: Mapping[str, int],
    weights: Mapping[str, int],
    where: str,
) -> list[tuple[Division, ...]]:
    """The ways to divide each node of a graph.

    Args:
      model: the prepared model.
      nodes: [N] the nodes of the model that are nodes of the graph.
      alias: the result of each node that does nothing -> the value that the node passes on.
      constants: the values that depend on no input, by name.
      tensors: name of a result -> number of its tensor; other results are not read.
      weights: name of a stored value -> number of the weight.
      where: name of the model, for messages.

    Raises:
      FileFormatError: the attributes of a node do not fit its shapes.
    """
    held = held_weights(model, alias, constants, weights, where)
    works = []
    for node in nodes:
        operands = [alias.get(name, name) for name in node.input if name]
        results = [name for name in node.output if name in tensors]
        found = _cuts(node, model, results, where) if results else ()
        # A lookup among what an input made has nothing to share out.
        tables = node.op_type != "Gather" or operands[0] in held
        works.append(
            Work(operands, results, [cut for cut in found if tables or cut.results[0] is not None])
        )
    return divisions(works, tensors, held)


def _cuts(node: NodeProto, model: Model, results: Collection[str], where: str) -> Sequence[AxisCut]:
    """The cuts of a node, for those of its operands and results that are present."""
    try:
        return cuts_of(model.operation(node, results))
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise FileFormatError(
            f"{where}: {label(node)}: its attributes do not fit its shapes ({error})"
        ) from error


def held_weights(
    model: Model,
    alias: Mapping[str, str],
    constants: Mapping[str, ConstantValue],
    weights: Mapping[str, int],
    where: str,
) -> dict[str, tuple[Held, ...]]:
    """The weights that each constant is made of.

    The parameters and errors are those of `node_divisions`.
    """
    held: dict[str, tuple[Held, ...]] = dict.fromkeys(constants, ())
    for name, weight in weights.items():
        held[name] = (Held(weight, tuple(range(len(model.arrays[name].shape)))),)
    for node in model.nodes:
        operands = [alias.get(name, name) for name in node.input if name]
        for name in filter(None, node.output):
            of = constants[name].sources if name in constants else ()
            made_of = [weights[source] for source in sorted(of) if source in weights]
            if name in weights or not made_of:
                continue
            axes = _through(node, name, model, where)
            parts = [
                Held(weight, tuple(None if at is None else inner[at] for at in outer))
                for operand, outer in zip(operands, axes, strict=True)
                for weight, inner in held.get(operand, ())
            ]
            known = {weight for weight, _ in parts}
            nothing = (None,) * len(model.arrays[name].shape)
            parts += [Held(weight, nothing) for weight in made_of if weight not in known]
            held[name] = tuple(dict.fromkeys(parts))
    return held


def _through(node: NodeProto, name: str, model: Model, where: str) -> list[list[int | None]]:
    """For each operand of a node: for each dimension of a result, that which is cut with it.

    Args:
      node: it depends on no input.
      name: of the result.
      model: the prepared model.
      where: name of the model, for messages.
    """
    shape = model.arrays[name].shape
    axes: list[list[int | None]] = [[None] * len(shape) for operand in node.input if operand]
    for cut in _cuts(node, model, (name,), where):
        (made,) = cut.results
        if made is not None and (cut.ways == shape[made] or node.op_type in _RUNS):
            for found, at in zip(axes, cut.operands, strict=True):
                found[made] = at
    return axes
