"""The nearest valid partition: a minimum cut where it suffices; cuts of its order, and SCIP, for
what that leaves broken."""

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
from jaxpart.solvers.minimum_cut import EdgeRule, contracted_chips, nearest, squeeze
from jaxpart.solvers.model import Model
from jaxpart.solvers.scip import Limits, Status, solve

# A window's model with more bits than this takes longer to state than a repair should last.
_MOST_BITS = 30_000
# The same where a valid partition is in hand already, and is only to come nearer.
_FEW_BITS = 4_000


class Step(enum.IntEnum):
    """What found a repaired partition."""

    CUT = 0  # the minimum cut
    WINDOW = 1  # SCIP, on the surroundings of what the cut left broken
    PROGRAM = 2  # SCIP, with every contracted node free
    ORDER = 3  # cuts of an order of the contracted nodes


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """How a task ended: a repair, a polish or an exact solution.

    `assignment` keeps every rule as far as the host can tell; `cost.verify` decides.
    """

    status: Status
    assignment: IntArray | None = None  # [N] chips; None unless OPTIMAL or FEASIBLE
    objective: float | None = None  # of it: the weighted distance, or the bottleneck in seconds
    bound: float = -math.inf  # no valid partition has a smaller objective
    seconds: float = 0.0  # spent in the worker
    message: str = ""  # what went wrong, with ERROR
    step: Step | None = None  # of a repair that found something


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
    """A valid partition near `y`, in the weighted distance sum of weight * |f - y|.

    First the nearest partition under dataflow and span, by a minimum cut, its unused chips squeezed
    out. If memory (or a pin across a squeezed chip) is still broken: the nearest cuts of that
    partition's order that fit (`construct`), which do where they are within `gap` of the cut's
    distance. Else SCIP on the contracted nodes within `window` chips of what is broken, each free
    to move as far, all else fixed; where nothing is in hand, twice as far while that has no answer,
    until all is free, where having none is a proof.

    Args:
      problem: of N nodes.
      y: [N] chips; numbers beyond the module count as its first or last chip.
      weights: [N] cost of moving each node by one chip; ones by default.
      time_limit_s: after which the best so far, if any, is the answer.
      window: chips around what is broken to free first; None to solve for the nearest of all.
      gap: relative, from the cut's distance or in a window, at which the repair is near enough; 0
        for the nearest.
      nodes: of SCIP's search tree in each window, at which it stops; -1: no limit. Unlike time, the
        same on every run.
      seed: of SCIP.

    Returns:
      OPTIMAL only where no valid partition is nearer; FEASIBLE: valid; INFEASIBLE: proven that
      nothing is valid; TIME_LIMIT: nothing found in time.
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
        # A superset of what is valid has nothing nearer.
        if not weights[f != y].any() or (strict == loose and f is cut):
            return outcome(Status.OPTIMAL, f, Step.CUT, least)
        if window is not None and distance(f) <= (1 + gap) * least:
            return outcome(Status.FEASIBLE, f, Step.CUT)
    if time.monotonic() < deadline:
        # Also where squeezing has moved all that is behind an unused chip.
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
            model.separate(contracted_chips(problem, guide if f is None else f))  # in every window
        elif window is None:
            starts.append(contracted_chips(problem, best))
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
    """[C] chips whose memory overflows, or that are skipped; what a cut may leave broken."""
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
    """low [M], high [M] and whether to ask for span, from small to everything."""
    chips, contracted = problem.num_chips, problem.num_contracted
    has_triangle = problem.mcm.constraints.triangle
    lowest, highest = np.zeros(contracted, np.int64), np.full(contracted, chips - 1, np.int64)
    if f is not None and window is not None:
        center = contracted_chips(problem, f)
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
