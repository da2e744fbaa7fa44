"""Partitions near given labels by cutting one order of the contracted nodes exactly: quick, never
the best.

For a fixed topological order the partitions into contiguous pieces are paths over cuts, and the
nearest of them that keeps memory, the span rule between cuts, pins and unlike capacities is a
dynamic program,

    best[c + 1, j] = min over i of best[c, i] + distance of the contracted nodes i..j-1 from chip c,

over the pieces [i, j) that fit. `jaxpart.slicing` runs the same recursion for the bottleneck on the
device; this one is numpy alone, for workers that hold no JAX. The order is that of a partition
which keeps dataflow, such as the minimum cut: then what the cut would do is among the choices
wherever it fits, and cuts move along the graph's own numbering where it does not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Entries of a table over (start, length) of pieces; beyond it neighbours in the order go together.
_MOST_ENTRIES = 2**21
_MOST_PLACES = 4096


def construct(
    problem: Problem, guide: IntArray, y: IntArray, weights: FloatArray
) -> IntArray | None:
    """[N] a valid partition near `y` into contiguous pieces of an order, or None.

    The order is that of `guide`, and within a chip of it that of the graph; where that has no
    valid cuts, the graph's own order, in which the greedy baseline walks too.

    Args:
      problem: whose fixed chips do not contradict each other.
      guide: [N] chips that keep contracted nodes together, and dataflow where that is a rule.
      y: [N] chips wanted.
      weights: [N] cost of moving each node by one chip.
    """
    cost = _cost(problem, y, weights)
    guided = np.lexsort((np.arange(problem.num_contracted), _chips_of_contracted(problem, guide)))
    in_number = np.arange(problem.num_contracted)
    same = bool((guided == in_number).all())
    for order in (in_number,) if same else (guided, in_number):
        segments = _graph_order(problem) if order is in_number else _segments(problem, order)
        # First with live activations as the order would have them, then with what they never
        # exceed, since a chip runs its nodes in the graph's order.
        for held in _estimates(problem, segments):
            f = _cut(problem, segments, held, cost)
            if f is None:
                continue
            found = f[problem.contraction]
            if keeps_rules(problem, found):
                return found
    return None


def keeps_rules(problem: Problem, f: IntArray) -> bool:
    """Whether f [N] keeps every rule that is on, as far as the host can tell (`cost.verify`
    decides)."""
    rules = problem.mcm.constraints
    if ((problem.fixed_chip >= 0) & (f != problem.fixed_chip)).any():
        return False
    if (f != _chips_of_contracted(problem, f)[problem.contraction]).any():
        return False
    pairs = f[problem.node_pairs]
    if rules.acyclic and (pairs[:, 0] > pairs[:, 1]).any():
        return False
    if rules.no_skip and len(np.unique(f)) != f.max() + 1:
        return False
    if rules.triangle and host.triangle_conflicts(problem, f):
        return False
    return not rules.memory or bool((host.memory_bytes(problem, f) <= problem.capacity_bytes).all())


class _Segments(NamedTuple):
    """What the dynamic program reads of one order; P places, each of one contracted node or a few.

    Tables over pieces are [P, W]: row i, column d is the piece of the places i..i+d.
    """

    place: IntArray  # [M]
    held: FloatArray  # [P, W] bytes of weights and boundary buffers
    peak: FloatArray  # [P, W] bytes alive at most, if the chip ran the order as it stands
    most: FloatArray  # [P, W] bytes alive at most, whatever the order
    allowed: host.BoolArray  # [P, W] all that is alive across the first cut is used up


@functools.lru_cache(maxsize=2)
def _graph_order(problem: Problem) -> _Segments:
    return _segments(problem, np.arange(problem.num_contracted))


def _segments(problem: Problem, order: IntArray) -> _Segments:
    p = problem.contracted
    count = problem.num_contracted
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    longest = _longest(p, order)
    # Merging s neighbours divides both sides of the tables by s.
    step = 1
    while count > _MOST_PLACES * step or (count // step) * (longest // step) > _MOST_ENTRIES:
        step += 1
    place = rank // step
    places, width = -(-count // step), min(-(-longest // step) + 1, -(-count // step))

    made, used_at = place[p.tensor_producer], place[p.edge_consumer]
    last = made.copy()
    np.maximum.at(last, p.edge_tensor, used_at)
    joined = np.zeros((places, width + 1))  # [q, d]: what q adds to the piece q-d..q
    if problem.mcm.constraints.memory:
        uses = place[p.use_node]
        before = _previous(p.use_weight, uses, np.full(len(p.weight_bytes), -1, np.int64))
        _add(joined, uses, uses - before, p.weight_bytes[p.use_weight])
        if problem.mcm.memory_model == "full":
            before = _previous(p.edge_tensor, used_at, made)
            _add(joined, used_at, used_at - before, 2 * p.tensor_bytes[p.edge_tensor])
            sent = np.flatnonzero(last > made)
            size = 2 * p.tensor_bytes[sent]
            _add(joined, made[sent], np.full(len(sent), width), size)
            # Sent no more once the piece has its last consumer as well.
            _add(joined, last[sent], np.full(len(sent), width), -size)
            _add(joined, last[sent], last[sent] - made[sent], size)
    held = np.cumsum(_from_start(np.cumsum(joined[:, :width], axis=1)), axis=1)
    peak, most = _peaks(problem, place, made, last, places, width)
    allowed = np.ones((places, width), bool)
    if problem.mcm.constraints.triangle:
        reach = np.full(places + 1, -1, np.int64)
        np.maximum.at(reach, made + 1, last)
        reach = np.maximum.accumulate(reach)[:places]
        allowed = np.arange(places)[:, None] + np.arange(width)[None] >= reach[:, None]
    allowed &= np.arange(places)[:, None] + np.arange(width)[None] < places
    return _Segments(place, held, peak, most, allowed)


def _longest(p: Problem, order: IntArray) -> int:
    """No longer piece fits: most places whose weights of one user fill no chip."""
    count = len(order)
    if not p.mcm.constraints.memory:
        return count
    users = np.bincount(p.use_weight, minlength=len(p.weight_bytes))
    own = users[p.use_weight] == 1
    held = np.bincount(p.use_node[own], p.weight_bytes[p.use_weight[own]], count)
    prefix = np.concatenate([[0.0], np.cumsum(held[order])])
    room = prefix[:-1] + p.capacity_bytes.max() * (1 + 1e-9)
    stop = np.searchsorted(prefix, room, side="right") - 1
    return max(1, int((stop - np.arange(count)).max()))


def _peaks(
    problem: Problem, place: IntArray, made: IntArray, last: IntArray, places: int, width: int
) -> tuple[FloatArray, FloatArray]:
    """[P, W] twice, as in `_Pieces`."""
    if not problem.mcm.constraints.memory or problem.mcm.memory_model == "weights":
        zeros = np.zeros((places, width))
        return zeros, zeros
    at_most = np.zeros(places)
    np.maximum.at(at_most, place, host.peak_bounds(problem)[1])
    most = _from_start(np.repeat(at_most[:, None], width, axis=1))
    most = np.maximum.accumulate(most, axis=1)
    if problem.num_contracted < problem.num_nodes:
        return most, most  # a contracted node's nodes run at several moments
    # Tensor k is alive at q, for every piece that has its producer.
    tensor, age = _ranges(np.minimum(last - made, width - 1) + 1)
    moment = made[tensor] + age
    size = problem.tensor_bytes[tensor]
    key = moment * width + age
    alive = np.bincount(key, size, places * width).astype(np.float64).reshape(places, width)
    live = _from_start(np.cumsum(alive, axis=1))
    return np.maximum.accumulate(live, axis=1), most


def _estimates(problem: Problem, segments: _Segments) -> list[FloatArray]:
    """[P, W] memory of every piece: first as the order has it, then never too low."""
    if problem.mcm.constraints.memory and not np.array_equal(segments.peak, segments.most):
        return [segments.held + segments.peak, segments.held + segments.most]
    return [segments.held + segments.most]


def _cut(
    problem: Problem, segments: _Segments, held: FloatArray, cost: FloatArray
) -> IntArray | None:
    """[M] the nearest cuts of one order; None where there are none.

    Args:
      held: [P, W] bytes.
      cost: [M, C] of each contracted node on each chip; infinite where a pin forbids it.
    """
    places, width = held.shape
    chips = problem.num_chips
    forbidden = np.where(np.isinf(cost), 1.0, 0.0)
    at_place = np.zeros((places, chips))
    np.add.at(at_place, segments.place, np.where(np.isinf(cost), 0.0, cost))
    # A path through a forbidden chip costs more than any other.
    penalty = 1.0 + float(at_place.max(axis=1).sum())
    np.add.at(at_place, segments.place, forbidden * penalty)
    before = np.concatenate([np.zeros((1, chips)), np.cumsum(at_place, axis=0)])
    rules = problem.mcm.constraints

    # By the end of the piece: [P, W], row q, column W-1-d is the piece q-d..q.
    kinds: dict[float, FloatArray] = {}
    for capacity in np.unique(problem.capacity_bytes) if rules.memory else (np.inf,):
        fits = segments.allowed & (held <= capacity)
        kinds[float(capacity)] = _to_end(np.where(fits, 0.0, np.inf))
    best = np.full((chips + 1, places + 1), np.inf)
    best[0, 0] = 0.0
    for c in range(chips):
        capacity = float(problem.capacity_bytes[c]) if rules.memory else np.inf
        ahead = np.concatenate([np.full(width - 1, np.inf), best[c] - before[:, c]])
        windows = sliding_window_view(ahead[:-1], width)  # row q: cuts q-W+1..q
        best[c + 1, 1:] = (windows + kinds[capacity]).min(axis=1) + before[1:, c]
        if not rules.no_skip:
            best[c + 1] = np.minimum(best[c + 1], best[c])
    used = int(best[1:, places].argmin()) + 1
    if best[used, places] >= penalty:
        return None
    chip = np.zeros(places, np.int64)
    j = places
    for c in range(used - 1, -1, -1):
        if not rules.no_skip and best[c + 1, j] == best[c, j]:
            continue
        capacity = float(problem.capacity_bytes[c]) if rules.memory else np.inf
        low = max(0, j - width)
        row = kinds[capacity][j - 1][width - (j - low) :]
        i = low + int((best[c, low:j] - before[low:j, c] + row).argmin())
        chip[i:j] = c
        j = i
    return chip[segments.place]


def _cost(problem: Problem, y: IntArray, weights: FloatArray) -> FloatArray:
    """[M, C]."""
    chips = np.arange(problem.num_chips)
    of_node = weights[:, None] * np.abs(chips[None] - y[:, None])
    of_contracted = of_node
    if problem.num_contracted < problem.num_nodes:
        of_contracted = np.zeros((problem.num_contracted, problem.num_chips))
        np.add.at(of_contracted, problem.contraction, of_node)
    elif (problem.contraction != np.arange(problem.num_nodes)).any():
        of_contracted = np.empty_like(of_node)
        of_contracted[problem.contraction] = of_node
    pin = problem.contracted_fixed_chip
    return np.where((pin[:, None] >= 0) & (pin[:, None] != chips[None]), np.inf, of_contracted)


def _chips_of_contracted(problem: Problem, f: IntArray) -> IntArray:
    chips = np.zeros(problem.num_contracted, np.int64)
    chips[problem.contraction] = f
    return chips


def _add(joined: FloatArray, at: IntArray, reach: IntArray, size: FloatArray) -> None:
    """`size` to [at, d] for all d < reach, as differences along d."""
    width = joined.shape[1]
    np.add.at(joined[:, 0], at, np.where(reach > 0, size, 0.0))
    np.add.at(joined, (at, np.minimum(reach, width - 1)), np.where(reach > 0, -size, 0.0))


def _previous(owner: IntArray, at: IntArray, first: IntArray) -> IntArray:
    """For each entry the place of its owner's entry before it; `first` for the earliest."""
    order = np.lexsort((at, owner))
    owners, places = owner[order], at[order]
    before = np.empty(len(at), np.int64)
    if len(at):
        is_same = np.concatenate([[False], owners[1:] == owners[:-1]])
        before[order] = np.where(is_same, np.concatenate([[0], places[:-1]]), first[owners])
    return before


def _ranges(count: IntArray) -> tuple[IntArray, IntArray]:
    """Every (key, i) with 0 <= i < count[key], in order."""
    key = np.repeat(np.arange(len(count)), count)
    return key, np.arange(len(key)) - np.repeat(np.cumsum(count) - count, count)


def _from_start(table: FloatArray) -> FloatArray:
    """[i, d] = table[i + d, d], zeros beyond the end: from a piece's end to its start."""
    places, width = table.shape
    padded = np.concatenate([table, np.zeros((width, width))])
    row, column = padded.strides
    return as_strided(padded, (places, width), (row, row + column)).copy()


def _to_end(table: FloatArray) -> FloatArray:
    """[q, W-1-d] = table[q - d, d], infinity before the beginning."""
    places, width = table.shape
    padded = np.concatenate([np.full((width, width), np.inf), table])
    row, column = padded.strides
    # At column e = W-1-d: row q - d = q - W + 1 + e, entry W-1-e.
    start = padded[1:, width - 1 :]
    return as_strided(start, (places, width), (row, row - column)).copy()
