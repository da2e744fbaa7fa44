"""How operations of StableHLO that take and write parts of arrays go back to JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import lax
from jaxlib.mlir.dialects import stablehlo

from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.stablehlo.retrace import Array, Operation, Rule

# The operation that combines what is there and what is written -> the function of jax.lax.
_SCATTERS = {
    "add": lax.scatter_add,
    "maximum": lax.scatter_max,
    "minimum": lax.scatter_min,
    "multiply": lax.scatter_mul,
    "second": lax.scatter,
    "subtract": lax.scatter_sub,
}


def _slice(op: Operation, operands: list[Array]) -> Any:
    return lax.slice(
        operands[0],
        op.numbers("start_indices"),
        op.numbers("limit_indices"),
        op.numbers("strides") or None,
    )


def _dynamic_slice(op: Operation, operands: list[Array]) -> Any:
    array, *starts = operands
    return lax.dynamic_slice(array, starts, op.numbers("slice_sizes"), allow_negative_indices=False)


def _dynamic_update_slice(op: Operation, operands: list[Array]) -> Any:
    array, update, *starts = operands
    return lax.dynamic_update_slice(array, update, starts, allow_negative_indices=False)


def _index_last(indices: Array, axis: int) -> Array:
    """Indices with the axis that holds the coordinates last, where JAX wants it."""
    rank = len(indices.shape)
    if axis == rank:
        return lax.reshape(indices, (*indices.shape, 1))
    if axis == rank - 1:
        return indices
    return lax.transpose(indices, [*(d for d in range(rank) if d != axis), axis])


def _gather(op: Operation, operands: list[Array]) -> Any:
    given = stablehlo.GatherDimensionNumbers(op.attributes["dimension_numbers"])
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(given.offset_dims),
        collapsed_slice_dims=tuple(given.collapsed_slice_dims),
        start_index_map=tuple(given.start_index_map),
        operand_batching_dims=tuple(given.operand_batching_dims),
        start_indices_batching_dims=tuple(given.start_indices_batching_dims),
    )
    indices = _index_last(operands[1], given.index_vector_dim)
    # StableHLO moves windows inside the array.
    return lax.gather(operands[0], indices, numbers, op.numbers("slice_sizes"), mode="clip")


def _scatter(op: Operation, operands: list[Array]) -> Any:
    combine = _SCATTERS.get(op.regions[0].only_operation() or "")
    if len(operands) != 3 or combine is None:
        return by_shape("scatter", operands, op.results)
    given = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(given.update_window_dims),
        inserted_window_dims=tuple(given.inserted_window_dims),
        scatter_dims_to_operand_dims=tuple(given.scattered_dims_to_operand_dims),
        operand_batching_dims=tuple(given.input_batching_dims),
        scatter_indices_batching_dims=tuple(given.scatter_indices_batching_dims),
    )
    array, indices, updates = operands
    indices = _index_last(indices, given.index_vector_dim)
    # StableHLO leaves out what lies outside the array.
    return combine(array, indices, updates, numbers, mode="drop")


def _numbers(array: Array) -> list[int]:
    """Whole numbers that are written in the program.

    Raises:
      TypeError: they are computed at run time.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError("positions that are computed at run time")
    return [int(n) for n in array.reshape(-1)]


def _real_dynamic_slice(op: Operation, operands: list[Array]) -> Any:
    return lax.slice(operands[0], *map(_numbers, operands[1:]))


RULES: dict[str, Rule] = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "real_dynamic_slice": _real_dynamic_slice,
    "scatter": _scatter,
    "slice": _slice,
}
