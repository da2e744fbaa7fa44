"""Cuts of an operator, from a label for each dimension of its operands and results.

A rule says what a dimension means: in a matrix product of "mk" and "kn" with the result "mn", "m"
is a dimension of the first operand and of the result. Each part that is cut along it reads the
second operand whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

from jaxpart.ingest.axes import Cut
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import Array

WHOLE = "."  # the label of a dimension that is never cut
Axes = Sequence[Hashable]  # a label for each dimension
Rule = Callable[[Operation], list[Cut]]


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
) -> list[Cut]:
    """The cuts along the labelled dimensions of an operator.

    An operation can be cut along a label if all its results have it, or if none has it and the
    label is `summed`. An operand without the label, or with one position there, is broadcast: every
    part reads it whole. Nothing is cut where a value has a label twice, or sizes do not fit.

    Args:
      operation: the node; results that are None need no labels.
      operands: labels of the first operands; the others are never cut.
      results: labels of the results.
      ways: label -> number of slices; the default is the size of the dimension.
      halos: label -> halo of the cut (see `Cut`); its operands need no equal slices.
      summed: labels over which the operation sums.

    Returns:
      A cut for each label with two slices or more.
    """
    operands, results = [tuple(axes) for axes in operands], [tuple(axes) for axes in results]
    summed = tuple(summed)
    inputs, outputs = operation.inputs, operation.outputs
    present = [p for p, array in enumerate(outputs) if array is not None]
    if len(results) <= max(present, default=-1) or not (
        _fit(operands, inputs) and _fit(results, outputs)
    ):
        return []
    twice = {k for axes in (*operands, *results) for k in axes if axes.count(k) > 1}
    found = []
    for label in dict.fromkeys([*(k for p in present for k in results[p]), *summed]):
        written = {p: results[p].index(label) for p in present if label in results[p]}
        if (
            label == WHOLE
            or label in twice
            or len(written) != (0 if label in summed else len(present))
        ):
            continue
        read = {
            p: axes.index(label)
            for p, (axes, array) in enumerate(zip(operands, inputs, strict=False))
            if array is not None and label in axes and array.shape[axes.index(label)] != 1
        }
        made_sizes = [_size(outputs[p], dim) for p, dim in written.items()]
        read_sizes = [_size(inputs[p], dim) for p, dim in read.items()]
        halo = (halos or {}).get(label)
        count = (ways or {}).get(label) or max((made_sizes or read_sizes), default=0)
        sliced = made_sizes + (read_sizes if halo is None else [])
        if count > 1 and all(size > 0 and size % count == 0 for size in sliced):
            found.append(
                Cut(
                    count,
                    tuple(written.get(p) for p in range(len(outputs))),
                    tuple(read.get(p) for p in range(len(inputs))),
                    halo or 0,
                )
            )
    return found


def _fit(labelled: Sequence[Axes], arrays: Sequence[Array | None]) -> bool:
    """Whether each value that is present has as many labels as dimensions."""
    pairs = zip(labelled, arrays, strict=False)
    return all(array is None or len(axes) == len(array.shape) for axes, array in pairs)


def _size(array: Array | None, dim: int) -> int:
    return 0 if array is None else array.shape[dim]
