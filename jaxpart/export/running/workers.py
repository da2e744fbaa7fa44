"""A pipeline of stages: a worker thread each, and inferences that pass through them in order.

A few inferences are on the way at a time: while one stage has the second, the next has the first.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpart.export.manifest import Manifest
from jaxpart.export.running.runtimes import Program, as_numpy
from jaxpart.export.running.tensors import Feed

_DEPTH = 2  # inferences that may wait before a stage
_POLL_S = 0.1  # seconds after which a worker that waits looks whether the run is over


@dataclasses.dataclass
class Finished:
    """What a run has shown.

    Attributes:
      outputs: the outputs of the first inferences, as many as were to be kept.
      stage_s: [stages][inferences] seconds that each stage took for each inference.
      latency_s: [inferences] seconds from input to output.
      wall_s: seconds from the first input to the last output.
    """

    outputs: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    stage_s: list[list[float]] = dataclasses.field(default_factory=list)
    latency_s: list[float] = dataclasses.field(default_factory=list)
    wall_s: float = 0.0


@dataclasses.dataclass
class _Inference:
    """One inference on its way: the tensors that a later stage or the host still needs."""

    began_s: float
    values: dict[str, Any]


class _RunOverError(Exception):
    """The run has ended; whoever waits in it leaves."""


class _Link:
    """A bounded queue between two workers, which a run that ends releases."""

    def __init__(self, over: threading.Event) -> None:
        self._queue: queue.Queue[_Inference] = queue.Queue(_DEPTH)
        self._over = over

    def put(self, item: _Inference) -> None:
        while not self._over.is_set():
            try:
                return self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
        raise _RunOverError

    def get(self) -> _Inference:
        while not self._over.is_set():
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        raise _RunOverError


def run_pipeline(
    manifest: Manifest,
    programs: Sequence[Program],
    feed: Feed,
    count: int,
    *,
    keep: int = 0,
    callback: Callable[[int], None] = lambda done: None,
) -> Finished:
    """Passes inferences through the stages.

    Args:
      manifest: describes the stages.
      programs: of each stage.
      feed: gives the inputs of each inference.
      count: number of inferences, 1 or more.
      keep: number of inferences whose outputs are kept.
      callback: called with the number of inferences that are done, each time one is.

    Raises:
      Exception: the first one that a program or `feed` raised.
    """
    over = threading.Event()
    links = [_Link(over) for _ in range(len(programs) + 1)]
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    done = Finished(stage_s=[[] for _ in programs])
    needed = _needed_after(manifest)

    def source() -> None:
        for k in range(count):
            values = dict(feed(k))
            links[0].put(_Inference(time.perf_counter(), values))

    def stage(s: int) -> None:
        names = [given.name for given in manifest.stages[s].inputs]
        for _ in range(count):
            item = links[s].get()
            began_s = time.perf_counter()
            made = programs[s]({name: item.values[name] for name in names})
            done.stage_s[s].append(time.perf_counter() - began_s)
            values = {**item.values, **made}
            item.values = {name: v for name, v in values.items() if name in needed[s]}
            links[s + 1].put(item)

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except _RunOverError:
            pass
        except BaseException as error:  # told to whoever waits for the run
            failures.put(error)
            over.set()

    works: list[Callable[[], None]] = [source]
    works += [lambda s=s: stage(s) for s in range(len(programs))]
    workers = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    began_s = time.perf_counter()
    try:
        for worker in workers:
            worker.start()
        for k in range(count):
            item = links[-1].get()
            done.latency_s.append(time.perf_counter() - item.began_s)
            if k < keep:
                names = [output.name for output in manifest.outputs]
                done.outputs.append({name: as_numpy(item.values[name]) for name in names})
            callback(k + 1)
        done.wall_s = time.perf_counter() - began_s
    except _RunOverError:
        raise failures.get() from None
    finally:
        over.set()
        for worker in workers:
            worker.join()
    return done


def _needed_after(manifest: Manifest) -> list[set[str]]:
    """For each stage, the tensors that a later stage or the host still needs."""
    needed = {output.name for output in manifest.outputs}
    found = []
    for stage in reversed(manifest.stages):
        found.append(set(needed))
        needed |= {given.name for given in stage.inputs}
    return found[::-1]
