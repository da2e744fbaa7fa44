"""Residual networks whose blocks split: cardinality, scales, kernels chosen by attention."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .cnn_layers import avg_pool, classes, concat, conv_bn, graph_of, max_pool, pooled, total

_BLOCKS = (3, 4, 6, 3)


def _residual_stages(block):
    """ResNet-50 of such blocks: `block(x, width index, stride)` without its shortcut."""

    def layers(x):
        x = max_pool(conv_bn(x, 64, 7, 2), 3, 2, 1)
        for stage, repeats in enumerate(_BLOCKS):
            for number in range(repeats):
                stride = 2 if stage and not number else 1
                y = block(x, stage, stride, number)
                if not number:
                    x = conv_bn(x, 256 << stage, 1, stride, act=None)
                x = nn.relu(x + y)
        return classes(x)

    return layers


def resnext50(name: str) -> Graph:
    """ResNeXt-50 8 x 14d (Xie et al., CVPR 2017), its paths apart (figure 3b), 224 x 224."""

    def block(x, stage: int, stride: int, _: int):
        width = 14 << stage
        paths = (conv_bn(conv_bn(x, width, 1), width, 3, stride) for _ in range(8))
        return conv_bn(concat(*paths), 256 << stage, 1, act=None)

    return graph_of(name, _residual_stages(block), (1, 224, 224, 3))


def res2net50(name: str) -> Graph:
    """Res2Net-50 26w x 4s (Gao et al., TPAMI 2021), 224 x 224."""

    def block(x, stage: int, stride: int, number: int):
        width = 26 << stage
        parts = jnp.split(conv_bn(x, 4 * width, 1), 4, -1)
        scales = [conv_bn(parts[0], width, 3, stride)]
        for part in parts[1:3]:
            # The first block of a stage sees its scales apart.
            seen = part + scales[-1] if number else part
            scales.append(conv_bn(seen, width, 3, stride))
        last = parts[3] if number else avg_pool(parts[3], 3, stride, 1)
        return conv_bn(concat(*scales, last), 256 << stage, 1, act=None)

    return graph_of(name, _residual_stages(block), (1, 224, 224, 3))


def sknet50(name: str) -> Graph:
    """SKNet-50 (Li et al., CVPR 2019): kernels of 3 and 5 (dilated), chosen by channel."""

    def selected(x, width: int, stride: int):
        paths = [conv_bn(x, width, 3, stride, groups=32, dilation=d) for d in (1, 2)]
        hidden = nn.Dense(max(width // 16, 32), use_bias=False)(pooled(total(paths)))
        hidden = nn.relu(nn.BatchNorm(use_running_average=True)(hidden))
        scores = jnp.stack([nn.Dense(width)(hidden) for _ in paths])
        weights = nn.softmax(scores, 0)[:, :, None, None]
        return paths[0] * weights[0] + paths[1] * weights[1]

    def block(x, stage: int, stride: int, _: int):
        width = 128 << stage
        x = selected(conv_bn(x, width, 1), width, stride)
        return conv_bn(x, 256 << stage, 1, act=None)

    return graph_of(name, _residual_stages(block), (1, 224, 224, 3))
