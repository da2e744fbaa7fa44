"""Grows partitions by merging clusters, and dissolves a part of a partition to grow it again.

Growing starts from single contracted nodes, or from a partition with the clusters of one
neighbourhood dissolved (large-neighbourhood search, Shaw 1998). Each step tries out a few pairs of
small clusters and makes the merge that leaves sizes most even, until there are no more clusters
than chips.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxpart.bounds.ideals.bitsets import (
    ZERO,
    Words,
    add,
    below,
    entry,
    has,
    have_common,
    inner,
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
    picked,
    quotient_of,
    reduce,
)
from jaxpart.problem.problem import IntArray

# Quotients are compared by the sum of this power of sizes: it follows the maximum, but also counts
# the other sizes.
_POWER = 8
# Rows of a quotient per alive cluster above which it is compacted.
_SPARSE = 1.25
# Largest relative noise that is added to the size of a pair.
_NOISE = 0.2
# A neighbourhood is a cluster, up to this many of its neighbours, and with this probability one
# cluster that no path joins to it.
_MOST_NEIGHBOURS = 3
_UNRELATED_PROBABILITY = 0.3


@entry
def grown(
    cluster: IntArray,
    pairs: IntArray,
    weigher: Weigher,
    chips: int,
    tried: int,
    has_triangle: bool,
    rng: Words,
) -> IntArray:
    """A partition grown from clusters.

    Args:
      cluster: [M] the cluster of each contracted node, 0 to n - 1: single contracted nodes, or the
        outcome of `loosened`. The graph between clusters is acyclic.
      pairs: [P, 2] (producer, consumer) of all edges between contracted nodes.
      weigher: sizes of clusters.
      chips: most clusters of the partition.
      tried: pairs that are tried out for each merge.
      has_triangle: whether the triangle rule is on.
      rng: [1] state of `bitsets.uniform`; changed in place.

    Returns:
      [M] chips, numbered in topological order; empty if the partition needs more than `chips`.
    """
    quotient = quotient_of(cluster, pairs, weigher)
    if has_triangle:
        reduce(quotient, weigher, rng)
    quotient, number = pack(quotient, weigher, chips, tried, has_triangle, rng)
    if size_of(quotient.alive) > chips:
        return np.empty(0, np.int64)
    return labels_of(quotient, picked(number, cluster))


@entry
def loosened(
    labels: IntArray, centre: int, pairs: IntArray, weigher: Weigher, rng: Words
) -> IntArray:
    """A partition with the clusters of one neighbourhood dissolved into contracted nodes.

    Args:
      labels: [M] the partition, 0 to n - 1.
      centre: the cluster in the middle of the neighbourhood.
      pairs: [P, 2] (producer, consumer) of all edges between contracted nodes.
      weigher: sizes of clusters.
      rng: [1] state of `bitsets.uniform`; changed in place.

    Returns:
      [M] the new cluster of each contracted node: first those that stay, then single nodes.
    """
    is_loose = _neighbourhood(quotient_of(labels, pairs, weigher), centre, rng)
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


@inner
def _neighbourhood(whole: Quotient, centre: int, rng: Words) -> NDArray[np.bool_]:
    """[n] whether each cluster is in a random neighbourhood of `centre`."""
    n = len(whole.home)
    is_chosen = np.zeros(n, np.bool_)
    is_chosen[centre] = True
    near = members(union(whole.after[centre], whole.before[centre]))
    for i in range(min(len(near), 1 + below(rng, _MOST_NEIGHBOURS))):
        j = i + below(rng, len(near) - i)
        near[i], near[j] = near[j], near[i]
        is_chosen[near[i]] = True
    if uniform(rng) < _UNRELATED_PROBABILITY:
        start = below(rng, n)
        for i in range(n):
            a = (start + i) % n
            is_related = has(whole.below[centre], a) or has(whole.above[centre], a)
            if a != centre and not is_related:
                is_chosen[a] = True
                break
    return is_chosen


@inner
def _power_sum(quotient: Quotient) -> float:
    """The sum of a high power of the sizes; a smaller sum means more even sizes."""
    total = 0.0
    a = next_in(quotient.alive, ZERO)
    while a >= 0:
        total += float(quotient.size[a]) ** _POWER
        a = next_in(quotient.alive, a + 1)
    return total


@inner
def pack(
    quotient: Quotient,
    weigher: Weigher,
    count: int,
    tried: int,
    has_triangle: bool,
    rng: Words,
) -> tuple[Quotient, IntArray]:
    """Merges clusters greedily to at most `count` clusters with even sizes.

    Args:
      quotient: of n clusters, reduced; not changed.
      weigher: sizes of clusters.
      count: most clusters of the outcome.
      tried: pairs that are tried out for each merge.
      has_triangle: whether to reduce again after each merge.
      rng: [1] state of `bitsets.uniform`; changed in place.

    Returns:
      The new quotient, with more than `count` clusters if no two of them can be merged; and [n] the
      number in it of each old cluster. That cluster may have been merged since: see `root`.
    """
    quotient, number = compacted(quotient)
    size = size_of(quotient.alive)
    while size > count:
        # Each trial copies all rows, those of merged clusters included.
        if _SPARSE * size < len(quotient.home):
            quotient, again = compacted(quotient)
            number = picked(again, number)
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


@inner
def _mergeable(quotient: Quotient, tried: int, rng: Words) -> IntArray:
    """Pairs of clusters with nothing between them, the smallest first, up to noise.

    At least one of a pair is among the smallest clusters; the other is a neighbour or also small.

    Returns:
      [at most `tried`, 2] pairs.
    """
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
            is_seen = b <= a and has(small, b)  # listed from b already, or b is a
            if not is_between and not is_seen:
                pairs[count, 0], pairs[count, 1] = a, b
                key[count] = (quotient.size[a] + quotient.size[b]) * (1 + _NOISE * uniform(rng))
                count += 1
    order = order_of(key[:count])
    best = np.empty((min(tried, count), 2), np.int64)
    for i in range(len(best)):
        best[i, 0], best[i, 1] = pairs[order[i], 0], pairs[order[i], 1]
    return best


@inner
def _partners(quotient: Quotient, small: Words, a: int) -> Words:
    """The neighbours of cluster a and all small clusters, as one set."""
    found = union(quotient.after[a], quotient.before[a])
    unite(found, small)
    return found
