"""Proofs from the intervals of edges, solved exactly in processes beside the search.

By the triangle rule two chips run all that lies between the ends of an edge (`jaxpart.intervals`).
Half of it bounds the bottleneck from below; the best way to share it out between two chips is a
better bound, and a small integer program.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType

from jaxpart.bounds.combinatorial import Bound
from jaxpart.bounds.intervals import distinct_weight_bytes, heaviest_interval, sums, two_chips
from jaxpart.problem.problem import Problem
from jaxpart.runtime.state import Search
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Halves below this share of the best bound are not worth a process.
_NEAR = 0.5
# The share of the time that a proof may take, and its seconds where there is no time limit.
_SHARE = 0.25
_TIMEOUT_S = 60.0


class IntervalProofs:
    """The proofs of one search, from when it is made until the context ends."""

    def __init__(self, search: Search) -> None:
        """Starts the proofs that could be of use."""
        self._search = search
        is_timed = search.budget.time_limit_s is not None
        limit_s = _SHARE * search.remaining_s if is_timed else _TIMEOUT_S
        self._pools = [search.open_pool(problem) for problem in _worthwhile(search)]
        self._running: list[Future[Outcome]] = [
            pool.exact(time_limit_s=max(limit_s, 0.1)) for pool in self._pools
        ]
        if not is_timed:  # the same seed gives the same answer
            for future in self._running:
                future.result()
        self.collect()

    def collect(self) -> None:
        """Takes what has been proven."""
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            outcome = future.result()
            if outcome.status is Status.INFEASIBLE and self._search.best is None:
                self._search.exhausted = True
            elif outcome.status is Status.ERROR:
                self._search.notes.append(f"a proof failed: {outcome.message}")
            elif outcome.bound > 0:
                self._search.raise_bound(Bound(outcome.bound, "edge interval"))

    def __enter__(self) -> IntervalProofs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.close()


def _worthwhile(search: Search) -> list[Problem]:
    """The intervals that take two chips longest, and that fill two chips most."""
    problem, rules = search.problem, search.problem.mcm.constraints
    if not (rules.triangle and rules.acyclic) or search.is_proven:
        return []
    found = {}
    slow = heaviest_interval(problem, sums(problem.contracted.node_s.min(axis=1)))
    if slow is not None and slow.amount / 2 >= _NEAR * search.bound.seconds:
        found[slow[1:]] = slow
    large = heaviest_interval(problem, distinct_weight_bytes(problem)) if rules.memory else None
    if large is not None and large.amount > problem.capacity_bytes.max():
        found[large[1:]] = large
    return [two_chips(problem, interval) for interval in found.values()]
