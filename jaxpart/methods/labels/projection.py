"""Projection of a batch on the device: valid, and near what it was given.

Under the rules 0 <= f(v) - f(u) <= 1 on every edge, dataflow is acyclic and the chip graph a path,
so that the triangle rule holds. Such f form an L-natural-convex set (Murota, Discrete Convex
Analysis, 2003): it is closed under elementwise minimum, maximum and both roundings of a midpoint;
pins are bounds, colocation is equality of nodes, and above any y lies a least member, which sweeps
along and against the edges reach. That least member is near y in the maximum norm alone: one node
on the last chip drags all after it there. So nodes that disagree with most of their neighbours lose
their say first.

Where the triangle rule is off, an edge may go any number of chips forward; where dataflow may be
cyclic, anywhere. Memory is not looked at.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.device import DeviceProblem, StaticConfig
from jaxpart.cost.rows import in_chunks
from jaxpart.problem.problem import CONTRADICTORY

_WORD = 32  # bits of a word of a chip set


@jax.jit
def project(
    problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> tuple[Int[Array, "N B"], Bool[Array, " B"]]:
    """Near each candidate, a partition that keeps dataflow, span, no-skip, fixed chips and
    colocation.

    1. Every edge that breaks the rule votes against both its ends; of the two, the one with the
       larger share of votes against it is dropped, both at a tie. What is kept breaks no edge.
    2. The least partition above and the greatest below the kept nodes, and the midpoint of the two;
       and the midpoint of those of all nodes, for candidates without a core worth keeping.
    3. The nearest of these four, in the sum of |f(v) - y(v)|; then nodes return towards y as far as
       the others allow, those above it together, then those below.
    4. A partition that begins beyond chip 0 is moved there as a whole, or begins there with a few
       nodes, whichever is nearer; unused chips are squeezed out (`contiguous`).

    What keeps the rules already comes back unchanged.

    Args:
      problem: padded to N nodes.
      assignment: chips 0..C-1; rows of padding nodes are ignored.

    Returns:
      The partitions, and whether each keeps all these rules: it does unless pins contradict the
      rules, or leave chips that this procedure found no node for.
    """
    return in_chunks(functools.partial(_project, problem), assignment)


def _project(
    problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> tuple[Int[Array, "N B"], Bool[Array, " B"]]:
    wish = _wishes(problem, assignment)
    low, high = bounds(problem)
    y = jnp.clip(wish, low, high)
    kept = _vote(problem, y, low == high)
    batch = y.shape[1]
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

    def return_from(side, f):  # from above y, then from below
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
    """The lowest and highest chip of each contracted node that fixed chips allow; crossed where
    they allow none.

    Both are themselves partitions that keep the rules on edges, unless crossed.
    """
    last = problem.config.num_chips - 1
    pin = problem.contracted_fixed_chip[:, None].astype(level_dtype(problem.config))
    low, high = jnp.where(pin >= 0, pin, 0), jnp.where(pin >= 0, pin, last)

    def tighten(_):
        closed = close(problem, jnp.concatenate([low, -high], axis=1), jnp.array([False, True]))
        return closed[:, :1], -closed[:, 1:]

    # Without fixed chips these bounds keep the rules as they are.
    return lax.cond(jnp.any(pin >= 0), tighten, lambda _: (low, high), None)


def close(
    problem: DeviceProblem, values: Int[Array, "N M"], negated: Bool[Array, " M"]
) -> Int[Array, "N M"]:
    """The least values above the given ones that keep the rules on edges.

    Args:
      problem: of N contracted nodes, padded.
      values: f; or -f, for the greatest f below.
      negated: which columns hold -f.
    """
    rules = problem.config.constraints
    if not rules.acyclic:
        return values
    # f(v) >= f(u) + ahead and f(u) >= f(v) + back, for both f and -f.
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

    # No sweep lifts a value above the highest of its column, so this ends: when a sweep one way
    # changes nothing, since the one before it has settled the other way.
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
    """`f` without unused chips between used ones, where that is a rule, and whether this succeeded.

    What is unused above all pins is squeezed out; this keeps dataflow, span, the triangle rule and
    colocation. Chips below a pin are filled first: each in turn gets, of the contracted nodes that
    could be there, the one with the least room above. That finds a way wherever one exists if
    contracted nodes are free of each other, and mostly where they are not.

    Args:
      problem: of N contracted nodes, padded.
      f: within the rules on edges.
      low, high: the least and the greatest partition.
    """
    chips = problem.config.num_chips
    if not problem.config.constraints.no_skip:
        return f, jnp.ones(f.shape[1], bool)
    pinned = jnp.max(problem.contracted_fixed_chip)
    is_real = (jnp.arange(f.shape[0]) < problem.num_contracted)[:, None]
    lane = jnp.arange(f.shape[1])

    def is_filled(f):
        below = jnp.arange(chips)[:, None] < pinned
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
        lower, upper = lax.fori_loop(0, pinned, anchor, (none + low, none + high))
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
    """The chips of the nodes from those of their blocks."""
    chips = jnp.where(
        jnp.arange(f.shape[0])[:, None] < problem.num_nodes, f[problem.contraction], 0
    )
    return chips.astype(problem.config.chip_dtype)


def level_dtype(config: StaticConfig) -> Any:
    """The smallest integer for the sums of two chip numbers that `close` makes, either sign."""
    return jnp.int8 if config.num_chips <= 63 else jnp.int16


def _wishes(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """The chip that each contracted node wants: the lower median over its nodes."""
    chips = problem.config.num_chips
    dtype = level_dtype(problem.config)
    y = jnp.clip(assignment, 0, chips - 1).astype(dtype)

    def median(y):
        # The highest chip that more than half of the nodes are on or above, bit by bit.
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
    """Which contracted nodes keep their chips; no edge between two of them breaks the rule."""
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

    # No contracted node has more neighbours than there are blocks.
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
    """Nodes times chips moved."""
    moved = jnp.abs(f - y).astype(jnp.int32)
    return jnp.sum(moved * problem.contracted_size[:, None], axis=0)


def _from_first_chip(
    problem: DeviceProblem,
    f: Int[Array, "N B"],
    y: Int[Array, "N B"],
    low: Int[Array, "N 1"],
) -> Int[Array, "N B"]:
    """`f`; where it leaves out chip 0, contracted node 0 is moved there, unless it is nearer to
    move all.
    """
    if not problem.config.constraints.no_skip:
        return f
    is_real = (jnp.arange(f.shape[0]) < problem.num_contracted)[:, None]
    first = jnp.min(jnp.where(is_real, f, problem.config.num_chips - 1), axis=0, keepdims=True)

    def begin(f):
        lowered = -close(problem, -f.at[0].set(low[0]), jnp.ones(f.shape[1], bool))
        is_nearer = _distance(problem, lowered, y) < _distance(problem, f - first, y)
        is_nearer |= jnp.any(problem.contracted_fixed_chip >= 0)  # then not all can be moved
        return jnp.where((first > 0) & is_nearer[None], lowered, f)

    return lax.cond(jnp.any(first > 0), begin, lambda f: f, f)


def _used_chips(problem: DeviceProblem, f: Int[Array, "N B"]) -> Bool[Array, "C B"]:
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
