"""Which boxes of its operands an equation needs for a box of its result.

A function of parameters is computed ahead of time, but a part of it needs parts of the parameters
only: layer i of stacked weights that are normalised one by one, padded, or joined and transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpart.ingest.jaxpr import parts
from jaxpart.ingest.jaxpr.boxes import Box, contains, cut, disjoint, extents, whole_box, written_box
from jaxpart.ingest.jaxpr.flops import SCATTERS, is_elementwise
from jaxpart.ingest.jaxpr.views import Change, changed, whole

Boxes = list[Box | None]  # one for each operand; None: nothing of it

_REDUCTIONS = (
    *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod"),
    *("reduce_sum", "reduce_xor"),
)
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")


def operand_boxes(eqn: Any, known: Sequence[np.ndarray | None], result: int, box: Box) -> Boxes:
    """The box of each operand that a box of a result is computed from; at most too much.

    Args:
      eqn: the equation.
      known: its operands; None for each whose value is not known while tracing.
      result: position of the result among those of the equation.
      box: of this result.
    """
    shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.invars]
    boxes = _boxes(eqn, known, result, box, shapes)
    return [whole_box(shape) for shape in shapes] if boxes is None else boxes


def _boxes(
    eqn: Any,
    known: Sequence[np.ndarray | None],
    result: int,
    box: Box,
    shapes: Sequence[tuple[int, ...]],
) -> Boxes | None:
    name, params = eqn.primitive.name, eqn.params
    if is_elementwise(name):
        return [_repeated(shape, box) for shape in shapes]
    if name == "broadcast_in_dim":
        spans = [box[axis] for axis in params["broadcast_dimensions"]]
        return [_repeated(shapes[0], tuple(spans)), *(whole_box(shape) for shape in shapes[1:])]
    changes = parts.changes(eqn, known)
    if changes is not None:
        return [_taken(shapes[0], changes[result], box), *(whole_box(s) for s in shapes[1:])]
    if name == "reshape":
        return [reshaped_box(shapes[0], eqn.outvars[0].aval.shape, box)]
    if name in ("concatenate", "stack"):
        return _joined(params["axis" if name == "stack" else "dimension"], name, shapes, box)
    if name == "pad":
        return [_unpadded(params["padding_config"], shapes[0], box), ()]
    if name in _REDUCTIONS:
        spans, axes = iter(box), set(params["axes"])
        return [tuple((0, n) if a in axes else next(spans) for a, n in enumerate(shapes[0]))]
    if name in _CUMULATIVE:
        axis = params["axis"]
        return [(*box[:axis], (0, shapes[0][axis]), *box[axis + 1 :])]
    if name == "tile":
        return [_untiled(shapes[0], box)]
    if name == "dynamic_update_slice" or name in SCATTERS:
        return _updated(eqn, known, shapes, box)
    if name == "dot_general":
        return _of_product(params["dimension_numbers"], shapes, box)
    return None


def _repeated(shape: Sequence[int], box: Box) -> Box:
    """The box of an operand that repeats along axes of extent 1, or is a scalar."""
    if len(shape) != len(box):
        return whole_box(shape)
    return tuple((0, 1) if n == 1 else span for n, span in zip(shape, box, strict=True))


def _taken(shape: Sequence[int], change: Change, box: Box) -> Box:
    """The smallest box of an array around a box of a part of it."""
    view = changed(whole(shape), lambda view: cut(change(view), box))
    if view is None or not view.elements:
        return whole_box(shape)
    first = [int(i) for i in np.unravel_index(view.offset, tuple(shape))]
    last = list(first)
    strides = [axis[0][1] for axis in whole(shape).axes]
    for extent, stride in view.pairs:
        if extent == 1 or stride == 0:
            continue
        # The outermost axis on which a step is a whole number of elements.
        axis = next(a for a, n in enumerate(strides) if n <= abs(stride) and shape[a] > 1)
        steps, rest = divmod(abs(stride) * (extent - 1), strides[axis])
        if rest:
            return whole_box(shape)
        if stride < 0:
            first[axis] -= steps
        else:
            last[axis] += steps
    found = tuple((a, b + 1) for a, b in zip(first, last, strict=True))
    return found if contains(whole_box(shape), found) else whole_box(shape)


def reshaped_box(shape: Sequence[int], reshaped: Sequence[int], box: Box) -> Box:
    """The smallest box around the elements from the first to the last of a box, in row-major order.

    Args:
      shape: of the array before it was reshaped.
      reshaped: its shape after.
      box: of the array after.
    """
    if not all(extents(box)):
        return whole_box(shape)
    first = np.ravel_multi_index([a for a, _ in box], tuple(reshaped)) if box else 0
    last = np.ravel_multi_index([b - 1 for _, b in box], tuple(reshaped)) if box else 0
    ends = [np.unravel_index(i, tuple(shape)) for i in (first, last)] if shape else [(), ()]
    spans: list[tuple[int, int]] = []
    for a, b, n in zip(*ends, shape, strict=True):
        is_one = all(stop - start == 1 for start, stop in spans)
        spans.append((int(a), int(b) + 1) if is_one else (0, n))
    return tuple(spans)


def _joined(axis: int, name: str, shapes: Sequence[tuple[int, ...]], box: Box) -> Boxes:
    """The box of each operand that is joined with the others on one axis."""
    found: Boxes = []
    start = 0
    for shape in shapes:
        extent = 1 if name == "stack" else shape[axis]
        first, stop = max(box[axis][0] - start, 0), min(box[axis][1] - start, extent)
        own = () if name == "stack" else ((first, stop),)
        found.append((*box[:axis], *own, *box[axis + 1 :]) if first < stop else None)
        start += extent
    return found


def _unpadded(config: Any, shape: Sequence[int], box: Box) -> Box | None:
    """The box of an operand before it was padded; None if the box is padding alone."""
    spans = []
    for (low, _, interior), n, (a, b) in zip(config, shape, box, strict=True):
        first = max(0, -(-(a - low) // (interior + 1)))
        stop = min(n, (b - 1 - low) // (interior + 1) + 1)
        if first >= stop:
            return None
        spans.append((first, stop))
    return tuple(spans)


def _untiled(shape: Sequence[int], box: Box) -> Box:
    """The box of an operand before it was repeated along its axes."""
    return tuple(
        (a % n, a % n + b - a) if n and a // n == (b - 1) // n else (0, n)
        for (a, b), n in zip(box, shape, strict=True)
    )


def _updated(
    eqn: Any, known: Sequence[np.ndarray | None], shapes: Sequence[tuple[int, ...]], box: Box
) -> Boxes:
    """The box of the array before, and the update if it may lie inside."""
    indices = known[1] if eqn.primitive.name in SCATTERS else None
    columns = () if indices is None else list(np.moveaxis(indices, -1, 0))
    is_known = indices is not None or eqn.primitive.name not in SCATTERS
    found = written_box(eqn, known, columns) if is_known else None
    if found is not None and disjoint(found[0], box):
        return [box, *[None for _ in shapes[1:]]]
    return [box, *(whole_box(shape) for shape in shapes[1:])]


def _of_product(numbers: Any, shapes: Sequence[tuple[int, ...]], box: Box) -> Boxes:
    (left, right), (left_batch, right_batch) = numbers
    batch = box[: len(left_batch)]
    free = [
        [a for a in range(len(shape)) if a not in (*summed, *together)]
        for shape, summed, together in (
            (shapes[0], left, left_batch),
            (shapes[1], right, right_batch),
        )
    ]
    rest = box[len(left_batch) :]
    spans = rest[: len(free[0])], rest[len(free[0]) :]
    found: Boxes = []
    for shape, together, axes, own in zip(
        shapes, (left_batch, right_batch), free, spans, strict=True
    ):
        operand = list(whole_box(shape))
        for axis, span in (*zip(together, batch, strict=True), *zip(axes, own, strict=True)):
            operand[axis] = span
        found.append(tuple(operand))
    return found
