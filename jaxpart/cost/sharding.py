"""Shares a batch among all local devices: each device takes an equal part of the candidates.

The device mesh has one axis, the candidates. A program needs no data from the parts of other
devices, so no device waits for another. The results are those of one device, because the batch is
the same. With one device every function here is the identity. So it is where
`jax.default_device` is set: then this device has the whole batch.

A program that treats each candidate by itself goes through `split` (`jax.shard_map`). One that
draws random numbers gets the numbers of its candidates as an argument, and draws by them; or it
draws for all, and `divided` says which part each device needs. A mean over the candidates is the
mean of those of the devices, the one thing that they exchange.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpart.environment import is_device_chosen

T = TypeVar("T")
# Candidates that a device has at least, in programs on labels. With fewer it waits longer for the
# program to start than it works: on two cores, 64 candidates in two parts take longer than in one.
LEAST_LABELS = 64
_AXIS = "candidates"


def device_count() -> int:
    """The number of devices that may share a batch."""
    return 1 if is_device_chosen() else jax.local_device_count()


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
    most = math.gcd(batch // 2, device_count())
    return max(n for n in range(1, most + 1) if most % n == 0 and (n == 1 or batch // n >= least))


def mesh_for(batch: int, least: int = 1) -> Mesh | None:
    """The mesh of the devices that share a batch; None: one device has all of it."""
    count = devices_for(batch, least)
    return None if count == 1 else mesh_of(tuple(jax.local_devices()[:count]))


def replicated(tree: T, batch: int, least: int = 1) -> T:
    """Copies the arrays of `tree` to each device that shares a batch; see `devices_for`."""
    mesh = mesh_for(batch, least)
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def divided(tree: T, mesh: Mesh | None) -> T:
    """Inside a program: each device computes its part of the candidates, on the last axis.

    This is for programs that draw with `jax.random`. The program draws for the whole batch, each
    number by its place in it, and XLA leaves each device its part. So draws do not depend on the
    number of devices.
    """
    if mesh is None:
        return tree

    def part(leaf: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(leaf, NamedSharding(mesh, along(-1, leaf.ndim)))

    return jax.tree.map(part, tree)


def split(
    function: Callable[..., Any],
    batch: int,
    in_axes: tuple[int | None, ...],
    out_axis: int | None = -1,
    devices: Sequence[Any] | None = None,
    least: int = 1,
    **static: Any,
) -> Callable[..., Any]:
    """Makes `function` run on parts of the batch, one part per device.

    Args:
      function: treats every candidate by itself; it may treat even and odd candidates differently.
      batch: candidates in a call.
      in_axes: for each argument, the axis of the candidates in each of its arrays. None: every
        device needs the whole argument.
      out_axis: the axis of the candidates in every result. None: results are means over the
        candidates, of floats; the devices average theirs.
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


def over_devices(
    function: Callable[..., Any],
    parts: int,
    in_axes: tuple[int | None, ...],
    arguments: tuple[Any, ...],
    **static: Any,
) -> Any:
    """Calls a function whose results are means over the candidates, on parts of the batch.

    Args:
      function: as in `split`, with `out_axis` None.
      parts: equal parts of the batch. Each device gets as many, so it may be fewer devices than
        hold the batch.
      in_axes: as in `split`.
      arguments: of `function`, on any devices.
      static: as in `split`.
    """
    total = device_count()
    devices = tuple(jax.local_devices()[: math.gcd(parts, total)])
    if total > 1:
        mesh = mesh_of(devices)

        def placed(axis: int | None, leaf: Any) -> NamedSharding:
            ndim = jnp.ndim(leaf)
            return NamedSharding(mesh, PartitionSpec() if axis is None else along(axis, ndim))

        places = tuple(
            jax.tree.map(functools.partial(placed, axis), tree)
            for axis, tree in zip(in_axes, arguments, strict=True)
        )
        arguments = jax.device_put(arguments, places)
    return split(function, parts, in_axes, None, devices, **static)(*arguments)


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
    out_axis: int | None,
    static: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    function = functools.partial(function, **dict(static))

    def specs(axis: int | None, tree: Any) -> Any:
        if axis is None:
            return PartitionSpec()
        return jax.tree.map(lambda leaf: along(axis, jnp.ndim(leaf)), tree)

    def averaged(*arguments: Any) -> Any:
        # As one vector, so that the devices wait for each other once.
        whole, parts = ravel_pytree(function(*arguments))
        return parts(lax.pmean(whole, _AXIS))

    @jax.jit
    def run(*arguments: Any) -> Any:
        # `check_vma` is off because the loops carry replicated values together with values of one
        # device.
        return jax.shard_map(
            averaged if out_axis is None else function,
            mesh=mesh,
            in_specs=tuple(map(specs, in_axes, arguments)),
            out_specs=specs(out_axis, jax.eval_shape(function, *arguments)),
            check_vma=False,
        )(*arguments)

    return run
