"""Search over quotient graphs: chips side by side where the model branches.

Orders cut into pieces (`orders`) give chips in a row. On wide graphs the triangle rule admits much
more: clusters of nodes whose graph has no edge with a longer path beside it (`clusters.quotient`),
grown and improved by `clusters.growth`.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Generator
from concurrent.futures import Future

import numpy as np

from jaxpart.environment import usable_cores
from jaxpart.methods.clusters.growth import (
    MAX_CONTRACTED,
    Grower,
    Step,
    can_grow,
    compile_growth,
    of_nodes,
)
from jaxpart.methods.clusters.task import Grown, grow
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.state import Search
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Candidates are offered, and the engine asked, about so often.
_ROUND_S = 0.25
_ROUND_STEPS = 16
# What a worker finds is home after so many seconds; the last before the end, though it may first
# have to wait for its turn.
_SLICE_S = 1.0
_LEAST_SLICE_S, _WAY_HOME_S = 0.05, 0.3
# Cores for each worker (the others are the device's and the solvers'), and the most workers.
_CORES_EACH, _MOST_WORKERS = 2, 8
# They give way to what searches on the device, and share what it leaves with the solvers.
_NICENESS = 5
# Failures in a row after which a worker gets no more work.
_MOST_FAILURES = 3
_SEEDS = 2**32


def cluster_search(search: Search) -> Generator[None]:
    """Grows and improves partitions until the budget is spent; nothing where it cannot work."""
    problem = search.problem
    if not can_grow(problem):
        search.notes.append(
            f"clusters are grown for graphs without fixed chips, up to {MAX_CONTRACTED} nodes"
        )
        return
    with search.compiling():
        compile_growth()
    search.start_clock()
    search.enter("clusters")
    grower = Grower(problem, search.bound.seconds, np.random.default_rng(search.seed))
    start_s, steps = time.perf_counter(), 0
    for step in _steps(search, grower):
        search.samples += 1
        steps += 1
        candidate = step.grown
        if candidate is not None:
            merit = candidate.merit
            if merit.overfull == 0 and merit.bottleneck_s < search.best_s:
                search.offer(candidate.labels[problem.contraction][:, None])
        # Without a time limit steps are counted, so that the same seed gives the same answer.
        is_timed = search.budget.time_limit_s is not None
        if time.perf_counter() - start_s > _ROUND_S if is_timed else steps >= _ROUND_STEPS:
            yield
            start_s, steps = time.perf_counter(), 0


def clusters_background(search: Search) -> Generator[None]:
    """Grows clusters beside other methods.

    Under a time limit processes of their own do it, one for two cores, and a step takes in what
    they have found. Ends where clusters cannot be grown.
    """
    if search.budget.time_limit_s is None:
        yield from cluster_search(search)
        return
    if not can_grow(search.problem):
        return
    with search.compiling():
        compile_growth()  # the workers read what was compiled here
    count = min(max(1, usable_cores() // _CORES_EACH), _MOST_WORKERS)
    with contextlib.closing(search.open_pool(workers=count, niceness=_NICENESS)) as pool:
        growths = [_Growth(search, pool, number) for number in range(count)]
        yield  # workers take a second to start: meanwhile the caller may find what to begin with
        while True:
            for growth in growths:
                growth.step()
            yield


def _steps(search: Search, grower: Grower) -> Generator[Step]:
    """Without end: lives of fresh partitions, and in turn with them those of the best."""
    while True:
        yield from grower.restart(None, search.best_s)
        if search.best is not None:
            yield from grower.restart(of_nodes(search.problem, search.best), search.best_s)


class _Growth:
    """One worker's lives, slice by slice.

    The next slice is asked for as soon as one is home, by the pool's thread: whoever steps may be
    away for seconds.
    """

    def __init__(self, search: Search, pool: SolverPool, number: int) -> None:
        self._search, self._pool = search, pool
        self._rng = np.random.default_rng([search.seed, number])
        self._home: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # The first goes on from the best, the second begins with fresh ones, and so on.
        self._last = Grown(Status.TIME_LIMIT, is_turn_of_best=number % 2 == 0)
        self._is_under_way = False
        self._failures = 0

    def step(self) -> None:
        """Takes in what is home, and sees to it that there is work; never waits."""
        search = self._search
        while not self._home.empty():
            outcome = self._home.get()
            search.note_failure(outcome)
            if isinstance(outcome, Grown):
                search.samples += outcome.samples
            if outcome.assignment is not None:
                search.offer(outcome.assignment[:, None])
        if not self._is_under_way and self._failures < _MOST_FAILURES:
            self._ask()

    def _ask(self) -> None:
        search, last = self._search, self._last
        self._is_under_way = True
        task = self._pool.submit(
            grow,
            best=search.best,
            time_limit_s=max(min(_SLICE_S, search.remaining_s - _WAY_HOME_S), _LEAST_SLICE_S),
            bound_s=search.bound.seconds,
            best_s=search.best_s,
            incumbent=last.incumbent,
            stall_limit=last.stall_limit,
            is_turn_of_best=last.is_turn_of_best,
            seed=int(self._rng.integers(_SEEDS)),
        )
        task.add_done_callback(self._take)

    def _take(self, task: Future[Outcome]) -> None:
        """Runs in the pool's thread. After a failure the next step begins anew."""
        outcome = task.result()
        self._home.put(outcome)
        if isinstance(outcome, Grown):
            self._last, self._failures = outcome, 0
            with contextlib.suppress(RuntimeError):  # the pool was closed
                self._ask()
        else:
            self._last, self._failures = Grown(Status.TIME_LIMIT), self._failures + 1
            self._is_under_way = False
