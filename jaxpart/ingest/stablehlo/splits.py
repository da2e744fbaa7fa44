"""Finds the slices of a module that were one split: JAX lowers a split to a slice for each part."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """An array that is cut along one axis.

    Attributes:
      array: the array, a value of MLIR.
      results: its parts, likewise, in order.
      sizes: of the parts along the axis.
      axis: the axis.
    """

    array: Any
    results: tuple[Any, ...]
    sizes: tuple[int, ...]
    axis: int


def splits(block: Any) -> Iterator[Split]:
    """The splits in a block: slices next to each other that tile one array along one axis."""
    operations = (view.operation for view in block.operations)
    for array, adjacent in itertools.groupby(operations, _sliced):
        if array and (found := _split(array[0], list(adjacent))) is not None:
            yield found


def _sliced(operation: Any) -> tuple[Any, ...]:
    """The array that a slice is of, alone; nothing for any other operation."""
    is_slice = operation.name in ("stablehlo.slice", "mhlo.slice")
    return (operation.operands[0],) if is_slice else ()


def _split(array: Any, slices: Sequence[Any]) -> Split | None:
    """The slices of an array as a split, if they are one."""
    starts, limits, strides = (
        np.array([list(operation.attributes[name]) for operation in slices])
        for name in ("start_indices", "limit_indices", "strides")
    )
    shape = array.type.shape
    cut = [axis for axis, extent in enumerate(shape) if np.any(limits[:, axis] != extent)]
    if len(slices) < 2 or len(cut) != 1 or np.any(strides != 1):
        return None
    (axis,) = cut
    others = np.delete(starts, axis, 1)
    bounds = [0, *limits[:, axis].tolist()]
    if np.any(others) or bounds[-1] != shape[axis] or bounds[:-1] != starts[:, axis].tolist():
        return None
    results = tuple(operation.results[0] for operation in slices)
    return Split(array, results, tuple(np.diff(bounds).tolist()), axis)
