"""SCIP beside the search: repairs and polishes in a worker process, offered when they end."""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType

import numpy as np

from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.state import Search
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

_REPAIR_S = 2.0
_POLISH_S = 4.0
# Where time must not decide: few nodes, and more time than they take.
_REPAIR_NODES = 20
_TIMEOUT_S = 60.0


class Workers:
    """The solver's tasks of one search: at most one repair or polish at a time.

    The process starts with the first task. Without a time limit the same seed must give the same
    answer: then `collect` waits for repairs, so that they arrive at the same point of the search in
    every run, and nodes of the search tree limit them; polishes, whose outcome time decides,
    are not made.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._pool: SolverPool | None = None
        self._task: Future[Outcome] | None = None
        self._improvements = 0
        self._waits = search.budget.time_limit_s is None

    def repair_promising(self) -> None:
        """Asks for a repair of the last batch's fastest candidate, where only that it is invalid
        keeps it from being the best."""
        if self._task is not None or self._search.repair_candidates is None:
            return
        assignments, costs = self._search.repair_candidates
        bottleneck = np.where(np.asarray(costs.valid), np.inf, np.asarray(costs.bottleneck_s))
        b = int(bottleneck.argmin())
        y = np.asarray(assignments[:, b])[: self._search.problem.num_nodes].astype(np.int64)
        if self._waits:
            self._task = self._solver.repair(y, time_limit_s=_TIMEOUT_S, nodes=_REPAIR_NODES)
        else:
            self._task = self._solver.repair(y, time_limit_s=self._limit(_REPAIR_S))

    def improve_best(self) -> None:
        """Asks for a better partition around the best one's bottleneck."""
        best = self._search.best
        if self._task is None and best is not None and not self._waits:
            self._improvements += 1
            self._task = self._solver.lns(
                best, time_limit_s=self._limit(_POLISH_S), seed=self._improvements
            )

    def collect(self) -> None:
        """Offers what has ended."""
        task = self._task
        if task is not None and (self._waits or task.done()):
            self._task = None
            self._take(task.result())

    def _take(self, outcome: Outcome) -> None:
        self._search.samples += 1
        if outcome.assignment is not None:
            self._search.offer(outcome.assignment[:, None])
        elif outcome.status is Status.INFEASIBLE and self._search.best is None:
            self._search.exhausted = True
        self._search.note_failure(outcome)

    def _limit(self, seconds: float) -> float:
        return max(0.1, min(seconds, self._search.remaining_s))

    @property
    def _solver(self) -> SolverPool:
        if self._pool is None:
            self._pool = self._search.open_pool()
        return self._pool

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()
