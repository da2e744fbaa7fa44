"""Classifiers as their papers draw them: two columns, fire modules, two streams, points."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxpart.problem.graph import Graph

from .cnn_layers import concat, conv, graph_of, max_pool


def _response_norm(x, size: int = 5):
    """Local response normalisation over neighbouring channels (Krizhevsky et al. 2012)."""
    half = size // 2
    window, pad = (1, 1, 1, size), ((0, 0), (0, 0), (0, 0), (half, size - 1 - half))
    total = lax.reduce_window(jnp.square(x), 0.0, lax.add, window, (1, 1, 1, 1), pad)
    return x * (2.0 + 1e-4 * total) ** -0.75


def alexnet(name: str) -> Graph:
    """AlexNet (Krizhevsky et al., NeurIPS 2012), its two columns apart, 227 x 227."""

    def column(x):
        x = nn.relu(conv(x, 48, 11, 4, pad=0))
        x = max_pool(_response_norm(x), 3, 2)
        x = nn.relu(conv(x, 128, 5))
        return max_pool(_response_norm(x), 3, 2)

    def upper(x):
        x = nn.relu(conv(x, 192))
        x = nn.relu(conv(x, 128))
        return max_pool(x, 3, 2).reshape(1, -1)

    def layers(x):
        both = concat(column(x), column(x))
        rows = concat(*(upper(nn.relu(conv(both, 192))) for _ in range(2)))
        for _ in range(2):
            rows = concat(*(nn.relu(nn.Dense(2048)(rows)) for _ in range(2)))
        return nn.softmax(nn.Dense(1000)(rows))

    return graph_of(name, layers, (1, 227, 227, 3))


def squeezenet(name: str) -> Graph:
    """SqueezeNet 1.1 (Iandola et al. 2016), 224 x 224."""

    def fire(x, squeeze: int, expand: int):
        x = nn.relu(conv(x, squeeze, 1))
        return concat(nn.relu(conv(x, expand, 1)), nn.relu(conv(x, expand, 3)))

    def layers(x):
        x = max_pool(nn.relu(conv(x, 64, 3, 2, pad=0)), 3, 2)
        x = fire(fire(x, 16, 64), 16, 64)
        x = max_pool(x, 3, 2)
        x = fire(fire(x, 32, 128), 32, 128)
        x = max_pool(x, 3, 2)
        x = fire(fire(x, 48, 192), 48, 192)
        x = fire(fire(x, 64, 256), 64, 256)
        return nn.relu(conv(x, 1000, 1)).mean((1, 2))

    return graph_of(name, layers, (1, 224, 224, 3))


def two_stream(name: str) -> Graph:
    """Two-stream CNN-M-2048 (Simonyan & Zisserman, NeurIPS 2014): an image, and 10 flow fields."""

    def stream(x, *, has_second_norm: bool):
        x = max_pool(_response_norm(nn.relu(conv(x, 96, 7, 2, pad=0))), 3, 2)
        x = nn.relu(conv(x, 256, 5, 2, pad=1))
        x = max_pool(_response_norm(x) if has_second_norm else x, 3, 2, 1)
        for _ in range(3):
            x = nn.relu(conv(x, 512))
        x = max_pool(x, 3, 2).reshape(1, -1)
        x = nn.relu(nn.Dense(2048)(nn.relu(nn.Dense(4096)(x))))
        return nn.softmax(nn.Dense(101)(x))

    def layers(image, flow):
        spatial = stream(image, has_second_norm=True)
        return (spatial + stream(flow, has_second_norm=False)) / 2

    return graph_of(name, layers, (1, 224, 224, 3), (1, 224, 224, 20))


def pointnet(name: str) -> Graph:
    """PointNet with both transforms (Qi et al., CVPR 2017): 1024 points to 40 classes."""

    def shared(points, width: int):
        return nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(width)(points)))

    def transform(points, size: int):
        x = shared(shared(shared(points, 64), 128), 1024).max(1)
        x = shared(shared(x, 512), 256)
        return nn.Dense(size * size)(x).reshape(1, size, size) + jnp.eye(size)

    def layers(points):
        x = points @ transform(points, 3)
        x = shared(shared(x, 64), 64)
        x = x @ transform(x, 64)
        x = shared(shared(shared(x, 64), 128), 1024).max(1)
        x = shared(shared(x, 512), 256)
        return nn.log_softmax(nn.Dense(40)(x))

    return graph_of(name, layers, (1, 1024, 3))
