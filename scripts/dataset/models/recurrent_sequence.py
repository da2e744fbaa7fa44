"""Recurrent models from sequence to sequence, to trees and to memories, as the papers give them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .recurrent_cells import GRU, LSTM, Additive, both_ways, frames, tokens, unroll
from .tracing import floats, trace


class _RNNsearch(nn.Module):
    """Bidirectional encoder; decoder that attends with its last state; maxout before the words."""

    words: int = 16000
    width: int = 1000

    @nn.compact
    def __call__(self, source: Any, target: Any) -> Any:
        table = nn.Embed(self.words, 620)
        annotations = jnp.concatenate(
            both_ways(GRU(self.width), GRU(self.width), [table(word) for word in source])
        )
        keys = nn.Dense(self.width, use_bias=False)(annotations)
        state = jnp.tanh(nn.Dense(self.width)(annotations[:1, self.width :]))
        table = nn.Embed(self.words, 620)
        attend, cell = Additive(self.width), GRU(self.width)
        deep, output = nn.Dense(1000), nn.Dense(self.words)
        outputs = []
        for word in target:
            x = table(word)
            context, _ = attend(state, keys, annotations)
            hidden = deep(jnp.concatenate([state, x, context], -1))
            outputs.append(nn.softmax(output(hidden.reshape(1, 500, 2).max(-1))))
            state, _ = cell(state, jnp.concatenate([x, context], -1))
        return outputs


def rnnsearch(name: str) -> Graph:
    """Bahdanau et al., ICLR 2015, "Neural machine translation by jointly learning to align"."""
    return trace(name, _RNNsearch(), tokens(7), tokens(5))


class _Luong(nn.Module):
    """Four layers each side, global "general" attention, its result fed to the next step."""

    words: int = 16000
    width: int = 1000
    depth: int = 4

    @nn.compact
    def __call__(self, source: Any, target: Any) -> Any:
        table = nn.Embed(self.words, self.width)
        xs, states = [table(word) for word in source], []
        for _ in range(self.depth):
            xs, state = unroll(LSTM(self.width), xs)
            states.append(state)
        memory = jnp.concatenate(xs)
        keys = nn.Dense(self.width, use_bias=False)(memory)
        table = nn.Embed(self.words, self.width)
        cells = [LSTM(self.width) for _ in range(self.depth)]
        combine = nn.Dense(self.width, use_bias=False)
        output = nn.Dense(self.words, use_bias=False)
        attended, outputs = None, []
        for word in target:
            x = table(word)
            if attended is None:
                attended = jnp.zeros_like(x)
            x = jnp.concatenate([x, attended], -1)
            for level, cell in enumerate(cells):
                states[level], x = cell(states[level], x)
            context = nn.softmax(x @ keys.T) @ memory
            attended = jnp.tanh(combine(jnp.concatenate([context, x], -1)))
            outputs.append(nn.softmax(output(attended)))
        return outputs


def luong(name: str) -> Graph:
    """Luong et al., EMNLP 2015: global attention with input feeding."""
    return trace(name, _Luong(), tokens(6), tokens(5))


class _GNMT(nn.Module):
    """Eight layers each side; the bottom of the encoder both ways, residuals from the third on."""

    words: int = 32000
    width: int = 1024

    @nn.compact
    def __call__(self, source: Any, target: Any) -> Any:
        table = nn.Embed(self.words, self.width)
        xs = both_ways(LSTM(self.width), LSTM(self.width), [table(word) for word in source])
        xs, _ = unroll(LSTM(self.width), xs)
        for _ in range(6):
            ys, _ = unroll(LSTM(self.width), xs)
            xs = [x + y for x, y in zip(xs, ys, strict=True)]
        memory = jnp.concatenate(xs)
        keys = nn.Dense(self.width, use_bias=False)(memory)
        table = nn.Embed(self.words, self.width)
        attend = Additive(self.width)
        # Attention comes from the bottom layer's last output, so that layers can run in parallel.
        bottom, state, context, xs = LSTM(self.width), None, jnp.zeros((1, self.width)), []
        contexts = []
        for word in target:
            state, y = bottom(state, jnp.concatenate([table(word), context], -1))
            context, _ = attend(y, keys, memory)
            xs.append(y)
            contexts.append(context)
        for level in range(7):
            joined = [jnp.concatenate(p, -1) for p in zip(xs, contexts, strict=True)]
            ys, _ = unroll(LSTM(self.width), joined)
            xs = ys if level == 0 else [x + y for x, y in zip(xs, ys, strict=True)]
        output = nn.Dense(self.words)
        return [nn.softmax(output(x)) for x in xs]


def gnmt(name: str) -> Graph:
    """Wu et al. 2016, "Google's neural machine translation system": 8 + 8 layers of 1,024."""
    return trace(name, _GNMT(), tokens(4), tokens(4))


class _PointerNetwork(nn.Module):
    """Each output points at an input, which is the next step's input."""

    width: int = 512

    @nn.compact
    def __call__(self, points: Any) -> Any:
        embed = nn.Dense(self.width)
        xs = [embed(point) for point in points]
        ys, state = unroll(LSTM(self.width), xs)
        inputs = jnp.concatenate(xs)
        keys = nn.Dense(self.width, use_bias=False)(jnp.concatenate(ys))
        point_at, cell = Additive(self.width), LSTM(self.width)
        x = self.param("start", nn.initializers.zeros, (1, self.width))
        outputs = []
        for _ in points:
            state, y = cell(state, x)
            _, weights = point_at(y, keys, keys)
            chosen = jnp.argmax(weights, -1).astype(jnp.uint32)
            x = inputs[chosen]
            outputs.append(weights)
        return outputs


def pointer_network(name: str) -> Graph:
    """Vinyals et al., NeurIPS 2015: a tour or hull of ten points in the plane."""
    return trace(name, _PointerNetwork(), frames(10, 2))


class _Autoencoder(nn.Module):
    """One encoder; one decoder gives the sequence back, another goes on with it."""

    width: int = 2048
    pixels: int = 1024

    @nn.compact
    def __call__(self, images: Any) -> Any:
        _, code = unroll(LSTM(self.width), images)
        outputs = []
        for _ in ("reconstruct", "predict"):
            cell, read = LSTM(self.width), nn.Dense(self.pixels)
            state, y = code, jnp.zeros((1, self.pixels))
            for _ in images:
                state, h = cell(state, y)
                y = nn.sigmoid(read(h))
                outputs.append(y)
        return outputs


def lstm_autoencoder(name: str) -> Graph:
    """Srivastava et al., ICML 2015: the conditional composite model on patches of 32 x 32."""
    return trace(name, _Autoencoder(), frames(8, 1024))


class _TreeCell(nn.Module):
    """Binary tree LSTM, equations 9 to 14: a forget gate for each child."""

    features: int

    @nn.compact
    def __call__(self, left: Any, right: Any) -> Any:
        (hl, cl), (hr, cr) = left, right
        gates = nn.Dense(5 * self.features)(jnp.concatenate([hl, hr], -1))
        i, fl, fr, o, u = jnp.split(gates, 5, -1)
        c = nn.sigmoid(i) * jnp.tanh(u) + nn.sigmoid(fl) * cl + nn.sigmoid(fr) * cr
        return nn.sigmoid(o) * jnp.tanh(c), c


# A parse of "it 's a lovely film with lovely performances by Buy and Accorsi ." (SST).
_SENTENCE = (
    (0, (1, ((2, (3, 4)), (5, ((6, 7), (8, ((9, 10), 11))))))),
    12,
)
# Heads of the same words' dependents, by position; the root is "film".
_DEPENDENTS = {4: (0, 1, 2, 3, 7, 12), 7: (5, 6, 9), 9: (8, 10, 11)}


class _ConstituencyTree(nn.Module):
    features: int = 150

    @nn.compact
    def __call__(self, words: Any) -> Any:
        table, merge = nn.Embed(16000, 300), _TreeCell(self.features)
        leaf, sentiment = nn.Dense(2 * self.features), nn.Dense(5)
        outputs = []

        def visit(tree: Any) -> Any:
            if isinstance(tree, int):
                o, c = jnp.split(leaf(table(words[tree])), 2, -1)
                state = nn.sigmoid(o) * jnp.tanh(c), c
            else:
                state = merge(visit(tree[0]), visit(tree[1]))
            outputs.append(nn.softmax(sentiment(state[0])))
            return state

        visit(_SENTENCE)
        return outputs


def tree_lstm(name: str) -> Graph:
    """Tai et al., ACL 2015: sentiment of every constituent of one parsed sentence."""
    return trace(name, _ConstituencyTree(), tokens(13))


class _ChildSumTree(nn.Module):
    """Child-sum tree LSTM, equations 2 to 8."""

    features: int = 168

    @nn.compact
    def __call__(self, words: Any) -> Any:
        table, inputs = nn.Embed(16000, 300), nn.Dense(4 * self.features)
        hidden = nn.Dense(3 * self.features, use_bias=False)
        forget = nn.Dense(self.features, use_bias=False)

        def visit(word: int) -> Any:
            i, o, u, f = jnp.split(inputs(table(words[word])), 4, -1)
            children = [visit(child) for child in _DEPENDENTS.get(word, ())]
            kept = [nn.sigmoid(f + forget(h)) * c for h, c in children]
            if children:
                hi, ho, hu = jnp.split(hidden(sum(h for h, _ in children)), 3, -1)
                i, o, u = i + hi, o + ho, u + hu
            c = sum(kept, start=nn.sigmoid(i) * jnp.tanh(u))
            return nn.sigmoid(o) * jnp.tanh(c), c

        h, _ = visit(4)
        return nn.softmax(nn.Dense(5)(h))


def tree_lstm_dependency(name: str) -> Graph:
    """Tai et al., ACL 2015: sentiment of a sentence from its dependency tree."""
    return trace(name, _ChildSumTree(), tokens(13))


class _TuringMachine(nn.Module):
    """LSTM controller, one head that reads and one that writes."""

    slots: int = 128
    width: int = 20
    controller: int = 100

    def _address(self, key: Any, memory: Any, raw: Any, last: Any) -> Any:
        """Section 3.3: by content, gated with the last weights, shifted, sharpened."""
        strength, gate, sharpen = (nn.softplus(raw[:, 0]), nn.sigmoid(raw[:, 1]), raw[:, 2])
        norms = jnp.sqrt((memory**2).sum(-1)) * jnp.sqrt((key**2).sum(-1))
        weights = nn.softmax(strength * (memory @ key[0]) / (norms + 1e-8))
        if last is not None:
            weights = gate * weights + (1 - gate) * last
        shift = nn.softmax(raw[:, 3:6])
        turned = [jnp.roll(weights, d) for d in (-1, 0, 1)]
        weights = sum(shift[:, d] * w for d, w in enumerate(turned))
        weights = weights ** (1 + nn.softplus(sharpen))
        return weights / weights.sum()

    @nn.compact
    def __call__(self, vectors: Any, memory: Any) -> Any:
        cell = LSTM(self.controller)
        read_head, write_head = nn.Dense(self.width + 6), nn.Dense(3 * self.width + 6)
        output = nn.Dense(8)
        state = read_at = write_at = None
        read, outputs = jnp.zeros((1, self.width)), []
        for x in vectors:
            state, h = cell(state, jnp.concatenate([x, read], -1))
            raw = write_head(h)
            key, erase, add = jnp.split(jnp.tanh(raw[:, : 3 * self.width]), 3, -1)
            write_at = self._address(key, memory, raw[:, 3 * self.width :], write_at)
            erase = nn.sigmoid(erase)
            memory = memory * (1 - write_at[:, None] * erase) + write_at[:, None] * add
            raw = read_head(h)
            key = jnp.tanh(raw[:, : self.width])
            read_at = self._address(key, memory, raw[:, self.width :], read_at)
            read = read_at[None] @ memory
            outputs.append(nn.sigmoid(output(jnp.concatenate([h, read], -1))))
        return outputs


def turing_machine(name: str) -> Graph:
    """Neural Turing machine (Graves et al. 2014): the copy task, 128 slots of 20."""
    return trace(name, _TuringMachine(), frames(6, 9), floats(128, 20))
