"""Shares a batch among all local devices: each device takes an equal part of the candidates.

The device mesh has one axis, the candidates. A program needs no data from the parts of other
devices, so no device waits for another. The results are those of one device, because the batch is
the same. With one device every function here is the identity.

A program that treats each candidate by itself goes through `split` (`jax.shard_map`). One that
draws random numbers gets the numbers of its candidates as an argument, and draws by them.
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
# Candidates that a device has at least, in programs on labels. With fewer it waits longer for the
# program to start than it works: on two cores, 64 candidates in two parts take longer than in one.
LEAST_LABELS = 64
_AXIS = "candidates"


def devices_for(batch: int, least: int = 1) -> int:
    """The number of local devices that share a batch.

    It divides half the batch, so that each device has the same even number of candidates: even and
    odd candidates may be treated differently (`swept` in `methods/orders/search.py`). An odd batch
    stays on one device.

    Args:
      batch: candidates in a call.
      least: candidates that a device has at least, if there are several.
    """
    if batch % 2:
        return 1
    most = math.gcd(batch // 2, jax.local_device_count())
    return max(n for n in range(1, most + 1) if most % n == 0 and (n == 1 or batch // n >= least))


def replicated(tree: T, batch: int, least: int = 1) -> T:
    """Copies the arrays of `tree` to each device that shares a batch; see `devices_for`."""
    count = devices_for(batch, least)
    if count == 1:
        return tree
    mesh = mesh_of(tuple(jax.local_devices()[:count]))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(
    function: Callable[..., Any],
    batch: int,
    in_axes: tuple[int | None, ...],
    out_axis: int = -1,
    devices: Sequence[Any] | None = None,
    least: int = 1,
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
      least: candidates that a device has at least, if there are several.
      static: keyword arguments that the compiler treats as constants.

    Returns:
      The function over the whole batch; with one device, `function` itself.
    """
    if devices is None:
        devices = jax.local_devices()[: devices_for(batch, least)]
    if len(devices) == 1:
        return functools.partial(function, **static) if static else function
    mesh = mesh_of(tuple(devices))
    return _split(function, mesh, in_axes, out_axis, tuple(static.items()))


@functools.lru_cache
def mesh_of(devices: tuple[Any, ...]) -> Mesh:
    """The mesh of devices that share a batch."""
    return Mesh(np.array(devices), (_AXIS,))


def along(axis: int, rank: int) -> PartitionSpec:
    """How an array is divided whose candidates are on `axis`."""
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
    in_specs = tuple(PartitionSpec() if a is None else along(a, a + 1) for a in in_axes)

    @jax.jit
    def run(*arguments: Any) -> Any:
        shapes = jax.eval_shape(function, *arguments)
        out_specs = jax.tree.map(lambda leaf: along(out_axis, leaf.ndim), shapes)
        # `check_vma` is off because the loops carry replicated values together with values of one
        # device.
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(*arguments)

    return run
