"""The two solver modes of Xie et al. (MLSys 2022), algorithms 1 and 2, for a batch on the device.

The paper uses a CP solver that decides one node at a time and propagates. Here candidates stay
within the L-natural-convex set of `projection.py`, where propagation is exact. The least and the
greatest partition that agree with all decisions so far are tight bounds on each node, so no draw
leads to a dead end.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.device import DeviceProblem
from jaxpart.methods.labels.projection import (
    bounds,
    close,
    contiguous,
    lower_one,
    on_nodes,
    project,
)

_DRAWN_BYTES = 2**30  # of the scores of nodes that are drawn at once, on a GPU or TPU


@partial(jax.jit, static_argnames="batch")
def sample(
    problem: DeviceProblem,
    key: jax.Array,
    log_probs: Float[Array, "N C"] | Float[Array, "N C B"] | None,
    batch: int,
) -> Int[Array, "N B"]:
    """SAMPLE: visits contracted nodes in random order and draws each chip among the possible ones.

    1. If dataflow is acyclic and no chip may be skipped, one source is put on its lowest chip.
    2. The first node is drawn among all chips that the fixed chips allow, the next among the chips
       that remain possible, and so on.
    3. Nodes are decided in rounds. A round decides as many nodes as all rounds before it together,
       and draws them independently of each other. If draws of a round contradict each other, a
       random half of the candidates moves up to the least partition above the draws, and the other
       half moves down to the greatest one below.

    Uniform draws spread over the chips: the first node splits the module at a random chip, later
    ones split the rest. A walk in program order would reach the last chip after a few dozen nodes,
    because it draws from the one or two chips possible. The samples follow the distribution of
    these draws; it is not uniform over partitions.

    Args:
      problem: padded to N nodes.
      key: the same key gives the same samples.
      log_probs: log-probabilities of the chips of each node, up to a constant per node, the same
        for the whole batch or not; None: uniform. Nodes that must share a chip are drawn with those
        of the first of them. One node order then serves the whole batch.
      batch: B.

    Returns:
      Partitions that keep the rule on edges (see `projection.py`), no-skip, fixed chips and
      colocation, as far as the fixed chips allow it (see `project`). Memory is ignored.
    """
    return sample_lanes(problem, key, jnp.arange(batch), log_probs)


@jax.jit
def sample_lanes(
    problem: DeviceProblem,
    key: jax.Array,
    lane: Int[Array, " B"],
    log_probs: Float[Array, "N C"] | Float[Array, "N C B"] | None = None,
) -> Int[Array, "N B"]:
    """SAMPLE for candidates that are numbered; see `sample`.

    What is drawn for a candidate depends on the key and on its number alone. So several devices can
    share a batch without exchanging anything.

    Args:
      problem: padded to N nodes.
      key: the same for all candidates; the order of the nodes comes from it.
      lane: number of each candidate.
      log_probs: as for `sample`.
    """
    order_key, side_key, draw_key = jax.random.split(key, 3)
    low, high = bounds(problem)
    rows, batch = low.shape[0], lane.shape[0]
    is_real = (jnp.arange(rows) < problem.num_contracted)[:, None]
    position = _random_positions(problem, order_key, None if log_probs is not None else lane)
    lower = jnp.zeros((rows, batch), low.dtype) + low
    upper = _with_first_chip(problem, position, lower, jnp.zeros_like(lower) + high)

    # `close` only raises values. `bound` and `other` are the least partition and minus the greatest
    # one in candidates that move up, minus the greatest and the least one in the others.
    down = _words(side_key, jnp.uint32(0), lane)[0] % 2 == 1
    sign = jnp.where(down, -1, 1).astype(low.dtype)[None]
    bound = jnp.where(down[None], -upper, lower)
    other = jnp.where(down[None], lower, -upper)
    draw = _draw_uniform if log_probs is None else partial(_draw, problem, log_probs)

    def decide(carry):
        decided, stop, bound, other = carry
        chosen = is_real & (position >= decided) & (position < stop)
        ends = bound * sign, -other * sign
        round_key = jax.random.fold_in(draw_key, decided)
        drawn = draw(round_key, lane, chosen, jnp.minimum(*ends), jnp.maximum(*ends))
        bound = close(problem, jnp.where(chosen, drawn * sign, bound), down)
        other = close(problem, jnp.where(chosen, -bound, other), ~down)
        return stop, 2 * stop, bound, other

    def is_open(carry):
        decided, _, bound, other = carry
        return (decided < problem.num_contracted) & jnp.any(is_real & (bound != -other))

    start = (jnp.int32(0), jnp.int32(1), bound, other)
    if problem.tables is None:
        _, _, bound, _ = lax.while_loop(is_open, decide, start)
    else:
        # A static number of rounds. Where all is decided, a round changes nothing.
        rounds = (rows - 1).bit_length() + 1
        _, _, bound, _ = lax.fori_loop(0, rounds, lambda _, carry: decide(carry), start)
    f, _ = contiguous(problem, bound * sign, low, high)
    return on_nodes(problem, f)


@jax.jit
def fix(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """FIX: makes each candidate valid and changes few chips; `project` without its verdict.

    The paper's solver keeps the chip of a node if it is still possible when the walk reaches the
    node. One misplaced node early in the walk then pulls all later ones along. Here the neighbours
    vote on which nodes keep their chips.

    Args:
      problem: padded to N nodes.
      assignment: chips 0..C-1; rows of padding nodes are ignored.
    """
    return project(problem, assignment)[0]


def _words(
    key: jax.Array, row: UInt32[Array, "*shape"], lane: Int[Array, " B"]
) -> list[UInt32[Array, "*shape B"]]:
    """Two random words for each row and candidate: a hash of both, with the key.

    What `jax.random` draws for a batch depends on the size of the batch; this does not.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    rows, lanes = jnp.broadcast_arrays(row[..., None], lane.astype(jnp.uint32))
    # Under `vmap` over rows, the hash wants both of its operands mapped.
    return threefry2x32_p.bind(first, second, rows, lanes + rows * 0)


def _random_positions(
    problem: DeviceProblem, key: jax.Array, lane: Int[Array, " K"] | None
) -> Int[Array, "N K"]:
    """The position of each contracted node in random orders; padding comes last.

    The orders are rotations of one random order. Each alone is uniformly random, and one sort
    suffices.

    Args:
      problem: its contracted nodes are the rows, padded to N.
      key: of the order.
      lane: numbers of the K orders. None: one order for all.
    """
    order_key, shift_key = jax.random.split(key)
    contracted = jnp.arange(problem.padded_nodes)
    random = jax.random.uniform(order_key, contracted.shape)
    rank = jnp.argsort(jnp.argsort(jnp.where(contracted < problem.num_contracted, random, 2.0)))
    lane = jnp.zeros(1, jnp.int32) if lane is None else lane
    words, _ = _words(shift_key, jnp.uint32(0), lane)
    shift = (words % problem.num_contracted.astype(jnp.uint32)).astype(rank.dtype)[None]
    rotated = (rank[:, None] + shift) % problem.num_contracted
    return jnp.where((contracted < problem.num_contracted)[:, None], rotated, contracted[:, None])


def _with_first_chip(
    problem: DeviceProblem,
    position: Int[Array, "N _"],
    lower: Int[Array, "N B"],
    upper: Int[Array, "N B"],
) -> Int[Array, "N B"]:
    """The greatest partition that has one source on its lowest chip, the first source in the order.

    With no skipped chip and acyclic dataflow, some source is on the first chip. With one of these
    rules off, the greatest partition is returned unchanged.

    Args:
      problem: its contracted nodes are the rows, padded to N.
      position: the position of each contracted node in the order, one column per order.
      lower: the least partition.
      upper: the greatest partition.
    """
    rules = problem.config.constraints
    if not (rules.acyclic and rules.no_skip):
        return upper
    is_source = (jnp.arange(upper.shape[0]) < problem.num_contracted).at[problem.pair_to].set(False)
    source = jnp.argmin(jnp.where(is_source[:, None], position, upper.shape[0]), axis=0)
    lane = jnp.arange(upper.shape[1])
    return lower_one(problem, upper, source, lower[source, lane])


def _draw_uniform(
    key: jax.Array,
    lane: Int[Array, " B"],
    chosen: Bool[Array, "N B"],
    least: Int[Array, "N B"],
    most: Int[Array, "N B"],
) -> Int[Array, "N B"]:
    """Draws a chip from `least` to `most` for each contracted node, chosen or not.

    All chips are equally likely, to 2^-20. N is even: a hash serves two nodes.
    """
    words = jnp.concatenate(_words(key, jnp.arange(least.shape[0] // 2, dtype=jnp.uint32), lane))
    # The product fits: there are at most 2^12 chips (`problem/limits.py`).
    chips = (most.astype(jnp.int32) - least + 1).astype(jnp.uint32)
    return least + ((words >> 12) * chips >> 20).astype(least.dtype)


def _draw(
    problem: DeviceProblem,
    log_probs: Float[Array, "N C"] | Float[Array, "N C B"],
    key: jax.Array,
    lane: Int[Array, " B"],
    chosen: Bool[Array, "N 1"],
    least: Int[Array, "N B"],
    most: Int[Array, "N B"],
) -> Int[Array, "N B"]:
    """Draws a chip from `least` to `most` for each chosen contracted node.

    The distribution is that of its first node.
    """
    rows = least.shape[0]
    first_node = jnp.full(rows, rows - 1).at[problem.contraction].min(jnp.arange(rows))
    chosen_first = jnp.argsort(~chosen[:, 0])

    def drawn_chip(v):
        # Finite scores: a chip of probability 0 is still better than an impossible one.
        scores = jnp.maximum(log_probs[first_node[v]], jnp.finfo(log_probs.dtype).min)
        scores = scores[:, None] if scores.ndim == 1 else scores
        chip = jnp.arange(scores.shape[0])[:, None]
        scores = jnp.where((chip >= least[v][None]) & (chip <= most[v][None]), scores, -jnp.inf)
        cumulative = jnp.cumsum(jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True)), axis=0)
        words, _ = _words(key, v.astype(jnp.uint32), lane)
        threshold = (words >> 8).astype(cumulative.dtype) * 2.0**-24
        is_below = cumulative <= (threshold * cumulative[-1])[None]
        chosen_chip = jnp.sum(is_below, axis=0).astype(least.dtype)
        # Rounding may put the threshold at the end of the sum.
        return jnp.clip(chosen_chip, least[v], most[v])

    if problem.tables is None:

        def draw(i, drawn):
            v = chosen_first[i]
            return drawn.at[v].set(drawn_chip(v))

        return lax.fori_loop(0, jnp.sum(chosen), draw, least)
    # All nodes at once, in parts whose scores fit the memory; those not chosen are not used.
    config = problem.config
    node_bytes = 4 * config.num_chips * least.shape[1] * config.problems
    part = max(1, _DRAWN_BYTES // node_bytes)
    return lax.map(drawn_chip, jnp.arange(rows), batch_size=min(part, rows))
