"""What a bottleneck below a cut-off forces: contracted nodes that share a chip, and chips out of
reach.

Every valid partition with a bottleneck below the cut-off survives, so a search for something better
than the incumbent loses nothing, and where nothing survives the cut-off is a lower bound
("destructive improvement", Klein & Scholl, Computing and Operations Research, 1999).

Proofs. Let T be the bottleneck of a valid partition f, T < cut-off.
- Contracted nodes u, v with f(u) != f(v) and x seconds of tensors from u to v: f(u) sends them and
  f(v) receives them, so x <= T, and without overlap x plus the compute of u, or of v, is at most T.
  They also lie twice in the buffers of both chips, beside the weights of u, or of v.
- With acyclic dataflow the contracted nodes on paths from u to v lie on the chips f(u) to f(v).
  Each of these does at most T of their work and holds at most its capacity, so work W needs W / T
  chips, and f(v) - f(u) >= ceil(W / T) - 1; the same for weights. What must come before a
  contracted node, and what after it, bounds its own chip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxpart.bounds.reachability import reachability_matrix
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Loads are float64 sums; comparisons give this much, relative, away.
_SAFETY = 1e-9
# Contracted nodes beyond which the table of all intervals is not made: 72 MB for each of two, and
# seconds.
_MAX_CONTRACTED = 3000
_BISECTIONS = 14


class Tables(NamedTuple):
    """Intervals of a problem of N contracted nodes, whatever the cut-off."""

    reach: FloatArray  # [N, N] 1.0 where a path leads from u to v, and on the diagonal
    work_s: FloatArray  # [N] on the fastest chip
    work_between_s: FloatArray  # [N, N] of u, v and the contracted nodes on paths between them
    weights: FloatArray  # [N] bytes of the weights that no other contracted node uses
    weights_between: FloatArray  # [N, N]


class Reduced(NamedTuple):
    """What is left of a problem below a cut-off."""

    problem: Problem  # with more colocation, whose contracted nodes the bounds are of
    low: IntArray  # [M] lowest chip
    high: IntArray  # [M] highest chip


def reduce_below(
    problem: Problem, cutoff_s: float, tables: dict[int, Tables] | None = None
) -> Reduced | None:
    """Merges contracted nodes and narrows their chips to what a bottleneck below `cutoff_s` leaves.

    Every valid partition of `problem` with a bottleneck below `cutoff_s` is a valid partition of
    the reduced problem within its bounds.

    Args:
      tables: what calls for the same problem with other cut-offs share.

    Returns:
      None where there is no such partition.
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
    """The largest cut-off found below which `reduce_below` leaves nothing, by bisection.

    A lower bound on every valid partition's bottleneck, at least `low_s`, which is one already.

    Args:
      low_s: a lower bound, above 0.
      high_s: where to stop: a valid partition's bottleneck.
      give_up: asked from time to time whether to stop, with the bound so far.
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
    """The problem with contracted nodes colocated that cannot be apart, until no more are."""
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
    """[M, 2] pairs of contracted nodes that no two chips may share out."""
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
    """[count] the smallest member of each one's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _chips(
    problem: Problem, limit_s: float, tables: dict[int, Tables]
) -> tuple[IntArray, IntArray]:
    """[M], [M] the lowest and highest chip of each block."""
    contracted, rules = problem.contracted, problem.mcm.constraints
    count, chips = contracted.num_nodes, problem.num_chips
    low = np.where(contracted.fixed_chip >= 0, contracted.fixed_chip, 0)
    high = np.where(contracted.fixed_chip >= 0, contracted.fixed_chip, chips - 1)
    if not rules.acyclic or count > _MAX_CONTRACTED:
        return low, high
    # A lower cut-off merges what a higher one does, and more: as many contracted nodes are the same
    # blocks.
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
        large = (share > 0.5 * (1 + _SAFETY)).astype(float)  # no two of these share a chip
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
    """One less than the chips that the shares take."""
    return np.maximum(np.ceil(shares - 1e-6), 1).astype(np.int64) - 1
