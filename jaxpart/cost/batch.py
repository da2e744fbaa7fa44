"""How many candidates make a step worth its start.

A GPU or TPU needs tens of microseconds to start the kernels of a step, however many candidates it
has. So the device is asked: `evaluate` is timed with more and more candidates, once for each kind
of device and size of problem. The answer is kept beside the compiled programs, because a search
depends on it: the same device always takes the same batches. Devices that share a step each take
what one of them likes.

A CPU is not asked. It works through a batch in chunks that fit its cache, so more candidates gain
nothing, and a search reacts sooner to few.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.evaluate import evaluate
from jaxpart.cost.sharding import device_count
from jaxpart.environment import backend, cache_folder, default_device, share_of_memory
from jaxpart.files import write_whole

_MOST = 16_384
_LEAST = 512  # the first size that a search with a CPU batch of its own tries on an accelerator
_FACTOR = 4  # from one size that is tried to the next
_ENOUGH = 0.8  # share of the best throughput: the smallest batch that has it is taken
_RUNS = 3  # of each size; the fastest counts
_FILE = "batches.json"
# Of an accelerator's memory a search keeps this share for its candidates, or so many bytes where
# the device does not say how much it has.
_MOST_SHARE, _MOST_BYTES = 1 / 8, 2**32


def is_accelerator() -> bool:
    """Whether programs run on something other than a CPU."""
    return backend() != "cpu"


def steps_ahead() -> int:
    """Steps that a device computes before the host looks at the one before them.

    A GPU or TPU so never waits for the host. On a CPU both share the cores, and looking at once
    lets a search react at once.
    """
    return int(is_accelerator())


def candidates_per_step(problem: DeviceProblem, least: int) -> int:
    """The batch of a search's steps.

    Args:
      problem: on the default device.
      least: candidates that the method wants at least; a CPU gets no more.

    Returns:
      The candidates of all devices that share the step.
    """
    if not is_accelerator():
        return least
    return device_count() * _liked(problem, least)


def _liked(problem: DeviceProblem, least: int) -> int:
    """The candidates that one accelerator likes, from the cache if it was asked before."""
    kept = cache_folder() / _FILE
    key = _key(problem, least)
    known = _read(kept)
    if not least <= known.get(key, 0) <= max(least, _MOST):
        known[key] = worthwhile(lambda batch: _seconds(problem, batch), least, _MOST)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(known, indent=1).encode())
    return known[key]


def batch_within(
    problem: DeviceProblem,
    on_cpu: int,
    candidate_bytes: int,
    most_bytes: int | None = None,
    least: int = _LEAST,
    *,
    is_shared: bool = True,
) -> int:
    """The batch of a search's steps, where a candidate takes much memory.

    Args:
      problem: on the default device.
      on_cpu: the batch on a CPU, and the least on an accelerator.
      candidate_bytes: of the arrays that a step keeps for each candidate, about.
      most_bytes: of the candidates on one accelerator. None: an eighth of its memory.
      least: candidates that an accelerator is asked about first.
      is_shared: whether all local devices share the batch.

    Returns:
      `on_cpu` on a CPU. Else what the devices like, or the largest power of two that fits on each.
    """
    if not is_accelerator():
        return on_cpu
    if most_bytes is None:
        most_bytes = share_of_memory(_MOST_SHARE, _MOST_BYTES)
    fits = most_bytes // candidate_bytes
    largest = 1 << (fits.bit_length() - 1) if fits else 0
    count = device_count() if is_shared else 1
    return count * min(_liked(problem, least), max(-(-on_cpu // count), largest))


def worthwhile(seconds: Callable[[int], float], least: int, most: int) -> int:
    """The smallest batch with nearly the best throughput.

    Args:
      seconds: of one step, for a batch.
      least: the first batch that is tried; the next ones are 4 times the one before.
      most: the largest batch; at least `least`.
    """
    sizes = [least]
    while sizes[-1] * _FACTOR <= most:
        sizes.append(sizes[-1] * _FACTOR)
    rates = [size / seconds(size) for size in sizes]
    return next(
        size for size, rate in zip(sizes, rates, strict=True) if rate >= _ENOUGH * max(rates)
    )


def _seconds(problem: DeviceProblem, batch: int) -> float:
    """Seconds of one `evaluate`, without its compilation."""
    labels = jnp.zeros((problem.padded_nodes, batch), problem.config.chip_dtype)
    jax.block_until_ready(evaluate(problem, labels))
    runs = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(evaluate(problem, labels))
        runs.append(time.perf_counter() - start)
    return min(runs)


def _key(problem: DeviceProblem, least: int) -> str:
    config = problem.config
    return ", ".join(
        [
            default_device().device_kind,
            f"jax {jax.__version__}",
            f"{problem.padded_nodes} nodes",
            f"{config.num_chips} chips",
            config.topology,
            config.memory_model,
            f"from {least}",
        ]
    )


def _read(path: Path) -> dict[str, int]:
    """The kept answers; none if the file is missing or damaged: they can be found again."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if type(v) is int} if isinstance(found, dict) else {}
