"""Large-neighbourhood search from a valid partition, and the optimum with a proof, by SCIP."""

from __future__ import annotations

import math
import time

import numpy as np

from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.model import Model
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Limits, Status, solve

# Relative: an improvement smaller than this is rounding.
_LEAST_GAIN = 1e-6
# Relative: stages this near to the slowest are bottlenecks too, as T falls only if all of them do.
_TIE = 1e-4
# Most bits of a window's program: a larger one takes too long to state.
_MOST_BITS = 30_000


def lns(
    problem: Problem,
    f: IntArray,
    *,
    time_limit_s: float,
    seed: int = 0,
    focus: int | None = None,
) -> Outcome:
    """Improves a valid partition around its bottleneck by large-neighbourhood search.

    Each round frees the contracted nodes on chips within a radius of the slowest stages, fixes all
    others, and solves for the smallest T. An improvement becomes the new incumbent and resets the
    radius; without one, the radius doubles.

    Args:
      problem: of N nodes.
      f: [N] a valid partition.
      time_limit_s: time limit in seconds; then the incumbent is the answer.
      seed: of SCIP.
      focus: a chip whose surroundings are freed too.

    Returns:
      FEASIBLE with the best partition (`f` itself where nothing improved) and its T in seconds.
      OPTIMAL only where the last window contained every valid partition.
    """
    began = time.monotonic()
    deadline = began + time_limit_s
    best = problem.contracted_assignment(f)
    span = problem.mcm.constraints.triangle and _keeps_span(problem, best)
    best_s, slowest = _bottleneck(problem, best)
    bound = -math.inf
    radius, status = 1, Status.FEASIBLE
    while best_s > 0 and deadline > time.monotonic():
        near = [c for c in slowest if focus is None or c != focus] + (
            [] if focus is None else [focus]
        )
        distance = np.abs(best[:, None] - np.array(near)[None]).min(axis=1)
        reach = np.where(distance <= radius, 2 * radius, 0)
        low = np.maximum(best - reach, 0)
        high = np.minimum(best + reach, problem.num_chips - 1)
        is_all = bool((high - low == problem.num_chips - 1).all())
        if (high - low).sum() > _MOST_BITS:
            break
        model = Model(problem, low, high, span=span, unit_s=best_s)
        model.seek_bottleneck()
        limits = Limits(deadline - time.monotonic(), gap=_TIE, seed=seed)
        found = solve(model, limits, cutoff=1 - _LEAST_GAIN)
        if is_all and not span:
            bound = found.bound * best_s
        has_improved = False
        if found.assignment is not None:
            found_s, found_slowest = _bottleneck(problem, found.assignment)
            has_improved = found_s < best_s
            if has_improved:
                best, best_s, slowest = found.assignment, found_s, found_slowest
        if is_all and found.status in (Status.OPTIMAL, Status.INFEASIBLE):
            status = Status.FEASIBLE if span else Status.OPTIMAL
            break
        if is_all and not has_improved:
            break
        radius = 1 if has_improved else 2 * radius
    return Outcome(status, best[problem.contraction], best_s, bound, time.monotonic() - began)


def solve_exact(
    problem: Problem,
    *,
    incumbent: IntArray | None = None,
    time_limit_s: float,
    seed: int = 0,
) -> Outcome:
    """Finds the partition with the smallest bottleneck, and a lower bound on all bottlenecks.

    Args:
      problem: of N nodes.
      incumbent: [N] a valid partition to start from.
      time_limit_s: time limit in seconds; then the best so far, if any, comes with the bound so
        far.
      seed: of SCIP.

    Returns:
      OPTIMAL, FEASIBLE, TIME_LIMIT or INFEASIBLE (proven). `objective` is T and `bound` a lower
      bound on every valid partition's T, both in seconds. SCIP keeps rows and prunes within
      tolerances of 1e-6, where T is about 1. The bound is lowered by 1e-5 for that, so OPTIMAL
      leaves a gap of about 1e-5.
    """
    began = time.monotonic()
    if problem.is_contradictory:
        return Outcome(Status.INFEASIBLE, seconds=time.monotonic() - began)
    starts = []
    unit_s = _unit_s(problem)
    if incumbent is not None:
        starts.append(problem.contracted_assignment(incumbent))
        incumbent_s, _ = _bottleneck(problem, starts[0])
        unit_s = incumbent_s or unit_s
    low = np.zeros(problem.num_contracted, np.int64)
    model = Model(problem, low, low + problem.num_chips - 1, unit_s=unit_s)
    if not model.is_infeasible:
        model.seek_bottleneck()
    left = time_limit_s - (time.monotonic() - began)
    found = solve(model, Limits(left, seed=seed), starts)
    best, best_s = found.assignment, None if found.objective is None else found.objective * unit_s
    if best is None and starts and found.status is Status.TIME_LIMIT:
        best, best_s = starts[0], incumbent_s
        found_status = Status.FEASIBLE
    else:
        found_status = found.status
    bound = max(0.0, found.bound * unit_s)
    chips = None if best is None else best[problem.contraction]
    return Outcome(found_status, chips, best_s, bound, time.monotonic() - began)


def _bottleneck(problem: Problem, f: IntArray) -> tuple[float, list[int]]:
    """Returns T of the partition f [M] in seconds, and the chips of the slowest stages."""
    model = Model(problem, f, f, unit_s=1.0)
    stages = [(sum(a for _, a in terms), chips) for chips, terms in model.stages]
    bottleneck_s = max(load for load, _ in stages)
    near = {c for load, chips in stages if load >= bottleneck_s * (1 - _TIE) for c in chips}
    return float(bottleneck_s), sorted(near)


def _unit_s(problem: Problem) -> float:
    """Returns an estimate of T in seconds, for use where no partition is known."""
    traffic_s = problem.tensor_bytes.max(initial=0.0) / problem.mcm.link_bandwidth
    return problem.mean_load_s or float(traffic_s) or 1.0


def _keeps_span(problem: Problem, f: IntArray) -> bool:
    """Returns whether 0 <= f(v) - f(u) <= 1 on every edge, for f [M]."""
    pairs = f[problem.contracted_pairs]
    step = pairs[:, 1] - pairs[:, 0]
    return bool(((step >= 0) & (step <= 1)).all())
