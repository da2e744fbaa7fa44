"""The integer program beside the search, in a process of its own: proofs, and what they find."""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType

import numpy as np

from jaxpart.bounds.combinatorial import Bound
from jaxpart.environment import usable_cores
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.state import Search, is_small
from jaxpart.solvers.prove import Prover as Prove
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Shares of the time that is left for a program on fewer chips, and for a bound from one chip at a
# time. The program on all chips has the rest: a solver that begins anew has to learn anew.
_SHARES = {"fewer chips": 0.4, "superblocks": 0.4}
# Above this gap the program is not about to close it.
_WIDE = 1.01
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
REDUCTION, SUPERBLOCKS, _FEWER = "reduction", "superblocks", "fewer chips"
PROGRAM = "integer program, CP-SAT"


class Prover:
    """Proofs from the best so far, one after the other, until the context ends.

    First what the reduction alone proves; then the program on fewer chips where few would do; where
    the whole program is large and the gap is wide, the bound from one chip at a time; then all.
    Without a time limit time must not decide: then there is one program without an end, on one
    thread, and only for a search that waits for it (`always`).
    """

    def __init__(self, search: Search, *, always: bool = False) -> None:
        """Starts nothing yet."""
        self._search = search
        self._is_timed = search.budget.time_limit_s is not None
        self._is_wanted = always or self._is_timed
        self._threads = min(_MOST_THREADS, usable_cores()) if self._is_timed else 1
        self._gap = max(_CLOSER * search.budget.gap, _CLOSEST)
        self._pool: SolverPool | None = None
        self._running: Future[Outcome] | None = None
        self._stages = [REDUCTION, _FEWER, SUPERBLOCKS, PROGRAM]  # first to last
        self._stage = ""

    @property
    def is_running(self) -> bool:
        """Whether a proof is under way."""
        return self._running is not None

    @property
    def is_solving(self) -> bool:
        """Whether a solver is at work, which on the graphs that it takes beats other searches."""
        return self._running is not None and self._stage in (_FEWER, PROGRAM)

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
        chips = self._fewer_chips() if self._is_timed else None
        is_left_out = {SUPERBLOCKS: not self._is_wide(), _FEWER: chips is None}
        self._stages = [stage for stage in self._stages if not is_left_out.get(stage, False)]
        self._stage = self._stages.pop(0)
        left_s *= _SHARES.get(self._stage, 1.0)
        provers: dict[str, Prove] = {REDUCTION: "reduction", SUPERBLOCKS: "superblocks"}
        if self._pool is None:
            self._pool = search.open_pool()
        self._running = self._pool.prove(
            search.best,
            floor_s=search.bound.seconds,
            gap=self._gap,
            prover=provers.get(self._stage, "cpsat"),
            chips=chips if self._stage == _FEWER else None,
            threads=self._threads,
            time_limit_s=left_s,
            seed=search.seed,
        )

    def _is_wide(self) -> bool:
        search = self._search
        is_open = search.bound.seconds * _WIDE < search.best_s < np.inf
        return self._is_timed and is_open and not is_small(search.problem)

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
            method = REDUCTION if self._stage == _FEWER else self._stage
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
