"""FLOPs and bytes of one jaxpr equation, computed from shapes alone.

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
- `scan`: length * body. `while`: one trip (condition and body); the importer multiplies where the
  number of trips is known. `cond`: the branch with the most FLOPs.
- `pallas_call`: the kernel's own cost estimate (transcendentals count one each), or else steps of
  the grid * body.
- `call_exported`: the FLOPs of XLA's analysis of the exported module, which has no jaxpr.
- Sparse products (`bcoo_dot_general`, ...): 2 per stored element and column of the dense operand.
- Collectives inside `shard_map` (`psum`, ...): zero on one device.

Bytes: operands and results, each once. Operations that index a table (`gather`, `slice`,
`dynamic_slice`, `dynamic_update_slice`, `scatter`) count only the bytes that they touch. Each
element counts the bits of its own type; an array is rounded up to whole bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

Size = Callable[[Any], float]  # an abstract value -> its bytes

# Primitives that only call a body.
_WRAPPERS = (
    *("pjit", "jit", "closed_call", "core_call", "core_closed_call", "call", "xla_call"),
    *("named_call", "remat", "remat2", "remat_opt", "checkpoint", "custom_lin", "composite"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)
# Parameters of an equation that can hold the body.
_BODY_KEYS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "fwd_jaxpr", "call")

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
_SCATTERS = frozenset(
    ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub")
)


# Bits of the narrowest float that is no quantised value.
_LEAST_FLOAT_BITS = 16


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one equation.

    Attributes:
      flops: FLOP.
      reads: bytes read of each operand, in order.
      writes: bytes written of each result, in order.
      unknown: names of the primitives without a rule, in the equation or its bodies. Each of these
        counts one FLOP per result element.
      accessed: bytes read and written in all, where they are more or fewer than the sum of `reads`
        and `writes` (loops, kernels with an estimate of their own); else None.
      fixed: the part of `accessed` that no element size scales.
    """

    flops: float
    reads: tuple[float, ...]
    writes: tuple[float, ...]
    unknown: frozenset[str] = frozenset()
    accessed: float | None = None
    fixed: float = 0.0


def equation_cost(eqn: Any, size: Size) -> Cost:
    """The cost of one equation; the docstring of this module gives the rules.

    Args:
      eqn: a `jax.extend.core.JaxprEqn`.
      size: function from an abstract value to its bytes.

    Returns:
      FLOPs and bytes of the equation.
    """
    flops, unknown = _work(eqn)
    reads = [size(v.aval) for v in eqn.invars]
    writes = [size(v.aval) for v in eqn.outvars]
    name = eqn.primitive.name
    if name in ("gather", "slice", "dynamic_slice"):
        reads[0] = min(reads[0], writes[0])
    elif name == "dynamic_update_slice":
        reads[0], writes[0] = 0.0, min(reads[1], writes[0])
    elif name in _SCATTERS:  # operands: table, indices, updates
        reads[0] = writes[0] = min(reads[2], writes[0])
    accessed, fixed = _estimated_bytes(eqn, size)
    return Cost(flops, tuple(reads), tuple(writes), unknown, accessed, fixed)


def _estimated_bytes(eqn: Any, size: Size) -> tuple[float | None, float]:
    """Bytes that a kernel's own estimate states, and the part of them that nothing scales.

    The estimate is in the types that were traced, and says nothing of its parts. Both are taken
    from operands and results. None and 0 if there is no estimate.
    """
    estimate = eqn.params.get("cost_estimate") if eqn.primitive.name == "pallas_call" else None
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    traced = sum(array_bytes(aval) for aval in avals)
    if estimate is None or not traced:
        return None, 0.0
    counted = sum(size(aval) for aval in avals)
    fixed = sum(size(aval) for aval in avals if not is_float(aval))
    return estimate.bytes_accessed * counted / traced, estimate.bytes_accessed * fixed / traced


def inlined(eqn: Any) -> Any | None:
    """The body of a wrapper equation (pjit, custom_jvp_call, remat, ...).

    Returns:
      The body as a ClosedJaxpr, with one argument per operand of the equation. None if the
      equation is not a wrapper or has no such body.
    """
    if eqn.primitive.name not in _WRAPPERS:
        return None
    for key in _BODY_KEYS:
        body = eqn.params.get(key)
        if body is None or not (hasattr(body, "eqns") or hasattr(body, "jaxpr")):
            continue
        body = _closed(body)
        if len(body.jaxpr.invars) == len(eqn.invars):
            return body
    return None


def body_flops(body: Any) -> float:
    """FLOPs of all equations of a body."""
    return _body_work(body)[0]


def is_elementwise(name: str) -> bool:
    """Whether each element of the results depends on the same element of each operand alone."""
    return name in _ELEMENTWISE or name == "integer_pow"


def is_float(aval: Any) -> bool:
    """Whether elements are real or complex floats of 16 bits or more; narrower are quantised."""
    if not hasattr(aval, "dtype") or not jnp.issubdtype(aval.dtype, np.inexact):
        return False
    return element_bits(aval) >= _LEAST_FLOAT_BITS


def element_bits(aval: Any) -> int:
    """Bits of one element of `aval`, in the type that was traced: 4 for int4."""
    dtype = aval.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        return int(jnp.iinfo(dtype).bits)
    if jnp.issubdtype(dtype, jnp.floating):
        return int(jnp.finfo(dtype).bits)
    return 8 * int(dtype.itemsize)


def array_bytes(aval: Any) -> int:
    """Bytes of an array in the type that was traced, rounded up to whole bytes."""
    count = elements(aval)
    return -(-count * element_bits(aval) // 8) if count else 0


def elements(aval: Any) -> int:
    """Number of elements of `aval`; 0 if it is not an array (a token)."""
    return math.prod(getattr(aval, "shape", (0,)))


def _closed(body: Any) -> Any:
    """`body` as a ClosedJaxpr. `body` may be a Jaxpr without constants, as in remat."""
    if hasattr(body, "consts"):
        return body
    return jax.extend.core.ClosedJaxpr(body, ())


def _work(eqn: Any) -> tuple[float, frozenset[str]]:
    """FLOPs of one equation with its bodies, and names of the primitives without a rule."""
    name, params = eqn.primitive.name, eqn.params
    body = inlined(eqn)
    if body is not None:
        return _body_work(body)
    if name == "scan":
        flops, unknown = _body_work(params["jaxpr"])
        return params["length"] * flops, unknown
    if name == "while":
        parts = [_body_work(params["cond_jaxpr"]), _body_work(params["body_jaxpr"])]
        return sum(flops for flops, _ in parts), parts[0][1] | parts[1][1]
    if name == "cond":
        parts = [_body_work(branch) for branch in params["branches"]]
        return max(flops for flops, _ in parts), frozenset().union(
            *(unknown for _, unknown in parts)
        )
    if name == "custom_linear_solve":
        return _body_work(params["jaxprs"].solve)
    if name == "shard_map":
        flops, unknown = _body_work(params["jaxpr"])
        return math.prod(params["mesh"].shape[a] for a in params["newly_manual_axes"]) * flops, (
            unknown
        )
    if name == "pallas_call":
        return _kernel_work(params)
    if name == "call_exported":
        flops = _exported_flops(params["exported"])
        if flops is not None:
            return flops, frozenset()
    flops = _flops(eqn)
    if flops is None:
        return float(sum(elements(v.aval) for v in eqn.outvars)), frozenset((name,))
    return float(flops), frozenset()


def _kernel_work(params: Any) -> tuple[float, frozenset[str]]:
    """As `_work`, for a Pallas kernel."""
    estimate = params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops + estimate.transcendentals), frozenset()
    flops, unknown = _body_work(params["jaxpr"])
    grid = params["grid_mapping"].grid
    if not all(isinstance(extent, int) for extent in grid):  # known at run time only
        return flops, unknown | {"pallas_call"}
    return math.prod(grid) * flops, unknown


def _exported_flops(exported: Any) -> float | None:
    """FLOPs of a module of `jax.export` by XLA's analysis; None if this backend has none."""
    platform = jax.default_backend()
    if not {platform, "cuda" if platform == "gpu" else platform} & set(exported.platforms):
        return None
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.in_avals]

    def call(*leaves: Any) -> Any:
        arguments, keywords = jax.tree.unflatten(exported.in_tree, leaves)
        return exported.call(*arguments, **keywords)

    analysis: Any = jax.jit(call).lower(*avals).cost_analysis()
    if not analysis:
        return None
    return float(analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0))


def _body_work(body: Any) -> tuple[float, frozenset[str]]:
    """As `_work`, for all equations of a body."""
    parts = [_work(eqn) for eqn in _closed(body).jaxpr.eqns]
    return sum(flops for flops, _ in parts), frozenset().union(*(names for _, names in parts))


def _flops(eqn: Any) -> float | None:
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
    if name in _SCATTERS:
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
    body, _ = _body_work(params["jaxpr"])
    return body * (elements(ins[0]) - elements(out))


def _reduce_window(params: Any, ins: Any, out: Any) -> float:
    per_step = _body_work(params["jaxpr"])[0] if "jaxpr" in params else 1
    return per_step * (math.prod(params["window_dimensions"]) - 1) * elements(out)


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
