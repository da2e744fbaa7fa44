"""Layers of convolutional networks; images are [batch, height, width, channels].

A network is a plain function of its inputs. The layers that it calls own their weights. flax
numbers the layers in the order of the calls.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .tracing import floats, trace

Activation = Callable[[Any], Any]


class Network(nn.Module):
    """A flax module around a function, so that the function can call flax layers."""

    layers: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs: Any) -> Any:
        """The result of the function."""
        return self.layers(*inputs)


def graph_of(name: str, layers: Callable[..., Any], *shapes: Sequence[int]) -> Graph:
    """Traces a network on float inputs of these shapes."""
    return trace(name, Network(layers), *(floats(*shape) for shape in shapes))


def conv(
    x: Any,
    features: int,
    kernel: int | tuple[int, ...] = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
    pad: int | tuple[int, int] | None = None,
) -> Any:
    """Convolution over all spatial axes.

    Args:
      x: [batch, spatial axes..., channels].
      features: output channels.
      kernel: size on each spatial axis.
      stride: on every spatial axis.
      groups: groups of channels.
      dilation: of the kernel.
      bias: whether a bias is added.
      pad: padding on both sides of every spatial axis, or (before, after); by default half of the
        kernel on both sides.
    """
    axes = x.ndim - 2
    window = (kernel,) * axes if isinstance(kernel, int) else kernel
    half = [dilation * (k - 1) // 2 for k in window]
    around = (pad, pad) if isinstance(pad, int) else pad
    padding = [(h, h) for h in half] if around is None else [around] * axes
    return nn.Conv(
        features,
        window,
        strides=(stride,) * axes,
        padding=padding,
        kernel_dilation=(dilation,) * axes,
        feature_group_count=groups,
        use_bias=bias,
    )(x)


def norm(x: Any) -> Any:
    """Batch normalisation in inference: a scale and an offset per channel."""
    return nn.BatchNorm(use_running_average=True)(x)


def conv_bn(
    x: Any,
    features: int,
    kernel: int | tuple[int, ...] = 3,
    stride: int = 1,
    *,
    act: Activation | None = nn.relu,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolution without bias, then batch normalisation, then the activation."""
    x = conv(x, features, kernel, stride, groups=groups, dilation=dilation, bias=False)
    x = norm(x)
    return x if act is None else act(x)


def depthwise(
    x: Any, kernel: int = 3, stride: int = 1, *, act: Activation | None = nn.relu, dilation: int = 1
) -> Any:
    """Depthwise convolution without bias, then batch normalisation, then the activation."""
    channels = x.shape[-1]
    return conv_bn(x, channels, kernel, stride, act=act, groups=channels, dilation=dilation)


def max_pool(x: Any, window: int, stride: int, pad: int = 0) -> Any:
    """Maximum over a square window, with `pad` on both sides of every axis."""
    axes = x.ndim - 2
    return nn.max_pool(x, (window,) * axes, (stride,) * axes, [(pad, pad)] * axes)


def avg_pool(x: Any, window: int, stride: int, pad: int = 0) -> Any:
    """Mean over a square window; the zeros of the padding count."""
    axes = x.ndim - 2
    return nn.avg_pool(x, (window,) * axes, (stride,) * axes, [(pad, pad)] * axes)


def upsample(x: Any, factor: int) -> Any:
    """Enlarges images by an integer factor, with the nearest neighbour."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, factor, width, factor, channels))
    return x.reshape(batch, height * factor, width * factor, channels)


def concat(*xs: Any) -> Any:
    """Concatenates channels."""
    return jnp.concatenate(xs, -1)


def total(xs: Iterable[Any]) -> Any:
    """The sum of images, added from the first to the last."""
    return functools.reduce(operator.add, xs)


def pooled(x: Any) -> Any:
    """[batch, channels] mean over all positions."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def classes(x: Any, count: int = 1000) -> Any:
    """[batch, count] logits of the classes, from the mean over all positions."""
    return nn.Dense(count)(pooled(x))


def excite(x: Any, hidden: int, *, act: Activation = nn.relu, gate: Activation = nn.sigmoid) -> Any:
    """Squeeze and excitation (Hu et al., CVPR 2018): weights channels by their means."""
    weights = gate(nn.Dense(x.shape[-1])(act(nn.Dense(hidden)(pooled(x)))))
    return x * weights[:, None, None]
