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

# Of the time that is left, the share of a program on fewer chips. The one on all has the rest: a
# solver that begins anew has to learn anew.
_FEWER_SHARE = 0.35
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
REDUCTION, _FEWER, PROGRAM = "reduction", "fewer chips", "integer program, CP-SAT"


class Prover:
    """Proofs from the best so far, one after the other, until the context ends.

    First what the reduction alone proves, then the program on fewer chips where few would do, then
    on all. Without a time limit time must not decide: then there is one program without an end, on
    one thread, and only for a search that waits for it (`always`).
    """

    def __init__(self, search: Search, *, always: bool = False) -> None:
        """Starts nothing yet."""
        self._search = search
        self._is_timed = search.budget.time_limit_s is not None
        self._is_wanted = always or self._is_timed
        self._threads = min(_MOST_THREADS, os.cpu_count() or 1) if self._is_timed else 1
        self._gap = max(_CLOSER * search.budget.gap, _CLOSEST)
        self._pool: SolverPool | None = None
        self._running: Future[Outcome] | None = None
        self._stages = [REDUCTION, _FEWER, PROGRAM]  # first to last
        self._stage = ""

    @property
    def is_running(self) -> bool:
        """Whether a proof is under way."""
        return self._running is not None

    @property
    def is_solving(self) -> bool:
        """Whether a solver is at work, which on the graphs that it takes beats other searches."""
        return self._running is not None and self._stage != REDUCTION

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
        if left_s < _LEAST_S or not self._stages:
            self._is_wanted = False
            return
        self._stage = self._stages.pop(0)
        chips = None
        if self._stage == _FEWER:
            chips = self._fewer_chips() if self._is_timed else None
            if chips is None:
                self._stage = self._stages.pop(0)
            else:
                left_s *= _FEWER_SHARE
        if self._pool is None:
            self._pool = SolverPool(search.problem)
        self._running = self._pool.prove(
            search.best,
            floor_s=search.bound.seconds,
            gap=self._gap,
            prover="reduction" if self._stage == REDUCTION else "cpsat",
            chips=chips,
            threads=self._threads,
            time_limit_s=left_s,
            seed=search.seed,
        )

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
            # On fewer chips nothing is proven but by the reduction.
            method = PROGRAM if self._stage == PROGRAM else REDUCTION
            search.raise_bound(Bound(outcome.bound, method))
        if outcome.status is Status.INFEASIBLE and search.best is None:
            search.exhausted = True
        if outcome.status is Status.ERROR:
            self._is_wanted = False
            search.notes.append(f"a proof failed: {outcome.message}")

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
