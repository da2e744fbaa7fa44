"""The integer program beside the search, in a process of its own: proofs, and what they find."""

from __future__ import annotations

import os
from concurrent.futures import Future
from types import TracebackType

from jaxpart.bound import Bound
from jaxpart.search.state import Search
from jaxpart.solver.pool import SolverPool
from jaxpart.solver.repair import Outcome
from jaxpart.solver.scip import Status

# The first slice of the program, each next one twice as long: what the search found meanwhile
# shrinks the program, and no more than half of the time is lost by beginning anew.
_FIRST_SLICE_S = 6.0
_FOREVER_S = 1e6
# Of the time that is left, how much a slice may take: its outcome must be home before the end.
_SHARE = 0.95
_LEAST_S = 0.5
# A proof stops this much closer than the gap that is wanted.
_CLOSER = 0.9
_CLOSEST = 1e-6
_MOST_THREADS = 8
# Shares of the chips: at most so many are few; and how many more than all work needs at the bound.
_FEW = 0.75
_ROOM = 1.1
REDUCTION, PROGRAM = "reduction", "integer program, CP-SAT"


class Prover:
    """Proofs from the best so far, one after the other, until the context ends.

    First what the reduction alone proves, then the program in slices of time, every other one on
    fewer chips where few would do. Without a time limit
    time must not decide: then there is one slice without an end, on one thread, and only for a
    search that waits for it (`always`).
    """

    def __init__(self, search: Search, *, always: bool = False, beside: int = 1) -> None:
        """Starts nothing yet.

        Args:
          beside: processes that the search keeps busy beside this one.
        """
        self._search = search
        self._is_timed = search.budget.time_limit_s is not None
        self._is_wanted = always or self._is_timed
        self._threads = 1
        if self._is_timed:
            self._threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) - beside))
        self._gap = max(_CLOSER * search.budget.gap, _CLOSEST)
        self._pool: SolverPool | None = None
        self._running: Future[Outcome] | None = None
        self._rounds = 0

    @property
    def is_running(self) -> bool:
        """Whether a proof is under way, or there is time for the next."""
        return self._running is not None

    def step(self) -> None:
        """Takes what was proven and found, and goes on; never waits."""
        if self._running is not None and self._running.done():
            outcome, self._running = self._running.result(), None
            self._take(outcome)
        if self._running is None and self._is_wanted and not self._search.is_over:
            self._start()

    def _start(self) -> None:
        search = self._search
        left_s = _SHARE * search.remaining_s if self._is_timed else _FOREVER_S
        if left_s < _LEAST_S:
            self._is_wanted = False
            return
        slice_s = left_s
        if self._is_timed:
            slice_s = min(slice_s, _FIRST_SLICE_S * 2.0 ** max(0, self._rounds - 1))
            # What is left after it would not be worth a slice.
            slice_s = left_s if left_s < 1.5 * slice_s else slice_s
        if self._pool is None:
            self._pool = SolverPool(search.problem)
        self._running = self._pool.prove(
            search.best,
            floor_s=search.bound.seconds,
            gap=self._gap,
            prover="cpsat" if self._rounds else "reduction",
            chips=self._fewer_chips() if self._is_timed and self._rounds % 2 else None,
            threads=self._threads,
            time_limit_s=slice_s,
            seed=search.seed + self._rounds,
        )
        self._rounds += 1

    def _fewer_chips(self) -> int | None:
        """Chips that could do with the bottleneck that is proven; None where that is most of them.

        Where one node or one interval sets the bottleneck, many chips add nothing but bits.
        """
        problem, bound_s = self._search.problem, self._search.bound.seconds
        work_s = float(problem.node_s.min(axis=1).sum())
        if bound_s <= 0 or work_s > _FEW * problem.num_chips * bound_s:
            return None
        return min(problem.num_chips, int(_ROOM * work_s / bound_s) + 2)

    def _take(self, outcome: Outcome) -> None:
        search = self._search
        search.samples += 1
        if outcome.assignment is not None:
            search.offer(outcome.assignment[:, None])
        if outcome.bound > 0:
            search.raise_bound(Bound(outcome.bound, REDUCTION if self._rounds == 1 else PROGRAM))
        if outcome.status is Status.INFEASIBLE and search.best is None:
            search.exhausted = True
        if outcome.status is Status.ERROR:
            self._is_wanted = False
            search.notes.append(f"a proof failed: {outcome.message}")
        if self._rounds > 1 and outcome.status in (Status.OPTIMAL, Status.INFEASIBLE):
            self._is_wanted = False

    def __enter__(self) -> Prover:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()
