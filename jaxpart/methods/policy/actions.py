"""The two action spaces of the policy, and the log-probability of each node's action.

A sample changes a base: the order of the contracted nodes, or their positions in the module. It is
drawn in two stages.

1. The first stage draws what all nodes of the sample share (`Shared`): the size of the step, the
   distance along each direction (z), and the stretch of nodes that may move. Only the centre of the
   stretch is learned.
2. The second stage draws the action of each node independently, given the first stage.

Shared draws make correlated moves, which independent noise per node never finds. Given the first
stage, the probability of a sample is a product over nodes. The policy gradient is therefore exact,
and PPO can clip the ratio of probabilities node by node (`ppo.py`).

In all shapes, N is the number of rows: one per contracted node, plus padding. B is the number of
samples in a batch, C of chips, R of directions.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.methods.policy.network import MoveProposal

Decoder = Literal["orders", "labels"]

_SMALLEST_REACH = 4.0  # places between the centre of a stretch and its ends
_RAGGED_RANGE = (0.08, 0.6)  # least and greatest `Shared.ragged`, chips
_SMALLEST_ORDER_STEP = 2.0  # places
_PADDING_LOGIT = -1e9  # finite, so that gradients are finite
_STEP_DIVISOR = 8.0  # the largest step is the number of nodes, or of chips, over this


@struct.dataclass
class Shared:
    """The first stage: what all nodes of a sample share."""

    z: Float[Array, "R B"]  # distance along each direction, in steps
    step: Float[Array, " B"]  # size of a step: places of an order, or chips
    ragged: Float[
        Array, " B"
    ]  # standard deviation of a label if `MoveProposal.log_spread` is 0, chips
    moves: Bool[Array, "N B"]  # whether a node may move
    centre: Int[Array, " B"]  # row of the contracted node at the centre of the stretch
    is_centred: Bool[Array, " B"]  # a stretch may move; otherwise all nodes may move, or none


@struct.dataclass
class Actions:
    """Both stages of a batch: enough to compute the probability of each action."""

    shared: Shared
    taken: Float[Array, "N B"]  # orders: the move, in steps; labels: the chip


@struct.dataclass
class LogProbs:
    """Log-probabilities of each node's action and of each centre; 0 where nothing was drawn."""

    node: Float[Array, "N B"]
    centre: Float[Array, " B"]


def _column_roles(batch: int) -> tuple[Bool[Array, "1 B"], Bool[Array, "1 B"]]:
    """Which samples of a batch may move all nodes, and which may move none.

    The column b of a sample decides:

    - b = 0: no node may move, so the sample keeps the base;
    - b % 4 == 1: all nodes may move;
    - any other b: the nodes of one stretch may move.

    For orders, the column also decides the direction of the sweep: forward if b is even, backward
    if it is odd (`swept` in `methods/orders/search.py`). So a sample that may move all nodes is
    always swept backward.
    """
    everywhere = (jnp.arange(batch) % 4 == 1)[None]
    is_first = (jnp.arange(batch) == 0)[None]
    return everywhere, is_first


@partial(jax.jit, static_argnames=("batch", "decoder"))
def draw_shared(
    key: jax.Array,
    base: Float[Array, " N"],
    moves: MoveProposal,
    count: Int[Array, ""],
    chips: int,
    *,
    batch: int,
    decoder: Decoder,
) -> Shared:
    """Draws the first stage of a batch.

    The reach of a stretch, the size of a step and `Shared.ragged` are log-uniform. For orders, a
    step within a stretch is at most the reach of the stretch.

    Args:
      key: same key, same draws.
      base: [N] the place of each contracted node in the order, for both decoders.
      moves: the network's proposal for the decoder.
      count: number of contracted nodes, without padding.
      chips: C.
      batch: B.
      decoder: decides whether a step is in places or in chips.

    Returns:
      The shared draws. The nodes that may move follow `_column_roles`.
    """
    keys = jax.random.split(key, 5)
    places = jnp.argsort(jnp.argsort(base))
    real = (jnp.arange(base.shape[0]) < count)[:, None]
    chance = jnp.cumsum(jnp.exp(_focus(moves, real[:, 0])))
    threshold = jax.random.uniform(keys[0], (batch,)) * chance[-1]
    centre = jnp.clip(jnp.searchsorted(chance, threshold, side="right"), 0, count - 1)
    count = count.astype(jnp.float32)
    growth = jnp.maximum(count / _SMALLEST_REACH, 1.0)
    reach = _SMALLEST_REACH * growth ** jax.random.uniform(keys[1], (1, batch))
    everywhere, is_first = _column_roles(batch)
    is_near = jnp.abs(places[:, None] - places[centre][None]) <= reach
    may_move = real & (everywhere | is_near) & ~is_first
    exponent = jax.random.uniform(keys[2], (batch,))
    if decoder == "orders":
        largest = jnp.maximum(count / _STEP_DIVISOR, 2 * _SMALLEST_ORDER_STEP)
        step = _SMALLEST_ORDER_STEP * (largest / _SMALLEST_ORDER_STEP) ** exponent
        step = jnp.where(everywhere[0], step, jnp.minimum(step, reach[0]))
    else:
        largest = jnp.maximum(chips / _STEP_DIVISOR, 1.0)
        step = 0.1 * (largest / 0.1) ** exponent
    low, high = _RAGGED_RANGE
    ragged = low * (high / low) ** jax.random.uniform(keys[3], (batch,))
    z = jax.random.normal(keys[4], (moves.directions.shape[1], batch))
    return Shared(z, step, ragged, may_move, centre, ~(everywhere | is_first)[0])


def _focus(moves: MoveProposal, real: Bool[Array, " N"]) -> Float[Array, " N"]:
    """[N] log-probability of each contracted node to be the centre of a stretch."""
    return jax.nn.log_softmax(jnp.where(real, moves.focus, _PADDING_LOGIT))


def _mean(moves: MoveProposal, shared: Shared) -> Float[Array, "N B"]:
    """[N, B] the mean move of each node, in steps."""
    return moves.shift[:, None] + moves.directions @ shared.z


def order_keys(base: Float[Array, " N"], actions: Actions) -> Float[Array, "B N"]:
    """[B, N] the keys that the actions give, in places.

    Args:
      base: [N] the place of each contracted node in the order.
      actions: of the decoder "orders".

    Returns:
      One key per row; nodes that may not move have their place as key. `order_by` in
      `methods/orders/search.py` sorts the nodes by ascending key, as far as the edges allow.
    """
    shared = actions.shared
    moved = shared.step[None] * actions.taken
    return (base[:, None] + jnp.where(shared.moves, moved, 0.0)).T


def draw_orders(key: jax.Array, moves: MoveProposal, shared: Shared) -> Actions:
    """Draws the second stage for orders: a normal distribution per node.

    Args:
      key: same key, same draws.
      moves: the network's proposal for orders.
      shared: the first stage.

    Returns:
      The actions [N, B], in steps.
    """
    noise = jax.random.normal(key, shared.moves.shape)
    return Actions(shared, _mean(moves, shared) + jnp.exp(moves.log_spread)[:, None] * noise)


def label_log_probs(
    base: Float[Array, " N"], moves: MoveProposal, scores: Float[Array, "N C"], shared: Shared
) -> Float[Array, "N C B"]:
    """Log-probabilities of the chips, given the first stage.

    The distribution of a node is proportional to a normal density about its moved base, taken at
    the middle of each chip, times exp(score of the chip).

    Args:
      base: [N] positions in the module, 0..1.
      moves: the network's proposal for labels.
      scores: [N, C] scores of chips.
      shared: the first stage.

    Returns:
      [N, C, B], normalised over C.
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
    moves: MoveProposal,
    scores: Float[Array, "N C"],
    shared: Shared,
) -> Actions:
    """Draws the second stage for labels.

    Args:
      key: same key, same draws.
      base: [N] positions in the module, 0..1.
      moves: the network's proposal for labels.
      scores: [N, C] scores of chips.
      shared: the first stage.

    Returns:
      The actions [N, B], chips. Nodes that may not move keep the chip of the base.
    """
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
    moves: MoveProposal,
    scores: Float[Array, "N C"],
    actions: Actions,
    real: Bool[Array, " N"],
) -> tuple[LogProbs, Float[Array, ""]]:
    """Log-probabilities of actions, and the entropy of the policy.

    Args:
      decoder: the decoder that drew the actions.
      base: [N] places in the order for orders, positions in the module (0..1) for labels.
      moves: the network's proposal for the decoder.
      scores: [N, C] scores of chips; not used for orders.
      actions: of B samples.
      real: [N] whether a row is a contracted node; otherwise it is padding.

    Returns:
      The log-probabilities; and, in nats, the mean entropy over the nodes that may move plus the
      entropy of the centre. For orders, the entropy of a node leaves out a constant.
    """
    shared = actions.shared
    allowed = shared.moves
    if decoder == "orders":
        log_spread = moves.log_spread[:, None]
        off = (actions.taken - _mean(moves, shared)) / jnp.exp(log_spread)
        log_prob = -0.5 * off**2 - log_spread - 0.5 * jnp.log(2 * jnp.pi)
        entropy = jnp.broadcast_to(log_spread, log_prob.shape)
    else:
        log_prob_of = label_log_probs(base, moves, scores, shared)
        log_prob = lax.platform_dependent(
            log_prob_of, actions.taken.astype(jnp.int32), cpu=_of_chip, default=_of_chip_by_sum
        )
        entropy = -jnp.sum(jnp.exp(log_prob_of) * log_prob_of, axis=1)
    node_entropy = jnp.where(allowed, entropy, 0.0).sum() / jnp.maximum(allowed.sum(), 1)
    focus = _focus(moves, real)
    centre_entropy = -jnp.sum(jnp.where(real, jnp.exp(focus) * focus, 0.0))
    of_centre = lax.platform_dependent(
        focus, shared.centre, cpu=lambda focus, row: focus[row], default=_of_row_by_sum
    )
    centre = jnp.where(shared.is_centred, of_centre, 0.0)
    return LogProbs(jnp.where(allowed, log_prob, 0.0), centre), node_entropy + centre_entropy


def _of_chip(values: Float[Array, "N C B"], chip: Int[Array, "N B"]) -> Float[Array, "N B"]:
    """[N, B] the value of each node's and sample's chip."""
    return jnp.take_along_axis(values, chip[:, None], axis=1)[:, 0]


def _of_chip_by_sum(values: Float[Array, "N C B"], chip: Int[Array, "N B"]) -> Float[Array, "N B"]:
    """`_of_chip`, whose gradient has no scatter (`aggregation.py`)."""
    is_chip = jnp.arange(values.shape[1])[None, :, None] == chip[:, None]
    return jnp.sum(jnp.where(is_chip, values, 0.0), axis=1)


def _of_row_by_sum(values: Float[Array, " N"], row: Int[Array, " B"]) -> Float[Array, " B"]:
    """[B] the value of each sample's row; its gradient has no scatter."""
    is_row = jnp.arange(values.shape[0])[:, None] == row[None]
    return jnp.sum(jnp.where(is_row, values[:, None], 0.0), axis=0)
