"""The nearest partition under dataflow and span, exact, by minimum cuts.

With z[b, c] = [f(b) >= c], the rules 0 <= f(v) - f(u) <= 1 on every edge read z[u, c] <= z[v, c]
and z[v, c + 1] <= z[u, c]: implications between pairs of bits, so the nearest f in weighted L1 is
one minimum s-t cut over all levels (Ishikawa, PAMI 2003). Such f form an L-natural-convex set
(Murota, Discrete Convex Analysis, 2003): what no step of at most one, up for some contracted nodes
or down for some, improves is optimal. So cuts over a few levels around a guess, recentred until
nothing reaches their border, end at the same optimum; from a guess that leaves outliers out, one or
two of them do, ten times faster than the cut over all levels.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import numpy as np

from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Which difference f(v) - f(u) an edge allows: 0 or 1; 0 or more; any.
EdgeRule = Literal["span", "acyclic", "none"]

# Real weights become integer capacities that sum up to about this.
_CAPACITY = 2.0**40
# How far a contracted node may move in one cut: more levels make a cut slower, fewer make more
# cuts.
_REACH = 2


def nearest_span(
    problem: Problem,
    y: IntArray,
    weights: FloatArray | None = None,
    max_chip: int | None = None,
) -> IntArray | None:
    """[N] the f nearest to `y` among those with 0 <= f(v) - f(u) <= 1 on every edge.

    Pins and colocation hold as well; the rule against skipped chips is left to `squeeze`, memory is
    not looked at. Such f keep dataflow and the triangle rule (their chip graph is a path).

    Args:
      problem: of N nodes.
      y: [N] chips, valid or not.
      weights: [N] cost of moving each node by one chip, 0 or more; ones by default.
      max_chip: highest chip to use; the module's last by default.

    Returns:
      f that minimises the sum over nodes of weight * |f - y| (weights other than integers are
      rounded at 1e-12 of their sum); None where fixed chips contradict each other or the rules.
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
    """As `nearest_span`, under one of the rules.

    What `acyclic` leaves is a superset of what is valid where dataflow is acyclic, and `none`
    always (each contracted node goes to a weighted median): their distances are lower bounds.
    """
    weights = np.ones(problem.num_nodes) if weights is None else np.asarray(weights, np.float64)
    highest = problem.num_chips - 1 if max_chip is None else max_chip
    box = _box(problem, highest, rule)
    if box is None:
        return None
    wishes = _wishes(problem, np.asarray(y, np.int64), weights)
    center = _guess(problem, wishes, box, rule)
    while True:
        # Both bounds keep the rule (a maximum or minimum of two that do), as `_cut` wants.
        low = np.maximum(center - _REACH, box.low)
        high = np.minimum(center + _REACH, box.high)
        f = _cut(problem, wishes, _Box(low, high), rule)
        at_border = ((f == low) & (f > box.low)) | ((f == high) & (f < box.high))
        if not at_border.any():
            return f[problem.contraction]
        center = f


def squeeze(problem: Problem, f: IntArray) -> IntArray | None:
    """[N] `f` with unused chips squeezed out: the chips in use become 0..max, in their order.

    Keeps dataflow, span, the triangle rule and colocation. Where chips differ, and on a mesh, it
    changes what the partition costs and holds. None where it would move a pinned node.
    """
    squeezed = np.unique(f, return_inverse=True)[1].astype(np.int64)
    pinned = problem.fixed_chip >= 0
    return squeezed if (squeezed[pinned] == problem.fixed_chip[pinned]).all() else None


def contracted_chips(problem: Problem, f: IntArray) -> IntArray:
    """[M] the chip of each contracted node under f [N], which keeps contracted nodes together."""
    chips = np.zeros(problem.num_contracted, np.int64)
    chips[problem.contraction] = f
    return chips


def tighten(
    problem: Problem, low: IntArray, high: IntArray, rule: EdgeRule
) -> tuple[IntArray, IntArray]:
    """[M], [M] the bounds on each contracted node's chip that follow from those of the others.

    They are the least and the greatest f within the bounds that keep the rule; some low > high
    exactly where there is none.
    """
    ahead, behind = _pair_lists(problem)
    return _closure(ahead, low, rule), -_closure(behind, -high, rule)


class _Box(NamedTuple):
    low: IntArray  # [M]
    high: IntArray  # [M]


class _Wishes(NamedTuple):
    """Where the nodes of each contracted node want to be: M wishes, at most one per node."""

    contraction: IntArray  # [M]
    chip: IntArray  # [M]
    weight: IntArray  # [M]


def _box(problem: Problem, highest: int, rule: EdgeRule) -> _Box | None:
    pin = problem.contracted_fixed_chip
    if problem.is_contradictory or pin.max() > highest:
        return None
    box = _Box(np.where(pin >= 0, pin, 0), np.where(pin >= 0, pin, highest))
    if (pin >= 0).any():
        box = _Box(*tighten(problem, box.low, box.high, rule))
    return None if (box.low > box.high).any() else box


@functools.lru_cache(maxsize=4)
def _pair_lists(problem: Problem) -> tuple[list[list[int]], list[list[int]]]:
    """The pairs of contracted nodes as `_closure` wants them, and the same for the graph turned
    around.
    """
    pairs = problem.contracted_pairs
    return pairs.tolist(), pairs[::-1, ::-1].tolist()


def _closure(pairs: list[list[int]], start: IntArray, rule: EdgeRule) -> IntArray:
    """[M] the least f >= start that keeps the rule, whatever the number of chips.

    Sweeps along the edges and against them until nothing moves. No sweep lifts a contracted node
    above the highest of all, so this ends.

    Args:
      pairs: edges, those out of a contracted node after those into it.
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


def _wishes(problem: Problem, y: IntArray, weights: FloatArray) -> _Wishes:
    total = weights.sum()
    exact = total < _CAPACITY and (weights == np.round(weights)).all()
    scale = 1.0 if exact or total == 0 else _CAPACITY / total
    who = np.flatnonzero(weights > 0)
    weight = np.round(weights[who] * scale).astype(np.int64)
    return _Wishes(problem.contraction[who], y[who], weight)


def _guess(problem: Problem, wishes: _Wishes, box: _Box, rule: EdgeRule) -> IntArray:
    """[M] some f in the box that keeps the rule, near the wishes but for outliers.

    Contracted nodes are dropped until no edge between the kept ones breaks the rule, first those
    that break it on most of their edges; the guess is the least f above what is kept.
    """
    contracted = problem.num_contracted
    weight = np.bincount(wishes.contraction, wishes.weight, contracted)
    total = np.bincount(
        wishes.contraction, wishes.weight * wishes.chip.astype(np.float64), contracted
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


def _cut(problem: Problem, wishes: _Wishes, box: _Box, rule: EdgeRule) -> IntArray:
    """[M] the best f in the box, by one minimum cut.

    Bit (b, c) for low < c <= high is vertex first[b] + c; it is one on the source's side. Bits up
    to low are one and bits above high zero. Since both bounds keep the rule, a bit that is free is
    never implied by a one, and never implies a zero.
    """
    from ortools.graph.python.max_flow import SimpleMaxFlow  # takes a while to import

    levels = box.high - box.low
    vertices = int(levels.sum())
    if vertices == 0:
        return box.low.copy()
    first = np.cumsum(levels) - levels - box.low - 1
    node, level = _ranges(np.arange(len(levels)), box.low + 1, box.high)
    source, sink = vertices, vertices + 1

    # A wish for y pays its weight for each one above y and each zero up to y; only the difference
    # between the two matters.
    wish, at = _ranges(
        np.arange(len(wishes.contraction)),
        box.low[wishes.contraction] + 1,
        box.high[wishes.contraction],
    )
    gain = np.zeros(vertices, np.int64)
    weight = np.where(at <= wishes.chip[wish], wishes.weight[wish], -wishes.weight[wish])
    np.add.at(gain, first[wishes.contraction[wish]] + at, weight)

    # An implication is an arc that no cut can afford.
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
    flow.add_arc_with_capacity(source, sink, 0)  # without an arc it does not know a vertex
    tail = np.concatenate([np.full(len(up), source), down, tail])
    capacity = np.full(len(tail), wishes.weight.sum() + 1)
    capacity[: len(up) + len(down)] = np.abs(gain[np.concatenate([up, down])])
    head = np.concatenate([up, np.full(len(down), sink), head])
    # The stubs ask for arrays of a type that numpy does not have.
    flow.add_arcs_with_capacity(tail, head, capacity)  # pyright: ignore[reportArgumentType]
    status = flow.solve(source, sink)
    if status != flow.OPTIMAL:
        raise AssertionError(f"maximum flow ended with {status}")
    is_one = np.zeros(vertices + 2, bool)
    is_one[flow.get_source_side_min_cut()] = True
    return box.low + np.bincount(node[is_one[:vertices]], minlength=len(levels))


def _ranges(key: IntArray, start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """Every (key, i) with start <= i <= stop, in order."""
    count = np.maximum(stop - start + 1, 0)
    position = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(key, count), np.repeat(start, count) + position
