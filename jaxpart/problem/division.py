"""Ways to divide an operation into parts, as importers find them and `split` uses them.

A division cuts an operation along one axis into equal slices. A part of the operation is a run of
slices. The labels of axes are names that hold across one graph: a tensor that is written along an
axis, and read along the axis of the same label, is passed on in slices and never joined.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from jaxpart import errors


class Division(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to divide an operation.

    The slices have equal FLOPs. Where operations with different numbers of slices are divided
    together, the places of the cuts are those of the greatest common divisor of these numbers.

    Attributes:
      ways: the number of slices, at least 2.
      axis: label of the axis that is cut. Without a `join` every result of the operation is cut
        along it. A label names at most one axis of each tensor.
      join: None: the results of the parts, one behind the other, are the result. "sum": each part
        makes a partial result of the whole size, and the result is their sum.
      halo: what a part also reads on either side of its own share of each divided tensor, in slices
        (a convolution that is cut by rows).
      reads: a pair for each tensor that the operation reads: the tensor's number, and the label of
        its axis that is cut. None: every part reads the whole tensor. A tensor without a pair is
        read whole.
      weights: likewise for weights. None: every part holds the whole weight.
    """

    ways: int
    axis: str
    join: Literal["sum"] | None = None
    halo: float = 0
    reads: tuple[tuple[int, str | None], ...] = ()
    weights: tuple[tuple[int, str | None], ...] = ()


class Part(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"start": "from", "stop": "to"},
):
    """Which part of a divided operation a node is: the slices from `start` to before `stop`."""

    of: str  # name of the operation before it was split
    axis: str  # label of the axis that was cut
    start: int
    stop: int


def check_division(
    division: Division, where: str, tensors: Collection[int], weights: Collection[int]
) -> None:
    """Refuses a division that contradicts its graph.

    Args:
      division: the division.
      where: the node, for messages.
      tensors: numbers of the tensors that the node reads.
      weights: numbers of the weights that it reads.

    Raises:
      DivisionError: a number is out of range, or a tensor or weight is not read by the node, or is
        listed twice.
    """
    if division.ways < 2:
        raise errors.DivisionError(f"{where}: ways is {division.ways}, expected 2 or more")
    if not division.axis:
        raise errors.DivisionError(f"{where}: axis is empty, expected a label")
    if not 0 <= division.halo <= division.ways:
        raise errors.DivisionError(
            f"{where}: halo is {division.halo}, expected 0 to the number of ways, {division.ways}"
        )
    for what, pairs, allowed in (
        ("tensor", division.reads, tensors),
        ("weight", division.weights, weights),
    ):
        seen: set[int] = set()
        for number, label in pairs:
            if number not in allowed:
                raise errors.DivisionError(
                    f"{where}: {what} {number} is not read by the node, expected one that is"
                )
            if number in seen:
                raise errors.DivisionError(f"{where}: {what} {number} stands twice, expected once")
            if label == "":
                raise errors.DivisionError(
                    f"{where}: the label of {what} {number} is empty, expected a label or null"
                )
            seen.add(number)


def check_part(part: Part, where: str) -> None:
    """Refuses a part without slices.

    Raises:
      DivisionError: the range of slices is empty or negative.
    """
    if not 0 <= part.start < part.stop:
        raise errors.DivisionError(
            f"{where}: slices {part.start} to {part.stop}, expected at least one slice, from 0 on"
        )
