"""Lower bounds from the intervals of edges, proven by exact solvers in the background of a search.

By the triangle rule two chips run all nodes between the ends of an edge (`bounds/intervals.py`).
Half of their work is a lower bound on the bottleneck. The best division of these nodes between two
chips gives a better bound, and is a small integer program.
"""

from __future__ import annotations

from concurrent.futures import Future

from jaxpart.bounds.combinatorial import Bound
from jaxpart.bounds.intervals import distinct_weight_bytes, heaviest_interval, sums, two_chips
from jaxpart.problem.problem import Problem
from jaxpart.runtime.state import Search
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Share of the present bound that half of an interval's work must reach to be worth a process.
_WORTHWHILE_SHARE = 0.5
# Share of the remaining time that a proof may take.
_TIME_SHARE = 0.25
# Seconds that a proof may take where there is no time limit.
_TIMEOUT_S = 60.0


class IntervalProofs:
    """The interval proofs of one search; they run until it is closed."""

    def __init__(self, search: Search) -> None:
        """Starts the proofs that may raise the bound.

        Without a time limit it waits for them, so that the same seed gives the same answer.

        Args:
          search: receives the bounds.
        """
        self._search = search
        is_timed = search.budget.time_limit_s is not None
        limit_s = _TIME_SHARE * search.remaining_s if is_timed else _TIMEOUT_S
        self._pools = [search.open_pool(problem) for problem in _worthwhile(search)]
        self._running: list[Future[Outcome]] = [
            pool.exact(time_limit_s=max(limit_s, 0.1)) for pool in self._pools
        ]
        if not is_timed:
            for future in self._running:
                future.result()
        self.collect()

    def collect(self) -> None:
        """Gives the search the results of the proofs that have ended; never waits."""
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            outcome = future.result()
            if outcome.status is Status.INFEASIBLE and self._search.best is None:
                self._search.exhausted = True
            elif outcome.status is Status.ERROR:
                self._search.notes.append(f"a proof failed: {outcome.message}")
            elif outcome.bound > 0:
                self._search.raise_bound(Bound(outcome.bound, "edge interval"))

    def close(self) -> None:
        """Ends the proofs that run, and their workers."""
        for pool in self._pools:
            pool.close()


def _worthwhile(search: Search) -> list[Problem]:
    """The problems on two chips of the intervals with the most work and with the most weights."""
    problem, rules = search.problem, search.problem.mcm.constraints
    if not (rules.triangle and rules.acyclic) or search.is_proven:
        return []
    found = {}
    slow = heaviest_interval(problem, sums(problem.contracted.node_s.min(axis=1)))
    if slow is not None and slow.amount / 2 >= _WORTHWHILE_SHARE * search.bound.seconds:
        found[slow[1:]] = slow
    large = heaviest_interval(problem, distinct_weight_bytes(problem)) if rules.memory else None
    if large is not None and large.amount > problem.capacity_bytes.max():
        found[large[1:]] = large
    return [two_chips(problem, interval) for interval in found.values()]
