"""The policy network: attention along the graph's edges, and heads for the two decoders.

All computations are per contracted node, per edge or per (contracted node, chip). No shape of a
weight depends on the number of nodes or chips, so one set of weights serves any graph on any
module. The inputs of chip c are its position (c + 1/2) / C and its features.

The heads start at zero. A fresh network is therefore the prior of the policy: it moves the last
placement along fixed directions and adds noise (`actions.py`). Before there is a placement, the
prior places each contracted node by the load before it in program order. The network learns the
difference from the prior, also for the first placement.

In all shapes, N is the number of rows: one per contracted node, plus padding.

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
from jaxtyping import Array, Float

from jaxpart.methods.policy.aggregation import Ends, Rows, means, read, softmax, sums
from jaxpart.methods.policy.features import BASIS, Features

PLACEMENT = 8  # columns of `rollout.State.seen`, which describes the last placement
_WAVES = 4  # sines, and as many cosines, of the position of a chip
_END_MARGIN = 1e-3  # least distance of the prior's first positions from 0 and 1
_MAX_LOG_SCALE = 1.5  # heads scale noise and fixed directions by e^-this to e^this


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The sizes that determine the shapes of the weights."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    rank: int = 4  # learned directions along which a whole sample is shifted


@struct.dataclass
class MoveProposal:
    """How one decoder changes the last placement, per contracted node.

    A node's mean move is shift + directions @ z, in units of the sample's step. Noise with standard
    deviation exp(log_spread) is added to it: in steps for orders, in units of `Shared.ragged` for
    labels. `actions.py` draws z once per sample, and the noise once per node.
    """

    shift: Float[Array, " N"]
    directions: Float[Array, "N R"]  # the fixed ones (BASIS), then the learned ones
    log_spread: Float[Array, " N"]
    # Logit of each contracted node to be the centre of the stretch that may move.
    focus: Float[Array, " N"]


@struct.dataclass
class Proposal:
    """The network's output: where to start, how to move from there, and scores of chips."""

    # The first placement: position of each contracted node in the module, 0..1.
    first: Float[Array, " N"]
    orders: MoveProposal
    labels: MoveProposal
    scores: Float[Array, "N C"]  # added to the log-probabilities of labels


class PolicyNetwork(nn.Module):
    """The policy network."""

    sizes: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, features: Features, placement: Float[Array, "N 8"]) -> Proposal:
        """Proposes moves away from a placement.

        Args:
          features: of the graph on the module.
          placement: [N, 8] description of the placement to improve (`rollout.State.seen`).

        Returns:
          The proposal; its rows of padding mean nothing.
        """
        width, rank = self.sizes.width, self.sizes.rank
        rows, chips = features.node.shape[0], features.chip.shape[0]
        h = nn.Dense(width)(jnp.concatenate([features.node, placement], axis=1))
        h = h + nn.Dense(width)(features.module)[None]
        gap = (placement[features.pair_to, 0] - placement[features.pair_from, 0])[:, None]
        edges = jnp.concatenate([features.pair, gap], axis=1)
        h = nn.gelu(h)
        for _ in range(self.sizes.layers):
            h = Layer(self.sizes)(h, edges, features)
        h = nn.LayerNorm()(h)

        zero = nn.initializers.zeros
        parts = nn.Dense(2 * (3 + rank + BASIS), kernel_init=zero)(h)
        orders, labels = jnp.split(parts, 2, axis=1)
        chip = nn.gelu(nn.Dense(width)(_chip_inputs(features.chip)))
        keys = nn.Dense(width)(chip)  # [C, width]
        scores = nn.Dense(width, kernel_init=zero)(h) @ keys.T
        assert scores.shape == (rows, chips)
        prior = jnp.clip(features.position, _END_MARGIN, 1 - _END_MARGIN)
        correction = nn.Dense(1, kernel_init=zero)(h)[:, 0]
        return Proposal(
            first=jax.nn.sigmoid(jnp.log(prior) - jnp.log1p(-prior) + correction),
            orders=_moves(orders, features.order_basis),
            labels=_moves(labels, features.label_basis),
            scores=scores,
        )


def propose(
    params: Any, sizes: NetworkConfig, features: Features, placement: Float[Array, "N 8"]
) -> Proposal:
    """Applies the network.

    Args:
      params: weights of the network.
      sizes: of the network.
      features: of the graph on the module.
      placement: [N, 8] description of the placement to improve (`rollout.State.seen`).

    Returns:
      The proposal of the network with these weights.
    """
    proposal = PolicyNetwork(sizes).apply(params, features, placement)
    assert isinstance(proposal, Proposal)
    return proposal


class Layer(nn.Module):
    """One layer of the network.

    It has attention along the edges, attention against the edges, a mean over the nodes that use
    the same weights, a mean over all nodes, and then a feed-forward part.
    """

    sizes: NetworkConfig

    @nn.compact
    def __call__(
        self, h: Float[Array, "N W"], edges: Float[Array, "P D"], features: Features
    ) -> Float[Array, "N W"]:
        """Computes new node embeddings.

        Args:
          h: [N, W] embeddings of N nodes.
          edges: [P, D] inputs of P edges.
          features: of the graph on the module.

        Returns:
          [N, W] embeddings. Those of padding mean nothing, and do not affect the others.
        """
        width = self.sizes.width
        producers, consumers, users, weights = features.ends
        real = features.is_real[:, None]
        x = nn.LayerNorm()(h)
        ahead = _attend(self.sizes, x, edges, producers, consumers)
        back = _attend(self.sizes, x, edges, consumers, producers)
        everywhere = jnp.sum(x * real, axis=0, keepdims=True) / jnp.maximum(jnp.sum(real), 1.0)
        alike = means(read(x, users), weights, weights.shape[0])
        alike = means(read(alike, weights), users, x.shape[0])
        seen = jnp.concatenate([x, ahead, back, alike], axis=1)
        h = h + nn.gelu(nn.Dense(width)(seen) + nn.Dense(width)(everywhere))
        return h + nn.Dense(width)(nn.gelu(nn.Dense(width)(nn.LayerNorm()(h))))


def _attend(
    sizes: NetworkConfig,
    x: Float[Array, "N W"],
    edges: Float[Array, "P D"],
    sources: Ends,
    targets: Ends,
) -> Float[Array, "N W"]:
    """[N, W] mean over each node's sources, weighted by attention; 0 for a node without sources."""
    rows, pairs = x.shape[0], edges.shape[0]
    value = nn.Dense(sizes.width)(x)
    edge = nn.Dense(sizes.width)(edges)
    asking = nn.Dense(sizes.width)(x)
    score = nn.Dense(sizes.heads, use_bias=False)

    def weighted(seen: Array, weights: Array) -> Array:
        by_head = seen.reshape(pairs, sizes.heads, -1) * weights[:, :, None]
        return by_head.reshape(pairs, sizes.width)

    # jraph's annotations allow fewer types than its functions.
    options: Any = {
        "update_edge_fn": lambda edge, sent, received, _: sent["value"] + edge,
        "attention_logit_fn": lambda seen, sent, received, _: score(
            nn.leaky_relu(seen + received["asking"], 0.2)
        ),
        "attention_normalize_fn": lambda logits, segment_ids, num_segments: softmax(
            logits, segment_ids, num_segments
        ),
        "attention_reduce_fn": weighted,
        "aggregate_edges_for_nodes_fn": sums,
        "update_node_fn": lambda nodes, sent, received, _: received,
    }
    graph: dict[str, Any] = {
        "nodes": {"value": Rows(value), "asking": Rows(asking)},
        "edges": edge,
        "senders": sources,
        "receivers": targets,
        "globals": None,
        "n_node": jnp.array([rows]),
        "n_edge": jnp.array([pairs]),
    }
    attended: Any = jraph.GraphNetwork(**options)(jraph.GraphsTuple(**graph)).nodes
    return attended


def _moves(parts: Float[Array, "N K"], basis: Float[Array, "N R"]) -> MoveProposal:
    """One decoder's moves from its head [N, K]; each node scales the fixed directions `basis`."""
    shift, spread, focus = parts[:, 0], parts[:, 1], parts[:, 2]
    scale, learned = parts[:, 3 : 3 + BASIS], parts[:, 3 + BASIS :]
    fixed = basis * jnp.exp(_MAX_LOG_SCALE * jnp.tanh(scale)) / BASIS**0.5
    return MoveProposal(
        shift, jnp.concatenate([fixed, learned], axis=1), _MAX_LOG_SCALE * jnp.tanh(spread), focus
    )


def _chip_inputs(chip: Float[Array, "C H"]) -> Float[Array, "C K"]:
    """[C, K] inputs of each chip: its features, its position, and waves of the position."""
    count = chip.shape[0]
    at = ((jnp.arange(count) + 0.5) / count)[:, None]
    angle = jnp.pi * at * 2.0 ** jnp.arange(_WAVES)[None]
    return jnp.concatenate([chip, at, jnp.sin(angle), jnp.cos(angle)], axis=1)
