"""Published models of any size, for studies of growth. They are traced on demand, not shipped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .recurrent_cells import LSTM, tokens, unroll
from .tracing import floats, trace

_WIDTH, _HEADS, _LENGTH = 512, 8, 128  # _LENGTH in tokens


class _Layer(nn.Module):
    """A decoder layer: masked self-attention and a feed-forward part, each with a residual.

    `residual` is the weight of the residual.
    """

    residual: float

    @nn.compact
    def __call__(self, x: Any) -> Any:
        shape = (_LENGTH, _HEADS, _WIDTH // _HEADS)
        q, k, v = (nn.Dense(_WIDTH, name=name)(x).reshape(shape) for name in ("q", "k", "v"))
        scores = jnp.einsum("qhd,khd->hqk", q, k) * shape[-1] ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones((_LENGTH, _LENGTH), bool)), scores, -1e9)
        mixed = jnp.einsum("hqk,khd->qhd", nn.softmax(scores), v).reshape(_LENGTH, _WIDTH)
        x = nn.LayerNorm()(x * self.residual + nn.Dense(_WIDTH)(mixed))
        return nn.LayerNorm()(
            x * self.residual + nn.Dense(_WIDTH)(nn.relu(nn.Dense(4 * _WIDTH)(x)))
        )


class _Decoder(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.layers):
            x = _Layer((2 * self.layers) ** 0.25)(x)
        return x


def _deep_decoder(layers: int) -> Graph:
    """DeepNet (Wang et al. 2022) of width 512 on 128 tokens; the paper has up to 1,000 layers."""
    return trace(f"decoder-{layers}", _Decoder(layers), floats(_LENGTH, _WIDTH))


class _CharacterModel(nn.Module):
    @nn.compact
    def __call__(self, characters: Any) -> list[Any]:
        table, output = nn.Embed(256, 512), nn.Dense(256)
        xs = [table(character) for character in characters]
        for _ in range(3):
            xs, _ = unroll(LSTM(512), xs)
        return [nn.softmax(output(x)) for x in xs]


def _unrolled_lstm(steps: int) -> Graph:
    """A character model of three LSTM layers (Karpathy et al. 2015), with a softmax per step."""
    return trace(f"lstm-{steps}", _CharacterModel(), tokens(steps))


FAMILIES: dict[str, Callable[[int], Graph]] = {
    "decoder": _deep_decoder,
    "lstm": _unrolled_lstm,
}


def grown(family: str, nodes: int) -> Graph:
    """Traces the smallest model of a family that has enough nodes.

    Args:
      family: a name in `FAMILIES`.
      nodes: least number of nodes.
    """
    build = FAMILIES[family]
    # Each repetition adds the same number of nodes; the ends have a fixed number.
    few, more = _nodes(family, 4), _nodes(family, 8)
    each = (more - few) // 4
    return build(4 + max(0, -(-(nodes - few) // each)))


@functools.cache
def _nodes(family: str, repetitions: int) -> int:
    """Number of nodes of a model with this number of layers or steps."""
    return len(FAMILIES[family](repetitions).nodes)
