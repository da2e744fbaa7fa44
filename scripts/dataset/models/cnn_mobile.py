"""Classifiers for phones: channel shuffles and ghost features."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .cnn_layers import classes, concat, conv_bn, depthwise, excite, graph_of, max_pool, pooled


def shuffled(x, groups: int = 2):
    """Channels of the groups in turn (Zhang et al., CVPR 2018)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, groups, channels // groups)
    return x.swapaxes(3, 4).reshape(batch, height, width, channels)


def shufflenet_v2(name: str) -> Graph:
    """ShuffleNet V2 1x (Ma et al., ECCV 2018), 224 x 224."""

    def branch(x, width: int, stride: int):
        x = depthwise(conv_bn(x, width, 1), 3, stride, act=None)
        return conv_bn(x, width, 1)

    def layers(x):
        x = max_pool(conv_bn(x, 24, 3, 2), 3, 2, 1)
        for features, repeats in ((116, 4), (232, 8), (464, 4)):
            half = features // 2
            skip = conv_bn(depthwise(x, 3, 2, act=None), half, 1)
            x = shuffled(concat(skip, branch(x, half, 2)))
            for _ in range(repeats - 1):
                kept, worked = jnp.split(x, 2, -1)
                x = shuffled(concat(kept, branch(worked, half, 1)))
        return classes(conv_bn(x, 1024, 1))

    return graph_of(name, layers, (1, 224, 224, 3))


# Kernel, expanded width, width, hidden width of the excitation (0: none), stride (table 7).
_GHOSTS = (
    (3, 16, 16, 0, 1),
    (3, 48, 24, 0, 2),
    (3, 72, 24, 0, 1),
    (5, 72, 40, 20, 2),
    (5, 120, 40, 32, 1),
    (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 480, 112, 120, 1),
    (3, 672, 112, 168, 1),
    (5, 672, 160, 168, 2),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 240, 1),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 240, 1),
)


def ghostnet(name: str) -> Graph:
    """GhostNet 1x (Han et al., CVPR 2020), 224 x 224."""

    def ghost(x, features: int, act):
        x = conv_bn(x, features // 2, 1, act=act)
        return concat(x, depthwise(x, 3, act=act))

    def bottleneck(x, kernel: int, expanded: int, features: int, hidden: int, stride: int):
        y = ghost(x, expanded, nn.relu)
        if stride > 1:
            y = depthwise(y, kernel, stride, act=None)
        if hidden:
            y = excite(y, hidden, gate=nn.hard_sigmoid)
        y = ghost(y, features, None)
        if stride > 1 or x.shape[-1] != features:
            x = conv_bn(depthwise(x, kernel, stride, act=None), features, 1, act=None)
        return x + y

    def layers(x):
        x = conv_bn(x, 16, 3, 2)
        for row in _GHOSTS:
            x = bottleneck(x, *row)
        x = pooled(conv_bn(x, 960, 1))
        return nn.Dense(1000)(nn.relu(nn.Dense(1280)(x)))

    return graph_of(name, layers, (1, 224, 224, 3))
