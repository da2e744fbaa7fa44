"""The two solver modes of Xie et al. (MLSys 2022), algorithms 1 and 2, for a batch on the device.

Theirs is a CP solver that decides one node at a time and propagates; ours stays within the
L-natural-convex set of `projection`, where propagation is exact: the least and the greatest
partition under what is decided bound each node tightly, so no draw can lead to a dead end.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.device import DeviceProblem
from jaxpart.methods.labels.projection import bounds, close, contiguous, on_nodes, project


@partial(jax.jit, static_argnames="batch")
def sample(
    problem: DeviceProblem,
    key: jax.Array,
    log_probs: Float[Array, "N C"] | Float[Array, "N C B"] | None,
    batch: int,
) -> Int[Array, "N B"]:
    """SAMPLE: visits the nodes in random order and draws each chip from those still possible.

    The first node is drawn among all chips that pins leave, the next among what that leaves, and so
    on (one source is put on the first chip before, where none may be skipped). A round decides as
    many nodes as all before it together, without looking at each other; where they contradict each
    other, they move up to the least partition above them in half of the candidates, and down in the
    other half. With `log_probs`, one order serves the whole batch.

    Uniform draws spread over the chips (the first node splits the module at a random chip, later
    ones split what is left), where a walk in program order that draws from the one or two chips
    possible would be through the module after a few dozen nodes. It is the distribution of such
    draws, not the uniform one over partitions.

    Args:
      problem: padded to N nodes.
      key: same key, same answer.
      log_probs: log-probabilities of the chips of each node, up to a constant per node, shared by
        the batch or not; uniform if None. Nodes that must share a chip are drawn by the first.
      batch: B.

    Returns:
      Partitions that keep dataflow, span, no-skip, pins and colocation (as far as pins allow any,
      see `project`). Memory is not looked at.
    """
    order_key, side_key, draw_key = jax.random.split(key, 3)
    low, high = bounds(problem)
    rows = low.shape[0]
    is_real = (jnp.arange(rows) < problem.num_contracted)[:, None]
    position = _random_positions(problem, order_key, batch if log_probs is None else 1)
    lower = jnp.zeros((rows, batch), low.dtype) + low
    upper = _with_first_chip(problem, position, lower, jnp.zeros_like(lower) + high)

    # Both bounds are held so that `close` raises them: in the candidates that move up these are the
    # least partition and minus the greatest, in the others minus the greatest and the least.
    down = jax.random.bernoulli(side_key, 0.5, (batch,))
    sign = jnp.where(down, -1, 1).astype(low.dtype)[None]
    bound = jnp.where(down[None], -upper, lower)
    other = jnp.where(down[None], lower, -upper)
    draw = _draw_uniform if log_probs is None else partial(_draw, problem, log_probs)

    def decide(carry):
        decided, stop, bound, other = carry
        chosen = is_real & (position >= decided) & (position < stop)
        ends = bound * sign, -other * sign
        round_key = jax.random.fold_in(draw_key, decided)
        drawn = draw(round_key, chosen, jnp.minimum(*ends), jnp.maximum(*ends))
        bound = close(problem, jnp.where(chosen, drawn * sign, bound), down)
        other = close(problem, jnp.where(chosen, -bound, other), ~down)
        return stop, 2 * stop, bound, other

    def is_open(carry):
        decided, _, bound, other = carry
        return (decided < problem.num_contracted) & jnp.any(is_real & (bound != -other))

    start = (jnp.int32(0), jnp.int32(1), bound, other)
    _, _, bound, _ = lax.while_loop(is_open, decide, start)
    f, _ = contiguous(problem, bound * sign, low, high)
    return on_nodes(problem, f)


@jax.jit
def fix(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """FIX: keeps what can be kept of each candidate and changes little else.

    The paper's solver keeps a node's chip if it is still possible when the walk comes by, so that
    one misplaced node early in the walk drags all after it. Here neighbours vote on what is kept:
    this is `project`, without its verdict.
    """
    return project(problem, assignment)[0]


def _random_positions(problem: DeviceProblem, key: jax.Array, count: int) -> Int[Array, "N M"]:
    """Where each contracted node stands in each of several random orders; padding last.

    The orders are rotations of one: each by itself is uniformly random, at the price of one sort.
    """
    order_key, shift_key = jax.random.split(key)
    contracted = jnp.arange(problem.padded_nodes)
    random = jax.random.uniform(order_key, contracted.shape)
    rank = jnp.argsort(jnp.argsort(jnp.where(contracted < problem.num_contracted, random, 2.0)))
    shift = jax.random.randint(shift_key, (1, count), 0, problem.num_contracted)
    rotated = (rank[:, None] + shift) % problem.num_contracted
    return jnp.where((contracted < problem.num_contracted)[:, None], rotated, contracted[:, None])


def _with_first_chip(
    problem: DeviceProblem,
    position: Int[Array, "N _"],
    lower: Int[Array, "N B"],
    upper: Int[Array, "N B"],
) -> Int[Array, "N B"]:
    """The greatest partition with one source, the first in the order, on its lowest chip.

    Where no chip may be skipped and dataflow is acyclic, some source is on the first.
    """
    rules = problem.config.constraints
    if not (rules.acyclic and rules.no_skip):
        return upper
    is_source = (jnp.arange(upper.shape[0]) < problem.num_contracted).at[problem.pair_to].set(False)
    source = jnp.argmin(jnp.where(is_source[:, None], position, upper.shape[0]), axis=0)
    lane = jnp.arange(upper.shape[1])
    anchored = upper.at[source, lane].set(lower[source, lane])
    return -close(problem, -anchored, jnp.ones(upper.shape[1], bool))


def _draw_uniform(
    key: jax.Array,
    chosen: Bool[Array, "N B"],
    least: Int[Array, "N B"],
    most: Int[Array, "N B"],
) -> Int[Array, "N B"]:
    """A chip from least to most for each contracted node, chosen or not."""
    low, high = least.astype(jnp.int32), most.astype(jnp.int32)
    return jax.random.randint(key, least.shape, low, high + 1).astype(least.dtype)


def _draw(
    problem: DeviceProblem,
    log_probs: Float[Array, "N C"] | Float[Array, "N C B"],
    key: jax.Array,
    chosen: Bool[Array, "N 1"],
    least: Int[Array, "N B"],
    most: Int[Array, "N B"],
) -> Int[Array, "N B"]:
    """A chip from least to most for each chosen contracted node, by the distribution of its first
    node.
    """
    rows = least.shape[0]
    first_node = jnp.full(rows, rows - 1).at[problem.contraction].min(jnp.arange(rows))
    contracted = jnp.argsort(~chosen[:, 0])  # the chosen ones first

    def draw(i, drawn):
        b = contracted[i]
        # A chip of no probability is still better than one that is not possible.
        scores = jnp.maximum(log_probs[first_node[b]], jnp.finfo(log_probs.dtype).min)
        scores = scores[:, None] if scores.ndim == 1 else scores
        chip = jnp.arange(scores.shape[0])[:, None]
        scores = jnp.where((chip >= least[b][None]) & (chip <= most[b][None]), scores, -jnp.inf)
        cumulative = jnp.cumsum(jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True)), axis=0)
        threshold = jax.random.uniform(jax.random.fold_in(key, b), least.shape[1:])
        is_below = cumulative <= (threshold * cumulative[-1])[None]
        chosen_chip = jnp.sum(is_below, axis=0).astype(least.dtype)
        # A threshold may be rounded up to the end.
        return drawn.at[b].set(jnp.clip(chosen_chip, least[b], most[b]))

    return lax.fori_loop(0, jnp.sum(chosen), draw, least)
