"""Small integers that are computed while tracing have the values that JAX computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpart.ingest.jaxpr.known import MAX_ELEMENTS, known_outputs, known_value

A = np.array([[7, -3, 5], [0, 2, -8]], np.int32)
B = np.array([[2, 2, -2], [3, -3, 3]], np.int32)
FUNCTIONS = {
    "arithmetic": lambda a, b: (a + b * 2 - 1, -a, a**2, jnp.abs(a), jnp.sign(a)),
    "division": lambda a, b: (lax.div(a, b), lax.rem(a, b), a // b, a % b),
    "wrapping": lambda a, b: a * 2**30 * b,
    "comparisons": lambda a, b: (a < b, a >= b, (a == b) | (a > 0), ~(a != b) & (b <= 2)),
    "choice": lambda a, b: (jnp.where(a < 0, a + 3, a), jnp.clip(a, -2, 4), jnp.maximum(a, b)),
    "shapes": lambda a, b: (a.T, a.reshape(3, 2), a[:, None], jnp.squeeze(a[:1])),
    "parts": lambda a, b: (a[1], a[:, ::2], jnp.flip(a, 1), jnp.split(a, 3, 1), list(a)),
    "joins": lambda a, b: (jnp.concatenate([a, b], 1), jnp.stack([a, b], 1)),
    "indices": lambda a, b: (a[0][b[0] % 3], lax.dynamic_slice(a, (b[0, 0], 1), (1, 2))),
    "sums": lambda a, b: (
        a.sum(0),
        a.max(),
        a.min(1),
        jnp.cumsum(b, 1),
        lax.cummax(a, 1, reverse=True),
    ),
    "iota": lambda a, b: (jnp.arange(5) * 2, lax.broadcasted_iota(jnp.int32, (2, 3), 1) + a),
    "casts": lambda a, b: (a.astype(jnp.int8), a.astype(jnp.uint8), (a > 0).astype(jnp.int32)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_known_integers_are_those_of_jax(name):
    function = FUNCTIONS[name]
    expected = jax.tree.leaves(function(jnp.asarray(A), jnp.asarray(B)))
    found = known_outputs(jax.make_jaxpr(function)(A, B), [A, B])
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.array_equal(ours, theirs)


def test_what_depends_on_an_unknown_is_unknown():
    found = known_outputs(jax.make_jaxpr(lambda a, b: (a + b, b * 2))(A, B), [None, B])
    unknown, known = found
    assert unknown is None
    assert known is not None
    assert np.array_equal(known, B * 2)


def test_floats_large_arrays_and_divisions_by_zero_are_unknown():
    def function(a):
        return a * 1.5, jnp.zeros(MAX_ELEMENTS + 1, jnp.int32), lax.div(a, jnp.zeros_like(a))

    assert known_outputs(jax.make_jaxpr(function)(A), [A]) == [None] * 3
    assert known_value(np.ones(3, np.float32)) is None
    assert known_value(3) == 3
