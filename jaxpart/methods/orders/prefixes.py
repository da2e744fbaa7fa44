"""Prefix sums of rows, added one after the other as a loop does it, but in few kernels."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_BLOCK = 32  # rows of one kernel: a launch costs more than a few additions


def prefixes(rows: Array) -> Array:
    """[N, ...] the sums of the first p + 1 rows, in the order of a loop.

    The sum of floats depends on that order. No sum falls below 0.
    """

    def step(total: Array, row: Array) -> tuple[Array, Array]:
        total = jnp.maximum(total + row, 0)
        return total, total

    return lax.scan(step, jnp.zeros_like(rows[0]), rows, unroll=_BLOCK)[1]
