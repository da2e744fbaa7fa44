"""Proofs: what is left below the incumbent, by CP-SAT or SCIP."""

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
    chips: int | None = None,
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
      prover: which solver takes the program; "reduction" states none, and "superblocks" goes on
        with a bound from one chip at a time.
      threads: of CP-SAT; SCIP has one.
      chips: only the first so many are used: a smaller program, which finds but proves nothing.
      time_limit_s: after which the best so far comes with the bound so far.
      seed: of the solver.

    Returns:
      OPTIMAL (up to `gap`), FEASIBLE, TIME_LIMIT or INFEASIBLE: proven that nothing is valid.
      `objective` is the bottleneck and `bound` a lower bound on every one, both in seconds.
    """
    began = time.monotonic()
    if problem.is_contradictory:
        return Outcome(Status.INFEASIBLE)
    best_s = math.inf if incumbent is None else host.bottleneck_s(problem, incumbent)
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
    within = _Within(bound_s, cutoff_s, problem.num_chips if chips is None else chips)
    found = _solve(problem, within, limits, prover, threads)
    if found.status is Status.INFEASIBLE and incumbent is None:
        return Outcome(Status.INFEASIBLE, seconds=time.monotonic() - began)
    bound_s = max(bound_s, min(found.bound, cutoff_s))
    if found.assignment is not None:
        found_s = host.bottleneck_s(problem, found.assignment)
        if found_s < best_s:
            incumbent, best_s = found.assignment, found_s
    return _outcome(incumbent, best_s, min(bound_s, best_s), gap, began)


class _Within(NamedTuple):
    """What is sought: a bottleneck between the two, on the first chips."""

    bound_s: float
    cutoff_s: float
    chips: int


def _solve(
    problem: Problem, within: _Within, limits: Limits, prover: Prover, threads: int
) -> Solution:
    """The reduced program's solution, of nodes and in seconds; its bound holds for all chips."""
    began = time.monotonic()
    reduced = reduce_below(problem, within.cutoff_s)
    if reduced is None:
        return Solution(Status.INFEASIBLE, None, None, within.cutoff_s)
    high = np.minimum(reduced.high, within.chips - 1)
    is_all = within.chips >= problem.num_chips
    nothing = Solution(Status.TIME_LIMIT, None, None, within.bound_s)
    if (reduced.low > high).any() or (high - reduced.low).sum() > _MOST_BITS:
        return nothing
    unit_s = (within.cutoff_s if math.isfinite(within.cutoff_s) else within.bound_s) or 1.0
    model = Model(reduced.problem, reduced.low, high, unit_s=unit_s)
    if model.is_infeasible:
        return Solution(Status.INFEASIBLE, None, None, within.cutoff_s) if is_all else nothing
    model.seek_bottleneck()
    rules = problem.mcm.constraints
    if rules.triangle and rules.acyclic:
        state_triangles(model, reachability_matrix(reduced.problem.contracted))
    left_s = max(0.0, limits.time_s - (time.monotonic() - began))
    limits = dataclasses.replace(limits, time_s=left_s)
    cutoff, floor = within.cutoff_s / unit_s, within.bound_s / unit_s
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
    seconds = time.monotonic() - began
    if best is None:
        return Outcome(Status.TIME_LIMIT, bound=bound_s, seconds=seconds)
    status = Status.OPTIMAL if best_s <= bound_s * (1 + gap) else Status.FEASIBLE
    return Outcome(status, best, best_s, bound_s, seconds)
