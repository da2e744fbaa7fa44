"""Axes along which the operations of a model can be cut, before they have labels.

Rules of importers make `AxisCut` records from shapes. `labels.py` gives the axes names that hold
across the graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Letters = Sequence[Hashable | None]  # a name for each dimension; None where it stays whole


class AxisCut(NamedTuple):
    """One axis along which an operation can be cut into equal slices.

    A dimension is cut into runs of its positions, so a dimension that a reshape divides or merges
    can be cut along its outermost factor alone.

    Attributes:
      ways: the number of slices.
      results: for each result of the operation, the dimension that is cut. All None: each part
        makes partial results of the whole size, and the results are their sums.
      operands: for each operand, the dimension that is cut; None: every part reads the whole
        operand.
      halo: slices of the cut operands that a part also reads on either side of its share.
    """

    ways: int
    results: tuple[int | None, ...]
    operands: tuple[int | None, ...]
    halo: float = 0


def letter_cuts(
    operands: Sequence[Letters],
    results: Sequence[Letters],
    ways: Mapping[Any, int],
    summed: Collection[Hashable] = (),
) -> tuple[AxisCut, ...]:
    """The cuts of an operation that is described as by `einsum`: dimensions of one letter agree.

    Args:
      operands: the letters of each operand.
      results: the letters of each result.
      ways: letter -> slices; a letter with fewer than two gives no cut.
      summed: letters that no result has, over which the operation sums.

    Returns:
      A cut for each letter that every result has once, in the order of the first result; then one
      for each summed letter. A letter that an operand has twice (a diagonal) gives none.
    """
    cuts = []
    for letter in (*(results[0] if results else ()), *summed):
        if letter is None or ways[letter] < 2:
            continue
        if any(tuple(letters).count(letter) > 1 for letters in (*operands, *results)):
            continue
        found = tuple(_place(letter, letters) for letters in results)
        if (None in found) != (letter in summed):
            continue
        cuts.append(
            AxisCut(ways[letter], found, tuple(_place(letter, letters) for letters in operands))
        )
    return tuple(cuts)


def _place(letter: Hashable, letters: Letters) -> int | None:
    return tuple(letters).index(letter) if letter in letters else None


def elementwise_cuts(
    operands: Sequence[Sequence[int]], results: Sequence[Sequence[int]]
) -> tuple[AxisCut, ...]:
    """The cuts of an operation that works element by element.

    Args:
      operands: the shape of each operand; it is repeated along axes that it lacks at the front, or
        of which it has one position, as in NumPy.
      results: the shape of each result; all are equal, else there is no cut.
    """
    if not results or any(tuple(shape) != tuple(results[0]) for shape in results):
        return ()
    shape = results[0]
    if any(len(operand) > len(shape) for operand in operands):
        return ()
    axes = range(len(shape))
    letters = [
        [a if n == shape[a] else None for a, n in zip(axes[len(axes) - len(s) :], s, strict=True)]
        for s in operands
    ]
    return letter_cuts(letters, [axes for _ in results], dict(enumerate(shape)))


def same_axes_cuts(
    operands: Sequence[Sequence[int]],
    results: Sequence[Sequence[int]],
    ways: Mapping[int, int],
) -> tuple[AxisCut, ...]:
    """The cuts along axes that have one number in all operands and results of full rank.

    Args:
      operands: the shape of each operand; one of another rank than the results is read whole.
      results: the shape of each result.
      ways: axis -> slices, of the axes that can be cut.
    """
    if not results:
        return ()
    rank = len(results[0])
    letters = [a if a in ways else None for a in range(rank)]
    nothing: Letters = ()
    return letter_cuts(
        [letters if len(shape) == rank else nothing for shape in operands],
        [letters for _ in results],
        ways,
    )


def reshape_cuts(before: Sequence[int], after: Sequence[int]) -> tuple[AxisCut, ...]:
    """The cuts of a reshape in row-major order.

    Axes of both shapes are matched in the smallest groups with equally many elements. The outermost
    axis of a group with several positions is cut, on both sides, at the places that they share.
    """
    if 0 in before or 0 in after:
        return ()
    cuts = []
    for left, right in _matched(before, after):
        ways = math.gcd(before[left], after[right])
        if ways > 1:
            cuts.append(AxisCut(ways, (right,), (left,)))
    return tuple(cuts)


def _matched(before: Sequence[int], after: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Yields the outermost axes of the groups of `reshape_cuts`; axes of one position are left out.

    Args:
      before: a shape.
      after: another one of equally many elements.
    """
    left = [a for a, n in enumerate(before) if n != 1]
    right = [a for a, n in enumerate(after) if n != 1]
    i = j = 0
    while i < len(left) and j < len(right):
        yield left[i], right[j]
        one, other = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while one != other:
            if one < other:
                one *= before[left[i]]
                i += 1
            else:
                other *= after[right[j]]
                j += 1


class Window(NamedTuple):
    """How a convolution, pooling or padding reads one axis.

    Result position o reads the positions o * stride - low + k * dilation, k < size, of an axis of
    which every `holes`-th position is one of the operand.
    """

    length: int  # positions of the operand
    results: int  # positions of the result
    size: int = 1
    stride: int = 1
    low: int = 0  # padding before the first position
    dilation: int = 1
    holes: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether position o of the result reads position o of the operand alone."""
        return self == Window(self.length, self.length)

    @property
    def halo(self) -> float:
        """What a part reads beside its share of the operand, in slices.

        The parts are runs of positions of the result; a share is as far as them of the whole.
        """
        if not self.length or not self.results:
            return 0.0
        at = np.arange(self.results)
        first = -((self.low - at * self.stride) // self.holes)  # rounded up
        last = (at * self.stride - self.low + (self.size - 1) * self.dilation) // self.holes
        first, last = np.maximum(first, 0), np.minimum(last, self.length - 1)
        reads = first <= last
        ratio = self.length / self.results
        before = np.where(reads, at * ratio - first, 0)
        behind = np.where(reads, last + 1 - (at + 1) * ratio, 0)
        return float(max(0, before.max(initial=0), behind.max(initial=0)) / ratio)


def window_ways(window: Window) -> int:
    """The slices of an axis that windows pass over; 0 where most parts would read all of it."""
    if window.results < 2 or not window.length:
        return 0
    return 0 if 2 * window.halo >= window.results - 1 else window.results
