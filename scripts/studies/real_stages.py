"""Stages of ONNX as a pipeline of processes, one for each, for `real_pipeline.py`."""

from __future__ import annotations

import multiprocessing
import queue
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import Row

from jaxpart.errors import InputError
from jaxpart.export.manifest import read_stages
from jaxpart.export.running.runtimes import as_numpy, load_onnx
from jaxpart.export.running.tensors import random_feed

BUFFERS = 2  # inferences that may wait before a stage
_WARM = 4  # inferences before the clock starts


def run(folder: Path, inferences: int, seed: int) -> Row:
    """Runs the stages of a folder, each in a process of its own.

    Args:
      folder: of ONNX stages.
      inferences: how many pass through after some to warm up.
      seed: of random inputs; all inferences have the same.

    Returns:
      `real_per_s`, from the first input to the last output, and `in_pipeline_s`, the median of each
      stage.

    Raises:
      InputError: a stage ended before it was done.
    """
    manifest = read_stages(folder)
    context = multiprocessing.get_context("spawn")
    links = [context.Queue(BUFFERS) for _ in range(len(manifest.stages) + 1)]
    times: Any = context.SimpleQueue()
    total = inferences + _WARM
    workers = [
        context.Process(target=_stage, args=(str(folder), s, total, links[s], links[s + 1], times))
        for s in range(len(manifest.stages))
    ]
    for worker in workers:
        worker.start()
    feed = dict(random_feed(manifest.inputs, seed)(0))
    sent = received = 0
    began_s = 0.0
    try:
        while received < total:
            while sent < total and sent - received < len(links) * BUFFERS:
                links[0].put(feed)
                sent += 1
            _next(links[-1], workers, folder)
            received += 1
            if received == _WARM:
                began_s = time.perf_counter()
        wall_s = time.perf_counter() - began_s
        medians = dict(times.get() for _ in workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    taken = [medians[s] for s in range(len(workers))]
    return {"real_per_s": inferences / wall_s, "in_pipeline_s": taken}


def _next(link: Any, workers: Sequence[Any], folder: Path) -> Any:
    """The next output; an error if a worker has ended without one."""
    while True:
        try:
            return link.get(timeout=1.0)
        except queue.Empty as error:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise InputError(f"{folder}: a stage ended, expected outputs") from error


def _stage(folder: str, number: int, total: int, source: Any, target: Any, times: Any) -> None:
    """One stage, in a process of its own."""
    manifest = read_stages(folder)
    stage = manifest.stages[number]
    program = load_onnx(Path(folder) / stage.file)
    later = manifest.stages[number + 1 :]
    needed = {given.name for other in later for given in other.inputs}
    needed |= {output.name for output in manifest.outputs}
    taken = []
    for _ in range(total):
        values = source.get()
        began_s = time.perf_counter()
        made = program({given.name: values[given.name] for given in stage.inputs})
        taken.append(time.perf_counter() - began_s)
        values = {**values, **{name: as_numpy(value) for name, value in made.items()}}
        target.put({name: value for name, value in values.items() if name in needed})
    times.put((number, statistics.median(taken[_WARM:])))
    target.close()
    target.join_thread()
