"""Reduction of a problem below a cut-off: nodes that must share a chip, and chips out of reach.

Every valid partition with a bottleneck below the cut-off stays valid in the reduced problem. So a
search for something better than the incumbent loses nothing. If no partition is left, the cut-off
is a lower bound ("destructive improvement", Klein & Scholl, Computing and Operations Research,
1999).

Proofs. Let f be a valid partition with a bottleneck T below the cut-off.

Sharing a chip. Let u and v be contracted nodes with f(u) != f(v), and let x be the seconds and b
the bytes of the tensors from u to v.
1. Chip f(u) sends these tensors and chip f(v) receives them, so x <= T.
2. Without overlap, f(u) also computes u and f(v) also computes v. So x plus the longer of the two
   computes is at most T.
3. In the full memory model, both chips hold these tensors in their buffers twice. Chip f(u) also
   holds the weights of u, and f(v) those of v. So 2 b plus the larger of the two is at most the
   largest capacity.
If one of these fails with the cut-off in place of T, u and v share a chip.

Range of chips, with acyclic dataflow.
4. The contracted nodes on paths from u to v, u and v included, run on the chips f(u)..f(v). Let W
   be their work on the fastest kind of chip.
5. Each of these chips does at most T of it, so W needs at least ceil(W / T) chips and
   f(v) - f(u) >= ceil(W / T) - 1. The same holds for memory, with the weights that only one
   contracted node uses and the largest capacity.
6. In the same way, the ancestors of v and v itself need chips 0..f(v), and v and its descendants
   need chips f(v)..C-1. This bounds f(v) from below and from above.
7. Two contracted nodes that each take more than half of T, or of the capacity, do not share a chip.
   So the number of such ancestors, or descendants, also counts in step 6.
Steps 5 to 7 stay true with the cut-off in place of T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxpart.bounds.reachability import reachability_matrix
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Relative tolerance of comparisons of float64 sums, so that rounding excludes no valid partition.
_SAFETY = 1e-9
# Largest number of contracted nodes for which `Tables` are made (72 MB per matrix, and seconds).
_MAX_CONTRACTED = 3000
# Cut-offs that `destructive_bound` tests after the first.
_BISECTIONS = 14


class Tables(NamedTuple):
    """Work and weights between the M contracted nodes of a problem, for any cut-off."""

    reach: FloatArray  # [M, M] from `reachability_matrix`
    work_s: FloatArray  # [M] seconds on the fastest kind of chip
    work_between_s: FloatArray  # [M, M] of u, v and the contracted nodes on paths from u to v
    weights: FloatArray  # [M] bytes of the weights that no other contracted node uses
    weights_between: FloatArray  # [M, M] as `work_between_s`


class Reduced(NamedTuple):
    """A problem reduced below a cut-off."""

    problem: Problem  # with more colocation; it has M contracted nodes
    low: IntArray  # [M] lowest chip of each contracted node of `problem`
    high: IntArray  # [M] highest chip of each contracted node of `problem`


def reduce_below(
    problem: Problem, cutoff_s: float, tables: dict[int, Tables] | None = None
) -> Reduced | None:
    """Merges contracted nodes and narrows their chips, for bottlenecks below a cut-off.

    Every valid partition of `problem` with a bottleneck below `cutoff_s` is a valid partition of
    the reduced problem, within the ranges of chips.

    Args:
      problem: of N nodes.
      cutoff_s: in seconds.
      tables: a cache that calls for the same problem with other cut-offs share; filled here.

    Returns:
      The reduced problem; None if no such partition exists.
    """
    if problem.is_contradictory:
        return None
    limit_s = cutoff_s * (1 + _SAFETY)
    problem = _merged(problem, limit_s)
    if problem.is_contradictory:
        return None
    contracted = problem.contracted
    if (contracted.node_s.min(axis=1) > limit_s).any():
        return None
    low, high = _chips(problem, limit_s, {} if tables is None else tables)
    return None if (low > high).any() else Reduced(problem, low, high)


def destructive_bound(
    problem: Problem,
    low_s: float,
    high_s: float,
    give_up: Callable[[], bool] = lambda: False,
) -> float:
    """The largest cut-off found below which no valid partition exists, by bisection.

    Args:
      problem: of N nodes.
      low_s: a lower bound in seconds, above 0.
      high_s: where the search stops, in seconds: the bottleneck of a valid partition.
      give_up: asked before each test whether to stop with the bound found so far.

    Returns:
      A lower bound in seconds on the bottleneck of every valid partition, at least `low_s`.
    """
    if not 0 < low_s < high_s or not np.isfinite(high_s):
        return low_s
    tables: dict[int, Tables] = {}
    if reduce_below(problem, high_s, tables) is None:
        return high_s
    for _ in range(_BISECTIONS):
        if give_up():
            break
        middle_s = (low_s * high_s) ** 0.5
        if reduce_below(problem, middle_s, tables) is None:
            low_s = middle_s
        else:
            high_s = middle_s
    return low_s


def _merged(problem: Problem, limit_s: float) -> Problem:
    """Colocates contracted nodes that must share a chip, until no more are found."""
    while True:
        pairs = _inseparable(problem, limit_s)
        if not len(pairs):
            return problem
        group = _components(problem.num_contracted, pairs)[problem.contraction]
        merged = dataclasses.replace(problem, colocate=group)
        if merged.num_contracted == problem.num_contracted:
            return problem
        problem = merged
        if problem.is_contradictory:
            return problem


def _inseparable(problem: Problem, limit_s: float) -> IntArray:
    """Pairs [pairs, 2] of contracted nodes that must share a chip."""
    contracted, mcm = problem.contracted, problem.mcm
    if not len(contracted.edge_tensor):
        return np.zeros((0, 2), np.int64)
    pairs = np.stack([contracted.edge_producer, contracted.edge_consumer], axis=1)
    pairs, which = np.unique(pairs, axis=0, return_inverse=True)
    sent = np.bincount(which.ravel(), contracted.tensor_bytes[contracted.edge_tensor], len(pairs))
    seconds = sent / mcm.link_bandwidth
    if not mcm.overlap:
        seconds = seconds + contracted.node_s.min(axis=1)[pairs].max(axis=1)
    apart = seconds > limit_s
    if mcm.constraints.memory and mcm.memory_model == "full":
        held = np.bincount(
            contracted.use_node,
            contracted.weight_bytes[contracted.use_weight],
            problem.num_contracted,
        )
        needed = 2 * sent + held[pairs].max(axis=1)
        apart |= needed > problem.capacity_bytes.max() * (1 + _SAFETY)
    return pairs[apart & (pairs[:, 0] != pairs[:, 1])]


def _components(count: int, pairs: IntArray) -> IntArray:
    """The number of the connected component of each of `count` contracted nodes, [count]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _chips(
    problem: Problem, limit_s: float, tables: dict[int, Tables]
) -> tuple[IntArray, IntArray]:
    """The lowest [M] and the highest [M] chip of each contracted node."""
    contracted, rules = problem.contracted, problem.mcm.constraints
    count, chips = contracted.num_nodes, problem.num_chips
    low = np.where(contracted.fixed_chip >= 0, contracted.fixed_chip, 0)
    high = np.where(contracted.fixed_chip >= 0, contracted.fixed_chip, chips - 1)
    if not rules.acyclic or count > _MAX_CONTRACTED:
        return low, high
    # A lower cut-off merges everything that a higher one merges. So if the number of contracted
    # nodes is the same, the contracted nodes are the same, and so are their tables.
    if count not in tables:
        tables[count] = _tables(contracted)
    reach, work_s, work_between_s, weights, weights_between = tables[count]
    shares = [(work_s / limit_s, work_between_s / limit_s)]
    if rules.memory:
        capacity = problem.capacity_bytes.max() * (1 + _SAFETY)
        shares.append((weights / capacity, weights_between / capacity))
    step = np.zeros((count, count), np.int64)
    before, after = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for share, between in shares:
        step = np.maximum(step, _chips_for(between))
        large = (share > 0.5 * (1 + _SAFETY)).astype(float)  # no two of them share a chip
        for load in (share, large):
            before = np.maximum(before, _chips_for(load @ reach))
            after = np.maximum(after, _chips_for(reach @ load))
    low = np.maximum(low, before)
    high = np.minimum(high, chips - 1 - after)
    for v in range(count):
        low[v] = max(low[v], int((low + step[:, v])[reach[:, v] > 0].max()))
    for u in reversed(range(count)):
        high[u] = min(high[u], int((high - step[u])[reach[u] > 0].min()))
    return low, high


def _tables(contracted: Problem) -> Tables:
    reach = reachability_matrix(contracted)
    work_s, weights = contracted.node_s.min(axis=1), contracted.own_weight_bytes
    return Tables(reach, work_s, (reach * work_s) @ reach, weights, (reach * weights) @ reach)


def _chips_for(shares: FloatArray) -> IntArray:
    """One less than the number of chips that loads of `shares`, in units of one chip, need.

    Rounding errors up to 1e-6 do not add a chip.
    """
    return np.maximum(np.ceil(shares - 1e-6), 1).astype(np.int64) - 1
