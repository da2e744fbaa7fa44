"""Cuts of an operator, from a label for each dimension of its operands and results.

A rule says what a dimension means: in a matrix product of "mk" and "kn" with the result "mn", "m"
is a dimension of the first operand and of the result. Each part that is cut along it reads the
second operand whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

from jaxpart.ingest.axes import AxisCut, Letters, letter_cuts
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import Array

WHOLE = "."  # the label of a dimension that is never cut
Axes = Sequence[Hashable]  # a label for each dimension
Rule = Callable[[Operation], list[AxisCut]]


def spread(array: Array | None, whole: Collection[int] = ()) -> Axes:
    """Labels that fit broadcasting: -1 is the last dimension, -2 the one before, and so on.

    Args:
      array: the value; None: it is absent.
      whole: labels of dimensions that are never cut.
    """
    rank = 0 if array is None else len(array.shape)
    return tuple(WHOLE if label in whole else label for label in range(-rank, 0))


def cuts(
    operation: Operation,
    operands: Sequence[Axes],
    results: Sequence[Axes],
    *,
    ways: Mapping[Any, int] | None = None,
    halos: Mapping[Any, float] | None = None,
    summed: Collection[Hashable] = (),
) -> list[AxisCut]:
    """The cuts along the labelled dimensions of an operator.

    An operation can be cut along a label if all its results have it, or if none has it and the
    label is `summed`. An operand without the label, or with one position there, is broadcast: every
    part reads it whole. Nothing is cut where a value has a label twice, or sizes do not fit.

    Args:
      operation: the node.
      operands: labels of the operands; one that is left out, or has none, is never cut.
      results: labels of the results, likewise.
      ways: label -> number of slices; the default is the size of the dimension.
      halos: label -> halo of the cut (see `AxisCut`); its operands need no equal slices.
      summed: labels over which the operation sums.

    Returns:
      A cut for each label with two slices or more. Its operands and results are those that are
      present.
    """
    ways, halos = ways or {}, halos or {}
    read, made = _present(operands, operation.inputs), _present(results, operation.outputs)
    if any(len(axes) != len(array.shape) for axes, array in (*read, *made)):
        return []
    written, taken = _sizes(made), _sizes(read)
    counts = {}
    for label in (*written, *summed):
        sizes, inner = written.get(label, []), [n for n in taken.get(label, ()) if n != 1]
        count = ways.get(label) or max(sizes or inner, default=0)
        sliced = sizes if label in halos else sizes + inner
        fits = count > 1 and all(size and size % count == 0 for size in sliced)
        counts[label] = count if fits else 0
    found = letter_cuts(
        [_letters(axes, array.shape) for axes, array in read],
        [[None if label == WHOLE else label for label in axes] for axes, _ in made],
        counts,
        tuple(summed),
    )
    if not halos:
        return list(found)
    with_halo: dict[int | None, float] = {
        made[0][0].index(label): halo for label, halo in halos.items()
    }
    return [cut._replace(halo=with_halo.get(cut.results[0], 0)) for cut in found]


def _present(
    labelled: Sequence[Axes], arrays: Sequence[Array | None]
) -> list[tuple[tuple[Hashable, ...], Array]]:
    """The values that are present, with labels for their dimensions."""
    values = []
    for position, array in enumerate(arrays):
        if array is not None:
            axes = tuple(labelled[position]) if position < len(labelled) else ()
            values.append((axes or (WHOLE,) * len(array.shape), array))
    return values


def _sizes(values: Sequence[tuple[Axes, Array]]) -> dict[Hashable, list[int]]:
    """The sizes of the dimensions with each label."""
    sizes: dict[Hashable, list[int]] = {}
    for axes, array in values:
        for label, size in zip(axes, array.shape, strict=True):
            sizes.setdefault(label, []).append(size)
    return sizes


def _letters(axes: Axes, shape: Sequence[int]) -> Letters:
    """The labels of an operand; a dimension of one position is broadcast."""
    return [None if k == WHOLE or n == 1 else k for k, n in zip(axes, shape, strict=True)]
