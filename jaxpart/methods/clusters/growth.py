"""Partitions grown from single contracted nodes with random choices, and improved around their
worst chip.

Clusters are dissolved around a place and grown again (large-neighbourhood search, Shaw 1998), by
numba and numpy alone: a worker process does this too, and starts no JAX for it.
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

# Beyond this many contracted nodes a step takes seconds.
MAX_CONTRACTED = 2500
# Steps without clear gain after which a partition counts as stuck.
STALL_LIMIT = 400
# Fresh partitions that are grown before the best of them is improved.
_FRESH = 8
# Pairs of clusters whose merging is tried out, for each merging that is made.
_TRIED = (2, 3, 4, 6, 9)
# How often the place to grow again is the worst; elsewhere it is any.
_AT_WORST = 0.7
# How often partitions are grown for fewer chips than there are; around a place, for about as many
# as before.
_FEWER = 0.3
_AROUND = 2
_ROUNDING = 1e-9
# The power of stages that is summed to tell how even a partition is; the gain in it that counts.
_POWER = 4
_CLEARLY = 0.999


@functools.cache
def compile_growth() -> None:
    """Compiles what grows clusters, or reads what an earlier process compiled."""
    pairs = np.array([(0, 1), (0, 2), (1, 2)])
    words = np.zeros((3, 1), np.uint64)
    weigher = Weigher(np.ones(3), np.zeros(3), words, np.zeros(0), 1.0, 1.0)
    state = np.ones(1, np.uint64)
    labels = grown(np.arange(3), pairs, weigher, 2, 1, True, state)
    loosened(labels, 0, pairs, weigher, state)


def can_grow(problem: Problem) -> bool:
    """Whether clusters can be grown for it: no pins, and not so many contracted nodes that steps
    are long.
    """
    has_pins = bool((problem.contracted_fixed_chip != -1).any())
    is_acyclic = problem.mcm.constraints.acyclic
    return is_acyclic and not has_pins and problem.num_contracted <= MAX_CONTRACTED


@dataclasses.dataclass(frozen=True, order=True)
class Merit:
    """How good a partition is: what it breaks comes first, then time, then how even it is."""

    overfull: float  # bytes beyond the capacity of chips
    bottleneck_s: float
    unevenness: float

    def is_clearly_below(self, other: Merit) -> bool:
        """Whether a search that gains so much is not stuck."""
        if (self.overfull, self.bottleneck_s) != (other.overfull, other.bottleneck_s):
            return self < other
        return self.unevenness < other.unevenness * _CLEARLY


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A partition of the contracted nodes that keeps dataflow, no-skip and the triangle rule."""

    labels: IntArray  # [M] 0 to n - 1
    merit: Merit
    worst: int  # the chip that fits least, or takes longest


class Step(NamedTuple):
    """One step of a life."""

    grown: Candidate | None  # None where it is clearly no better, or needs too many chips
    incumbent: Candidate | None  # the best of this life, to go on with
    stall_limit: int  # steps that may bring no clear gain until it is stuck


class Grower:
    """What grows the partitions of one problem, with random numbers of its own."""

    def __init__(self, problem: Problem, bound_s: float, rng: np.random.Generator) -> None:
        """Grows nothing yet.

        Args:
          problem: one that `can_grow`.
          bound_s: no valid partition has a smaller bottleneck.
          rng: where its choices come from.
        """
        self._problem = problem
        self._rng = rng
        self._pairs = problem.contracted.node_pairs
        self._weigher = weigher_of(problem, bound_s)
        self._state = rng.integers(1, 2**63, 1, np.uint64)

    def restart(
        self, incumbent: Candidate | None, best_s: float, stall_limit: int = STALL_LIMIT
    ) -> Generator[Step]:
        """Improves a partition, or the best of a few fresh ones, until it is stuck.

        Args:
          lead: the partition; None: fresh ones.
          best_s: a bottleneck that is known, for fresh ones to use enough chips.
          patience: steps without clear gain after which it is stuck.
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
        contracted, chips = self._problem.num_contracted, self._problem.num_chips
        least = math.ceil(self._weigher.seconds.sum() / best_s * (1 - _ROUNDING))
        labels = self._grow(np.arange(contracted), min(least, chips), chips)
        return measured(self._problem, labels) if len(labels) else None

    def _around(self, incumbent: Candidate) -> Candidate | None:
        """Grows a place anew; None where compute alone makes it worse, or it needs more chips."""
        used = int(incumbent.labels.max()) + 1
        centre = incumbent.worst
        if self._rng.random() >= _AT_WORST:
            centre = int(self._rng.integers(used))
        cluster = loosened(incumbent.labels, centre, self._pairs, self._weigher, self._state)
        labels = self._grow(cluster, used - _AROUND, used + _AROUND)
        if not len(labels):
            return None
        compute_s = np.bincount(labels, self._weigher.seconds).max()
        merit = incumbent.merit
        if merit.overfull == 0 and compute_s > merit.bottleneck_s * (1 + _ROUNDING):
            return None
        return measured(self._problem, labels)

    def _grow(self, cluster: IntArray, least: int, most: int) -> IntArray:
        # All chips, or fewer: what is left is packed another way.
        rng, chips = self._rng, self._problem.num_chips
        if rng.random() < _FEWER:
            chips = min(chips, int(rng.integers(max(least, 1), most + 1)))
        tried = int(rng.choice(_TRIED))
        has_triangle = self._problem.mcm.constraints.triangle
        return grown(cluster, self._pairs, self._weigher, chips, tried, has_triangle, self._state)


def contracted_of(problem: Problem, f: IntArray) -> IntArray:
    """[M] the chips of the contracted nodes in the partition f [N]."""
    labels = np.zeros(problem.num_contracted, np.int64)
    labels[problem.contraction] = f
    return labels


def of_nodes(problem: Problem, f: IntArray) -> Candidate:
    """The valid partition f [N] as one of the blocks."""
    return measured(problem, contracted_of(problem, f))


def measured(problem: Problem, labels: IntArray) -> Candidate:
    """The partition of contracted nodes `labels` [M], by the rules that growing leaves open."""
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
    """[C] bytes beyond each chip's capacity."""
    if not problem.mcm.constraints.memory:
        return np.zeros(problem.num_chips)
    held = load.weight_bytes
    if problem.mcm.memory_model == "full":
        held = held + 2 * (load.in_bytes + load.out_bytes)
        held = held + host.peak_bytes(problem.contracted, labels)[0]
    return np.maximum(held - problem.capacity_bytes, 0.0)
