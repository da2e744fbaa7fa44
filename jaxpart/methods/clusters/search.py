"""Search over quotient graphs: parallel chips where the model branches.

An order cut into segments (`methods/orders/search.py`) gives a row of chips. On wide graphs the
triangle rule admits many more partitions (`methods/clusters/quotient.py`). This search grows and
improves them (`methods/clusters/growth.py`).
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
    MAX_GROWN,
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

# How often the search gives the engine control: seconds under a time limit, else steps.
_ROUND_S = 0.25
_ROUND_STEPS = 16
# Seconds that a worker's task may grow: usually, and at least.
_TASK_S, _LEAST_TASK_S = 1.0, 0.05
# Seconds before the end of the search at which the last task ends, so that its outcome arrives even
# if the worker has to wait for a core.
_MARGIN_S = 0.3
# Usable cores per worker (the device and the solvers need the others), and the most workers.
_CORES_EACH, _MOST_WORKERS = 2, 8
# Niceness of the workers: the search on the device goes first, workers and solvers share the rest.
_NICENESS = 5
# Failures in a row after which a worker gets no more tasks.
_MOST_FAILURES = 3
_SEEDS = 2**32  # number of seeds to draw a task's seed from


def cluster_search(search: Search) -> Generator[None]:
    """Grows and improves partitions in this process, without end; the engine keeps the budget.

    Adds a note and ends at once where clusters cannot be grown.
    """
    problem = search.problem
    if not can_grow(problem):
        search.notes.append(
            f"clusters are grown for graphs without fixed chips, up to {MAX_GROWN} nodes"
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
        # Without a time limit steps are counted, so that the same seed gives the same result.
        is_timed = search.budget.time_limit_s is not None
        if time.perf_counter() - start_s > _ROUND_S if is_timed else steps >= _ROUND_STEPS:
            yield
            start_s, steps = time.perf_counter(), 0


def clusters_background(search: Search) -> Generator[None]:
    """Grows clusters in the background of other methods.

    Under a time limit, worker processes do it, one per two cores; each step offers what they have
    found. Without a time limit, it is `cluster_search`. Ends where clusters cannot be grown.
    """
    if search.budget.time_limit_s is None:
        yield from cluster_search(search)
        return
    if not can_grow(search.problem):
        return
    with search.compiling():
        compile_growth()  # the workers then load the compiled code
    count = min(max(1, usable_cores() // _CORES_EACH), _MOST_WORKERS)
    with contextlib.closing(search.open_pool(workers=count, niceness=_NICENESS)) as pool:
        growths = [_Growth(search, pool, number) for number in range(count)]
        yield  # workers need a second to start; meanwhile other methods may find a first partition
        while True:
            for growth in growths:
                growth.step()
            yield


def _steps(search: Search, grower: Grower) -> Generator[Step]:
    """Steps without end: a restart from single contracted nodes and one of the best alternate."""
    while True:
        yield from grower.restart(None, search.best_s)
        if search.best is not None:
            yield from grower.restart(of_nodes(search.problem, search.best), search.best_s)


class _Growth:
    """The sequence of tasks of one worker.

    The pool's thread submits the next task as soon as one ends, because seconds may pass between
    two calls of `step`.
    """

    def __init__(self, search: Search, pool: SolverPool, number: int) -> None:
        self._search, self._pool = search, pool
        self._rng = np.random.default_rng([search.seed, number])
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # Even workers begin with a restart of the best, odd ones from single contracted nodes.
        self._last = Grown(Status.TIME_LIMIT, improves_best_next=number % 2 == 0)
        self._is_running = False
        self._failures = 0

    def step(self) -> None:
        """Offers what the worker has found, and gives it a task if it has none. Never waits."""
        search = self._search
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            search.note_failure(outcome)
            if isinstance(outcome, Grown):
                search.samples += outcome.samples
            if outcome.assignment is not None:
                search.offer(outcome.assignment[:, None])
        if not self._is_running and self._failures < _MOST_FAILURES:
            self._submit()

    def _submit(self) -> None:
        """Submits a task that goes on from the last one."""
        search, last = self._search, self._last
        self._is_running = True
        task = self._pool.submit(
            grow,
            best=search.best,
            time_limit_s=max(min(_TASK_S, search.remaining_s - _MARGIN_S), _LEAST_TASK_S),
            bound_s=search.bound.seconds,
            best_s=search.best_s,
            incumbent=last.incumbent,
            stall_limit=last.stall_limit,
            improves_best_next=last.improves_best_next,
            seed=int(self._rng.integers(_SEEDS)),
        )
        task.add_done_callback(self._take)

    def _take(self, task: Future[Outcome]) -> None:
        """Takes the outcome of a task, in the pool's thread, and submits the next one.

        After a failure, `step` submits the next task, which starts without the state of the last.
        """
        outcome = task.result()
        self._outcomes.put(outcome)
        if isinstance(outcome, Grown):
            self._last, self._failures = outcome, 0
            with contextlib.suppress(RuntimeError):  # the pool was closed
                self._submit()
        else:
            self._last, self._failures = Grown(Status.TIME_LIMIT), self._failures + 1
            self._is_running = False
