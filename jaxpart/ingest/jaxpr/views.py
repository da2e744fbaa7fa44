"""Parts of a flat array, described by an offset and strides; nothing is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

# Steps of NumPy's exact test whether two strided sets share an element.
_MAX_WORK: Any = 10_000


Axis = tuple[tuple[int, int], ...]  # pairs of extent and stride, the outermost first


class NotStridedError(Exception):
    """Offsets and strides cannot describe the elements."""


@dataclasses.dataclass(frozen=True, order=True)
class View:
    """Elements of a flat array: offset + sum of index * stride, all counted in elements.

    An axis is one pair of extent and stride, or several where a reshape merged axes that do not
    lie behind each other: the index on the axis is then that of a row-major array of these extents.

    Attributes:
      offset: position of the first element.
      axes: pairs of extent and stride of each axis; stride 0 where an axis repeats an element.
    """

    offset: int
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return tuple(_extent(axis) for axis in self.axes)

    @property
    def is_strided(self) -> bool:
        """Whether each axis is one pair of extent and stride, as in an array of NumPy."""
        return all(len(axis) == 1 for axis in self.axes)

    @property
    def elements(self) -> int:
        """Number of elements of the shape, repeated ones included."""
        return math.prod(self.shape)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Extents and strides in row-major order, whatever axis they belong to."""
        return tuple(pair for axis in self.axes for pair in axis)

    def sliced(self, axis: int, start: int, stop: int, step: int = 1) -> View:
        """Elements start, start + step, ... before `stop` on one axis; `step` is positive."""
        return self.stepped(axis, start, max(0, -(-(stop - start) // step)), step)

    def stepped(self, axis: int, start: int, count: int, step: int) -> View:
        """Elements start, start + step, ... on one axis, `count` of them; any `step`.

        Raises:
          NotStridedError: the elements start or end inside what a reshape merged.
        """
        # Parameters of equations may be integers of NumPy.
        offset, stepped = _stepped(self.axes[axis], int(start), int(count), int(step))
        return View(self.offset + offset, (*self.axes[:axis], stepped, *self.axes[axis + 1 :]))

    def row(self, index: int) -> View:
        """Element `index` of the first axis, without that axis."""
        return self.stepped(0, index, 1, 1).squeezed((0,))

    def reversed(self, axes: Iterable[int]) -> View:
        """The elements of each given axis in reverse order."""
        view = self
        for axis in axes:
            extent = view.shape[axis]
            view = view.stepped(axis, extent - 1, extent, -1)
        return view

    def transposed(self, permutation: Sequence[int]) -> View:
        """The axes in another order."""
        return View(self.offset, tuple(self.axes[a] for a in permutation))

    def squeezed(self, axes: Iterable[int]) -> View:
        """Without the given axes, which have extent 1."""
        dropped = set(axes)
        return self.transposed([a for a in range(len(self.axes)) if a not in dropped])

    def broadcast(self, shape: Sequence[int], axes: Sequence[int]) -> View:
        """Repeated to `shape`; axis i of the view becomes axis axes[i]."""
        result: list[Axis] = [((extent, 0),) for extent in shape]
        for kept, axis in zip(self.axes, axes, strict=True):
            if _extent(kept) == shape[axis]:
                result[axis] = kept
        return View(self.offset, tuple(result))

    def reshaped(self, shape: Sequence[int]) -> View:
        """The same elements in row-major order in another shape.

        Raises:
          NotStridedError: an axis of `shape` would begin or end inside a pair of extent and stride.
        """
        if not self.elements:
            raise NotStridedError
        rest = list(_merged(self.pairs))[::-1]  # the next pair is the last
        axes: list[Axis] = []
        for extent in shape:
            axis: list[tuple[int, int]] = []
            wanted = extent
            while wanted != 1:
                count, stride = rest.pop()
                if wanted % count == 0:
                    axis.append((count, stride))
                    wanted //= count
                elif count % wanted == 0:
                    inner = count // wanted
                    axis.append((wanted, stride * inner))
                    rest.append((inner, stride))
                    wanted = 1
                else:
                    raise NotStridedError
            axes.append(tuple(axis) or ((1, 0),))
        return View(self.offset, tuple(axes))

    def region(self) -> View:
        """The set of elements, written one way whatever the order of axes and elements."""
        offset = self.offset
        pairs = []
        for extent, stride in self.pairs:
            if stride < 0:
                offset += stride * (extent - 1)
            if extent == 0 or (extent > 1 and stride):
                pairs.append((extent, abs(stride)))
        pairs.sort(key=lambda pair: (-pair[1], -pair[0]))
        return View(offset, tuple((pair,) for pair in _merged(pairs)))

    @property
    def end(self) -> int:
        """One past the last position; for a region, whose strides are positive."""
        if not self.elements:
            return self.offset
        return self.offset + sum((n - 1) * s for n, s in self.pairs) + 1


Change = Callable[[View], View]  # a part or another order of a view; raises NotStridedError


def whole(shape: Sequence[int]) -> View:
    """All elements of a row-major array."""
    axes: list[Axis] = []
    stride = 1
    for extent in reversed(shape):
        axes.append(((extent, stride),))
        stride *= extent
    return View(0, tuple(reversed(axes)))


def changed(view: View, change: Change) -> View | None:
    """The view after a change; None if strides cannot describe it."""
    try:
        return change(view)
    except NotStridedError:
        return None


def _extent(axis: Axis) -> int:
    return math.prod(extent for extent, _ in axis)


def _merged(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of extent and stride in row-major order; those that lie behind each other are one."""
    merged: list[tuple[int, int]] = []
    for extent, stride in pairs:
        if extent == 1:
            continue
        if merged and merged[-1][1] == stride * extent:
            merged[-1] = (merged[-1][0] * extent, stride)
        else:
            merged.append((extent, stride))
    return merged


def _stepped(axis: Axis, start: int, count: int, step: int) -> tuple[int, Axis]:
    """The distance to element `start` of an axis, and the axis of the elements from there on."""
    (_, stride), *rest = axis
    if not rest or not count:
        return start * stride, ((count, stride * step),)
    inner = _extent(tuple(rest))
    first, within = divmod(start, inner)
    if count == 1 or step % inner == 0:  # one element of each inner row
        offset, _ = _stepped(tuple(rest), within, 1, 1)
        return first * stride + offset, ((count, stride * (step // inner)),)
    last = start + (count - 1) * step
    if last // inner == first:  # all in one inner row
        offset, stepped = _stepped(tuple(rest), within, count, step)
        return first * stride + offset, stepped
    if abs(step) == 1 and count % inner == 0 and within == (0 if step == 1 else inner - 1):
        # Whole inner rows, in their order or in reverse.
        offset, kept = _stepped(tuple(rest), within, inner, step)
        return first * stride + offset, ((count // inner, stride * step), *kept)
    raise NotStridedError


def overlap_groups(regions: Iterable[View]) -> list[list[View]]:
    """Groups of regions of one array; regions of different groups share no element.

    Args:
      regions: results of `View.region`, each once.

    Returns:
      The groups in the order of their first positions.
    """
    ordered = sorted(regions)
    root = list(range(len(ordered)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    active: list[int] = []  # those that may reach beyond the current offset
    for i, region in enumerate(ordered):
        active = [j for j in active if ordered[j].end > region.offset]
        for j in active:
            if find(i) != find(j) and _share(region, ordered[j]):
                root[find(i)] = find(j)
        active.append(i)
    groups: dict[int, list[View]] = {}
    for i, region in enumerate(ordered):
        groups.setdefault(find(i), []).append(region)
    return list(groups.values())


def _share(one: View, other: View) -> bool:
    """Whether two regions share an element; true also where NumPy's test gives up."""
    if one.end <= other.offset or other.end <= one.offset:
        return False
    try:
        return np.shares_memory(_unread(one), _unread(other), max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True


class _Unread:
    """An array whose addresses are computed and never read."""

    def __init__(self, view: View) -> None:
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "data": (2**32 + view.offset, True),
            "shape": tuple(extent for extent, _ in view.pairs),
            "strides": tuple(stride for _, stride in view.pairs),
        }


def _unread(view: View) -> np.ndarray:
    return np.asarray(_Unread(view))
