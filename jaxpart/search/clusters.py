"""Search over quotient graphs: chips side by side where the model branches.

Orders cut into pieces (`orders`) give chips in a row. On wide graphs the triangle rule admits much
more: clusters of nodes whose graph has no edge with a longer path beside it (`quotient`). They are
grown from single nodes with random choices, packed onto the chips, and improved by dissolving the
clusters around the bottleneck and growing them again (large-neighbourhood search, Shaw 1998).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Generator

import numpy as np

from jaxpart import exact
from jaxpart.clusters.packing import grown, loosened
from jaxpart.clusters.quotient import Weigher, weigher_of
from jaxpart.problem import FloatArray, IntArray, Problem
from jaxpart.search.state import Search

# Fresh partitions that are grown before the best is improved, and steps without gain after which a
# fresh one is grown again.
_FRESH = 8
_PATIENCE = 400
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
# Beyond this many blocks a step takes seconds.
MOST_BLOCKS = 2500
# Candidates are offered, and the engine asked, about so often.
_ROUND_S = 0.25
_ROUND_STEPS = 16


def cluster_search(search: Search) -> Generator[None]:
    """Grows and improves partitions until the budget is spent; nothing where it cannot work."""
    problem = search.problem
    rules = problem.mcm.constraints
    if not rules.acyclic or (problem.block_pin != -1).any() or problem.num_blocks > MOST_BLOCKS:
        search.notes.append("clusters are grown for graphs without pins, up to 2,500 nodes")
        return
    with search.compiling():
        _compile()
    search.start_clock()
    search.enter("clusters")
    candidates = _candidates(search, np.random.default_rng(search.seed))
    start_s, steps = time.perf_counter(), 0
    for candidate in candidates:
        search.samples += 1
        steps += 1
        if candidate is not None:
            merit = candidate.merit
            if merit.overfull == 0 and merit.bottleneck_s < search.best_s:
                search.offer(candidate.labels[problem.block][:, None])
        # Without a time limit steps are counted, so that the same seed gives the same answer.
        is_timed = search.budget.time_limit_s is not None
        if time.perf_counter() - start_s > _ROUND_S if is_timed else steps >= _ROUND_STEPS:
            yield
            start_s, steps = time.perf_counter(), 0


@functools.cache
def _compile() -> None:
    """Compiles what grows clusters, or reads what an earlier process compiled."""
    pairs = np.array([(0, 1), (0, 2), (1, 2)])
    words = np.zeros((3, 1), np.uint64)
    weigher = Weigher(np.ones(3), np.zeros(3), words, np.zeros(0), 1.0, 1.0)
    state = np.ones(1, np.uint64)
    labels = grown(np.arange(3), pairs, weigher, 2, 1, True, state)
    loosened(labels, 0, pairs, weigher, state)


@dataclasses.dataclass(frozen=True, order=True)
class _Merit:
    """How good a partition is: what it breaks comes first, then time, then how even it is."""

    overfull: float  # bytes beyond the capacity of chips
    bottleneck_s: float
    unevenness: float

    def is_clearly_below(self, other: _Merit) -> bool:
        """Whether a search that gains so much is not stuck."""
        if (self.overfull, self.bottleneck_s) != (other.overfull, other.bottleneck_s):
            return self < other
        return self.unevenness < other.unevenness * _CLEARLY


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A partition of the blocks that growing gave."""

    labels: IntArray  # [blocks] 0 to n - 1
    merit: _Merit
    worst: int  # the chip that fits least, or takes longest


def _candidates(search: Search, rng: np.random.Generator) -> Generator[_Candidate | None]:
    """One after the other, without end; None for one that is no better than what it came from."""
    problem, blocks = search.problem, search.problem.contracted
    pairs, weigher = blocks.node_pairs, weigher_of(problem, search.bound.seconds)
    state = rng.integers(1, 2**63, 1, np.uint64)

    def grow(cluster: IntArray, least: int, most: int) -> IntArray:
        # All chips, or fewer: what is left is packed another way.
        chips = problem.num_chips
        if rng.random() < _FEWER:
            chips = min(chips, int(rng.integers(max(least, 1), most + 1)))
        tried = int(rng.choice(_TRIED))
        has_triangle = problem.mcm.constraints.triangle
        return grown(cluster, pairs, weigher, chips, tried, has_triangle, state)

    is_turn_of_best = True  # every other time; first comes what was grown
    while True:
        best: _Candidate | None = None
        for _ in range(_FRESH):
            least = math.ceil(weigher.seconds.sum() / search.best_s)
            labels = grow(np.arange(blocks.num_nodes), least, problem.num_chips)
            if not len(labels):
                continue
            fresh = _measured(problem, labels)
            yield fresh
            if best is None or fresh.merit < best.merit:
                best = fresh
        is_turn_of_best = not is_turn_of_best
        if is_turn_of_best and search.best is not None:
            first = np.zeros(blocks.num_nodes, np.int64)
            first[problem.block] = search.best
            best = _measured(problem, first)
        stale = 0
        while best is not None and stale < _PATIENCE:
            centre = best.worst
            if rng.random() >= _AT_WORST:
                centre = int(rng.integers(best.labels.max() + 1))
            used = int(best.labels.max()) + 1
            cluster = loosened(best.labels, centre, pairs, weigher, state)
            labels = grow(cluster, used - _AROUND, used + _AROUND)
            stale += 1
            if not len(labels):
                continue
            # What computes for longer than the best takes is no better.
            compute_s = np.bincount(labels, weigher.seconds).max()
            if best.merit.overfull == 0 and compute_s > best.merit.bottleneck_s * (1 + _ROUNDING):
                yield None
                continue
            candidate = _measured(problem, labels)
            yield candidate
            if candidate.merit <= best.merit:
                stale = 0 if candidate.merit.is_clearly_below(best.merit) else stale
                best = candidate


def _measured(problem: Problem, labels: IntArray) -> _Candidate:
    """The partition of blocks `labels` [blocks], by the rules that growing leaves open."""
    labels = np.unique(labels, return_inverse=True)[1]
    load = exact.loads(problem.contracted, labels)
    stage_s, overfull = _stage_s(problem, load), _overfull(problem, labels, load)
    links_s = load.link_bytes / problem.mcm.link_bandwidth
    bottleneck_s = max(float(stage_s.max()), float(links_s.max(initial=0.0)))
    share = stage_s / max(bottleneck_s, 1e-30)
    uneven = float((share**_POWER).sum()) * bottleneck_s
    worst = overfull.argmax() if overfull.any() else stage_s.argmax()
    return _Candidate(labels, _Merit(float(overfull.sum()), bottleneck_s, uneven), int(worst))


def merit_of(problem: Problem, labels: IntArray) -> _Merit:
    """Merit of the partition of blocks `labels` [blocks]."""
    return _measured(problem, labels).merit


def _overfull(problem: Problem, labels: IntArray, load: exact.Loads) -> FloatArray:
    """[C] bytes beyond each chip's capacity."""
    if not problem.mcm.constraints.memory:
        return np.zeros(problem.num_chips)
    held = load.weight_bytes
    if problem.mcm.memory_model == "full":
        held = held + 2 * (load.in_bytes + load.out_bytes)
        held = held + exact.peak_bytes(problem.contracted, labels)[0]
    return np.maximum(held - problem.capacity_bytes, 0.0)


def _stage_s(problem: Problem, load: exact.Loads) -> FloatArray:
    in_s, out_s = (x / problem.mcm.link_bandwidth for x in (load.in_bytes, load.out_bytes))
    if problem.mcm.overlap:
        return np.maximum(load.compute_s, np.maximum(in_s, out_s))
    return load.compute_s + in_s + out_s
