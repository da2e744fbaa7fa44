"""The nearest valid partition: by a minimum cut, then cuts of its order, then SCIP."""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from collections.abc import Iterator

import numpy as np

from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.solvers.construct import construct
from jaxpart.solvers.minimum_cut import EdgeRule, nearest, squeeze
from jaxpart.solvers.model import Model
from jaxpart.solvers.scip import Limits, Status, solve

# Most bits of a window's program: stating a larger one takes longer than a repair should.
_MOST_BITS = 30_000
# The same where a valid partition is known and is only to come nearer.
_FEW_BITS = 4_000


class Step(enum.IntEnum):
    """The step that found a repaired partition."""

    CUT = 0  # the minimum cut
    WINDOW = 1  # SCIP, around the chips that the cut left broken
    PROGRAM = 2  # SCIP, with every contracted node free
    ORDER = 3  # cuts of an order of the contracted nodes (`construct`)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a solver task: a repair, large-neighbourhood search, exact solution or proof.

    `assignment` keeps every rule by the host's arithmetic; `verify` in `cost/evaluate.py` decides.
    """

    status: Status
    assignment: IntArray | None = None  # [N] chips; None unless OPTIMAL or FEASIBLE
    objective: float | None = None  # the assignment's weighted distance, or bottleneck in seconds
    bound: float = -math.inf  # no valid partition has a smaller objective
    seconds: float = 0.0  # time spent in the worker
    message: str = ""  # what went wrong; with ERROR
    step: Step | None = None  # of a repair that found a partition


def repair(
    problem: Problem,
    y: IntArray,
    weights: FloatArray | None = None,
    *,
    time_limit_s: float = 1.0,
    window: int | None = 2,
    gap: float = 0.1,
    nodes: int = -1,
    seed: int = 0,
) -> Outcome:
    """Finds a valid partition near `y`, by the weighted distance sum of weight * |f - y|.

    1. A minimum cut finds the nearest partition under dataflow and span. Its unused chips are
       squeezed out. If the result is valid and within `gap` of the cut's distance, it is the
       answer.
    2. `construct` finds the nearest cuts of that partition's order that fit. The nearer of the two
       is the answer if it is within `gap` of the cut's distance, or if there are no broken chips to
       start step 3 from.
    3. SCIP frees the contracted nodes within `window` chips of the broken ones, each to move by at
       most `window` chips, and fixes all others. If step 2 found a partition, one window is tried.
       Otherwise the window doubles while SCIP finds nothing, until everything is free. If SCIP then
       proves that there is no answer, nothing is valid.

    Args:
      problem: of N nodes.
      y: [N] chips; numbers outside the module count as its first or last chip.
      weights: [N] cost of moving each node by one chip, 0 or more; ones by default.
      time_limit_s: time limit in seconds; then the best so far, if any, is the answer.
      window: chips around the broken ones to free first; None solves for the nearest of all.
      gap: relative, to the cut's distance or to the bound in a window, at which the partition is
        near enough; 0 for the nearest.
      nodes: limit on SCIP's search tree in each window; -1: none. Unlike a time limit, it gives the
        same answer on every run.
      seed: of SCIP.

    Returns:
      OPTIMAL only where no valid partition is nearer; FEASIBLE: a valid one; INFEASIBLE: proven
      that nothing is valid; TIME_LIMIT: nothing found in time.
    """
    began = time.monotonic()
    deadline = began + time_limit_s
    y = np.clip(np.asarray(y, np.int64), 0, problem.num_chips - 1)
    weights = np.ones(problem.num_nodes) if weights is None else np.asarray(weights, np.float64)
    rules = problem.mcm.constraints
    loose: EdgeRule = "acyclic" if rules.acyclic else "none"
    strict: EdgeRule = "span" if rules.triangle else loose

    def distance(f: IntArray) -> float:
        return float((weights * np.abs(f - y)).sum())

    def outcome(
        status: Status,
        f: IntArray | None = None,
        step: Step | None = None,
        bound: float = -math.inf,
    ) -> Outcome:
        objective = None if f is None else distance(f)
        return Outcome(status, f, objective, bound, time.monotonic() - began, step=step)

    cut = nearest(problem, y, weights, rule=strict)
    guide = nearest(problem, y, weights, rule=loose) if cut is None else cut
    if guide is None:
        return outcome(Status.INFEASIBLE)
    f = cut
    if cut is not None and rules.no_skip:
        squeezed = squeeze(problem, cut)
        f = cut if squeezed is None else squeezed
    least = distance(guide)
    best: IntArray | None = None
    best_step = Step.CUT
    is_broken = f is None or _broken_chips(problem, f).any()
    if f is not None and not is_broken:
        best = f
        # At distance 0, or where every valid partition was a candidate of the cut, none is nearer.
        if not weights[f != y].any() or (strict == loose and f is cut):
            return outcome(Status.OPTIMAL, f, Step.CUT, least)
        if window is not None and distance(f) <= (1 + gap) * least:
            return outcome(Status.FEASIBLE, f, Step.CUT)
    if time.monotonic() < deadline:
        # Also for a valid but distant cut: squeezing moves all nodes above an unused chip.
        built = construct(problem, guide, y, weights)
        if built is not None and (best is None or distance(built) < distance(best)):
            best, best_step = built, Step.ORDER
    if best is not None and window is not None:
        is_near = distance(best) <= (1 + gap) * least
        if is_near or not is_broken or f is None:
            return outcome(Status.FEASIBLE, best, best_step)

    if best is None and why_infeasible(problem) is not None:
        return outcome(Status.INFEASIBLE)
    bound = -math.inf
    most_bits = _MOST_BITS if best is None else _FEW_BITS
    for low, high, span in _windows(problem, f, window):
        is_last = not span and (high - low == problem.num_chips - 1).all()
        if window is not None and (high - low).sum() > most_bits:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            break
        model = Model(problem, low, high, span=span)
        model.seek_nearest(problem.contraction, y, weights)
        starts, cutoff = [], math.inf
        if best is None:
            # The rows that the cut breaks are stated before SCIP starts, in each window anew.
            model.separate(problem.contracted_assignment(guide if f is None else f))
        elif window is None:
            starts.append(problem.contracted_assignment(best))
        else:
            cutoff = distance(best)
        left = deadline - time.monotonic()
        limits = Limits(left, gap=gap, nodes=nodes, seed=seed)
        found = solve(model, limits, starts, cutoff)
        if is_last:
            bound = found.bound
        if found.assignment is not None:
            is_optimal = is_last and found.status is Status.OPTIMAL
            return outcome(
                Status.OPTIMAL if is_optimal else Status.FEASIBLE,
                found.assignment[problem.contraction],
                Step.PROGRAM if is_last else Step.WINDOW,
                bound,
            )
        if best is not None:
            break
        if is_last and found.status is Status.INFEASIBLE:
            return outcome(Status.INFEASIBLE)
    if best is not None:
        return outcome(Status.FEASIBLE, best, best_step, bound)
    return outcome(Status.TIME_LIMIT)


def _broken_chips(problem: Problem, f: IntArray) -> host.BoolArray:
    """Returns [C] whether a chip's memory overflows or the chip is skipped, as after a cut."""
    rules = problem.mcm.constraints
    broken = np.zeros(problem.num_chips, bool)
    if rules.memory:
        broken |= host.memory_bytes(problem, f) > problem.capacity_bytes
    if rules.no_skip:
        used = np.bincount(f, minlength=problem.num_chips) > 0
        broken[: f.max()] |= ~used[: f.max()]
    return broken


def _windows(
    problem: Problem, f: IntArray | None, window: int | None
) -> Iterator[tuple[IntArray, IntArray, bool]]:
    """Yields low [M], high [M] and whether to ask for span, from a small window to everything."""
    chips, contracted = problem.num_chips, problem.num_contracted
    has_triangle = problem.mcm.constraints.triangle
    lowest, highest = np.zeros(contracted, np.int64), np.full(contracted, chips - 1, np.int64)
    if f is not None and window is not None:
        center = problem.contracted_assignment(f)
        broken = np.flatnonzero(_broken_chips(problem, f))
        distance = np.abs(center[:, None] - broken[None]).min(axis=1)
        while window < chips:
            reach = np.where(distance <= window, window, 0)
            low, high = np.maximum(center - reach, 0), np.minimum(center + reach, chips - 1)
            yield low, high, has_triangle
            window *= 2
        if has_triangle:
            yield lowest, highest, True
    yield lowest, highest, False
