"""Converts an ONNX model to a Graph: one node per operator.

1. Free dimensions get the sizes that the user gives, local functions are inlined, and shapes are
   inferred (`model.py`).
2. Nodes on stored tensors and constants alone are folded: they become no nodes of the graph, and
   the consumers of their results hold the original weights. If such a node creates a large constant
   from no weight (ConstantOfShape, RandomUniform), its result is a weight. Shape and Size are
   constants, because all shapes are known.
3. Identity, and Dropout in inference mode, are removed.
4. Cheap nodes that depend on inputs alone and would tie distant nodes together are cloned into
   their consumers (`rewrite/clone.py`).

Constants of one element, and integers and booleans up to 1 KiB (shapes, axes), are part of the
program. All other constants are weights, because ONNX does not distinguish parameters from
constants. If, Loop and Scan are one node each, with the weights of their bodies. `costs.py` counts
the FLOPs and bytes of a node.
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

# Bytes: integers and booleans up to this size are shapes, axes and indices, not weights.
_SMALL_CONSTANT_BYTES = 1024
_Size = Callable[[Array], float]
# Operators with operands and random results: never folded, even if the operands are constants.
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
      model: the path of a file, or a model in memory. The contents of weights are never read, so
        weight files outside the model may be missing.
      dims: size of each free dimension by its name, or by "INPUT:AXIS" if it has no name.
      element_bytes: bytes to count per element of a float tensor or weight (1 for an int8
        deployment). A complex element counts twice that. Integers and booleans keep their size. By
        default all sizes are as stored.
      name: name of the graph; the default is the name of the file, or of the graph in the model.

    Returns:
      The graph. A node has the name that it has in the model. A node without a name gets its
      operator and a number; a repeated name gets a number at its end. The `element_bytes` of the
      graph is the given one, or else the element size of the float type with the most bytes (4 if
      there are no floats).

    Raises:
      FileFormatError: the file is not an ONNX model, or the model is broken.
      InputError: `element_bytes` is out of range, or a dimension or shape is not known before the
        model runs; the message names it.
      GraphError: the nodes close a cycle, or no node depends on an input.

    Warns:
      UserWarning: an operator has no cost rule and is counted by its shapes; the message names it.
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
    """As `from_onnx`, from the bytes of a file.

    Args:
      content: the bytes of the file.
      path: its path, for messages and the default name; the file is not read.
      dims: as in `from_onnx`.
      element_bytes: as in `from_onnx`.
      name: as in `from_onnx`.

    Returns:
      The graph; errors and warnings are those of `from_onnx`.
    """
    where = os.fspath(path)
    proto = parse(content, where)
    return _graph(proto, where, name or _stem(where), dims, element_bytes)


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A value that depends on no input.

    Attributes:
      sources: names of the weights that it is made of.
      reads: bytes that a consumer must read for it.
    """

    sources: frozenset[str]
    reads: float


def _counted(array: Array, element_bytes: float | None) -> float:
    """Bytes of a value; a float element counts `element_bytes` if that is given."""
    if element_bytes is None or not array.is_float:
        return array.bytes
    return array.elements * element_bytes * (2 if array.is_complex else 1)


def _common_element_bytes(arrays: Iterable[Array]) -> float:
    """Bytes of one element of the float type with the most bytes; 4 if there are no floats."""
    held: collections.defaultdict[float, float] = collections.defaultdict(float)
    for array in arrays:
        if array.is_float:
            held[array.element_bytes / (2 if array.is_complex else 1)] += array.bytes
    return max(held, key=lambda size: held[size]) if held else 4


def _is_small(array: Array) -> bool:
    """Whether a constant is part of the program and not a weight."""
    return array.elements <= 1 or (not array.is_float and array.bytes <= _SMALL_CONSTANT_BYTES)


def _graph(
    proto: ModelProto,
    where: str,
    name: str,
    dims: Mapping[str, int] | None,
    element_bytes: float | None,
) -> Graph:
    """As `from_onnx`; `where` names the model in messages."""
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
    """Result of each node that does nothing -> the value that the node passes on."""
    used = set(model.outputs).union(*(reads(node) for node in model.nodes))
    alias: dict[str, str] = {}
    for node in model.nodes:
        if _does_nothing(node, model) and used.isdisjoint(node.output[1:]):
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
    return alias


def _does_nothing(node: NodeProto, model: Model) -> bool:
    """Whether the first result of a node is its first operand, unchanged."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Dropout":  # drops elements only if operand 2 is true
        training = node.input[2] if len(node.input) > 2 else ""
        return not training or not model.values.get(training, True)
    return node.op_type == "Identity"


def _constants(
    model: Model, alias: Mapping[str, str], size: _Size, weight_bytes: dict[str, float]
) -> dict[str, _Constant]:
    """The values that depend on no input; adds those that are weights to `weight_bytes`."""
    constants: dict[str, _Constant] = {}

    def add_stored(name: str, array: Array, stored: float) -> None:
        counted = size(array) if stored == array.bytes else stored
        if not _is_small(array):
            weight_bytes[name] = counted
        constants[name] = _Constant(frozenset(() if _is_small(array) else (name,)), counted)

    for name, stored in model.initializers.items():
        add_stored(name, model.arrays[name], stored)
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
            if array is None:  # no node reads it
                constants[result] = _Constant(sources, read)
            elif sources or node.op_type == "Expand":
                constants[result] = _Constant(sources, min(read, size(array)))
            else:
                add_stored(result, array, array.bytes)
    return constants


def _names(nodes: Sequence[NodeProto]) -> list[str]:
    """Unique names of nodes, as `from_onnx` describes them."""
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
    """The cost of a node, and the bytes that it accesses: operands and results, each once."""
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
