"""Operators of ATen that act on each element, cast, or make a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.pt2.retrace import Call, Rule

_UNARY: dict[str, Callable[[Any], Any]] = {
    **{
        name: getattr(jnp, name)
        for name in (
            *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh"),
            *("exp", "exp2", "expm1", "floor", "isfinite", "isinf", "isnan", "log", "log10"),
            *("log1p", "log2", "logical_not", "round", "sign", "sin", "sinh", "sqrt", "square"),
            *("tan", "tanh", "trunc", "reciprocal"),
        )
    },
    "bitwise_not": jnp.invert,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "erfinv": lax.erf_inv,
    "hardsigmoid": jax.nn.hard_sigmoid,
    "hardswish": jax.nn.hard_swish,
    "lgamma": lax.lgamma,
    "log_sigmoid": jax.nn.log_sigmoid,
    "mish": jax.nn.mish,
    "neg": jnp.negative,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "rsqrt": lax.rsqrt,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}
# They hand on their operand in evaluation.
_IDENTITIES = (
    *("alias", "alias_copy", "clone", "contiguous", "detach", "detach_", "detach_copy", "dropout"),
    *("alpha_dropout", "feature_dropout", "lift", "lift_fresh", "lift_fresh_copy", "positive"),
    *("requires_grad_", "resolve_conj", "resolve_neg", "_conj_physical"),
)
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{
        name: getattr(jnp, name)
        for name in (
            *("bitwise_and", "bitwise_or", "bitwise_xor", "equal", "fmod", "greater"),
            *("greater_equal", "less", "less_equal", "logical_and", "logical_or", "logical_xor"),
            *("maximum", "minimum", "not_equal", "remainder"),
        )
    },
    "__and__": jnp.bitwise_and,
    "__lshift__": jnp.left_shift,
    "__or__": jnp.bitwise_or,
    "__rshift__": jnp.right_shift,
    "__xor__": jnp.bitwise_xor,
    "atan2": jnp.arctan2,
    "bitwise_left_shift": jnp.left_shift,
    "bitwise_right_shift": jnp.right_shift,
    "eq": jnp.equal,
    "floor_divide": jnp.floor_divide,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "le": jnp.less_equal,
    "lt": jnp.less,
    "mul": jnp.multiply,
    "ne": jnp.not_equal,
    "pow": jnp.power,
}
_FILLS = {"ones": 1, "ones_like": 1, "new_ones": 1, "zeros": 0, "zeros_like": 0, "new_zeros": 0}
_FILLS |= {"empty": 0, "empty_like": 0, "new_empty": 0, "empty_permuted": 0, "zero": 0}
_RANDOM = ("rand", "rand_like", "randint", "randn", "randn_like", "bernoulli", "randperm")


def _unary(function: Callable[[Any], Any]) -> Rule:
    def rule(call: Call) -> Any:
        x = call["self"]
        if jnp.issubdtype(call.dtype, jnp.inexact) and not jnp.issubdtype(x.dtype, jnp.inexact):
            x = x.astype(call.dtype)
        return function(x)

    return rule


def _binary(function: Callable[[Any, Any], Any]) -> Rule:
    return lambda call: function(*_pair(call))


def _pair(call: Call) -> tuple[Any, Any]:
    """Both operands; a number takes the type of the tensor where it can."""
    first = call.get("self", call.get("input", None))
    second = call.get("other", call.get("exponent", None))
    if first is None or second is None:
        raise KeyError("two operands")
    if jnp.issubdtype(call.dtype, jnp.inexact):
        first, second = (_cast(x, call.dtype) for x in (first, second))
    return first, second


def _cast(x: Any, dtype: Any) -> Any:
    return x.astype(dtype) if isinstance(x, jax.Array) and x.dtype != dtype else x


def _scaled(x: Any, factor: Any) -> Any:
    return x if factor == 1 else x * factor


def _add(call: Call) -> Any:
    first, second = _pair(call)
    return jnp.add(first, _scaled(second, call.get("alpha", 1)))


def _sub(call: Call) -> Any:
    first, second = _pair(call)
    return jnp.subtract(first, _scaled(second, call.get("alpha", 1)))


def _rsub(call: Call) -> Any:
    first, second = _pair(call)
    return jnp.subtract(second, _scaled(first, call.get("alpha", 1)))


def _div(call: Call) -> Any:
    quotient = jnp.true_divide(*_pair(call))
    match call.get("rounding_mode", None):
        case "floor":
            return jnp.floor(quotient)
        case "trunc":
            return jnp.trunc(quotient)
    return quotient


def _clamp(call: Call) -> Any:
    x = call["self"]
    low, high = call.get("min", None), call.get("max", None)
    if low is not None:
        x = jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


def _where(call: Call) -> Any:
    return jnp.where(
        call["condition"], _cast(call["self"], call.dtype), _cast(call["other"], call.dtype)
    )


def _masked_fill(call: Call) -> Any:
    value = call["value"]
    if isinstance(value, jax.Array):
        value = value.astype(call.dtype)
    return jnp.where(call["mask"], value, call["self"])


def _gelu(call: Call) -> Any:
    return jax.nn.gelu(call["self"], approximate=call.get("approximate", "none") == "tanh")


def _elu(call: Call) -> Any:
    x, alpha = call["self"], call.get("alpha", 1.0)
    return jnp.where(x > 0, x, alpha * jnp.expm1(x))


def _leaky_relu(call: Call) -> Any:
    x = call["self"]
    return jnp.where(x > 0, x, x * call.get("negative_slope", 0.01))


def _prelu(call: Call) -> Any:
    x, weight = call["self"], call["weight"]
    shape = [1] * x.ndim
    if x.ndim > 1:
        shape[1] = weight.size
    return jnp.where(x > 0, x, x * weight.reshape(shape))


def _hardtanh(call: Call) -> Any:
    return jnp.clip(call["self"], call.get("min_val", -1.0), call.get("max_val", 1.0))


def _softplus(call: Call) -> Any:
    beta = call.get("beta", 1)
    return jnp.log1p(jnp.exp(_scaled(call["self"], beta))) / beta


def _glu(call: Call) -> Any:
    first, second = jnp.split(call["self"], 2, axis=call.get("dim", -1))
    return first * jax.nn.sigmoid(second)


def _addcmul(call: Call) -> Any:
    return call["self"] + _scaled(call["tensor1"] * call["tensor2"], call.get("value", 1))


def _addcdiv(call: Call) -> Any:
    return call["self"] + _scaled(call["tensor1"] / call["tensor2"], call.get("value", 1))


def _lerp(call: Call) -> Any:
    return call["self"] + call["weight"] * (call["end"] - call["self"])


def _cast_to_result(call: Call) -> Any:
    return _cast(call["self"], call.dtype)


def _full(call: Call) -> Any:
    value = call.get("fill_value", call.get("value", call.get("s", 0)))
    if isinstance(value, jax.Array):
        value = value.astype(call.dtype)
    return jnp.full(call.shape, value, call.dtype)


def _filled(value: int) -> Rule:
    return lambda call: jnp.full(call.shape, value, call.dtype)


def _arange(call: Call) -> Any:
    start, step = call.get("start", 0), call.get("step", 1)
    steps = lax.iota(call.dtype, call.shape[0])
    steps = _scaled(steps, step)
    return steps if start == 0 else steps + start


def _linspace(call: Call) -> Any:
    return jnp.linspace(call["start"], call["end"], call["steps"], dtype=call.dtype)


def _eye(call: Call) -> Any:
    return jnp.eye(*call.shape, dtype=call.dtype)


def _random(call: Call) -> Any:
    return by_shape("random_bits", [], call.results)


def _diff(call: Call) -> Any:
    before, after = call.get("prepend", None), call.get("append", None)
    n, axis = int(call.get("n", 1)), int(call.get("dim", -1))
    return jnp.diff(call["self"], n, axis, prepend=before, append=after)


def _identity(call: Call) -> Any:
    return call.get("self", call.get("input", None))


def _native_dropout(call: Call) -> Any:
    x = call["input"]
    return x, jnp.ones(x.shape, jnp.bool_)


def _copy(call: Call) -> Any:
    return jnp.broadcast_to(call["src"], call.shape).astype(call.dtype)


RULES: dict[str, Rule] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    **{name: _filled(value) for name, value in _FILLS.items()},
    **dict.fromkeys(_IDENTITIES, _identity),
    **dict.fromkeys(_RANDOM, _random),
    **dict.fromkeys(("full", "full_like", "new_full", "scalar_tensor", "fill"), _full),
    **dict.fromkeys(("to", "_to_copy", "type_as", "float", "half", "double"), _cast_to_result),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("div", "divide", "true_divide"), _div),
    "add": _add,
    "addcdiv": _addcdiv,
    "addcmul": _addcmul,
    "arange": _arange,
    "copy": _copy,
    "diff": _diff,
    "elu": _elu,
    "eye": _eye,
    "gelu": _gelu,
    "glu": _glu,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "lerp": _lerp,
    "linspace": _linspace,
    "masked_fill": _masked_fill,
    "native_dropout": _native_dropout,
    "prelu": _prelu,
    "rsub": _rsub,
    "softplus": _softplus,
    "sub": _sub,
    "where": _where,
}
