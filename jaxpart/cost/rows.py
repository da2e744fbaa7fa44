"""Helpers for loops over rows of B candidates."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# The amount of row i, from i and the chips [B] of that row.
Amount = Callable[[Array, Int[Array, " B"]], Array]


def add_up(
    chips: Int[Array, "M B"], count: Int[Array, ""], num_chips: int, amount: Amount
) -> Float[Array, "C B"]:
    """Sums an amount per chip over the first `count` of M rows.

    Args:
      chips: [M, B] the chip to which each row counts; -1: to no chip.
      count: at most M.
      num_chips: C.
      amount: of row i, from i and its chips (0 instead of -1): a scalar or [B], always of the same
        dtype.

    Returns:
      [C, B] the sums.
    """
    batch = chips.shape[1]
    dtype = amount(jnp.int32(0), jnp.zeros((batch,), jnp.int32)).dtype

    def add(i, totals):
        chip = chips[i].astype(jnp.int32)
        chip, is_any = jnp.maximum(chip, 0), chip >= 0
        value = jnp.where(is_any, amount(i, chip), 0)
        at = flat_position(chip)
        return totals.at[at].add(value, unique_indices=True, mode="promise_in_bounds")

    totals = lax.fori_loop(0, count, add, jnp.zeros((num_chips * batch,), dtype))
    return totals.reshape(num_chips, batch)


def flat_position(chip: Int[Array, " B"]) -> Int[Array, " B"]:
    """The position of each candidate's chip in an array [C, B] that is laid out flat.

    One flat index scatters three times as fast on a CPU as two.
    """
    batch = chip.shape[0]
    return chip * batch + jnp.arange(batch, dtype=jnp.int32)


def add_row(rows: Float[Array, "M B"], i: Int[Array, ""], row: Float[Array, " B"]) -> Array:
    """`rows` [M, B] with `row` [B] added to row i."""
    return set_row(rows, i, rows[i] + row)


def set_row(rows: Array, i: Int[Array, ""], row: Array) -> Array:
    """`rows` [M, B] with `row` [B], converted to their dtype, as row i."""
    return lax.dynamic_update_index_in_dim(rows, row.astype(rows.dtype), i, 0)
