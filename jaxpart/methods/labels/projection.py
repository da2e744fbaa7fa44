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
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.chunks import in_chunks
from jaxpart.cost.device import DeviceProblem, StaticConfig
from jaxpart.problem.problem import CONTRADICTORY

_WORD = 32  # bits in a word of a chip set


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
    # Four blocks of B columns; the second and the fourth hold -f (see `close`).
    starts = (jnp.where(kept, y, low), -jnp.where(kept, y, high), y, -y)
    negated = jnp.arange(4 * batch) // batch % 2 == 1
    closed = close(problem, jnp.concatenate(starts, axis=1), negated)
    above, below, all_above, all_below = jnp.split(closed, 4, axis=1)
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

    f = lax.fori_loop(0, 2, return_from, f)
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
        closed = close(problem, jnp.concatenate([low, -high], axis=1), jnp.array([False, True]))
        return closed[:, :1], -closed[:, 1:]

    # Without fixed chips these bounds keep the rule on edges already.
    return lax.cond(jnp.any(fixed >= 0), tighten, lambda _: (low, high), None)


def close(
    problem: DeviceProblem, values: Int[Array, "N K"], negated: Bool[Array, " K"]
) -> Int[Array, "N K"]:
    """The least values, at or above the given ones, that keep the rule on edges.

    Args:
      problem: its contracted nodes are the rows, padded to N.
      values: a column holds f, or -f. For -f, the result is minus the greatest f at or below.
      negated: which columns hold -f.
    """
    rules = problem.config.constraints
    if not rules.acyclic:
        return values
    # The rule on edges is x(v) >= x(u) + ahead and x(u) >= x(v) + back, for x = f and for x = -f.
    reach = 1 if rules.triangle else problem.config.num_chips
    ahead = jnp.where(negated, -reach, 0).astype(values.dtype)
    back = jnp.where(negated, 0, -reach).astype(values.dtype)

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
        lower = lower.at[node, lane].max(chosen)
        chosen = jnp.where(can[node, lane], chip, upper[node, lane]).astype(f.dtype)
        upper = upper.at[node, lane].min(chosen)
        negated = jnp.arange(2 * f.shape[1]) >= f.shape[1]
        lower, upper = jnp.split(
            close(problem, jnp.concatenate([lower, -upper], axis=1), negated), 2, axis=1
        )
        return lower, -upper

    def fill(f):
        none = jnp.zeros_like(f)
        lower, upper = lax.fori_loop(0, highest_fixed, anchor, (none + low, none + high))
        filled = close(problem, jnp.clip(f, lower, upper), jnp.zeros(f.shape[1], bool))
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
            votes = jax.ops.segment_sum(reaches, problem.contraction, y.shape[0])
            wish = jnp.where(2 * votes > problem.contracted_size[:, None], raised, wish).astype(
                dtype
            )
        return wish

    return lax.cond(problem.num_contracted < problem.num_nodes, median, lambda y: y, y)


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

    def broken(e):
        step = y[problem.pair_to[e]] - y[problem.pair_from[e]]
        return (step < 0) | (step > 1) if rules.triangle else step < 0

    def accuse(e, votes):
        against = broken(e).astype(votes.dtype)
        return votes.at[problem.pair_from[e]].add(against).at[problem.pair_to[e]].add(against)

    # A contracted node has fewer neighbours than there are rows.
    dtype = jnp.int16 if y.shape[0] <= 32767 else jnp.int32
    votes = lax.fori_loop(0, problem.num_pairs, accuse, jnp.zeros(y.shape, dtype))
    ends = jnp.arange(problem.pair_from.shape[0]) < problem.num_pairs
    degree = jnp.zeros(y.shape[0], jnp.int32).at[problem.pair_from].add(ends)
    degree = degree.at[problem.pair_to].add(ends).astype(jnp.float32)

    def drop(e, kept):
        u, v = problem.pair_from[e], problem.pair_to[e]
        share_u = jnp.where(is_fixed[u], -1.0, votes[u] / degree[u])
        share_v = jnp.where(is_fixed[v], -1.0, votes[v] / degree[v])
        is_broken = broken(e)
        kept = kept.at[u].set(kept[u] & ~(is_broken & (share_u >= share_v)))
        return kept.at[v].set(kept[v] & ~(is_broken & (share_v >= share_u)))

    return lax.fori_loop(0, problem.num_pairs, drop, kept)


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
        lowered = -close(problem, -f.at[0].set(low[0]), jnp.ones(f.shape[1], bool))
        is_nearer = _distance(problem, lowered, y) < _distance(problem, f - first, y)
        is_nearer |= jnp.any(problem.contracted_fixed_chip >= 0)  # then no shift of the whole
        return jnp.where((first > 0) & is_nearer[None], lowered, f)

    return lax.cond(jnp.any(first > 0), begin, lambda f: f, f)


def _used_chips(problem: DeviceProblem, f: Int[Array, "N B"]) -> Bool[Array, "C B"]:
    """Which chips each candidate uses."""
    chips = problem.config.num_chips
    is_real = (jnp.arange(f.shape[0]) < problem.num_contracted)[:, None]
    words = []
    for word in range(-(-chips // _WORD)):
        here = is_real & (f // _WORD == word)
        bit = jnp.where(here, jnp.uint32(1) << (f % _WORD).astype(jnp.uint32), jnp.uint32(0))
        words.append(lax.reduce(bit, jnp.uint32(0), lax.bitwise_or, (0,)))
    sets: UInt32[Array, "words B"] = jnp.stack(words)
    number = jnp.arange(chips)
    return (sets[number // _WORD] >> (number % _WORD).astype(jnp.uint32)[:, None]) & 1 == 1
