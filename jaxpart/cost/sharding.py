"""Shares a batch among all local devices: each device takes an equal part of the candidates.

The device mesh has one axis, the candidates. A program needs no data from the parts of other
devices, so no device waits for another. The results are those of one device, because the batch is
the same. With one device every function here is the identity.

A program that treats each candidate by itself goes through `split` (`jax.shard_map`). A program
that draws random numbers for the whole batch goes through `split_draws`: there XLA's partitioner
divides the program, because the numbers of a part differ from those of a smaller batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
_AXIS = "candidates"


def devices_for(batch: int) -> int:
    """The number of local devices that share a batch.

    It divides half the batch, so that each device has the same even number of candidates: even and
    odd candidates may be treated differently (`swept` in `methods/orders/search.py`). An odd batch
    stays on one device.
    """
    return 1 if batch % 2 else math.gcd(batch // 2, jax.local_device_count())


def replicated(tree: T, batch: int) -> T:
    """Copies the arrays of `tree` to each device that shares a batch of this size."""
    if devices_for(batch) == 1:
        return tree
    mesh = _mesh(tuple(jax.local_devices()[: devices_for(batch)]))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(
    function: Callable[..., Any],
    batch: int,
    in_axes: tuple[int | None, ...],
    out_axis: int = -1,
    devices: Sequence[Any] | None = None,
    **static: Any,
) -> Callable[..., Any]:
    """Makes `function` run on parts of the batch, one part per device.

    Args:
      function: treats every candidate by itself; it may treat even and odd candidates differently.
      batch: candidates in a call.
      in_axes: for each argument, the axis of the candidates, counted from the front. None: every
        device needs the whole argument, which may then be a pytree.
      out_axis: the axis of the candidates in every result.
      devices: that share the batch; by default those that `devices_for` counts.
      static: keyword arguments that the compiler treats as constants.

    Returns:
      The function over the whole batch; with one device, `function` itself.
    """
    if devices is None:
        devices = jax.local_devices()[: devices_for(batch)]
    if len(devices) == 1:
        return functools.partial(function, **static) if static else function
    mesh = _mesh(tuple(devices))
    return _split(function, mesh, in_axes, out_axis, tuple(static.items()))


def split_draws(function: Callable[..., T], batch: int, *static: Any) -> Callable[..., T]:
    """Makes `function` compute its result [N, B] in parts, one part per device.

    The random numbers are those of one device: what `jax.random` draws for a position in the batch
    does not depend on the device.

    Args:
      function: called with the problem, a key, further arguments and then `static`.
      batch: candidates in a call.
      static: the last arguments, which the compiler treats as constants.

    Returns:
      The function without its static arguments; with one device it is not divided.
    """
    count = devices_for(batch)
    if count == 1:
        return lambda *arguments: function(*arguments, *static)
    return _split_draws(function, _mesh(tuple(jax.local_devices()[:count])), static)


@functools.lru_cache
def _mesh(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), (_AXIS,))


def _along(axis: int, rank: int) -> PartitionSpec:
    axes: list[str | None] = [None] * rank
    axes[axis] = _AXIS
    return PartitionSpec(*axes)


@functools.lru_cache
def _split(
    function: Callable[..., Any],
    mesh: Mesh,
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
        # `check_vma` is off because the loops carry replicated values together with values of one
        # device.
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(*arguments)

    return run


@functools.lru_cache
def _split_draws(
    function: Callable[..., T], mesh: Mesh, static: tuple[Any, ...]
) -> Callable[..., T]:
    def run(*arguments: Any) -> T:
        return function(*arguments, *static)

    return jax.jit(run, out_shardings=NamedSharding(mesh, _along(1, 2)))
