"""Converts an ONNX model to a Graph: one node per operator.

1. Free dimensions get the sizes that the user gives, local functions are inlined, and shapes are
   inferred (`model.py`).
2. Nodes on stored tensors and constants alone are folded: they become no nodes of the graph, and
   the consumers of their results hold the original weights. If such a node creates a large constant
   from no weight (ConstantOfShape, RandomUniform), its result is a weight. Shape and Size are
   constants, because all shapes are known.
3. Identity, and Dropout in inference mode, are removed.
4. Each node gets the ways to divide it (`divisions/`).
5. Cheap nodes that depend on inputs alone and would tie distant nodes together are cloned into
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

from onnx import ModelProto, NodeProto

from jaxpart.errors import EmptyGraphError, GraphError, InputError
from jaxpart.files import read_bytes, stem_of
from jaxpart.ingest.onnx import costs
from jaxpart.ingest.onnx.constant_values import ConstantValue, constant_values, is_small
from jaxpart.ingest.onnx.constants import constant_weights, is_index_type
from jaxpart.ingest.onnx.divisions.nodes import node_divisions
from jaxpart.ingest.onnx.evaluation import Evaluator
from jaxpart.ingest.onnx.external import check_external_files
from jaxpart.ingest.onnx.model import Model, parse, prepare
from jaxpart.ingest.onnx.operation import body_constants, reads
from jaxpart.ingest.onnx.shapes import Array
from jaxpart.ingest.onnx.sizes import Bytes, Size, counter, total
from jaxpart.ingest.rewrite.clone import clone_inputs
from jaxpart.ingest.rewrite.divisions import with_divisions
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


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
        made = import_model(model, where, dims=dims, element_bytes=element_bytes, name=where)
    else:
        content = read_bytes(model)
        made = import_model(content, model, dims=dims, element_bytes=element_bytes, name=name)
    return made.graph


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
    return import_model(content, path, dims=dims, element_bytes=element_bytes, name=name).graph


def import_model(
    content: bytes | ModelProto,
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    element_bytes: float | None = None,
    name: str | None = None,
) -> ImportedModel:
    """As `from_onnx_bytes`; gives the nodes of the model too that the graph's nodes stand for.

    A model in memory has any text as its path, for messages.
    """
    where = os.fspath(path)
    if isinstance(content, ModelProto):
        proto = content
    else:
        proto = parse(content, where)
        check_external_files(proto, where)
    return _imported(proto, where, name or stem_of(where), dims, element_bytes)


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """The graph of a model, and which nodes of the model its nodes stand for.

    Attributes:
      graph: the graph.
      source: the model as it was read.
      model: the prepared model.
      names: for each of `model.nodes` the name of the node of the graph that stands for it. None:
        no node does, because it depends on inputs and constants alone, passes a value on, or gives
        a shape. Whoever needs its results computes them.
      alias: the result of each node that does nothing -> the value that the node passes on.
    """

    graph: Graph
    source: ModelProto
    model: Model
    names: tuple[str | None, ...]
    alias: Mapping[str, str]


def _common_element_bytes(arrays: Iterable[Array]) -> float:
    """Bytes of one element of the float type with the most bytes; 4 if there are no floats."""
    held: collections.defaultdict[float, float] = collections.defaultdict(float)
    for array in arrays:
        if array.is_float:
            held[array.element_bytes / (2 if array.is_complex else 1)] += array.bytes
    return max(held, key=lambda size: held[size]) if held else 4


def _imported(
    proto: ModelProto,
    where: str,
    name: str,
    dims: Mapping[str, int] | None,
    element_bytes: float | None,
) -> ImportedModel:
    """As `import_model`; `where` names the model in messages."""
    if element_bytes is not None and not 0 < element_bytes < math.inf:
        raise InputError(f"{where}: element_bytes is {element_bytes}, expected a positive number")
    model = prepare(proto, where, dims or {})

    size = counter(element_bytes)
    alias = _aliases(model)
    stored: dict[str, tuple[Array, Bytes]] = {}
    constants = constant_values(model, alias, size, stored)
    positions = [
        i
        for i, node in enumerate(model.nodes)
        if node.output[0] not in alias
        and not all(result in constants for result in node.output if result)
    ]
    computed = [model.nodes[i] for i in positions]
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
        inner = [array for array in body_constants(proto_node) if not is_small(array)]
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
            stacklevel=4,
        )
    if assumed:
        shown = "; ".join([*list(assumed)[:3], *(["..."] if len(assumed) > 3 else [])])
        warnings.warn(f"{where}: {shown}; the figures hang on it", stacklevel=4)
    wanted = {alias.get(output, output) for output in model.outputs}
    made = {  # the results that are tensors -> producers
        result: v
        for v, proto_node in enumerate(computed)
        for result in filter(None, proto_node.output)
        if result in consumers or result in wanted
    }
    tensors = [
        Tensor(
            v,
            size(model.arrays[result]).total,
            tuple(consumers.get(result, ())),
            not model.arrays[result].is_float,
        )
        for result, v in made.items()
    ]
    number: dict[str, int] = {}  # stored value -> its weight
    programmed: set[int] = set()  # weights that are constants by their type
    for source, (array, counted) in stored.items():
        if source in uses:
            if is_index_type(array):
                programmed.add(len(weights))
            number[source] = len(weights)
            weights.append(_weight(array, counted, tuple(uses[source])))
    if element_bytes is None:
        values = consumers.keys() | wanted
        element_bytes = _common_element_bytes(model.arrays[value] for value in sorted(values))
    tensor_number = {result: k for k, result in enumerate(made)}
    divide = node_divisions(model, computed, alias, constants, tensor_number, number, where)
    nodes = list(map(with_divisions, nodes, divide))
    try:
        graph = Graph(tuple(nodes), tuple(tensors), tuple(weights), name, element_bytes)
        graph = clone_inputs(graph, constant_weights(graph, programmed))
    except GraphError as error:
        raise type(error)(f"{where}: {error}") from error
    kept = {node.name for node in graph.nodes}
    standing: list[str | None] = [None] * len(model.nodes)
    for i, node_name in zip(positions, names, strict=True):
        standing[i] = node_name if node_name in kept else None
    return ImportedModel(graph, proto, model, tuple(standing), alias)


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
    constants: Mapping[str, ConstantValue],
    size: Size,
    evaluator: Evaluator,
) -> tuple[costs.Cost, Bytes]:
    """The cost of a node, and the bytes that it accesses."""
    operation = model.operation(node)
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
        accessed += sized((array, 1.0) for array in body_constants(node) if not is_small(array))
    steps = total(read(name, count) for name, count in cost.body.captured.items())
    steps += sized(cost.body.inner)
    return cost, steps if steps.total > accessed.total else accessed
