"""The nearest valid partition: a minimum cut where it suffices, SCIP for what it leaves broken."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np

from jaxpart import exact
from jaxpart.feasibility import why_infeasible
from jaxpart.problem import FloatArray, IntArray, Problem
from jaxpart.solver.cut import Rule, block_chips, nearest, squeeze
from jaxpart.solver.model import Model
from jaxpart.solver.scip import Limits, Status, solve

# A window's model with more bits than this takes longer to state than a repair should last.
_MOST_BITS = 30_000


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
    out. If memory (or a pin across a squeezed chip) is still broken: SCIP on the blocks within
    `window` chips of what is broken, each free to move as far, all else fixed; twice as far where
    that has no answer, until all is free, where having none is a proof.

    Args:
      problem: of N nodes.
      y: [N] chips; numbers beyond the module count as its first or last chip.
      weights: [N] cost of moving each node by one chip; ones by default.
      time_limit_s: after which the best so far, if any, is the answer.
      window: chips around what is broken; None frees everything at once, parallel branches on
        parallel chips included, for the nearest valid partition of all.
      gap: relative to the best possible in the window, at which SCIP stops; 0 for the nearest.
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
    loose: Rule = "acyclic" if rules.acyclic else "none"
    strict: Rule = "span" if rules.triangle else loose

    def outcome(status: Status, f: IntArray | None = None, bound: float = -math.inf) -> Outcome:
        distance = None if f is None else float((weights * np.abs(f - y)).sum())
        return Outcome(status, f, distance, bound, time.monotonic() - began)

    cut = nearest(problem, y, weights, rule=strict)
    if cut is None and nearest(problem, y, weights, rule=loose) is None:
        return outcome(Status.INFEASIBLE)
    f = cut
    if cut is not None and rules.no_skip:
        squeezed = squeeze(problem, cut)
        f = cut if squeezed is None else squeezed
    is_valid = f is not None and not _broken_chips(problem, f).any()
    if f is not None and is_valid:
        # A superset of what is valid has nothing nearer.
        if not weights[f != y].any() or (strict == loose and f is cut):
            return outcome(Status.OPTIMAL, f, float((weights * np.abs(f - y)).sum()))
        if window is not None:
            return outcome(Status.FEASIBLE, f)

    if why_infeasible(problem) is not None:
        return outcome(Status.INFEASIBLE)
    bound = -math.inf
    for low, high, span in _windows(problem, f, window):
        is_last = not span and (high - low == problem.num_chips - 1).all()
        if window is not None and (high - low).sum() > _MOST_BITS:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            break
        model = Model(problem, low, high, span=span)
        model.seek_nearest(problem.block, y, weights)
        starts = []
        if f is not None and is_valid:
            starts.append(block_chips(problem, f))
        elif f is not None:
            model.separate(block_chips(problem, f))
        left = deadline - time.monotonic()
        found = solve(model, Limits(left, gap=gap, nodes=nodes, seed=seed), starts)
        if is_last:
            bound = found.bound
        if found.assignment is not None:
            is_optimal = is_last and found.status is Status.OPTIMAL
            return outcome(
                Status.OPTIMAL if is_optimal else Status.FEASIBLE,
                found.assignment[problem.block],
                bound,
            )
        if is_last and found.status is Status.INFEASIBLE:
            return outcome(Status.INFEASIBLE)
    if f is not None and is_valid:
        return outcome(Status.FEASIBLE, f, bound)
    return outcome(Status.TIME_LIMIT)


def _broken_chips(problem: Problem, f: IntArray) -> exact.BoolArray:
    """[C] chips whose memory overflows, or that are skipped; what a cut may leave broken."""
    rules = problem.mcm.constraints
    broken = np.zeros(problem.num_chips, bool)
    if rules.memory:
        broken |= exact.memory_bytes(problem, f) > problem.capacity_bytes
    if rules.no_skip:
        used = np.bincount(f, minlength=problem.num_chips) > 0
        broken[: f.max()] |= ~used[: f.max()]
    return broken


def _windows(
    problem: Problem, f: IntArray | None, window: int | None
) -> Iterator[tuple[IntArray, IntArray, bool]]:
    """low [blocks], high [blocks] and whether to ask for span, from small to everything."""
    chips, blocks = problem.num_chips, problem.num_blocks
    has_triangle = problem.mcm.constraints.triangle
    lowest, highest = np.zeros(blocks, np.int64), np.full(blocks, chips - 1, np.int64)
    if f is not None and window is not None:
        center = block_chips(problem, f)
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
