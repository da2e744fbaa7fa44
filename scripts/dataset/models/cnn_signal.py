"""Convolutions over time: raw audio."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .cnn_layers import conv, graph_of, total


def causal(x, features: int, dilation: int):
    """A convolution of two taps that sees no future."""
    return conv(x, features, 2, dilation=dilation, pad=(dilation, 0))


def wavenet(name: str) -> Graph:
    """WaveNet (van den Oord et al. 2016): 3 x 10 layers of 64, skips of 256, 4096 samples."""

    def layers(x):
        x = causal(x, 64, 1)
        skips = []
        for layer in range(30):
            filtered, gate = jnp.split(causal(x, 128, 2 ** (layer % 10)), 2, -1)
            y = jnp.tanh(filtered) * nn.sigmoid(gate)
            skips.append(conv(y, 256, 1))
            if layer < 29:
                x = x + conv(y, 64, 1)
        return nn.softmax(conv(nn.relu(conv(nn.relu(total(skips)), 256, 1)), 256, 1))

    return graph_of(name, layers, (1, 4096, 256))
