"""Rows to entries and entries to rows: what the network's attention and means are made of.

An entry is an edge between contracted nodes, or a use of a weight. `Ends` gives each entry its row.
`read` takes rows to their entries, and `sums` adds up the entries of each row: one is the transpose
of the other.

A CPU adds by a scatter, which is a plain loop there (`jraph.segment_sum`). On a GPU, float32
scatter-add into few segments is broken with jaxlib 0.10.2 to 0.11.0: hundreds of times slower. So a
GPU or TPU has lists of the entries of each row. Nothing scatters there, and neither do gradients:
that of a gather is the sum by the lists.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.tables import Segments, offsets, reduce_segments, segments, take


@struct.dataclass
class Lists:
    """The entries of each row. Padding belongs to no row."""

    # Of each row, in the order of `by_row`. A row with many entries has a tree of short lists, so
    # that a hub costs levels and no padding (`jaxpart/cost/tables.py`).
    segments: Segments
    by_row: Int[Array, " P"]  # the entries, sorted by row
    is_real: Bool[Array, " P"]  # False: padding


@struct.dataclass
class Ends:
    """One end of P entries: the row of each. With lists nothing scatters."""

    row: Int[Array, " P"]
    lists: Lists | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `row`; jraph counts the edges by it."""
        return self.row.shape


def lists_of(row: np.ndarray, rows: int, entries: int) -> Lists:
    """The lists of the entries of each row, as NumPy arrays.

    Args:
      row: [K] of each real entry.
      rows: their number.
      entries: P, the number of entries with padding, which comes last.
    """
    by_row = np.zeros(entries, np.int32)
    by_row[: len(row)] = np.argsort(row, kind="stable")
    made: Any = segments(offsets(row, rows), entries), by_row, np.arange(entries) < len(row)
    return Lists(*made)


class Rows:
    """Rows of an array that are read by `Ends`; jraph reads nodes by `nodes[senders]`."""

    def __init__(self, values: Float[Array, "N ..."]) -> None:
        self._values = values
        self.shape = values.shape

    def __getitem__(self, ends: Ends) -> Float[Array, "P ..."]:
        return read(self._values, ends)


def read(values: Float[Array, "N ..."], ends: Ends) -> Float[Array, "P ..."]:
    """[P, ...] the row of each entry; for padding with lists, 0."""
    return values[ends.row] if ends.lists is None else _read(values, ends.row, ends.lists)


def sums(values: Float[Array, "P ..."], ends: Ends, rows: int) -> Float[Array, "N ..."]:
    """[N, ...] the sum of the entries of each of `rows` rows; 0 for a row without entries."""
    if ends.lists is None:
        return jraph.segment_sum(values, ends.row, num_segments=rows)
    return _sums(values, ends.row, ends.lists)


def means(values: Float[Array, "P ..."], ends: Ends, rows: int) -> Float[Array, "N ..."]:
    """[N, ...] the mean of the entries of each of `rows` rows; 0 for a row without entries."""
    number = sums(jnp.ones(ends.row.shape[0]), ends, rows)
    return sums(values, ends, rows) / jnp.maximum(number, 1.0)[:, None]


def softmax(logits: Float[Array, "P H"], ends: Ends, rows: int) -> Float[Array, "P H"]:
    """[P, H] exp(logits), divided by their sum over the entries of each row; 0 for padding."""
    lists = ends.lists
    if lists is None:
        found: Any = jraph.segment_softmax(logits, ends.row, num_segments=rows)
        return found
    # The weights do not depend on what is subtracted, so it has no gradient.
    highest = reduce_segments(
        lambda q: take(lax.stop_gradient(logits), lists.by_row[q]),
        lists.segments,
        jnp.maximum,
        -jnp.inf,
    )
    real = lists.is_real[:, None]
    weight = jnp.where(real, jnp.exp(jnp.where(real, logits - take(highest, ends.row), 0.0)), 0.0)
    return weight / jnp.where(real, read(sums(weight, ends, rows), ends), 1.0)


@jax.custom_vjp
def _read(values: Array, row: Int[Array, " P"], lists: Lists) -> Array:
    found = take(values, row)
    return jnp.where(lists.is_real.reshape(-1, *[1] * (found.ndim - 1)), found, 0.0)


@jax.custom_vjp
def _sums(values: Array, row: Int[Array, " P"], lists: Lists) -> Array:
    by_row = lists.by_row
    return reduce_segments(lambda q: take(values, by_row[q]), lists.segments, operator.add, 0)


_read.defvjp(
    lambda values, row, lists: (_read(values, row, lists), (row, lists)),
    lambda kept, change: (_sums(change, *kept), None, None),
)
_sums.defvjp(
    lambda values, row, lists: (_sums(values, row, lists), (row, lists)),
    lambda kept, change: (_read(change, *kept), None, None),
)
