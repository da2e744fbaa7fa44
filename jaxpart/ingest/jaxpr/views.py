"""Parts of a flat array, described by an offset and strides; nothing is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

# Steps of NumPy's exact test whether two strided sets share an element.
_MAX_WORK: Any = 10_000


@dataclasses.dataclass(frozen=True, order=True)
class View:
    """Elements of a flat array: offset + sum of index * stride, all counted in elements.

    Attributes:
      offset: position of the first element.
      shape: extent of each axis.
      strides: distance of neighbours on each axis; 0 where an axis repeats an element.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements of the shape, repeated ones included."""
        return math.prod(self.shape)

    def sliced(self, axis: int, start: int, stop: int, step: int = 1) -> View:
        """Elements start, start + step, ... before `stop` on one axis; `step` is positive."""
        return self.stepped(axis, start, max(0, -(-(stop - start) // step)), step)

    def stepped(self, axis: int, start: int, count: int, step: int) -> View:
        """Elements start, start + step, ... on one axis, `count` of them; any `step`."""
        # Parameters of equations may be integers of NumPy.
        start, count, step = int(start), int(count), int(step)
        return View(
            self.offset + start * self.strides[axis],
            _replaced(self.shape, axis, count),
            _replaced(self.strides, axis, self.strides[axis] * step),
        )

    def row(self, index: int) -> View:
        """Element `index` of the first axis, without that axis."""
        return View(self.offset + int(index) * self.strides[0], self.shape[1:], self.strides[1:])

    def reversed(self, axes: Iterable[int]) -> View:
        """The elements of each given axis in reverse order."""
        view = self
        for axis in axes:
            view = view.stepped(axis, view.shape[axis] - 1, view.shape[axis], -1)
        return view

    def transposed(self, permutation: Sequence[int]) -> View:
        """The axes in another order."""
        return View(
            self.offset,
            tuple(self.shape[a] for a in permutation),
            tuple(self.strides[a] for a in permutation),
        )

    def squeezed(self, axes: Iterable[int]) -> View:
        """Without the given axes, which have extent 1."""
        dropped = set(axes)
        return self.transposed([a for a in range(len(self.shape)) if a not in dropped])

    def broadcast(self, shape: Sequence[int], axes: Sequence[int]) -> View:
        """Repeated to `shape`; axis i of the view becomes axis axes[i]."""
        strides = [0] * len(shape)
        for extent, stride, axis in zip(self.shape, self.strides, axes, strict=True):
            strides[axis] = stride if extent == shape[axis] else 0
        return View(self.offset, tuple(shape), tuple(strides))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The same elements in row-major order in another shape; None if strides cannot say it."""
        if not self.elements:
            return None
        old = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        strides = [0] * len(shape)
        used = first = 0  # axes of `old` and of `shape` that are settled
        while first < len(shape):
            if shape[first] == 1:
                first += 1
                continue
            last, end = first + 1, used + 1
            into, out_of = shape[first], old[used][0]
            while into != out_of:
                if into < out_of:
                    into *= shape[last]
                    last += 1
                else:
                    out_of *= old[end][0]
                    end += 1
            pairs = zip(old[used : end - 1], old[used + 1 : end], strict=True)
            if any(outer[1] != inner[0] * inner[1] for outer, inner in pairs):
                return None
            stride = old[end - 1][1]
            for axis in reversed(range(first, last)):
                strides[axis] = stride
                stride *= shape[axis]
            used, first = end, last
        return View(self.offset, tuple(shape), tuple(strides))

    def region(self) -> View:
        """The set of elements, written one way whatever the order of axes and elements."""
        offset = self.offset
        axes = []
        for extent, stride in zip(self.shape, self.strides, strict=True):
            if stride < 0:
                offset += stride * (extent - 1)
            if extent == 0 or (extent > 1 and stride):
                axes.append((abs(stride), extent))
        axes.sort(reverse=True)
        merged: list[tuple[int, int]] = []
        for stride, extent in axes:
            if merged and merged[-1][0] == stride * extent:
                merged[-1] = (stride, merged[-1][1] * extent)
            else:
                merged.append((stride, extent))
        return View(offset, tuple(n for _, n in merged), tuple(s for s, _ in merged))

    @property
    def end(self) -> int:
        """One past the last position; for a region, whose strides are positive."""
        if not self.elements:
            return self.offset
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((n - 1) * s for n, s in steps) + 1


Change = Callable[[View], View | None]  # a part or another order of a view


def whole(shape: Sequence[int]) -> View:
    """All elements of a row-major array."""
    strides, stride = [], 1
    for extent in reversed(shape):
        strides.append(stride)
        stride *= extent
    return View(0, tuple(shape), tuple(reversed(strides)))


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
            "shape": view.shape,
            "strides": view.strides,
        }


def _unread(view: View) -> np.ndarray:
    return np.asarray(_Unread(view))


def _replaced(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])
