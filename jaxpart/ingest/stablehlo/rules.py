"""How each operation of StableHLO goes back to JAX: elementwise, layout, products, control flow.

`windows.py` has convolutions and reductions, `indexing.py` slices, gathers and scatters. `RULES`
lists all by the name without the dialect: `stablehlo`, `chlo` and `mhlo` share their names. An
operation that is not listed is counted by its shapes, with a warning.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from jax import lax
from jaxlib.mlir.dialects import stablehlo

from jaxpart.errors import FileFormatError
from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.stablehlo import indexing, windows
from jaxpart.ingest.stablehlo.retrace import Array, Module, Operation, Rule
from jaxpart.ingest.stablehlo.sorting import sort

# name in StableHLO -> name of the function of jax.lax, and of its primitive
_ELEMENTWISE = {
    **{
        name: name
        for name in (
            *("abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "cbrt"),
            *("ceil", "clamp", "complex", "conj", "cosh", "digamma", "erf", "erf_inv", "erfc"),
            *("floor", "imag", "is_finite", "lgamma", "logistic", "polygamma", "real", "rsqrt"),
            *("shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sinh"),
            *("sqrt", "square", "tan", "tanh", "zeta", "bessel_i1e"),
        )
    },
    "and": "bitwise_and",
    "cosine": "cos",
    "count_leading_zeros": "clz",
    "divide": "div",
    "exponential": "exp",
    "exponential_minus_one": "expm1",
    "log": "log",
    "log_plus_one": "log1p",
    "maximum": "max",
    "minimum": "min",
    "multiply": "mul",
    "negate": "neg",
    "next_after": "nextafter",
    "not": "bitwise_not",
    "or": "bitwise_or",
    "popcnt": "population_count",
    "power": "pow",
    "remainder": "rem",
    "round_nearest_afz": "round",
    "sine": "sin",
    "subtract": "sub",
    "xor": "bitwise_xor",
}
_DIRECTIONS = {"EQ": "eq", "NE": "ne", "LT": "lt", "LE": "le", "GT": "gt", "GE": "ge"}
# What other replicas do is no work of this one; names of primitives of JAX that mean the same.
_COLLECTIVES = {
    "all_gather": "all_gather",
    "all_reduce": "psum",
    "all_to_all": "all_to_all",
    "collective_broadcast": "pbroadcast",
    "collective_permute": "ppermute",
    "partition_id": "axis_index",
    "reduce_scatter": "reduce_scatter",
    "replica_id": "axis_index",
}
# Custom calls that say where an array is to lie.
_MARKS = frozenset(
    (
        *("Sharding", "LayoutConstraint", "SPMDFullToShardShape", "SPMDShardToFullShape"),
        *("annotate_device_placement", "xla.sdy.FuncResultSharding", "MoveToHost", "MoveToDevice"),
    )
)


def rules_for(module: Any, where: str) -> Module:
    """The module as a function of its arguments, with all rules.

    Args:
      module: an `ir.Module`.
      where: name of the file, for messages.
    """
    made: list[Module] = []

    def call(op: Operation, operands: list[Array]) -> Any:
        return made[0].call(op.attributes["callee"], operands, op.where)

    def composite(op: Operation, operands: list[Array]) -> Any:
        name = str(op.attributes["name"].value)
        rule = _RULES.get(name.partition(".")[2]) if name.startswith(("chlo.", "mhlo.")) else None
        if rule is not None and "composite_attributes" in op.attributes:
            return rule(_with_attributes(op, op.attributes["composite_attributes"]), operands)
        return made[0].call(op.attributes["decomposition"], operands, op.where)

    rules = {**_RULES, "call": call, "composite": composite}
    made.append(Module(module, rules, where))
    return made[0]


def _with_attributes(op: Operation, attributes: Any) -> Operation:
    return Operation(op.name, attributes, op.results, op.regions, op.where)


def _elementwise(name: str) -> Rule:
    function = getattr(lax, name)
    primitive = name.removeprefix("bitwise_")

    def rule(op: Operation, operands: list[Array]) -> Any:
        try:
            return function(*operands)
        except TypeError:  # of elements for which JAX has no such function (a sum of booleans)
            return by_shape(primitive, operands, op.results)

    return rule


def _compare(op: Operation, operands: list[Array]) -> Any:
    direction = re.findall(r"\b(EQ|NE|LT|LE|GT|GE)\b", str(op.attributes["comparison_direction"]))
    name = _DIRECTIONS[direction[-1]]
    if "compare_type" in op.attributes and "TOTALORDER" in str(op.attributes["compare_type"]):
        return by_shape(name, operands, op.results)
    return getattr(lax, name)(*operands)


def _select(op: Operation, operands: list[Array]) -> Any:
    which, on_true, on_false = operands
    return lax.select_n(which, on_false, on_true)


def _convert(op: Operation, operands: list[Array]) -> Any:
    return lax.convert_element_type(operands[0], op.result.dtype)


def _bitcast(op: Operation, operands: list[Array]) -> Any:
    return lax.bitcast_convert_type(operands[0], op.result.dtype)


def _round_even(op: Operation, operands: list[Array]) -> Any:
    return lax.round(operands[0], lax.RoundingMethod.TO_NEAREST_EVEN)


def _reduce_precision(op: Operation, operands: list[Array]) -> Any:
    return lax.reduce_precision(operands[0], op.number("exponent_bits"), op.number("mantissa_bits"))


def _iota(op: Operation, operands: list[Array]) -> Any:
    return lax.broadcasted_iota(op.result.dtype, op.result.shape, op.number("iota_dimension"))


def _broadcast_in_dim(op: Operation, operands: list[Array]) -> Any:
    if operands[0].shape == op.result.shape:  # so a constant stays one
        return operands[0]
    return lax.broadcast_in_dim(operands[0], op.result.shape, op.numbers("broadcast_dimensions"))


def _reshape(op: Operation, operands: list[Array]) -> Any:
    return lax.reshape(operands[0], op.result.shape)


def _transpose(op: Operation, operands: list[Array]) -> Any:
    return lax.transpose(operands[0], op.numbers("permutation"))


def _reverse(op: Operation, operands: list[Array]) -> Any:
    return lax.rev(operands[0], op.numbers("dimensions"))


def _concatenate(op: Operation, operands: list[Array]) -> Any:
    return lax.concatenate(operands, op.number("dimension"))


def _pad(op: Operation, operands: list[Array]) -> Any:
    names = ("edge_padding_low", "edge_padding_high", "interior_padding")
    config = list(zip(*(op.numbers(name) for name in names), strict=True))
    return lax.pad(operands[0], operands[1], config)


def _identity(op: Operation, operands: list[Array]) -> Any:
    return operands


def _collective(op: Operation, operands: list[Array]) -> Any:
    return by_shape(_COLLECTIVES[op.name], operands, op.results)


def _dot_general(op: Operation, operands: list[Array]) -> Any:
    given: Any = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    contracting = given.lhs_contracting_dimensions, given.rhs_contracting_dimensions
    batching = given.lhs_batching_dimensions, given.rhs_batching_dimensions
    return _product(op, operands, contracting, batching)


def _dot(op: Operation, operands: list[Array]) -> Any:
    return _product(op, operands, ((len(operands[0].shape) - 1,), (0,)), ((), ()))


def _product(op: Operation, operands: list[Array], contracting: Any, batching: Any) -> Any:
    numbers = (
        (tuple(contracting[0]), tuple(contracting[1])),
        (tuple(batching[0]), tuple(batching[1])),
    )
    return lax.dot_general(
        operands[0],
        operands[1],
        numbers,
        precision=op.precision(),
        preferred_element_type=op.result.dtype,
    )


def _top_k(op: Operation, operands: list[Array]) -> Any:
    values, positions = lax.top_k(operands[0], op.number("k"))
    return values, lax.convert_element_type(positions, op.results[1].dtype)


def _fft(op: Operation, operands: list[Array]) -> Any:
    kind = re.findall(r"\b(I?R?FFT)\b", str(op.attributes["fft_type"]))[-1]
    return lax.fft(operands[0], kind, op.numbers("fft_length"))


def _cholesky(op: Operation, operands: list[Array]) -> Any:
    return by_shape("cholesky", operands, op.results)


def _triangular_solve(op: Operation, operands: list[Array]) -> Any:
    return by_shape("triangular_solve", operands, op.results)


def _rng(op: Operation, operands: list[Array]) -> Any:
    return by_shape("rng_uniform", operands, op.results)


def _rng_bit_generator(op: Operation, operands: list[Array]) -> Any:
    return by_shape("rng_bit_generator", operands, op.results)


def _batch_norm_inference(op: Operation, operands: list[Array]) -> Any:
    x, *per_feature = operands
    axes = (op.number("feature_index"),)
    scale, offset, mean, variance = (lax.broadcast_in_dim(v, x.shape, axes) for v in per_feature)
    epsilon = np.asarray(op.attributes["epsilon"].value, x.dtype)
    inverse = lax.rsqrt(lax.add(variance, lax.broadcast_in_dim(epsilon, x.shape, ())))
    return lax.add(lax.mul(lax.mul(lax.sub(x, mean), inverse), scale), offset)


def _get_dimension_size(op: Operation, operands: list[Array]) -> Any:
    return np.asarray(operands[0].shape[op.number("dimension")], np.int32)


def _while(op: Operation, operands: list[Array]) -> Any:
    condition, body = op.regions
    return lax.while_loop(
        lambda carry: condition.run(carry)[0], lambda carry: tuple(body.run(carry)), tuple(operands)
    )


def _if(op: Operation, operands: list[Array]) -> Any:
    on_true, on_false = op.regions
    return lax.cond(operands[0], lambda: tuple(on_true.run([])), lambda: tuple(on_false.run([])))


def _case(op: Operation, operands: list[Array]) -> Any:
    return lax.switch(
        operands[0], [lambda region=region: tuple(region.run([])) for region in op.regions]
    )


def _custom_call(op: Operation, operands: list[Array]) -> Any:
    target = str(op.attributes["call_target_name"].value)
    if target in _MARKS and len(operands) == len(op.results):
        return operands
    dialect, _, name = target.partition(".")
    rule = _RULES.get(name) if dialect in ("mhlo", "chlo", "stablehlo") else None
    if rule is not None:
        attributes = op.attributes
        if "mhlo.attributes" in attributes:
            attributes = attributes["mhlo.attributes"]
        return rule(_with_attributes(op, attributes), operands)
    return by_shape(f"custom_call_{target}", operands, op.results)


def _refused(op: Operation, operands: list[Array]) -> Any:
    raise FileFormatError(
        f"{op.where}: a program for several devices, expected one for a single device"
    )


_RULES: dict[str, Rule] = {
    **{name: _elementwise(function) for name, function in _ELEMENTWISE.items()},
    **dict.fromkeys(_COLLECTIVES, _collective),
    **windows.RULES,
    **indexing.RULES,
    "batch_norm_inference": _batch_norm_inference,
    "bitcast_convert": _bitcast,
    "broadcast_in_dim": _broadcast_in_dim,
    "case": _case,
    "cholesky": _cholesky,
    "compare": _compare,
    "concatenate": _concatenate,
    "convert": _convert,
    "custom_call": _custom_call,
    "dot": _dot,
    "dot_general": _dot_general,
    "dynamic_broadcast_in_dim": lambda op, operands: _broadcast_in_dim(op, operands[:1]),
    "dynamic_iota": lambda op, operands: _iota(op, []),
    "dynamic_reshape": lambda op, operands: _reshape(op, operands[:1]),
    "fft": _fft,
    "get_dimension_size": _get_dimension_size,
    "if": _if,
    "iota": _iota,
    "manual_computation": _refused,
    "optimization_barrier": _identity,
    "pad": _pad,
    "reduce_precision": _reduce_precision,
    "reshape": _reshape,
    "reshard": _identity,
    "reverse": _reverse,
    "rng": _rng,
    "rng_bit_generator": _rng_bit_generator,
    "round_nearest_even": _round_even,
    "select": _select,
    "sharding_constraint": _identity,
    "sort": sort,
    "top_k": _top_k,
    "transpose": _transpose,
    "triangular_solve": _triangular_solve,
    "while": _while,
}
