"""The nearest partition under dataflow and span, exact, by minimum cuts.

1. Let z[b, c] = [f(b) >= c]. The rules 0 <= f(v) - f(u) <= 1 on every edge (u, v) are then
   z[u, c] <= z[v, c] and z[v, c + 1] <= z[u, c]: implications between pairs of bits. So the nearest
   f in weighted L1 distance is one minimum s-t cut over all levels c (Ishikawa, PAMI 2003).
2. Such f form an L-natural-convex set (Murota, Discrete Convex Analysis, 2003). There, f is optimal
   if no set of contracted nodes can improve it by moving up by one, and none by moving down by one.
3. A cut over a few levels around a guess allows all these moves, unless its solution touches the
   border of these levels. So cuts are repeated, each centred on the last solution, until none
   touches the border. That solution is optimal.

From a guess that ignores outliers, one or two such cuts suffice. They are ten times faster than the
cut over all levels.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import numpy as np

from jaxpart.problem.problem import FloatArray, IntArray, Problem

# The differences f(v) - f(u) that a rule allows on an edge (u, v): 0 or 1; 0 or more; any.
EdgeRule = Literal["span", "acyclic", "none"]

# Approximate sum of the integer capacities that replace real weights.
_CAPACITY = 2.0**40
# Chips that a contracted node may move in one cut: more make a cut slower, fewer make more cuts.
_REACH = 2


def nearest_span(
    problem: Problem,
    y: IntArray,
    weights: FloatArray | None = None,
    max_chip: int | None = None,
) -> IntArray | None:
    """Finds the f nearest to `y` among those with 0 <= f(v) - f(u) <= 1 on every edge.

    Such f keep dataflow and the triangle rule, because their chip graph is a path. Fixed chips and
    colocation hold too. Skipped chips are left to `squeeze`; memory is ignored.

    Args:
      problem: of N nodes.
      y: [N] chips, valid or not.
      weights: [N] cost of moving each node by one chip, 0 or more; ones by default.
      max_chip: highest chip to use; the module's last by default.

    Returns:
      [N] the f that minimises the sum over nodes of weight * |f - y|; None where fixed chips
      contradict each other or the rules. Weights other than integers are rounded to 1e-12 of their
      sum.
    """
    return nearest(problem, y, weights, max_chip, rule="span")


def nearest(
    problem: Problem,
    y: IntArray,
    weights: FloatArray | None = None,
    max_chip: int | None = None,
    *,
    rule: EdgeRule,
) -> IntArray | None:
    """Finds the f nearest to `y` under one of the rules.

    Under "acyclic" the candidates include every valid partition of a module with acyclic dataflow;
    under "none" they include those of any module, and each contracted node goes to a weighted
    median. The distance is then a lower bound on that of every valid partition.

    Args:
      problem: of N nodes.
      y: [N] chips, valid or not.
      weights: [N] cost of moving each node by one chip, 0 or more; ones by default.
      max_chip: highest chip to use; the module's last by default.
      rule: what to ask of every edge.

    Returns:
      As `nearest_span`.
    """
    weights = np.ones(problem.num_nodes) if weights is None else np.asarray(weights, np.float64)
    highest = problem.num_chips - 1 if max_chip is None else max_chip
    box = _box(problem, highest, rule)
    if box is None:
        return None
    targets = _targets_of(problem, np.asarray(y, np.int64), weights)
    center = _guess(problem, targets, box, rule)
    while True:
        # `_cut` needs bounds that keep the rule. These do: each is a maximum or minimum of two f
        # that keep it.
        low = np.maximum(center - _REACH, box.low)
        high = np.minimum(center + _REACH, box.high)
        f = _cut(problem, targets, _Box(low, high), rule)
        at_border = ((f == low) & (f > box.low)) | ((f == high) & (f < box.high))
        if not at_border.any():
            return f[problem.contraction]
        center = f


def squeeze(problem: Problem, f: IntArray) -> IntArray | None:
    """Renumbers the chips in use to 0..max, in their order.

    Dataflow, span, the triangle rule and colocation still hold. On a mesh, or where chips differ,
    the costs and the memory of the partition change.

    Args:
      problem: of N nodes.
      f: [N] chips.

    Returns:
      [N] the new chips; None where a node would leave its fixed chip.
    """
    squeezed = np.unique(f, return_inverse=True)[1].astype(np.int64)
    is_fixed = problem.fixed_chip >= 0
    return squeezed if (squeezed[is_fixed] == problem.fixed_chip[is_fixed]).all() else None


def tighten(
    problem: Problem, low: IntArray, high: IntArray, rule: EdgeRule
) -> tuple[IntArray, IntArray]:
    """Tightens the bounds on each contracted node's chip by those of the others.

    Args:
      problem: of M contracted nodes.
      low: [M] lowest chip of each contracted node.
      high: [M] highest chip of each contracted node.
      rule: what every edge must keep.

    Returns:
      [M], [M] the least and the greatest f within the bounds that keep the rule. Some low > high
      exactly where no f keeps it.
    """
    ahead, behind = _pair_lists(problem)
    return _closure(ahead, low, rule), -_closure(behind, -high, rule)


class _Box(NamedTuple):
    """Bounds on the chip of each contracted node."""

    low: IntArray  # [M]
    high: IntArray  # [M]


class _Targets(NamedTuple):
    """Target chips of the J nodes with a weight above 0."""

    contraction: IntArray  # [J] contracted node
    chip: IntArray  # [J] target
    weight: IntArray  # [J] cost of each chip away from it, rounded


def _box(problem: Problem, highest: int, rule: EdgeRule) -> _Box | None:
    """Returns the bounds that fixed chips and the rule leave of 0..highest; None if they clash."""
    fixed_chip = problem.contracted_fixed_chip
    if problem.is_contradictory or fixed_chip.max() > highest:
        return None
    box = _Box(
        np.where(fixed_chip >= 0, fixed_chip, 0), np.where(fixed_chip >= 0, fixed_chip, highest)
    )
    if (fixed_chip >= 0).any():
        box = _Box(*tighten(problem, box.low, box.high, rule))
    return None if (box.low > box.high).any() else box


@functools.lru_cache(maxsize=4)
def _pair_lists(problem: Problem) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the pairs of contracted nodes for `_closure`, and those of the reversed graph."""
    pairs = problem.contracted_pairs
    return pairs.tolist(), pairs[::-1, ::-1].tolist()


def _closure(pairs: list[list[int]], start: IntArray, rule: EdgeRule) -> IntArray:
    """Returns [M] the least f >= start that keeps the rule, whatever the number of chips.

    Sweeps go along the edges, then against them, until nothing changes. They end, because no sweep
    lifts a contracted node above the highest chip in `start`.

    Args:
      pairs: edges; those into a contracted node come before those out of it.
      start: [M] chips.
      rule: what an edge allows.
    """
    if rule == "none":
        return start.copy()
    f = start.tolist()
    changed = True
    while changed:
        changed = False
        for u, v in pairs:
            if f[v] < f[u]:
                f[v] = f[u]
        if rule == "span":
            for u, v in reversed(pairs):
                if f[u] < f[v] - 1:
                    f[u] = f[v] - 1
                    changed = True
    return np.array(f, np.int64)


def _targets_of(problem: Problem, y: IntArray, weights: FloatArray) -> _Targets:
    """Returns the targets `y` [N] with integer weights; sums of them are then exact."""
    total = weights.sum()
    exact = total < _CAPACITY and (weights == np.round(weights)).all()
    scale = 1.0 if exact or total == 0 else _CAPACITY / total
    weighted = np.flatnonzero(weights > 0)
    weight = np.round(weights[weighted] * scale).astype(np.int64)
    return _Targets(problem.contraction[weighted], y[weighted], weight)


def _guess(problem: Problem, targets: _Targets, box: _Box, rule: EdgeRule) -> IntArray:
    """Returns [M] some f in the box that keeps the rule and is near the targets, except outliers.

    1. Each contracted node gets the weighted mean of its targets.
    2. While an edge between two remaining contracted nodes breaks the rule, one end of each such
       edge is dropped: the one that breaks the rule on the larger part of its edges.
    3. The guess is the least f that keeps the rule and is at least the mean of each remaining
       contracted node, cut off at the box.
    """
    contracted = problem.num_contracted
    weight = np.bincount(targets.contraction, targets.weight, contracted)
    total = np.bincount(
        targets.contraction, targets.weight * targets.chip.astype(np.float64), contracted
    )
    mean = np.round(total / np.maximum(weight, 1)).astype(np.int64)
    kept = weight > 0
    if rule != "none":
        u, v = problem.contracted_pairs[:, 0], problem.contracted_pairs[:, 1]
        step = mean[v] - mean[u]
        broken = kept[u] & kept[v] & ((step < 0) | (rule == "span") & (step > 1))
        degree = np.bincount(u, minlength=contracted) + np.bincount(v, minlength=contracted)
        while broken.any():
            blame = np.bincount(u[broken], minlength=contracted).astype(np.float64)
            blame += np.bincount(v[broken], minlength=contracted)
            blame /= np.maximum(degree, 1)
            kept[np.where(blame[u] >= blame[v], u, v)[broken]] = False
            broken &= kept[u] & kept[v]
    lowest = np.where(kept, np.clip(mean, box.low, box.high), box.low)
    return np.minimum(_closure(_pair_lists(problem)[0], lowest, rule), box.high)


def _cut(problem: Problem, targets: _Targets, box: _Box, rule: EdgeRule) -> IntArray:
    """Returns [M] the best f in the box, by one minimum cut.

    Bit (b, c) for low < c <= high is vertex first[b] + c. It is one on the source's side of the
    cut. Bits up to low are one and bits above high are zero. Both bounds keep the rule, so a
    constant bit of one never implies a free bit, and a free bit never implies a constant zero.
    """
    from ortools.graph.python.max_flow import SimpleMaxFlow  # takes a while to import

    levels = box.high - box.low
    vertices = int(levels.sum())
    if vertices == 0:
        return box.low.copy()
    first = np.cumsum(levels) - levels - box.low - 1
    node, level = _ranges(np.arange(len(levels)), box.low + 1, box.high)
    source, sink = vertices, vertices + 1

    # A target y with weight w costs w for each bit above y that is one and for each bit up to y
    # that is zero. Only the difference of the two matters.
    target, at = _ranges(
        np.arange(len(targets.contraction)),
        box.low[targets.contraction] + 1,
        box.high[targets.contraction],
    )
    gain = np.zeros(vertices, np.int64)
    weight = np.where(at <= targets.chip[target], targets.weight[target], -targets.weight[target])
    np.add.at(gain, first[targets.contraction[target]] + at, weight)

    # An implication is an arc with a capacity above the cost of every cut.
    tails, heads = [first[node] + level], [first[node] + level - 1]
    heads[0] = np.where(level - 1 > box.low[node], heads[0], -1)
    u, v = problem.contracted_pairs[:, 0], problem.contracted_pairs[:, 1]
    implications = {"span": [(u, v, 0), (v, u, -1)], "acyclic": [(u, v, 0)], "none": []}
    for if_node, then_node, shift in implications[rule]:
        edge, at = _ranges(np.arange(len(u)), box.low[if_node] + 1, box.high[if_node])
        then, then_at = then_node[edge], at + shift
        tails.append(first[if_node[edge]] + at)
        heads.append(np.where(then_at > box.low[then], first[then] + then_at, -1))
    tail, head = np.concatenate(tails), np.concatenate(heads)
    tail, head = tail[head >= 0], head[head >= 0]

    up, down = np.flatnonzero(gain > 0), np.flatnonzero(gain < 0)
    flow = SimpleMaxFlow()
    flow.add_arc_with_capacity(source, sink, 0)  # a vertex without an arc would be unknown
    tail = np.concatenate([np.full(len(up), source), down, tail])
    capacity = np.full(len(tail), targets.weight.sum() + 1)
    capacity[: len(up) + len(down)] = np.abs(gain[np.concatenate([up, down])])
    head = np.concatenate([up, np.full(len(down), sink), head])
    # The stubs ask for array types that numpy does not have.
    flow.add_arcs_with_capacity(tail, head, capacity)  # pyright: ignore[reportArgumentType]
    status = flow.solve(source, sink)
    if status != flow.OPTIMAL:
        raise AssertionError(f"maximum flow ended with {status}")
    is_one = np.zeros(vertices + 2, bool)
    is_one[flow.get_source_side_min_cut()] = True
    return box.low + np.bincount(node[is_one[:vertices]], minlength=len(levels))


def _ranges(key: IntArray, start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """Returns every (key, i) with start <= i <= stop, in order."""
    count = np.maximum(stop - start + 1, 0)
    position = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(key, count), np.repeat(start, count) + position
