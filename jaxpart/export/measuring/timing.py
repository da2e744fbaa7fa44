"""The time of programs and of exported stages, each alone and warm."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpart.export.manifest import Manifest, read_stages
from jaxpart.export.running.runtimes import Program, load_stages
from jaxpart.export.running.tensors import Feed, random_feed
from jaxpart.problem.problem import FloatArray

# Times each stage of a partition, one after the other: given how often, the seconds of each.
Walk = Callable[[int], Sequence[float]]
Clock = Callable[[], float]

_IN_ROUND = 3  # runs that are timed in a round
_LONGEST_S = 2.0  # seconds after which no further run begins, once there are a few
_ROUNDS_S = 30.0  # seconds after which no further round begins
_FEWEST = 3  # runs that are counted in any case
_HELD_BYTES = 2**32  # weights of all programs that stay in memory between rounds


def clock_of(platform: str) -> Clock:
    """What measures programs: the clock on the wall, or that of the process.

    The clock of the process stops while another process has the core. It tells what a program takes
    where the process may use one core alone, and the device is that core.

    Args:
      platform: of the device, as JAX names it.
    """
    if platform == "cpu" and hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1:
        return time.process_time
    return time.perf_counter


def median_seconds(run: Callable[[], object], count: int, clock: Clock) -> float:
    """The median time of a call that ends when its work is done.

    Args:
      run: the call; it runs once before, since the first run allocates and fills caches.
      count: how often it is timed, 1 or more; less often where that takes seconds.
      clock: what measures it.
    """
    run()
    taken: list[float] = []
    began_s = time.perf_counter()
    while len(taken) < count:
        start_s = clock()
        run()
        taken.append(clock() - start_s)
        if len(taken) >= _FEWEST and time.perf_counter() - began_s > _LONGEST_S:
            break
    return statistics.median(taken)


def in_rounds(walks: Sequence[Walk], count: int, longest_s: float = _ROUNDS_S) -> list[FloatArray]:
    """Times partitions in turn, several times over.

    Whatever else the machine does slows a program down, for milliseconds or for minutes, and never
    speeds it up. A round takes the median of a few runs of each stage, and the rounds of a stage
    are as far from each other as can be: the least of them is what the stage takes by itself.

    Args:
      walks: of each partition.
      count: how often each stage is timed.
      longest_s: seconds after which no further round begins.

    Returns:
      For each partition [rounds, stages] seconds.
    """
    rounds: list[list[Sequence[float]]] = [[] for _ in walks]
    began_s = time.perf_counter()
    for done in range(0, count, _IN_ROUND):
        for walk, found in zip(walks, rounds, strict=True):
            found.append(walk(min(_IN_ROUND, count - done)))
        if time.perf_counter() - began_s > longest_s:
            break
    return [np.array(found, np.float64) for found in rounds]


def stage_seconds(folder: str | os.PathLike[str], *, count: int = 20, seed: int = 0) -> list[float]:
    """Runs the stages of a folder one after the other, and times each alone on its device.

    Args:
      folder: of stages.
      count: how often each is timed.
      seed: of the random inputs.

    Returns:
      Seconds of each stage, in the order of the manifest, without transfers.

    Raises:
      InputError: the folder or a stage cannot be read or run.
    """
    return in_rounds([walk_of(folder, seed=seed)], count)[0].min(axis=0).tolist()


def walk_of(
    folder: str | os.PathLike[str], *, feed: Feed | None = None, seed: int = 0, beside: int = 1
) -> Walk:
    """What times the stages of a folder; as `stage_seconds`.

    The folder is checked at once. Its programs are loaded once too, and stay in memory; unless the
    weights are so large that several folders would not fit: then each round loads them again.

    Args:
      folder: of stages.
      feed: gives the inputs; None: random ones.
      seed: of the random inputs.
      beside: how many folders of about this size are timed in turn.
    """
    manifest = read_stages(folder)
    feed = random_feed(manifest.inputs, seed) if feed is None else feed
    clock = clock_of(_platform(manifest))

    def load() -> list[Program]:
        return load_stages(Path(folder), manifest)

    if beside * sum(stage.weight_bytes for stage in manifest.stages) > _HELD_BYTES:
        return lambda count: _seconds(manifest, load(), feed, count, clock)
    programs = load()
    return lambda count: _seconds(manifest, programs, feed, count, clock)


def _platform(manifest: Manifest) -> str:
    """Of the device on which stages run, as JAX names it."""
    if manifest.kind == "onnx":
        return "cpu"
    import jax

    return jax.default_backend()


def _seconds(
    manifest: Manifest, programs: Sequence[Program], feed: Feed, count: int, clock: Clock
) -> list[float]:
    """Times the stages of a folder one after the other: the median of some runs of each."""
    values: dict[str, Any] = dict(feed(0))
    found = []
    for stage, program in zip(manifest.stages, programs, strict=True):
        given = {tensor.name: values[tensor.name] for tensor in stage.inputs}
        values.update(program(given))
        found.append(median_seconds(lambda p=program, g=given: p(g), count, clock))
    return found
