"""Recurrent models of speech, sound and handwriting, as the papers give them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .recurrent_cells import GRU, LSTM, Elman, both_ways, frames, tokens, unroll
from .tracing import floats, trace


def _clipped(x: Any) -> Any:
    return jnp.clip(x, 0, 20)


class _DeepSpeech(nn.Module):
    """Convolutions over time and frequency, then layers both ways whose directions are added."""

    width: int = 1280
    depth: int = 5

    @nn.compact
    def __call__(self, spectrogram: Any) -> Any:
        x = spectrogram
        for kernel, stride in (((11, 41), (2, 2)), ((11, 21), (1, 2))):
            pad = [(k // 2, k // 2) for k in kernel]
            x = nn.Conv(32, kernel, stride, padding=pad, use_bias=False)(x)
            x = _clipped(nn.BatchNorm(use_running_average=True)(x))
        xs = list(jnp.split(x.reshape(x.shape[1], -1), x.shape[1]))
        for _ in range(self.depth):
            ahead, _ = unroll(Elman(self.width, _clipped), xs)
            behind, _ = unroll(Elman(self.width, _clipped), xs[::-1])
            norm = nn.BatchNorm(use_running_average=True)
            xs = [norm(a + b) for a, b in zip(ahead, behind[::-1], strict=True)]
        output = nn.Dense(29)
        return [nn.softmax(output(x)) for x in xs]


def deep_speech(name: str) -> Graph:
    """Deep Speech 2 (Amodei et al., ICML 2016): two convolutions, five recurrent layers."""
    return trace(name, _DeepSpeech(), floats(1, 20, 161, 1))


class _DeepSpeechGRU(nn.Module):
    """Three convolutions and three gated layers forward, then lookahead ("row") convolution."""

    width: int = 1280
    ahead: int = 3

    @nn.compact
    def __call__(self, spectrogram: Any) -> Any:
        x = spectrogram
        convs = (((11, 41), (2, 2), 32), ((11, 21), (1, 2), 32), ((11, 21), (1, 2), 96))
        for kernel, stride, features in convs:
            pad = [(k // 2, k // 2) for k in kernel]
            x = nn.Conv(features, kernel, stride, padding=pad, use_bias=False)(x)
            x = _clipped(nn.BatchNorm(use_running_average=True)(x))
        xs = list(jnp.split(x.reshape(x.shape[1], -1), x.shape[1]))
        for _ in range(3):
            xs, _ = unroll(GRU(self.width), xs)
        taps = self.param("taps", nn.initializers.zeros, (self.ahead, self.width))
        output = nn.Dense(29)
        outputs = []
        for t in range(len(xs)):
            seen = xs[t : t + self.ahead]
            row = sum(taps[k] * x for k, x in enumerate(seen))
            outputs.append(nn.softmax(output(row)))
        return outputs


def deep_speech_streaming(name: str) -> Graph:
    """Deep Speech 2, section 3.7: forward only, with row convolution, for deployment."""
    return trace(name, _DeepSpeechGRU(), floats(1, 24, 161, 1))


class _ListenAttendSpell(nn.Module):
    """Pyramid of layers both ways, each at half the rate; two layers that attend and spell."""

    width: int = 256

    @nn.compact
    def __call__(self, spectrum: Any, characters: Any) -> Any:
        xs = both_ways(LSTM(self.width), LSTM(self.width), spectrum)
        for _ in range(3):
            pairs = zip(xs[::2], xs[1::2], strict=True)
            halved = [jnp.concatenate(pair, -1) for pair in pairs]
            xs = both_ways(LSTM(self.width), LSTM(self.width), halved)
        memory = jnp.concatenate(xs)
        keys = nn.Dense(512)(memory)
        first, second = LSTM(512, split=False), LSTM(512, split=False)
        embed, query, output = nn.Embed(30, 64), nn.Dense(512), nn.Dense(30)
        hidden, context, outputs = [None, None], jnp.zeros((1, 512)), []
        for character in characters:
            x = jnp.concatenate([embed(character), context], -1)
            hidden[0], x = first(hidden[0], x)
            hidden[1], x = second(hidden[1], x)
            context = nn.softmax(query(x) @ keys.T) @ memory
            outputs.append(nn.softmax(output(jnp.concatenate([x, context], -1))))
        return outputs


def listen_attend_spell(name: str) -> Graph:
    """Chan et al., ICASSP 2016: 16 frames of 40 filters become 6 characters."""
    return trace(name, _ListenAttendSpell(), frames(16, 40), tokens(6))


class _WaveRNN(nn.Module):
    """One gated layer in two halves: the fine byte of a sample hears its coarse byte."""

    width: int = 896

    @nn.compact
    def __call__(self, state: Any, coarse: Any, fine: Any) -> Any:
        half = self.width // 2
        hidden = nn.Dense(3 * self.width, use_bias=False)
        heads = [(nn.Dense(half), nn.Dense(256)) for _ in range(2)]
        inputs = [nn.Dense(3 * half, use_bias=False) for _ in range(2)]
        biases = [self.param(f"b{k}", nn.initializers.zeros, (half,)) for k in range(6)]

        def gates(x: Any, h: Any, old: Any, bias: Any) -> Any:
            xu, xr, xe = jnp.split(x, 3, -1)
            hu, hr, he = h
            u, r = nn.sigmoid(xu + hu + bias[0]), nn.sigmoid(xr + hr + bias[1])
            return u * old + (1 - u) * jnp.tanh(r * he + xe + bias[2])

        def sample(h: Any, head: Any) -> Any:
            logits = head[1](nn.relu(head[0](h)))
            return (jnp.argmax(logits, -1).astype(jnp.float32) / 127.5 - 1)[:, None]

        outputs = []
        for _ in range(8):
            parts = jnp.split(hidden(state), 6, -1)
            old = jnp.split(state, 2, -1)
            seen = jnp.concatenate([coarse, fine], -1)
            first = gates(inputs[0](seen), parts[::2], old[0], biases[:3])
            coarse = sample(first, heads[0])
            seen = jnp.concatenate([seen, coarse], -1)
            second = gates(inputs[1](seen), parts[1::2], old[1], biases[3:])
            fine = sample(second, heads[1])
            state = jnp.concatenate([first, second], -1)
            outputs += [coarse, fine]
        return outputs


def wave_rnn(name: str) -> Graph:
    """WaveRNN (Kalchbrenner et al., ICML 2018), width 896: eight samples of 16 bits."""
    return trace(name, _WaveRNN(), floats(1, 896), floats(1, 1), floats(1, 1))


class _Handwriting(nn.Module):
    """Every layer hears the pen, the output hears every layer."""

    width: int = 400

    @nn.compact
    def __call__(self, pen: Any) -> Any:
        cells = [LSTM(self.width, peephole=True, split=False) for _ in range(3)]
        outputs, output = [], nn.Dense(121)
        states = [None] * 3
        for x in pen:
            hidden = []
            for level, cell in enumerate(cells):
                heard = jnp.concatenate([x, *hidden[-1:]], -1)
                states[level], h = cell(states[level], heard)
                hidden.append(h)
            y = output(jnp.concatenate(hidden, -1))
            end, rest = y[:, :1], y[:, 1:]
            weight, mean, spread, turn = jnp.split(rest, (20, 60, 100), -1)
            outputs.append(
                (nn.sigmoid(end), nn.softmax(weight), mean, jnp.exp(spread), jnp.tanh(turn))
            )
        return outputs


def handwriting(name: str) -> Graph:
    """Graves 2013, "Generating sequences with recurrent neural networks": prediction of strokes."""
    return trace(name, _Handwriting(), frames(8, 3))
