"""Proofs that nothing better than the incumbent exists, by reduction, CP-SAT or SCIP."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Literal, NamedTuple

import numpy as np

from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.bounds.reachability import reachability_matrix
from jaxpart.bounds.reduction import destructive_bound, reduce_below
from jaxpart.bounds.superblocks import superblock_bound
from jaxpart.cost import host
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers import cpsat, scip
from jaxpart.solvers.model import Model
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Limits, Solution, Status
from jaxpart.solvers.triangle import state_triangles

Prover = Literal["cpsat", "scip", "reduction", "superblocks"]

# Most bits of a reduced program: stating a larger one takes longer than a proof should.
_MOST_BITS = 40_000
# Part of the time limit after which the bound of the reduction gives up.
_REDUCTION_TIME_SHARE = 0.25
# Without an incumbent, the bound of the reduction is sought up to this many times the known bound.
_CUTOFF_FACTOR = 4.0


def prove(
    problem: Problem,
    *,
    incumbent: IntArray | None = None,
    floor_s: float = 0.0,
    gap: float = 1e-5,
    prover: Prover = "cpsat",
    threads: int = 1,
    chips: int | None = None,
    time_limit_s: float,
    seed: int = 0,
) -> Outcome:
    """Finds a partition better than the incumbent, or proves that there is none.

    First the reduction gives a bound. Then the integer program of what the reduction leaves is
    solved.

    Args:
      problem: of N nodes.
      incumbent: [N] a valid partition.
      floor_s: a known lower bound on every valid partition's bottleneck, in seconds.
      gap: relative; only partitions better than the incumbent by more than this are sought.
      prover: the solver of the program, "cpsat" or "scip". "reduction" states no program.
        "superblocks" states none either; given an incumbent, it improves the bound one chip at a
        time.
      threads: of CP-SAT; SCIP uses one.
      chips: only this many chips, the first ones, are used. This makes a smaller program, which can
        find partitions but proves nothing.
      time_limit_s: time limit in seconds; then the best so far comes with the bound so far.
      seed: of the solver.

    Returns:
      OPTIMAL (up to `gap`), FEASIBLE, TIME_LIMIT or INFEASIBLE: proven that nothing is valid.
      `objective` is the bottleneck and `bound` a lower bound on all bottlenecks, both in seconds.
    """
    began = time.monotonic()
    if problem.is_contradictory:
        return Outcome(Status.INFEASIBLE)
    best_s = math.inf if incumbent is None else host.bottleneck_s(problem, incumbent)
    floor_s = max(floor_s, combinatorial_bound(problem).seconds)
    # Only a bottleneck below the cutoff is of interest. Proving that none exists closes the gap.
    # Half of the gap is left for the solvers' tolerances.
    cutoff_s = best_s / (1 + gap / 2)
    bound_s = destructive_bound(
        problem,
        floor_s,
        min(cutoff_s, _CUTOFF_FACTOR * floor_s) if incumbent is None else cutoff_s,
        lambda: time.monotonic() - began > _REDUCTION_TIME_SHARE * time_limit_s,
    )
    if prover == "superblocks" and incumbent is not None:
        bound_s = superblock_bound(
            problem,
            bound_s,
            cutoff_s,
            give_up=lambda: time.monotonic() - began > time_limit_s,
        )
    if prover in ("reduction", "superblocks") or bound_s >= cutoff_s:
        return _outcome(incumbent, best_s, bound_s, gap, began)
    left_s = max(0.0, time_limit_s - (time.monotonic() - began))
    limits = Limits(left_s, gap=gap / 2, seed=seed)
    target = _Target(bound_s, cutoff_s, problem.num_chips if chips is None else chips)
    found = _solve(problem, target, limits, prover, threads)
    if found.status is Status.INFEASIBLE and incumbent is None:
        return Outcome(Status.INFEASIBLE, seconds=time.monotonic() - began)
    bound_s = max(bound_s, min(found.bound, cutoff_s))
    if found.assignment is not None:
        found_s = host.bottleneck_s(problem, found.assignment)
        if found_s < best_s:
            incumbent, best_s = found.assignment, found_s
    return _outcome(incumbent, best_s, min(bound_s, best_s), gap, began)


class _Target(NamedTuple):
    """What is sought: a bottleneck between two bounds, in seconds, on the first chips."""

    bound_s: float
    cutoff_s: float
    chips: int


def _solve(
    problem: Problem, target: _Target, limits: Limits, prover: Prover, threads: int
) -> Solution:
    """Solves the integer program that the reduction leaves.

    Returns:
      `assignment` [N] is of nodes, and `bound`, in seconds, holds for all chips. With fewer chips
      than the module has, the status is TIME_LIMIT and the bound is the known one.
    """
    began = time.monotonic()
    reduced = reduce_below(problem, target.cutoff_s)
    if reduced is None:
        return Solution(Status.INFEASIBLE, None, None, target.cutoff_s)
    high = np.minimum(reduced.high, target.chips - 1)
    is_all = target.chips >= problem.num_chips
    nothing = Solution(Status.TIME_LIMIT, None, None, target.bound_s)
    if (reduced.low > high).any() or (high - reduced.low).sum() > _MOST_BITS:
        return nothing
    unit_s = (target.cutoff_s if math.isfinite(target.cutoff_s) else target.bound_s) or 1.0
    model = Model(reduced.problem, reduced.low, high, unit_s=unit_s)
    if model.is_infeasible:
        return Solution(Status.INFEASIBLE, None, None, target.cutoff_s) if is_all else nothing
    model.seek_bottleneck()
    rules = problem.mcm.constraints
    if rules.triangle and rules.acyclic:
        state_triangles(model, reachability_matrix(reduced.problem.contracted))
    left_s = max(0.0, limits.time_s - (time.monotonic() - began))
    limits = dataclasses.replace(limits, time_s=left_s)
    cutoff, floor = target.cutoff_s / unit_s, target.bound_s / unit_s
    if prover == "cpsat":
        found = cpsat.solve(model, limits, cutoff=cutoff, floor=floor, workers=threads)
    else:
        found = scip.solve(model, limits, cutoff=cutoff)
    f = None if found.assignment is None else found.assignment[reduced.problem.contraction]
    if is_all:
        return dataclasses.replace(found, assignment=f, bound=found.bound * unit_s)
    return dataclasses.replace(nothing, assignment=f)


def _outcome(
    best: IntArray | None,
    best_s: float,
    bound_s: float,
    gap: float,
    began: float,
) -> Outcome:
    """Returns the outcome of a proof, from its best partition [N] and its bound."""
    seconds = time.monotonic() - began
    if best is None:
        return Outcome(Status.TIME_LIMIT, bound=bound_s, seconds=seconds)
    status = Status.OPTIMAL if best_s <= bound_s * (1 + gap) else Status.FEASIBLE
    return Outcome(status, best, best_s, bound_s, seconds)
