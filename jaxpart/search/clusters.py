"""Search over quotient graphs: chips side by side where the model branches.

Orders cut into pieces (`orders`) give chips in a row. On wide graphs the triangle rule admits much
more: clusters of nodes whose graph has no edge with a longer path beside it (`quotient`). They are
grown from single nodes with random choices, packed onto the chips, and improved by dissolving the
clusters around the bottleneck and growing them again (large-neighbourhood search, Shaw 1998).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator

import numpy as np

from jaxpart import exact
from jaxpart.problem import FloatArray, IntArray, Problem
from jaxpart.quotient import Quotient, Weigher, bits, groups_of
from jaxpart.search.state import Search

# Fresh partitions that are grown before the best is improved, and steps without gain after which a
# fresh one is grown again.
_FRESH = 8
_PATIENCE = 80
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
    search.start_clock()
    search.enter("clusters")
    candidates = _candidates(search, np.random.default_rng(search.seed))
    start_s, steps = time.perf_counter(), 0
    for labels, merit in candidates:
        search.samples += 1
        steps += 1
        if merit.overfull == 0 and merit.bottleneck_s < search.best_s:
            search.offer(labels[problem.block][:, None])
        # Without a time limit steps are counted, so that the same seed gives the same answer.
        is_timed = search.budget.time_limit_s is not None
        if time.perf_counter() - start_s > _ROUND_S if is_timed else steps >= _ROUND_STEPS:
            yield
            start_s, steps = time.perf_counter(), 0


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


def _candidates(search: Search, rng: np.random.Generator) -> Iterator[tuple[IntArray, _Merit]]:
    """Labels [blocks] and their merit, one after the other, without end."""
    problem, blocks = search.problem, search.problem.contracted
    pairs = blocks.node_pairs.tolist()
    weigher = Weigher(problem, search.bound.seconds)
    single = Quotient([[v] for v in range(blocks.num_nodes)], pairs, weigher)
    is_turn_of_best = True  # every other time; first comes what was grown
    while True:
        best: tuple[_Merit, IntArray] | None = None
        for _ in range(_FRESH):
            fresh = single.copy()
            if problem.mcm.constraints.triangle:
                fresh.reduce(rng)
            labels = _packed(fresh, problem, rng)
            if labels is None:
                continue
            merit = merit_of(problem, labels)
            yield labels, merit
            if best is None or merit < best[0]:
                best = merit, labels
        is_turn_of_best = not is_turn_of_best
        if is_turn_of_best and search.best is not None:
            first = np.zeros(blocks.num_nodes, np.int64)
            first[problem.block] = search.best
            best = merit_of(problem, first), first
        stale = 0
        while best is not None and stale < _PATIENCE:
            region = _region(best[1], problem, pairs, weigher, rng)
            labels = _packed(region, problem, rng)
            stale += 1
            if labels is None:
                continue
            merit = merit_of(problem, labels)
            yield labels, merit
            if merit <= best[0]:
                stale = 0 if merit.is_clearly_below(best[0]) else stale
                best = merit, labels


def _packed(quotient: Quotient, problem: Problem, rng: np.random.Generator) -> IntArray | None:
    packed = quotient.pack(problem.num_chips, rng)
    return None if packed is None else packed.labels()


def merit_of(problem: Problem, labels: IntArray) -> _Merit:
    """Merit of the partition of blocks `labels` [blocks], by the rules that growing leaves open."""
    load = exact.loads(problem.contracted, labels)
    stage_s = _stage_s(problem, load)
    links_s = load.link_bytes / problem.mcm.link_bandwidth
    bottleneck_s = max(float(stage_s.max()), float(links_s.max(initial=0.0)))
    share = stage_s / max(bottleneck_s, 1e-30)
    uneven = float((share**_POWER).sum()) * bottleneck_s
    return _Merit(float(_overfull(problem, labels, load).sum()), bottleneck_s, uneven)


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


def _region(
    labels: IntArray,
    problem: Problem,
    pairs: list[tuple[int, int]],
    weigher: Weigher,
    rng: np.random.Generator,
) -> Quotient:
    """The quotient with the clusters of one place dissolved into their blocks, and reduced."""
    groups = groups_of(labels)
    whole = Quotient(groups, pairs, weigher)
    load = exact.loads(problem.contracted, labels)
    overfull, stage_s = _overfull(problem, labels, load), _stage_s(problem, load)
    worst = int(overfull.argmax() if overfull.any() else stage_s.argmax())
    centre = worst if rng.random() < 0.7 else int(rng.integers(len(groups)))
    near = [*bits(whole.after[centre]), *bits(whole.before[centre])]
    rng.shuffle(near)
    region = {centre, *near[: rng.integers(1, 4)]}
    if rng.random() < 0.3:
        related = whole.below[centre] | whole.above[centre] | 1 << centre
        beside = list(bits(whole.alive & ~related))
        if beside:
            region.add(int(rng.choice(beside)))
    kept = [group for c, group in enumerate(groups) if c not in region]
    loose = [[v] for c in sorted(region) for v in groups[c]]
    quotient = Quotient([*kept, *loose], pairs, weigher)
    if problem.mcm.constraints.triangle:
        quotient.reduce(rng)
    return quotient
