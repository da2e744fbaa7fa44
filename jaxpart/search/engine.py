"""The engine: budget, archive of the best, history and progress. Methods propose, it decides.

Nothing enters the archive that was not verified in float64, so no result is ever invalid.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxpart.bound import Bound, combinatorial_bound
from jaxpart.cost import Costs, verify
from jaxpart.device import DeviceProblem, lower
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.feasibility import why_infeasible
from jaxpart.graph import Graph
from jaxpart.greedy import baseline
from jaxpart.mcm import MCM
from jaxpart.problem import IntArray, Problem
from jaxpart.result import Result, SearchInfo

# How many of a batch's best candidates are verified when the batch may improve on the archive.
_VERIFIED_PER_BATCH = 4


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
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.problem = problem
        self.budget = budget
        self.seed = seed
        self.samples = 0
        self.best: IntArray | None = None
        self.best_costs: Costs | None = None
        self.bound = combinatorial_bound(problem)
        self.exhausted = False  # proven that nothing valid exists
        self.phase = "start"
        self.history: list[tuple[int, float, float]] = []
        self.notes: list[str] = []
        self._progress = progress
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
        """Seconds of search time: since the first batch came back, so that compilation is beside."""
        since = self._searching_since_s
        return 0.0 if since is None else time.perf_counter() - since

    @property
    def remaining_s(self) -> float:
        """Search seconds left; inf without a limit."""
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
            or self.is_proven
            or self.remaining_s <= 0
            or (limit is not None and self.samples >= limit)
        )

    def start_clock(self) -> None:
        """Starts the search time, once; methods call it when their programs are compiled."""
        if self._searching_since_s is None:
            self._searching_since_s = time.perf_counter()

    def enter(self, phase: str) -> None:
        """Names what is going on, for the user."""
        self.phase = phase
        self.report()

    def report(self) -> None:
        """Shows the state to the user."""
        if self._progress is not None:
            best = None if self.best is None else self.best_s
            self._progress(
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
        for b in np.flatnonzero(costs.valid):
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
        bottleneck = np.where(np.asarray(costs.valid), np.asarray(costs.bottleneck_s), np.inf)
        # Float32 may be off by 1e-5: what is that close to the best is worth a look, no more.
        order = np.argsort(bottleneck, kind="stable")[:_VERIFIED_PER_BATCH]
        order = order[bottleneck[order] < self.best_s * (1 + 1e-6)]
        if not len(order):
            return False
        columns = np.asarray(assignments[:, order])[: self.problem.num_nodes]
        return self.offer(columns.astype(np.int64))

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


# A method works on a search step by step; between steps the engine looks at the budget.
Method = Callable[[Search], Iterator[None]]


def methods() -> dict[str, Method]:
    """All methods by name. Imported late: each brings its compiled programs along."""
    from jaxpart.search import auto, labels, orders, proofs

    return {
        "auto": auto.auto,
        "greedy": proofs.greedy,
        "slice": orders.slice_search,
        "ideals": proofs.ideals,
        "exact": proofs.exact,
        "random": labels.random,
        "anneal": labels.anneal,
    }


METHODS: dict[str, str] = {
    "auto": "the default: slicing, ideals and the solver together, stops when proven optimal",
    "greedy": "the compiler's heuristic that improvements are measured against",
    "slice": "optimal cuts of node orders, with evolution over the orders",
    "ideals": "exact dynamic program over the graph's down-sets, where they are few",
    "exact": "integer program, warm-started by slicing; for small graphs",
    "random": "the paper's random search: uniform samples made valid",
    "anneal": "the paper's simulated annealing: changed labels made valid",
}


def partition(
    graph: Graph,
    mcm: MCM,
    *,
    method: str = "auto",
    time_limit_s: float | None = 20.0,
    samples: int | None = None,
    seed: int = 0,
    init: IntArray | None = None,
    gap: float = 1e-4,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Finds a partition of `graph` on `mcm` with a small bottleneck, and a bound on how small.

    The result is valid, and never worse than the greedy baseline or `init` where those are valid.

    Args:
      method: a name in `METHODS`.
      time_limit_s: search time; start-up and compilation come beside it. None: no limit.
      samples: the most costs, or changes of cost, to compute. None: no limit.
      seed: same seed and samples, same answer, on the same device and versions.
      init: [N] a partition to start from, valid or not.
      gap: stop when the best is proven this close to the optimum (relative).
      progress: called with the state of the search whenever it changes.

    Raises:
      InputError: bad arguments, or a pin beyond the module's chips.
      InfeasibleError: no valid partition exists; says why where that is simple.
      NothingFoundError: none was found within the budget.
      KeyboardInterrupt: interrupted before anything valid was found; later, an interrupt ends the
        search and the best so far is returned, with `search.interrupted` set.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    for name, value in (("time_limit_s", time_limit_s), ("samples", samples)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}, expected a positive number")
    if not gap >= 0:
        raise InputError(f"gap is {gap}, expected 0 or more")
    problem = Problem.build(graph, mcm)
    reason = why_infeasible(problem)
    if reason is not None:
        raise InfeasibleError(reason)
    search = Search(problem, Budget(time_limit_s, samples, gap), seed, progress)
    if problem.graph is not graph:
        search.notes.append(
            f"bytes rescaled from {graph.element_bytes:g} to {mcm.element_bytes:g} per element"
        )
    interrupted = False
    baseline_s = None
    try:
        search.enter("greedy")
        greedy = baseline(problem)
        if greedy is not None:
            search.samples += 1
            search.offer(greedy[:, None])
            baseline_s = search.best_s
        if init is not None:
            search.samples += 1
            if not search.offer(problem.assignment_of(init)[:, None]) and greedy is None:
                search.notes.append("the partition to start from is not valid here")
        for _ in methods()[method](search):
            search.report()
            if search.is_over:
                break
    except KeyboardInterrupt:
        if search.best is None:
            raise
        interrupted = True
    if search.best is None or search.best_costs is None:
        if search.exhausted:
            raise InfeasibleError("no valid partition exists (proven by the solver)")
        raise NothingFoundError(
            f"no valid partition found by {method} in {search.elapsed_s:.0f} s and "
            f"{search.samples} samples; one may exist"
        )
    info = SearchInfo(
        method, search.samples, search.elapsed_s, seed, interrupted, tuple(search.history)
    )
    return Result(
        problem,
        search.best,
        search.best_costs,
        baseline_s,
        min(search.bound.seconds, search.best_s),
        search.bound.method,
        info,
        tuple(search.notes),
    )
