"""SCIP in the background: a worker repairs candidates and improves the best partition."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.state import Search
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Seconds for one repair.
_REPAIR_S = 2.0
# Seconds for one large-neighbourhood search.
_LNS_S = 4.0
# Nodes of SCIP's search tree for one repair where there is no time limit.
_REPAIR_NODES = 20
# Seconds for such a repair; more than its nodes take, so that time does not change the answer.
_TIMEOUT_S = 60.0


class Workers:
    """The solver tasks of one search: one repair or large-neighbourhood search at a time.

    The worker starts with the first task. Without a time limit the same seed must give the same
    answer:

    - `collect` waits for a repair, which then arrives at the same point of the search in every run;
    - the nodes of SCIP's search tree limit a repair, not its time;
    - there are no large-neighbourhood searches, because their outcome depends on time.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._pool: SolverPool | None = None
        self._task: Future[Outcome] | None = None
        self._improvements = 0
        self._waits = search.budget.time_limit_s is None

    def repair_promising(self) -> None:
        """Starts a repair of the last batch's fastest invalid candidate if it would be the best.

        Does nothing while another task runs.
        """
        candidates = self._search.repair_candidates  # another thread may change it
        if self._task is not None or candidates is None:
            return
        assignments, costs = candidates
        bottleneck = np.where(np.asarray(costs.valid), np.inf, np.asarray(costs.bottleneck_s))
        b = int(bottleneck.argmin())
        # Indexed on the host: on an accelerator a program for it would wait for the next step.
        y = np.asarray(assignments)[: self._search.problem.num_nodes, b].astype(np.int64)
        if self._waits:
            self._task = self._solver.repair(y, time_limit_s=_TIMEOUT_S, nodes=_REPAIR_NODES)
        else:
            self._task = self._solver.repair(y, time_limit_s=self._limit(_REPAIR_S))

    def improve_best(self) -> None:
        """Starts a large-neighbourhood search around the bottleneck of the best partition.

        Does nothing while another task runs, or without a time limit.
        """
        best = self._search.best
        if self._task is None and best is not None and not self._waits:
            self._improvements += 1
            self._task = self._solver.lns(
                best, time_limit_s=self._limit(_LNS_S), seed=self._improvements
            )

    def collect(self) -> None:
        """Gives the search the outcome of a task that has ended; may wait (see the class)."""
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

    def close(self) -> None:
        """Ends the task that runs, and its worker."""
        if self._pool is not None:
            self._pool.close()
