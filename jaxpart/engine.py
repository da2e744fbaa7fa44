"""The engine: runs a method on a problem within a budget and makes the result."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxpart.bounds.best import best_bound
from jaxpart.bounds.combinatorial import Bound
from jaxpart.bounds.hints import graph_hints, triangle_hint
from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.cost.evaluate import verify
from jaxpart.cost.greedy import baseline, baseline_s_of
from jaxpart.environment import require_cpu
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.methods import METHODS
from jaxpart.methods.annealing.search import tempering
from jaxpart.methods.clusters.search import cluster_search
from jaxpart.methods.exact.search import exact, greedy, ideals
from jaxpart.methods.labels.search import paper_annealing, random
from jaxpart.methods.orders.search import slice_search
from jaxpart.methods.policy.search import check_policy, policy_search
from jaxpart.portfolio import auto
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem
from jaxpart.results.evaluation import evaluation_of, rescaling_notes
from jaxpart.results.result import Result, SearchInfo
from jaxpart.runtime.background import finishes, started
from jaxpart.runtime.interrupt import Interrupts, deferred_interrupt
from jaxpart.runtime.islands import Islands
from jaxpart.runtime.ray_pool import check_pool
from jaxpart.runtime.state import Budget, Method, Progress, Rule, Search
from jaxpart.split_search.budget import Searches
from jaxpart.split_search.search import split_search
from jaxpart.splitting import MOST_PARTS

if TYPE_CHECKING:
    from jaxpart.methods.policy.checkpoint import Policy

_METHODS: dict[str, Method] = {
    "greedy": greedy,
    "slice": slice_search,
    "clusters": cluster_search,
    "ideals": ideals,
    "exact": exact,
    "random": random,
    "tempering": tempering,
    "paper_annealing": paper_annealing,
}
_METHODS_WITH_POLICY = {"auto": auto, "policy": policy_search}

_ENDED = object()
# Seconds that a step may go on after the time limit or the first interrupt. Then the search is
# abandoned, with the best so far: a step may compile, or list ideals, for much longer.
_GRACE_S = 0.5
# The same for the time limit before anything is found: the check of partitions compiles too.
_FIRST_GRACE_S = 1.5


def partition(
    graph: Graph,
    mcm: MCM,
    *,
    method: str | Method = "auto",
    time_limit_s: float | None = 20.0,
    max_samples: int | None = None,
    seed: int = 0,
    initial_assignment: ArrayLike | None = None,
    relative_gap: float = 1e-4,
    policy: str | os.PathLike[str] | Policy | None = None,
    rules: Sequence[Rule] = (),
    islands: Islands | None = None,
    pool: str = "local",
    count_compilation: bool = True,
    alternatives: int = 0,
    split: str | int = "off",
    callback: Callable[[Progress], None] | None = None,
) -> Result:
    """Finds a partition of `graph` on `mcm` with a small bottleneck, and a bound on how small.

    The result is valid. It is never worse than the greedy baseline or `initial_assignment`, where
    these are valid and keep `rules`.

    Args:
      graph: of N nodes.
      mcm: the module, of C chips.
      method: a name in `METHODS`, or a method of your own: a generator function over
        `jaxpart.Search`. See jaxpart/README.md, "How to extend it".
      time_limit_s: seconds from the call on, compilation included. What is not compiled in time is
        not used. A step that takes a second longer is left to a thread, which ends with the step.
        Time in which the process is suspended does not count. None: no limit.
      max_samples: the most costs, or changes of cost, to compute. None: no limit.
      seed: same seed and samples, same answer, on the same device and versions.
      initial_assignment: [N] a partition to start from, valid or not.
      relative_gap: the search stops when its best is proven this close to the optimum.
      policy: weights for the methods "auto" and "policy": a shipped policy's name, a checkpoint's
        path or a `Policy`. None: the shipped one. "fresh": an untrained one. "none": no policy at
        all, so `method="policy"` is refused.
      rules: rules of your own. Each takes assignments [N, B] and gives bool [B]; a partition is
        admitted only where all are true. They shrink the valid set, so bounds stay true.
      islands: other processes that search for the same, and where to meet them. Each has a seed of
        its own; they exchange what they find, and the last to end has the best of all. The answer
        then depends on time. None: this process alone.
      pool: where SCIP and CP-SAT run: "local", processes of this machine, or "ray", actors of a Ray
        cluster (`ray_pool.RayPool`).
      count_compilation: False: the time limit is search time alone, without start-up and
        compilation. For studies that compare methods.
      alternatives: how many other good partitions to keep as `Result.alternatives`; each differs
        from the others in more than a few nodes. Fewer where the search meets no more.
      split: "off": operations stay whole. "auto", or the most parts of one operation: operations
        that are too large for a chip's share are split where that is better (`Result.split`); the
        result's graph, `result.problem.graph`, then has the parts, and the bound is that of this
        graph alone. One budget is for all searches that this takes. Never worse than the search of
        the graph as it is, which gets a fifth of it. Not with `rules` or `islands`.
      callback: called with the state of the search whenever it changes, from the search's thread.

    Raises:
      InputError: bad arguments, a chip fixed beyond the module's, or `JAX_PLATFORMS` leaves out the
        CPU, on which results are verified.
      InfeasibleError: no valid partition exists; says why where that is simple.
      NothingFoundError: none was found within the budget.
      KeyboardInterrupt: interrupted before anything valid was found. A later interrupt ends the
        search within about a second, a second one at once. The best so far is then returned with
        `search.interrupted` set.
    """
    require_cpu()
    most = _most_parts(split)
    if most is not None and (rules or islands is not None):
        raise InputError("split: not with rules or islands, which name nodes of the graph as it is")
    run = functools.partial(
        _partition,
        method=method,
        seed=seed,
        relative_gap=relative_gap,
        policy=policy,
        rules=rules,
        islands=islands,
        pool=pool,
        count_compilation=count_compilation,
        alternatives=alternatives,
    )
    if most is None:
        return run(
            graph,
            mcm,
            time_limit_s=time_limit_s,
            max_samples=max_samples,
            initial_assignment=initial_assignment,
            callback=callback,
        )
    _check_budget(time_limit_s, max_samples)
    # One for all searches: what is in hand after the first is returned, whenever a signal comes.
    with deferred_interrupt() as interrupts:
        searches = Searches(
            functools.partial(run, interrupts=interrupts),
            time_limit_s,
            max_samples,
            initial_assignment,
            callback,
            interrupts,
            SearchInfo(_name_of(method), 0, 0.0, seed),
            count_compilation=count_compilation,
        )
        return split_search(graph, mcm, searches, most=most, relative_gap=relative_gap)


def _name_of(method: str | Method) -> str:
    if isinstance(method, str):
        return method
    return getattr(method, "__name__", type(method).__name__)


def _most_parts(split: str | int) -> int | None:
    """The most parts of one operation; None: operations stay whole.

    Raises:
      InputError: `split` is something else.
    """
    if split == "off":
        return None
    if split == "auto":
        return MOST_PARTS
    if isinstance(split, bool) or not isinstance(split, int) or split < 2:
        raise InputError(
            f"split is {split!r}, expected 'auto', 'off' or a number of parts, 2 or more"
        )
    return split


def _check_budget(time_limit_s: float | None, max_samples: int | None) -> None:
    for name, value in (("time_limit_s", time_limit_s), ("max_samples", max_samples)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}, expected a positive number")


def _partition(
    graph: Graph,
    mcm: MCM,
    *,
    method: str | Method,
    time_limit_s: float | None,
    max_samples: int | None,
    seed: int,
    initial_assignment: ArrayLike | None,
    relative_gap: float,
    policy: str | os.PathLike[str] | Policy | None,
    rules: Sequence[Rule],
    islands: Islands | None,
    pool: str,
    count_compilation: bool,
    alternatives: int,
    callback: Callable[[Progress], None] | None,
    interrupts: Interrupts | None = None,
    on_search: Callable[[Search], None] = lambda _: None,
) -> Result:
    """`partition` of the graph as it is.

    Two arguments are for one search of several: the signals that are deferred already, and what
    receives the state of the search as it begins.
    """
    _check_budget(time_limit_s, max_samples)
    if not relative_gap >= 0:
        raise InputError(f"relative_gap is {relative_gap}, expected 0 or more")
    if alternatives < 0:
        raise InputError(f"alternatives is {alternatives}, expected 0 or more")
    check_pool(pool)
    implementation = method_of(method, policy)
    name = _name_of(method)
    problem = Problem.build(graph, mcm)
    reason = why_infeasible(problem)
    if reason is not None:
        raise InfeasibleError(reason)
    own_seed = seed if islands is None else islands.seed(seed)
    budget = Budget(time_limit_s, max_samples, relative_gap)
    search = Search(
        problem,
        budget,
        own_seed,
        callback,
        pool=pool,
        rules=rules,
        count_compilation=count_compilation,
        alternatives=alternatives + 1 if alternatives else 0,
    )
    on_search(search)
    search.notes += rescaling_notes(graph, problem)
    if islands is not None:
        implementation = islands.exchanging(implementation)
    baseline_s: float | None = None

    def work() -> None:
        nonlocal baseline_s
        baseline_s = _start(search, initial_assignment)
        run(search, implementation)

    deferred = deferred_interrupt() if interrupts is None else contextlib.nullcontext(interrupts)
    with deferred as signals:
        search.interrupted = interrupted = signals.event
        _run_in_time(search, work, signals)
    if interrupted.is_set() and search.best is None:
        raise KeyboardInterrupt
    if search.best is None or search.best_costs is None:
        if search.exhausted:
            raise InfeasibleError(
                _with_hints("no valid partition exists (proven by the solver)", problem)
            )
        raise NothingFoundError(
            f"no valid partition found by {name} in {search.elapsed_s:.0f} s and "
            f"{search.samples} samples; one may exist"
        )
    info = SearchInfo(
        name, search.samples, search.elapsed_s, seed, interrupted.is_set(), tuple(search.history)
    )
    return Result(
        problem,
        search.best,
        search.best_costs,
        baseline_s,
        min(search.bound.seconds, search.best_s),
        search.bound.method,
        tuple(search.notes),
        info,
        tuple(
            evaluation_of(problem, other)
            for other in search.alternatives.assignments
            if not np.array_equal(other, search.best)
        )[:alternatives],
    )


def _with_hints(message: str, problem: Problem) -> str:
    """A message about a search that found nothing, with what may be the reason."""
    hints = [*graph_hints(problem), triangle_hint(problem)]
    return "; ".join([message, *(hint for hint in hints if hint)])


def lower_bound(graph: Graph, mcm: MCM, *, time_limit_s: float = 20.0) -> Bound:
    """A lower bound on the bottleneck of every valid partition of `graph` on `mcm`, with its proof.

    Args:
      graph: of N nodes.
      mcm: the module, of C chips.
      time_limit_s: for all bounds together, from cheap to dear; each proves or is left out.

    Raises:
      InputError: bad arguments, or a chip fixed beyond the module's.
      InfeasibleError: no valid partition exists; says why.
    """
    if not time_limit_s > 0:
        raise InputError(f"time_limit_s is {time_limit_s}, expected a positive number")
    problem = Problem.build(graph, mcm)
    reason = why_infeasible(problem)
    if reason is not None:
        raise InfeasibleError(reason)
    return best_bound(problem, time_limit_s, baseline_s_of(problem))


def run(search: Search, method: Method) -> None:
    """Runs a method step by step until it ends or the search is over."""
    # Closing the method ends its workers, however the loop ends.
    with closing(method(search)) as steps:
        while not search.is_over and next(steps, _ENDED) is not _ENDED:
            search.report()


def _run_in_time(search: Search, work: Callable[[], None], interrupts: Interrupts) -> None:
    """Runs a search in a thread and abandons it where it does not end in time (`_GRACE_S`).

    An exception of the work is raised here.
    """

    def is_late() -> bool:
        search.watch_clock()
        limit_s = search.budget.time_limit_s
        grace_s = _FIRST_GRACE_S if search.best is None else _GRACE_S
        return (
            interrupts.count > 1
            or interrupts.waited_s > _GRACE_S
            or (limit_s is not None and search.searched_s > limit_s + grace_s)
        )

    done = started(work)
    try:
        if finishes(done, is_late):
            done.result()
            return
    except KeyboardInterrupt:  # a handler of the program raised it
        interrupts.note(signal.SIGINT)
    search.abandon()


def method_of(
    method: str | Method, policy: str | os.PathLike[str] | Policy | None = None
) -> Method:
    """The search method of this name, with a policy where it uses one; a callable as it is.

    Raises:
      InputError: no such method, no such policy, a damaged one, or `method="policy"` without one.
    """
    if callable(method):
        return method
    if method not in METHODS:
        raise InputError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    # What is wrong with a policy shows now, not when a method comes to it.
    check_policy(policy, is_needed=method == "policy")
    if method in _METHODS_WITH_POLICY:
        return functools.partial(_METHODS_WITH_POLICY[method], policy=policy)
    return _METHODS[method]


def _start(search: Search, initial_assignment: ArrayLike | None) -> float | None:
    """Offers the baseline, whose bottleneck is returned, and the partition to start from."""
    search.enter("greedy")
    greedy_assignment = baseline(search.problem)
    baseline_s = baseline_s_of(search.problem)
    if greedy_assignment is not None:
        search.samples += 1
        search.offer(greedy_assignment[:, None])
    if initial_assignment is not None:
        search.samples += 1
        start = search.problem.assignment_of(np.asarray(initial_assignment))
        if not verify(search.problem, start[:, None]).valid[0]:
            search.notes.append("the partition to start from is not valid here")
        search.offer(start[:, None])
    return baseline_s
