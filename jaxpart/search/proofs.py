"""Methods that need no luck: the baseline, and the exact programs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator

from jaxpart.bound import Bound, bound_of
from jaxpart.ideals import count_ideals, list_ideals, list_prefixes, solve
from jaxpart.lattice import enumerate_ideals
from jaxpart.problem import Problem
from jaxpart.search.clusters import cluster_search
from jaxpart.search.prover import Prover
from jaxpart.search.state import Search
from jaxpart.stages import least_bottleneck

# A graph with more ideals than this is not narrow: listing them is a second, pairs are many.
MOST_IDEALS = 40_000
# Cutting the program order weighs pairs of nodes: a few seconds for so many.
MOST_BLOCKS = 4000
# What cutting the program order may take: it is a start, no more.
_SHARE_TO_CUT = 0.15
_FEW_WEIGHINGS = 2000
# Listing so many takes about ten seconds, a test of a bottleneck about two: where there are so many
# seconds, otherwise a quarter; and the share of the time that listing may take.
MOST_BISECTED = 1_000_000
_LONG_S = 40.0
_SHARE_TO_LIST = 0.25
_LEAST_GAP = 1e-6
_POLL_S = 0.05


def greedy(search: Search) -> Generator[None]:
    """The baseline alone, which the engine has run already."""
    search.start_clock()
    yield


def program_order(search: Search) -> Generator[None]:
    """The program order cut optimally, with nothing to compile."""
    problem = search.problem
    if not problem.mcm.constraints.acyclic or problem.num_blocks > MOST_BLOCKS:
        return
    search.enter("program order")
    search.start_clock()
    cutoff_s = search.best_s if search.best is not None else math.inf
    found = list_prefixes(problem)
    until_s = search.searched_s + _SHARE_TO_CUT * max(search.remaining_s, 0.0)
    has_triangle = problem.mcm.constraints.triangle
    outcome = solve(
        problem,
        found,
        cutoff_s,
        span=has_triangle,
        is_bound=False,
        weighings=_FEW_WEIGHINGS,
        give_up=lambda: search.searched_s > until_s,
    )
    search.samples += 1
    if outcome is not None and outcome.assignment is not None:
        search.offer(outcome.assignment[:, None])
    yield


def ideals(search: Search) -> Generator[None]:
    """Bounds by the dynamic program over ideals, and the best partition within the span rule."""
    search.enter("ideals")
    problem = search.problem
    search.start_clock()

    def out_of_time() -> bool:
        return search.remaining_s <= 0

    found = list_ideals(problem, MOST_IDEALS) if problem.mcm.constraints.acyclic else None
    if found is None:
        yield from _least_bottleneck(search)
        return
    yield
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
        # In a total order a chip feeds the next, so any edge over two chips has a path beside it:
        # the triangle rule is the span rule, and what the program finds is optimal.
        is_exact = found.is_total_order
        outcome = solve(problem, found, cutoff_s, span=True, is_bound=is_exact, give_up=out_of_time)
        search.samples += 1
        if outcome is not None and outcome.assignment is not None:
            search.offer(outcome.assignment[:, None])
        if outcome is not None and is_exact:
            search.raise_bound(bound_of(outcome, cutoff_s))
        yield


def has_many_ideals(problem: Problem) -> bool:
    """Whether there are too many for the program over pairs of them."""
    is_acyclic = problem.mcm.constraints.acyclic
    return not is_acyclic or count_ideals(problem, MOST_IDEALS) is None


def _least_bottleneck(search: Search) -> Generator[None]:
    """The bound, and often the optimum, where ideals are too many for pairs of them."""
    problem, rules = search.problem, search.problem.mcm.constraints
    until_s = search.searched_s + _SHARE_TO_LIST * max(search.remaining_s, 0.0)

    def is_too_long() -> bool:
        return search.searched_s > until_s

    most = MOST_BISECTED if search.remaining_s > _LONG_S else MOST_BISECTED // 4
    lattice = enumerate_ideals(problem, most, is_too_long) if rules.acyclic else None
    if lattice is None:
        search.notes.append(f"over {most} ideals, or too many for the time: no bound")
        return
    yield
    outcome = least_bottleneck(
        problem,
        lattice,
        search.bound.seconds,
        search.best_s if search.best is not None else 4 * problem.mean_load_s,
        gap=max(search.budget.gap / 2, _LEAST_GAP),
        give_up=lambda: search.remaining_s <= 0,
    )
    search.samples += 1
    search.raise_bound(Bound(outcome.lower_s, "ideals"))
    if outcome.assignment is not None:
        search.offer(outcome.assignment[:, None])
    yield


def exact(search: Search) -> Generator[None]:
    """The integer program below the best cuts of the program order and grown clusters."""
    yield from program_order(search)
    yield from itertools.islice(cluster_search(search), 1)
    search.start_clock()
    search.enter("integer program")
    with Prover(search, always=True) as prover:
        prover.step()
        while prover.is_running:
            time.sleep(_POLL_S)
            yield
            prover.step()
    yield
