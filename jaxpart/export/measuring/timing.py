"""The time of programs and of exported stages, each alone and warm."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxpart.export.manifest import Manifest, read_stages
from jaxpart.export.running.runtimes import Program, load_stages
from jaxpart.export.running.tensors import Feed, random_feed

_WARM = 2  # runs that are not counted: the first ones allocate, and fill caches
_LONGEST_S = 2.0  # seconds after which no further run begins, once there are a few
_FEWEST = 3  # runs that are counted in any case


def median_seconds(run: Callable[[], object], count: int) -> float:
    """The median time of a call that ends when its work is done.

    Args:
      run: the call.
      count: how often it is timed, 1 or more; less often where that takes seconds.
    """
    for _ in range(_WARM):
        run()
    taken: list[float] = []
    began_s = time.perf_counter()
    while len(taken) < count:
        start_s = time.perf_counter()
        run()
        end_s = time.perf_counter()
        taken.append(end_s - start_s)
        if len(taken) >= _FEWEST and end_s - began_s > _LONGEST_S:
            break
    return statistics.median(taken)


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
    manifest = read_stages(folder)
    programs = load_stages(Path(folder), manifest)
    return seconds_of_programs(manifest, programs, random_feed(manifest.inputs, seed), count)


def seconds_of_programs(
    manifest: Manifest, programs: Sequence[Program], feed: Feed, count: int
) -> list[float]:
    """As `stage_seconds`, of programs that are loaded.

    Args:
      manifest: describes the stages.
      programs: of each stage.
      feed: gives the inputs of an inference.
      count: how often each is timed.
    """
    values: dict[str, object] = dict(feed(0))
    found = []
    for stage, program in zip(manifest.stages, programs, strict=True):
        given = {tensor.name: values[tensor.name] for tensor in stage.inputs}
        values.update(program(given))
        found.append(median_seconds(lambda p=program, g=given: p(g), count))
    return found
