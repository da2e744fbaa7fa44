"""The state of a search: budget, best partition, history, lower bound and progress.

A partition becomes the best only after verification in float64, so no result is ever invalid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator, Sequence

import jax
import numpy as np

from jaxpart.bounds.combinatorial import Bound, combinatorial_bound
from jaxpart.cost.device import DeviceProblem, lower
from jaxpart.cost.evaluate import Costs, verify
from jaxpart.environment import usable_cores
from jaxpart.errors import InputError
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.runtime.alternatives import Alternatives
from jaxpart.runtime.clock import Clock
from jaxpart.runtime.core_sharing import CoreSharing
from jaxpart.runtime.device_time import DeviceTime
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.ray_pool import open_pool
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# Most candidates of a device batch that are verified.
_VERIFIED_PER_BATCH = 4
# Most binary variables (contracted nodes x chips) of a small integer program.
_SMALL_BITS = 6000
# Of a device batch, alternatives are looked for among candidates at most this much slower.
_ALTERNATIVE_SHARE = 0.1
# Niceness of background solvers; at 0 they starve the search.
_NICENESS = 10


class AbandonedError(Exception):
    """Ends the steps of a search that nobody waits for any more."""


# A rule of the user: assignments [N, B] -> bool [B], whether each of them keeps the rule.
Rule = Callable[[IntArray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a search, as a callback receives it."""

    phase: str
    elapsed_s: float
    samples: int
    best_s: float | None  # bottleneck of the best partition; None: none found yet
    lower_bound_s: float | None


@dataclasses.dataclass(frozen=True)
class Budget:
    """When to stop: at the first limit that is reached. None: no such limit."""

    time_limit_s: float | None  # `Search.searched_s`
    max_samples: int | None
    relative_gap: float  # relative; stop when the best is proven to be this close to the optimum


class Search:
    """The state of one search, shared by its methods.

    Attributes:
      problem: of N nodes and C chips.
      budget: when to stop.
      seed: seed of all random choices.
      samples: costs, or changes of cost, computed so far.
      valid: number of valid samples among those that came by `offer_batch`.
      best: [N] chips of the best partition so far; None before there is one.
      best_costs: its costs in float64, without the batch axis.
      received: [N] the last partition from another island that became the best. A method that sees
        a new array here adds it to its candidates.
      bound: the highest lower bound so far.
      interrupted: set by the user's interrupt.
      exhausted: whether it is proven that no valid partition exists.
      phase: name of the present activity, for the user.
      history: (samples, elapsed seconds, bottleneck in seconds) at each improvement.
      notes: remarks for the user.
      alternatives: distinct good partitions, if any are to be kept.
      device_time: how long an accelerator works for each method.
      repair_candidates: the last device batch ([padded N, B] and its costs) if it has an invalid
        candidate that is faster than the best, so that SCIP may repair it. Else None.
    """

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        seed: int,
        callback: Callable[[Progress], None] | None = None,
        *,
        pool: str = "local",
        rules: Sequence[Rule] = (),
        count_compilation: bool = True,
        alternatives: int = 0,
    ) -> None:
        """Makes a search that has found nothing yet.

        Args:
          problem: of N nodes and C chips.
          budget: when to stop.
          seed: seed of all random choices.
          callback: receives the progress whenever it changes.
          pool: where solvers run: a name in `ray_pool.POOLS`.
          rules: the user's rules; a partition is admitted only if it keeps all of them.
          count_compilation: whether search time is all time from here on. False: it begins with
            `start_clock`, and `compiling` stops it.
          alternatives: how many distinct good partitions to keep, the best one included.
        """
        self.problem = problem
        self.budget = budget
        self._rules = tuple(rules)
        self.alternatives = Alternatives(alternatives, problem.num_nodes)
        self._pool = pool
        # Of the solvers with a niceness, one for each core runs at a time.
        self._sharing = CoreSharing(usable_cores())
        self.seed = seed
        self.device_time = DeviceTime()
        self.samples = 0
        self.valid = 0
        self.best: IntArray | None = None
        self.best_costs: Costs | None = None
        self.received: IntArray | None = None
        self.bound = combinatorial_bound(problem)
        self.interrupted = threading.Event()
        self.exhausted = False
        self.phase = "start"
        self.history: list[tuple[int, float, float]] = []
        self.notes: list[str] = []
        self.repair_candidates: tuple[jax.Array | IntArray, Costs] | None = None
        self._callback = callback
        self._counts_compilation = count_compilation
        # Guards the best and the pools: a search that is abandoned changes them no more.
        self._lock = threading.RLock()
        self._is_abandoned = False
        self._pools: list[SolverPool] = []
        self._clock = Clock()
        self._started_s = self._now_s()
        self._searching_since_s: float | None = None
        self._device: DeviceProblem | None = None

    @property
    def device_problem(self) -> DeviceProblem:
        """The problem in float32, padded, for the device."""
        if self._device is None:
            self._device = lower(self.problem)
        return self._device

    @property
    def best_s(self) -> float:
        """Bottleneck of the best partition in seconds; inf before there is one."""
        return np.inf if self.best_costs is None else float(self.best_costs.bottleneck_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search was made, compilation included, without suspensions."""
        return self._now_s() - self._started_s

    @property
    def searched_s(self) -> float:
        """Seconds of search time: `elapsed_s`.

        Where compilation does not count: since `start_clock`, without compilation; 0 before.
        """
        if self._counts_compilation:
            return self.elapsed_s
        since = self._searching_since_s
        return 0.0 if since is None else self._now_s() - since

    @property
    def remaining_s(self) -> float:
        """Search seconds left; inf without a limit, 0 once interrupted. May be negative."""
        if self.interrupted.is_set():
            return 0.0
        limit = self.budget.time_limit_s
        return np.inf if limit is None else limit - self.searched_s

    @property
    def spent(self) -> float:
        """Share of the budget that is spent, 0 to 1; 0 without a limit."""
        limits = self.budget
        shares = [0.0]
        if limits.max_samples is not None:
            shares.append(self.samples / limits.max_samples)
        if limits.time_limit_s is not None:
            shares.append(self.searched_s / limits.time_limit_s)
        return min(max(shares), 1.0)

    @property
    def is_proven(self) -> bool:
        """Whether the best is within the budget's gap of the lower bound."""
        return self.best_s <= self.bound.seconds * (1 + self.budget.relative_gap)

    @property
    def is_over(self) -> bool:
        """Whether to stop: limit reached, interrupted, proven optimal, or proven infeasible."""
        limit = self.budget.max_samples
        return (
            self.exhausted
            or self.interrupted.is_set()
            or self.is_proven
            or self.remaining_s <= 0
            or (limit is not None and self.samples >= limit)
        )

    def watch_clock(self) -> None:
        """Looks at the clock, so that a suspension of this process does not count as search time.

        Called several times a second from the first call to the end of the search.
        """
        self._clock.watch()

    def _now_s(self) -> float:
        """Seconds on a clock that stands still while this process is suspended."""
        return self._clock.now_s()

    def abandon(self) -> None:
        """Keeps what is found as it is, and ends the workers; whatever still runs ends soon.

        Its next call of `offer`, `report`, `raise_bound` or `open_pool` raises `AbandonedError`.
        """
        with self._lock:
            self._is_abandoned = True
            pools = list(self._pools)
        for pool in pools:
            pool.close()

    def _check_wanted(self) -> None:
        if self._is_abandoned:
            raise AbandonedError

    def open_pool(
        self, problem: Problem | None = None, *, workers: int = 1, niceness: int | None = None
    ) -> SolverPool:
        """Opens a pool of solver workers.

        Args:
          problem: the problem that they hold. None: the problem of this search.
          workers: number of workers. A Ray pool has one, because its cluster's size is not known.
          niceness: niceness of the workers. None: 0 if the integer program `is_small`, otherwise
            a value at which the workers do not starve the search. Workers with a niceness above 0
            share cores.

        Raises:
          AbandonedError: the search was abandoned.
        """
        if niceness is None:
            niceness = 0 if is_small(self.problem) else _NICENESS
        workers = workers if self._pool == "local" else 1
        sharing = self._sharing if niceness else None
        with self._lock:
            self._check_wanted()
            pool = open_pool(
                self._pool, problem or self.problem, workers, niceness=niceness, sharing=sharing
            )
            self._pools.append(pool)
        return pool

    def note_failure(self, outcome: Outcome) -> None:
        """Notes a failed solver task for the user, each message once; ignores other outcomes."""
        note = f"a solver task failed: {outcome.message}"
        if outcome.status is Status.ERROR and note not in self.notes:
            self.notes.append(note)

    def start_clock(self) -> None:
        """Starts the search time, once; a method calls it when its programs are compiled.

        Where compilation counts as search time, this changes nothing.
        """
        if self._searching_since_s is None:
            self._searching_since_s = self._now_s()

    @contextlib.contextmanager
    def compiling(self) -> Generator[None]:
        """Context for compilation: its time does not count where the search says so."""
        phase, start_s = self.phase, self._now_s()
        self.enter("compiling")
        try:
            yield
        finally:
            if self._searching_since_s is not None:
                self._searching_since_s += self._now_s() - start_s
            self.enter(phase)

    def enter(self, phase: str) -> None:
        """Sets the name of the present activity, and reports it to the user."""
        self.phase = phase
        self.report()

    def report(self) -> None:
        """Calls the user's callback with the present progress.

        Raises:
          AbandonedError: the search was abandoned.
        """
        self._check_wanted()
        if self._callback is not None:
            best = None if self.best is None else self.best_s
            self._callback(
                Progress(self.phase, self.elapsed_s, self.samples, best, self.bound.seconds)
            )

    def raise_bound(self, bound: Bound) -> None:
        """Takes over a lower bound if it is higher than the present one."""
        with self._lock:
            self._check_wanted()
            is_higher = bound.seconds > self.bound.seconds
            if is_higher:
                self.bound = bound
        if is_higher:
            self.report()

    def offer(self, assignments: IntArray) -> bool:
        """Verifies candidates in float64 and keeps the best valid one.

        Args:
          assignments: [N, B] chips.

        Returns:
          Whether the best has improved.

        Raises:
          InputError: a user's rule does not return bool [B].
          AbandonedError: the search was abandoned.
        """
        if assignments.shape[1] == 0:
            return False
        costs = verify(self.problem, assignments)
        improved = False
        admitted = np.flatnonzero(costs.valid & self._keeps_rules(assignments)).tolist()
        with self._lock:
            self._check_wanted()
            for b in admitted:
                self.alternatives.add(self._rank(costs, b), assignments[:, b])
                if self._rank(costs, b) < self._rank_of_best():
                    self.best = np.asarray(assignments[:, b], np.int64)
                    self.best_costs = jax.tree.map(lambda a, b=b: a[..., b], costs)
                    improved = True
            if improved:
                self.history.append((self.samples, self.elapsed_s, self.best_s))
        if improved:
            self.report()
        return improved

    def offer_batch(self, assignments: jax.Array, costs: Costs) -> bool:
        """Screens a device batch by its float32 costs and verifies its best few candidates.

        Args:
          assignments: [padded N, B] chips.
          costs: of the candidates, in float32.

        Returns:
          Whether the best has improved.

        Raises:
          InputError: a user's rule does not return bool [B].
        """
        self.samples += assignments.shape[1]
        valid, bottleneck = np.asarray(costs.valid), np.asarray(costs.bottleneck_s)
        self.valid += int(valid.sum())
        self.repair_candidates = None
        if bottleneck[~valid].min(initial=np.inf) < self.best_s:
            self.repair_candidates = (assignments, costs)
        bottleneck = np.where(valid, bottleneck, np.inf)
        # Float32 has rounding errors, so a candidate slightly above the best is verified too.
        order = np.argsort(bottleneck, kind="stable")
        order = order[: None if self._rules else _VERIFIED_PER_BATCH]
        limit_s = self.best_s
        if self.alternatives.most:
            limit_s = min(self.alternatives.limit, self.best_s * (1 + _ALTERNATIVE_SHARE))
        order = order[bottleneck[order] < limit_s * (1 + 1e-6)]
        if not len(order):
            return False
        # Indexed on the host: on an accelerator a program for it would wait for the next step.
        columns = np.asarray(assignments)[: self.problem.num_nodes, order].astype(np.int64)
        if self._rules:
            columns = columns[:, self._keeps_rules(columns)][:, :_VERIFIED_PER_BATCH]
        return self.offer(columns)

    def _keeps_rules(self, assignments: IntArray) -> np.ndarray:
        """[B] bool, whether each of the assignments [N, B] keeps the user's rules.

        Raises:
          InputError: a rule does not return bool [B].
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
        """The sort key of candidate b: bottleneck, then chips used, then bytes sent."""
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
    """Whether the integer program is so small that it beats the other searches."""
    return problem.num_contracted * problem.num_chips <= _SMALL_BITS


# A search method: a generator that works in steps; the engine checks the budget between steps.
Method = Callable[[Search], Generator[None]]
