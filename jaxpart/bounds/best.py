"""Lower bounds from cheap to dear, until one is near enough."""

from __future__ import annotations

import time
from collections.abc import Callable

from jaxpart.bounds.combinatorial import Bound, combinatorial_bound
from jaxpart.bounds.ideals.lattice import enumerate_ideals
from jaxpart.bounds.ideals.load_program import least_bottleneck
from jaxpart.bounds.ideals.parametric_search import ParametricSearch, can_count, is_narrow
from jaxpart.bounds.reduction import destructive_bound
from jaxpart.bounds.superblocks import superblock_bound
from jaxpart.problem.problem import Problem

# Of the time that is left, how much each of the bounds before the last may take.
_SHARE = 0.4
_MOST_IDEALS = 250_000
# Bisection over ideals ends at this relative gap.
_CLOSE = 1e-5
# Without a bottleneck that is attained, bounds are sought up to so many times the first.
_UNKNOWN = 4.0


def best_bound(
    problem: Problem,
    budget_s: float,
    incumbent_s: float | None = None,
    *,
    gap: float = 1e-4,
) -> Bound:
    """The best lower bound on the bottleneck found in the time, with the name of its proof.

    In this order: the combinatorial ones (`jaxpart.bound`), what a cut-off forces
    (`solver.reduce`), the dynamic program over ideals where they are few (`jaxpart.stages`), and
    one chip at a time (`solver.superblock`).

    Args:
      problem: of N nodes, with a valid partition.
      budget_s: of wall time; a step under way is finished first.
      incumbent_s: bottleneck of a valid partition; the bound is at most this.
      gap: relative; stops when the bound is this near to the incumbent.
    """
    best = combinatorial_bound(problem)
    if best.seconds <= 0:
        return best
    deadline = time.monotonic() + budget_s
    high_s = _UNKNOWN * best.seconds if incumbent_s is None else incumbent_s
    dearer: tuple[tuple[str, float, Callable[..., float]], ...] = (
        ("reduction", _SHARE, destructive_bound),
        ("ideals", _SHARE, ideals_bound),
        ("superblocks", 1.0, superblock_bound),
    )
    for method, share, bound in dearer:
        now = time.monotonic()
        near = incumbent_s is not None and best.seconds * (1 + gap) >= incumbent_s
        if near or now >= deadline:
            break
        until = now + share * (deadline - now)
        seconds = bound(problem, best.seconds, high_s, give_up=lambda t=until: time.monotonic() > t)
        if seconds > best.seconds:
            best = Bound(seconds, method)
    return best if incumbent_s is None else Bound(min(best.seconds, incumbent_s), best.method)


def ideals_bound(
    problem: Problem, low_s: float, high_s: float, give_up: Callable[[], bool]
) -> float:
    """Where ideals are few, the bound that the dynamic program over them gives."""
    if not problem.mcm.constraints.acyclic:
        return low_s
    lattice = enumerate_ideals(problem, _MOST_IDEALS, give_up)
    if lattice is None:
        return low_s
    if can_count(problem) and is_narrow(lattice):
        return ParametricSearch(problem, lattice).bound(low_s, high_s, gap=_CLOSE, give_up=give_up)
    outcome = least_bottleneck(problem, lattice, low_s, high_s, gap=_CLOSE, give_up=give_up)
    return outcome.lower_s
