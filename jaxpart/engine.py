"""The engine: runs a method on a problem within a budget and makes the result."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

import numpy as np
from numpy.typing import ArrayLike

from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.cost.evaluate import verify
from jaxpart.cost.greedy import baseline
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.methods import METHODS
from jaxpart.methods.annealing.search import tempering
from jaxpart.methods.clusters.search import cluster_search
from jaxpart.methods.exact.search import exact, greedy, ideals
from jaxpart.methods.labels.search import paper_annealing, random
from jaxpart.methods.orders.search import slice_search
from jaxpart.methods.policy.search import by_policy, named
from jaxpart.portfolio import auto
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem
from jaxpart.results.result import Result, SearchInfo
from jaxpart.runtime.interrupt import deferred_interrupt
from jaxpart.runtime.islands import Islands
from jaxpart.runtime.ray_pool import check_pool
from jaxpart.runtime.state import Budget, Method, Progress, Search

IMPLEMENTATIONS: dict[str, Method] = {
    "auto": auto,
    "greedy": greedy,
    "slice": slice_search,
    "clusters": cluster_search,
    "ideals": ideals,
    "exact": exact,
    "random": random,
    "tempering": tempering,
    "paper_annealing": paper_annealing,
    "policy": by_policy,
}

_ENDED = object()


def partition(
    graph: Graph,
    mcm: MCM,
    *,
    method: str = "auto",
    time_limit_s: float | None = 20.0,
    samples: int | None = None,
    seed: int = 0,
    init: ArrayLike | None = None,
    gap: float = 1e-4,
    policy: str | os.PathLike[str] | None = None,
    islands: Islands | None = None,
    pool: str = "local",
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
      policy: the weights of `method="policy"`: a shipped policy's name or a checkpoint; None: the
        shipped one, "none": fresh weights.
      islands: other processes that search for the same, and where to meet them: each has a seed of
        its own, they exchange what they find, and the one that ends last has the best of all. Then
        an answer depends on time. None: this process alone.
      pool: where SCIP and CP-SAT run: "local", processes of this machine, or "ray", actors of a Ray
        cluster (`ray_pool.RayPool`).
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
    check_pool(pool)
    if policy is not None:
        named(policy)  # what is wrong with it shows now, not when a method comes to it
    problem = Problem.build(graph, mcm)
    reason = why_infeasible(problem)
    if reason is not None:
        raise InfeasibleError(reason)
    own_seed = seed if islands is None else islands.seed(seed)
    search = Search(problem, Budget(time_limit_s, samples, gap), own_seed, progress, policy, pool)
    if problem.graph is not graph:
        search.notes.append(
            f"bytes rescaled from {graph.element_bytes:g} to {mcm.element_bytes:g} per element"
        )
    baseline_s = None
    with deferred_interrupt() as interrupted:
        search.interrupted = interrupted
        try:
            baseline_s = _start(search, init)
            # Closing the method ends its workers, however the loop ends.
            implementation = IMPLEMENTATIONS[method]
            if islands is not None:
                implementation = islands.exchanging(implementation)
            with closing(implementation(search)) as steps:
                while not search.is_over and next(steps, _ENDED) is not _ENDED:
                    search.report()
        except KeyboardInterrupt:  # the second one, or one that was not deferred
            interrupted.set()
    if interrupted.is_set() and search.best is None:
        raise KeyboardInterrupt
    if search.best is None or search.best_costs is None:
        if search.exhausted:
            raise InfeasibleError("no valid partition exists (proven by the solver)")
        raise NothingFoundError(
            f"no valid partition found by {method} in {search.elapsed_s:.0f} s and "
            f"{search.samples} samples; one may exist"
        )
    info = SearchInfo(
        method, search.samples, search.elapsed_s, seed, interrupted.is_set(), tuple(search.history)
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


def _start(search: Search, init: ArrayLike | None) -> float | None:
    """Offers the baseline, whose bottleneck is returned, and the partition to start from."""
    search.enter("greedy")
    greedy = baseline(search.problem)
    baseline_s = None
    if greedy is not None:
        search.samples += 1
        search.offer(greedy[:, None])
        baseline_s = search.best_s
    if init is not None:
        search.samples += 1
        start = search.problem.assignment_of(np.asarray(init))
        if not verify(search.problem, start[:, None]).valid[0]:
            search.notes.append("the partition to start from is not valid here")
        search.offer(start[:, None])
    return baseline_s
