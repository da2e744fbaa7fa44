"""Clusters grown in a worker process, for so many seconds at a time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator

import numpy as np

from jaxpart.clusters.growth import (
    PATIENCE,
    Candidate,
    Grower,
    Step,
    compile_growth,
    measured,
    of_nodes,
)
from jaxpart.problem import IntArray, Problem
from jaxpart.solver.repair import Outcome
from jaxpart.solver.scip import Status


@dataclasses.dataclass(frozen=True, eq=False)
class Grown(Outcome):
    """What a while of growing gave: FEASIBLE with something better than what was known."""

    samples: int = 0  # partitions that were grown
    lead: IntArray | None = None  # [blocks] to go on with
    patience: int = PATIENCE  # that is left with it


def grow(
    problem: Problem,
    best: IntArray | None = None,
    *,
    time_limit_s: float,
    bound_s: float,
    lead: IntArray | None = None,
    patience: int = PATIENCE,
    seed: int = 0,
) -> Grown:
    """Grows and improves partitions, life after life, until time is up.

    Args:
      problem: one that `growth.can_grow`.
      best: [N] the best valid partition that is known.
      time_limit_s: of growing; compilation comes beside it.
      bound_s: no valid partition has a smaller bottleneck.
      lead: [blocks] the partition of an earlier call to go on with; None: fresh ones.
      patience: that was left with it.
      seed: of random choices.
    """
    compile_growth()
    start_s = time.perf_counter()
    known = None if best is None else of_nodes(problem, best)
    first = None if lead is None else measured(problem, lead)
    least_s = math.inf if known is None else known.merit.bottleneck_s
    found: Candidate | None = None
    grower = Grower(problem, bound_s, np.random.default_rng(seed))
    for samples, step in enumerate(_lives(grower, known, first, least_s, patience), 1):
        merit = None if step.grown is None else step.grown.merit
        if merit is not None and merit.overfull == 0 and merit.bottleneck_s < least_s:
            found, least_s = step.grown, merit.bottleneck_s
        seconds = time.perf_counter() - start_s
        if seconds > time_limit_s:
            labels = None if step.lead is None else step.lead.labels
            rest = {"samples": samples, "lead": labels, "patience": step.patience}
            if found is None:
                return Grown(Status.TIME_LIMIT, seconds=seconds, **rest)
            chips = found.labels[problem.block]
            return Grown(Status.FEASIBLE, chips, least_s, seconds=seconds, **rest)
    raise AssertionError("lives have no end")


def _lives(
    grower: Grower, best: Candidate | None, lead: Candidate | None, best_s: float, patience: int
) -> Generator[Step]:
    """The life of the lead, then in turn those of fresh partitions and of the best."""
    yield from grower.life(lead, best_s, patience)
    while True:
        yield from grower.life(best, best_s)
        yield from grower.life(None, best_s)
