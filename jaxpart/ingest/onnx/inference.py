"""Infers the shapes of ONNX models, and folds the nodes that only compute shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

import onnx
import onnx.defs
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.onnx import shapes
from jaxpart.ingest.onnx.folding import fold_shapes
from jaxpart.ingest.onnx.limits import may_follow_values
from jaxpart.ingest.onnx.operation import STANDARD, label, reads, subgraphs
from jaxpart.ingest.onnx.propagation import ONNX_ERRORS, declare, propagate
from jaxpart.ingest.onnx.shapes import Array

T = TypeVar("T")


def checked(action: Callable[[], T], where: str) -> T:
    """Calls the onnx package, and turns its errors into one line.

    Args:
      action: the call.
      where: name of the model, for messages.

    Returns:
      The result of the call.

    Raises:
      FileFormatError: the call failed.
    """
    try:
        return action()
    except ONNX_ERRORS as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{where}: broken ONNX model ({reason[:300]})") from error


def live(graph: GraphProto, order: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes that an output of the graph depends on.

    Args:
      graph: states the outputs.
      order: its nodes in a topological order.

    Returns:
      Those nodes, in the same order.
    """
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(order):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            kept.append(node)
    return kept[::-1]


@dataclasses.dataclass(frozen=True)
class FreeSizes:
    """What the user said about sizes that inference may not find, and what messages need.

    Attributes:
      given: "VALUE:AXIS" -> size of that axis.
      named: "VALUE:AXIS" -> name of that dimension in the model.
      unread: names of small stored tensors whose contents are not in the model itself.
    """

    given: Mapping[str, int]
    named: Mapping[str, str]
    unread: AbstractSet[str]


def with_shapes(
    model: ModelProto, where: str, sizes: FreeSizes
) -> tuple[ModelProto, dict[str, Array]]:
    """Infers all shapes of a model.

    Nodes that only compute shapes become initializers if inference cannot finish without them.

    Args:
      model: its nodes are in a topological order; it is changed in place.
      where: name of the model, for messages.
      sizes: the sizes that inference does not find.

    Returns:
      The model with all inferred shapes; type and shape of each value by name.

    Raises:
      InputError: a shape is not known before the model runs; the message names the value.
      FileFormatError: the model is broken, or a value is not a tensor.
    """

    def infer(strict: bool = False, values: bool = False) -> ModelProto:
        return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=values)

    places = dict(sizes.given)
    declared: set[str] = set()  # each value is declared once at most, so that this ends
    with_values = False  # whether the onnx package follows values too: bodies may need it
    while True:
        inferred = checked(functools.partial(infer, values=with_values), where)
        arrays = shapes.known_arrays(inferred.graph)
        unknown = _unknown(model.graph, arrays)
        if unknown:
            hidden = {name for _, name in unknown} - declared
            found = propagate(model, arrays, hidden, where)
            declared |= found
            changed = _set_axes(model.graph, inferred.graph, places) or found
            if changed or _fold(model, arrays, where):
                with_values = False
                continue
        bodies = any(subgraphs(node) for node in model.graph.node)
        if not with_values and (unknown or bodies) and may_follow_values(inferred.graph):
            with_values = True
            continue
        if not unknown:
            break
        node, name = unknown[0]
        if shapes.is_no_tensor(inferred.graph, name):
            raise FileFormatError(
                f"{where}: {name!r}, made by {label(node)}, is no tensor, expected one"
            )
        checked(lambda: infer(strict=True), where)  # strict mode may name the cause
        raise InputError(f"{where}: {_cause(node, name, model, inferred.graph, sizes)}")
    if places:
        raise InputError(
            f"{where}: dimension {min(places)!r} has a size without being told, expected only "
            "sizes that the model leaves open"
        )
    return inferred, arrays


def _unknown(graph: GraphProto, arrays: Mapping[str, Array]) -> list[tuple[NodeProto, str]]:
    """The results that are needed and have no known shape, each with its node."""
    needed = {output.name for output in graph.output}
    needed.update(name for node in graph.node for name in reads(node))
    return [
        (node, name)
        for node in graph.node
        for name in node.output
        if name in needed and name not in arrays
    ]


def _set_axes(graph: GraphProto, inferred: GraphProto, places: dict[str, int]) -> bool:
    """Sets the free axes that `places` names by "VALUE:AXIS", and removes these from it.

    Returns:
      Whether it set one.
    """
    changed = False
    for value in (*inferred.value_info, *inferred.output):
        if not value.type.tensor_type.HasField("shape"):
            continue
        sizes = value.type.tensor_type.shape.dim
        found = [
            axis
            for axis, size in enumerate(sizes)
            if not size.HasField("dim_value") and f"{value.name}:{axis}" in places
        ]
        for axis in found:
            sizes[axis].dim_value = places.pop(f"{value.name}:{axis}")
        if found:
            declare(graph, value)
            changed = True
    return changed


def _cause(
    node: NodeProto, name: str, model: ModelProto, inferred: GraphProto, sizes: FreeSizes
) -> str:
    """Why the shape of result `name` of a node is not known, and what the user can do."""
    lead = f"the shape of {name!r}, made by {label(node)}, cannot be inferred"
    state = "expected its type and shape among the values that the model describes (value_info)"
    if not _has_inference(node, model):
        domain = "" if node.domain in STANDARD else f"{node.domain}."
        operator = f"{domain}{node.op_type}"
        return f"{lead}: nothing is known about the shapes of operator {operator}; {state}"
    if unread := [operand for operand in reads(node) if operand in sizes.unread]:
        return (
            f"{lead}: it depends on {unread[0]!r}, which is in another file; expected small "
            "tensors in the model itself"
        )
    free = [
        f"{name}:{axis}"
        for value in (*inferred.value_info, *inferred.output)
        if value.name == name and value.type.tensor_type.HasField("shape")
        for axis, size in enumerate(value.type.tensor_type.shape.dim)
        if not size.HasField("dim_value")
    ]
    if free:
        listed = ", ".join(sizes.named.get(place, place) for place in dict.fromkeys(free))
        return (
            f"{lead}: it depends on what the model computes as it runs; expected a size for "
            f"{listed} (dims)"
        )
    return f"{lead}: it depends on what the model computes as it runs; {state}"


def _has_inference(node: NodeProto, model: ModelProto) -> bool:
    """Whether the onnx package infers shapes of the operator."""
    domain = "" if node.domain in STANDARD else node.domain
    versions = [o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")]
    if not versions or not onnx.defs.has(node.op_type, versions[0], domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, versions[0], domain)
    return schema.has_type_and_shape_inference_function


def _fold(model: ModelProto, arrays: Mapping[str, Array], where: str) -> bool:
    """Turns values that can be computed now into initializers, and Ifs into the branch they take.

    Returns:
      Whether the model changed.
    """
    graph = model.graph
    values = fold_shapes(model, arrays, where)
    known = {**shapes.small_values(graph, where), **values}
    nodes: list[NodeProto] = []
    opened = False
    for node in graph.node:
        if set(filter(None, node.output)) <= values.keys():
            continue
        if node.op_type == "If" and node.input[0] in known:
            opened = True
            side = "then_branch" if known[node.input[0]].all() else "else_branch"
            branch = shapes.attributes(node)[side].g
            nodes.extend(branch.node)
            graph.initializer.extend(branch.initializer)
            graph.value_info.extend(branch.value_info)
            for inner, outer in zip(branch.output, node.output, strict=True):
                nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
        else:
            nodes.append(node)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name
    )
    nodes = live(graph, nodes)  # drops nodes that fed only a branch not taken
    del graph.node[:]
    graph.node.extend(nodes)
    return opened or bool(values)
