"""How often a Loop runs its body.

1. The trip count (operand 0) is a constant, and the condition never ends the loop: so often, or
   never if it is negative.
2. The condition is false at the start: never. The body makes it false: once at most.
3. Else only the run knows. The user may tell the number, as "RESULT:trips" or by the size of a
   result that has a row for each trip; the model may declare that size. A trip count that is
   constant is then the most that the number can be, and what counts if nobody tells it.
4. If nothing is known, the body counts once, and a warning says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, NodeProto
from onnx.helper import make_tensor_value_info

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.onnx.bodies import Value
from jaxpart.ingest.onnx.evaluation import Evaluator
from jaxpart.ingest.onnx.folding import Folded, fold
from jaxpart.ingest.onnx.operation import STANDARD, Operation, label, live, subgraphs
from jaxpart.ingest.onnx.propagation import declare
from jaxpart.ingest.onnx.shapes import Array, attributes, followed, known_arrays, small_values

MAX_TRIPS = 10**9  # exporters write larger ones for "until the condition is false"
TRIPS = "trips"  # in "RESULT:trips"


def is_loop(node: NodeProto) -> bool:
    """Whether a node is a Loop of ONNX itself."""
    return node.op_type == "Loop" and node.domain in STANDARD


def all_loops(graph: GraphProto) -> Iterator[NodeProto]:
    """The Loops of a graph and of its bodies."""
    for node in graph.node:
        if is_loop(node):
            yield node
        for body in subgraphs(node):
            yield from all_loops(body)


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the model says of the trips of a Loop.

    Attributes:
      most: the most trips; None if the model does not bound them.
      exact: whether the Loop makes as many.
      by: what bounds them, in words.
    """

    most: int | None
    exact: bool
    by: str


def stated_trips(node: NodeProto, values: Mapping[str, np.ndarray], evaluator: Evaluator) -> Stated:
    """What the model says of the trips of a Loop.

    Args:
      node: the Loop.
      values: contents of small constants around it, by name.
      evaluator: computes the condition that the body makes.

    Raises:
      FileFormatError: it makes more than `MAX_TRIPS` trips.
    """
    count, condition = [*node.input, "", ""][:2]
    most = _number(values.get(count))
    start = True if not condition else _truth(values.get(condition))
    if most is not None:
        most = max(most, 0)
    by = f"its trip count {count!r}"
    if most == 0:
        return Stated(0, True, by)
    if start is False:
        return Stated(0, True, f"its condition {condition!r}")
    goes_on = _stays_true(attributes(node)["body"].g, values, evaluator)
    if goes_on is False:
        certain = start is True and (most is not None or not count)
        return Stated(1, certain, "the condition of its body")
    exact = most is not None and start is True and goes_on is True
    if most is not None and most > MAX_TRIPS:
        if exact:
            raise FileFormatError(
                f"{evaluator.where}: {label(node)} makes {most:,} trips ({count!r}), expected at "
                f"most {MAX_TRIPS:,}"
            )
        most = None
    return Stated(most, exact, by)


def _number(content: np.ndarray | None) -> int | None:
    return None if content is None or content.size != 1 else int(content.item())


def _truth(content: np.ndarray | None) -> bool | None:
    return None if content is None or content.size != 1 else bool(content.item())


def _stays_true(
    body: GraphProto, values: Mapping[str, np.ndarray], evaluator: Evaluator
) -> bool | None:
    """The condition that a body makes if it is true before; None if only the run knows."""
    inner = {**values, **small_values(body, evaluator.where)}
    known: dict[str, Value] = {k: v for k, v in inner.items() if followed(v)}
    for value in body.input:
        known.pop(value.name, None)
    known[body.input[1].name] = np.array(True)
    wanted = body.output[0].name
    folded = Folded(known, {})
    fold(live([wanted], body.node), {}, folded, evaluator)
    made = folded.known.get(wanted)
    return _truth(made) if isinstance(made, np.ndarray) else None


def rows(node: NodeProto) -> list[str]:
    """Names of the results of a Loop that have a row for each trip; "" for one that is absent."""
    return list(node.output[len(attributes(node)["body"].g.input) - 2 :])


def told_trips(node: NodeProto, told: Mapping[str, int]) -> tuple[str, int] | None:
    """The trips of a Loop that the user tells.

    Args:
      node: the Loop.
      told: "RESULT:trips" -> number.

    Returns:
      The key in `told` and the number; None if the user does not tell it.
    """
    keys = [f"{name}:{TRIPS}" for name in node.output if name]
    return next(((key, told[key]) for key in keys if key in told), None)


def trip_count(
    operation: Operation, told: Mapping[str, int], evaluator: Evaluator
) -> tuple[int, str]:
    """How often a Loop runs its body; the docstring of this module gives the rule.

    Args:
      operation: the Loop with the types and shapes of its values.
      told: "RESULT:trips" -> number that the user tells.
      evaluator: computes the condition that the body makes.

    Returns:
      The trips; what to warn of, "" if the number is certain.

    Raises:
      FileFormatError: the numbers that the model states differ, or are too large.
      InputError: the user tells a number that the model excludes.
    """
    node, where = operation.node, evaluator.where
    model = stated_trips(node, operation.values, evaluator)
    reason = _reason(node, model)
    given = told_trips(node, told)
    if given is not None and model.most is not None and (model.exact or given[1] > model.most):
        raise InputError(
            f"{where}: dimension {given[0]!r} is {given[1]:,} (dims), but {reason}, expected only "
            "numbers that the model leaves open"
        )
    known = {given[0]: given[1]} if given else {}
    places = zip(operation.outputs[len(node.output) - len(rows(node)) :], rows(node), strict=False)
    known.update((f"{name}:0", a.shape[0]) for a, name in places if a is not None and a.shape)
    for place, count in known.items():
        first = next(iter(known))
        if model.most is not None and (count > model.most or (model.exact and count < model.most)):
            raise FileFormatError(
                f"{where}: {reason}, but {place!r} is {count:,}, expected the same number"
            )
        if count != known[first]:
            raise FileFormatError(
                f"{where}: {label(node)} makes {known[first]:,} trips ({first!r}), but {place!r} "
                f"is {count:,}, expected the same number"
            )
        if count > MAX_TRIPS:
            raise InputError(
                f"{where}: {label(node)} makes {count:,} trips ({place!r}), expected at most "
                f"{MAX_TRIPS:,}"
            )
    if known:
        return next(iter(known.values())), ""
    if model.exact and model.most is not None:
        return model.most, ""
    name = next(filter(None, node.output), "")
    advice = f"tell the number as {name}:{TRIPS} (dims)"
    if model.most is not None:
        return model.most, f"{label(node)} counts {model.most:,} trips, the most; {advice}"
    return 1, f"{label(node)} counts one trip, since only the run knows their number; {advice}"


def _reason(node: NodeProto, model: Stated) -> str:
    """What the model says of the trips of a Loop, in words."""
    bound = "" if model.exact else "at most "
    return f"{label(node)} makes {bound}{model.most or 0:,} trips by {model.by}"


def set_results(
    graph: GraphProto,
    inferred: GraphProto,
    values: Mapping[str, np.ndarray],
    told: Mapping[str, int],
    evaluator: Evaluator,
) -> bool:
    """Declares sizes of the results of Loops that shape inference leaves open.

    1. A result that has a row for each trip, where the number of trips is known.
    2. A state, where the body takes and gives one shape and the first state has it.

    Args:
      graph: a graph or a body; its declared values grow.
      inferred: the same with the shapes that inference has found.
      values: contents of small constants around the graph, by name.
      told: "RESULT:trips" -> number that the user tells.
      evaluator: computes the conditions that bodies make.

    Returns:
      Whether it declared one.

    Raises:
      FileFormatError: a Loop makes more than `MAX_TRIPS` trips.
    """
    inner = {**values, **small_values(graph, evaluator.where)}
    arrays = known_arrays(inferred)
    found = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    changed = False
    for node, seen in zip(graph.node, inferred.node, strict=True):
        for body, seen_body in zip(subgraphs(node), subgraphs(seen), strict=True):
            changed |= set_results(body, seen_body, inner, told, evaluator)
        if not is_loop(node):
            continue
        model, given = stated_trips(node, inner, evaluator), told_trips(node, told)
        count = model.most if model.exact else given[1] if given else None
        for name in rows(node) if count is not None else ():
            value = found.get(name)
            sizes = value.type.tensor_type.shape.dim if value is not None else ()
            if value is not None and sizes and not sizes[0].HasField("dim_value"):
                sizes[0].dim_value = count or 0
                declare(graph, value)
                changed = True
        for name, array in _states(node, seen, arrays).items():
            declare(graph, make_tensor_value_info(name, array.dtype, list(array.shape)))
            changed = True
    return changed


def _states(node: NodeProto, seen: NodeProto, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """States of a Loop that keep one shape at all trips, and are not known: name -> array."""
    body = attributes(seen)["body"].g
    inside = known_arrays(body)
    states = zip(node.input[2:], body.input[2:], body.output[1:], node.output, strict=False)
    return {
        name: arrays[first]
        for first, taken, given, name in states
        if name
        and name not in arrays
        and first in arrays
        and arrays[first] == inside.get(taken.name) == inside.get(given.name)
    }
