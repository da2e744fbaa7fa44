"""Projection on the device: makes each candidate of a batch valid, and changes it little.

The rule on edges is 0 <= f(v) - f(u) <= 1 for every edge (u, v): an edge stays on its chip or goes
to the next one (the span rule).

1. With this rule dataflow is acyclic and the chip graph is a path, so the triangle rule holds.
2. All f that keep the rule form an L-natural-convex set (Murota, Discrete Convex Analysis, 2003).
   The set is closed under elementwise minimum, elementwise maximum and both roundings of the
   midpoint of two members. Fixed chips are bounds; colocation is equality of nodes.
3. If any member lies above a given y, there is a least one. Sweeps along and against the edges
   find it (`close`).
4. That least member is near y in the maximum norm only: one node on the last chip pulls all its
   successors there. Nodes that disagree with most of their neighbours are therefore dropped first
   (`_vote`).

With the triangle rule off, an edge may go any number of chips forward. With acyclic dataflow off,
an edge may go anywhere. Memory is ignored.

The rows of a candidate are contracted nodes or nodes, both padded to N.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.chip_sets import WORD
from jaxpart.cost.chunks import in_chunks
from jaxpart.cost.device import DeviceProblem, StaticConfig
from jaxpart.cost.tables import Tables, reduce_segments, take
from jaxpart.problem.problem import CONTRADICTORY

Mask = Bool[Array, " K"] | np.ndarray  # of columns; NumPy's if it is known while tracing


@jax.jit
def project(
    problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> tuple[Int[Array, "N B"], Bool[Array, " B"]]:
    """Finds, near each candidate, a partition that keeps all rules except memory.

    These are the rule on edges, no-skip, fixed chips and colocation. A candidate that keeps them
    already is returned unchanged. Let y be the chips that the contracted nodes want.

    1. Each edge that breaks the rule votes against both its ends. Of the two, the node with the
       larger share of votes against it is dropped; at a tie both are. The kept nodes break no edge.
    2. Four partitions are made: the least one above the kept nodes, the greatest one below them,
       the midpoint of these two, and the same midpoint for all nodes instead of the kept ones. The
       last one serves candidates where few nodes agree.
    3. The nearest of the four, by the sum of |f(v) - y(v)|, is taken. Then its nodes return towards
       y as far as the edges allow: first all nodes above y, then all nodes below.
    4. A partition that leaves out chip 0 is shifted there as a whole, or a few of its nodes are
       moved there, whichever is nearer. Unused chips are removed (`contiguous`).

    Args:
      problem: padded to N nodes.
      assignment: chips 0..C-1; rows of padding nodes are ignored.

    Returns:
      The partitions, and whether each keeps these rules. One that does not means that the fixed
      chips contradict the rules, or that step 4 found no node for an unused chip.
    """
    chex.assert_shape(assignment, (problem.padded_nodes, None))
    run = functools.partial(_project, problem)
    return in_chunks(problem, run, assignment, 16 * problem.padded_nodes)


def _project(
    problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> tuple[Int[Array, "N B"], Bool[Array, " B"]]:
    """`project` for one chunk of the batch."""
    wish = _wishes(problem, assignment)
    low, high = bounds(problem)
    y = jnp.clip(wish, low, high)
    kept = _vote(problem, y, low == high)
    batch = y.shape[1]
    # Four blocks of B columns; two of them hold -f (see `close`).
    up, down = (jnp.where(kept, y, low), y), (-jnp.where(kept, y, high), -y)
    if problem.tables is None:
        # Loops over rows are 5% faster if f and -f alternate and the mask is no constant.
        starts = jnp.concatenate([up[0], down[0], up[1], down[1]], axis=1)
        closed = close(problem, starts, jnp.arange(4 * batch) // batch % 2 == 1)
        above, below, all_above, all_below = jnp.split(closed, 4, axis=1)
    else:
        closed = close(problem, jnp.concatenate(up + down, axis=1), _last_half(4 * batch))
        above, all_above, below, all_below = jnp.split(closed, 4, axis=1)
    middle, all_middle = (above - below) // 2, (all_above - all_below) // 2
    f, distance = above, _distance(problem, above, y)
    for other in (-below, middle, all_middle):
        other_distance = _distance(problem, other, y)
        f = jnp.where(other_distance < distance, other, f)
        distance = jnp.minimum(distance, other_distance)

    def return_from(side, f):  # side 0: nodes above y; side 1: nodes below y
        start = jnp.where(side == 0, jnp.minimum(f, y), -jnp.maximum(f, y))
        closed = close(problem, start, jnp.full(batch, side == 1))
        return jnp.where(side == 0, closed, -closed)

    if problem.tables is None:
        f = lax.fori_loop(0, 2, return_from, f)
    else:
        f = close(problem, jnp.minimum(f, y), np.zeros(batch, bool))
        f = -close(problem, -jnp.maximum(f, y), np.ones(batch, bool))
    f, is_filled = contiguous(problem, _from_first_chip(problem, f, y, low), low, high)
    holds = (
        is_filled & jnp.all(low <= high) & jnp.all(problem.contracted_fixed_chip != CONTRADICTORY)
    )
    return on_nodes(problem, f), holds


def bounds(problem: DeviceProblem) -> tuple[Int[Array, "N 1"], Int[Array, "N 1"]]:
    """The lowest and the highest chip of each contracted node that the fixed chips allow.

    If the fixed chips allow no chip for a node, its lowest chip is above its highest one.
    Otherwise each of the two is itself a partition that keeps the rule on edges.
    """
    last = problem.config.num_chips - 1
    fixed = problem.contracted_fixed_chip[:, None].astype(level_dtype(problem.config))
    low, high = jnp.where(fixed >= 0, fixed, 0), jnp.where(fixed >= 0, fixed, last)

    def tighten(_):
        closed = close(problem, jnp.concatenate([low, -high], axis=1), _last_half(2))
        return closed[:, :1], -closed[:, 1:]

    # Without fixed chips these bounds keep the rule on edges already.
    return lax.cond(jnp.any(fixed >= 0), tighten, lambda _: (low, high), None)


def close(problem: DeviceProblem, values: Int[Array, "N K"], negated: Mask) -> Int[Array, "N K"]:
    """The least values, at or above the given ones, that keep the rule on edges.

    Args:
      problem: its contracted nodes are the rows, padded to N.
      values: a column holds f, or -f. For -f, the result is minus the greatest f at or below.
      negated: which columns hold -f.
    """
    if not problem.config.constraints.acyclic:
        return values
    tables = problem.tables
    if tables is None:
        return _close_by_sweeps(problem, values, negated)
    if tables.distance is None:
        return _close_in_blocks(problem, tables, values, negated)
    return _close_at_once(tables.distance, values, negated)


def _close_by_sweeps(
    problem: DeviceProblem, values: Int[Array, "N K"], negated: Mask
) -> Int[Array, "N K"]:
    """`close` by walks along and against the edges, until nothing changes."""
    ahead, back = _offsets(problem, values, negated)

    def forward(e, x):
        u, v = problem.pair_from[e], problem.pair_to[e]
        return x.at[v].set(jnp.maximum(x[v], x[u] + ahead))

    def backward(step, x):
        e = problem.num_pairs - 1 - step
        u, v = problem.pair_from[e], problem.pair_to[e]
        return x.at[u].set(jnp.maximum(x[u], x[v] + back))

    # The loop ends: no sweep raises a value above the maximum of its column. It stops when a sweep
    # in one direction changes nothing, because the sweep before it settled the other direction.
    def sweep(carry):
        step, x, _ = carry
        swept = lax.cond(
            step % 2 == 0,
            lambda x: lax.fori_loop(0, problem.num_pairs, forward, x),
            lambda x: lax.fori_loop(0, problem.num_pairs, backward, x),
            x,
        )
        return step + 1, swept, (step == 0) | jnp.any(swept != x)

    start = (jnp.int32(0), values, jnp.array(True))
    return lax.while_loop(lambda carry: carry[2], sweep, start)[1]


def _offsets(
    problem: DeviceProblem, values: Int[Array, "N K"], negated: Mask
) -> tuple[Int[Array, " K"], Int[Array, " K"]]:
    """The rule on edges (u, v) is x(v) >= x(u) + ahead and x(u) >= x(v) + back, for x = f or -f."""
    reach = 1 if problem.config.constraints.triangle else problem.config.num_chips
    ahead = jnp.where(negated, -reach, 0).astype(values.dtype)
    return ahead, jnp.where(negated, 0, -reach).astype(values.dtype)


def _close_in_blocks(
    problem: DeviceProblem, tables: Tables, values: Int[Array, "N K"], negated: Mask
) -> Int[Array, "N K"]:
    """`close` where the distances between all nodes would take too much memory.

    A round raises each value by one step along all edges, and then closes each block of nodes at
    once. After r rounds all paths count that cross at most r times from one block to another. Only
    paths shorter than C matter, so that at most C - 1 steps go against an edge. Edges run to higher
    numbers, and Q blocks allow Q - 1 crossings on end, before the first of these steps and after
    each: Q * C - 1 crossings in all. Without the triangle rule no step goes against an edge. What
    is settled skips the rounds that are left; the host is asked before each (under `vmap` nothing
    is skipped).

    Work: each round Q * S * S additions a column, and the rounds of uniform labels are about Q.
    """
    distance = tables.block_distance
    assert distance is not None
    blocks, width, _ = distance.shape
    ahead, back = _offsets(problem, values, negated)
    none = jnp.iinfo(values.dtype).min

    def within(x: Array) -> Array:
        parts = x.reshape(blocks, width, -1)
        closed = jax.vmap(lambda d, x: _close_at_once(d, x, negated))(distance, parts)
        return closed.reshape(x.shape)

    def raised(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, _ = carry
        by_producers = reduce_segments(
            lambda i: take(x, problem.pair_from[tables.by_second[i]]) + ahead[None],
            tables.pairs_to,
            jnp.maximum,
            none,
        )
        by_consumers = reduce_segments(
            lambda e: take(x, problem.pair_to[e]) + back[None],
            tables.pairs_from,
            jnp.maximum,
            none,
        )
        stepped = jnp.maximum(x, jnp.maximum(by_producers, by_consumers))
        is_open = jnp.any(stepped != x)
        return within(stepped), is_open

    def round_(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return lax.cond(carry[1], raised, lambda carry: carry, carry)

    runs = problem.config.num_chips if problem.config.constraints.triangle else 1
    return lax.fori_loop(0, blocks * runs - 1, round_, (within(values), jnp.array(True)))[0]


def _close_at_once(
    distance: Int[Array, "N N"], values: Int[Array, "N K"], negated: Mask
) -> Int[Array, "N K"]:
    """`close` as a product: x(v) = max over u of y(u) - distance(u, v); for -f, distance(v, u).

    The difference of each pair of nodes is reduced at once and never stored.
    """
    if isinstance(negated, np.ndarray):  # known while tracing: one product for each sign
        columns = [np.flatnonzero(~negated), np.flatnonzero(negated)]
        tables = [distance, distance.T]
        closed = [
            _product(d[..., None], values[:, c]) for d, c in zip(tables, columns, strict=True)
        ]
        return jnp.concatenate(closed, axis=1)[:, np.argsort(np.concatenate(columns))]
    return _product(jnp.where(negated, distance.T[..., None], distance[..., None]), values)


def _product(distance: Int[Array, "N N _"], values: Int[Array, "N K"]) -> Int[Array, "N K"]:
    return jnp.max(values[:, None] - distance, axis=0)


def distances(problem: DeviceProblem) -> Int[Array, "N N"] | None:
    """The distances between contracted nodes, where programs compute on whole arrays."""
    return None if problem.tables is None else problem.tables.distance


def raise_one(
    problem: DeviceProblem,
    f: Int[Array, "N B"],
    node: Int[Array, " B"],
    chip: Int[Array, " B"],
) -> Int[Array, "N B"]:
    """The least partition at or above `f` that has one node of each candidate at or above a chip.

    Args:
      problem: its contracted nodes are the rows, padded to N.
      f: partitions that keep the rule on edges.
      node: the node of each candidate.
      chip: its least chip.
    """
    distance = distances(problem)
    if distance is None or not problem.config.constraints.acyclic:
        raised = f.at[node, jnp.arange(f.shape[1])].max(chip)
        return close(problem, raised, np.zeros(f.shape[1], bool))
    return jnp.maximum(f, chip[None] - take(distance, node).T)


def lower_one(
    problem: DeviceProblem,
    f: Int[Array, "N B"],
    node: Int[Array, " B"],
    chip: Int[Array, " B"],
) -> Int[Array, "N B"]:
    """The greatest partition at or below `f` with one node at or below a chip; as `raise_one`."""
    distance = distances(problem)
    if distance is None or not problem.config.constraints.acyclic:
        lowered = f.at[node, jnp.arange(f.shape[1])].min(chip)
        return -close(problem, -lowered, np.ones(f.shape[1], bool))
    return jnp.minimum(f, chip[None] + take(distance.T, node).T)


def contiguous(
    problem: DeviceProblem, f: Int[Array, "N B"], low: Int[Array, "N 1"], high: Int[Array, "N 1"]
) -> tuple[Int[Array, "N B"], Bool[Array, " B"]]:
    """Removes unused chips below used ones, if no chip may be skipped.

    1. Chips below the highest fixed chip are filled. Each of them in turn gets a contracted node:
       of all that may be on this chip, the one with the lowest upper bound. This succeeds whenever
       a solution exists and no edges bind the contracted nodes, and mostly if edges do.
    2. Unused chips above all fixed chips are removed, and higher chips move down. This keeps the
       rule on edges, the triangle rule and colocation.

    Args:
      problem: its contracted nodes are the rows, padded to N.
      f: partitions that keep the rule on edges.
      low: the least partition (`bounds`).
      high: the greatest partition (`bounds`).

    Returns:
      The partitions, and whether all chips below the highest fixed chip are in use (true if chips
      may be skipped).
    """
    chips = problem.config.num_chips
    if not problem.config.constraints.no_skip:
        return f, jnp.ones(f.shape[1], bool)
    highest_fixed = jnp.max(problem.contracted_fixed_chip)
    is_real = (jnp.arange(f.shape[0]) < problem.num_contracted)[:, None]
    lane = jnp.arange(f.shape[1])

    def is_filled(f):
        below = jnp.arange(chips)[:, None] < highest_fixed
        return jnp.all(_used_chips(problem, f) | ~below, axis=0)

    def anchor(chip, bounds):
        lower, upper = bounds
        can = is_real & (lower <= chip) & (upper >= chip)
        node = jnp.argmin(jnp.where(can, upper, chips), axis=0)
        chosen = jnp.where(can[node, lane], chip, lower[node, lane]).astype(f.dtype)
        lower = raise_one(problem, lower, node, chosen)
        chosen = jnp.where(can[node, lane], chip, upper[node, lane]).astype(f.dtype)
        return lower, lower_one(problem, upper, node, chosen)

    def fill(f):
        none = jnp.zeros_like(f)
        last, step = highest_fixed, anchor
        if problem.tables is not None:  # a static number of steps

            def step(chip, bounds):
                return lax.cond(chip < highest_fixed, anchor, lambda _, b: b, chip, bounds)

            last = chips - 1
        lower, upper = lax.fori_loop(0, last, step, (none + low, none + high))
        filled = close(problem, jnp.clip(f, lower, upper), np.zeros(f.shape[1], bool))
        return jnp.where(is_filled(f)[None], f, filled)

    def squeeze(f):
        rank = jnp.cumsum(_used_chips(problem, f), axis=0, dtype=jnp.int32) - 1
        squeezed = jnp.take_along_axis(rank, f.astype(jnp.int32), axis=0).astype(f.dtype)
        return jnp.where(is_filled(f)[None], squeezed, f)

    def mend(f):
        return squeeze(lax.cond(jnp.all(is_filled(f)), lambda f: f, fill, f))

    used = _used_chips(problem, f)
    has_gap = jnp.any(used[1:] & ~used[:-1])
    f = lax.cond(has_gap, mend, lambda f: f, f)
    return f, is_filled(f)


def _last_half(columns: int) -> np.ndarray:
    """The last half of some columns, as a mask that is known while tracing."""
    return np.arange(columns) >= columns // 2


def on_nodes(problem: DeviceProblem, f: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """The chip of each node, given the chip `f` of each contracted node; 0 for padding."""
    chips = jnp.where(
        jnp.arange(f.shape[0])[:, None] < problem.num_nodes, f[problem.contraction], 0
    )
    return chips.astype(problem.config.chip_dtype)


def level_dtype(config: StaticConfig) -> Any:
    """The smallest integer type for the values in `close`: sums of two chip numbers, any sign."""
    return jnp.int8 if config.num_chips <= 63 else jnp.int16


def _wishes(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """The chip that each contracted node wants: the lower median of the chips of its nodes."""
    chips = problem.config.num_chips
    dtype = level_dtype(problem.config)
    y = jnp.clip(assignment, 0, chips - 1).astype(dtype)

    def median(y):
        # The highest chip such that more than half of the nodes are on it or above, bit by bit.
        wish = jnp.zeros_like(y)
        for bit in reversed(range((chips - 1).bit_length())):
            raised = wish + (1 << bit)
            reaches = (y >= raised[problem.contraction]).astype(jnp.int32)
            votes = _sum_of_members(problem, reaches)
            wish = jnp.where(2 * votes > problem.contracted_size[:, None], raised, wish).astype(
                dtype
            )
        return wish

    return lax.cond(problem.num_contracted < problem.num_nodes, median, lambda y: y, y)


def _sum_of_members(problem: DeviceProblem, votes: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """The sum over the nodes of each contracted node."""
    tables = problem.tables
    if tables is None:
        return jax.ops.segment_sum(votes, problem.contraction, votes.shape[0])
    return reduce_segments(
        lambda i: take(votes, tables.by_contraction[i]), tables.members, operator.add, 0
    )


def _vote(
    problem: DeviceProblem, y: Int[Array, "N B"], is_fixed: Bool[Array, "N 1"]
) -> Bool[Array, "N B"]:
    """Which contracted nodes keep their chips; no edge between two of these breaks the rule.

    Where an edge breaks the rule, an end in `is_fixed` wins over one that is not.
    """
    rules = problem.config.constraints
    kept = jnp.ones(y.shape, bool)
    if not rules.acyclic:
        return kept
    ends = jnp.arange(problem.pair_from.shape[0]) < problem.num_pairs
    degree = jnp.zeros(y.shape[0], jnp.int32).at[problem.pair_from].add(ends)
    degree = degree.at[problem.pair_to].add(ends).astype(jnp.float32)

    def broken(e):
        step = y[problem.pair_to[e]] - y[problem.pair_from[e]]
        return (step < 0) | (step > 1) if rules.triangle else step < 0

    if problem.tables is not None:
        return _vote_at_once(problem, problem.tables, broken, degree, is_fixed)

    def accuse(e, votes):
        against = broken(e).astype(votes.dtype)
        return votes.at[problem.pair_from[e]].add(against).at[problem.pair_to[e]].add(against)

    # A contracted node has fewer neighbours than there are rows.
    dtype = jnp.int16 if y.shape[0] <= 32767 else jnp.int32
    votes = lax.fori_loop(0, problem.num_pairs, accuse, jnp.zeros(y.shape, dtype))

    def drop(e, kept):
        u, v = problem.pair_from[e], problem.pair_to[e]
        share_u = jnp.where(is_fixed[u], -1.0, votes[u] / degree[u])
        share_v = jnp.where(is_fixed[v], -1.0, votes[v] / degree[v])
        is_broken = broken(e)
        kept = kept.at[u].set(kept[u] & ~(is_broken & (share_u >= share_v)))
        return kept.at[v].set(kept[v] & ~(is_broken & (share_v >= share_u)))

    return lax.fori_loop(0, problem.num_pairs, drop, kept)


def _vote_at_once(
    problem: DeviceProblem,
    tables: Tables,
    broken: Callable[[Array], Bool[Array, "Q B"]],
    degree: Float[Array, " N"],
    is_fixed: Bool[Array, "N 1"],
) -> Bool[Array, "N B"]:
    """`_vote` by reductions over the edges of each node.

    Args:
      problem: padded to N contracted nodes.
      tables: its tables.
      broken: whether each of some edges breaks the rule.
      degree: number of edges of each contracted node.
      is_fixed: as in `_vote`.
    """

    def over_edges(leaving, entering, combine):
        first = reduce_segments(leaving, tables.pairs_from, combine, 0)
        second = reduce_segments(
            lambda i: entering(tables.by_second[i]), tables.pairs_to, combine, 0
        )
        return combine(first, second)

    def against(e):
        return broken(e).astype(jnp.int32)

    votes = over_edges(against, against, operator.add)
    share = jnp.where(is_fixed, -1.0, votes / jnp.maximum(degree, 1.0)[:, None])

    def dropped(e, loser, winner):
        return broken(e) & (take(share, loser[e]) >= take(share, winner[e]))

    is_dropped = over_edges(
        lambda e: dropped(e, problem.pair_from, problem.pair_to),
        lambda e: dropped(e, problem.pair_to, problem.pair_from),
        operator.or_,
    )
    return ~is_dropped


def _distance(
    problem: DeviceProblem, f: Int[Array, "N B"], y: Int[Array, "N B"]
) -> Float[Array, " B"]:
    """[B] the sum over nodes of |f(v) - y(v)|; `f` and `y` are chips of contracted nodes."""
    moved = jnp.abs(f - y).astype(jnp.int32)
    return jnp.sum(moved * problem.contracted_size[:, None], axis=0)


def _from_first_chip(
    problem: DeviceProblem,
    f: Int[Array, "N B"],
    y: Int[Array, "N B"],
    low: Int[Array, "N 1"],
) -> Int[Array, "N B"]:
    """Moves contracted node 0 to its lowest chip in candidates that leave out chip 0.

    Other nodes follow it as the edges require. A candidate is unchanged if it is nearer to `y` to
    shift the whole partition down, which `contiguous` does.
    """
    if not problem.config.constraints.no_skip:
        return f
    is_real = (jnp.arange(f.shape[0]) < problem.num_contracted)[:, None]
    first = jnp.min(jnp.where(is_real, f, problem.config.num_chips - 1), axis=0, keepdims=True)

    def begin(f):
        lowest = jnp.broadcast_to(low[0], f.shape[1:])
        lowered = lower_one(problem, f, jnp.zeros(f.shape[1], jnp.int32), lowest)
        is_nearer = _distance(problem, lowered, y) < _distance(problem, f - first, y)
        is_nearer |= jnp.any(problem.contracted_fixed_chip >= 0)  # then no shift of the whole
        return jnp.where((first > 0) & is_nearer[None], lowered, f)

    return lax.cond(jnp.any(first > 0), begin, lambda f: f, f)


def _used_chips(problem: DeviceProblem, f: Int[Array, "N B"]) -> Bool[Array, "C B"]:
    """Which chips each candidate uses."""
    chips = problem.config.num_chips
    is_real = (jnp.arange(f.shape[0]) < problem.num_contracted)[:, None]
    words = []
    for word in range(-(-chips // WORD)):
        here = is_real & (f // WORD == word)
        bit = jnp.where(here, jnp.uint32(1) << (f % WORD).astype(jnp.uint32), jnp.uint32(0))
        words.append(lax.reduce(bit, jnp.uint32(0), lax.bitwise_or, (0,)))
    sets: UInt32[Array, "words B"] = jnp.stack(words)
    number = jnp.arange(chips)
    return (sets[number // WORD] >> (number % WORD).astype(jnp.uint32)[:, None]) & 1 == 1
