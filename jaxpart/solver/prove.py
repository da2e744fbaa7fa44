"""Proofs: what is left below the incumbent, by CP-SAT or SCIP."""

from __future__ import annotations

import math
import time
from typing import Literal

import numpy as np

from jaxpart import exact
from jaxpart.bound import combinatorial_bound
from jaxpart.problem import IntArray, Problem
from jaxpart.solver import cpsat, scip
from jaxpart.solver.model import Model
from jaxpart.solver.reduce import destructive_bound, reachable, reduce_below
from jaxpart.solver.repair import Outcome
from jaxpart.solver.scip import Limits, Solution, Status
from jaxpart.solver.triangle import state_triangles

Prover = Literal["cpsat", "scip", "reduction"]

# A reduced program with more bits than this takes longer to state than a proof should last.
_MOST_BITS = 40_000
# Of the time, how much the reduction's bound may take.
_SHARE = 0.25
# Without an incumbent, T is sought below so many times the known bound.
_UNKNOWN = 4.0


def prove(
    problem: Problem,
    *,
    incumbent: IntArray | None = None,
    floor_s: float = 0.0,
    gap: float = 1e-5,
    prover: Prover = "cpsat",
    threads: int = 1,
    time_limit_s: float,
    seed: int = 0,
) -> Outcome:
    """Something better than the incumbent, or a proof that nothing is.

    First the bound that the reduction gives, then the integer program of what it leaves.

    Args:
      problem: of N nodes.
      incumbent: [N] a valid partition.
      floor_s: a lower bound on every valid partition's bottleneck, known already.
      gap: relative; only what is better than the incumbent by more than this is sought.
      prover: which solver takes the program; "reduction" states none.
      threads: of CP-SAT; SCIP has one.
      time_limit_s: after which the best so far comes with the bound so far.
      seed: of the solver.

    Returns:
      OPTIMAL (up to `gap`), FEASIBLE, TIME_LIMIT or INFEASIBLE: proven that nothing is valid.
      `objective` is the bottleneck and `bound` a lower bound on every one, both in seconds.
    """
    began = time.monotonic()
    if (problem.block_pin == -2).any():
        return Outcome(Status.INFEASIBLE)
    best_s = math.inf if incumbent is None else bottleneck_s(problem, incumbent)
    floor_s = max(floor_s, combinatorial_bound(problem).seconds)
    # Nothing from here up is of interest; a proof that nothing lies below it closes the gap, with
    # half of it left for the solvers' tolerances.
    cutoff_s = best_s / (1 + gap / 2)
    bound_s = destructive_bound(
        problem,
        floor_s,
        min(cutoff_s, _UNKNOWN * floor_s) if incumbent is None else cutoff_s,
        lambda: time.monotonic() - began > _SHARE * time_limit_s,
    )
    if prover == "reduction" or bound_s >= cutoff_s:
        return _outcome(incumbent, best_s, bound_s, gap, began)
    found = None
    reduced = reduce_below(problem, cutoff_s)
    if reduced is None:
        bound_s = cutoff_s
        found = Solution(Status.INFEASIBLE, None, None, cutoff_s)
    elif (reduced.high - reduced.low).sum() <= _MOST_BITS:
        unit_s = best_s if math.isfinite(best_s) and best_s > 0 else floor_s or 1.0
        model = Model(reduced.problem, reduced.low, reduced.high, unit_s=unit_s)
        found = Solution(Status.INFEASIBLE, None, None, cutoff_s / unit_s)
        if not model.is_infeasible:
            model.seek_bottleneck()
            rules = problem.mcm.constraints
            if rules.triangle and rules.acyclic:
                state_triangles(model, reachable(reduced.problem.contracted))
            left_s = max(0.0, time_limit_s - (time.monotonic() - began))
            limits = Limits(left_s, gap=gap / 2, seed=seed)
            cutoff, floor = cutoff_s / unit_s, bound_s / unit_s
            if prover == "cpsat":
                found = cpsat.solve(model, limits, cutoff=cutoff, floor=floor, workers=threads)
            else:
                found = scip.solve(model, limits, cutoff=cutoff)
        bound_s = max(bound_s, min(found.bound * unit_s, cutoff_s))
        if found.assignment is not None:
            f = found.assignment[reduced.problem.block]
            found_s = bottleneck_s(problem, f)
            if found_s < best_s:
                incumbent, best_s = f, found_s
            bound_s = min(bound_s, best_s)
    if incumbent is None and found is not None and found.status is Status.INFEASIBLE:
        return Outcome(Status.INFEASIBLE, seconds=time.monotonic() - began)
    return _outcome(incumbent, best_s, bound_s, gap, began)


def bottleneck_s(problem: Problem, f: IntArray) -> float:
    """T of the partition f [N], in seconds."""
    loads = exact.loads(problem, f)
    bandwidth = problem.mcm.link_bandwidth
    arrives, leaves = loads.in_bytes / bandwidth, loads.out_bytes / bandwidth
    if problem.mcm.overlap:
        stage = np.maximum(loads.compute_s, np.maximum(arrives, leaves))
    else:
        stage = loads.compute_s + arrives + leaves
    return float(max(stage.max(), loads.link_bytes.max(initial=0.0) / bandwidth))


def _outcome(
    best: IntArray | None,
    best_s: float,
    bound_s: float,
    gap: float,
    began: float,
) -> Outcome:
    seconds = time.monotonic() - began
    if best is None:
        return Outcome(Status.TIME_LIMIT, bound=bound_s, seconds=seconds)
    status = Status.OPTIMAL if best_s <= bound_s * (1 + gap) else Status.FEASIBLE
    return Outcome(status, best, best_s, bound_s, seconds)
