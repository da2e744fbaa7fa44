"""The baseline and the exact methods: program order, ideals and the integer program."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator

from jaxpart.bounds.combinatorial import Bound, bound_of
from jaxpart.bounds.ideals.lattice import Lattice, enumerate_ideals, prefixes
from jaxpart.bounds.ideals.load_program import least_bottleneck
from jaxpart.bounds.ideals.pairs import count_ideals, solve, with_figures
from jaxpart.bounds.ideals.parametric_search import (
    ParametricSearch,
    can_count,
    compile_counting,
    is_narrow,
)
from jaxpart.methods.clusters.search import cluster_search
from jaxpart.methods.exact.prover import Prover
from jaxpart.problem.problem import Problem
from jaxpart.runtime.state import Search

# Most ideals for the program over pairs of ideals; listing this many takes about a second.
MOST_IDEALS = 40_000
# Most contracted nodes for the program over pairs of prefixes, which then takes a few seconds.
MAX_CUT = 4000
# Share of the remaining time for cutting the program order, which only gives a first partition.
_SHARE_TO_CUT = 0.15
# Segments whose memory is weighed exactly while the program order is cut.
_FEW_WEIGHINGS = 2000
# Most ideals that are listed: listing this many takes about 10 s, a test of one bottleneck 2 s.
MOST_BISECTED = 1_000_000
# Seconds left below which only a quarter of `MOST_BISECTED` is listed.
_LONG_S = 40.0
# Share of the remaining time for listing ideals.
_SHARE_TO_LIST = 0.25
# Smallest relative gap at which a bisection ends.
_LEAST_GAP = 1e-6
# Seconds between two looks at the prover.
_POLL_S = 0.05


def greedy(search: Search) -> Generator[None]:
    """Does nothing more than the engine, which has offered the greedy baseline already."""
    search.start_clock()
    yield


def program_order(search: Search) -> Generator[None]:
    """Cuts the program order optimally, and offers the partition."""
    problem = search.problem
    if not problem.mcm.constraints.acyclic:
        return
    with search.compiling():
        compile_counting()
    search.enter("program order")
    search.start_clock()
    until_s = search.searched_s + _SHARE_TO_CUT * max(search.remaining_s, 0.0)

    def is_too_long() -> bool:
        return search.searched_s > until_s

    order = prefixes(problem)
    is_best = can_count(problem) and _offer_best(
        search, ParametricSearch(problem, order), is_too_long
    )
    if not is_best and problem.num_contracted <= MAX_CUT:
        cutoff_s = search.best_s if search.best is not None else math.inf
        outcome = solve(
            problem,
            with_figures(problem, order),
            cutoff_s,
            span=problem.mcm.constraints.triangle,
            is_bound=False,
            weighings=_FEW_WEIGHINGS,
            give_up=is_too_long,
        )
        search.samples += 1
        if outcome is not None and outcome.assignment is not None:
            search.offer(outcome.assignment[:, None])
    yield


def ideals(search: Search) -> Generator[None]:
    """Proves a lower bound by dynamic programs over ideals, and offers the partitions they find.

    Under the triangle rule, where ideals are few and time allows, one of them is the best partition
    that keeps the span rule: every edge stays on its chip or goes to the next one.
    """
    problem, rules = search.problem, search.problem.mcm.constraints
    if not rules.acyclic:
        return
    with search.compiling():
        compile_counting()
    search.enter("ideals")
    search.start_clock()
    until_s = search.searched_s + _SHARE_TO_LIST * max(search.remaining_s, 0.0)
    most = MOST_BISECTED if search.remaining_s > _LONG_S else MOST_BISECTED // 4
    lattice = enumerate_ideals(problem, most, lambda: search.searched_s > until_s)
    if lattice is None:
        search.notes.append(f"over {most} ideals, or too many for the time: no bound")
        return
    yield
    if can_count(problem) and is_narrow(lattice):
        chains = ParametricSearch(problem, lattice)
        is_best = _offer_best(search, chains, lambda: search.remaining_s <= 0)
        yield
        seconds = chains.bound(
            search.bound.seconds,
            _upper_s(search),
            gap=_LEAST_GAP,
            give_up=lambda: search.remaining_s <= 0,
        )
        search.raise_bound(Bound(seconds, "ideals"))
        yield
        # Here the program over pairs of ideals has little to add: memory excludes no better chain
        # of ideals, and on a chain of chips a port carries no more than its link.
        if search.is_proven or (is_best and problem.mcm.topology == "chain"):
            return
    if len(lattice) <= MOST_IDEALS:
        yield from _pairs_of_ideals(search, lattice)
    else:
        yield from _least_bottleneck(search, lattice)


def _offer_best(search: Search, chains: ParametricSearch, give_up: Callable[[], bool]) -> bool:
    """Offers the best chain of ideals.

    Returns:
      Whether no chain is better than the search's best even with unlimited memory. False where time
      ran out.
    """
    search.samples += 1
    lower_s, gap = search.bound.seconds, _LEAST_GAP
    chain = chains.best(lower_s, search.best_s, gap=gap, give_up=give_up)
    if chain is not None:
        search.offer(chain.assignment[:, None])
    if not search.problem.mcm.constraints.memory:
        return not give_up()
    roomy = chains.best(lower_s, search.best_s, gap=gap, has_memory=False, give_up=give_up)
    return roomy is None and not give_up()


def _pairs_of_ideals(search: Search, lattice: Lattice) -> Generator[None]:
    """Bounds, and offers partitions, by the program over pairs of ideals with exact memory."""
    problem = search.problem

    def out_of_time() -> bool:
        return search.remaining_s <= 0

    found = with_figures(problem, lattice)
    cutoff_s = search.best_s if search.best is not None else float(found.load_s[-1].max()) * 4
    relaxed = solve(problem, found, cutoff_s, span=False, give_up=out_of_time)
    if relaxed is None:
        search.notes.append("too many pairs of ideals for the time: no bound from them")
        return
    search.samples += 1
    if relaxed.assignment is not None:
        search.offer(relaxed.assignment[:, None])
    search.raise_bound(bound_of(relaxed, cutoff_s))
    yield
    if problem.mcm.constraints.triangle:
        # In a total order the triangle rule is the span rule, so what the program finds is optimal:
        # 1. Neighbours in the order have an edge, so each chip in use sends to the next in use.
        # 2. So an edge that skips a chip in use has a longer path between its two chips.
        # 3. The triangle rule forbids that, so every edge stays or goes to the next chip in use.
        is_exact = found.is_total_order
        outcome = solve(problem, found, cutoff_s, span=True, is_bound=is_exact, give_up=out_of_time)
        search.samples += 1
        if outcome is not None and outcome.assignment is not None:
            search.offer(outcome.assignment[:, None])
        if outcome is not None and is_exact:
            search.raise_bound(bound_of(outcome, cutoff_s))
        yield


def has_many_ideals(problem: Problem) -> bool:
    """Whether the graph has too many ideals for the program over pairs of them."""
    is_acyclic = problem.mcm.constraints.acyclic
    return not is_acyclic or count_ideals(problem, MOST_IDEALS) is None


def _least_bottleneck(search: Search, lattice: Lattice) -> Generator[None]:
    """Bounds, and often solves, problems with too many ideals for pairs of them."""
    outcome = least_bottleneck(
        search.problem,
        lattice,
        search.bound.seconds,
        _upper_s(search),
        gap=_gap(search),
        give_up=lambda: search.remaining_s <= 0,
    )
    search.samples += 1
    search.raise_bound(Bound(outcome.lower_s, "ideals"))
    if outcome.assignment is not None:
        search.offer(outcome.assignment[:, None])
    yield


def _upper_s(search: Search) -> float:
    """Upper end of a bisection in seconds: the best bottleneck, else four times the mean load."""
    return search.best_s if search.best is not None else 4 * search.problem.mean_load_s


def _gap(search: Search) -> float:
    return max(search.budget.relative_gap / 2, _LEAST_GAP)


def exact(search: Search) -> Generator[None]:
    """Solves the integer program, from the best cut of the program order and grown clusters."""
    yield from program_order(search)
    yield from itertools.islice(cluster_search(search), 1)
    search.start_clock()
    search.enter("integer program")
    with contextlib.closing(Prover(search, always=True)) as prover:
        prover.step()
        while prover.is_running:
            time.sleep(_POLL_S)
            yield
            prover.step()
    yield
