"""Batches in chunks whose temporary arrays fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxpart.cost.device import DeviceProblem

# Candidates of one chunk on a CPU: enough to spread a loop's overhead, few enough for the cache.
_CPU_CHUNK = 512
# Bytes of temporary arrays of one chunk where whole arrays are computed.
_BUDGET_BYTES = 2**31
_LANES = 128  # a chunk is a multiple of it: a TPU's vector, four warps of a GPU


def in_chunks(
    problem: DeviceProblem,
    function: Callable[[Array], Any],
    assignment: Int[Array, "N B"],
    candidate_bytes: int,
) -> Any:
    """Applies `function` to a batch, one chunk after the other.

    Loops over rows take chunks that fit the cache of a CPU. Whole arrays take chunks that fit the
    memory of a device.

    Args:
      problem: says which form its programs have.
      function: takes [N, any] candidates to a pytree of arrays whose last axis is the candidates.
      assignment: the batch.
      candidate_bytes: temporary bytes for each candidate where whole arrays are computed.

    Returns:
      The pytree for all B candidates.
    """
    if problem.tables is None:
        split = _split(function, assignment, _CPU_CHUNK)
        if split is function:
            return function(assignment)
        return lax.platform_dependent(assignment, cpu=split, default=function)
    width = max(_LANES, _BUDGET_BYTES // candidate_bytes // _LANES * _LANES)
    return _split(function, assignment, width)(assignment)


def _split(
    function: Callable[[Array], Any], assignment: Int[Array, "N B"], most: int
) -> Callable[[Array], Any]:
    """`function` on chunks of at most `most` candidates; itself if one is enough."""
    rows, batch = assignment.shape
    chunks = -(-batch // most)
    if chunks == 1:
        return function
    width = -(-batch // chunks)

    def one_by_one(assignment: Array) -> Any:
        padded = jnp.pad(assignment, ((0, 0), (0, chunks * width - batch)))
        parts = jnp.moveaxis(padded.reshape(rows, chunks, width), 1, 0)

        def whole(values: Array) -> Array:
            joined = jnp.moveaxis(values, 0, -2)
            return joined.reshape(*joined.shape[:-2], chunks * width)[..., :batch]

        return jax.tree.map(whole, lax.map(function, parts))

    return one_by_one
