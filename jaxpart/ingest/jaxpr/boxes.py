"""Boxes: parts of an array that are a span of positions on each axis.

`read_box` and `written_box` say which box of its first operand an equation touches at most. An
index that is known while tracing narrows the box; on an axis whose index is known at run time only
it is as wide as the array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxpart.ingest.jaxpr.flops import SCATTERS
from jaxpart.ingest.jaxpr.views import View, whole

Box = tuple[tuple[int, int], ...]  # first position and the one after the last, of each axis
Columns = Sequence[np.ndarray | None]  # indices of one axis each; None where they are not known


def whole_box(shape: Sequence[int]) -> Box:
    """All of an array."""
    return tuple((0, extent) for extent in shape)


def row_box(shape: Sequence[int], index: int) -> Box:
    """Row `index` of an array."""
    return ((index, index + 1), *whole_box(shape[1:]))


def extents(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(stop - start for start, stop in box)


def contains(box: Box, other: Box) -> bool:
    """Whether `other` lies inside `box`."""
    return all(a <= c and d <= b for (a, b), (c, d) in zip(box, other, strict=True))


def disjoint(box: Box, other: Box) -> bool:
    """Whether two boxes share no element."""
    return any(b <= c or d <= a for (a, b), (c, d) in zip(box, other, strict=True))


def common(box: Box, other: Box) -> Box | None:
    """The elements that two boxes share; None if there are none."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))
    return shared if all(a < b for a, b in shared) else None


def relative(box: Box, inner: Box) -> Box:
    """The positions of `inner` counted from the first of `box`."""
    return tuple((c - a, d - a) for (a, _), (c, d) in zip(box, inner, strict=True))


def cut(view: View, box: Box) -> View:
    """The part of a view inside a box; all axes stay."""
    for axis, (start, stop) in enumerate(box):
        view = view.sliced(axis, start, stop)
    return view


def box_of(shape: Sequence[int], part: View) -> Box | None:
    """The box that a part of `whole(shape)` is, if it has the box's elements in their order."""
    if not part.elements:
        return None
    starts = [int(i) for i in np.unravel_index(part.offset, tuple(shape))]
    pairs = [pair for pair in part.pairs if pair[0] != 1][::-1]
    box = []
    for start, extent, axis in zip(starts, shape, whole(shape).axes, strict=True):
        count = 1
        if pairs and extent > 1 and pairs[-1][1] == axis[0][1]:
            count, _ = pairs.pop()
        box.append((start, start + count))
    return None if pairs or not contains(whole_box(shape), tuple(box)) else tuple(box)


def read_box(eqn: Any, known: Columns, columns: Columns) -> Box | None:
    """The box of its first operand that a `dynamic_slice` or `gather` reads at most.

    Args:
      eqn: the equation.
      known: its operands; None for each whose value is not known while tracing.
      columns: the indices of a gather, those of each indexed axis.

    Returns:
      The box; None if the equation is neither, or the box is the whole operand.
    """
    name, params = eqn.primitive.name, eqn.params
    shape = eqn.invars[0].aval.shape if eqn.invars else ()
    if name == "dynamic_slice":
        spans = dict(enumerate(known[1:]))
        return _narrower(shape, params["slice_sizes"], spans, GatherScatterMode.CLIP)
    if name == "gather":
        numbers = params["dimension_numbers"]
        spans: dict[int, Any] = dict.fromkeys(numbers.operand_batching_dims)
        spans.update(zip(numbers.start_index_map, columns, strict=True))
        return _narrower(shape, params["slice_sizes"], spans, params["mode"])
    return None


def written_box(eqn: Any, known: Columns, columns: Columns) -> tuple[Box, bool] | None:
    """The box of its first operand that an equation overwrites at most.

    Args:
      eqn: the equation.
      known: its operands; None for each whose value is not known while tracing.
      columns: the indices of a scatter, those of each indexed axis.

    Returns:
      The box, and whether the equation replaces all of it by its update. None if the equation is
      no update, or the box is the whole operand.
    """
    name, params = eqn.primitive.name, eqn.params
    shape = eqn.invars[0].aval.shape if eqn.invars else ()
    if name == "dynamic_update_slice":
        update = eqn.invars[1].aval.shape
        box = _narrower(shape, update, dict(enumerate(known[2:])), GatherScatterMode.CLIP)
        return None if box is None else (box, math.prod(extents(box)) == math.prod(update))
    if name not in SCATTERS:
        return None
    numbers, update = params["dimension_numbers"], eqn.invars[2].aval.shape
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = iter(update[d] for d in numbers.update_window_dims)
    window = [1 if axis in dropped else next(kept) for axis in range(len(shape))]
    spans = dict.fromkeys(numbers.operand_batching_dims)
    spans.update(zip(numbers.scatter_dims_to_operand_dims, columns, strict=True))
    box = _narrower(shape, window, spans, params["mode"])
    if box is None:
        return None
    once = all(extent == 1 for extent in eqn.invars[1].aval.shape[:-1])
    return box, name == "scatter" and once and math.prod(extents(box)) == math.prod(update)


def _narrower(
    shape: Sequence[int], window: Sequence[int], starts: dict[int, Any], mode: Any
) -> Box | None:
    """The box around windows of one shape; None if it is the whole array or may be empty.

    Args:
      shape: of the array.
      window: the shape of each window.
      starts: axis -> first positions on it, of all windows; None if not known. 0 for other axes.
      mode: what becomes of windows that reach outside.
    """
    box = []
    for axis, (size, extent) in enumerate(zip(shape, window, strict=True)):
        at = starts.get(axis, 0)
        if at is None or not np.size(at):
            box.append((0, size))
            continue
        first, last = int(np.min(at)), int(np.max(at))
        if mode == GatherScatterMode.CLIP:
            first, last = (min(max(i, 0), size - extent) for i in (first, last))
        if first < 0 or last + extent > size:
            return None
        box.append((first, last + extent))
    return None if tuple(box) == whole_box(shape) else tuple(box)
