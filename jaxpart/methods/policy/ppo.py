"""Proximal policy optimisation (Schulman et al., 2017), with every node an agent of its own.

The reward is one for the whole sample: T_baseline / T. It is set against the rest of the batch,
which is drawn from the same state: with dozens of samples per state a learned value is no better,
so that there is no value head (Kool et al., 2019; Shao et al., 2024). The ratio of probabilities is
clipped node by node: over a thousand nodes the ratio of the whole sample would be clipped always.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxpart.methods.policy.actions import Actions, Decoder, LogProbs, log_probs
from jaxpart.methods.policy.features import Features
from jaxpart.methods.policy.network import NetworkConfig
from jaxpart.methods.policy.rollout import Params, State, proposed


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """How to learn."""

    learning_rate: float = 5e-4
    epochs: int = 2  # passes over one step's batches
    minibatch: int = 3  # batches per step of the optimiser
    clip: float = 0.2
    entropy: float = 1e-2
    most_gradient: float = 1.0  # norm


@struct.dataclass
class Transition:
    """A batch of samples from one state."""

    features: Features
    state: State
    actions: Actions
    log_prob: LogProbs  # under the weights that drew them
    advantage: Float[Array, " B"]


@struct.dataclass
class Report:
    """Of one gradient."""

    loss: Float[Array, ""]
    entropy: Float[Array, ""]
    divergence: Float[Array, ""]  # approximate KL per node
    clipped: Float[Array, ""]  # share of nodes


def optimizer(settings: PPOConfig) -> optax.GradientTransformation:
    """Adam behind a clipped gradient."""
    return optax.chain(
        optax.clip_by_global_norm(settings.most_gradient), optax.adam(settings.learning_rate)
    )


@jax.jit
def advantages(rewards: Float[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, " B"]:
    """What each sample is worth beside the others of its batch: mean 0, spread 1.

    By rank, with weight on the best (the utilities of natural evolution strategies, Wierstra et
    al., 2014): a search keeps the best of a batch, and the mean of one is best where nothing moves.
    Equal rewards are worth the same; what is not valid is worse than all that is. Zeros where all
    are equal.
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
    settings: PPOConfig,
    decoder: Decoder,
) -> tuple[Float[Array, ""], Report]:
    """The clipped surrogate, negated, less the entropy bonus; the mean over samples and nodes.

    The mean is over a sample's nodes first: each sample counts once, whether it moved four or all.
    """
    proposal, order, position = proposed(params, sizes, transition.features, transition.state)
    is_order = decoder == "orders"
    moves = proposal.orders if is_order else proposal.labels
    base = order if is_order else position
    real = transition.features.is_real > 0
    now, entropy = log_probs(decoder, base, moves, proposal.scores, transition.actions, real)
    shared, was = transition.actions.shared, transition.log_prob
    allowed = shared.moves
    gain, ratio = _surrogate(now.node - was.node, transition.advantage[None], settings.clip)
    difference = now.node - was.node
    size = jnp.maximum(jnp.sum(allowed, axis=0), 1)
    surrogate = jnp.mean(jnp.sum(jnp.where(allowed, gain, 0.0), axis=0) / size)
    gain, _ = _surrogate(now.centre - was.centre, transition.advantage, settings.clip)
    surrogate += jnp.mean(jnp.where(shared.is_centred, gain, 0.0))
    loss = -surrogate - settings.entropy * entropy
    count = jnp.maximum(jnp.sum(allowed), 1)
    report = Report(
        loss,
        entropy,
        jnp.sum(jnp.where(allowed, ratio - 1 - difference, 0.0)) / count,
        jnp.sum(allowed & (jnp.abs(ratio - 1) > settings.clip)) / count,
    )
    return loss, report


def _surrogate(difference: Array, advantage: Array, clip: float) -> tuple[Array, Array]:
    """The clipped objective of log-probabilities that changed by `difference`, and the ratio."""
    ratio = jnp.exp(jnp.clip(difference, -5.0, 5.0))
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.minimum(ratio * advantage, bounded * advantage), ratio


@partial(jax.jit, static_argnames=("sizes", "settings", "decoder"))
def gradient(
    params: Params,
    transition: Transition,
    sizes: NetworkConfig,
    settings: PPOConfig,
    decoder: Decoder,
) -> tuple[Params, Report]:
    """The gradient of `ppo_loss`, and what it reports."""
    return jax.grad(ppo_loss, has_aux=True)(params, transition, sizes, settings, decoder)


@partial(jax.jit, static_argnames="settings")
def apply_gradients(
    params: Params, opt_state: optax.OptState, gradients: list[Params], settings: PPOConfig
) -> tuple[Params, optax.OptState]:
    """One step of the optimiser along the mean of the gradients."""
    mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *gradients)
    updates, opt_state = optimizer(settings).update(mean, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
