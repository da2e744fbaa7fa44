"""Axes along which the operations of a model can be cut, before they have labels."""

from __future__ import annotations

from typing import NamedTuple


class Cut(NamedTuple):
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
