"""The two action spaces, and the probability of what was done, node by node.

A sample is drawn in two stages. What all its nodes share comes first: how far to step, how far
along each direction (z), and which stretch of nodes may move at all. Of this only the centre of the
stretch is learned. Then every node moves on its own, given the first stage. Shared draws make
correlated moves, which independent noise per node never finds; and conditional on them, the
probability of a sample is a product over nodes, so that the policy gradient is exact and a ratio
can be clipped node by node.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpart.methods.policy.network import Moves

Decoder = Literal["orders", "labels"]

_SMALLEST_STRETCH = 4.0  # nodes
_RAGGED = (0.08, 0.6)  # spread of labels about their mean, in chips
_SMALLEST_STEP = 2.0  # of an order, in places
_NEVER = -1e9  # finite, for the sake of gradients
_LARGEST_SHARE = 8.0  # a step goes over one part in so many of the graph or the module


@struct.dataclass
class Shared:
    """What all nodes of a sample share; B samples."""

    z: Float[Array, "R B"]
    step: Float[Array, " B"]  # places of an order, or chips
    ragged: Float[Array, " B"]  # spread of single labels, chips
    moves: Bool[Array, "N B"]  # the nodes that may move
    centre: Int[Array, " B"]  # the contracted node in the middle of these
    is_centred: Bool[Array, " B"]  # or else all may move, or none


@struct.dataclass
class Actions:
    """What was done, with all that is needed to say how probable it was."""

    shared: Shared
    taken: Float[Array, "N B"]  # orders: the move in steps; labels: the chip


@struct.dataclass
class LogProbs:
    """Of what each node did, and of the centre of each stretch; 0 where nothing was drawn."""

    node: Float[Array, "N B"]
    centre: Float[Array, " B"]


@partial(jax.jit, static_argnames=("batch", "decoder"))
def draw_shared(
    key: jax.Array,
    base: Float[Array, " N"],
    moves: Moves,
    count: Int[Array, ""],
    chips: int,
    *,
    batch: int,
    decoder: Decoder,
) -> Shared:
    """The first stage. One sample in four may move all nodes, the others a stretch of the base.

    Args:
      base: the place of each contracted node in the order.
      moves: what the network proposes.
      count: real blocks.
      chips: C.
    """
    keys = jax.random.split(key, 5)
    places = jnp.argsort(jnp.argsort(base))
    real = (jnp.arange(base.shape[0]) < count)[:, None]
    chance = jnp.cumsum(jnp.exp(_focus(moves, real[:, 0])))
    threshold = jax.random.uniform(keys[0], (batch,)) * chance[-1]
    centre = jnp.clip(jnp.searchsorted(chance, threshold, side="right"), 0, count - 1)
    count = count.astype(jnp.float32)
    growth = jnp.maximum(count / _SMALLEST_STRETCH, 1.0)
    reach = _SMALLEST_STRETCH * growth ** jax.random.uniform(keys[1], (1, batch))
    everywhere = (jnp.arange(batch) % 4 == 1)[None]
    is_near = jnp.abs(places[:, None] - places[centre][None]) <= reach
    # The first sample keeps the base as it is.
    is_first = (jnp.arange(batch) == 0)[None]
    may_move = real & (everywhere | is_near) & ~is_first
    exponent = jax.random.uniform(keys[2], (batch,))
    if decoder == "orders":
        largest = jnp.maximum(count / _LARGEST_SHARE, 2 * _SMALLEST_STEP)
        step = _SMALLEST_STEP * (largest / _SMALLEST_STEP) ** exponent
        step = jnp.where(everywhere[0], step, jnp.minimum(step, reach[0]))
    else:
        largest = jnp.maximum(chips / _LARGEST_SHARE, 1.0)
        step = 0.1 * (largest / 0.1) ** exponent
    low, high = _RAGGED
    ragged = low * (high / low) ** jax.random.uniform(keys[3], (batch,))
    z = jax.random.normal(keys[4], (moves.directions.shape[1], batch))
    return Shared(z, step, ragged, may_move, centre, ~(everywhere | is_first)[0])


def _focus(moves: Moves, real: Bool[Array, " N"]) -> Float[Array, " N"]:
    """Log-probability of each contracted node to be a centre."""
    return jax.nn.log_softmax(jnp.where(real, moves.focus, _NEVER))


def _mean(moves: Moves, shared: Shared) -> Float[Array, "N B"]:
    return moves.shift[:, None] + moves.directions @ shared.z


def order_keys(base: Float[Array, " N"], actions: Actions) -> Float[Array, "B N"]:
    """The priorities that the actions give, in places; nodes run in ascending order of them."""
    shared = actions.shared
    moved = shared.step[None] * actions.taken
    return (base[:, None] + jnp.where(shared.moves, moved, 0.0)).T


def draw_orders(key: jax.Array, moves: Moves, shared: Shared) -> Actions:
    """The second stage, for orders: a normal distribution per node."""
    noise = jax.random.normal(key, shared.moves.shape)
    return Actions(shared, _mean(moves, shared) + jnp.exp(moves.log_spread)[:, None] * noise)


def label_log_probs(
    base: Float[Array, " N"], moves: Moves, scores: Float[Array, "N C"], shared: Shared
) -> Float[Array, "N C B"]:
    """Log-probabilities of the chips, given what is shared.

    A discretised normal distribution about the moved base, times what the scores of chips say.
    """
    chips = scores.shape[1]
    mean = base[:, None] * chips + shared.step[None] * _mean(moves, shared)  # in chips
    spread = shared.ragged[None] * jnp.exp(moves.log_spread)[:, None]
    mean = jnp.clip(mean, 0.0, chips * 1.0)
    middle = (jnp.arange(chips) + 0.5)[None, :, None]
    logits = -0.5 * ((mean[:, None] - middle) / spread[:, None]) ** 2 + scores[:, :, None]
    return jax.nn.log_softmax(logits, axis=1)


def draw_labels(
    key: jax.Array,
    base: Float[Array, " N"],
    moves: Moves,
    scores: Float[Array, "N C"],
    shared: Shared,
) -> Actions:
    """The second stage, for labels: nodes that may not move keep the base's chip."""
    chips = scores.shape[1]
    cumulative = jnp.cumsum(jnp.exp(label_log_probs(base, moves, scores, shared)), axis=1)
    threshold = jax.random.uniform(key, shared.moves.shape) * cumulative[:, -1]
    chip = jnp.sum(cumulative <= threshold[:, None], axis=1)
    kept = jnp.floor(base * chips)[:, None]
    taken = jnp.where(shared.moves, chip, kept)
    return Actions(shared, jnp.clip(taken, 0, chips - 1).astype(jnp.float32))


def log_probs(
    decoder: Decoder,
    base: Float[Array, " N"],
    moves: Moves,
    scores: Float[Array, "N C"],
    actions: Actions,
    real: Bool[Array, " N"],
) -> tuple[LogProbs, Float[Array, ""]]:
    """Of what was done; and the mean entropy of the nodes that may move plus that of the centre."""
    shared = actions.shared
    allowed = shared.moves
    if decoder == "orders":
        log_spread = moves.log_spread[:, None]
        off = (actions.taken - _mean(moves, shared)) / jnp.exp(log_spread)
        log_prob = -0.5 * off**2 - log_spread - 0.5 * jnp.log(2 * jnp.pi)
        entropy = jnp.broadcast_to(log_spread, log_prob.shape)
    else:
        log_prob_of = label_log_probs(base, moves, scores, shared)
        chip = actions.taken.astype(jnp.int32)
        log_prob = jnp.take_along_axis(log_prob_of, chip[:, None], axis=1)[:, 0]
        entropy = -jnp.sum(jnp.exp(log_prob_of) * log_prob_of, axis=1)
    share = jnp.where(allowed, entropy, 0.0).sum() / jnp.maximum(allowed.sum(), 1)
    focus = _focus(moves, real)
    spread = -jnp.sum(jnp.where(real, jnp.exp(focus) * focus, 0.0))
    centre = jnp.where(shared.is_centred, focus[shared.centre], 0.0)
    return LogProbs(jnp.where(allowed, log_prob, 0.0), centre), share + spread
