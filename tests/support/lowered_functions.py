"""JAX functions with example shapes, for importers that must agree on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """A shape and a type, of floats by default."""
    return jax.ShapeDtypeStruct(shape, dtype)


def mlp(params, x):
    for weight, bias in params:
        x = jax.nn.relu(x @ weight + bias[None])
    return jax.nn.softmax(x)


def attention(params, x):
    batch, length, width = x.shape
    q, k, v = (
        (x @ params[name]).reshape(batch, length, 2, width // 2).transpose(0, 2, 1, 3)
        for name in ("q", "k", "v")
    )
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / 2.0
    mask = jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.where(mask[None, None], scores, -1e9)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)
    x = x + mixed.transpose(0, 2, 1, 3).reshape(x.shape) @ params["o"]
    centred = x - x.mean(-1, keepdims=True)
    x = centred * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6) * params["scale"][None, None]
    return jax.nn.gelu(x @ params["f"]) @ params["g"]


def convolutions(params, x):
    x = lax.conv_general_dilated(x, params[0], (1, 1), "SAME")
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "SAME")
    grouped = lax.conv_general_dilated(x, params[1], (2, 2), "SAME", feature_group_count=4)
    dilated = lax.conv_general_dilated(x, params[2], (1, 1), "VALID", rhs_dilation=(2, 2))
    numbers = ("NCHW", "OIHW", "NCHW")
    transposed = lax.conv_transpose(x, params[2], (2, 2), "SAME", dimension_numbers=numbers)
    pooled = lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return grouped, dilated, transposed, pooled


def scanned(params, x):
    def step(carry, layer):
        carry = jax.nn.gelu(carry @ layer)
        return carry, carry.sum()

    return lax.scan(step, x, params)


def looped(weight, x):
    return lax.fori_loop(0, 5, lambda i, y: jnp.tanh(y @ weight), x)


def reversed_scan(params, xs):
    return lax.scan(lambda c, x: ((c @ params) + x, c), xs[0], xs, reverse=True)


def unknown_trips(weight, x):
    return lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ weight + 1.0, x)


def branches(weight, x):
    doubled = lax.cond(x.sum() > 0, lambda y: y @ weight, lambda y: y * 2, x)
    kinds = [lambda y: y @ weight, lambda y: y + 1, lambda y: y * 3]
    return lax.switch(jnp.int32(doubled[0, 0]), kinds, doubled)


@jax.custom_jvp
def _soft(x):
    return jnp.log1p(jnp.exp(x))


@_soft.defjvp
def _soft_jvp(primals, tangents):
    return _soft(primals[0]), tangents[0]


@jax.jit
def _inner(weight, x):
    return _soft(x @ weight)


def calls(weight, x):
    rerun = jax.checkpoint(lambda y: jnp.sin(y) @ weight)
    return rerun(_inner(weight, _inner(weight, x)))


def composed(weight, x):
    def decomposition(y, matrix, *, factor):
        return (y @ matrix) * factor

    return lax.composite(decomposition, "mine.scaled")(x, weight, factor=2.0)


def reductions(weight, x):
    y = x @ weight
    largest, first = y.max(0), jnp.argmax(y, 1)
    return largest, first, y.prod(1), y.min(), (y > 0).all(1), (y > 0).any(), jnp.cumsum(y, 1)


def lookups(table, i):
    rows = table.at[i].get(mode="clip")
    clipped = table.at[i[0]].get(mode="promise_in_bounds")
    written = rows.at[0, 1].set(1.0).at[:, 0].add(clipped[0])
    return rows.sum(1), lax.dynamic_slice(table, (i[0, 0], 0), (3, 4)), written


def quantised(weight, x):
    wide = lax.dot_general(x, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return (wide.astype(jnp.float32) * 0.1).astype(jnp.int8)


def elementwise(scale, x):
    y = jnp.exp(x * scale) + jnp.sqrt(jnp.abs(x)) - jnp.arctan2(x, scale) + lax.erf(x)
    y = lax.rem(y, scale) + lax.clamp(0.0, y, 1.0) + jnp.floor(y) ** 3 + lax.rsqrt(scale)
    whole = x.astype(jnp.int32)
    bits = (whole << 2) | (whole & 3) ^ lax.population_count(whole)
    return jnp.where(jnp.isfinite(y), y, jnp.sign(x)), bits, lax.expm1(x) + jnp.cos(x), ~whole


def layouts(weight, x):
    y = jnp.concatenate([x, x[:, ::-1]], 1)
    y = jnp.pad(y, ((1, 0), (0, 2))) + jnp.arange(18.0)[None]
    y = y.T.reshape(2, -1)[:, 3:30:3]
    values, positions = lax.top_k(y, 3)
    return lax.sort(y, dimension=1) @ weight, values, positions, jnp.fft.rfft(x)


def splits(params, x):
    """The channel shuffle of ShuffleNet, and the gates of a cell that looks at its state."""
    kept, changed = jnp.split(x, 2, axis=1)
    changed = jax.nn.relu(jnp.einsum("nchw,cd->ndhw", changed, params["mix"]))
    shape = (x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
    x = jnp.concatenate([kept, changed], 1).reshape(shape).swapaxes(1, 2).reshape(x.shape)
    gates = jnp.einsum("nchw,cd->nhwd", x, params["gates"])
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    return jnp.tanh(o) * jnp.sin(jnp.cos(f) * i + jnp.exp(i) * jnp.tanh(g))


Case = tuple[Callable[..., Any], Any, Any]  # function, parameters, input

CASES: dict[str, Case] = {
    "mlp": (mlp, [(array(16, 32), array(32)), (array(32, 32), array(32))], array(4, 16)),
    "attention": (
        attention,
        {
            **{name: array(16, 16) for name in ("q", "k", "v", "o")},
            **{"f": array(16, 64), "g": array(64, 16), "scale": array(16)},
        },
        array(2, 8, 16),
    ),
    "convolutions": (
        convolutions,
        [array(8, 3, 3, 3), array(8, 2, 3, 3), array(8, 8, 3, 3)],
        array(2, 3, 16, 16),
    ),
    "scan": (scanned, array(4, 8, 8), array(3, 8)),
    "scan, reversed": (reversed_scan, array(8, 8), array(5, 3, 8)),
    "for": (looped, array(8, 8), array(3, 8)),
    "while": (unknown_trips, array(8, 8), array(3, 8)),
    "branches": (branches, array(8, 8), array(8, 8)),
    "calls": (calls, array(8, 8), array(3, 8)),
    "composite": (composed, array(8, 8), array(3, 8)),
    "reductions": (reductions, array(8, 6), array(5, 8)),
    "lookups": (lookups, array(100, 8), array(2, 5, dtype=jnp.int32)),
    "quantised": (quantised, array(16, 8, dtype=jnp.int8), array(4, 16, dtype=jnp.int8)),
    "elementwise": (elementwise, array(3, 8), array(3, 8)),
    "layouts": (layouts, array(9, 4), array(5, 8)),
    "splits": (splits, {"mix": array(4, 4), "gates": array(8, 24)}, array(2, 8, 4, 4)),
}
