"""Proximal policy optimisation (Schulman et al., 2017), with every node as an agent of its own.

A sample has one reward: `rollout.Task.reference_s` / T, usually T_baseline / T. The reward is
compared with those of the other samples of the batch, which are drawn from the same state. With
dozens of samples per state, a learned value is no better, so there is no value head (Kool et al.,
2019; Shao et al., 2024). The ratio of probabilities is clipped node by node. With a thousand nodes,
the ratio of a whole sample would always be clipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxpart.cost.batch import is_accelerator
from jaxpart.cost.sharding import over_devices
from jaxpart.methods.policy.actions import Actions, Decoder, LogProbs, log_probs
from jaxpart.methods.policy.features import Features
from jaxpart.methods.policy.network import NetworkConfig, Proposal
from jaxpart.methods.policy.rollout import Params, State, proposed
from jaxpart.methods.policy.stacking import together

_MOST_SAMPLES = 128  # whose loss an accelerator computes at a time


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """How PPO learns."""

    learning_rate: float = 5e-4
    epochs: int = 2  # passes over the batches of a training step
    minibatch: int = 3  # batches per step of the optimiser
    clip: float = 0.2  # ratios are clipped to 1 - clip .. 1 + clip
    entropy: float = 1e-2  # weight of the entropy in the loss
    most_gradient: float = 1.0  # gradients are clipped to this norm


@struct.dataclass
class Transition:
    """A batch of B samples drawn from one state, to learn from."""

    features: Features
    state: State
    actions: Actions
    log_prob: LogProbs  # under the weights that drew the samples
    advantage: Float[Array, " B"]


@struct.dataclass
class Report:
    """Statistics of one gradient."""

    loss: Float[Array, ""]
    entropy: Float[Array, ""]  # of the policy, nats (`log_probs`)
    divergence: Float[Array, ""]  # approximate KL divergence per node, from the drawing weights
    clipped: Float[Array, ""]  # share of node actions whose ratio is outside the clipping range


def optimizer(ppo_config: PPOConfig) -> optax.GradientTransformation:
    """Adam on gradients that are clipped by their norm."""
    return optax.chain(
        optax.clip_by_global_norm(ppo_config.most_gradient), optax.adam(ppo_config.learning_rate)
    )


@jax.jit
def advantages(rewards: Float[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, " B"]:
    """The advantage of each sample over the others of its batch: mean 0, standard deviation 1.

    An advantage depends on the rank of the reward, and the best ranks have the most weight (the
    utilities of natural evolution strategies, Wierstra et al., 2014). The reason is that a search
    keeps only the best sample of a batch. The mean reward of a batch would be highest if nothing
    moved.

    Args:
      rewards: [B].
      valid: [B] an invalid sample ranks behind all valid ones.

    Returns:
      [B]. Equal rewards have equal advantages; if all are equal, the advantages are 0.
    """
    rewards = jnp.where(valid, rewards, -jnp.inf)
    better = jnp.sum(rewards[None] > rewards[:, None], axis=1)
    equal = jnp.sum(rewards[None] == rewards[:, None], axis=1)
    rank = better + (equal + 1) / 2  # 1 is the best
    utility = jnp.maximum(jnp.log(rewards.shape[0] / 2 + 1) - jnp.log(rank), 0.0)
    centred = utility - jnp.mean(utility)
    spread = jnp.std(centred)
    return jnp.where(spread > 1e-6, centred / (spread + 1e-12), 0.0)


def ppo_loss(
    params: Params,
    transition: Transition,
    sizes: NetworkConfig,
    ppo_config: PPOConfig,
    decoder: Decoder,
) -> tuple[Float[Array, ""], Report]:
    """The loss of PPO: minus the clipped surrogate, minus the entropy bonus.

    The surrogate of a sample is its mean over the nodes that may move, plus that of the centre. The
    loss has the mean over samples. So each sample has the same weight, however many nodes may move.

    Args:
      params: weights of the network.
      transition: B samples.
      sizes: of the network.
      ppo_config: clipping range and weight of the entropy.
      decoder: that drew the samples.

    Returns:
      The loss, and the statistics.
    """
    made = proposed(params, sizes, transition.features, transition.state)
    return _loss_of(made, transition, ppo_config, decoder)


def _loss_of(
    made: tuple[Proposal, Array, Array],
    transition: Transition,
    ppo_config: PPOConfig,
    decoder: Decoder,
) -> tuple[Float[Array, ""], Report]:
    """`ppo_loss` of what `proposed` gives for the transition's state."""
    proposal, order, position = made
    is_order = decoder == "orders"
    moves = proposal.orders if is_order else proposal.labels
    base = order if is_order else position
    real = transition.features.is_real > 0
    now, entropy = log_probs(decoder, base, moves, proposal.scores, transition.actions, real)
    shared, was = transition.actions.shared, transition.log_prob
    allowed = shared.moves
    gain, ratio = _surrogate(now.node - was.node, transition.advantage[None], ppo_config.clip)
    difference = now.node - was.node
    size = jnp.maximum(jnp.sum(allowed, axis=0), 1)
    surrogate = jnp.mean(jnp.sum(jnp.where(allowed, gain, 0.0), axis=0) / size)
    gain, _ = _surrogate(now.centre - was.centre, transition.advantage, ppo_config.clip)
    surrogate += jnp.mean(jnp.where(shared.is_centred, gain, 0.0))
    loss = -surrogate - ppo_config.entropy * entropy
    count = jnp.maximum(jnp.sum(allowed), 1)
    report = Report(
        loss,
        entropy,
        jnp.sum(jnp.where(allowed, ratio - 1 - difference, 0.0)) / count,
        jnp.sum(allowed & (jnp.abs(ratio - 1) > ppo_config.clip)) / count,
    )
    return loss, report


def _surrogate(difference: Array, advantage: Array, clip: float) -> tuple[Array, Array]:
    """PPO's clipped objective and the ratio, for a `difference` of log-probabilities."""
    ratio = jnp.exp(jnp.clip(difference, -5.0, 5.0))
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.minimum(ratio * advantage, bounded * advantage), ratio


def gradient(
    params: Params,
    transition: Transition,
    sizes: NetworkConfig,
    ppo_config: PPOConfig,
    decoder: Decoder,
    part: int | None = None,
) -> tuple[Params, Report]:
    """The gradient of `ppo_loss` by `params`, and the statistics.

    Several devices share whole parts, so that the gradient does not depend on their number. They
    exchange the mean of their gradients and statistics, and nothing else.

    Args:
      params: weights of the network.
      transition: B samples.
      sizes: of the network.
      ppo_config: clipping range and weight of the entropy.
      decoder: that drew the samples.
      part: samples whose loss is computed at a time; divides B. The means over the parts are
        returned. None: all at once.
    """
    drawn = (transition.actions, transition.log_prob, transition.advantage)
    arguments = (params, transition.features, transition.state, drawn)
    parts = 1 if part is None else transition.advantage.shape[0] // part
    return over_devices(
        gradient_of,
        parts,
        GRADIENT_AXES,
        arguments,
        sizes=sizes,
        ppo_config=ppo_config,
        decoder=decoder,
        part=part,
    )


GRADIENT_AXES = (None, None, None, -1)  # of the samples in the arguments of `gradient_of`


@partial(jax.jit, static_argnames=("sizes", "ppo_config", "decoder", "part"))
def gradient_of(
    params: Params,
    features: Features,
    state: State,
    drawn: tuple[Actions, LogProbs, Array],
    *,
    sizes: NetworkConfig,
    ppo_config: PPOConfig,
    decoder: Decoder,
    part: int | None,
) -> tuple[Params, Report]:
    """`gradient` on one device, of the last three fields of a transition."""
    if part is None or part == drawn[2].shape[0]:
        transition = Transition(features, state, *drawn)
        return jax.grad(ppo_loss, has_aux=True)(params, transition, sizes, ppo_config, decoder)
    made, pull = jax.vjp(lambda params: proposed(params, sizes, features, state), params)

    def in_parts(leaf: Array) -> Array:  # candidates come last
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], -1, part), -2, 0)

    def of(drawn: tuple[Actions, LogProbs, Array]) -> tuple[Any, Report]:
        samples = Transition(features, state, *drawn)
        return jax.grad(_loss_of, has_aux=True)(made, samples, ppo_config, decoder)

    # The network has seen the state once, whatever the number of parts, and learns once from it.
    found = lax.map(of, jax.tree.map(in_parts, drawn))
    change, report = jax.tree.map(partial(jnp.mean, axis=0), found)
    return pull(change)[0], report


def gradients(
    params: Params,
    transitions: Sequence[Transition],
    sizes: NetworkConfig,
    ppo_config: PPOConfig,
    decoder: Decoder,
    part: int | None = None,
) -> tuple[Params, list[Report]]:
    """The sum of the `gradient` of several transitions, and the statistics of each, in one call.

    Args:
      params: weights of the network.
      transitions: of graphs of one bucket, with B samples each.
      sizes: of the network.
      ppo_config: as for `gradient`.
      decoder: likewise.
      part: likewise.
    """
    features, state = tuple(t.features for t in transitions), tuple(t.state for t in transitions)
    drawn = tuple((t.actions, t.log_prob, t.advantage) for t in transitions)
    parts = 1 if part is None else transitions[0].advantage.shape[0] // part
    whole, reports = over_devices(
        gradient_of_several,
        parts,
        GRADIENT_AXES,
        (params, features, state, drawn),
        sizes=sizes,
        ppo_config=ppo_config,
        decoder=decoder,
        part=part,
    )
    return whole, list(reports)


@partial(jax.jit, static_argnames=("sizes", "ppo_config", "decoder", "part"))
def gradient_of_several(
    params: Params,
    features: tuple[Features, ...],
    state: tuple[State, ...],
    drawn: tuple[tuple[Actions, LogProbs, Array], ...],
    **static: Any,
) -> tuple[Params, tuple[Report, ...]]:
    """`gradients` on one device."""
    one = partial(gradient_of, params, **static)
    each, reports = jax.vmap(one)(*map(together, (features, state, drawn)))
    whole = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)
    return whole, tuple(jax.tree.map(lambda leaf, k=k: leaf[k], reports) for k in range(len(drawn)))


def part_for(batch: int) -> int | None:
    """The samples whose loss is computed at a time: `part_of` them; on a CPU all (None)."""
    return part_of(batch) if is_accelerator() else None


def part_of(batch: int) -> int:
    """The samples whose loss an accelerator computes at a time: a divisor of `batch`.

    XLA's compiler takes 50 s for 128 samples of BERT-large on an H100, and minutes for 256: it
    unrolls a reduction over chips.
    """
    return max(part for part in range(1, min(batch, _MOST_SAMPLES) + 1) if batch % part == 0)


@partial(jax.jit, static_argnames=("ppo_config", "count"))
def apply_gradients(
    params: Params,
    opt_state: optax.OptState,
    gradients: list[Params],
    ppo_config: PPOConfig,
    count: int | None = None,
) -> tuple[Params, optax.OptState]:
    """Takes one step of the optimiser along the mean of the gradients.

    Args:
      params: weights of the network.
      opt_state: state of `optimizer(ppo_config)`.
      gradients: one or more.
      ppo_config: settings of the optimiser.
      count: of how many gradients these are the sums; None: one each.

    Returns:
      The new weights and the new state of the optimiser.
    """
    number = len(gradients) if count is None else count
    mean = jax.tree.map(lambda *parts: sum(parts) / number, *gradients)
    updates, opt_state = optimizer(ppo_config).update(mean, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
