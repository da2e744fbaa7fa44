"""Valid partitions near given labels, by exact cuts of one order of the contracted nodes.

This is fast, but the nearest partition of one order is rarely the nearest of all.

Every partition of a fixed topological order into contiguous segments is a path over cut positions.
A dynamic program finds the nearest one,

    best[c + 1, j] = min over i of best[c, i] + distance of the contracted nodes i..j-1 from chip c,

over the segments [i, j) that keep memory and, between neighbouring segments, span. It handles fixed
chips and chips of unlike capacities. `methods/orders/slicing.py` runs the same recursion for the
bottleneck on the device. This module uses numpy alone, because workers hold no JAX.

The order comes from a partition that keeps dataflow, such as the minimum cut. Where the minimum cut
fits, it is one of the choices. Where it does not fit, the cuts move: within each chip of that
partition, the order is the graph's own numbering.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Most entries of a table over (start, length) of segments; above it, neighbours share a place.
_MOST_ENTRIES = 2**21
# Most places of an order; above it, neighbours share a place.
_MOST_PLACES = 4096


def construct(
    problem: Problem, guide: IntArray, y: IntArray, weights: FloatArray
) -> IntArray | None:
    """Returns a valid partition near `y` into contiguous segments of an order.

    Two orders are tried. The first sorts by the chips of `guide`, and by the graph's numbering
    within a chip. The second is the graph's own order, which the greedy baseline walks too.

    Args:
      problem: of N nodes; its fixed chips do not contradict each other.
      guide: [N] chips that keep contracted nodes together, and dataflow where that is a rule.
      y: [N] target chips.
      weights: [N] cost of moving each node by one chip, 0 or more.

    Returns:
      [N] chips that pass `keeps_rules`; None where no order has valid cuts.
    """
    cost = _cost(problem, y, weights)
    guide_order = np.lexsort(
        (np.arange(problem.num_contracted), problem.contracted_assignment(guide))
    )
    graph_order = np.arange(problem.num_contracted)
    is_same_order = bool((guide_order == graph_order).all())
    for order in (graph_order,) if is_same_order else (guide_order, graph_order):
        segments = _graph_order(problem) if order is graph_order else _segments(problem, order)
        # The peak in this order comes first. It may be too low, since a chip runs its nodes in
        # the graph's order. The upper bound comes second.
        for held in _memory_estimates(problem, segments):
            f = _cut(problem, segments, held, cost)
            if f is None:
                continue
            found = f[problem.contraction]
            if keeps_rules(problem, found):
                return found
    return None


def keeps_rules(problem: Problem, f: IntArray) -> bool:
    """Returns whether a partition keeps every rule that is on, by the host's arithmetic.

    `verify` in `cost/evaluate.py` decides which results are valid.

    Args:
      problem: of N nodes.
      f: [N] chips.
    """
    rules = problem.mcm.constraints
    if ((problem.fixed_chip >= 0) & (f != problem.fixed_chip)).any():
        return False
    if (f != problem.contracted_assignment(f)[problem.contraction]).any():
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
    """Tables of one order, for the dynamic program.

    The order has P places, each of one contracted node or of a few neighbours. In a table [P, W],
    row i and column d stand for the segment of the places i..i+d.
    """

    place: IntArray  # [M] place of each contracted node
    held: FloatArray  # [P, W] bytes of weights and boundary buffers
    peak: FloatArray  # [P, W] bytes alive at the peak, if a chip ran the nodes in this order
    peak_bound: FloatArray  # [P, W] upper bound on the bytes alive at the peak, whatever the order
    allowed: host.BoolArray  # [P, W] whether the segment is in range and, if asked, keeps span


@functools.lru_cache(maxsize=2)
def _graph_order(problem: Problem) -> _Segments:
    """Returns the tables of the graph's own order; cached, because every repair needs them."""
    return _segments(problem, np.arange(problem.num_contracted))


def _segments(problem: Problem, order: IntArray) -> _Segments:
    """Returns the tables of `order`, [M] the contracted nodes in a topological order."""
    p = problem.contracted
    count = problem.num_contracted
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    longest = _max_length(p, order)
    # Places of `step` neighbours make both sides of the tables smaller by that factor.
    step = 1
    while count > _MOST_PLACES * step or (count // step) * (longest // step) > _MOST_ENTRIES:
        step += 1
    place = rank // step
    places, width = -(-count // step), min(-(-longest // step) + 1, -(-count // step))

    made, used_at = place[p.tensor_producer], place[p.edge_consumer]
    last = made.copy()
    np.maximum.at(last, p.edge_tensor, used_at)
    # [q, d]: bytes that place q adds to the segment q-d..q, stored as differences along d.
    added = np.zeros((places, width + 1))
    if problem.mcm.constraints.memory:
        uses = place[p.use_node]
        before = _previous(p.use_weight, uses, np.full(len(p.weight_bytes), -1, np.int64))
        _add(added, uses, uses - before, p.weight_bytes[p.use_weight])
        if problem.mcm.memory_model == "full":
            before = _previous(p.edge_tensor, used_at, made)
            _add(added, used_at, used_at - before, 2 * p.tensor_bytes[p.edge_tensor])
            sent = np.flatnonzero(last > made)
            size = 2 * p.tensor_bytes[sent]
            _add(added, made[sent], np.full(len(sent), width), size)
            # A chip does not send a tensor whose last consumer is in the segment too.
            _add(added, last[sent], np.full(len(sent), width), -size)
            _add(added, last[sent], last[sent] - made[sent], size)
    held = np.cumsum(_from_start(np.cumsum(added[:, :width], axis=1)), axis=1)
    peak, peak_bound = _peaks(problem, place, made, last, places, width)
    allowed = np.ones((places, width), bool)
    if problem.mcm.constraints.triangle:
        # Span: a segment contains the last consumer of every tensor that is alive at its start.
        reach = np.full(places + 1, -1, np.int64)
        np.maximum.at(reach, made + 1, last)
        reach = np.maximum.accumulate(reach)[:places]
        allowed = np.arange(places)[:, None] + np.arange(width)[None] >= reach[:, None]
    allowed &= np.arange(places)[:, None] + np.arange(width)[None] < places
    return _Segments(place, held, peak, peak_bound, allowed)


def _max_length(p: Problem, order: IntArray) -> int:
    """Returns an upper bound on the number of contracted nodes in a segment.

    It is the longest run of the order whose unshared weights fit the largest chip.
    """
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
    """Returns the tables `peak` and `peak_bound` of `_Segments`, [P, W] each, in bytes.

    Args:
      problem: of K tensors.
      place: [M] place of each contracted node.
      made: [K] place of each tensor's producer.
      last: [K] place of each tensor's last consumer; its producer's where there is none.
      places: P.
      width: W.
    """
    if not problem.mcm.constraints.memory or problem.mcm.memory_model == "weights":
        zeros = np.zeros((places, width))
        return zeros, zeros
    bound_at_place = np.zeros(places)
    np.maximum.at(bound_at_place, place, host.peak_bounds(problem)[1])
    peak_bound = _from_start(np.repeat(bound_at_place[:, None], width, axis=1))
    peak_bound = np.maximum.accumulate(peak_bound, axis=1)
    if problem.num_contracted < problem.num_nodes:
        # The nodes of a contracted node run at several moments, so no order of contracted nodes
        # gives the peak.
        return peak_bound, peak_bound
    # Tensor k is alive at place q in every segment that contains its producer.
    tensor, age = _ranges(np.minimum(last - made, width - 1) + 1)
    moment = made[tensor] + age
    size = problem.tensor_bytes[tensor]
    key = moment * width + age
    alive = np.bincount(key, size, places * width).astype(np.float64).reshape(places, width)
    live = _from_start(np.cumsum(alive, axis=1))
    return np.maximum.accumulate(live, axis=1), peak_bound


def _memory_estimates(problem: Problem, segments: _Segments) -> list[FloatArray]:
    """Returns tables [P, W] of the memory of every segment, in bytes: an estimate, an upper bound.

    The estimate is left out where it equals the upper bound.
    """
    if problem.mcm.constraints.memory and not np.array_equal(segments.peak, segments.peak_bound):
        return [segments.held + segments.peak, segments.held + segments.peak_bound]
    return [segments.held + segments.peak_bound]


def _cut(
    problem: Problem, segments: _Segments, held: FloatArray, cost: FloatArray
) -> IntArray | None:
    """Returns [M] the chips of the nearest cuts of one order; None where no cuts are valid.

    Args:
      problem: of C chips.
      segments: tables of the order.
      held: [P, W] memory of each segment, in bytes.
      cost: [M, C] cost of each contracted node on each chip; infinite where it is fixed to another.
    """
    places, width = held.shape
    chips = problem.num_chips
    forbidden = np.where(np.isinf(cost), 1.0, 0.0)
    at_place = np.zeros((places, chips))
    np.add.at(at_place, segments.place, np.where(np.isinf(cost), 0.0, cost))
    # A path through a forbidden chip costs more than every path without one.
    penalty = 1.0 + float(at_place.max(axis=1).sum())
    np.add.at(at_place, segments.place, forbidden * penalty)
    before = np.concatenate([np.zeros((1, chips)), np.cumsum(at_place, axis=0)])
    rules = problem.mcm.constraints

    # By capacity, [P, W]: 0 where a segment fits, else infinite. Row q, column W-1-d is the segment
    # q-d..q.
    unfit_cost: dict[float, FloatArray] = {}
    for capacity in np.unique(problem.capacity_bytes) if rules.memory else (np.inf,):
        fits = segments.allowed & (held <= capacity)
        unfit_cost[float(capacity)] = _to_end(np.where(fits, 0.0, np.inf))
    best = np.full((chips + 1, places + 1), np.inf)
    best[0, 0] = 0.0
    for c in range(chips):
        capacity = float(problem.capacity_bytes[c]) if rules.memory else np.inf
        ahead = np.concatenate([np.full(width - 1, np.inf), best[c] - before[:, c]])
        windows = sliding_window_view(ahead[:-1], width)  # row q: cuts q-W+1..q
        best[c + 1, 1:] = (windows + unfit_cost[capacity]).min(axis=1) + before[1:, c]
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
        row = unfit_cost[capacity][j - 1][width - (j - low) :]
        i = low + int((best[c, low:j] - before[low:j, c] + row).argmin())
        chip[i:j] = c
        j = i
    return chip[segments.place]


def _cost(problem: Problem, y: IntArray, weights: FloatArray) -> FloatArray:
    """Returns [M, C] the distance of each contracted node from each chip.

    It is infinite where the contracted node is fixed to another chip.
    """
    chips = np.arange(problem.num_chips)
    of_node = weights[:, None] * np.abs(chips[None] - y[:, None])
    of_contracted = of_node
    if problem.num_contracted < problem.num_nodes:
        of_contracted = np.zeros((problem.num_contracted, problem.num_chips))
        np.add.at(of_contracted, problem.contraction, of_node)
    elif (problem.contraction != np.arange(problem.num_nodes)).any():
        of_contracted = np.empty_like(of_node)
        of_contracted[problem.contraction] = of_node
    fixed_chip = problem.contracted_fixed_chip
    return np.where(
        (fixed_chip[:, None] >= 0) & (fixed_chip[:, None] != chips[None]), np.inf, of_contracted
    )


def _add(added: FloatArray, at: IntArray, reach: IntArray, size: FloatArray) -> None:
    """Adds `size` to the entries [at, d] with d < reach; `added` holds differences along d."""
    width = added.shape[1]
    np.add.at(added[:, 0], at, np.where(reach > 0, size, 0.0))
    np.add.at(added, (at, np.minimum(reach, width - 1)), np.where(reach > 0, -size, 0.0))


def _previous(owner: IntArray, at: IntArray, first: IntArray) -> IntArray:
    """Returns, for each entry, the place of the previous entry of the same owner.

    Args:
      owner: [E] tensor or weight of each entry.
      at: [E] place of each entry.
      first: [owners] the answer for an owner's earliest entry.
    """
    order = np.lexsort((at, owner))
    owners, places = owner[order], at[order]
    before = np.empty(len(at), np.int64)
    if len(at):
        is_same = np.concatenate([[False], owners[1:] == owners[:-1]])
        before[order] = np.where(is_same, np.concatenate([[0], places[:-1]]), first[owners])
    return before


def _ranges(count: IntArray) -> tuple[IntArray, IntArray]:
    """Returns every (key, i) with 0 <= i < count[key], in order."""
    key = np.repeat(np.arange(len(count)), count)
    return key, np.arange(len(key)) - np.repeat(np.cumsum(count) - count, count)


def _from_start(table: FloatArray) -> FloatArray:
    """Turns a table by a segment's end into one by its start: [i, d] = table[i + d, d].

    Entries beyond the end of the order are zero.
    """
    places, width = table.shape
    padded = np.concatenate([table, np.zeros((width, width))])
    row, column = padded.strides
    return as_strided(padded, (places, width), (row, row + column)).copy()


def _to_end(table: FloatArray) -> FloatArray:
    """Turns a table by a segment's start into one by its end: [q, W-1-d] = table[q - d, d].

    Entries before the beginning of the order are infinite.
    """
    places, width = table.shape
    padded = np.concatenate([np.full((width, width), np.inf), table])
    row, column = padded.strides
    # At column e = W-1-d: row q - d = q - W + 1 + e, entry W-1-e.
    start = padded[1:, width - 1 :]
    return as_strided(start, (places, width), (row, row - column)).copy()
