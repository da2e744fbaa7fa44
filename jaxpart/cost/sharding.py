"""Batches over all local devices: each takes an equal part of the candidates.

A mesh of one dimension, the candidates. What runs along it needs nothing of its neighbours, so no
device waits for another, and the answers are those of one device: the batch is the same, only cut
into parts. With one device everything here is the identity.

Programs that look at each candidate by itself go through `split` (`jax.shard_map`). Those that draw
random numbers for the whole batch go through `split_draws`, where XLA's partitioner does the
cutting, since the numbers of a part are not those of a small batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
_AXIS = "candidates"


def devices_for(batch: int) -> int:
    """How many local devices share a batch: as many as give each the same even number.

    Even, because neighbours are treated differently (`orders.swept`).
    """
    return math.gcd(max(batch // 2, 1), jax.local_device_count())


def replicated(tree: T, batch: int) -> T:
    """The arrays of `tree` on each device that shares a batch of this size; else as they are."""
    if devices_for(batch) == 1:
        return tree
    return jax.device_put(tree, NamedSharding(_mesh(devices_for(batch)), PartitionSpec()))


def split(
    function: Callable[..., Any],
    batch: int,
    in_axes: tuple[int | None, ...],
    out_axis: int = -1,
    **static: Any,
) -> Callable[..., Any]:
    """`function` over parts of the batch, one per device; with one device, `function` itself.

    Args:
      function: treats every candidate by itself, and at most even and odd ones differently.
      batch: candidates in a call.
      in_axes: for each argument (an array, or a tree where all devices have the whole), the axis of
        the candidates, counted from the front; None: all devices need all of it.
      out_axis: where the candidates are in every result.
      static: arguments by name that are known to the compiler.
    """
    count = devices_for(batch)
    if count == 1:
        return functools.partial(function, **static) if static else function
    return _split(function, count, in_axes, out_axis, tuple(static.items()))


def split_draws(function: Callable[..., T], batch: int, *static: Any) -> Callable[..., T]:
    """`function` (problem, key, ...) whose result [N, B] is made in parts, one per device.

    Same numbers as on one device: `jax.random` draws what a position in the batch should get, on
    whichever device it is. With one device, `function` itself.
    """
    count = devices_for(batch)
    if count == 1:
        return lambda *arguments: function(*arguments, *static)
    return _split_draws(function, count, static)


@functools.lru_cache
def _mesh(count: int) -> Mesh:
    return Mesh(np.array(jax.local_devices()[:count]), (_AXIS,))


def _along(axis: int, rank: int) -> PartitionSpec:
    axes: list[str | None] = [None] * rank
    axes[axis] = _AXIS
    return PartitionSpec(*axes)


@functools.lru_cache
def _split(
    function: Callable[..., Any],
    count: int,
    in_axes: tuple[int | None, ...],
    out_axis: int,
    static: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    function = functools.partial(function, **dict(static))
    in_specs = tuple(PartitionSpec() if a is None else _along(a, a + 1) for a in in_axes)

    @jax.jit
    def run(*arguments: Any) -> Any:
        shapes = jax.eval_shape(function, *arguments)
        out_specs = jax.tree.map(lambda leaf: _along(out_axis, leaf.ndim), shapes)
        # Loops carry what all devices share together with what each has of its own.
        return jax.shard_map(
            function, mesh=_mesh(count), in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(*arguments)

    return run


@functools.lru_cache
def _split_draws(
    function: Callable[..., T], count: int, static: tuple[Any, ...]
) -> Callable[..., T]:
    def run(*arguments: Any) -> T:
        return function(*arguments, *static)

    return jax.jit(run, out_shardings=NamedSharding(_mesh(count), _along(1, 2)))
