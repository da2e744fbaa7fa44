"""The compiler's greedy heuristic: the baseline that improvements are measured against.

A fixed procedure (README, "What every figure means"): walk the nodes in number order, close the chip
when it has done its share or its memory is full, and only where that leaves no tensor alive across
two cuts; relax or tighten the share until the outcome is valid.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from jaxpart.cost import verify
from jaxpart.problem import IntArray, Problem

_TRIES = 64
_FACTOR = 1.1


@functools.lru_cache(maxsize=4)
def baseline(problem: Problem) -> IntArray | None:
    """[N] the first valid walk's assignment; None where no target gives one."""
    if (problem.block_pin == -2).any():
        return None
    walk = _Walk(problem)
    up = [_FACTOR**i for i in range(_TRIES + 1)]
    factors = itertools.chain(up, (_FACTOR**-i for i in range(1, _TRIES + 1)))
    size = 1  # most walks are valid at once; then verify in growing batches
    while batch := list(itertools.islice(factors, size)):
        outcomes = [walk(problem.mean_load_s * factor) for factor in batch]
        valid = verify(problem, np.stack(outcomes, axis=1)).valid
        if valid.any():
            return outcomes[int(np.argmax(valid))]
        size = 16
    return None


class _Walk:
    """What all walks over one problem share."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.blocks = problem.contracted
        blocks = self.blocks
        count = blocks.num_nodes
        self.members = _lists(problem.block, np.arange(problem.num_nodes), count)
        self.made = _lists(blocks.tensor_producer, np.arange(blocks.num_tensors), count)
        self.taken = _lists(blocks.edge_consumer, blocks.edge_tensor, count)
        self.weights = _lists(blocks.use_node, blocks.use_weight, count)
        last = blocks.tensor_producer.copy()
        np.maximum.at(last, blocks.edge_tensor, blocks.edge_consumer)
        self.last = last.tolist()
        self.bytes = blocks.tensor_bytes.tolist()
        self.producer = blocks.tensor_producer.tolist()
        self.weight_bytes = blocks.weight_bytes.tolist()
        self.with_memory = problem.mcm.constraints.memory

    def __call__(self, target: float) -> IntArray:
        """[N] the outcome of one walk, valid or not."""
        blocks = self.blocks
        kinds, capacity = blocks.chip_kind.tolist(), blocks.capacity_bytes.tolist()
        seconds, pins = blocks.node_s.tolist(), blocks.pin.tolist()
        placed = np.empty(blocks.num_nodes, np.int64)
        chip, start, compute = 0, 0, 0.0
        needed = -1  # last consumer of what is alive across the chip's opening cut
        alive_last = -1  # last consumer of anything made so far
        memory = _ChipMemory(self, 0)
        for v in range(blocks.num_nodes):
            can_close = v > start and chip < blocks.num_chips - 1 and needed < v
            if can_close and (
                compute >= target
                or pins[v] > chip
                or (self.with_memory and memory.with_block(v) > capacity[chip])
            ):
                chip, start, compute = chip + 1, v, 0.0
                needed = alive_last
                memory = _ChipMemory(self, v)
            placed[v] = chip
            compute += seconds[v][kinds[chip]]
            memory.add(v)
            alive_last = max([alive_last, *(self.last[k] for k in self.made[v])])
        return placed[self.problem.block]


class _ChipMemory:
    """The memory of a chip that holds the blocks from `start` on, everything later being elsewhere."""

    def __init__(self, walk: _Walk, start: int) -> None:
        self.walk = walk
        self.start = start
        self.stop = start
        self.held: set[int] = set()  # weights
        self.received: set[int] = set()  # tensors
        self.weight_bytes = 0.0
        self.received_bytes = 0.0
        self.made_bytes = 0.0  # of all tensors made here: no fewer than are ever alive
        self.dead_bytes = 0.0  # of those made here whose last consumer is here

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
        self.stop = v + 1

    def with_block(self, v: int) -> float:
        """M_c with block v added: exact where it could exceed the smallest capacity, else a bound."""
        walk = self.walk
        weights = self.weight_bytes + sum(
            walk.weight_bytes[w] for w in walk.weights[v] if w not in self.held
        )
        if walk.problem.mcm.memory_model == "weights":
            return weights
        taken, made = walk.taken[v], walk.made[v]
        received = self.received_bytes + sum(
            walk.bytes[k]
            for k in taken
            if walk.producer[k] < self.start and k not in self.received
        )
        made_bytes = self.made_bytes + sum(walk.bytes[k] for k in made)
        dead = self.dead_bytes + sum(
            walk.bytes[k]
            for k in {*taken, *made}
            if walk.producer[k] >= self.start and walk.last[k] == v
        )
        boundary = 2 * (made_bytes - dead + received)
        if weights + boundary + made_bytes <= walk.problem.capacity_bytes.min():
            return weights + boundary + made_bytes
        return weights + boundary + self._peak(v)

    def _peak(self, v: int) -> float:
        nodes = sorted(u for b in range(self.start, v + 1) for u in self.walk.members[b])
        return peak_bytes(self.walk.problem, np.array(nodes))


def peak_bytes(problem: Problem, nodes: IntArray) -> float:
    """The peak of live activations of a chip that runs `nodes` (ascending) and nothing else."""
    here = np.zeros(problem.num_nodes, bool)
    here[nodes] = True
    made = here[problem.tensor_producer]
    last = problem.tensor_producer.copy()
    local = made[problem.edge_tensor] & here[problem.edge_consumer]
    np.maximum.at(last, problem.edge_tensor[local], problem.edge_consumer[local])
    change = np.zeros(problem.num_nodes + 1)
    np.add.at(change, problem.tensor_producer[made], problem.tensor_bytes[made])
    np.add.at(change, last[made] + 1, -problem.tensor_bytes[made])
    return float(np.cumsum(change)[nodes].max(initial=0.0))


def _lists(owner: IntArray, items: IntArray, count: int) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(count)]
    for o, item in zip(owner.tolist(), items.tolist(), strict=True):
        lists[o].append(item)
    return lists
