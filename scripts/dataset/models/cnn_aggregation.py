"""Classifiers that keep or join features of several depths and resolutions."""

from __future__ import annotations

import flax.linen as nn

from jaxpart.problem.graph import Graph

from .cnn_layers import classes, concat, conv, conv_bn, graph_of, max_pool, norm, total, upsample


def _basic(x, features: int, stride: int = 1, residual=None):
    """A basic residual block (He et al., CVPR 2016)."""
    y = conv_bn(conv_bn(x, features, 3, stride), features, act=None)
    return nn.relu(y + (x if residual is None else residual))


def _tree(x, levels: int, features: int, stride: int, children=(), *, has_level_root=False):
    """A tree of residual blocks whose outputs their roots aggregate (Yu et al., figure 3)."""
    bottom = max_pool(x, stride, stride) if stride > 1 else x
    if has_level_root:
        children = (*children, bottom)
    if levels > 1:
        left = _tree(x, levels - 1, features, stride)
        return _tree(left, levels - 1, features, 1, (*children, left))
    residual = bottom
    if x.shape[-1] != features:
        residual = conv_bn(bottom, features, 1, act=None)
    left = _basic(x, features, stride, residual)
    right = _basic(left, features)
    return conv_bn(concat(right, left, *children), features, 1)


def dla34(name: str) -> Graph:
    """DLA-34 (deep layer aggregation, Yu et al., CVPR 2018), 224 x 224."""

    def layers(x):
        x = conv_bn(conv_bn(conv_bn(x, 16, 7), 16), 32, 3, 2)
        x = _tree(x, 1, 64, 2)
        x = _tree(x, 2, 128, 2, has_level_root=True)
        x = _tree(x, 2, 256, 2, has_level_root=True)
        x = _tree(x, 1, 512, 2, has_level_root=True)
        return classes(x)

    return graph_of(name, layers, (1, 224, 224, 3))


def _bottleneck(x, width: int):
    """A bottleneck block (He et al., CVPR 2016) to four times the width."""
    y = conv_bn(conv_bn(conv_bn(x, width, 1), width), 4 * width, 1, act=None)
    if x.shape[-1] != 4 * width:
        x = conv_bn(x, 4 * width, 1, act=None)
    return nn.relu(x + y)


def _exchanged(branches):
    """Each resolution sums all of them (Wang et al., figure 3)."""
    widths = [x.shape[-1] for x in branches]

    def to_resolution(i: int, j: int):
        x = branches[j]
        if i < j:
            return upsample(conv_bn(x, widths[i], 1, act=None), 2 ** (j - i))
        for step in range(j, i):
            is_last = step == i - 1
            features, act = (widths[i], None) if is_last else (widths[j], nn.relu)
            x = conv_bn(x, features, 3, 2, act=act)
        return x

    resolutions = range(len(branches))
    return [nn.relu(total(to_resolution(i, j) for j in resolutions)) for i in resolutions]


def hrnet_w18_small(name: str) -> Graph:
    """HRNet-W18-C-Small-v1 (Wang et al., TPAMI 2020), 224 x 224."""

    def layers(x):
        x = conv_bn(conv_bn(x, 64, 3, 2), 64, 3, 2)
        branches = [_bottleneck(x, 32)]
        for stage in range(1, 4):
            coarse = conv_bn(branches[-1], 16 << stage, 3, 2)
            if stage == 1:
                branches[0] = conv_bn(branches[0], 16)
            branches.append(coarse)
            branches = [_basic(_basic(x, x.shape[-1]), x.shape[-1]) for x in branches]
            branches = _exchanged(branches)
        x = _bottleneck(branches[0], 32)
        for stage, branch in enumerate(branches[1:], 1):
            x = nn.relu(norm(conv(x, 128 << stage, 3, 2))) + _bottleneck(branch, 32 << stage)
        return classes(nn.relu(norm(conv(x, 2048, 1))))

    return graph_of(name, layers, (1, 224, 224, 3))
