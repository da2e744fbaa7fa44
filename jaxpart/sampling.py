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
from jaxtyping import Array, Float, Int

from jaxpart.device import DeviceProblem
from jaxpart.projection import bounds, close, contiguous, on_nodes, project


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
    other half.

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
    first_node = jnp.full(low.shape[0], low.shape[0] - 1, jnp.int32)
    first_node = first_node.at[problem.block].min(jnp.arange(low.shape[0], dtype=jnp.int32))
    # Real blocks come first in the order. Where no chip may be skipped some source is on the first,
    # so one of them is put there before all.
    rules = problem.switches.constraints
    is_real = jnp.arange(low.shape[0]) < problem.num_blocks
    priority = jnp.where(is_real, jax.random.uniform(order_key, low.shape[:1]), 3.0)
    is_anchored = rules.acyclic and rules.no_skip
    if is_anchored:
        is_source = jnp.ones(low.shape[0], bool).at[problem.pair_to].set(False)
        priority = priority.at[jnp.argmin(jnp.where(is_source, priority, 2.0))].set(-1.0)
    order = jnp.argsort(priority).astype(jnp.int32)
    position = jnp.argsort(order)
    # Both bounds are held so that `close` raises them: in the candidates that move up these are the
    # least partition and minus the greatest, in the others minus the greatest and the least.
    down = jax.random.bernoulli(side_key, 0.5, (batch,))
    sign = jnp.where(down, -1, 1).astype(low.dtype)
    rows = jnp.zeros((low.shape[0], batch), low.dtype)
    bound = rows + jnp.where(down[None], -high, low)
    other = rows + jnp.where(down[None], low, -high)

    def decide(carry):
        start, stop, bound, other = carry

        def draw(i, bound):
            b = order[i]
            ends = bound[b] * sign, -other[b] * sign
            least, most = jnp.minimum(*ends), jnp.maximum(*ends)
            most = jnp.where(is_anchored & (i == 0), least, most)
            key = jax.random.fold_in(draw_key, i)
            chip = _draw(key, log_probs, first_node[b], least, most)
            return bound.at[b].set(chip.astype(bound.dtype) * sign)

        bound = close(problem, lax.fori_loop(start, stop, draw, bound), down)
        is_decided = (position < stop)[:, None]
        other = close(problem, jnp.where(is_decided, -bound, other), ~down)
        return stop, jnp.minimum(2 * stop, problem.num_blocks), bound, other

    def is_open(carry):
        start, stop, bound, other = carry
        return (start < stop) & jnp.any(is_real[:, None] & (bound != -other))

    start = (jnp.int32(0), jnp.int32(1), bound, other)
    _, _, bound, _ = lax.while_loop(is_open, decide, start)
    f, _ = contiguous(problem, bound * sign[None], low, high)
    return on_nodes(problem, f)


@jax.jit
def fix(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """FIX: keeps what can be kept of each candidate and changes little else.

    The paper's solver keeps a node's chip if it is still possible when the walk comes by, so that
    one misplaced node early in the walk drags all after it. Here neighbours vote on what is kept:
    this is `project`, without its verdict.
    """
    return project(problem, assignment)[0]


def _draw(
    key: jax.Array,
    log_probs: Float[Array, "N C"] | Float[Array, "N C B"] | None,
    node: Int[Array, ""],
    least: Int[Array, " B"],
    most: Int[Array, " B"],
) -> Int[Array, " B"]:
    """One chip per candidate, from least to most."""
    least, most = least.astype(jnp.int32), most.astype(jnp.int32)
    if log_probs is None:
        return jax.random.randint(key, least.shape, least, most + 1)
    # A chip of no probability is still better than one that is not possible.
    scores = jnp.maximum(log_probs[node], jnp.finfo(log_probs.dtype).min)
    scores = scores[:, None] if scores.ndim == 1 else scores
    chip = jnp.arange(scores.shape[0])[:, None]
    scores = jnp.where((chip >= least[None]) & (chip <= most[None]), scores, -jnp.inf)
    cumulative = jnp.cumsum(jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True)), axis=0)
    threshold = jax.random.uniform(key, least.shape, cumulative.dtype) * cumulative[-1]
    chosen = jnp.sum(cumulative <= threshold[None], axis=0, dtype=jnp.int32)
    return jnp.clip(chosen, least, most)  # a threshold may be rounded up to the end
