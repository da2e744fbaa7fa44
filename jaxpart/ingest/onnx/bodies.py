"""Runs the bodies of nodes on known values: If, Loop, Scan, SequenceMap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto

from jaxpart.ingest.onnx.shapes import SMALL, attributes, followed, small_values

Value = np.ndarray | list[np.ndarray]  # a list: a sequence of tensors
Step = Callable[[NodeProto, Mapping[str, Value]], list[Value]]  # computes one node of a body


class NotComputedError(Exception):
    """A value is not computed before the model runs, although it depends on no input.

    The message says why. It becomes an error only where a shape needs the value.
    """


def _run(
    body: GraphProto, operands: Sequence[Value], known: Mapping[str, Value], step: Step
) -> list[Value]:
    """One run of a body.

    Args:
      body: the body.
      operands: its inputs.
      known: the values around it, which it may capture.
      step: computes one node.

    Returns:
      The contents of its outputs.

    Raises:
      NotComputedError: a value in it is not computed.
    """
    values: dict[str, Value] = dict(known)
    stored = small_values(body, body.name)
    values.update((name, content) for name, content in stored.items() if followed(content))
    values.update(zip((value.name for value in body.input), operands, strict=True))
    for node in body.node:
        if node.output[0] in stored and node.op_type == "Constant":
            continue
        missing = [name for name in node.input if name and name not in values]
        if missing or node.op_type == "Constant":
            name = (missing or node.output)[0]
            raise NotComputedError(f"{name!r} in its body is a tensor that is not read")
        values.update(zip(node.output, step(node, values), strict=False))
    return [values[output.name] for output in body.output]


def _truth(value: Value) -> bool:
    """Content of a condition, one truth value."""
    return bool(np.asarray(value).reshape(-1)[0])


def _tensor(value: Value) -> np.ndarray:
    if isinstance(value, list):
        raise NotComputedError("a body gives sequences")
    return value


def _stack(rows: Sequence[Value], axis: int = 0) -> np.ndarray:
    """The rows that a body gave, one for each trip."""
    if not rows:
        raise NotComputedError("it runs no trip, so that the shape of its rows is not known")
    return np.stack([_tensor(row) for row in rows], axis)


def _run_if(node: NodeProto, known: Mapping[str, Value], step: Step) -> list[Value]:
    side = "then_branch" if _truth(known[node.input[0]]) else "else_branch"
    return _run(attributes(node)[side].g, [], known, step)


def _run_loop(node: NodeProto, known: Mapping[str, Value], step: Step) -> list[Value]:
    body = attributes(node)["body"].g
    names = [*node.input, "", ""]
    most = int(_tensor(known[names[0]]).reshape(-1)[0]) if names[0] else None
    goes_on = _truth(known[names[1]]) if names[1] else True
    carried: list[Value] = [known[name] for name in node.input[2:]]
    rows: list[list[Value]] = [[] for _ in body.output[1 + len(carried) :]]
    trip = kept = 0
    while goes_on and (most is None or trip < most):
        results = _run(body, [np.array(trip), np.array(True), *carried], known, step)
        goes_on, carried = _truth(results[0]), results[1 : 1 + len(carried)]
        for row, result in zip(rows, results[1 + len(carried) :], strict=True):
            row.append(result)
            kept += max(_tensor(result).size, 1)
        trip += 1
        if kept > SMALL or (not body.node and trip > SMALL):
            raise NotComputedError(f"it makes more than {SMALL:,} elements")
    return [*carried, *(_stack(row) for row in rows)]


def _run_scan(node: NodeProto, known: Mapping[str, Value], step: Step) -> list[Value]:
    given = attributes(node)
    if "body" not in given or "num_scan_inputs" not in given or not all(node.input):
        raise NotImplementedError  # opset 8 has a batch axis
    body, scanned = given["body"].g, given["num_scan_inputs"].i
    states: list[Value] = [known[name] for name in node.input[:-scanned]]
    made = len(body.output) - len(states)

    def wholes(name: str, count: int) -> list[int]:
        return list(given[name].ints) if name in given else [0] * count

    axes = wholes("scan_input_axes", scanned)
    reversed_inputs = wholes("scan_input_directions", scanned)
    slices = [
        np.moveaxis(_tensor(known[name]), axis, 0)[:: -1 if backward else 1]
        for name, axis, backward in zip(node.input[-scanned:], axes, reversed_inputs, strict=True)
    ]
    rows: list[list[Value]] = [[] for _ in range(made)]
    for parts in zip(*slices, strict=True):
        results = _run(body, [*states, *parts], known, step)
        states = results[: len(states)]
        for row, result in zip(rows, results[len(states) :], strict=True):
            row.append(result)
    directions = wholes("scan_output_directions", made)
    placed = zip(rows, wholes("scan_output_axes", made), directions, strict=True)
    return [*states, *(_stack(row[:: -1 if back else 1], axis) for row, axis, back in placed)]


def _run_sequence_map(node: NodeProto, known: Mapping[str, Value], step: Step) -> list[Value]:
    body = attributes(node)["body"].g
    sequence, *others = (known[name] for name in node.input)
    made: list[list[np.ndarray]] = [[] for _ in body.output]
    for i, item in enumerate(sequence):
        more = [other[i] if isinstance(other, list) else other for other in others]
        for parts, result in zip(made, _run(body, [item, *more], known, step), strict=True):
            parts.append(_tensor(result))
    return list(made)


# Operators with bodies -> what runs them.
RUNNERS: dict[str, Callable[[NodeProto, Mapping[str, Value], Step], list[Value]]] = {
    "If": _run_if,
    "Loop": _run_loop,
    "Scan": _run_scan,
    "SequenceMap": _run_sequence_map,
}
