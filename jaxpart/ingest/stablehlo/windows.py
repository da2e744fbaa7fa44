"""How convolutions and reductions of StableHLO go back to JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxlib.mlir.dialects import stablehlo

from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.stablehlo.retrace import Array, Operation, Rule

# The operation that combines two elements -> functions of jax.lax: of two arrays, over axes, of
# all elements before.
_MONOIDS: dict[str, tuple[Callable, Callable, Callable | None]] = {
    "add": (lax.add, lax.reduce_sum, lax.cumsum),
    "and": (lax.bitwise_and, lax.reduce_and, None),
    "maximum": (lax.max, lax.reduce_max, lax.cummax),
    "minimum": (lax.min, lax.reduce_min, lax.cummin),
    "multiply": (lax.mul, lax.reduce_prod, lax.cumprod),
    "or": (lax.bitwise_or, lax.reduce_or, None),
    "xor": (lax.bitwise_xor, lax.reduce_xor, None),
}


def _pairs(op: Operation, name: str, rank: int) -> list[tuple[int, int]]:
    """A pair of whole numbers for each axis; zeros where the attribute is left out."""
    if name not in op.attributes:
        return [(0, 0)] * rank
    low_high = np.array(op.attributes[name]).reshape(rank, 2)
    return [(int(low), int(high)) for low, high in low_high]


def _convolution(op: Operation, operands: list[Array]) -> Any:
    given = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    spatial = tuple(given.input_spatial_dimensions)
    kernel = tuple(given.kernel_spatial_dimensions)
    numbers = lax.ConvDimensionNumbers(
        (given.input_batch_dimension, given.input_feature_dimension, *spatial),
        (given.kernel_output_feature_dimension, given.kernel_input_feature_dimension, *kernel),
        (
            given.output_batch_dimension,
            given.output_feature_dimension,
            *given.output_spatial_dimensions,
        ),
    )
    ones = (1,) * len(spatial)
    image, filters = operands
    reversed_axes = [
        axis for axis, flag in zip(kernel, op.numbers("window_reversal"), strict=False) if flag
    ]
    if reversed_axes:
        filters = lax.rev(filters, reversed_axes)
    return lax.conv_general_dilated(
        image,
        filters,
        op.numbers("window_strides", ones),
        _pairs(op, "padding", len(spatial)),
        op.numbers("lhs_dilation", ones),
        op.numbers("rhs_dilation", ones),
        numbers,
        feature_group_count=op.number("feature_group_count", 1),
        batch_group_count=op.number("batch_group_count", 1),
        precision=op.precision(),
        preferred_element_type=op.result.dtype,
    )


def _reduce(op: Operation, operands: list[Array]) -> Any:
    count = len(operands) // 2
    arrays, starts = tuple(operands[:count]), tuple(operands[count:])
    axes = op.numbers("dimensions")
    combine = op.regions[0].only_operation()
    if count == 1 and combine in _MONOIDS and _is_identity(combine, starts[0]):
        return _MONOIDS[combine][1](arrays[0], axes)
    return lax.reduce(arrays, starts, _both(op), axes)


def _both(op: Operation) -> Callable[[Any, Any], Any]:
    """The body of a reduction as a function of two tuples."""
    return lambda ours, theirs: tuple(op.regions[0].run([*ours, *theirs]))


def _is_identity(combine: str, start: Array) -> bool:
    """Whether a reduction starts from the element that changes nothing."""
    if not isinstance(start, np.ndarray | np.generic):
        return False
    dtype = start.dtype
    if combine in ("maximum", "minimum"):
        if dtype == np.bool_:
            return bool(start) == (combine == "minimum")
        if jnp.issubdtype(dtype, jnp.inexact):
            return float(start) == (np.inf if combine == "minimum" else -np.inf)
        least = jnp.iinfo(dtype)
        return int(start) == (least.max if combine == "minimum" else least.min)
    if combine == "and":
        return bool(start == np.invert(np.zeros((), dtype)))
    return bool(start == (1 if combine == "multiply" else 0))


def _reduce_window(op: Operation, operands: list[Array]) -> Any:
    count = len(operands) // 2
    arrays, starts = tuple(operands[:count]), tuple(operands[count:])
    rank = len(op.result.shape)
    ones = (1,) * rank
    window = op.numbers("window_dimensions")
    strides = op.numbers("window_strides", ones)
    padding = _pairs(op, "padding", rank)
    dilations = op.numbers("base_dilations", ones), op.numbers("window_dilations", ones)
    combine = op.regions[0].only_operation()
    if count == 1 and combine in _MONOIDS and _is_identity(combine, starts[0]):
        two, _, of_all_before = _MONOIDS[combine]
        if of_all_before and strides == ones and dilations == (ones, ones):
            found = _cumulative(arrays[0].shape, window, padding)
            if found is not None:
                return of_all_before(arrays[0], axis=found[0], reverse=found[1])
        return lax.reduce_window(arrays[0], starts[0], two, window, strides, padding, *dilations)
    return lax.reduce_window(arrays, starts, _both(op), window, strides, padding, *dilations)


def _cumulative(
    shape: tuple[int, ...], window: tuple[int, ...], padding: list[tuple[int, int]]
) -> tuple[int, bool] | None:
    """The axis of a window over all elements before (or behind: True); None if it is another.

    JAX lowers `cumsum` and its kin to such a window. Counted as one it would be quadratic.
    """
    long = [axis for axis, extent in enumerate(window) if extent > 1]
    if len(long) != 1 or window[long[0]] != shape[long[0]]:
        return None
    (axis,) = long
    for reverse, pads in ((False, (shape[axis] - 1, 0)), (True, (0, shape[axis] - 1))):
        if padding == [pads if a == axis else (0, 0) for a in range(len(shape))]:
            return axis, reverse
    return None


def _select_and_scatter(op: Operation, operands: list[Array]) -> Any:
    array, source, _ = operands
    rank = len(op.result.shape)
    window = op.numbers("window_dimensions", (1,) * rank)
    adds = op.regions[1].only_operation() == "add"
    name = "select_and_scatter_add" if adds else "select_and_scatter"
    return by_shape(name, [source, array], op.results, window_dimensions=window)


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "select_and_scatter": _select_and_scatter,
}
