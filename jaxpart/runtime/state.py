"""The state of a search: budget, archive of the best, history, bound and progress.

Nothing enters the archive that was not verified in float64, so no result is ever invalid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Sequence

import jax
import numpy as np

from jaxpart.bounds.combinatorial import Bound, combinatorial_bound
from jaxpart.cost.device import DeviceProblem, lower
from jaxpart.cost.evaluate import Costs, verify
from jaxpart.environment import usable_cores
from jaxpart.errors import InputError
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.runtime.core_sharing import CoreSharing
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.ray_pool import open_pool
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# How many of a batch's best candidates are verified when the batch may improve on the archive.
_VERIFIED_PER_BATCH = 4
# Contracted nodes x chips of a small program.
_SMALL_BITS = 6000
# Niceness of background solvers; at 0 they starve the search.
_NICENESS = 10


# A rule of the user's: assignments [N, B] -> bool [B], which of them keep it.
Rule = Callable[[IntArray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a user sees while a search runs."""

    phase: str
    elapsed_s: float
    samples: int
    best_s: float | None
    lower_bound_s: float | None


@dataclasses.dataclass(frozen=True)
class Budget:
    """When to stop: whatever comes first. None: no such limit."""

    time_limit_s: float | None
    samples: int | None
    gap: float  # stop when the best is proven to be this close to the optimum


class Search:
    """The state of one search, shared by its methods: the problem, the best so far, the bound."""

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        seed: int,
        callback: Callable[[Progress], None] | None = None,
        *,
        pool: str = "local",
        rules: Sequence[Rule] = (),
    ) -> None:
        """A search that has found nothing yet.

        Args:
          problem: to search on.
          budget: when to stop.
          seed: of whatever is random.
          callback: called with the state whenever it changes.
          pool: where solvers run, as of `partition`.
          rules: a partition is admitted only where all of them hold.
        """
        self.problem = problem
        self.budget = budget
        self._rules = tuple(rules)
        self._pool = pool  # where solvers run
        # Of those that give way, one for each core runs at a time.
        self._sharing = CoreSharing(usable_cores())
        self.seed = seed
        self.samples = 0
        self.valid = 0  # of the samples that came in batches
        self.best: IntArray | None = None
        self.best_costs: Costs | None = None
        # [N] the last partition that another island sent and that became the best. A method that
        # sees a new array here adds it to what it works on.
        self.received: IntArray | None = None
        self.bound = combinatorial_bound(problem)
        self.interrupted = threading.Event()  # by the user
        self.exhausted = False  # proven that nothing valid exists
        self.phase = "start"
        self.history: list[tuple[int, float, float]] = []
        self.notes: list[str] = []
        # The last device batch ([padded N, B] and its costs), if it has an invalid candidate that
        # would be faster than the best: SCIP may repair it. Else None.
        self.repair_candidates: tuple[jax.Array | IntArray, Costs] | None = None
        self._callback = callback
        self._started_s = time.perf_counter()
        self._searching_since_s: float | None = None
        self._device: DeviceProblem | None = None

    @property
    def device_problem(self) -> DeviceProblem:
        """The padded float32 problem."""
        if self._device is None:
            self._device = lower(self.problem)
        return self._device

    @property
    def best_s(self) -> float:
        """Bottleneck of the best so far; inf before there is one."""
        return np.inf if self.best_costs is None else float(self.best_costs.bottleneck_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search was made."""
        return time.perf_counter() - self._started_s

    @property
    def searched_s(self) -> float:
        """Seconds of search time: since the first batch came back; compilation is beside it."""
        since = self._searching_since_s
        return 0.0 if since is None else time.perf_counter() - since

    @property
    def remaining_s(self) -> float:
        """Search seconds left; inf without a limit, none once interrupted."""
        if self.interrupted.is_set():
            return 0.0
        limit = self.budget.time_limit_s
        return np.inf if limit is None else limit - self.searched_s

    @property
    def spent(self) -> float:
        """The share of the budget that is spent, 0 to 1; 0 without a limit."""
        limits = self.budget
        shares = [0.0]
        if limits.samples is not None:
            shares.append(self.samples / limits.samples)
        if limits.time_limit_s is not None:
            shares.append(self.searched_s / limits.time_limit_s)
        return min(max(shares), 1.0)

    @property
    def is_proven(self) -> bool:
        """Whether the best is within the wanted gap of the lower bound."""
        return self.best_s <= self.bound.seconds * (1 + self.budget.gap)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent or there is nothing left to gain."""
        limit = self.budget.samples
        return (
            self.exhausted
            or self.interrupted.is_set()
            or self.is_proven
            or self.remaining_s <= 0
            or (limit is not None and self.samples >= limit)
        )

    def open_pool(
        self, problem: Problem | None = None, *, workers: int = 1, niceness: int | None = None
    ) -> SolverPool:
        """Solver workers that hold this problem, or another one.

        Args:
          problem: the other one.
          workers: of them; of a Ray cluster, whose size is not known here, one.
          niceness: by how much they give way. None: to all of the search, where the program is not
            small.
        """
        if niceness is None:
            niceness = 0 if is_small(self.problem) else _NICENESS
        workers = workers if self._pool == "local" else 1
        sharing = self._sharing if niceness else None
        return open_pool(
            self._pool, problem or self.problem, workers, niceness=niceness, sharing=sharing
        )

    def note_failure(self, outcome: Outcome) -> None:
        """Tells the user, once, of a task whose worker failed; nothing of other outcomes."""
        note = f"a solver task failed: {outcome.message}"
        if outcome.status is Status.ERROR and note not in self.notes:
            self.notes.append(note)

    def start_clock(self) -> None:
        """Starts the search time, once; methods call it when their programs are compiled."""
        if self._searching_since_s is None:
            self._searching_since_s = time.perf_counter()

    @contextlib.contextmanager
    def compiling(self) -> Generator[None]:
        """What is done inside is beside the search time."""
        phase, start_s = self.phase, time.perf_counter()
        self.enter("compiling")
        try:
            yield
        finally:
            if self._searching_since_s is not None:
                self._searching_since_s += time.perf_counter() - start_s
            self.enter(phase)

    def enter(self, phase: str) -> None:
        """Names what is going on, for the user."""
        self.phase = phase
        self.report()

    def report(self) -> None:
        """Shows the state to the user."""
        if self._callback is not None:
            best = None if self.best is None else self.best_s
            self._callback(
                Progress(self.phase, self.elapsed_s, self.samples, best, self.bound.seconds)
            )

    def raise_bound(self, bound: Bound) -> None:
        """Keeps the better lower bound."""
        if bound.seconds > self.bound.seconds:
            self.bound = bound
            self.report()

    def offer(self, assignments: IntArray) -> bool:
        """Verifies candidates [N, B] and keeps the best valid one. True where it improved."""
        if assignments.shape[1] == 0:
            return False
        costs = verify(self.problem, assignments)
        improved = False
        for b in np.flatnonzero(costs.valid & self._keeps_rules(assignments)).tolist():
            if self._rank(costs, b) < self._rank_of_best():
                self.best = np.asarray(assignments[:, b], np.int64)
                self.best_costs = jax.tree.map(lambda a, b=b: a[..., b], costs)
                improved = True
        if improved:
            self.history.append((self.samples, self.elapsed_s, self.best_s))
            self.report()
        return improved

    def offer_batch(self, assignments: jax.Array, costs: Costs) -> bool:
        """Screens a device batch [padded N, B] by its float32 costs and verifies its best few."""
        self.samples += assignments.shape[1]
        valid, bottleneck = np.asarray(costs.valid), np.asarray(costs.bottleneck_s)
        self.valid += int(valid.sum())
        self.repair_candidates = None
        if bottleneck[~valid].min(initial=np.inf) < self.best_s:
            self.repair_candidates = (assignments, costs)
        bottleneck = np.where(valid, bottleneck, np.inf)
        # Float32 may be off by 1e-5: what is that close to the best is worth a look, no more.
        order = np.argsort(bottleneck, kind="stable")
        order = order[: None if self._rules else _VERIFIED_PER_BATCH]
        order = order[bottleneck[order] < self.best_s * (1 + 1e-6)]
        if not len(order):
            return False
        columns = np.asarray(assignments[:, order])[: self.problem.num_nodes].astype(np.int64)
        if self._rules:
            columns = columns[:, self._keeps_rules(columns)][:, :_VERIFIED_PER_BATCH]
        return self.offer(columns)

    def _keeps_rules(self, assignments: IntArray) -> np.ndarray:
        """[B] which of the assignments [N, B] keep the user's rules.

        Raises:
          InputError: a rule gives something else than bool [B].
        """
        kept = np.ones(assignments.shape[1], bool)
        for rule in self._rules:
            verdict = np.asarray(rule(assignments))
            if verdict.shape != kept.shape or verdict.dtype != bool:
                name = getattr(rule, "__name__", type(rule).__name__)
                raise InputError(
                    f"rule {name} gave {verdict.dtype} {list(verdict.shape)} for assignments "
                    f"{list(assignments.shape)}, expected bool {list(kept.shape)}"
                )
            kept &= verdict
        return kept

    def _rank(self, costs: Costs, b: int) -> tuple[float, int, float]:
        """Ties at equal bottleneck go to fewer chips, then to fewer bytes sent."""
        return (
            float(costs.bottleneck_s[b]),
            int(costs.chips_used[b]),
            float(costs.sent_bytes[b]),
        )

    def _rank_of_best(self) -> tuple[float, float, float]:
        best = self.best_costs
        if best is None:
            return (np.inf, np.inf, np.inf)
        return (float(best.bottleneck_s), int(best.chips_used), float(best.sent_bytes))


def is_small(problem: Problem) -> bool:
    """Whether the integer program finds and proves more in a second than other searches."""
    return problem.num_contracted * problem.num_chips <= _SMALL_BITS


# A method works on a search step by step; between steps the engine looks at the budget.
Method = Callable[[Search], Generator[None]]
