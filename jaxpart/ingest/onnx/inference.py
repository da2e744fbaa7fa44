"""Infers the shapes of ONNX models, and folds the nodes that only compute shapes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

import onnx
import onnx.defs
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.onnx import shapes
from jaxpart.ingest.onnx.bodies import Value
from jaxpart.ingest.onnx.evaluation import Evaluator
from jaxpart.ingest.onnx.folding import Folded, fold_graph
from jaxpart.ingest.onnx.limits import may_follow_values
from jaxpart.ingest.onnx.loops import TRIPS, all_loops, is_loop, rows, set_results, told_trips
from jaxpart.ingest.onnx.operation import STANDARD, label, reads, subgraphs
from jaxpart.ingest.onnx.propagation import ONNX_ERRORS, declare, propagate, standard_version
from jaxpart.ingest.onnx.replacement import place_constants, replace_known
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


@dataclasses.dataclass(frozen=True)
class FreeSizes:
    """What the user said about sizes that inference may not find, and what messages need.

    Attributes:
      given: "VALUE:AXIS" -> size of that axis.
      trips: "RESULT:trips" -> number of trips of the Loop with that result.
      named: "VALUE:AXIS" -> name of that dimension in the model.
      sizes: name of a dimension -> size.
      of_inputs: names of dimensions of inputs.
      stored: name of a stored tensor whose contents are not read -> why.
    """

    given: Mapping[str, int]
    trips: Mapping[str, int]
    named: Mapping[str, str]
    sizes: Mapping[str, int]
    of_inputs: AbstractSet[str]
    stored: Mapping[str, str]

    def told(self) -> dict[str, int]:
        """All "VALUE:AXIS" of results whose size the user told -> size."""
        by_name = {
            place: self.sizes[name] for place, name in self.named.items() if name in self.sizes
        }
        return {**by_name, **self.given}


def with_shapes(
    model: ModelProto, where: str, sizes: FreeSizes
) -> tuple[ModelProto, dict[str, Array]]:
    """Infers all shapes of a model.

    1. Nodes that only compute shapes become initializers if inference cannot finish without them.
    2. Results that have a row for each trip of a Loop get their size if the trips are known.
    3. Sizes that the user tells are set only where all this leaves them open.

    Args:
      model: its nodes are in a topological order; it is changed in place.
      where: name of the model, for messages.
      sizes: the sizes that inference does not find.

    Returns:
      The model with all inferred shapes; type and shape of each value by name.

    Raises:
      InputError: a shape is not known before the model runs, or the user told a size that is
        another; the message names the value.
      FileFormatError: the model is broken, or a value is not a tensor.

    Warns:
      UserWarning: the model gives the name of a dimension of an input to a size that is another.
    """

    def infer(strict: bool = False, values: bool = False) -> ModelProto:
        return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=values)

    evaluator = Evaluator(standard_version(model), where)
    told = sizes.told()
    bodies = any(subgraphs(node) for node in model.graph.node)
    loops = any(True for _ in all_loops(model.graph))
    declared: set[str] = set()  # each value is declared once at most, so that this ends
    folded = Folded({}, {})
    conditions = bodies  # whether conditions and trip counts are still to be computed
    with_values = False  # whether the onnx package follows values too: bodies may need it
    while True:
        inferred = checked(functools.partial(infer, values=with_values), where)
        arrays = shapes.known_arrays(inferred.graph)
        unknown = _unknown(model.graph, arrays)
        if unknown or conditions:
            conditions = False
            hidden = {name for _, name in unknown} - declared
            found = propagate(model, arrays, hidden, where)
            declared |= found
            folded = fold_graph(model.graph, arrays, sizes.stored, evaluator)
            placed = bodies and place_constants(
                model.graph, inferred.graph, folded.known, evaluator
            )
            replaced = replace_known(model.graph, folded, {name for _, name in unknown})
            if placed or replaced or found:
                with_values = False
                conditions = bodies
                continue
        if loops and set_results(model.graph, inferred.graph, {}, sizes.trips, evaluator):
            with_values = False
            continue
        if not with_values and (unknown or bodies) and may_follow_values(inferred.graph):
            with_values = True
            continue
        if not unknown:
            break
        if _set_axes(model.graph, inferred.graph, told):
            with_values = False
            continue
        node, name = unknown[0]
        if shapes.is_no_tensor(inferred.graph, name) and name not in folded.refused:
            raise FileFormatError(
                f"{where}: {name!r}, made by {label(node)}, is no tensor, expected one"
            )
        checked(lambda: infer(strict=True), where)  # strict mode may name the cause
        raise InputError(f"{where}: {_cause(node, name, model, inferred.graph, sizes, folded)}")
    _check_told(inferred.graph, arrays, sizes, told, where)
    _check_trips(inferred.graph, sizes, folded, where)
    return inferred, arrays


def _check_told(
    graph: GraphProto,
    arrays: Mapping[str, Array],
    sizes: FreeSizes,
    unused: Mapping[str, int],
    where: str,
) -> None:
    """Refuses sizes of results that the user told, where the model has another.

    Args:
      graph: with all shapes.
      arrays: type and shape of each value by name.
      sizes: what the user told.
      unused: "VALUE:AXIS" -> size, of those that were not needed.
      where: name of the model, for messages.

    Raises:
      InputError: the model has another size, or the user told by place what needs no telling.

    Warns:
      UserWarning: a name of a dimension of an input is also that of a size that is another.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    for place, size in sizes.told().items():
        value, _, axis = place.rpartition(":")
        shape = arrays[value].shape if value in arrays else ()
        if value not in makers or int(axis) >= len(shape):
            continue
        real = _branch_sizes(makers[value], value, int(axis)) or {shape[int(axis)]}
        if size in real:
            continue
        key = place if place in sizes.given else sizes.named[place]
        shown = " or ".join(f"{each:,}" for each in sorted(real))
        message = (
            f"{where}: dimension {key!r} is {size:,} (dims), but axis {axis} of {value!r}, made by "
            f"{label(makers[value])}, has the size {shown}"
        )
        if key in sizes.of_inputs and not is_loop(makers[value]):
            warnings.warn(f"{message}, which counts", stacklevel=7)
            continue
        raise InputError(f"{message}, expected only sizes that the model leaves open")
    results = {name for node in all_loops(graph) for name in node.output}
    idle = [name for name in sizes.trips if name.rpartition(":")[0] not in results]
    if needless := sorted(idle) or sorted(unused.keys() & sizes.given.keys()):
        raise InputError(
            f"{where}: dimension {needless[0]!r} has a size without being told, expected only "
            "sizes that the model leaves open"
        )


def _check_trips(graph: GraphProto, sizes: FreeSizes, folded: Folded, where: str) -> None:
    """Refuses Loops whose trips depend on no input, and are not computed and not told."""
    for node in filter(is_loop, graph.node):
        reason = next((folded.refused[k] for k in node.input[:2] if k in folded.refused), None)
        if reason is None or told_trips(node, sizes.trips) or any(rows(node)):
            continue
        name = next(filter(None, node.output))
        reason += ", or" if "; expected" in reason else "; expected"
        raise InputError(
            f"{where}: the trips of {label(node)} are not known: {reason} their number as "
            f"{name}:{TRIPS} (dims)"
        )


def _branch_sizes(node: NodeProto, name: str, axis: int) -> set[int]:
    """The sizes that an axis of a result of an If can have; none if they are not all known."""
    if node.op_type != "If" or node.domain not in STANDARD:
        return set()
    position = list(node.output).index(name)
    found: set[int] = set()
    for body in subgraphs(node):
        array = shapes.known_arrays(body).get(body.output[position].name)
        if array is None or axis >= len(array.shape):
            return set()
        found.add(array.shape[axis])
    return found


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
    node: NodeProto,
    name: str,
    model: ModelProto,
    inferred: GraphProto,
    sizes: FreeSizes,
    folded: Folded,
) -> str:
    """Why the shape of result `name` of a node is not known, and what the user can do."""
    lead = f"the shape of {name!r}, made by {label(node)}, cannot be inferred"
    state = "expected its type and shape among the values that the model describes (value_info)"
    if not _has_inference(node, model):
        domain = "" if node.domain in STANDARD else f"{node.domain}."
        operator = f"{domain}{node.op_type}"
        return f"{lead}: nothing is known about the shapes of operator {operator}; {state}"
    if (reason := _refusal(node, name, folded)) is not None:
        return f"{lead}: {reason}" + ("" if "; expected" in reason else f"; {state}")
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
    later = [operand for operand in list(node.input)[1:] if operand]
    if later and not subgraphs(node) and all(operand in folded.known for operand in later):
        shown = ", ".join(f"{operand!r} is {_shown(folded.known[operand])}" for operand in later)
        return f"{lead}: {shown}, which does not fit its operator; expected another"
    return f"{lead}: it depends on what the model computes as it runs; {state}"


def _refusal(node: NodeProto, name: str, folded: Folded) -> str | None:
    """Why a value that the result of a node depends on is not computed; None if it is not that."""
    if name in folded.refused:
        return folded.refused[name]
    # The first operand is data: only its shape counts.
    names = [operand for operand in reads(node) if operand != node.input[0]]
    return next((folded.refused[operand] for operand in names if operand in folded.refused), None)


def _shown(value: Value) -> str:
    """Contents of a small constant for messages, shortened."""
    text = " ".join(str(value if isinstance(value, list) else value.tolist()).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _has_inference(node: NodeProto, model: ModelProto) -> bool:
    """Whether the onnx package infers shapes of the operator."""
    domain = "" if node.domain in STANDARD else node.domain
    versions = [o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")]
    if not versions or not onnx.defs.has(node.op_type, versions[0], domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, versions[0], domain)
    return schema.has_type_and_shape_inference_function
