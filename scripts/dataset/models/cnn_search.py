"""Classifiers that were searched or drawn: DARTS' cells, random wiring."""

from __future__ import annotations

import random

import flax.linen as nn

from jaxpart.problem.graph import Graph

from .cnn_layers import classes, concat, conv, conv_bn, graph_of, max_pool, norm, total

# Operation and input of the two edges into each of four nodes: DARTS_V2, the second-order cells
# (Liu et al., ICLR 2019, figures 4 and 5).
_NORMAL = (
    (("sep", 0), ("sep", 1)),
    (("sep", 0), ("sep", 1)),
    (("sep", 1), ("skip", 0)),
    (("skip", 0), ("dil", 2)),
)
_REDUCTION = (
    (("pool", 0), ("pool", 1)),
    (("skip", 2), ("pool", 1)),
    (("pool", 0), ("skip", 2)),
    (("skip", 2), ("pool", 1)),
)


def _halved(x, features: int):
    """Stride 2 by two 1 x 1 convolutions one pixel apart."""
    x = nn.relu(x)
    parts = [conv(y, features // 2, 1, 2, bias=False) for y in (x, x[:, 1:, 1:])]
    return norm(concat(*parts))


def _separable(x, features: int, stride: int = 1, dilation: int = 1):
    """ReLU, depthwise and pointwise convolution, batch normalisation."""
    x = nn.relu(x)
    channels = x.shape[-1]
    x = conv(x, channels, 3, stride, groups=channels, dilation=dilation, bias=False)
    return conv_bn(x, features, 1, act=None)


def _edge(operation: str, x, features: int, stride: int):
    match operation:
        case "sep":
            return _separable(_separable(x, features, stride), features)
        case "dil":
            return _separable(x, features, stride, dilation=2)
        case "pool":
            return max_pool(x, 3, stride, 1)
    return _halved(x, features) if stride > 1 else x


def _cell(older, old, features: int, *, halves: bool, after_halving: bool):
    """A cell of DARTS on the outputs of the two cells before it."""
    if after_halving:
        older = _halved(older, features)
    else:
        older = conv_bn(nn.relu(older), features, 1, act=None)
    states = [older, conv_bn(nn.relu(old), features, 1, act=None)]
    for edges in _REDUCTION if halves else _NORMAL:
        strides = [2 if halves and k < 2 else 1 for _, k in edges]
        states.append(
            total(
                _edge(operation, states[k], features, stride)
                for (operation, k), stride in zip(edges, strides, strict=True)
            )
        )
    return concat(*states[2:])


def darts(name: str) -> Graph:
    """DARTS, second order, on ImageNet: 14 cells of 48 channels, 224 x 224."""

    def layers(x):
        older = conv_bn(conv_bn(x, 24, 3, 2), 48, 3, 2, act=None)
        old = conv_bn(nn.relu(older), 48, 3, 2, act=None)
        features, after_halving = 48, True
        for number in range(14):
            halves = number in (4, 9)
            features *= 2 if halves else 1
            new = _cell(older, old, features, halves=halves, after_halving=after_halving)
            older, old, after_halving = old, new, halves
        return classes(old)

    return graph_of(name, layers, (1, 224, 224, 3))


def small_world(nodes: int, degree: int, probability: float, seed: int) -> list[list[int]]:
    """Inputs of each node of a Watts-Strogatz graph, edges directed from lower to higher."""
    draw = random.Random(seed).random
    neighbours: list[set[int]] = [set() for _ in range(nodes)]

    def toggle(u: int, v: int) -> None:
        neighbours[u] ^= {v}
        neighbours[v] ^= {u}

    for step in range(1, degree // 2 + 1):
        for u in range(nodes):
            toggle(u, (u + step) % nodes)
    for step in range(1, degree // 2 + 1):
        for u in range(nodes):
            free = [w for w in range(nodes) if w != u and w not in neighbours[u]]
            if draw() < probability:
                toggle(u, (u + step) % nodes)
                toggle(u, free[int(draw() * len(free))])
    return [sorted(u for u in neighbours[v] if u < v) for v in range(nodes)]


class _Mixed(nn.Module):
    """A sum of inputs with positive weights that are learned."""

    @nn.compact
    def __call__(self, xs):
        if len(xs) == 1:
            return xs[0]
        weights = nn.sigmoid(self.param("weights", nn.initializers.zeros, (len(xs),)))
        return total(x * weights[k] for k, x in enumerate(xs))


def randwire(name: str) -> Graph:
    """RandWire-WS(4, 0.75), small regime, 78 channels (Xie et al., ICCV 2019), 224 x 224."""

    def stage(x, features: int, seed: int):
        inputs = small_world(32, 4, 0.75, seed)
        made = []
        for sources in inputs:
            y = _Mixed()([made[u] for u in sources]) if sources else x
            made.append(_separable(y, features, 1 if sources else 2))
        read = {u for sources in inputs for u in sources}
        last = [made[v] for v in range(len(made)) if v not in read]
        return total(last) / len(last)

    def layers(x):
        x = conv_bn(x, 39, 3, 2)
        x = conv_bn(x, 78, 3, 2, act=None)
        for seed, features in enumerate((78, 156, 312)):
            x = stage(x, features, seed)
        return classes(conv_bn(nn.relu(x), 1280, 1))

    return graph_of(name, layers, (1, 224, 224, 3))
