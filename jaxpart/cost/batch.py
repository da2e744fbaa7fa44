"""How many candidates make a step worth its start.

A GPU or TPU needs tens of microseconds to start the kernels of a step, however many candidates it
has. So the device is asked: `evaluate` is timed with more and more candidates, once for each device
and size of problem. The answer is kept beside the compiled programs, because a search depends on
it: the same device always takes the same batches.

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
from jaxpart.environment import cache_folder
from jaxpart.files import write_whole

_MOST = 16_384
_LEAST = 512  # the first size that a search with a CPU batch of its own tries on an accelerator
_FACTOR = 4  # from one size that is tried to the next
_ENOUGH = 0.8  # share of the best throughput: the smallest batch that has it is taken
_RUNS = 3  # of each size; the fastest counts
_FILE = "batches.json"
_MOST_BYTES = 2**32  # that a search keeps for its candidates on an accelerator


def is_accelerator() -> bool:
    """Whether programs run on something other than a CPU."""
    return jax.default_backend() != "cpu"


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
    """
    if not is_accelerator():
        return least
    kept = cache_folder() / _FILE
    key = _key(problem, least)
    known = _read(kept)
    if key not in known:
        known[key] = worthwhile(lambda batch: _seconds(problem, batch), least, _MOST)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(known, indent=1).encode())
    return known[key]


def batch_within(
    problem: DeviceProblem,
    on_cpu: int,
    candidate_bytes: int,
    most_bytes: int = _MOST_BYTES,
    least: int = _LEAST,
) -> int:
    """The batch of a search's steps, where a candidate takes much memory.

    Args:
      problem: on the default device.
      on_cpu: the batch on a CPU, and the least on an accelerator.
      candidate_bytes: of the arrays that a step keeps for each candidate, about.
      most_bytes: of all candidates on an accelerator.
      least: candidates that an accelerator is asked about first.

    Returns:
      `on_cpu` on a CPU. Else what the device likes, or the largest power of two that fits.
    """
    if not is_accelerator():
        return on_cpu
    fits = most_bytes // candidate_bytes
    largest = 1 << (fits.bit_length() - 1) if fits else 0
    return min(candidates_per_step(problem, least), max(on_cpu, largest))


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
            jax.devices()[0].device_kind,
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
