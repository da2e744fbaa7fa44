"""Grows random partitions from single contracted nodes, and improves them around their worst chip.

Improvement is large-neighbourhood search (Shaw 1998): a few clusters are dissolved and grown again
(`methods/clusters/packing.py`). The module needs numba and numpy only, so that worker processes
need not start JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from jaxpart.cost import host
from jaxpart.methods.clusters.packing import grown, loosened
from jaxpart.methods.clusters.quotient import Weigher, weigher_of
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Most contracted nodes for which clusters are grown: beyond, one step takes seconds.
MAX_GROWN = 2500
# Steps without a clear gain after which a restart ends.
STALL_LIMIT = 400
# Partitions that are grown from single contracted nodes before the best of them is improved.
_FRESH = 8
# Choices for the number of pairs that are tried out for each merge.
_TRIED = (2, 3, 4, 6, 9)
# Probability that the worst chip is the centre of the neighbourhood; otherwise it is a random chip.
_WORST_PROBABILITY = 0.7
# Probability that a partition is grown for fewer chips than the module has.
_FEWER_PROBABILITY = 0.3
# A neighbourhood is then grown again for the chips in use before, plus or minus at most this many.
_CHIPS_AROUND = 2
# Relative rounding error allowed for.
_ROUNDING = 1e-9
# Power of stage times that is summed as a measure of unevenness.
_POWER = 4
# Unevenness must fall below this factor of its value to count as a clear gain.
_CLEAR_GAIN = 0.999


@functools.cache
def compile_growth() -> None:
    """Compiles the functions that grow clusters, or loads them from numba's cache."""
    pairs = np.array([(0, 1), (0, 2), (1, 2)])
    words = np.zeros((3, 1), np.uint64)
    weigher = Weigher(np.ones(3), np.zeros(3), words, np.zeros(0), 1.0, 1.0)
    state = np.ones(1, np.uint64)
    labels = grown(np.arange(3), pairs, weigher, 2, 1, True, state)
    loosened(labels, 0, pairs, weigher, state)


def can_grow(problem: Problem) -> bool:
    """Whether clusters can be grown: acyclic dataflow, no fixed chips, and not too many nodes."""
    has_fixed = bool((problem.contracted_fixed_chip != -1).any())
    is_acyclic = problem.mcm.constraints.acyclic
    return is_acyclic and not has_fixed and problem.num_contracted <= MAX_GROWN


@dataclasses.dataclass(frozen=True, order=True)
class Merit:
    """How good a partition is; smaller is better, and the first field that differs decides."""

    overfull: float  # bytes beyond the capacities of all chips
    bottleneck_s: float  # T, in seconds
    unevenness: float  # T x sum over chips of (stage / T) ** 4, in seconds

    def is_clearly_below(self, other: Merit) -> bool:
        """Whether this is a clear gain over `other`, after which a restart goes on."""
        if (self.overfull, self.bottleneck_s) != (other.overfull, other.bottleneck_s):
            return self < other
        return self.unevenness < other.unevenness * _CLEAR_GAIN


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A partition of the contracted nodes; growing ensures all rules but memory."""

    labels: IntArray  # [M] chips, all of 0 to n - 1 in use
    merit: Merit
    worst: int  # the chip with the most bytes too many; the one with the longest stage if all fit


class Step(NamedTuple):
    """One step of a restart."""

    grown: Candidate | None  # None if compute alone makes it worse, or it needs too many chips
    incumbent: Candidate | None  # the best of this restart
    stall_limit: int  # steps left without a clear gain


class Grower:
    """Grows the partitions of one problem, with its own random numbers."""

    def __init__(self, problem: Problem, bound_s: float, rng: np.random.Generator) -> None:
        """Prepares the sizes of clusters.

        Args:
          problem: one for which `can_grow` is true.
          bound_s: a lower bound on every valid bottleneck, in seconds.
          rng: source of all random choices.
        """
        self._problem = problem
        self._rng = rng
        self._pairs = problem.contracted.node_pairs
        self._weigher = weigher_of(problem, bound_s)
        self._state = rng.integers(1, 2**63, 1, np.uint64)

    def restart(
        self, incumbent: Candidate | None, best_s: float, stall_limit: int = STALL_LIMIT
    ) -> Generator[Step]:
        """Improves a partition until the stall limit is reached. Yields each step.

        Args:
          incumbent: the partition; None: the best of a few that are grown first.
          best_s: the best known bottleneck, in seconds; partitions that are grown first use at
            least the chips that it needs.
          stall_limit: steps without a clear gain until the restart ends. After a clear gain it is
            STALL_LIMIT again.
        """
        for _ in range(_FRESH if incumbent is None else 0):
            fresh = self._fresh(best_s)
            if fresh is not None and (incumbent is None or fresh.merit < incumbent.merit):
                incumbent = fresh
            yield Step(fresh, incumbent, stall_limit)
        while incumbent is not None and stall_limit > 0:
            candidate = self._around(incumbent)
            stall_limit -= 1
            if candidate is not None and candidate.merit <= incumbent.merit:
                stall_limit = (
                    STALL_LIMIT
                    if candidate.merit.is_clearly_below(incumbent.merit)
                    else stall_limit
                )
                incumbent = candidate
            yield Step(candidate, incumbent, stall_limit)

    def _fresh(self, best_s: float) -> Candidate | None:
        """Grows a partition from single contracted nodes; None if it needs too many chips."""
        contracted, chips = self._problem.num_contracted, self._problem.num_chips
        least = math.ceil(self._weigher.seconds.sum() / best_s * (1 - _ROUNDING))
        labels = self._grow(np.arange(contracted), min(least, chips), chips)
        return measured(self._problem, labels) if len(labels) else None

    def _around(self, incumbent: Candidate) -> Candidate | None:
        """Dissolves a neighbourhood and grows it again; None as in `Step.grown`."""
        used = int(incumbent.labels.max()) + 1
        centre = incumbent.worst
        if self._rng.random() >= _WORST_PROBABILITY:
            centre = int(self._rng.integers(used))
        cluster = loosened(incumbent.labels, centre, self._pairs, self._weigher, self._state)
        labels = self._grow(cluster, used - _CHIPS_AROUND, used + _CHIPS_AROUND)
        if not len(labels):
            return None
        compute_s = np.bincount(labels, self._weigher.seconds).max()
        merit = incumbent.merit
        if merit.overfull == 0 and compute_s > merit.bottleneck_s * (1 + _ROUNDING):
            return None
        return measured(self._problem, labels)

    def _grow(self, cluster: IntArray, least: int, most: int) -> IntArray:
        """[M] chips of a partition grown from clusters [M]; empty if it needs too many chips.

        It uses at most all chips of the module, or a random number from `least` to `most`: clusters
        pack differently for fewer chips.
        """
        rng, chips = self._rng, self._problem.num_chips
        if rng.random() < _FEWER_PROBABILITY:
            chips = min(chips, int(rng.integers(max(least, 1), most + 1)))
        tried = int(rng.choice(_TRIED))
        has_triangle = self._problem.mcm.constraints.triangle
        return grown(cluster, self._pairs, self._weigher, chips, tried, has_triangle, self._state)


def of_nodes(problem: Problem, f: IntArray) -> Candidate:
    """The valid partition f [N] as a candidate."""
    return measured(problem, problem.contracted_assignment(f))


def measured(problem: Problem, labels: IntArray) -> Candidate:
    """Measures a partition, memory included, which growing does not ensure.

    Args:
      problem: of M contracted nodes and C chips.
      labels: [M] chips. Those in use are renumbered 0, 1, ... in their order.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    load = host.loads(problem.contracted, labels)
    stage_s, overfull = host.stage_s_of(problem, load), _overfull(problem, labels, load)
    links_s = load.link_bytes / problem.mcm.link_bandwidth
    bottleneck_s = max(float(stage_s.max()), float(links_s.max(initial=0.0)))
    share = stage_s / max(bottleneck_s, 1e-30)
    uneven = float((share**_POWER).sum()) * bottleneck_s
    worst = overfull.argmax() if overfull.any() else stage_s.argmax()
    return Candidate(labels, Merit(float(overfull.sum()), bottleneck_s, uneven), int(worst))


def _overfull(problem: Problem, labels: IntArray, load: host.Loads) -> FloatArray:
    """[C] bytes that each chip holds beyond its capacity."""
    if not problem.mcm.constraints.memory:
        return np.zeros(problem.num_chips)
    held = load.weight_bytes
    if problem.mcm.memory_model == "full":
        held = held + 2 * (load.in_bytes + load.out_bytes)
        held = held + host.peak_bytes(problem.contracted, labels)[0]
    return np.maximum(held - problem.capacity_bytes, 0.0)
