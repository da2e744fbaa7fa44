"""Recurrent models of images and time series, as the papers give them."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .recurrent_cells import GRU, LSTM, MGU, both_ways, frames, unroll
from .tracing import floats, trace


class _ConvLSTM(nn.Module):
    """Equations 3: gates by convolution, peepholes by position."""

    features: int

    @nn.compact
    def __call__(self, state: Any, x: Any) -> tuple[Any, Any]:
        gates = None
        if x is not None:
            gates = nn.Conv(4 * self.features, (5, 5), name="input")(x)
        h, c = state or (None, None)
        if h is not None:
            hidden = nn.Conv(4 * self.features, (5, 5), use_bias=False, name="hidden")(h)
            gates = hidden if gates is None else gates + hidden
        assert gates is not None
        i, f, g, o = jnp.split(gates, 4, -1)
        shape = (*i.shape[1:3], self.features)
        peep = [self.param(f"peep_{gate}", nn.initializers.zeros, shape) for gate in "ifo"]
        if c is None:
            c = nn.sigmoid(i) * jnp.tanh(g)
        else:
            i, f = i + peep[0] * c, f + peep[1] * c
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o + peep[2] * c) * jnp.tanh(c)
        return (h, c), h


class _Nowcasting(nn.Module):
    """Three layers encode what was seen; three more, from their states, say what comes."""

    widths: tuple[int, ...] = (128, 64, 64)
    coming: int = 4

    @nn.compact
    def __call__(self, seen: Any) -> Any:
        states, xs = [], seen
        for width in self.widths:
            xs, state = unroll(_ConvLSTM(width), xs)
            states.append(state)
        xs = [None] * self.coming
        layers = []
        for width, state in zip(reversed(self.widths), reversed(states), strict=True):
            xs, _ = unroll(_ConvLSTM(width), xs, state)
            layers.append(xs)
        output = nn.Conv(16, (1, 1))
        return [nn.sigmoid(output(jnp.concatenate(step, -1))) for step in zip(*layers, strict=True)]


def conv_lstm(name: str) -> Graph:
    """Shi et al., NeurIPS 2015: 128-64-64 on moving digits, 64 x 64 in patches of 4 x 4."""
    return trace(name, _Nowcasting(), [floats(1, 16, 16, 16)] * 4)


class _Captioner(nn.Module):
    """A small residual network looks once; a recurrent network tells."""

    words: int = 9000

    def _block(self, x: Any, width: int, stride: int) -> Any:
        y = nn.relu(nn.Conv(width, (3, 3), (stride, stride))(x))
        y = nn.Conv(width, (3, 3))(y)
        if x.shape != y.shape:
            x = nn.Conv(width, (1, 1), (stride, stride))(x)
        return nn.relu(x + y)

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.relu(nn.Conv(64, (7, 7), (2, 2))(image))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (512, 2)):
            x = self._block(x, width, stride)
        x = nn.Dense(512)(x.mean((1, 2)))
        table, cell, output = nn.Embed(self.words, 512), LSTM(512), nn.Dense(self.words)
        state, _ = cell(None, x)
        word, outputs = jnp.ones(1, jnp.uint32), []
        for _ in range(8):  # greedy: each word is the next step's input
            state, y = cell(state, table(word))
            word = jnp.argmax(output(y), -1).astype(jnp.uint32)
            outputs.append(word)
        return outputs


def show_and_tell(name: str) -> Graph:
    """Vinyals et al., CVPR 2015, with a residual network of 14 layers as the eye."""
    return trace(name, _Captioner(), floats(1, 224, 224, 3))


class _TextReader(nn.Module):
    """Seven convolutions turn a line of text into columns; two layers both ways read them."""

    @nn.compact
    def __call__(self, line: Any) -> Any:
        x = line
        pools = {0: (2, 2), 1: (2, 2), 3: (2, 1), 5: (2, 1)}
        for i, width in enumerate((64, 128, 256, 256, 512, 512, 512)):
            kernel, border = ((2, 2), "VALID") if i == 6 else ((3, 3), "SAME")
            x = nn.Conv(width, kernel, padding=border)(x)
            if i in (4, 5):
                x = nn.BatchNorm(use_running_average=True)(x)
            x = nn.relu(x)
            if i in pools:
                pad: Any = [(0, 0), (0, pools[i][1] % 2)]
                x = nn.max_pool(x, (2, 2), pools[i], pad)
        xs = list(jnp.split(x[0, 0], x.shape[2]))
        for _ in range(2):
            output = nn.Dense(256)
            xs = [output(x) for x in both_ways(LSTM(256), LSTM(256), xs)]
        output = nn.Dense(37)
        return [nn.softmax(output(x)) for x in xs]


def text_reader(name: str) -> Graph:
    """CRNN (Shi et al. 2015): a line of 32 x 60 grey pixels."""
    return trace(name, _TextReader(), floats(1, 32, 60, 1))


class _LSTNet(nn.Module):
    """Convolution, a gated layer, a gated layer that skips a period, and a linear part."""

    series: int = 8
    period: int = 6
    highway: int = 6

    @nn.compact
    def __call__(self, window: Any) -> Any:
        x = nn.relu(nn.Conv(100, (6,), padding="VALID")(window))[0]
        xs = list(jnp.split(x, x.shape[0]))
        _, last = unroll(GRU(100), xs)
        skipping = GRU(20)
        lasts = []
        for phase in range(self.period):
            _, h = unroll(skipping, xs[phase :: self.period])
            lasts.append(h)
        seen = nn.Dense(self.series)(jnp.concatenate([last, *lasts], -1))
        recent = window[0, -self.highway :].T
        return nn.sigmoid(seen + nn.Dense(1)(recent).T)


def lstnet(name: str) -> Graph:
    """LSTNet (Lai et al., SIGIR 2018): eight exchange rates, a window of 29 days."""
    return trace(name, _LSTNet(), floats(1, 29, 8))


class _DiffusionCell(nn.Module):
    """Gated recurrent unit whose products walk on the road graph both ways, up to two steps."""

    features: int
    nodes: int = 207

    def _diffuse(self, x: Any, walks: Any, width: int, name: str) -> Any:
        seen = [x]
        for walk in walks:
            first = walk @ x
            seen += [first, 2 * (walk @ first) - x]
        return nn.Dense(width, name=name)(jnp.concatenate(seen, -1))

    @nn.compact
    def __call__(self, walks: Any, h: Any, x: Any) -> tuple[Any, Any]:
        if h is None:
            h = jnp.zeros((self.nodes, self.features))
        gates = self._diffuse(jnp.concatenate([x, h], -1), walks, 2 * self.features, "gates")
        r, u = jnp.split(nn.sigmoid(gates), 2, -1)
        n = self._diffuse(jnp.concatenate([x, r * h], -1), walks, self.features, "candidate")
        h = u * h + (1 - u) * jnp.tanh(n)
        return h, h


class _Traffic(nn.Module):
    @nn.compact
    def __call__(self, speeds: Any) -> Any:
        walks = [self.param(way, nn.initializers.zeros, (207, 207)) for way in ("out", "back")]
        states, xs = [], speeds
        for _ in range(2):
            xs, state = unroll(partial(_DiffusionCell(64), walks), xs)
            states.append(state)
        cells, output = [partial(_DiffusionCell(64), walks) for _ in range(2)], nn.Dense(1)
        y, outputs = jnp.zeros((207, 1)), []
        for _ in range(3):
            x = y
            for level, cell in enumerate(cells):
                states[level], x = cell(states[level], x)
            y = output(x)
            outputs.append(y)
        return outputs


def dcrnn(name: str) -> Graph:
    """Diffusion convolutional network (Li et al., ICLR 2018): 207 sensors of METR-LA."""
    return trace(name, _Traffic(), [floats(207, 2)] * 4)


class _Clockwork(nn.Module):
    """Groups of neurons that run at periods 1, 2, 4, ...; each hears itself and slower groups."""

    group: int
    periods: tuple[int, ...]

    @nn.compact
    def __call__(self, xs):
        inputs = [nn.Dense(self.group, name=f"input{p}") for p in self.periods]
        hidden = [nn.Dense(self.group, use_bias=False, name=f"hidden{p}") for p in self.periods]
        output = nn.Dense(1, name="output")
        state: list[Any] = [None] * len(self.periods)
        outputs = []
        for t, x in enumerate(xs):
            new = list(state)
            for i, period in enumerate(self.periods):
                if t % period == 0:
                    heard = [h for h in state[i:] if h is not None]
                    total = inputs[i](x)
                    if heard:
                        total += hidden[i](jnp.concatenate(heard, -1))
                    new[i] = jnp.tanh(total)
            state = new
            outputs.append(output(jnp.concatenate([h for h in state if h is not None], -1)))
        return outputs


def clockwork(name: str) -> Graph:
    """Clockwork network (Koutnik et al., ICML 2014): five groups of 64, periods 1 to 16."""
    return trace(name, _Clockwork(64, (1, 2, 4, 8, 16)), frames(24, 16))


class _RowClassifier(nn.Module):
    @nn.compact
    def __call__(self, rows):
        xs, _ = unroll(MGU(100), rows)
        return nn.softmax(nn.Dense(10)(xs[-1]))


def mgu_rows(name: str) -> Graph:
    """Minimal gated unit (Zhou et al. 2016) that reads a digit row by row."""
    return trace(name, _RowClassifier(), frames(28, 28))
