"""Prepares an ONNX model for counting: all dimensions are numbers, and all shapes are known.

From here on, a weight is known by its type and shape alone; its contents are never read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from jaxpart.errors import CycleError, FileFormatError, InputError
from jaxpart.files import kind_of_content
from jaxpart.ingest.onnx import shapes
from jaxpart.ingest.onnx.check import check_nodes, check_versions
from jaxpart.ingest.onnx.inference import FreeSizes, checked, with_shapes
from jaxpart.ingest.onnx.limits import check_limits
from jaxpart.ingest.onnx.loops import TRIPS, all_loops
from jaxpart.ingest.onnx.operation import (
    Operation,
    attribute_tensors,
    label,
    live,
    reads,
    subgraphs,
)
from jaxpart.ingest.onnx.propagation import standard_version
from jaxpart.ingest.onnx.shapes import SMALL, Array
from jaxpart.problem.topological import find_cycle, topological_order

_MOST_ELEMENTS = 2**63 - 1  # ONNX counts elements in 64 bits


@dataclasses.dataclass(frozen=True)
class Model:
    """The parts of a model that are needed to count its costs.

    Attributes:
      nodes: the nodes on which an output depends, in a topological order; local functions are
        inlined.
      arrays: name of a value -> type and shape.
      outputs: names of the outputs.
      initializers: name of a stored tensor -> bytes.
      values: name of a small constant -> contents, if known: shapes, axes, trip counts.
      opset: version of the standard operators.
      proto: all this as a model: the nodes, and the tensors that are small. Other stored tensors
        are among its inputs.
      told: "RESULT:trips" -> number of trips of a Loop that the user tells.
    """

    nodes: tuple[NodeProto, ...]
    arrays: dict[str, Array]
    outputs: tuple[str, ...]
    initializers: dict[str, float]
    values: dict[str, np.ndarray]
    opset: int
    proto: ModelProto
    told: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def operation(self, node: NodeProto, results: Collection[str] | None = None) -> Operation:
        """One of the nodes with the types and shapes of its values.

        Args:
          node: one of `nodes`.
          results: names of the results that count; others are absent. None: all do.
        """
        given = node.output if results is None else results
        return Operation(
            node,
            [self.arrays.get(operand) if operand else None for operand in node.input],
            [self.arrays.get(k) if k and k in given else None for k in node.output],
            self.values,
            self.arrays,
            self.opset,
            self.told,
        )


def parse(content: bytes, where: str) -> ModelProto:
    """Decodes a model from the bytes of a file; weight files outside the model are not read.

    Args:
      content: the bytes of the file.
      where: name of the file, for messages.

    Returns:
      The model.

    Raises:
      FileFormatError: the bytes are not an ONNX model.
    """
    found = kind_of_content(content)
    instead = f"is {found}, expected an ONNX model or text in UTF-8" if found else ""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        reason = instead or f"broken bytes, expected an ONNX model ({error})"
        raise FileFormatError(f"{where}: {reason}") from error
    if not model.HasField("graph") or not model.graph.output:
        reason = instead or "no graph with an output, expected an ONNX model"
        raise FileFormatError(f"{where}: {reason}")
    return model


def prepare(model: ModelProto, where: str, dims: Mapping[str, int]) -> Model:
    """Sets all dimensions of a model and infers all its shapes.

    Args:
      model: the model; it is not changed.
      where: name of the model, for messages.
      dims: as in `from_onnx`.

    Returns:
      The prepared model.

    Raises:
      InputError: `dims` has a wrong size or an unknown name or contradicts the model, a free
        dimension has no size, or a shape cannot be inferred; the message names it.
      CycleError: the nodes close a cycle.
      FileFormatError: the model is broken.
    """
    check_limits(model, where)
    check_versions(model, where)
    _check_fields(model.graph, where)
    stored = _stored(model.graph)
    light = _without_weights(model, stored, where)
    if light.functions:
        light = checked(lambda: onnx.inliner.inline_local_functions(light), where)
    check_nodes(light.graph.node, light, where)
    sizes = _set_dims(light.graph, frozenset(stored), dims, where)
    sizes = dataclasses.replace(sizes, stored=_unread(stored))
    outputs = tuple(output.name for output in light.graph.output)
    order = live(outputs, _sorted(light.graph, where))
    del light.graph.node[:]
    light.graph.node.extend(order)
    light, arrays = with_shapes(light, where, sizes)
    arrays.update((name, array) for name, (array, _) in stored.items())
    for name, array in arrays.items():
        if array.elements > _MOST_ELEMENTS:
            raise FileFormatError(
                f"{where}: value {name!r} has the shape {array.shape}, expected fewer than 2^63 "
                "elements"
            )
    return Model(
        nodes=tuple(light.graph.node),
        arrays=arrays,
        outputs=outputs,
        initializers={
            **{tensor.name: shapes.array_of(tensor).bytes for tensor in light.graph.initializer},
            **{name: size for name, (_, size) in stored.items()},
        },
        values=shapes.small_values(light.graph, where),
        opset=standard_version(light),
        proto=light,
        told=sizes.trips,
    )


def _check_fields(graph: GraphProto, where: str) -> None:
    """Refuses fields that protobuf accepts: names that are not text, improper types or shapes."""
    named = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    texts: list[object] = [graph.name, *(value.name for value in named)]
    tensors = list(graph.initializer)
    for node in graph.node:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
        tensors += attribute_tensors(node)
        for body in subgraphs(node):
            _check_fields(body, where)
    for text in texts:
        if not isinstance(text, str):  # protobuf gives bytes if they are not UTF-8
            raise FileFormatError(f"{where}: the name {text!r} is no UTF-8 text")
    for tensor in tensors:
        array = shapes.array_of(tensor)
        if not array.is_proper:
            raise FileFormatError(
                f"{where}: tensor {tensor.name!r} has type {array.dtype} and shape {array.shape}, "
                "expected a type of ONNX and sizes of 0 or more"
            )


def _stored(graph: GraphProto) -> dict[str, tuple[Array, float]]:
    """Type, shape and bytes of each initializer that is large, sparse or in another file."""
    stored = {}
    for tensor in graph.initializer:
        array = shapes.array_of(tensor)
        if array.elements > SMALL or shapes.is_external(tensor):
            stored[tensor.name] = (array, array.bytes)
    for sparse in graph.sparse_initializer:
        kept = sum(shapes.array_of(part).bytes for part in (sparse.values, sparse.indices))
        array = Array(sparse.values.data_type, tuple(sparse.dims))
        stored[sparse.values.name] = (array, kept)
    return stored


def _unread(stored: Mapping[str, tuple[Array, float]]) -> dict[str, str]:
    """Name of each stored tensor whose contents are not read -> why, for messages."""
    return {
        name: f"it depends on {name!r}, which is in another file; expected small tensors in the "
        "model itself"
        if array.elements <= SMALL
        else f"it depends on the contents of {name!r}, {array.elements:,} elements; expected sizes "
        f"that depend on at most {SMALL:,}"
        for name, (array, _) in stored.items()
    }


def _without_weights(
    model: ModelProto, stored: Mapping[str, tuple[Array, float]], where: str
) -> ModelProto:
    """A copy with the `stored` tensors as inputs: weights may exceed protobuf's limit of 2 GB."""
    light = ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    small = [tensor for tensor in source.initializer if tensor.name not in stored]
    graph.initializer.extend(small)
    # Old models list initializers among the inputs too: these inputs are left out.
    constant = {tensor.name for tensor in small} | stored.keys()
    graph.input.extend(value for value in source.input if value.name not in constant)
    for name, (array, _) in stored.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, array.dtype, array.shape))
    graph.output.extend(source.output)
    graph.value_info.extend(value for value in source.value_info if value.name not in constant)
    if not light.opset_import:
        raise FileFormatError(f"{where}: no opset_import, expected the version of the operators")
    return light


def _set_dims(
    graph: GraphProto, constant: frozenset[str], dims: Mapping[str, int], where: str
) -> FreeSizes:
    """Sets the sizes of free dimensions of inputs and in bodies.

    Sizes of results are cleared, because inference finds them. What the user told of them is used
    where it does not.

    Returns:
      What the user told of results.
    """
    for name, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"{where}: dimension {name!r} is {size!r}, expected a whole number > 0"
            )
    known: set[str] = set()
    of_inputs: set[str] = set()
    missing: dict[str, str] = {}  # free dimension -> the input that has it
    for value in graph.input:
        if value.name in constant:
            continue
        if not value.type.HasField("tensor_type"):
            raise FileFormatError(f"{where}: input {value.name!r} is no tensor, expected one")
        if not value.type.tensor_type.HasField("shape"):
            raise InputError(f"{where}: input {value.name!r} has no shape, expected one")
        if not Array(value.type.tensor_type.elem_type, ()).is_proper:
            raise FileFormatError(f"{where}: input {value.name!r} has no type of ONNX")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                continue
            place = f"{value.name}:{axis}"
            known.add(place)
            of_inputs.add(dim.dim_param)
            if place in dims:
                dim.dim_value = dims[place]
            elif not dim.dim_param or dim.dim_param not in dims:
                missing.setdefault(dim.dim_param or place, value.name)
    values = [*graph.input, *_values(graph)]
    known.update(dim.dim_param for value in values for dim in _dims(value) if dim.dim_param)
    results = {name for node in graph.node for name in node.output if name}
    looped = {f"{name}:{TRIPS}" for node in all_loops(graph) for name in node.output if name}
    told = {name: size for name, size in dims.items() if name not in known}
    trips = {name: size for name, size in told.items() if name in looped}
    places = {
        name: size
        for name, size in told.items()
        if _is_place(name) and name.rpartition(":")[0] in results
    }
    if unknown := [name for name in dims if name not in known | places.keys() | trips.keys()]:
        names = ", ".join(sorted(known)) or "none"
        raise InputError(f"{where}: no dimension is named {unknown[0]!r}, it has: {names}")
    if missing:
        listed = ", ".join(f"{name} (of input {owner!r})" for name, owner in missing.items())
        raise InputError(f"{where}: free dimensions {listed}: expected a size for each (dims)")
    named: dict[str, str] = {}
    own = {value.name for value in (*graph.value_info, *graph.output)} & results
    for value in values:
        for axis, dim in enumerate(_dims(value)):
            if dim.dim_param in dims and value.name not in own:
                dim.dim_value = dims[dim.dim_param]
            elif dim.dim_param or dim.dim_value < 0:
                if dim.dim_param:
                    named[f"{value.name}:{axis}"] = dim.dim_param
                dim.Clear()
    return FreeSizes(places, trips, named, dims, frozenset(of_inputs), {})


def _is_place(name: str) -> bool:
    """Whether `name` is "VALUE:AXIS"."""
    axis = name.rpartition(":")[2]
    return axis.isascii() and axis.isdigit()


def _values(graph: GraphProto) -> Iterable[ValueInfoProto]:
    """Declared values of the graph and its subgraphs, except the inputs of the graph itself."""
    yield from graph.value_info
    yield from graph.output
    for node in graph.node:
        for body in subgraphs(node):
            yield from body.input
            yield from _values(body)


def _dims(value: ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    """Declared dimensions of a value; none if it is not a tensor."""
    return value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ()


def _sorted(graph: GraphProto, where: str) -> list[NodeProto]:
    """The nodes in the order of Kahn's algorithm, smallest position in the file first."""
    maker: dict[str, int] = {}
    given = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    for v, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker or name in given:
                raise FileFormatError(f"{where}: value {name!r} is made twice, expected once")
            maker[name] = v
    successors: list[list[int]] = [[] for _ in graph.node]
    for v, node in enumerate(graph.node):
        for name in reads(node):
            if name in maker:
                successors[maker[name]].append(v)
            elif name not in given:
                raise FileFormatError(
                    f"{where}: node {v}, {label(node)}, reads {name!r}, expected "
                    "an input, an initializer or the output of a node"
                )
    for output in graph.output:
        if output.name not in maker and output.name not in given:
            raise FileFormatError(f"{where}: nothing makes the output {output.name!r}")
    order = topological_order(successors)
    if order is None:
        cycle = [label(graph.node[v]) for v in find_cycle(successors)]
        shown = " -> ".join([*cycle[:5], *(["..."] if len(cycle) > 5 else []), cycle[0]])
        raise CycleError(f"{where}: the nodes close a cycle: {shown}; expected an acyclic graph")
    return [graph.node[v] for v in order]
