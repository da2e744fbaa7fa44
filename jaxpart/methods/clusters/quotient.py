"""Partitions as quotient graphs: clusters of nodes whose graph is its own transitive reduction.

The triangle rule allows more than chips in a row: branches of the model may run on chips side by
side, as long as no edge has a longer path beside it. What holds for chips holds for clusters of any
size, so a valid partition can be grown from single nodes:

- `reduce`: where an edge a -> b has clusters M between, each of M must join a or b (a path through
  any other would make the edge a shortcut). A down-closed part of M joins a, the rest b.
- `packing.pack`: two clusters become one where nothing lies between them, until there are no more
  than chips; then reduced again.

Both keep the quotient acyclic: only clusters with nothing between them are ever merged.

The loops are compiled (numba), since a search makes thousands of partitions this way. Merging costs
about n words of 64 clusters for each of n clusters above and below, and a look for shortcuts as
many for each edge.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from jaxpart.bounds.ideals.bitsets import (
    Words,
    add,
    discard,
    has,
    have_common,
    intersection,
    members,
    next_in,
    order_of,
    size_of,
    size_of_both,
    uniform,
    unite,
    words_for,
)
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# The size of a cluster whose weights fill a chip: its power is above those of sizes in seconds, and
# not so much that they are lost in rounding. Buffers and activations take some of the SRAM.
_OVERFULL = 100.0
_FOR_WEIGHTS = 0.95


class Weigher(NamedTuple):
    """How large a cluster is: its seconds, unless its weights are more than a chip can hold."""

    seconds: FloatArray  # [N] of each contracted node on the fastest chip
    own: FloatArray  # [N] bytes of the weights that no other contracted node uses
    shared: Words  # [N, words] set of the weights that other contracted nodes use too
    shared_bytes: FloatArray  # of each of those weights
    target_s: float  # the unit of sizes
    capacity: float


class Quotient(NamedTuple):
    """Clusters of contracted nodes and the acyclic graph between them. Its arrays are changed in
    place.
    """

    alive: Words  # clusters that are; the others have been merged
    home: IntArray  # [n] the cluster that took each one; itself while it is alive
    first: IntArray  # [n] the smallest block of each
    after: Words  # [n, words] clusters that an edge leads to
    before: Words  # [n, words]
    below: Words  # [n, words] all that a path leads to
    above: Words  # [n, words]
    seconds: FloatArray  # [n]
    own: FloatArray  # [n]
    shared: Words  # [n, words]
    size: FloatArray  # [n]


def weigher_of(problem: Problem, target_s: float) -> Weigher:
    """Sizes of clusters of the problem's contracted nodes, in units of `target_s`."""
    contracted = problem.contracted
    is_shared, own = contracted.is_shared_weight, contracted.own_weight_bytes
    number = np.cumsum(is_shared) - 1
    shared = np.zeros((contracted.num_nodes, words_for(int(is_shared.sum()))), np.uint64)
    for w, v in zip(contracted.use_weight.tolist(), contracted.use_node.tolist(), strict=True):
        if is_shared[w]:
            shared[v, number[w] // 64] |= np.uint64(1) << np.uint64(number[w] % 64)
    has_memory = problem.mcm.constraints.memory
    capacity = float(problem.capacity_bytes.max()) if has_memory else math.inf
    is_full = problem.mcm.memory_model == "full"
    seconds, shared_bytes = contracted.node_s.min(axis=1), contracted.weight_bytes[is_shared]
    weigher = Weigher(seconds, own, shared, shared_bytes, max(target_s, 1e-30), math.inf)
    alone = max(_held(weigher, own[v], shared[v]) for v in range(contracted.num_nodes))
    return weigher._replace(capacity=max(capacity * (_FOR_WEIGHTS if is_full else 1.0), alone))


@njit(cache=True)
def _held(weigher: Weigher, own: float, shared: Words) -> float:
    held = own
    w = next_in(shared, 0)
    while w >= 0:
        held += float(weigher.shared_bytes[w])
        w = next_in(shared, w + 1)
    return held


@njit(cache=True)
def _size(weigher: Weigher, seconds: float, own: float, shared: Words) -> float:
    """Seconds in units of the target; more than any such where no chip holds its weights."""
    held = _held(weigher, own, shared)
    if held > weigher.capacity:
        return _OVERFULL * held / weigher.capacity
    return seconds / weigher.target_s


@njit(cache=True)
def quotient_of(cluster: IntArray, pairs: IntArray, weigher: Weigher) -> Quotient:
    """The quotient of given clusters.

    Args:
      cluster: [N] of each contracted node, 0 to n - 1.
      pairs: [P, 2] (producer, consumer) of all edges between blocks.
      weigher: sizes of clusters.

    Raises:
      ValueError: the clusters have a circle.
    """
    n = cluster.max() + 1
    words = max(1, (n + 63) // 64)
    quotient = Quotient(
        np.zeros(words, np.uint64),
        np.arange(n),
        np.full(n, len(cluster)),
        np.zeros((n, words), np.uint64),
        np.zeros((n, words), np.uint64),
        np.zeros((n, words), np.uint64),
        np.zeros((n, words), np.uint64),
        np.zeros(n),
        np.zeros(n),
        np.zeros((n, weigher.shared.shape[1]), np.uint64),
        np.zeros(n),
    )
    for v in range(len(cluster)):
        a = cluster[v]
        add(quotient.alive, a)
        quotient.first[a] = min(quotient.first[a], v)
        quotient.seconds[a] += weigher.seconds[v]
        quotient.own[a] += weigher.own[v]
        unite(quotient.shared[a], weigher.shared[v])
    for a in range(n):
        quotient.size[a] = _size(weigher, quotient.seconds[a], quotient.own[a], quotient.shared[a])
    for p in range(len(pairs)):
        a, b = cluster[pairs[p, 0]], cluster[pairs[p, 1]]
        if a != b:
            add(quotient.after[a], int(b))
            add(quotient.before[b], int(a))
    order = topological(quotient)
    if len(order) < n:
        raise ValueError("the clusters have a circle, expected an acyclic quotient")
    for i in range(n):
        a, z = order[i], order[n - 1 - i]
        unite(quotient.above[a], quotient.before[a])
        for b in members(quotient.before[a]):
            unite(quotient.above[a], quotient.above[b])
        unite(quotient.below[z], quotient.after[z])
        for b in members(quotient.after[z]):
            unite(quotient.below[z], quotient.below[b])
    return quotient


@njit(cache=True)
def topological(quotient: Quotient) -> IntArray:
    """The clusters, producers first, then by their smallest contracted node; none on a circle."""
    alive = members(quotient.alive)
    missing = np.zeros(len(quotient.home), np.int64)
    for a in alive:
        missing[a] = size_of(quotient.before[a])
    order = np.empty(len(alive), np.int64)
    for count in range(len(alive)):
        chosen = -1
        for a in alive:
            if missing[a] == 0 and (chosen < 0 or quotient.first[a] < quotient.first[chosen]):
                chosen = a
        if chosen < 0:
            return order[:count]
        missing[chosen] = -1
        order[count] = chosen
        for b in members(quotient.after[chosen]):
            missing[b] -= 1
    return order


@njit(cache=True)
def root(quotient: Quotient, a: int) -> int:
    """The cluster that cluster a is part of by now."""
    while quotient.home[a] != a:
        a = quotient.home[a]
    return a


@njit(cache=True)
def labels_of(quotient: Quotient, cluster: IntArray) -> IntArray:
    """[N] the position of each contracted node's cluster in topological order.

    Args:
      cluster: [N] the cluster that each contracted node is in, or was in before that was merged.
    """
    position = np.zeros(len(quotient.home), np.int64)
    order = topological(quotient)
    for i in range(len(order)):
        position[order[i]] = i
    labels = np.empty(len(cluster), np.int64)
    for v in range(len(cluster)):
        labels[v] = position[root(quotient, cluster[v])]
    return labels


@njit(cache=True)
def copy_of(quotient: Quotient) -> Quotient:
    """A copy to try things on."""
    return Quotient(
        quotient.alive.copy(),
        quotient.home.copy(),
        quotient.first.copy(),
        quotient.after.copy(),
        quotient.before.copy(),
        quotient.below.copy(),
        quotient.above.copy(),
        quotient.seconds.copy(),
        quotient.own.copy(),
        quotient.shared.copy(),
        quotient.size.copy(),
    )


@njit(cache=True)
def compacted(quotient: Quotient) -> tuple[Quotient, IntArray]:
    """The quotient without the clusters that were merged, and the number [n] that each has there.

    Clusters keep their order.
    """
    alive = members(quotient.alive)
    count = len(alive)
    words = max(1, (count + 63) // 64)
    number = np.empty(len(quotient.home), np.int64)
    for i in range(count):
        number[alive[i]] = i
    for a in range(len(number)):
        number[a] = number[root(quotient, a)]
    dense = Quotient(
        np.zeros(words, np.uint64),
        np.arange(count),
        quotient.first[alive],
        _renumbered(quotient.after, alive, number, words),
        _renumbered(quotient.before, alive, number, words),
        _renumbered(quotient.below, alive, number, words),
        _renumbered(quotient.above, alive, number, words),
        quotient.seconds[alive],
        quotient.own[alive],
        quotient.shared[alive],
        quotient.size[alive],
    )
    for i in range(count):
        add(dense.alive, i)
    return dense, number


@njit(cache=True)
def _renumbered(rows: Words, alive: IntArray, number: IntArray, words: int) -> Words:
    dense = np.zeros((len(alive), words), np.uint64)
    for i in range(len(alive)):
        b = next_in(rows[alive[i]], 0)
        while b >= 0:
            add(dense[i], number[b])
            b = next_in(rows[alive[i]], b + 1)
    return dense


@njit(cache=True)
def merge(quotient: Quotient, weigher: Weigher, a: int, b: int) -> None:
    """Joins b to a. Nothing may lie between them."""
    _join(quotient.below, a, b)
    _join(quotient.above, a, b)
    _join(quotient.after, a, b)
    _join(quotient.before, a, b)
    x = next_in(quotient.above[a], 0)
    while x >= 0:
        _replace(quotient.after[x], a, b)
        unite(quotient.below[x], quotient.below[a])
        add(quotient.below[x], a)
        discard(quotient.below[x], b)
        x = next_in(quotient.above[a], x + 1)
    y = next_in(quotient.below[a], 0)
    while y >= 0:
        _replace(quotient.before[y], a, b)
        unite(quotient.above[y], quotient.above[a])
        add(quotient.above[y], a)
        discard(quotient.above[y], b)
        y = next_in(quotient.below[a], y + 1)
    discard(quotient.alive, b)
    quotient.home[b] = a
    quotient.first[a] = min(quotient.first[a], quotient.first[b])
    quotient.seconds[a] += quotient.seconds[b]
    quotient.own[a] += quotient.own[b]
    unite(quotient.shared[a], quotient.shared[b])
    quotient.size[a] = _size(weigher, quotient.seconds[a], quotient.own[a], quotient.shared[a])


@njit(cache=True)
def _join(rows: Words, a: int, b: int) -> None:
    unite(rows[a], rows[b])
    discard(rows[a], a)
    discard(rows[a], b)


@njit(cache=True)
def _replace(row: Words, a: int, b: int) -> None:
    if has(row, b):
        add(row, a)
        discard(row, b)


@njit(cache=True)
def reduce(quotient: Quotient, weigher: Weigher, rng: Words) -> None:
    """Merges clusters until no edge has a longer path beside it.

    Edges with little between go first; where a tie or an even split can be broken in several ways,
    `rng` does.
    """
    while True:
        count = _shortcuts(quotient)
        if count == 0:
            return
        ends = np.empty((count, 2), np.int64)
        key = np.empty(count)
        count = 0
        for a in members(quotient.alive):
            for b in members(quotient.after[a]):
                between = size_of_both(quotient.below[a], quotient.above[b])
                if between:
                    ends[count, 0], ends[count, 1] = a, b
                    key[count] = between + uniform(rng)
                    count += 1
        for i in order_of(key):
            a, b = root(quotient, ends[i, 0]), root(quotient, ends[i, 1])
            if a != b and have_common(quotient.below[a], quotient.above[b]):
                _close(quotient, weigher, a, b, rng)


@njit(cache=True)
def _shortcuts(quotient: Quotient) -> int:
    """How many edges have a longer path beside them: most of what growing does is to ask this."""
    count = 0
    a = next_in(quotient.alive, 0)
    while a >= 0:
        b = next_in(quotient.after[a], 0)
        while b >= 0:
            if have_common(quotient.below[a], quotient.above[b]):
                count += 1
            b = next_in(quotient.after[a], b + 1)
        a = next_in(quotient.alive, a + 1)
    return count


@njit(cache=True)
def _close(quotient: Quotient, weigher: Weigher, a: int, b: int, rng: Words) -> None:
    """Shares out what lies between a and b to the two, as evenly as an order of it allows."""
    between = members(intersection(quotient.below[a], quotient.above[b]))
    key = np.empty(len(between))
    for i in range(len(between)):
        key[i] = size_of(quotient.above[between[i]]) + 2 * uniform(rng)
    between = _ordered(quotient, between, order_of(key))
    count = len(between)
    fronts = _sizes_with(quotient, weigher, a, between)
    backs = _sizes_with(quotient, weigher, b, _reversed(between))
    split, least = 0, np.inf
    for position in range(count + 1):
        larger = max(fronts[position], backs[count - position])
        if larger < least or (larger == least and uniform(rng) < 0.5):
            split, least = position, larger
    for i in range(count):
        is_front = i < split
        m = between[i] if is_front else between[count - 1 - (i - split)]
        merge(quotient, weigher, a if is_front else b, m)


@njit(cache=True)
def _reversed(clusters: IntArray) -> IntArray:
    count = len(clusters)
    other = np.empty(count, np.int64)
    for i in range(count):
        other[i] = clusters[count - 1 - i]
    return other


@njit(cache=True)
def _sizes_with(quotient: Quotient, weigher: Weigher, a: int, others: IntArray) -> FloatArray:
    """The size of cluster a with the first 0, 1, ... of the others."""
    seconds, own, shared = quotient.seconds[a], quotient.own[a], quotient.shared[a].copy()
    sizes = np.empty(len(others) + 1)
    sizes[0] = quotient.size[a]
    for i in range(len(others)):
        m = others[i]
        seconds += quotient.seconds[m]
        own += quotient.own[m]
        unite(shared, quotient.shared[m])
        sizes[i + 1] = _size(weigher, seconds, own, shared)
    return sizes


@njit(cache=True)
def _ordered(quotient: Quotient, clusters: IntArray, wanted: IntArray) -> IntArray:
    """The clusters in the wanted order of their places, changed so that producers come first."""
    missing = np.zeros(quotient.above.shape[1], np.uint64)
    for m in clusters:
        add(missing, m)
    order = np.empty(len(clusters), np.int64)
    count = 0
    while count < len(clusters):
        for i in wanted:
            m = clusters[i]
            if has(missing, int(m)) and not have_common(quotient.above[m], missing):
                order[count] = m
                count += 1
                discard(missing, int(m))
    return order
