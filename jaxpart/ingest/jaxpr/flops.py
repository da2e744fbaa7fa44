"""FLOPs of one primitive without a body, computed from shapes alone.

FLOPs follow XLA's `HloCostAnalysis` where it counts work that the hardware must do.
`scripts/studies/check_flops.py` compares the two through `jax.jit(f).lower(...).cost_analysis()`.

- `dot_general`: 2 * batch * M * N * K.
- `conv_general_dilated`: 2 per multiply-add that reads a real input element. Padding and the holes
  of a dilated input (transposed convolution) count nothing. Groups divide the input features.
- Reductions: one per element folded in, that is (elements in - elements out). `argmax` and
  `argmin`: nine, because they compare, break ties and carry an index.
- `reduce_window`: (window - 1) per result element, padding included.
- Cumulative operations (`cumsum`, ...): one per element after the first on the axis;
  `cumlogsumexp`: four. XLA counts the quadratic window of its own unoptimised form.
- Elementwise: one per result element. This includes transcendental functions, comparisons,
  selections and casts. XLA counts transcendental functions separately, and counts some of them by
  their expansion (`erfc`: 62).
- `integer_pow`: the multiplications of repeated squaring, plus a division if the power is negative.
- `sort`, `top_k`: elements * ceil(log2(length of the sorted axis)).
- `fft`: 5 N log2 N, half of that for a real transform.
- Scatters that combine values (`scatter-add`, ...): one per element of the updates.
- Layout (reshape, transpose, broadcast, slice, pad, concatenate, gather, scatter, ...): zero.
- Sparse products (`bcoo_dot_general`, ...): 2 per stored element and column of the dense operand.
- Collectives inside `shard_map` (`psum`, ...): zero on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpart.ingest.jaxpr.sizes import elements

# fmt: off
_NO_FLOPS = frozenset(
    [
        "after_all", "bitcast_convert_type", "broadcast", "broadcast_in_dim", "broadcast_to",
        "complex", "concatenate", "copy", "copy_p", "create_token", "device_put",
        "dynamic_slice", "dynamic_update_slice", "empty", "empty2", "from_edtype", "gather",
        "imag", "iota", "iota_2x32_shape", "layout_constraint", "name", "optimization_barrier",
        "pad", "pvary", "random_unwrap", "random_wrap", "real", "reshape", "reshard", "rev",
        "scatter", "sharding_constraint", "slice", "split", "squeeze", "stack", "stop_gradient",
        "tie", "tile", "to_edtype", "transpose", "unstack",
        # collectives and the references of kernels
        "all_gather", "all_gather_invariant", "all_gather_reduced", "all_to_all", "axis_index",
        "get", "load", "masked_load", "masked_swap", "num_programs", "pbroadcast", "pmax", "pmin",
        "ppermute", "preduced", "program_id", "psum", "psum2", "psum_invariant", "psum_scatter",
        "reduce_scatter", "store", "swap",
        # sparse layout
        "bcoo_extract", "bcoo_fromdense", "bcoo_sort_indices", "bcoo_todense", "bcoo_transpose",
        "bcsr_extract", "bcsr_fromdense", "bcsr_todense", "coo_fromdense", "coo_todense",
        "csr_fromdense", "csr_todense",
    ]
)
_ELEMENTWISE = frozenset(
    [
        "abs", "acos", "acosh", "add", "add_any", "addupdate", "and", "asin", "asinh", "atan",
        "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "conj",
        "convert_element_type", "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf",
        "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
        "igamma_grad_a", "igammac", "is_finite", "le", "le_to", "lgamma", "log", "log1p",
        "logistic", "lt", "lt_to", "max", "min", "mul", "mulhi", "ne", "neg", "nextafter",
        "not", "or", "polygamma", "population_count", "pow", "random_bits", "random_clone",
        "random_fold_in", "random_seed", "random_split", "reduce_precision",
        "regularized_incomplete_beta", "rem", "rng_bit_generator", "rng_uniform", "round",
        "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical",
        "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "threefry2x32", "xor",
        "zeta",
    ]
)
# fmt: on
# FLOPs per element folded in.
_REDUCTIONS = {
    "argmax": 9,
    "argmin": 9,
    "reduce_and": 1,
    "reduce_max": 1,
    "reduce_min": 1,
    "reduce_or": 1,
    "reduce_prod": 1,
    "reduce_sum": 1,
    "reduce_xor": 1,
}
# FLOPs per element after the first on the axis.
_CUMULATIVE = {"cumlogsumexp": 4, "cummax": 1, "cummin": 1, "cumprod": 1, "cumsum": 1}
SCATTERS = frozenset(
    ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub")
)


def is_elementwise(name: str) -> bool:
    """Whether each element of the results depends on the same element of each operand alone."""
    return name in _ELEMENTWISE or name == "integer_pow"


def primitive_flops(eqn: Any) -> float | None:
    """FLOPs of a primitive without a body; None if the primitive has no rule."""
    name, params = eqn.primitive.name, eqn.params
    if name in _NO_FLOPS:
        return 0
    ins = [v.aval for v in eqn.invars]
    out = eqn.outvars[0].aval if eqn.outvars else None
    if name in _ELEMENTWISE:
        return sum(elements(v.aval) for v in eqn.outvars)
    if name in _REDUCTIONS:
        return _REDUCTIONS[name] * (elements(ins[0]) - elements(out))
    if name in _CUMULATIVE:
        length = ins[0].shape[params["axis"]]
        return _CUMULATIVE[name] * elements(ins[0]) * (length - 1) / max(length, 1)
    if name in SCATTERS:
        return elements(ins[2])
    rule = _RULES.get(name)
    return None if rule is None else rule(params, ins, out)


def _dot(params: Any, ins: Any, out: Any) -> float:
    (contracting, _), _ = params["dimension_numbers"]
    return 2 * elements(out) * math.prod(ins[0].shape[d] for d in contracting)


def _ragged_dot(params: Any, ins: Any, out: Any) -> float:
    # Each row is multiplied by the matrix of one group, so the number of groups does not matter.
    dimensions = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return 2 * elements(out) * math.prod(ins[0].shape[d] for d in dimensions[0][0])


def _bcoo_dot(params: Any, ins: Any, out: Any) -> float:
    # operands: stored elements, their indices, dense array
    (_, contracting), (_, batch) = params["dimension_numbers"]
    dense = ins[2].shape
    free = [n for d, n in enumerate(dense) if d not in (*contracting, *batch)]
    return 2 * elements(ins[0]) * math.prod(free)


def _bcsr_dot(params: Any, ins: Any, out: Any) -> float:
    return _bcoo_dot(params, (ins[0], ins[1], ins[3]), out)  # with row pointers beside the indices


def _bcoo_sampled_dot(params: Any, ins: Any, out: Any) -> float:
    # operands: two dense arrays, the indices of the elements of the product that are wanted
    (contracting, _), _ = params["dimension_numbers"]
    return 2 * elements(out) * math.prod(ins[0].shape[d] for d in contracting)


def _coo_product(params: Any, ins: Any, out: Any) -> float:
    # operands: stored elements, two arrays of indices, dense vector or matrix
    return 2 * elements(ins[0]) * math.prod(ins[3].shape[1:])


def _sum_duplicates(params: Any, ins: Any, out: Any) -> float:
    return elements(ins[0])


def _conv(params: Any, ins: Any, out: Any) -> float:
    lhs, rhs = ins[0].shape, ins[1].shape
    numbers = params["dimension_numbers"]
    batch = lhs[numbers.lhs_spec[0]] // params["batch_group_count"]
    features_out, features_in = (rhs[d] for d in numbers.rhs_spec[:2])  # per group
    positions = 1
    for axis in range(len(numbers.lhs_spec) - 2):
        positions *= _real_positions(
            lhs[numbers.lhs_spec[2 + axis]],
            rhs[numbers.rhs_spec[2 + axis]],
            out.shape[numbers.out_spec[2 + axis]],
            params["window_strides"][axis],
            params["padding"][axis][0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    return 2 * batch * features_out * features_in * positions


def _real_positions(
    length: int, kernel: int, out: int, stride: int, pad: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Number of pairs (output, kernel position) on one axis that read a real input element."""
    starts = np.arange(out) * stride - pad
    count = 0
    for k in range(kernel):
        position = starts + k * rhs_dilation
        inside = (position >= 0) & (position <= (length - 1) * lhs_dilation)
        count += int(np.count_nonzero(inside & (position % lhs_dilation == 0)))
    return count


def _reduce(params: Any, ins: Any, out: Any) -> float:
    return elements(ins[0]) - elements(out)  # with one FLOP to combine two elements


def _reduce_window(params: Any, ins: Any, out: Any) -> float:
    return (math.prod(params["window_dimensions"]) - 1) * elements(out)


def _select_and_scatter(params: Any, ins: Any, out: Any) -> float:
    window = math.prod(params["window_dimensions"])
    return window * elements(ins[0])  # per source: window - 1 comparisons, one addition


def _integer_pow(params: Any, ins: Any, out: Any) -> float:
    power = abs(params["y"])
    multiplications = max(power.bit_length() - 1, 0) + max(power.bit_count() - 1, 0)
    return (multiplications + (params["y"] < 0)) * elements(out)


def _sort(params: Any, ins: Any, out: Any) -> float:
    length = ins[0].shape[params["dimension"]]
    return elements(ins[0]) * math.ceil(math.log2(max(length, 1)))


def _top_k(params: Any, ins: Any, out: Any) -> float:
    length = ins[0].shape[params.get("axis", params.get("dimension", -1))]
    return elements(ins[0]) * math.ceil(math.log2(max(length, 1)))


def _fft(params: Any, ins: Any, out: Any) -> float:
    larger = max(elements(ins[0]), elements(out))
    complex_ends = ins[0].dtype.kind == out.dtype.kind == "c"
    half = 1 if complex_ends else 0.5  # a real transform has real numbers at one end
    return half * 5 * larger * math.log2(max(math.prod(params["fft_lengths"]), 1))


def _triangular_solve(params: Any, ins: Any, out: Any) -> float:
    return elements(ins[1]) * ins[0].shape[-1]


def _cholesky(params: Any, ins: Any, out: Any) -> float:
    return elements(ins[0]) * ins[0].shape[-1] / 3


def _lu(params: Any, ins: Any, out: Any) -> float:
    rows, columns = ins[0].shape[-2:]
    small, large = min(rows, columns), max(rows, columns)
    batch = math.prod(ins[0].shape[:-2])
    return batch * (small**2 * large - small**3 / 3)


_RULES: dict[str, Callable[[Any, Any, Any], float]] = {
    "approx_top_k": lambda params, ins, out: elements(ins[0]),
    "bcoo_dot_general": _bcoo_dot,
    "bcoo_dot_general_sampled": _bcoo_sampled_dot,
    "bcoo_sum_duplicates": _sum_duplicates,
    "bcsr_dot_general": _bcsr_dot,
    "cholesky": _cholesky,
    "conv_general_dilated": _conv,
    "coo_matmat": _coo_product,
    "coo_matvec": _coo_product,
    "csr_matmat": _coo_product,
    "csr_matvec": _coo_product,
    "dot_general": _dot,
    "fft": _fft,
    "integer_pow": _integer_pow,
    "lu": _lu,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "select_and_gather_add": _reduce_window,
    "select_and_scatter": _select_and_scatter,
    "select_and_scatter_add": _select_and_scatter,
    "sort": _sort,
    "top_k": _top_k,
    "triangular_solve": _triangular_solve,
}
