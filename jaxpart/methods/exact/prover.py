"""Proofs in the background of a search, by `prove` of `solvers/prove.py` in a worker process."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from jaxpart.bounds.combinatorial import Bound
from jaxpart.environment import usable_cores
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.state import Search, is_small
from jaxpart.solvers.prove import Prover as ProverName
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Share of the remaining time for a stage. The other stages may take all of it: the program on all
# chips runs once to the end, because a solver that is started again has to learn again.
_STAGE_SHARES = {"fewer chips": 0.4, "superblocks": 0.4}
# Ratio of best to bound above which the program on all chips is unlikely to close the gap soon.
_WIDE_GAP_RATIO = 1.01
# Time limit in seconds that stands for no limit.
_NO_LIMIT_S = 1e6
# Share of the remaining time that proofs may use, so that the outcome arrives before the end.
_PROOF_SHARE = 0.95
# Least seconds for a proof; it does not start with less.
_LEAST_S = 0.5
# Factor on the search's gap at which a proof stops, and the smallest such gap (relative).
_GAP_FACTOR = 0.9
_LEAST_GAP = 1e-6
# Most threads of CP-SAT.
_MOST_THREADS = 8
# Share of the chips up to which the program on fewer chips is worth a stage.
_FEW_CHIPS_SHARE = 0.75
# Factor on the number of chips that all work needs at the bound, for the program on fewer chips.
_CHIPS_FACTOR = 1.1
# Names of the stages. The name of a stage is also the method of its bound, except `_FEWER`.
REDUCTION, SUPERBLOCKS, _FEWER = "reduction", "superblocks", "fewer chips"
PROGRAM = "integer program, CP-SAT"


class Prover:
    """Proves bounds and seeks better partitions, stage by stage, until it is closed.

    The stages, in order:

    1. the bound of the reduction alone (`bounds/reduction.py`);
    2. the integer program on fewer chips, where few chips may be enough;
    3. the superblock bound, one chip at a time (`bounds/superblocks.py`), where the whole program
       is large and the gap is wide;
    4. the integer program on all chips.

    A stage whose condition does not hold when a proof starts is dropped, even if it is not yet due.
    Without a time limit, time must not change the answer. Then only stages 1 and 4 run, on one
    thread and without a limit, and only if the search waits for them (`always`).
    """

    def __init__(self, search: Search, *, always: bool = False) -> None:
        """Makes the prover; starts no proof yet.

        Args:
          search: receives bounds and partitions.
          always: whether to run without a time limit too.
        """
        self._search = search
        self._is_timed = search.budget.time_limit_s is not None
        self._is_wanted = always or self._is_timed
        self._threads = min(_MOST_THREADS, usable_cores()) if self._is_timed else 1
        self._gap = max(_GAP_FACTOR * search.budget.relative_gap, _LEAST_GAP)
        self._pool: SolverPool | None = None
        self._running: Future[Outcome] | None = None
        self._stages = [REDUCTION, _FEWER, SUPERBLOCKS, PROGRAM]  # still to run, in order
        self._stage = ""

    @property
    def is_running(self) -> bool:
        """Whether a proof is under way."""
        return self._running is not None

    @property
    def is_solving(self) -> bool:
        """Whether a solver works on an integer program, which may beat the other searches."""
        return self._running is not None and self._stage in (_FEWER, PROGRAM)

    def step(self) -> None:
        """Takes the outcome of a proof that has ended and starts the next one; never waits."""
        if self._running is not None and self._running.done():
            outcome, self._running = self._running.result(), None
            self._take(outcome)
        if self._running is None and self._is_wanted and not self._search.is_over:
            self._start()

    def _start(self) -> None:
        search = self._search
        left_s = _PROOF_SHARE * search.remaining_s if self._is_timed else _NO_LIMIT_S
        if left_s < _LEAST_S or not self._stages:
            self._is_wanted = False
            return
        chips = self._fewer_chips() if self._is_timed else None
        is_left_out = {SUPERBLOCKS: not self._is_wide(), _FEWER: chips is None}
        self._stages = [stage for stage in self._stages if not is_left_out.get(stage, False)]
        self._stage = self._stages.pop(0)
        left_s *= _STAGE_SHARES.get(self._stage, 1.0)
        provers: dict[str, ProverName] = {REDUCTION: "reduction", SUPERBLOCKS: "superblocks"}
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
        is_open = search.bound.seconds * _WIDE_GAP_RATIO < search.best_s < np.inf
        return self._is_timed and is_open and not is_small(search.problem)

    def _fewer_chips(self) -> int | None:
        """Number of chips for a smaller program; None where most chips are needed.

        At the proven bound, the total work may need few chips, because one node or one interval
        sets the bottleneck. More chips then only add variables to the program.
        """
        problem, bound_s = self._search.problem, self._search.bound.seconds
        work_s = float(problem.node_s.min(axis=1).sum())
        if bound_s <= 0 or work_s > _FEW_CHIPS_SHARE * problem.num_chips * bound_s:
            return None
        return min(problem.num_chips, int(_CHIPS_FACTOR * work_s / bound_s) + 2)

    def _take(self, outcome: Outcome) -> None:
        search = self._search
        search.samples += 1
        if outcome.assignment is not None:
            search.offer(outcome.assignment[:, None])
        if outcome.bound > 0:
            # The program on fewer chips proves nothing: this bound is the reduction's.
            method = REDUCTION if self._stage == _FEWER else self._stage
            search.raise_bound(Bound(outcome.bound, method))
        if outcome.status is Status.INFEASIBLE and search.best is None:
            search.exhausted = True
        if outcome.status is Status.ERROR:
            self._is_wanted = False
            search.notes.append(f"a proof failed: {outcome.message}")

    def close(self) -> None:
        """Ends the proof that runs, and its worker."""
        if self._pool is not None:
            self._pool.close()
