"""Clusters grown in a worker process, for so many seconds at a time."""

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

# A bottleneck counts as better from here on.
_BETTER = 1 - 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Grown(Outcome):
    """What a while of growing gave: FEASIBLE with something better than what was known."""

    samples: int = 0  # partitions that were grown
    incumbent: IntArray | None = None  # [M] to go on with
    stall_limit: int = STALL_LIMIT  # that is left with it
    is_turn_of_best: bool = True  # after its life


def grow(
    problem: Problem,
    best: IntArray | None = None,
    *,
    time_limit_s: float,
    bound_s: float,
    best_s: float = math.inf,
    incumbent: IntArray | None = None,
    stall_limit: int = STALL_LIMIT,
    is_turn_of_best: bool = True,
    seed: int = 0,
) -> Grown:
    """Grows and improves partitions, life after life, until time is up.

    Args:
      problem: one that `growth.can_grow`.
      best: [N] the best valid partition that is known.
      time_limit_s: of growing; compilation comes beside it.
      bound_s: no valid partition has a smaller bottleneck.
      best_s: the bottleneck of the best.
      lead: [M] the partition of an earlier call to go on with.
      patience: that was left with it.
      is_turn_of_best: whether the next life is that of the best; then they alternate with fresh
        ones.
      seed: of random choices.
    """
    compile_growth()
    start_s = time.perf_counter()
    known = None if best is None else of_nodes(problem, best)
    first = None if incumbent is None else measured(problem, incumbent)
    # Where chips are not alike, the best without those that it leaves out is faster or slower than
    # `best_s`, which is what is to be beaten.
    found: Candidate | None = None
    grower = Grower(problem, bound_s, np.random.default_rng(seed))
    restarts = _restarts(grower, known, first, best_s, stall_limit, is_turn_of_best)
    for samples, (step, is_turn) in enumerate(restarts, 1):
        least_s = best_s if found is None else found.merit.bottleneck_s
        if step.grown is not None and _is_better(step.grown, least_s):
            found = step.grown
        seconds = time.perf_counter() - start_s
        if seconds > time_limit_s:
            labels = None if step.incumbent is None else step.incumbent.labels
            rest = {"samples": samples, "incumbent": labels, "stall_limit": step.stall_limit}
            rest |= {"seconds": seconds, "is_turn_of_best": is_turn}
            if found is None:
                return Grown(Status.TIME_LIMIT, **rest)
            chips = found.labels[problem.contraction]
            return Grown(Status.FEASIBLE, chips, found.merit.bottleneck_s, **rest)
    raise AssertionError("lives have no end")


def _is_better(candidate: Candidate, best_s: float) -> bool:
    merit = candidate.merit
    return merit.overfull == 0 and merit.bottleneck_s < best_s * _BETTER


def _restarts(
    grower: Grower,
    best: Candidate | None,
    incumbent: Candidate | None,
    best_s: float,
    stall_limit: int,
    is_turn_of_best: bool,
) -> Generator[tuple[Step, bool]]:
    """Steps of the lead's life, then of the best's and fresh ones' in turn; and whose is next."""
    if incumbent is not None:
        for step in grower.restart(incumbent, best_s, stall_limit):
            yield step, is_turn_of_best
    for number in itertools.count(int(not is_turn_of_best)):
        for step in grower.restart(best if number % 2 == 0 else None, best_s):
            yield step, number % 2 == 1
