"""Sets of chips as words of 32 bits, one set for each candidate."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

WORD = 32  # bits of one word


def num_words(num_chips: int) -> int:
    """Words of a set of chips."""
    return -(-num_chips // WORD)


def chip_bit(chip: Int[Array, "... B"], num_chips: int) -> UInt32[Array, "... words B"]:
    """The set that holds only the given chip."""
    chip = chip.astype(jnp.int32)[..., None, :]
    word = _column(num_words(num_chips), jnp.int32, chip.ndim)
    bit = jnp.uint32(1) << (chip & (WORD - 1)).astype(jnp.uint32)
    return jnp.where(word == chip >> 5, bit, jnp.uint32(0))


def has_chip(sets: UInt32[Array, "... words B"], num_chips: int) -> Bool[Array, "... C B"]:
    """Whether each chip is in the set."""
    parts = []
    for word in range(num_words(num_chips)):
        bits = min(WORD, num_chips - word * WORD)
        shift = _column(bits, jnp.uint32, sets.ndim)
        parts.append((sets[..., word : word + 1, :] >> shift) & 1 == 1)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)


def highest_chip(sets: UInt32[Array, "... words B"]) -> Int[Array, "... B"]:
    """The highest chip of each set; -1 if it is empty."""
    number = _column(sets.shape[-2], jnp.int32, sets.ndim) * WORD
    top = WORD - 1 - lax.clz(sets).astype(jnp.int32)
    return jnp.max(jnp.where(sets == 0, -1, number + top), axis=-2)


def union(sets: UInt32[Array, ...], axis: int) -> UInt32[Array, ...]:
    """The union of sets along one axis."""
    return lax.reduce(sets, jnp.uint32(0), lax.bitwise_or, (axis % sets.ndim,))


def is_first_chips(used: UInt32[Array, "words B"]) -> Bool[Array, " B"]:
    """Whether each set of chips is 0..max with no chip left out."""
    full = jnp.uint32(2**WORD - 1)
    runs = (used & (used + 1)) == 0  # ones from the lowest bit on, without a gap
    follows = (used[1:] == 0) | (used[:-1] == full)
    return jnp.all(runs, axis=0) & jnp.all(follows, axis=0)


def _column(count: int, dtype: Any, rank: int) -> Array:
    """0, 1, ... along the last axis but one of an array of this rank."""
    return jnp.arange(count, dtype=dtype).reshape(*[1] * (rank - 2), count, 1)
