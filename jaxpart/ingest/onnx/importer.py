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

Constants of one element, and booleans and integers of 32 or 64 bits up to 1 KiB (shapes, axes), are
part of the program. All other constants are weights, because ONNX does not distinguish parameters
from constants; `constants.py` tells which of them side chains may carry with them. If, Loop and
Scan are one node each, with the weights of their bodies. `costs.py` counts the FLOPs and bytes of a
node.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto

from jaxpart.errors import EmptyGraphError, GraphError, InputError
from jaxpart.files import read_bytes, stem_of
from jaxpart.ingest.onnx import costs
from jaxpart.ingest.onnx.constants import constant_weights, is_index_type
from jaxpart.ingest.onnx.evaluation import Evaluator
from jaxpart.ingest.onnx.external import check_external_files
from jaxpart.ingest.onnx.model import Model, parse, prepare
from jaxpart.ingest.onnx.operation import Operation, body_constants, reads
from jaxpart.ingest.onnx.shapes import Array
from jaxpart.ingest.onnx.sizes import Bytes, Size, counter, total
from jaxpart.ingest.rewrite.clone import clone_inputs
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

# Bytes: index types and booleans up to this size are shapes, axes and indices, not weights.
_SMALL_CONSTANT_BYTES = 1024
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
        weight files outside the model may be missing (models are often shared without them). Those
        that are there must be regular files within the folder of the model (`external.py`).
      dims: size of each free dimension by its name, or by "VALUE:AXIS" if it has no name. The value
        is an input, or a result whose size only the run knows (the rows that a loop collects).
        "RESULT:trips" is how often the Loop with that result runs, where only the run knows.
      element_bytes: bytes to count per element of a float tensor or weight (1 for an int8
        deployment). A complex element counts twice that. Integers, booleans and quantised values
        (floats below 16 bits too) keep their size. By default all sizes are as stored.
      name: name of the graph; the default is the name of the file, or of the graph in the model.

    Returns:
      The graph. A node has the name that it has in the model. A node without a name gets its
      operator and a number; a repeated name gets a number at its end. The `element_bytes` of the
      graph is the given one, or else the element size of the float type with the most bytes (4 if
      there are no floats).

    Raises:
      FileFormatError: the file is not an ONNX model, the model is broken, or a weight file is no
        regular file within the folder of the model.
      InputError: `element_bytes` is out of range, a dimension or shape is not known before the
        model runs, or `dims` contradicts the model; the message names it.
      GraphError: the nodes close a cycle, or no node depends on an input.

    Warns:
      UserWarning: an operator has no cost rule and is counted by its shapes, only the run knows how
        often a Loop runs, or the model gives one name to unlike sizes; the message names it.
    """
    if isinstance(model, ModelProto):
        where = name or model.graph.name or "model"
        return _graph(model, where, where, dims, element_bytes)
    where = os.fspath(model)
    proto = parse(read_bytes(model), where)
    check_external_files(proto, where)
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
      path: its path, for messages, the default name and the folder of weight files; the file is not
        read.
      dims: as in `from_onnx`.
      element_bytes: as in `from_onnx`.
      name: as in `from_onnx`.

    Returns:
      The graph; errors and warnings are those of `from_onnx`.
    """
    where = os.fspath(path)
    proto = parse(content, where)
    check_external_files(proto, where)
    return _graph(proto, where, name or _stem(where), dims, element_bytes)


def _stem(path: str) -> str:
    return stem_of(path)


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A value that depends on no input.

    Attributes:
      sources: names of the weights that it is made of.
      reads: bytes that a consumer must read for it, counted in the types of the weights.
      stored: as `reads`, as the model stores them.
      elements: number of elements that it is made of; fewer than it has if it is broadcast.
    """

    sources: frozenset[str]
    reads: Bytes
    stored: float
    elements: int

    def touched(self, array: Array, size: Size, times: float) -> Bytes:
        """Bytes that are read if a consumer reads all elements `times` times.

        Args:
          array: type and shape of the value.
          size: counts the bytes of a value.
          times: below 1 if the consumer reads a part.
        """
        broadcast = self.elements < array.elements
        if times < 1 and broadcast:  # the part may be larger than what the whole is made of
            return size(array).times(times) if array.bytes * times < self.stored else self.reads
        return self.reads.times(times)


def _derived(array: Array, operands: Sequence[_Constant], size: Size) -> _Constant:
    """A value that is computed from constants: a consumer reads it, or what it is made of."""
    sources = frozenset().union(*(operand.sources for operand in operands))
    elements = min(sum(operand.elements for operand in operands), array.elements)
    stored = sum(operand.stored for operand in operands)
    if stored <= array.bytes:  # as stored: the types of the weights decide, not how they count
        return _Constant(sources, total(o.reads for o in operands), stored, elements)
    return _Constant(sources, size(array), array.bytes, elements)


def _common_element_bytes(arrays: Iterable[Array]) -> float:
    """Bytes of one element of the float type with the most bytes; 4 if there are no floats."""
    held: collections.defaultdict[float, float] = collections.defaultdict(float)
    for array in arrays:
        if array.is_float:
            held[array.element_bytes / (2 if array.is_complex else 1)] += array.bytes
    return max(held, key=lambda size: held[size]) if held else 4


def _is_small(array: Array) -> bool:
    """Whether a constant is part of the program and not a weight."""
    return array.elements <= 1 or (is_index_type(array) and array.bytes <= _SMALL_CONSTANT_BYTES)


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

    size = counter(element_bytes)
    alias = _aliases(model)
    stored: dict[str, tuple[Array, Bytes]] = {}
    constants = _constants(model, alias, size, stored)
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
    assumed: dict[str, None] = {}
    names = _names(computed)
    evaluator = Evaluator(model.opset, where)
    for v, proto_node in enumerate(computed):
        operands = [alias.get(operand, operand) for operand in reads(proto_node)]
        for operand in dict.fromkeys(operands):
            consumers.setdefault(operand, []).append(v)
            for source in constants[operand].sources if operand in constants else ():
                uses.setdefault(source, []).append(v)
        inner = [array for array in body_constants(proto_node) if not _is_small(array)]
        weights += [_weight(array, size(array), (v,)) for array in inner]
        cost, accessed = _cost(proto_node, model, alias, constants, size, evaluator)
        unknown |= cost.unknown
        assumed.update(dict.fromkeys(sorted(cost.assumed)))
        nodes.append(
            Node(
                names[v],
                proto_node.op_type,
                cost.flops,
                accessed.total,
                fixed_bytes=min(accessed.fixed, accessed.total),
            )
        )
    if unknown:
        warnings.warn(
            f"{where}: no cost rule for {', '.join(sorted(unknown))}; counted by shapes, one FLOP "
            "per element of the result, none within a body where a shape is not known; the figures "
            "hang on it",
            stacklevel=3,
        )
    if assumed:
        shown = "; ".join([*list(assumed)[:3], *(["..."] if len(assumed) > 3 else [])])
        warnings.warn(f"{where}: {shown}; the figures hang on it", stacklevel=3)
    wanted = {alias.get(output, output) for output in model.outputs}
    tensors = [
        Tensor(
            v,
            size(model.arrays[result]).total,
            tuple(consumers.get(result, ())),
            not model.arrays[result].is_float,
        )
        for v, proto_node in enumerate(computed)
        for result in filter(None, proto_node.output)
        if result in consumers or result in wanted
    ]
    programmed: set[int] = set()  # weights that are constants by their type
    for source, (array, counted) in stored.items():
        if source in uses:
            if is_index_type(array):
                programmed.add(len(weights))
            weights.append(_weight(array, counted, tuple(uses[source])))
    if element_bytes is None:
        values = consumers.keys() | wanted
        element_bytes = _common_element_bytes(model.arrays[value] for value in sorted(values))
    try:
        graph = Graph(tuple(nodes), tuple(tensors), tuple(weights), name, element_bytes)
        return clone_inputs(graph, constant_weights(graph, programmed))
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
    model: Model,
    alias: Mapping[str, str],
    size: Size,
    stored: dict[str, tuple[Array, Bytes]],
) -> dict[str, _Constant]:
    """The values that depend on no input; adds those that are weights to `stored`."""
    constants: dict[str, _Constant] = {}

    def add_weight(name: str, array: Array, read: Bytes, held: float) -> None:
        if not _is_small(array):
            stored[name] = (array, read)
        sources = frozenset(() if _is_small(array) else (name,))
        constants[name] = _Constant(sources, read, held, array.elements)

    for name, held in model.initializers.items():
        array = model.arrays[name]
        # A sparse tensor keeps the size of what it stores: part of it is indices.
        add_weight(name, array, size(array) if held == array.bytes else Bytes(held, held), held)
    for node in model.nodes:
        results = [result for result in node.output if result]
        operands = [alias.get(operand, operand) for operand in reads(node)]
        if node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx"):
            array = model.arrays[results[0]]
            constants[results[0]] = _Constant(frozenset(), size(array), array.bytes, array.elements)
            continue
        if node.op_type in _RANDOM_LIKE or not all(operand in constants for operand in operands):
            continue
        made_of = [constants[operand] for operand in operands]
        for result in results:
            # No node reads a result without a shape.
            array = model.arrays.get(result, Array(TensorProto.FLOAT, ()))
            derived = _derived(array, made_of, size)
            if derived.sources or node.op_type == "Expand":
                constants[result] = derived
            elif derived.elements < array.elements:  # made of nothing: ConstantOfShape
                add_weight(result, array, size(array), array.bytes)
            else:  # made element by element: a bias of int32
                add_weight(result, array, derived.reads, derived.stored)
    return constants


def _weight(array: Array, counted: Bytes, consumers: tuple[int, ...]) -> Weight:
    return Weight(counted.total, consumers, counted.fixed > 0 or not array.is_float)


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
    size: Size,
    evaluator: Evaluator,
) -> tuple[costs.Cost, Bytes]:
    """The cost of a node, and the bytes that it accesses."""
    operation = Operation(
        node,
        [model.arrays.get(operand) if operand else None for operand in node.input],
        [model.arrays.get(result) if result else None for result in node.output],
        model.values,
        model.arrays,
        model.opset,
        model.told,
    )
    cost = costs.operation_cost(operation, evaluator)

    def read(name: str, times: float) -> Bytes:
        value = alias.get(name, name)
        array = model.arrays[value]
        if value in constants:
            return constants[value].touched(array, size, times)
        return size(array).times(times)

    def sized(accesses: Iterable[tuple[Array, float]]) -> Bytes:
        return total(size(array).times(times) for array, times in accesses)

    times: dict[str, float] = {}  # of the values, not of their names
    listed = dict(zip(reversed(node.input), reversed(cost.reads), strict=True))
    for operand in reads(node):
        value = alias.get(operand, operand)
        times[value] = max(times.get(value, 0.0), listed.get(operand, 1.0))
    written = zip(operation.outputs, cost.writes, strict=True)
    accessed = total(read(value, count) for value, count in times.items())
    accessed += sized((array, count) for array, count in written if array is not None)
    accessed += sized(cost.states)
    if cost.body is None:
        return cost, accessed
    if node.op_type != "If":  # it reads the tensors of one side alone
        accessed += sized((array, 1.0) for array in body_constants(node) if not _is_small(array))
    steps = total(read(name, count) for name, count in cost.body.captured.items())
    steps += sized(cost.body.inner)
    return cost, steps if steps.total > accessed.total else accessed
