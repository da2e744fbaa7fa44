"""Operators of ATen that reduce, accumulate or sort along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpart.ingest.pt2.retrace import Call, Rule

_PLAIN: dict[str, Callable[..., Any]] = {
    "all": jnp.all,
    "amax": jnp.max,
    "amin": jnp.min,
    "any": jnp.any,
    "logsumexp": jax.nn.logsumexp,
    "mean": jnp.mean,
    "prod": jnp.prod,
    "sum": jnp.sum,
}


def _axes(call: Call, name: str = "dim") -> Any:
    """The axes of a reduction; None: all."""
    dims = call.get(name, None)
    if dims is None or (isinstance(dims, list) and not dims):
        return None
    return tuple(int(d) for d in dims) if isinstance(dims, list) else int(dims)


def _operand(call: Call) -> Any:
    x = call["self"]
    floats = jnp.issubdtype(call.dtype, jnp.inexact)
    return x.astype(call.dtype) if floats and x.dtype != call.dtype else x


def _plain(function: Callable[..., Any]) -> Rule:
    return lambda call: function(_operand(call), _axes(call), keepdims=call.get("keepdim", False))


def _extreme(call: Call) -> Any:
    """`max` and `min`: of all elements, of an axis with positions, or of two tensors."""
    largest = call.name == "max"
    x, other = call["self"], call.get("other", None)
    if other is not None:
        return (jnp.maximum if largest else jnp.minimum)(x, other)
    axis, kept = call.get("dim", None), call.get("keepdim", False)
    value = (jnp.max if largest else jnp.min)(x, axis, keepdims=kept)
    if axis is None:
        return value
    return value, (jnp.argmax if largest else jnp.argmin)(x, axis, keepdims=kept)


def _position(call: Call) -> Any:
    function = jnp.argmax if call.name == "argmax" else jnp.argmin
    return function(call["self"], _axes(call), keepdims=call.get("keepdim", False))


def _variance(call: Call) -> Any:
    correction = call.get("correction", None)
    if correction is None:
        correction = 1 if call.get("unbiased", True) else 0
    x, axes, kept = call["self"], _axes(call), call.get("keepdim", False)
    variance = jnp.var(x, axes, ddof=int(correction), keepdims=kept)
    if call.name in ("var_mean", "std_mean"):
        spread = variance if call.name == "var_mean" else jnp.sqrt(variance)
        return spread, jnp.mean(x, axes, keepdims=kept)
    return jnp.sqrt(variance) if call.name == "std" else variance


def _norm(call: Call) -> Any:
    order = call.get("ord", call.get("p", None))
    order = 2 if order is None else order
    x, axes, kept = call["self"], _axes(call), call.get("keepdim", False)
    if order == 2:
        return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=kept))
    if order == 1:
        return jnp.sum(jnp.abs(x), axes, keepdims=kept)
    if order == float("inf"):
        return jnp.max(jnp.abs(x), axes, keepdims=kept)
    return jnp.power(jnp.sum(jnp.power(jnp.abs(x), order), axes, keepdims=kept), 1 / order)


def _cumulative(function: Callable[..., Any]) -> Rule:
    return lambda call: function(call["self"].astype(call.dtype), int(call["dim"]))


def _top_k(call: Call) -> Any:
    x, axis = call["self"], int(call.get("dim", -1)) % call["self"].ndim
    x = jnp.moveaxis(x, axis, -1)
    values, places = jax.lax.top_k(x if call.get("largest", True) else -x, int(call["k"]))
    values = values if call.get("largest", True) else -values
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(places, -1, axis)


def _sort(call: Call) -> Any:
    x, axis = call["self"], int(call.get("dim", -1))
    places = jnp.argsort(x, axis, descending=call.get("descending", False))
    return places if call.name == "argsort" else (jnp.sort(x, axis), places)


RULES: dict[str, Rule] = {
    **{name: _plain(function) for name, function in _PLAIN.items()},
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("argmax", "argmin"), _position),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _variance),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    **dict.fromkeys(("sort", "argsort"), _sort),
    "cumprod": _cumulative(jnp.cumprod),
    "cumsum": _cumulative(jnp.cumsum),
    "topk": _top_k,
}
