"""Partitions as quotient graphs: clusters of nodes whose graph is its own transitive reduction.

The triangle rule allows more than a row of chips. Branches of the model may run on parallel chips,
as long as no edge of the chip graph is a shortcut: an edge a -> b with a longer path from a to b.
The rule applies to clusters of any size as it does to chips. So a valid partition can be grown from
single contracted nodes, by two operations:

- `reduce` removes shortcuts. Let M be the clusters between a and b, for an edge a -> b: those on a
  path from a to b. Each cluster of M must join a or b, since a path through any other cluster would
  keep the edge a shortcut. A down-closed part of M joins a, the rest joins b.
- `packing.pack` merges pairs of clusters with nothing between them, and reduces after each merge,
  until there are no more clusters than chips.

Both operations keep the quotient acyclic, because they only merge clusters with nothing between
them.

A search makes thousands of partitions in this way, so the loops are compiled by numba. For n
clusters, a bit set has n / 64 words. A merge costs that many words for each cluster above and
below; the search for shortcuts costs that many for each edge.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.bounds.ideals.bitsets import (
    ZERO,
    Words,
    add,
    copy_row,
    discard,
    entry,
    has,
    have_common,
    inner,
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

# Size of a cluster whose weights just exceed a chip. It outweighs clusters measured by seconds when
# powers of sizes are summed (`packing.py`), but not so much that rounding loses their sizes.
_OVERFULL_SIZE = 100.0
# Share of the SRAM for weights under the full memory model: buffers and activations need the rest.
_WEIGHTS_SHARE = 0.95


class Weigher(NamedTuple):
    """What the size of a cluster of the M contracted nodes is computed from.

    The size is the cluster's compute time, unless its weights are more than a chip can hold.
    """

    seconds: FloatArray  # [M] of each contracted node on the fastest chip
    own: FloatArray  # [M] bytes of the weights that no other contracted node uses
    shared: Words  # [M, words] bit set of the shared weights that each contracted node uses
    shared_bytes: FloatArray  # [shared weights] bytes of each
    target_s: float  # seconds; the unit of sizes
    capacity: float  # bytes of weights that fit; at least those of each contracted node


class Quotient(NamedTuple):
    """n clusters of contracted nodes and the acyclic graph between them.

    Its arrays are changed in place. A cluster that was merged into another is not alive, and its
    rows mean nothing.
    """

    alive: Words  # [words] clusters that were not merged into another
    home: IntArray  # [n] the cluster that each was merged into; itself while it is alive
    first: IntArray  # [n] smallest contracted node
    after: Words  # [n, words] clusters to which an edge leads
    before: Words  # [n, words] clusters from which an edge comes
    below: Words  # [n, words] clusters to which a path leads
    above: Words  # [n, words] clusters from which a path comes
    seconds: FloatArray  # [n] compute time
    own: FloatArray  # [n] bytes of the weights of single contracted nodes
    shared: Words  # [n, words] shared weights in use
    size: FloatArray  # [n] as `Weigher` defines it


def weigher_of(problem: Problem, target_s: float) -> Weigher:
    """The weigher for clusters of contracted nodes.

    Args:
      problem: of M contracted nodes.
      target_s: unit of sizes, in seconds: the compute time that a chip should have.
    """
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
    return weigher._replace(capacity=max(capacity * (_WEIGHTS_SHARE if is_full else 1.0), alone))


@entry
def _held(weigher: Weigher, own: float, shared: Words) -> float:
    """Bytes of a cluster's weights, shared ones counted once."""
    held = own
    w = next_in(shared, ZERO)
    while w >= 0:
        held += float(weigher.shared_bytes[w])
        w = next_in(shared, w + 1)
    return held


@inner
def _size(weigher: Weigher, seconds: float, own: float, shared: Words) -> float:
    """Compute time in units of the target; a huge size if no chip can hold the weights."""
    held = _held(weigher, own, shared)
    if held > weigher.capacity:
        return _OVERFULL_SIZE * held / weigher.capacity
    return seconds / weigher.target_s


@entry
def quotient_of(cluster: IntArray, pairs: IntArray, weigher: Weigher) -> Quotient:
    """The quotient graph of n given clusters.

    Args:
      cluster: [M] the cluster of each contracted node, 0 to n - 1.
      pairs: [P, 2] (producer, consumer) of all edges between contracted nodes.
      weigher: sizes of clusters.

    Raises:
      ValueError: the graph between the clusters has a cycle.
    """
    n = ZERO
    for v in range(len(cluster)):
        n = max(n, cluster[v] + 1)
    words = max(1, (n + 63) // 64)
    quotient = Quotient(
        np.zeros(words, np.uint64),
        np.arange(n),
        np.full(n, len(cluster), np.int64),
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


@entry
def topological(quotient: Quotient) -> IntArray:
    """The alive clusters, producers first; among those that are ready, by smallest contracted node.

    Clusters on a cycle, and those below one, are missing.
    """
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


@entry
def root(quotient: Quotient, a: int) -> int:
    """The alive cluster that cluster a is part of."""
    while quotient.home[a] != a:
        a = quotient.home[a]
    return a


@entry
def labels_of(quotient: Quotient, cluster: IntArray) -> IntArray:
    """[M] the position of each contracted node's cluster in topological order.

    Args:
      quotient: of the clusters.
      cluster: [M] the cluster of each contracted node; it may have been merged since.
    """
    position = np.zeros(len(quotient.home), np.int64)
    order = topological(quotient)
    for i in range(len(order)):
        position[order[i]] = i
    labels = np.empty(len(cluster), np.int64)
    for v in range(len(cluster)):
        labels[v] = position[root(quotient, cluster[v])]
    return labels


@inner
def copy_of(quotient: Quotient) -> Quotient:
    """A copy, for trying out merges."""
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


@entry
def compacted(quotient: Quotient) -> tuple[Quotient, IntArray]:
    """A new quotient of the alive clusters alone, in the same order.

    Returns:
      The quotient; and [n] the number in it of each old cluster, or of the one it was merged into.
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
        picked(quotient.first, alive),
        _renumbered(quotient.after, alive, number, words),
        _renumbered(quotient.before, alive, number, words),
        _renumbered(quotient.below, alive, number, words),
        _renumbered(quotient.above, alive, number, words),
        picked(quotient.seconds, alive),
        picked(quotient.own, alive),
        np.empty((count, quotient.shared.shape[1]), np.uint64),
        picked(quotient.size, alive),
    )
    for i in range(count):
        copy_row(dense.shared, i, quotient.shared, alive[i])
    for i in range(count):
        add(dense.alive, i)
    return dense, number


@inner
def picked(values: NDArray[Any], at: IntArray) -> NDArray[Any]:
    """[count] the values at the given positions [count]."""
    found = np.empty(len(at), values.dtype)
    for i in range(len(at)):
        found[i] = values[at[i]]
    return found


@inner
def _renumbered(rows: Words, alive: IntArray, number: IntArray, words: int) -> Words:
    """The rows of the alive clusters, their members renumbered."""
    dense = np.zeros((len(alive), words), np.uint64)
    for i in range(len(alive)):
        b = next_in(rows[alive[i]], ZERO)
        while b >= 0:
            add(dense[i], number[b])
            b = next_in(rows[alive[i]], b + 1)
    return dense


@inner
def merge(quotient: Quotient, weigher: Weigher, a: int, b: int) -> None:
    """Merges cluster b into a, in place. No cluster may lie between them."""
    _join(quotient.below, a, b)
    _join(quotient.above, a, b)
    _join(quotient.after, a, b)
    _join(quotient.before, a, b)
    x = next_in(quotient.above[a], ZERO)
    while x >= 0:
        _replace(quotient.after[x], a, b)
        unite(quotient.below[x], quotient.below[a])
        add(quotient.below[x], a)
        discard(quotient.below[x], b)
        x = next_in(quotient.above[a], x + 1)
    y = next_in(quotient.below[a], ZERO)
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


@inner
def _join(rows: Words, a: int, b: int) -> None:
    """Makes row a the union of rows a and b, without a and b."""
    unite(rows[a], rows[b])
    discard(rows[a], a)
    discard(rows[a], b)


@inner
def _replace(row: Words, a: int, b: int) -> None:
    """Replaces member b, if present, by a."""
    if has(row, b):
        add(row, a)
        discard(row, b)


@entry
def reduce(quotient: Quotient, weigher: Weigher, rng: Words) -> None:
    """Merges clusters, in place, until no edge is a shortcut.

    Edges with few clusters between their ends come first. Ties are broken at random.

    Args:
      quotient: acyclic; changed in place.
      weigher: sizes of clusters.
      rng: [1] state of `bitsets.uniform`; changed in place.
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


@inner
def _shortcuts(quotient: Quotient) -> int:
    """Number of edges that are shortcuts. Growing spends most of its time here."""
    count = 0
    a = next_in(quotient.alive, ZERO)
    while a >= 0:
        b = next_in(quotient.after[a], ZERO)
        while b >= 0:
            if have_common(quotient.below[a], quotient.above[b]):
                count += 1
            b = next_in(quotient.after[a], b + 1)
        a = next_in(quotient.alive, a + 1)
    return count


@inner
def _close(quotient: Quotient, weigher: Weigher, a: int, b: int, rng: Words) -> None:
    """Merges each cluster between a and b into one of them, in place.

    It takes a random topological order of the clusters between, merges a front part of it into a
    and the rest into b, and splits where the larger of the two sizes is least.
    """
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


@inner
def _reversed(clusters: IntArray) -> IntArray:
    """The clusters in reverse order."""
    count = len(clusters)
    other = np.empty(count, np.int64)
    for i in range(count):
        other[i] = clusters[count - 1 - i]
    return other


@inner
def _sizes_with(quotient: Quotient, weigher: Weigher, a: int, others: IntArray) -> FloatArray:
    """[others + 1] size of cluster a merged with the first 0, 1, ... of the others."""
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


@inner
def _ordered(quotient: Quotient, clusters: IntArray, wanted: IntArray) -> IntArray:
    """The clusters in an order near the wanted one in which producers come first.

    Args:
      quotient: of the clusters.
      clusters: [count] clusters.
      wanted: [count] positions in `clusters`, in the wanted order.
    """
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
