"""A valid partition with everything that is known about it."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxpart.cost import Costs
from jaxpart.problem import IntArray, Problem


@dataclasses.dataclass(frozen=True)
class SearchInfo:
    """How a result was found."""

    method: str
    samples: int
    wall_s: float
    seed: int
    interrupted: bool = False
    # (samples, seconds, best bottleneck in seconds) at each improvement, in order.
    history: tuple[tuple[int, float, float], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A valid partition, scored exactly (float64) on its problem."""

    problem: Problem
    assignment: IntArray  # [N] chip of each node
    costs: Costs  # of this one candidate: [C], [L] and scalars
    baseline_s: float | None  # the greedy heuristic's bottleneck; None where it finds nothing valid
    lower_bound_s: float  # no valid partition is faster
    bound_method: str
    search: SearchInfo
    notes: tuple[str, ...] = ()  # what the user should know (rescaling, an early stop)

    @property
    def bottleneck_s(self) -> float:
        """T: seconds between two inferences."""
        return float(self.costs.bottleneck_s)

    @property
    def throughput_per_s(self) -> float | None:
        """1 / T; None where T is 0."""
        return 1 / self.bottleneck_s if self.bottleneck_s > 0 else None

    @property
    def improvement(self) -> float | None:
        """T of the baseline / T; None where there is no baseline, or T is 0."""
        if self.baseline_s is None or self.bottleneck_s == 0:
            return None
        return self.baseline_s / self.bottleneck_s

    @property
    def gap(self) -> float | None:
        """T / lower bound - 1; None where T or the bound is 0."""
        if self.bottleneck_s == 0 or self.lower_bound_s == 0:
            return None
        return self.bottleneck_s / self.lower_bound_s - 1

    @property
    def chips_used(self) -> int:
        """Number of chips with a node."""
        return len(np.unique(self.assignment))
