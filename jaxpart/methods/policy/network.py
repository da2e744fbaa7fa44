"""The network: attention over the graph's edges in both directions, and heads for two decoders.

Everything is per node, per edge or per (node, chip); no weight depends on the number of nodes or
chips, so that one set of weights serves any graph on any module. Chips enter by where they stand,
(c + 1/2) / C, and what they are.

The heads start at zero. With fresh weights the policy is then its prior: it shifts the last
placement (at first: by the load before each node in program order) along fixed directions and adds
noise (`rollout`). What is learned is the difference, the first placement included.

Graph attention: Velickovic et al. (ICLR 2018), with the dynamic scores of Brody et al. (ICLR 2022).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.methods.policy.features import BASIS, Features

PLACEMENT = 8  # columns of what the network is told of the last placement
_WAVES = 4
_EDGE = 1e-3  # how near to either end of the module the prior places a contracted node
_SPREAD = 1.5  # the most that a head may scale noise, as a power of e


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What fixes the shapes of the weights."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    rank: int = 4  # learned directions that a whole sample shares


@struct.dataclass
class Moves:
    """How one decoder changes the last placement, per contracted node; z is drawn once per sample.

    A sample's move is shift + directions z + spread * noise, in units of the sample's step.
    """

    shift: Float[Array, " N"]
    directions: Float[Array, "N R"]
    log_spread: Float[Array, " N"]
    focus: Float[
        Array, " N"
    ]  # log-weight of each contracted node to be the centre of what may move


@struct.dataclass
class Proposal:
    """What the network says: where to start, how to move from there, and scores of chips."""

    first: Float[
        Array, " N"
    ]  # where each contracted node stands in the module, 0..1, before any placement
    orders: Moves
    labels: Moves
    scores: Float[Array, "N C"]


class PolicyNetwork(nn.Module):
    """The policy network."""

    sizes: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, features: Features, placement: Float[Array, "N 8"]) -> Proposal:
        """Proposes moves away from a placement.

        Args:
          features: of the graph on the module.
          placement: per contracted node, of the placement to improve (`rollout.State.seen`).
        """
        width, rank = self.sizes.width, self.sizes.rank
        rows, chips = features.node.shape[0], features.chip.shape[0]
        h = nn.Dense(width)(jnp.concatenate([features.node, placement], axis=1))
        h = h + nn.Dense(width)(features.module)[None]
        gap = (placement[features.pair_to, 0] - placement[features.pair_from, 0])[:, None]
        graph = jraph.GraphsTuple(
            nodes=nn.gelu(h),
            edges=jnp.concatenate([features.pair, gap], axis=1),
            senders=features.pair_from,
            receivers=features.pair_to,
            globals=None,
            n_node=jnp.array([rows]),
            n_edge=jnp.array([features.pair_from.shape[0]]),
        )
        real = features.is_real[:, None]
        for _ in range(self.sizes.layers):
            graph = graph._replace(nodes=Layer(self.sizes)(graph, real, features))
        h = nn.LayerNorm()(graph.nodes)

        zero = nn.initializers.zeros
        parts = nn.Dense(2 * (3 + rank + BASIS), kernel_init=zero)(h)
        orders, labels = jnp.split(parts, 2, axis=1)
        chip = nn.gelu(nn.Dense(width)(_chip_inputs(features.chip)))
        keys = nn.Dense(width)(chip)  # [C, width]
        scores = nn.Dense(width, kernel_init=zero)(h) @ keys.T
        assert scores.shape == (rows, chips)
        prior = jnp.clip(features.position, _EDGE, 1 - _EDGE)
        turn = nn.Dense(1, kernel_init=zero)(h)[:, 0]
        return Proposal(
            first=jax.nn.sigmoid(jnp.log(prior) - jnp.log1p(-prior) + turn),
            orders=_moves(orders, features.order_basis),
            labels=_moves(labels, features.label_basis),
            scores=scores,
        )


def propose(
    params: Any, sizes: NetworkConfig, features: Features, placement: Float[Array, "N 8"]
) -> Proposal:
    """What the network with these weights says."""
    proposal = PolicyNetwork(sizes).apply(params, features, placement)
    assert isinstance(proposal, Proposal)
    return proposal


class Layer(nn.Module):
    """Attention along and against the edges, users of the same weights, a view of all; a block."""

    sizes: NetworkConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, real: Float[Array, "N 1"], features: Features
    ) -> Float[Array, "N W"]:
        """The new node embeddings; those of padding mean nothing and reach no other."""
        width = self.sizes.width
        # jraph's annotations allow more than what `PolicyNetwork` puts there.
        h: Any = graph.nodes
        edges: Any = graph.edges
        senders: Any = graph.senders
        receivers: Any = graph.receivers
        x: Any = nn.LayerNorm()(h)
        ahead = _attend(self.sizes, x, edges, senders, receivers)
        back = _attend(self.sizes, x, edges, receivers, senders)
        everywhere = jnp.sum(x * real, axis=0, keepdims=True) / jnp.maximum(jnp.sum(real), 1.0)
        alike = _mean_of(features.use_node, features.use_weight, x, len(features.use_weight))
        alike = _mean_of(features.use_weight, features.use_node, alike, x.shape[0])
        seen = jnp.concatenate([x, ahead, back, alike], axis=1)
        h = h + nn.gelu(nn.Dense(width)(seen) + nn.Dense(width)(everywhere))
        return h + nn.Dense(width)(nn.gelu(nn.Dense(width)(nn.LayerNorm()(h))))


def _attend(
    sizes: NetworkConfig,
    x: Float[Array, "N W"],
    edges: Float[Array, "P D"],
    sources: Int[Array, " P"],
    targets: Int[Array, " P"],
) -> Float[Array, "N W"]:
    """Each node's mean over its neighbours on one side, weighted by attention; 0 without any."""
    rows, pairs = x.shape[0], sources.shape[0]
    value = nn.Dense(sizes.width)(x)
    seen = value[sources] + nn.Dense(sizes.width)(edges)
    asked = nn.leaky_relu(seen + nn.Dense(sizes.width)(x)[targets], 0.2)
    logits = nn.Dense(sizes.heads, use_bias=False)(asked)
    weights: Any = jraph.segment_softmax(logits, targets, num_segments=rows)
    by_head = seen.reshape(pairs, sizes.heads, -1) * weights[:, :, None]
    return jraph.segment_sum(by_head.reshape(pairs, sizes.width), targets, num_segments=rows)


def _mean_of(
    sources: Int[Array, " U"], targets: Int[Array, " U"], x: Float[Array, "S W"], count: int
) -> Float[Array, "T W"]:
    """Each target's mean over its sources; 0 without any."""
    total = jraph.segment_sum(x[sources], targets, num_segments=count)
    number = jraph.segment_sum(jnp.ones(len(sources)), targets, num_segments=count)
    return total / jnp.maximum(number, 1.0)[:, None]


def _moves(parts: Float[Array, "N M"], basis: Float[Array, "N R"]) -> Moves:
    """The learned part on top of the fixed directions; each of these is scaled node by node."""
    shift, spread, focus = parts[:, 0], parts[:, 1], parts[:, 2]
    scale, learned = parts[:, 3 : 3 + BASIS], parts[:, 3 + BASIS :]
    fixed = basis * jnp.exp(_SPREAD * jnp.tanh(scale)) / BASIS**0.5
    return Moves(
        shift, jnp.concatenate([fixed, learned], axis=1), _SPREAD * jnp.tanh(spread), focus
    )


def _chip_inputs(chip: Float[Array, "C H"]) -> Float[Array, "C K"]:
    """What a chip is, and waves of where it stands."""
    count = chip.shape[0]
    at = ((jnp.arange(count) + 0.5) / count)[:, None]
    sharing = jnp.pi * at * 2.0 ** jnp.arange(_WAVES)[None]
    return jnp.concatenate([chip, at, jnp.sin(sharing), jnp.cos(sharing)], axis=1)
