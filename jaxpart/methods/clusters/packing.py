"""Growing partitions by merging clusters, and growing parts of them again.

From single nodes, or from a partition with the clusters of one place dissolved (large-neighbourhood
search, Shaw 1998): of a few pairs of small clusters the one whose merging leaves them most even is
merged, until there are no more clusters than chips.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from jaxpart.bounds.ideals.bitsets import (
    Words,
    add,
    below,
    has,
    have_common,
    members,
    next_in,
    order_of,
    size_of,
    uniform,
    union,
    unite,
)
from jaxpart.methods.clusters.quotient import (
    Quotient,
    Weigher,
    compacted,
    copy_of,
    labels_of,
    merge,
    quotient_of,
    reduce,
)
from jaxpart.problem.problem import IntArray

# The power of sizes that is summed to compare partitions: near the maximum, but it feels the rest.
_POWER = 8
# Clusters, and those that were merged, for each that there is: with more they are numbered anew.
_SPARSE = 1.25
# By how much, at most, the size of a pair is taken for larger than it is.
_NOISE = 0.2
# A place is a cluster, up to so many of its neighbours, and so often one that is beside it.
_MOST_NEAR = 3
_BESIDE = 0.3


@njit(cache=True)
def grown(
    cluster: IntArray,
    pairs: IntArray,
    weigher: Weigher,
    chips: int,
    tried: int,
    has_triangle: bool,
    rng: Words,
) -> IntArray:
    """[M] labels of a partition grown from clusters; empty where it needs more chips.

    Args:
      cluster: [M] 0 to n - 1, acyclic: single contracted nodes, or what `loosened` leaves.
      pairs: [P, 2] (producer, consumer) of all edges between blocks.
      weigher: sizes of clusters.
      chips: the most clusters.
      tried: pairs whose merging is tried out for each merging that is made.
      has_triangle: whether edges with a longer path beside them are against the rules.
      rng: [1] state of random numbers, changed.
    """
    quotient = quotient_of(cluster, pairs, weigher)
    if has_triangle:
        reduce(quotient, weigher, rng)
    quotient, number = pack(quotient, weigher, chips, tried, has_triangle, rng)
    if size_of(quotient.alive) > chips:
        return np.empty(0, np.int64)
    return labels_of(quotient, number[cluster])


@njit(cache=True)
def loosened(
    labels: IntArray, centre: int, pairs: IntArray, weigher: Weigher, rng: Words
) -> IntArray:
    """[M] clusters after those of one place were dissolved into blocks.

    Args:
      labels: [M] 0 to n - 1, the partition.
      centre: the cluster in the middle of the place.
      pairs: [P, 2] (producer, consumer) of all edges between blocks.
      weigher: sizes of clusters.
      rng: [1] state of random numbers, changed.
    """
    is_loose = _place(quotient_of(labels, pairs, weigher), centre, rng)
    number = np.zeros(len(is_loose), np.int64)
    count = 0
    for a in range(len(is_loose)):
        if not is_loose[a]:
            number[a] = count
            count += 1
    cluster = np.empty(len(labels), np.int64)
    for v in range(len(labels)):
        if is_loose[labels[v]]:
            cluster[v] = count
            count += 1
        else:
            cluster[v] = number[labels[v]]
    return cluster


@njit(cache=True)
def _place(whole: Quotient, centre: int, rng: Words) -> NDArray[np.bool_]:
    """[n] a cluster, one to three of its neighbours, and now and then one beside it."""
    n = len(whole.home)
    is_chosen = np.zeros(n, np.bool_)
    is_chosen[centre] = True
    near = members(union(whole.after[centre], whole.before[centre]))
    for i in range(min(len(near), 1 + below(rng, _MOST_NEAR))):
        j = i + below(rng, len(near) - i)
        near[i], near[j] = near[j], near[i]
        is_chosen[near[i]] = True
    if uniform(rng) < _BESIDE:
        start = below(rng, n)
        for i in range(n):
            a = (start + i) % n
            is_related = has(whole.below[centre], a) or has(whole.above[centre], a)
            if a != centre and not is_related:
                is_chosen[a] = True
                break
    return is_chosen


@njit(cache=True)
def _power_sum(quotient: Quotient) -> float:
    """The sum of a high power of the sizes: the less, the more even."""
    total = 0.0
    a = next_in(quotient.alive, 0)
    while a >= 0:
        total += float(quotient.size[a]) ** _POWER
        a = next_in(quotient.alive, a + 1)
    return total


@njit(cache=True)
def pack(
    quotient: Quotient,
    weigher: Weigher,
    count: int,
    tried: int,
    has_triangle: bool,
    rng: Words,
) -> tuple[Quotient, IntArray]:
    """A reduced quotient of at most `count` clusters, as even as greedy merging finds.

    Args:
      quotient: reduced; stays as it is.
      count: the most clusters.
      tried: pairs whose merging is tried out for each merging that is made.
      has_triangle: whether to reduce again after each merging.

    Returns:
      The quotient, with more clusters than `count` where no two can be merged; and the number there
      of each cluster [n] that there was.
    """
    quotient, number = compacted(quotient)
    size = size_of(quotient.alive)
    while size > count:
        # What is tried out is copied, those that were merged too.
        if _SPARSE * size < len(quotient.home):
            quotient, again = compacted(quotient)
            number = again[number]
        power_sum = _power_sum(quotient)
        best, least = quotient, np.inf
        pairs = _mergeable(quotient, tried, rng)
        for i in range(len(pairs)):
            other = copy_of(quotient)
            merge(other, weigher, pairs[i, 0], pairs[i, 1])
            if has_triangle:
                reduce(other, weigher, rng)
            increase = (_power_sum(other) - power_sum) / (size - size_of(other.alive))
            if increase < least:
                best, least = other, increase
        if least == np.inf:
            break
        quotient = best
        size = size_of(quotient.alive)
    return quotient, number


@njit(cache=True)
def _mergeable(quotient: Quotient, tried: int, rng: Words) -> IntArray:
    """[few, 2] pairs of small clusters with nothing between them."""
    alive = members(quotient.alive)
    sizes = np.empty(len(alive))
    for i in range(len(alive)):
        sizes[i] = quotient.size[alive[i]]
    order = order_of(sizes)
    small = np.zeros(quotient.alive.shape[0], np.uint64)
    for i in range(min(len(alive), 2 * tried + 2)):
        add(small, int(alive[order[i]]))
    count = 0
    for a in members(small):
        count += size_of(_partners(quotient, small, a))
    pairs = np.empty((count, 2), np.int64)
    key = np.empty(count)
    count = 0
    for a in members(small):
        for b in members(_partners(quotient, small, a)):
            is_between = have_common(quotient.below[a], quotient.above[b]) or have_common(
                quotient.below[b], quotient.above[a]
            )
            is_seen = b <= a and has(small, b)  # from b, or a itself
            if not is_between and not is_seen:
                pairs[count, 0], pairs[count, 1] = a, b
                key[count] = (quotient.size[a] + quotient.size[b]) * (1 + _NOISE * uniform(rng))
                count += 1
    order = order_of(key[:count])
    best = np.empty((min(tried, count), 2), np.int64)
    for i in range(len(best)):
        best[i, 0], best[i, 1] = pairs[order[i], 0], pairs[order[i], 1]
    return best


@njit(cache=True)
def _partners(quotient: Quotient, small: Words, a: int) -> Words:
    """Neighbours of cluster a, and the small clusters."""
    found = union(quotient.after[a], quotient.before[a])
    unite(found, small)
    return found
