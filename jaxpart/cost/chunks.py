"""Batches in chunks whose temporary arrays fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxpart.cost.device import DeviceProblem
from jaxpart.environment import share_of_memory

# Candidates of one chunk on a CPU: enough to spread a loop's overhead, few enough for the cache.
_CPU_CHUNK = 512
# Bytes of temporary arrays of one chunk where whole arrays are computed: this share of the memory,
# and so many where the device does not say how much it has.
_BUDGET_SHARE, _BUDGET_BYTES = 1 / 16, 2**31
_LANES = 128  # the most that a chunk may have is a multiple of it: a TPU's vector, four warps
# So much may a chunk of `_LANES` candidates take, likewise; where they need more it has fewer.
_MOST_SHARE, _MOST_BYTES = 1 / 4, 2**33


def in_chunks(
    problem: DeviceProblem,
    function: Callable[[Any], Any],
    batch: Any,
    candidate_bytes: int,
) -> Any:
    """Applies `function` to a batch, one chunk after the other.

    Loops over rows take chunks that fit the cache of a CPU. Whole arrays take chunks that fit the
    memory of a device. `jax.vmap` over problems makes the arrays of all of them at once, so that
    each then has a part of the room.

    Args:
      problem: says which form its programs have, and how many problems are stacked.
      function: takes a part of the batch to a pytree of arrays whose last axis is the candidates.
      batch: an array whose last axis is the candidates, or a pytree of them.
      candidate_bytes: temporary bytes for each candidate where whole arrays are computed.

    Returns:
      The pytree for all B candidates.
    """
    stacked = problem.config.problems
    if problem.tables is None:
        split = _split(function, batch, max(1, _CPU_CHUNK // stacked))
        if split is function:
            return function(batch)
        return lax.platform_dependent(batch, cpu=split, default=function)
    return _split(function, batch, width_of(stacked * candidate_bytes))(batch)


def width_of(candidate_bytes: int) -> int:
    """How many candidates a chunk may have, where each takes so many bytes."""
    budget_bytes = share_of_memory(_BUDGET_SHARE, _BUDGET_BYTES)
    most_bytes = share_of_memory(_MOST_SHARE, _MOST_BYTES)
    width = budget_bytes // candidate_bytes // _LANES * _LANES
    return max(1, width or min(_LANES, most_bytes // candidate_bytes))


def _split(function: Callable[[Any], Any], batch: Any, most: int) -> Callable[[Any], Any]:
    """`function` on chunks of at most `most` candidates; itself if one is enough."""
    count = jax.tree.leaves(batch)[0].shape[-1]
    chunks = -(-count // most)
    if chunks == 1:
        return function
    width = -(-count // chunks)

    def part(values: Array) -> Array:
        padded = jnp.pad(values, (*((0, 0),) * (values.ndim - 1), (0, chunks * width - count)))
        return jnp.moveaxis(padded.reshape(*values.shape[:-1], chunks, width), -2, 0)

    def whole(values: Array) -> Array:
        joined = jnp.moveaxis(values, 0, -2)
        return joined.reshape(*joined.shape[:-2], chunks * width)[..., :count]

    return lambda batch: jax.tree.map(whole, lax.map(function, jax.tree.map(part, batch)))
