"""An ONNX model becomes a Graph: one node per operator.

1. Free dimensions get the user's sizes, local functions are opened, shapes inferred (`model.py`).
2. Nodes on stored tensors and constants alone are folded: they vanish, and whoever uses their
   result holds the original weight. One that makes large constants of nothing (ConstantOfShape,
   RandomUniform) is such a weight itself. Shape and Size are constants, all shapes being known.
3. Identity, and Dropout as inference has it, vanish.
4. What depends on inputs alone, is cheap and would tie distant nodes together is cloned into its
   consumers: `rewrite/clone.py`.

Constants of one element, and integers and booleans up to 1 KiB (shapes, axes), ride in the program:
all other constants are weights, for ONNX does not tell parameters from constants. If, Loop and Scan
are one node each, with the weights of their bodies. What a node costs: `costs.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, NodeProto

from jaxpart.errors import EmptyGraphError, GraphError, InputError
from jaxpart.files import read_bytes
from jaxpart.ingest.onnx import costs
from jaxpart.ingest.onnx.model import Model, parse, prepare
from jaxpart.ingest.onnx.operation import Operation, body_constants, reads
from jaxpart.ingest.onnx.shapes import Array
from jaxpart.ingest.rewrite.clone import clone_inputs
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

# Integers and booleans up to this size are shapes, axes and indices, not parameters.
_RIDING_BYTES = 1024
_Size = Callable[[Array], float]
_RANDOM_LIKE = frozenset(("Bernoulli", "RandomNormalLike", "RandomUniformLike", "Multinomial"))


def from_onnx(
    model: str | os.PathLike[str] | ModelProto,
    *,
    dims: Mapping[str, int] | None = None,
    element_bytes: float | None = None,
    name: str | None = None,
) -> Graph:
    """The graph of an ONNX model.

    Args:
      model: the path of a file, or a model in memory. Contents of weights are never read, so those
        kept in other files need not be there.
      dims: size of each free dimension by its name, or as "INPUT:AXIS" where it has none.
      element_bytes: bytes to count per element of a float tensor or weight (1 for an int8
        deployment), complex twice that; integers and booleans keep their size. By default as
        stored.
      name: of the graph; by default the file's, or the one that the model gives itself.

    Returns:
      The graph. Nodes are named as in the model, by operator and number where it has no name, and
      with a number behind it where names repeat. Its `element_bytes` is the one given, or else the
      size of the float type that holds most bytes (4 where there are no floats).

    Raises:
      FileFormatError: no ONNX model, or a broken one.
      InputError: a dimension or shape is not known before the model runs; names it.
      GraphError: the nodes close a cycle, or none depends on an input.

    Warns:
      UserWarning: an operator has no cost rule and is counted by its shapes; names it.
    """
    if isinstance(model, ModelProto):
        where = name or model.graph.name or "model"
        return _graph(model, where, where, dims, element_bytes)
    where = os.fspath(model)
    proto = parse(read_bytes(model), where)
    return _graph(proto, where, name or _stem(where), dims, element_bytes)


def from_onnx_bytes(
    content: bytes,
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    element_bytes: float | None = None,
    name: str | None = None,
) -> Graph:
    """`from_onnx` of a file's bytes; `path` is for messages and the default name."""
    where = os.fspath(path)
    proto = parse(content, where)
    return _graph(proto, where, name or _stem(where), dims, element_bytes)


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A value that depends on no input: the weights it is made of, and the bytes to read for it."""

    sources: frozenset[str]
    reads: float


def _counted(array: Array, element_bytes: float | None) -> float:
    """Bytes of a value, floats counted as the user said."""
    if element_bytes is None or not array.is_float:
        return array.bytes
    return array.elements * element_bytes * (2 if array.is_complex else 1)


def _common_element_bytes(arrays: Iterable[Array]) -> float:
    """Bytes of one element of the float type that holds most bytes; 4 where there is none."""
    held: collections.defaultdict[float, float] = collections.defaultdict(float)
    for array in arrays:
        if array.is_float:
            held[array.element_bytes / (2 if array.is_complex else 1)] += array.bytes
    return max(held, key=lambda size: held[size]) if held else 4


def _is_small(array: Array) -> bool:
    """Whether a constant rides in the program."""
    return array.elements <= 1 or (not array.is_float and array.bytes <= _RIDING_BYTES)


def _graph(
    proto: ModelProto,
    where: str,
    name: str,
    dims: Mapping[str, int] | None,
    element_bytes: float | None,
) -> Graph:
    if element_bytes is not None and not 0 < element_bytes < math.inf:
        raise InputError(f"{where}: element_bytes is {element_bytes}, expected a positive number")
    model = prepare(proto, where, dims or {})

    def size(array: Array) -> float:
        return _counted(array, element_bytes)

    alias = _aliases(model)
    weight_bytes: dict[str, float] = {}
    constants = _constants(model, alias, size, weight_bytes)
    computed = [
        node
        for node in model.nodes
        if node.output[0] not in alias
        and not all(result in constants for result in node.output if result)
    ]
    if not computed:
        raise EmptyGraphError(f"{where}: no node depends on an input, expected at least one")
    consumers: dict[str, list[int]] = {}
    uses: dict[str, list[int]] = {}
    nodes: list[Node] = []
    weights: list[Weight] = []
    unknown: set[str] = set()
    names = _names(computed)
    for v, proto_node in enumerate(computed):
        operands = [alias.get(operand, operand) for operand in reads(proto_node)]
        for operand in dict.fromkeys(operands):
            consumers.setdefault(operand, []).append(v)
            for source in constants[operand].sources if operand in constants else ():
                uses.setdefault(source, []).append(v)
        inner = [array for array in body_constants(proto_node) if not _is_small(array)]
        weights += [Weight(size(array), (v,)) for array in inner]
        cost, accessed = _cost(proto_node, model, alias, constants, size, where)
        unknown |= cost.unknown
        accessed += math.fsum(size(array) for array in inner)
        nodes.append(Node(names[v], proto_node.op_type, cost.flops, accessed))
    if unknown:
        warnings.warn(
            f"{where}: no cost rule for {', '.join(sorted(unknown))}; counted by shapes, one FLOP "
            "per element of the result, none within a body where a shape is not known",
            stacklevel=3,
        )
    wanted = {alias.get(output, output) for output in model.outputs}
    tensors = [
        Tensor(v, size(model.arrays[result]), tuple(consumers.get(result, ())))
        for v, proto_node in enumerate(computed)
        for result in filter(None, proto_node.output)
        if result in consumers or result in wanted
    ]
    weights += [
        Weight(size_bytes, tuple(uses[source]))
        for source, size_bytes in weight_bytes.items()
        if source in uses
    ]
    if element_bytes is None:
        values = consumers.keys() | wanted
        element_bytes = _common_element_bytes(model.arrays[value] for value in sorted(values))
    try:
        graph = Graph(tuple(nodes), tuple(tensors), tuple(weights), name, element_bytes)
        return clone_inputs(graph)
    except GraphError as error:
        raise type(error)(f"{where}: {error}") from error


def _aliases(model: Model) -> dict[str, str]:
    """Results of nodes that do nothing -> the value that they pass on."""
    used = set(model.outputs).union(*(reads(node) for node in model.nodes))
    alias: dict[str, str] = {}
    for node in model.nodes:
        if _does_nothing(node, model) and used.isdisjoint(node.output[1:]):
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
    return alias


def _does_nothing(node: NodeProto, model: Model) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Dropout":  # trains only where its third operand says so
        training = node.input[2] if len(node.input) > 2 else ""
        return not training or not model.values.get(training, True)
    return node.op_type == "Identity"


def _constants(
    model: Model, alias: Mapping[str, str], size: _Size, weight_bytes: dict[str, float]
) -> dict[str, _Constant]:
    """Values that depend on no input. Adds the weights among them to `weight_bytes`."""
    constants: dict[str, _Constant] = {}

    def root(name: str, array: Array, stored: float) -> None:
        counted = size(array) if stored == array.bytes else stored
        if not _is_small(array):
            weight_bytes[name] = counted
        constants[name] = _Constant(frozenset(() if _is_small(array) else (name,)), counted)

    for name, stored in model.initializers.items():
        root(name, model.arrays[name], stored)
    for node in model.nodes:
        results = [result for result in node.output if result]
        operands = [alias.get(operand, operand) for operand in reads(node)]
        if node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx"):
            constants[results[0]] = _Constant(frozenset(), model.arrays[results[0]].bytes)
            continue
        if node.op_type in _RANDOM_LIKE or not all(operand in constants for operand in operands):
            continue
        sources = frozenset().union(*(constants[operand].sources for operand in operands))
        read = math.fsum(constants[operand].reads for operand in operands)
        for result in results:
            array = model.arrays.get(result)
            if array is None:  # nobody reads it
                constants[result] = _Constant(sources, read)
            elif sources or node.op_type == "Expand":
                constants[result] = _Constant(sources, min(read, size(array)))
            else:
                root(result, array, array.bytes)
    return constants


def _names(nodes: Sequence[NodeProto]) -> list[str]:
    """Unique names: the model's own, by operator and number where it has none or repeats one."""
    taken = {node.name for node in nodes if node.name}
    used: set[str] = set()
    numbers: collections.Counter[str] = collections.Counter()
    names = []
    for node in nodes:
        name = node.name
        while not name or name in used or (name != node.name and name in taken):
            stem = node.name or node.op_type
            name = f"{stem}_{numbers[stem]}"
            numbers[stem] += 1
        used.add(name)
        names.append(name)
    return names


def _cost(
    node: NodeProto,
    model: Model,
    alias: Mapping[str, str],
    constants: Mapping[str, _Constant],
    size: _Size,
    where: str,
) -> tuple[costs.Cost, float]:
    """A node's cost, and the bytes that it accesses: operands and results, each once."""
    operation = Operation(
        node,
        [model.arrays.get(operand) if operand else None for operand in node.input],
        [model.arrays.get(result) if result else None for result in node.output],
        model.values,
        model.arrays,
    )
    cost = costs.operation_cost(operation, where)
    share: dict[str, float] = {}
    listed = dict(zip(reversed(node.input), reversed(cost.reads), strict=True))
    for operand in reads(node):
        value = alias.get(operand, operand)
        share[value] = max(share.get(value, 0.0), listed.get(operand, 1.0))
    read = 0.0
    for value, part in share.items():
        touched = size(model.arrays[value]) * part
        read += min(touched, constants[value].reads) if value in constants else touched
    written = math.fsum(
        size(array) * part
        for array, part in zip(operation.outputs, cost.writes, strict=True)
        if array is not None
    )
    return cost, read + written
