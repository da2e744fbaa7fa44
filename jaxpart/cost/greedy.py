"""The compiler's greedy heuristic: the baseline that improvements are measured against.

The procedure is fixed (`jaxpart/README.md`):
1. Contract the colocation groups and the cycles that this makes, whatever rules are on.
2. Walk the contracted nodes in order, from chip 0. Go to the next chip when the current one has
   reached the target of compute, when its memory would become too full, or when the next contracted
   node is fixed to a later chip. Do so only where every tensor that is alive across the chip's
   opening cut has had its last consumer, so that no tensor crosses two cuts. Capacities count even
   where the memory rule is off.
3. The first target is `Problem.mean_load_s`. While the outcome is invalid, raise the target step by
   step; then lower it from the first target on. The first valid outcome is the baseline. Only here
   does it matter which rules are on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np

from jaxpart.cost import host
from jaxpart.cost.evaluate import score, verify
from jaxpart.problem.problem import IntArray, Problem

_TRIES = 64  # largest number of raised targets, and of lowered ones
_FACTOR = 1.1  # ratio of one target to the next


@functools.lru_cache(maxsize=4)
def baseline(problem: Problem) -> IntArray | None:
    """The assignment of the first valid walk.

    The answer is cached, so all callers share one array.

    Returns:
      [N] chip of each node, read-only; None if no target gives a valid walk.
    """
    rules = dataclasses.replace(problem.mcm.constraints, acyclic=True)
    walked = dataclasses.replace(problem, mcm=dataclasses.replace(problem.mcm, constraints=rules))
    if walked.is_contradictory:
        return None
    walk = _Walk(walked)
    first = problem.mean_load_s
    up = itertools.accumulate(range(_TRIES), lambda t, _: t * _FACTOR, initial=first)
    down = itertools.accumulate(range(_TRIES), lambda t, _: t / _FACTOR, initial=first)
    down = itertools.islice(down, 1, None)
    targets = itertools.chain(up, down)
    size = 1  # the first walk is usually valid; later ones are verified many at a time
    while batch := list(itertools.islice(targets, size)):
        outcomes = [walk(target) for target in batch]
        valid = verify(problem, np.stack(outcomes, axis=1)).valid
        if valid.any():
            first_valid = outcomes[int(np.argmax(valid))]
            first_valid.setflags(write=False)
            return first_valid
        size = 16
    return None


def baseline_s_of(problem: Problem) -> float | None:
    """The baseline's bottleneck in seconds; None if there is no baseline."""
    assignment = baseline(problem)
    return None if assignment is None else float(score(problem, assignment).bottleneck_s)


class _Walk:
    """A walk over the contracted nodes of one problem, for any target."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.contracted = problem.contracted
        contracted = self.contracted
        count = contracted.num_nodes
        self.made = _lists(contracted.tensor_producer, np.arange(contracted.num_tensors), count)
        self.taken = _lists(contracted.edge_consumer, contracted.edge_tensor, count)
        self.weights = _lists(contracted.use_node, contracted.use_weight, count)
        last = contracted.tensor_producer.copy()
        np.maximum.at(last, contracted.edge_tensor, contracted.edge_consumer)
        self.last = last.tolist()
        self.bytes = contracted.tensor_bytes.tolist()
        self.producer = contracted.tensor_producer.tolist()
        self.weight_bytes = contracted.weight_bytes.tolist()
        self.least_capacity = float(problem.capacity_bytes.min())
        # Upper bounds on what is alive at each contracted node.
        self.live_bytes = host.peak_bounds(problem)[1].tolist()

    def __call__(self, target: float) -> IntArray:
        """The assignment [N] of the walk with a target in seconds, valid or not."""
        contracted = self.contracted
        kinds, capacity = contracted.chip_kind.tolist(), contracted.capacity_bytes.tolist()
        seconds, fixed_chips = contracted.node_s.tolist(), contracted.fixed_chip.tolist()
        placed = np.empty(contracted.num_nodes, np.int64)
        chip, start = 0, 0
        loads: list[float] = []  # seconds of each contracted node on the chip
        compute = 0.0
        needed = -1  # last consumer of the tensors alive across the chip's opening cut
        alive_last = -1  # last consumer of the tensors made so far
        memory = _ChipMemory(self, 0)
        for v in range(contracted.num_nodes):
            can_close = v > start and chip < contracted.num_chips - 1 and needed < v
            if can_close and (
                _reaches(compute, loads, target)
                or fixed_chips[v] > chip
                or memory.with_node(v) > capacity[chip]
            ):
                chip, start, compute, loads = chip + 1, v, 0.0, []
                needed = alive_last
                memory = _ChipMemory(self, v)
            placed[v] = chip
            loads.append(seconds[v][kinds[chip]])
            compute += loads[-1]
            memory.add(v)
            alive_last = max([alive_last, *(self.last[k] for k in self.made[v])])
        return placed[self.problem.contraction]


class _ChipMemory:
    """The memory of a chip that runs the contracted nodes from `start` up to the last one added.

    The later ones are on other chips. `with_node` needs the exact peak of live activations only if
    the upper bounds `made_bytes` and `live_bytes` on the peak are too large.
    """

    def __init__(self, walk: _Walk, start: int) -> None:
        self.walk = walk
        self.start = start
        self.held: set[int] = set()  # weights
        self.received: set[int] = set()  # tensors
        self.weight_bytes = 0.0
        self.received_bytes = 0.0
        self.made_bytes = 0.0  # of all tensors made here; an upper bound on the peak
        self.dead_bytes = 0.0  # of the tensors made here whose last consumer is here
        self.live_bytes = 0.0  # another upper bound on the peak

    def add(self, v: int) -> None:
        walk = self.walk
        for w in walk.weights[v]:
            if w not in self.held:
                self.held.add(w)
                self.weight_bytes += walk.weight_bytes[w]
        for k in walk.taken[v]:
            if walk.producer[k] < self.start and k not in self.received:
                self.received.add(k)
                self.received_bytes += walk.bytes[k]
            if walk.producer[k] >= self.start and walk.last[k] == v:
                self.dead_bytes += walk.bytes[k]
        for k in walk.made[v]:
            self.made_bytes += walk.bytes[k]
            if walk.last[k] == v:
                self.dead_bytes += walk.bytes[k]
        self.live_bytes = max(self.live_bytes, walk.live_bytes[v])

    def with_node(self, v: int) -> float:
        """Bytes M_c with contracted node v added: exact, or an upper bound that fits every chip."""
        walk = self.walk
        weights = self.weight_bytes + sum(
            walk.weight_bytes[w] for w in walk.weights[v] if w not in self.held
        )
        if walk.problem.mcm.memory_model == "weights":
            return weights
        taken, made = walk.taken[v], walk.made[v]
        received = self.received_bytes + sum(
            walk.bytes[k] for k in taken if walk.producer[k] < self.start and k not in self.received
        )
        made_bytes = self.made_bytes + sum(walk.bytes[k] for k in made)
        dead = self.dead_bytes + sum(
            walk.bytes[k]
            for k in {*taken, *made}
            if walk.producer[k] >= self.start and walk.last[k] == v
        )
        boundary = 2 * (made_bytes - dead + received)
        at_most = weights + boundary + min(made_bytes, max(self.live_bytes, walk.live_bytes[v]))
        if at_most <= walk.least_capacity:
            return at_most
        return weights + boundary + self._peak(v)

    def _peak(self, v: int) -> float:
        contraction = self.walk.problem.contraction
        inside = (contraction >= self.start) & (contraction <= v)
        return host.segment_peak_bytes(self.walk.problem, inside)


def _reaches(total: float, loads: list[float], target: float) -> bool:
    """Whether the loads sum to at least the target, without rounding errors of the total."""
    if abs(total - target) <= 1e-9 * target:
        return math.fsum(loads) >= target
    return total >= target


def _lists(owner: IntArray, items: IntArray, count: int) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(count)]
    for o, item in zip(owner.tolist(), items.tolist(), strict=True):
        lists[o].append(item)
    return lists
