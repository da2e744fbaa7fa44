"""Rows, lanes and sets of chips inside the kernel, for a tile of T candidates.

A row is [1, T], one number for each candidate. Chips are lanes in groups of at most 32, one group
for each word of a set of chips; an array over chips is a list of [lanes, T], one for each group. A
set of chips is a list of int32 rows, one for each word. Nothing is scattered: a sum per chip adds
to all lanes, and zero to the lanes of other chips.

`chip_sets.py` has the same sets outside the kernel, in one array and without the groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxpart.cost.chip_sets import WORD

Row = Any  # [1, T]
Set = list[Row]  # one row for each word
Lanes = list[Any]  # [lanes, T] for each group of chips


class Shape(NamedTuple):
    """The static shape of a program."""

    num_chips: int
    group_lanes: tuple[int, ...]  # lanes of each group of chips
    planes: int  # links of each chip: 0 with a host, 1 on a chain, 4 on a mesh
    kinds: int  # S
    counts_live: bool  # whether live activations are counted
    has_barrier: bool  # whether a thread sees a row of another one only behind a barrier
    tile: int  # T

    @property
    def is_chain(self) -> bool:
        """Whether links join neighbours alone, in one direction."""
        return self.planes == 1

    @property
    def words(self) -> range:
        """The words of a set; of each, the chips are one group of lanes."""
        return range(len(self.group_lanes))

    @property
    def first_lane(self) -> list[int]:
        """The first lane of each group, in arrays of all lanes."""
        return [sum(self.group_lanes[:g]) for g in self.words]


def zeros(shape: Shape, dtype: Any) -> Row:
    """A row of zeros."""
    return jnp.zeros((1, shape.tile), dtype)


def no_chips(shape: Shape) -> Set:
    """The empty set."""
    return [zeros(shape, jnp.int32) for _ in shape.words]


def no_lanes(shape: Shape) -> Lanes:
    """Sums of nothing."""
    return [jnp.zeros((lanes, shape.tile), jnp.float32) for lanes in shape.group_lanes]


def bits(shape: Shape, chip: Row) -> Set:
    """The set that holds only the given chip."""
    bit = jnp.left_shift(1, chip & (WORD - 1))
    if len(shape.words) == 1:
        return [bit]
    return [jnp.where(chip >> 5 == w, bit, 0) for w in shape.words]


def below(shape: Shape, chip: Row) -> Set:
    """The chips below a chip."""
    rest = jnp.left_shift(1, chip & (WORD - 1)) - 1
    if len(shape.words) == 1:
        return [rest]
    word = chip >> 5
    return [jnp.where(word == w, rest, jnp.where(word > w, -1, 0)) for w in shape.words]


def of_set(shape: Shape, chips: Set, amount: Any) -> Lanes:
    """An amount on the lanes of a set of chips, 0 on the others."""
    numbers = [lax.broadcasted_iota(jnp.int32, (lanes, 1), 0) for lanes in shape.group_lanes]
    return [
        jnp.where((word & jnp.left_shift(1, number)) != 0, amount, 0.0)
        for word, number in zip(chips, numbers, strict=True)
    ]


def union(one: Set, other: Set) -> Set:
    """The chips of either set."""
    return [a | b for a, b in zip(one, other, strict=True)]


def less(one: Set, other: Set) -> Set:
    """The chips of the first set that are not in the other."""
    return [a & ~b for a, b in zip(one, other, strict=True)]


def meets(one: Set, other: Set) -> Any:
    """Whether two sets have a chip in common."""
    return has_any([a & b for a, b in zip(one, other, strict=True)])


def has_any(words: Set) -> Any:
    """Whether a set has a chip."""
    whole = words[0]
    for word in words[1:]:
        whole = whole | word
    return whole != 0


def added(sums: Lanes, here: Lanes, amount: Any) -> Lanes:
    """Sums per chip, with an amount more where `here` is 1."""
    return [s + h * amount for s, h in zip(sums, here, strict=True)]


def sums(one: Lanes, other: Lanes) -> Lanes:
    """Sums per chip, with amounts of the same lanes more."""
    return [a + b for a, b in zip(one, other, strict=True)]
