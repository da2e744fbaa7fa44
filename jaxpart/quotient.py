"""Partitions as quotient graphs: clusters of nodes whose graph is its own transitive reduction.

The triangle rule allows more than chips in a row: branches of the model may run on chips side by
side, as long as no edge has a longer path beside it. What holds for chips holds for clusters of any
size, so a valid partition can be grown from single nodes:

- `Quotient.reduce`: where an edge a -> b has clusters M between, each of M must join a or b (a path
  through any other would make the edge a shortcut). A down-closed part of M joins a, the rest b.
- `Quotient.pack`: two clusters become one where nothing lies between them, until there are no more
  than chips; then reduced again.

Both keep the quotient acyclic: only clusters with nothing between them are ever merged.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Iterable

import numpy as np

from jaxpart.problem import IntArray, Problem

# Pairs of clusters whose merging is tried out, for each merging that is made.
_TRIED = 3
# The power of sizes that is summed to compare partitions: near the maximum, but it feels the rest.
_POWER = 8
# The size of a cluster whose weights fill a chip: its power is above those of sizes in seconds, and
# not so much that they are lost in rounding. Buffers and activations take some of the SRAM.
_OVERFULL = 100.0
_FOR_WEIGHTS = 0.95


class Weigher:
    """How large a cluster is: its seconds, unless its weights are more than a chip can hold.

    Attributes:
      seconds: [N] of each block on the fastest chip.
      own: [N] bytes of the weights that no other block uses.
      shared: [N] bit set of the weights that other blocks use too.
    """

    def __init__(self, problem: Problem, target_s: float) -> None:
        blocks = problem.contracted
        uses = np.bincount(blocks.use_weight, minlength=len(blocks.weight_bytes))
        self.seconds: list[float] = blocks.node_s.min(axis=1).tolist()
        self.own = [0.0] * blocks.num_nodes
        self.shared = [0] * blocks.num_nodes
        for w, v in zip(blocks.use_weight.tolist(), blocks.use_node.tolist(), strict=True):
            if uses[w] == 1:
                self.own[v] += float(blocks.weight_bytes[w])
            else:
                self.shared[v] |= 1 << w
        self._weight_bytes: list[float] = blocks.weight_bytes.tolist()
        self._target_s = max(target_s, 1e-30)
        has_memory = problem.mcm.constraints.memory
        capacity = float(problem.capacity_bytes.max()) if has_memory else math.inf
        is_full = problem.mcm.memory_model == "full"
        alone = max(self._held(*figures) for figures in zip(self.own, self.shared, strict=True))
        self._capacity = max(capacity * (_FOR_WEIGHTS if is_full else 1.0), alone)

    def size(self, seconds: float, own: float, shared: int) -> float:
        """Seconds in units of the target; more than any such where no chip holds its weights."""
        held = self._held(own, shared)
        if held > self._capacity:
            return _OVERFULL * held / self._capacity
        return seconds / self._target_s

    def _held(self, own: float, shared: int) -> float:
        return own + sum(self._weight_bytes[w] for w in bits(shared))


class Quotient:
    """Clusters of blocks and the acyclic graph between them, as bit sets. Changed in place."""

    def __init__(
        self, groups: Iterable[list[int]], pairs: Iterable[tuple[int, int]], weigher: Weigher
    ) -> None:
        """Makes the quotient of the given groups of blocks.

        Args:
          groups: every block in one of them; their quotient must be acyclic.
          pairs: (producer, consumer) of all edges between blocks, topologically numbered.
          weigher: sizes of clusters.
        """
        self.weigher = weigher
        self.members = [list(group) for group in groups]
        count = len(self.members)
        cluster = {v: c for c, group in enumerate(self.members) for v in group}
        self.alive = (1 << count) - 1
        self.after = [0] * count  # clusters that an edge leads to
        self.before = [0] * count
        for u, v in pairs:
            a, b = cluster[u], cluster[v]
            if a != b:
                self.after[a] |= 1 << b
                self.before[b] |= 1 << a
        self.below = [0] * count  # all that a path leads to
        self.above = [0] * count
        order = self.topological()
        for a in order:
            self.above[a] = self.before[a]
            for b in bits(self.before[a]):
                self.above[a] |= self.above[b]
        for a in reversed(order):
            self.below[a] = self.after[a]
            for b in bits(self.after[a]):
                self.below[a] |= self.below[b]
        self.seconds = [sum(weigher.seconds[v] for v in group) for group in self.members]
        self.own = [sum(weigher.own[v] for v in group) for group in self.members]
        self.shared = [0] * count
        for c, group in enumerate(self.members):
            for v in group:
                self.shared[c] |= weigher.shared[v]
        self.size = [
            weigher.size(*figures)
            for figures in zip(self.seconds, self.own, self.shared, strict=True)
        ]

    def __len__(self) -> int:
        return self.alive.bit_count()

    def copy(self) -> Quotient:
        """A copy to try things on."""
        other = copy.copy(self)
        for name in ("members", "after", "before", "below", "above", *_SIZES):
            setattr(other, name, list(getattr(self, name)))
        return other

    def topological(self) -> list[int]:
        """The clusters, producers first, otherwise by their earliest block."""
        missing = {a: self.before[a].bit_count() for a in bits(self.alive)}
        ready = [(min(self.members[a]), a) for a, count in missing.items() if count == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            _, a = heapq.heappop(ready)
            order.append(a)
            for b in bits(self.after[a]):
                missing[b] -= 1
                if missing[b] == 0:
                    heapq.heappush(ready, (min(self.members[b]), b))
        if len(order) != len(missing):
            raise ValueError("the groups have a circle, expected an acyclic quotient")
        return order

    def labels(self) -> IntArray:
        """[blocks] the position of each block's cluster in topological order."""
        order = self.topological()
        found = np.zeros(sum(len(self.members[a]) for a in order), np.int64)
        for position, a in enumerate(order):
            found[self.members[a]] = position
        return found

    def power_sum(self) -> float:
        """The sum of a high power of the sizes: the less, the more even."""
        return sum(self.size[a] ** _POWER for a in bits(self.alive))

    def merge(self, a: int, b: int) -> None:
        """Joins b to a. Nothing may lie between them."""
        bit_a, bit_b = 1 << a, 1 << b
        both = bit_a | bit_b
        below = (self.below[a] | self.below[b]) & ~both
        above = (self.above[a] | self.above[b]) & ~both
        for x in bits(above):
            self.below[x] = (self.below[x] | below | bit_a) & ~bit_b
            if self.after[x] & bit_b:
                self.after[x] = (self.after[x] | bit_a) & ~bit_b
        for y in bits(below):
            self.above[y] = (self.above[y] | above | bit_a) & ~bit_b
            if self.before[y] & bit_b:
                self.before[y] = (self.before[y] | bit_a) & ~bit_b
        self.below[a], self.above[a] = below, above
        self.after[a] = (self.after[a] | self.after[b]) & ~both
        self.before[a] = (self.before[a] | self.before[b]) & ~both
        self.alive &= ~bit_b
        self.members[a] = self.members[a] + self.members[b]
        self.seconds[a] += self.seconds[b]
        self.own[a] += self.own[b]
        self.shared[a] |= self.shared[b]
        self.size[a] = self.weigher.size(self.seconds[a], self.own[a], self.shared[a])

    def reduce(self, rng: np.random.Generator) -> None:
        """Merges clusters until no edge has a longer path beside it.

        Edges with little between go first; where a tie or an even split can be broken in several
        ways, `rng` does.
        """
        while found := self._shortcuts():
            noise = rng.random(len(found)).tolist()
            order = sorted(range(len(found)), key=lambda i: (found[i][0], noise[i]))
            home: dict[int, int] = {}
            for i in order:
                a, b = (_root(home, cluster) for cluster in found[i][1:])
                if a != b and self.below[a] & self.above[b]:
                    self._close(a, b, rng, home)

    def _shortcuts(self) -> list[tuple[int, int, int]]:
        """(clusters between, a, b) of every edge a -> b with a longer path beside it."""
        return [
            (between.bit_count(), a, b)
            for a in bits(self.alive)
            for b in bits(self.after[a])
            if (between := self.below[a] & self.above[b])
        ]

    def _close(self, a: int, b: int, rng: np.random.Generator, home: dict[int, int]) -> None:
        """Shares out what lies between a and b to the two, as evenly as an order of it allows."""
        noise = rng.random(len(self.members))
        between = sorted(
            bits(self.below[a] & self.above[b]),
            key=lambda m: self.above[m].bit_count() + 2 * noise[m],
        )
        between = self._ordered(between)
        fronts = self._sizes_with(a, between)
        backs = self._sizes_with(b, between[::-1])[::-1]
        split, least = 0, math.inf
        for position, larger in enumerate(map(max, fronts, backs)):
            if larger < least or (larger == least and rng.random() < 0.5):
                split, least = position, larger
        for m in between[:split]:
            self.merge(a, m)
            home[m] = a
        for m in reversed(between[split:]):
            self.merge(b, m)
            home[m] = b

    def _sizes_with(self, a: int, others: list[int]) -> list[float]:
        """The size of cluster a with the first 0, 1, ... of the others."""
        seconds, own, shared = self.seconds[a], self.own[a], self.shared[a]
        sizes = [self.size[a]]
        for m in others:
            seconds += self.seconds[m]
            own += self.own[m]
            shared |= self.shared[m]
            sizes.append(self.weigher.size(seconds, own, shared))
        return sizes

    def _ordered(self, clusters: list[int]) -> list[int]:
        """The same clusters with producers first, changed no more than that takes."""
        missing = sum(1 << m for m in clusters)
        order: list[int] = []
        pending = clusters
        while pending:
            later = []
            for m in pending:
                if self.above[m] & missing:
                    later.append(m)
                else:
                    order.append(m)
                    missing &= ~(1 << m)
            pending = later
        return order

    def pack(self, count: int, rng: np.random.Generator) -> Quotient | None:
        """A reduced quotient of at most `count` clusters, as even as greedy merging finds.

        This one must be reduced, and stays as it is. None where no two clusters can be merged.
        """
        quotient = self
        while len(quotient) > count:
            tried = []
            for a, b in quotient._mergeable(rng):
                other = quotient.copy()
                other.merge(a, b)
                other.reduce(rng)
                fewer = len(quotient) - len(other)
                tried.append(((other.power_sum() - quotient.power_sum()) / fewer, other))
            if not tried:
                return None
            quotient = min(tried, key=lambda pair: pair[0])[1]
        return quotient if quotient is not self else self.copy()

    def _mergeable(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """A few pairs of small clusters with nothing between them."""
        clusters = sorted(bits(self.alive), key=lambda a: self.size[a])
        small = clusters[: 2 * _TRIED + 2]
        pairs = {
            (a, b) if (self.below[a] >> b) & 1 or a < b else (b, a)
            for a in small
            for b in (*bits(self.after[a]), *bits(self.before[a]), *small)
            if a != b
        }
        pairs = {
            (b, a) if (self.below[b] >> a) & 1 else (a, b)
            for a, b in pairs
            if not (self.below[a] & self.above[b]) and not (self.below[b] & self.above[a])
        }
        ordered = sorted(pairs)
        keys = [
            (self.size[a] + self.size[b]) * (1 + 0.2 * noise)
            for (a, b), noise in zip(ordered, rng.random(len(ordered)).tolist(), strict=True)
        ]
        best = sorted(range(len(ordered)), key=keys.__getitem__)[:_TRIED]
        return [ordered[i] for i in best]


_SIZES = ("seconds", "own", "shared", "size")


def bits(mask: int) -> list[int]:
    """The positions of the bits that are set, ascending."""
    found = []
    if mask.bit_count() <= _FEW_BITS:
        while mask:
            low = mask & -mask
            found.append(low.bit_length() - 1)
            mask ^= low
        return found
    start = 0
    for byte in mask.to_bytes((mask.bit_length() + 7) // 8, "little"):
        if byte:
            found += [start + position for position in _OF_BYTE[byte]]
        start += 8
    return found


# Above so many bits, going through bytes takes half the time.
_FEW_BITS = 12
_OF_BYTE = [[i for i in range(8) if (byte >> i) & 1] for byte in range(256)]


def _root(home: dict[int, int], cluster: int) -> int:
    while cluster in home:
        cluster = home[cluster]
    return cluster


def groups_of(labels: IntArray) -> list[list[int]]:
    """The blocks of each label, labels ascending."""
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return [part.tolist() for part in np.split(order, cuts)]
