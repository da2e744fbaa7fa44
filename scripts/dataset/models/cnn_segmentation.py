"""Dense prediction: U-Net and its nested form, stacked hourglasses, super-resolution."""

from __future__ import annotations

import flax.linen as nn

from jaxpart.problem.graph import Graph

from .cnn_layers import (
    concat,
    conv,
    graph_of,
    max_pool,
    norm,
    total,
    upsample,
)


def _twice(x, features: int, *, pad: int):
    """Two 3 x 3 convolutions."""
    for _ in range(2):
        x = nn.relu(conv(x, features, pad=pad))
    return x


def _doubled(x, features: int):
    """Up-convolution: 2 x 2, transposed."""
    return nn.ConvTranspose(features, (2, 2), (2, 2), padding="VALID")(x)


def unet(name: str) -> Graph:
    """U-Net (Ronneberger et al., MICCAI 2015): 572 x 572 x 1 to 388 x 388 x 2."""

    def layers(x):
        kept = []
        for depth in range(4):
            kept.append(_twice(x, 64 << depth, pad=0))
            x = max_pool(kept[-1], 2, 2)
        x = _twice(x, 1024, pad=0)
        for skip in reversed(kept):
            x = _doubled(x, skip.shape[-1])
            border = (skip.shape[1] - x.shape[1]) // 2
            skip = skip[:, border:-border, border:-border]
            x = _twice(concat(skip, x), x.shape[-1], pad=0)
        return conv(x, 2, 1)

    return graph_of(name, layers, (1, 572, 572, 1))


def unet_nested(name: str) -> Graph:
    """UNet++ with deep supervision (Zhou et al., DLMIA 2018), 96 x 96."""

    def layers(x):
        rows: list[list] = []
        for depth in range(5):
            x = _twice(max_pool(rows[-1][0], 2, 2) if depth else x, 32 << depth, pad=1)
            rows.append([x])
            for d in reversed(range(depth)):
                up = _doubled(rows[d + 1][-1], 32 << d)
                rows[d].append(_twice(concat(*rows[d], up), 32 << d, pad=1))
        masks = [nn.sigmoid(conv(y, 1, 1)) for y in rows[0][1:]]
        return total(masks) / len(masks)

    return graph_of(name, layers, (1, 96, 96, 3))


def hourglass(name: str) -> Graph:
    """Stacked hourglass of 2 (Newell et al., ECCV 2016): 256 x 256 to 16 joints."""

    def residual(x, features: int = 256):
        y = conv(nn.relu(norm(x)), features // 2, 1)
        y = conv(nn.relu(norm(y)), features // 2)
        y = conv(nn.relu(norm(y)), features, 1)
        return y + (x if x.shape[-1] == features else conv(x, features, 1))

    def glass(x, depth: int):
        low = residual(max_pool(x, 2, 2))
        low = glass(low, depth - 1) if depth > 1 else residual(low)
        return residual(x) + upsample(residual(low), 2)

    def layers(x):
        x = residual(nn.relu(norm(conv(x, 64, 7, 2))), 128)
        x = residual(residual(max_pool(x, 2, 2), 128))
        maps = []
        for number in range(2):
            y = nn.relu(norm(conv(residual(glass(x, 4)), 256, 1)))
            maps.append(conv(y, 16, 1))
            if not number:
                x = x + conv(y, 256, 1) + conv(maps[-1], 256, 1)
        return maps

    return graph_of(name, layers, (1, 256, 256, 3))


def edsr(name: str) -> Graph:
    """EDSR baseline, twice the size (Lim et al., CVPRW 2017): 640 x 360 to 1280 x 720."""

    def layers(x):
        x = first = conv(x, 64)
        for _ in range(16):
            x = x + conv(nn.relu(conv(x, 64)), 64)
        x = conv(conv(x, 64) + first, 256)
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height, width, 2, 2, 64).transpose(0, 1, 3, 2, 4, 5)
        return conv(x.reshape(batch, 2 * height, 2 * width, 64), 3)

    return graph_of(name, layers, (1, 360, 640, 3))
