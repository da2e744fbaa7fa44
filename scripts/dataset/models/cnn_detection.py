"""Detectors of objects and poses: heads on several scales, pyramids, stages of two branches."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .cnn_layers import (
    concat,
    conv,
    conv_bn,
    depthwise,
    excite,
    graph_of,
    max_pool,
    norm,
    total,
    upsample,
)


def _leaky(x):
    return nn.leaky_relu(x, 0.1)


def yolo_v3(name: str) -> Graph:
    """YOLOv3 (Redmon & Farhadi 2018): 416 x 416, 80 classes, 3 scales."""

    def block(x, features: int, kernel: int = 3, stride: int = 1):
        return conv_bn(x, features, kernel, stride, act=_leaky)

    def alternate(x, features: int):
        for _ in range(2):
            x = block(block(x, features, 1), 2 * features)
        return block(x, features, 1)

    def layers(x):
        x = block(x, 32)
        scales = []
        for stage, repeats in enumerate((1, 2, 8, 8, 4)):
            features = 64 << stage
            x = block(x, features, 3, 2)
            for _ in range(repeats):
                x = x + block(block(x, features // 2, 1), features)
            scales.append(x)
        found, lower = [], None
        for features, x in zip((512, 256, 128), reversed(scales[2:]), strict=True):
            if lower is not None:
                x = concat(upsample(block(lower, features, 1), 2), x)
            lower = alternate(x, features)
            found.append(conv(block(lower, 2 * features), 255, 1))
        return found

    return graph_of(name, layers, (1, 416, 416, 3))


class _Unit(nn.Module):
    """Channels scaled to length 1, then each by a factor that is learned (ParseNet)."""

    @nn.compact
    def __call__(self, x):
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        return x / length * self.param("scale", nn.initializers.ones, (x.shape[-1],))


def ssd300(name: str) -> Graph:
    """SSD300 on VGG-16 (Liu et al., ECCV 2016): 91 classes (COCO), 6 scales."""

    def several(x, features: int, repeats: int):
        for _ in range(repeats):
            x = nn.relu(conv(x, features))
        return x

    def extra(x, features: int, stride: int):
        x = nn.relu(conv(x, features // 2, 1))
        return nn.relu(conv(x, features, 3, stride, pad=1 if stride > 1 else 0))

    def layers(x):
        for features, repeats in ((64, 2), (128, 2)):
            x = max_pool(several(x, features, repeats), 2, 2)
        x = nn.max_pool(several(x, 256, 3), (2, 2), (2, 2), "SAME")  # 75 pixels to 38
        x = several(x, 512, 3)
        scales = [_Unit()(x)]
        x = max_pool(several(max_pool(x, 2, 2), 512, 3), 3, 1, 1)
        x = nn.relu(conv(x, 1024, 3, dilation=6))
        scales.append(nn.relu(conv(x, 1024, 1)))
        for features, stride in ((512, 2), (256, 2), (256, 1), (256, 1)):
            scales.append(extra(scales[-1], features, stride))
        boxes = (4, 6, 6, 6, 4, 4)
        return [
            [
                conv(x, count * size).reshape(1, -1, size)
                for x, count in zip(scales, boxes, strict=True)
            ]
            for size in (91, 4)
        ]

    return graph_of(name, layers, (1, 300, 300, 3))


# Expansion, kernel, width, repeats, first stride: EfficientNet-B0 (Tan & Le, ICML 2019, table 1).
_B0 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def _inverted(x, expansion: int, kernel: int, features: int, stride: int):
    """An inverted bottleneck with squeeze and excitation."""
    wide = x.shape[-1] * expansion
    y = conv_bn(x, wide, 1, act=nn.swish) if expansion > 1 else x
    y = depthwise(y, kernel, stride, act=nn.swish)
    y = excite(y, max(x.shape[-1] // 4, 1), act=nn.swish)
    y = conv_bn(y, features, 1, act=None)
    return x + y if y.shape == x.shape else y


class _Fused(nn.Module):
    """Inputs weighed by positive weights that sum to one, then a separable convolution."""

    @nn.compact
    def __call__(self, *xs):
        weights = nn.relu(self.param("weights", nn.initializers.ones, (len(xs),)))
        weights = weights / (weights.sum() + 1e-4)
        mixed = total(x * weights[k] for k, x in enumerate(xs))
        return norm(_separable(nn.swish(mixed), xs[0].shape[-1]))


def _separable(x, features: int):
    """Depthwise, then pointwise convolution."""
    channels = x.shape[-1]
    return conv(conv(x, channels, groups=channels, bias=False), features, 1)


def _pyramid(levels):
    """One BiFPN layer: down from the coarsest of five levels, then up again."""
    inner = [levels[-1]]
    for x in reversed(levels[:-1]):
        inner.insert(0, _Fused()(x, upsample(inner[0], 2)))
    made = [inner[0]]
    for k in range(1, len(levels)):
        finer = max_pool(made[-1], 3, 2, 1)
        own = (levels[k],) if k == len(levels) - 1 else (levels[k], inner[k])
        made.append(_Fused()(*own, finer))
    return made


class _Head(nn.Module):
    """Three separable convolutions and a predictor; levels share them, but no normalisation."""

    outputs: int

    @nn.compact
    def __call__(self, levels):
        width = levels[0].shape[-1]
        sizes = (width, width, width, self.outputs)
        pairs = [
            (
                nn.Conv(width, (3, 3), feature_group_count=width, use_bias=False),
                nn.Conv(size, (1, 1)),
            )
            for size in sizes
        ]
        found = []
        for x in levels:
            for depth, pointwise in pairs[:-1]:
                x = nn.swish(norm(pointwise(depth(x))))
            depth, pointwise = pairs[-1]
            found.append(pointwise(depth(x)))
        return found


def efficientdet_d0(name: str) -> Graph:
    """EfficientDet-D0 (Tan et al., CVPR 2020): 512 x 512, 90 classes, 5 levels."""

    def layers(x):
        x = conv_bn(x, 32, 3, 2, act=nn.swish)
        features = []
        for expansion, kernel, width, repeats, stride in _B0:
            for number in range(repeats):
                x = _inverted(x, expansion, kernel, width, 1 if number else stride)
            features.append(x)
        tops = [features[k] for k in (2, 4, 6)]
        levels = [conv_bn(x, 64, 1, act=None) for x in tops]
        levels.append(max_pool(conv_bn(tops[-1], 64, 1, act=None), 3, 2, 1))
        levels.append(max_pool(levels[-1], 3, 2, 1))
        for _ in range(3):
            levels = _pyramid(levels)
        return _Head(9 * 90)(levels), _Head(9 * 4)(levels)

    return graph_of(name, layers, (1, 512, 512, 3))


def openpose(name: str) -> Graph:
    """OpenPose on VGG-19, 6 stages (Cao et al., CVPR 2017): 368 x 368, 18 joints, 19 limbs."""

    def stage(x, features: int, outputs: int):
        if features:  # later stages: 7 x 7
            for _ in range(5):
                x = nn.relu(conv(x, features, 7))
            x = nn.relu(conv(x, features, 1))
        else:
            for _ in range(3):
                x = nn.relu(conv(x, 128))
            x = nn.relu(conv(x, 512, 1))
        return conv(x, outputs, 1)

    def layers(x):
        for width, repeats in ((64, 2), (128, 2), (256, 4)):
            for _ in range(repeats):
                x = nn.relu(conv(x, width))
            x = max_pool(x, 2, 2)
        for width in (512, 512, 256, 128):
            x = nn.relu(conv(x, width))
        seen = x
        for number in range(6):
            limbs, joints = (stage(seen, 128 if number else 0, size) for size in (38, 19))
            seen = concat(limbs, joints, x)
        return limbs, joints

    return graph_of(name, layers, (1, 368, 368, 3))
