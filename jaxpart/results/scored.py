"""A partition and its exact costs: the input of the report and the picture."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxpart.cost.evaluate import Costs
from jaxpart.errors import InputError
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.ratios import gap_of, improvement_of, throughput_of


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredPartition:
    """One partition, valid or not, scored in float64 on a problem of N nodes and C chips."""

    problem: Problem
    assignment: IntArray  # [N] chip of each node
    costs: Costs  # of this one candidate: [C], [L] and scalars
    baseline_s: float | None  # bottleneck of the greedy baseline; None if it finds nothing valid
    lower_bound_s: float  # no valid partition has a smaller bottleneck
    bound_method: str  # name of the method that proved the lower bound
    notes: tuple[str, ...]  # sentences for the user, for example on rescaling

    @property
    def valid(self) -> bool:
        """Whether every rule that is on holds."""
        return bool(self.costs.valid)

    @property
    def bottleneck_s(self) -> float:
        """T: the bottleneck, the time between two inferences, in seconds."""
        return float(self.costs.bottleneck_s)

    @property
    def throughput_per_s(self) -> float | None:
        """1 / T, in inferences/s; None if T is 0."""
        return throughput_of(self.bottleneck_s)

    @property
    def improvement(self) -> float | None:
        """T of the baseline / T; None if there is no baseline or T is 0."""
        return improvement_of(self.bottleneck_s, self.baseline_s)

    @property
    def gap(self) -> float | None:
        """T / lower bound - 1; None if T or the lower bound is 0."""
        return gap_of(self.bottleneck_s, self.lower_bound_s)

    @property
    def chips_used(self) -> int:
        """Number of chips with at least one node."""
        return len(np.unique(self.assignment))

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """[C] the names of the nodes on each chip, in the order in which they run."""
        names: list[list[str]] = [[] for _ in range(self.problem.num_chips)]
        for node, chip in zip(self.problem.graph.nodes, self.assignment.tolist(), strict=True):
            names[chip].append(node.name)
        return tuple(map(tuple, names))

    def chips(self) -> dict[str, int]:
        """The chip of each node, by the node's name."""
        nodes = self.problem.graph.nodes
        return {node.name: c for node, c in zip(nodes, self.assignment.tolist(), strict=True)}

    def chip_of(self, name: str) -> int:
        """The chip of the node with this name.

        Raises:
          InputError: no node has this name.
        """
        for node, chip in zip(self.problem.graph.nodes, self.assignment.tolist(), strict=True):
            if node.name == name:
                return chip
        raise InputError(f"{self.problem.graph.name} has no node named {name!r}")
