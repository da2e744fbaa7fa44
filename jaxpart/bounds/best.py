"""The best lower bound within a time limit: cheap bounds first, until one is close enough."""

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

# Share of the remaining time that each bound except the last may take.
_TIME_SHARE = 0.4
# Largest number of ideals for the bound `ideals`.
_MAX_IDEALS = 250_000
# Relative gap at which the search of the bound `ideals` ends.
_IDEALS_GAP = 1e-5
# Without an incumbent, bounds are sought up to this multiple of the combinatorial bound.
_HIGH_FACTOR = 4.0


def best_bound(
    problem: Problem,
    budget_s: float,
    incumbent_s: float | None = None,
    *,
    gap: float = 1e-4,
) -> Bound:
    """The best lower bound on the bottleneck that is found in the time.

    The bounds are tried in this order: combinatorial (`bounds/combinatorial.py`), reduction
    (`bounds/reduction.py`), the dynamic programs over ideals if there are few ideals
    (`bounds/ideals/`), and superblocks (`bounds/superblocks.py`).

    Args:
      problem: of N nodes, with a valid partition.
      budget_s: seconds of wall time; a step that has begun is finished first.
      incumbent_s: bottleneck of a valid partition in seconds; the bound is at most this.
      gap: relative; the search stops when the bound is this close to the incumbent.

    Returns:
      The bound in seconds and the name of its proof.
    """
    best = combinatorial_bound(problem)
    if best.seconds <= 0:
        return best
    deadline = time.monotonic() + budget_s
    high_s = _HIGH_FACTOR * best.seconds if incumbent_s is None else incumbent_s
    costlier: tuple[tuple[str, float, Callable[..., float]], ...] = (
        ("reduction", _TIME_SHARE, destructive_bound),
        ("ideals", _TIME_SHARE, ideals_bound),
        ("superblocks", 1.0, superblock_bound),
    )
    for method, share, bound in costlier:
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
    """The bound from the dynamic programs over ideals, if there are few ideals.

    Args:
      problem: of N nodes.
      low_s: a lower bound in seconds.
      high_s: where the search for a better bound stops, in seconds: the bottleneck of a valid
        partition, or a guess.
      give_up: asked from time to time whether to stop.

    Returns:
      A lower bound in seconds; `low_s` if there are too many ideals or dataflow may be cyclic.
    """
    if not problem.mcm.constraints.acyclic:
        return low_s
    lattice = enumerate_ideals(problem, _MAX_IDEALS, give_up)
    if lattice is None:
        return low_s
    if can_count(problem) and is_narrow(lattice):
        return ParametricSearch(problem, lattice).bound(
            low_s, high_s, gap=_IDEALS_GAP, give_up=give_up
        )
    outcome = least_bottleneck(problem, lattice, low_s, high_s, gap=_IDEALS_GAP, give_up=give_up)
    return outcome.lower_s
