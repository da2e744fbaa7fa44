"""A worker process's task: to grow clusters for a given time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Generator

import numpy as np

from jaxpart.methods.clusters.growth import (
    STALL_LIMIT,
    Candidate,
    Grower,
    Step,
    compile_growth,
    measured,
    of_nodes,
)
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status

# A bottleneck must fall below this factor of the best known to count as better.
_BETTER_FACTOR = 1 - 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Grown(Outcome):
    """The outcome of a task.

    Its status is FEASIBLE if it found a better partition than the best known, else TIME_LIMIT. The
    last three fields are the state from which the next task can go on.
    """

    samples: int = 0  # steps of growing
    incumbent: IntArray | None = None  # [M] chips of the restart under way
    stall_limit: int = STALL_LIMIT  # steps left to that restart without a clear gain
    improves_best_next: bool = True  # whether the restart after it improves the best


def grow(
    problem: Problem,
    best: IntArray | None = None,
    *,
    time_limit_s: float,
    bound_s: float,
    best_s: float = math.inf,
    incumbent: IntArray | None = None,
    stall_limit: int = STALL_LIMIT,
    improves_best_next: bool = True,
    seed: int = 0,
) -> Grown:
    """Grows and improves partitions, restart after restart, until time is up.

    Args:
      problem: one for which `growth.can_grow` is true.
      best: [N] chips of the best known valid partition.
      time_limit_s: seconds of growing, compilation not included.
      bound_s: a lower bound on every valid bottleneck, in seconds.
      best_s: bottleneck of `best`, in seconds.
      incumbent: [M] chips from an earlier task, to go on with first.
      stall_limit: steps left to it without a clear gain.
      improves_best_next: whether the restart after it improves `best`. From then on, such restarts
        alternate with restarts from single contracted nodes.
      seed: of random choices.

    Returns:
      The best partition found, if it is better than `best_s`, and the state to go on from.
    """
    compile_growth()
    start_s = time.perf_counter()
    known = None if best is None else of_nodes(problem, best)
    first = None if incumbent is None else measured(problem, incumbent)
    # The bottleneck to beat is `best_s`, not that of `known`: `of_nodes` renumbers the chips in
    # use, so `known` can be faster or slower where chips differ.
    found: Candidate | None = None
    grower = Grower(problem, bound_s, np.random.default_rng(seed))
    restarts = _restarts(grower, known, first, best_s, stall_limit, improves_best_next)
    for samples, (step, is_turn) in enumerate(restarts, 1):
        least_s = best_s if found is None else found.merit.bottleneck_s
        if step.grown is not None and _is_better(step.grown, least_s):
            found = step.grown
        seconds = time.perf_counter() - start_s
        if seconds > time_limit_s:
            labels = None if step.incumbent is None else step.incumbent.labels
            rest = {"samples": samples, "incumbent": labels, "stall_limit": step.stall_limit}
            rest |= {"seconds": seconds, "improves_best_next": is_turn}
            if found is None:
                return Grown(Status.TIME_LIMIT, **rest)
            chips = found.labels[problem.contraction]
            return Grown(Status.FEASIBLE, chips, found.merit.bottleneck_s, **rest)
    raise AssertionError("restarts have no end")


def _is_better(candidate: Candidate, best_s: float) -> bool:
    merit = candidate.merit
    return merit.overfull == 0 and merit.bottleneck_s < best_s * _BETTER_FACTOR


def _restarts(
    grower: Grower,
    best: Candidate | None,
    incumbent: Candidate | None,
    best_s: float,
    stall_limit: int,
    improves_best_next: bool,
) -> Generator[tuple[Step, bool]]:
    """Steps without end: of the incumbent's restart, then of restarts of the best and fresh ones.

    Yields:
      Each step, and whether the restart after it improves the best.
    """
    if incumbent is not None:
        for step in grower.restart(incumbent, best_s, stall_limit):
            yield step, improves_best_next
    for number in itertools.count(int(not improves_best_next)):
        for step in grower.restart(best if number % 2 == 0 else None, best_s):
            yield step, number % 2 == 1
