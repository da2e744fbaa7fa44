"""Recurrent models of language: one word or character a step, as the papers give them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpart.problem.graph import Graph

from .recurrent_cells import GRU, LSTM, Elman, both_ways, tokens, unroll
from .tracing import trace


class _LanguageModel(nn.Module):
    """Embedding, stacked recurrent layers, and a softmax over the words at each step."""

    words: int
    width: int
    layers: tuple[nn.Module, ...]
    tied: bool = False

    @nn.compact
    def __call__(self, words):
        table = nn.Embed(self.words, self.width)
        xs = [table(word) for word in words]
        for layer in self.layers:
            xs, _ = unroll(layer, xs)
        if self.tied:
            bias = self.param("bias", nn.initializers.zeros, (self.words,))
            return [nn.softmax(table.attend(x) + bias) for x in xs]
        output = nn.Dense(self.words)
        return [nn.softmax(output(x)) for x in xs]


def lstm_lm(name: str) -> Graph:
    """Zaremba et al. 2014, "Recurrent neural network regularization": the medium model."""
    return trace(name, _LanguageModel(10000, 650, (LSTM(650), LSTM(650))), tokens(12))


def awd_lstm(name: str) -> Graph:
    """Merity et al., ICLR 2018: three layers, the last as wide as the tied embedding."""
    layers = (LSTM(1150), LSTM(1150), LSTM(400))
    return trace(name, _LanguageModel(10000, 400, layers, tied=True), tokens(10))


def lstmp_lm(name: str) -> Graph:
    """Sak et al., Interspeech 2014: LSTM with peepholes and a recurrent projection layer."""
    layers = tuple(LSTM(800, projection=512, peephole=True, split=False) for _ in range(2))
    return trace(name, _LanguageModel(8000, 512, layers), tokens(10))


def gru_lm(name: str) -> Graph:
    """Language model of three gated recurrent layers (Chung et al. 2014 compare such)."""
    layers = (GRU(512), GRU(512), GRU(512))
    return trace(name, _LanguageModel(8000, 512, layers), tokens(10))


def rnn_lm(name: str) -> Graph:
    """Mikolov et al., Interspeech 2010: one sigmoid layer."""
    return trace(name, _LanguageModel(10000, 400, (Elman(400),)), tokens(20))


class _Highway(nn.Module):
    """One step of a recurrent highway layer; carry gate 1 - transform gate."""

    features: int
    depth: int

    @nn.compact
    def __call__(self, s, x):
        for level in range(self.depth):
            total = 0.0
            if level == 0:
                total = nn.Dense(2 * self.features, use_bias=False, name="input")(x)
            if s is not None:
                total = total + nn.Dense(2 * self.features, name=f"level{level}")(s)
            h, t = jnp.split(total, 2, -1)
            h, t = jnp.tanh(h), nn.sigmoid(t)
            s = h * t if s is None else h * t + s * (1 - t)
        return s, s


def highway_lm(name: str) -> Graph:
    """Recurrent highway network (Zilly et al., ICML 2017): depth 10, width 830, tied words."""
    return trace(name, _LanguageModel(10000, 830, (_Highway(830, 10),), tied=True), tokens(6))


class _Quasi(nn.Module):
    """One quasi-recurrent layer: a causal convolution over time, then fo-pooling step by step."""

    features: int
    window: int = 2

    @nn.compact
    def __call__(self, xs):
        seen = jnp.concatenate(xs)[None]
        gates = nn.Conv(3 * self.features, (self.window,), padding=((self.window - 1, 0),))(seen)
        z, f, o = jnp.split(gates[0], 3, -1)
        z, f, o = jnp.tanh(z), nn.sigmoid(f), nn.sigmoid(o)
        c, outputs = None, []
        for t in range(len(xs)):
            written = (1 - f[t]) * z[t]
            c = written if c is None else f[t] * c + written
            outputs.append((o[t] * c)[None])
        return outputs


class _QuasiLM(nn.Module):
    @nn.compact
    def __call__(self, words):
        table = nn.Embed(10000, 640)
        xs = [table(word) for word in words]
        for _ in range(2):
            xs = _Quasi(640)(xs)
        output = nn.Dense(10000)
        return [nn.softmax(output(x)) for x in xs]


def qrnn_lm(name: str) -> Graph:
    """Quasi-recurrent network (Bradbury et al., ICLR 2017): two layers of 640, window 2."""
    return trace(name, _QuasiLM(), tokens(12))


class _Simple(nn.Module):
    """One simple recurrent unit: no product depends on the last step."""

    features: int

    @nn.compact
    def __call__(self, xs):
        product = nn.Dense(3 * self.features, use_bias=False)
        vectors = [self.param(f"v{g}", nn.initializers.zeros, (self.features,)) for g in "fr"]
        biases = [self.param(f"b{g}", nn.initializers.zeros, (self.features,)) for g in "fr"]
        c, outputs = None, []
        for x in xs:
            z, f, r = jnp.split(product(x), 3, -1)
            if c is not None:
                f, r = f + vectors[0] * c, r + vectors[1] * c
            f, r = nn.sigmoid(f + biases[0]), nn.sigmoid(r + biases[1])
            c = (1 - f) * z if c is None else f * c + (1 - f) * z
            outputs.append(r * c + (1 - r) * x)
        return outputs


class _SimpleClassifier(nn.Module):
    @nn.compact
    def __call__(self, words):
        table = nn.Embed(10000, 512)
        xs = [table(word) for word in words]
        for _ in range(4):
            xs = _Simple(512)(xs)
        return nn.softmax(nn.Dense(6)(xs[-1]))


def sru_classifier(name: str) -> Graph:
    """Simple recurrent units (Lei et al., EMNLP 2018): four layers that classify a question."""
    return trace(name, _SimpleClassifier(), tokens(12))


class _Independent(nn.Module):
    """One layer whose neurons see only themselves in the last step."""

    features: int

    @nn.compact
    def __call__(self, xs):
        product = nn.Dense(self.features)
        own = self.param("own", nn.initializers.zeros, (self.features,))
        h, outputs = None, []
        for x in xs:
            total = product(x)
            h = nn.relu(total if h is None else total + own * h)
            outputs.append(h)
        return outputs


class _IndependentLM(nn.Module):
    @nn.compact
    def __call__(self, characters):
        table = nn.Embed(50, 256)
        widen = nn.Dense(256)
        xs = [widen(table(c)) for c in characters]
        for _ in range(5):
            inner = _Independent(256)(_Independent(256)(xs))
            xs = [x + y for x, y in zip(xs, inner, strict=True)]
        output = nn.Dense(50)
        return [nn.softmax(output(x)) for x in xs]


def indrnn_lm(name: str) -> Graph:
    """Independently recurrent network (Li et al., CVPR 2018): ten layers, residual by pairs."""
    return trace(name, _IndependentLM(), tokens(8))


class _WordOfCharacters(nn.Module):
    """Convolutions of seven widths over the characters of a word, highways, a projection."""

    @nn.compact
    def __call__(self, characters):
        seen = nn.Embed(262, 16)(characters)[None]
        filters = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
        found = [
            nn.relu(nn.Conv(count, (width,), padding="VALID")(seen).max(1))
            for width, count in filters
        ]
        x = jnp.concatenate(found, -1)
        for _ in range(2):
            h, t = jnp.split(nn.Dense(2 * 2048)(x), 2, -1)
            t = nn.sigmoid(t)
            x = t * x + (1 - t) * nn.relu(h)
        return nn.Dense(512)(x)


class _BidirectionalLM(nn.Module):
    @nn.compact
    def __call__(self, words):
        embed = _WordOfCharacters()
        forward = backward = first = [embed(word) for word in words]
        backward = backward[::-1]
        outputs = [first]
        for level in range(2):
            ahead, _ = unroll(LSTM(4096, projection=512), forward)
            behind, _ = unroll(LSTM(4096, projection=512), backward)
            if level:
                ahead = [x + y for x, y in zip(forward, ahead, strict=True)]
                behind = [x + y for x, y in zip(backward, behind, strict=True)]
            forward, backward = ahead, behind
            outputs.append(
                [jnp.concatenate(p, -1) for p in zip(forward, backward[::-1], strict=True)]
            )
        return outputs


def elmo(name: str) -> Graph:
    """ELMo (Peters et al., NAACL 2018), "original": characters, two projected layers each way."""
    word = jax.ShapeDtypeStruct((50,), jnp.uint32)
    return trace(name, _BidirectionalLM(), [word] * 5)


class _Tagger(nn.Module):
    """Characters and words, a bidirectional layer, and the best path by Viterbi."""

    tags: int = 17

    @nn.compact
    def __call__(self, words, spellings):
        letters, table = nn.Embed(85, 25), nn.Embed(20000, 100)
        ahead, behind = LSTM(25), LSTM(25)
        xs = []
        for word, spelling in zip(words, spellings, strict=True):
            letters_of_word = [letters(c) for c in spelling]
            _, (first, _) = unroll(ahead, letters_of_word)
            _, (last, _) = unroll(behind, letters_of_word[::-1])
            xs.append(jnp.concatenate([table(word), first, last], -1))
        output = nn.Dense(self.tags)
        scores = [output(x) for x in both_ways(LSTM(100), LSTM(100), xs)]
        change = self.param("transitions", nn.initializers.zeros, (self.tags, self.tags))
        best, back = scores[0], []
        for score in scores[1:]:
            paths = best.T + change
            back.append(jnp.argmax(paths, 0))
            best = jnp.max(paths, 0)[None] + score
        tag = jnp.argmax(best[0])
        path = [tag]
        for pointers in reversed(back):
            tag = jnp.take(pointers, tag)
            path.append(tag)
        return path[::-1]


def bilstm_tagger(name: str) -> Graph:
    """Lample et al., NAACL 2016: names in a sentence, words read letter by letter, a CRF on top."""
    return trace(name, _Tagger(), tokens(8), [tokens(3)] * 8)
