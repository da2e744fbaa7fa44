"""Transformers that are written here in flax, from their papers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxpart.problem.graph import Graph

from .tracing import floats, trace

_WINDOW = 7


class _WindowAttention(nn.Module):
    """Attention within windows of 7 x 7, with relative positions (Liu et al., ICCV 2021)."""

    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        height, width = x.shape[0], x.shape[-1]
        windows, area, size = height // _WINDOW, _WINDOW * _WINDOW, width // self.heads
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), (0, 1))
        x = x.reshape(windows, _WINDOW, windows, _WINDOW, width).swapaxes(1, 2)
        x = x.reshape(windows * windows, area, width)
        q, k, v = jnp.split(nn.Dense(3 * width)(x), 3, -1)
        shape = (windows * windows, area, self.heads, size)
        q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)
        scores = jnp.einsum("wqhd,wkhd->whqk", q * size**-0.5, k)
        table = self.param(
            "positions", nn.initializers.zeros, ((2 * _WINDOW - 1) ** 2, self.heads), jnp.float32
        )
        scores = scores + jnp.transpose(table[_relative()], (2, 0, 1))
        if self.shift:
            scores = scores + _mask(height, self.shift)[:, None]
        x = jnp.einsum("whqk,wkhd->wqhd", nn.softmax(scores), v)
        x = nn.Dense(width)(x.reshape(windows * windows, area, width))
        x = x.reshape(windows, windows, _WINDOW, _WINDOW, width).swapaxes(1, 2)
        x = x.reshape(height, height, width)
        return jnp.roll(x, (self.shift, self.shift), (0, 1)) if self.shift else x


def _relative() -> np.ndarray:
    """[49, 49] index of the offset between two places of a window."""
    place = np.stack(np.meshgrid(np.arange(_WINDOW), np.arange(_WINDOW), indexing="ij"), -1)
    place = place.reshape(-1, 2)
    offset = place[:, None] - place[None] + _WINDOW - 1
    return offset[..., 0] * (2 * _WINDOW - 1) + offset[..., 1]


def _mask(height: int, shift: int) -> np.ndarray:
    """[windows, 49, 49] 0 where two places are neighbours in the image that was not rolled."""
    zone = np.zeros((height, height))
    cuts = (slice(0, -_WINDOW), slice(-_WINDOW, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
        zone[rows, columns] = number
    windows = height // _WINDOW
    zone = zone.reshape(windows, _WINDOW, windows, _WINDOW).swapaxes(1, 2).reshape(windows**2, -1)
    return np.where(zone[:, :, None] == zone[:, None], 0.0, -100.0).astype(np.float32)


class _SwinBlock(nn.Module):
    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = x + _WindowAttention(self.heads, self.shift)(nn.LayerNorm()(x))
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden)


class _Swin(nn.Module):
    """Swin-T: 28.3 M parameters, 4.5 G multiply-adds (Liu et al., ICCV 2021, table 1)."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.LayerNorm()(nn.Conv(96, (4, 4), (4, 4), padding="VALID")(image)[0])
        for stage, (depth, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
            if stage:
                height, width = x.shape[0] // 2, x.shape[-1]
                x = x.reshape(height, 2, height, 2, width).swapaxes(1, 2)
                x = nn.LayerNorm()(x.reshape(height, height, 4 * width))
                x = nn.Dense(2 * width, use_bias=False)(x)
            for block in range(depth):
                shift = _WINDOW // 2 if block % 2 and x.shape[0] > _WINDOW else 0
                x = _SwinBlock(heads, shift)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x).mean((0, 1)))


def swin_tiny(name: str) -> Graph:
    """Swin-T on 224 x 224 pixels."""
    return trace(name, _Swin(), floats(1, 224, 224, 3))


class _MixtureOfExperts(nn.Module):
    """A Mixtral block's feed-forward part (Jiang et al. 2024), a quarter as wide.

    Every expert sees every token, its output weighted by the router (0 where it is not among the
    two that were chosen): what a compiler with static shapes runs.
    """

    experts: int = 8
    chosen: int = 2

    @nn.compact
    def __call__(self, x: Any) -> Any:
        width, hidden = x.shape[-1], 7 * x.shape[-1] // 2
        x_norm = nn.RMSNorm()(x)
        scores = nn.softmax(nn.Dense(self.experts, use_bias=False, name="router")(x_norm))
        least = jnp.sort(scores, -1)[:, -self.chosen][:, None]
        kept = jnp.where(scores >= least, scores, 0.0)
        kept = kept / kept.sum(-1, keepdims=True)
        for expert in range(self.experts):
            gate = nn.silu(nn.Dense(hidden, use_bias=False, name=f"gate_{expert}")(x_norm))
            value = gate * nn.Dense(hidden, use_bias=False, name=f"up_{expert}")(x_norm)
            out = nn.Dense(width, use_bias=False, name=f"down_{expert}")(value)
            x = x + kept[:, expert, None] * out
        return x


def moe_block(name: str) -> Graph:
    """One block of 8 experts, width 1024, 64 tokens."""
    return trace(name, _MixtureOfExperts(), floats(64, 1024))
