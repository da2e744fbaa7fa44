"""Recurrent cells from the papers' equations, and loops that unroll them.

A cell maps (state, input of a step) to (new state, output of the step), all [batch, features]. A
state of None is the zero state. Operations on it, which a compiler would fold, are not traced, so
the first step has fewer operations. All steps share their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .tracing import floats

State = Any
Cell = Callable[[State, Any], tuple[State, Any]]


def tokens(steps: int) -> list[jax.ShapeDtypeStruct]:
    """Inputs of one token per step, batch size 1; unsigned, so that no index has to be wrapped."""
    return [jax.ShapeDtypeStruct((1,), jnp.uint32)] * steps


def frames(steps: int, width: int) -> list[jax.ShapeDtypeStruct]:
    """Inputs of one vector [1, width] per step."""
    return [floats(1, width)] * steps


def _joined(x: Any, h: Any) -> Any:
    """Input and state, concatenated; the input alone if the state is zero."""
    return x if h is None else jnp.concatenate([x, h], -1)


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    Attributes:
      features: H, the width of the memory.
      projection: width of the output if it is projected (Sak et al. 2014); None: not projected.
      peephole: whether gates read the memory (Gers & Schmidhuber 2000).
      split: whether the input and the last output have a matrix product each (as in cuDNN), or one
        together.
    """

    features: int
    projection: int | None = None
    peephole: bool = False
    split: bool = True

    def _gates(self, x: Any, h: Any) -> list[Any]:
        """The four gates before their activations, each [batch, H]."""
        if self.split:
            gates = nn.Dense(4 * self.features, name="input")(x)
            if h is not None:
                gates += nn.Dense(4 * self.features, use_bias=False, name="hidden")(h)
            return jnp.split(gates, 4, -1)
        if h is None:  # a compiler folds the product with zeros
            h = jnp.zeros((*x.shape[:-1], self.projection or self.features))
        return jnp.split(nn.Dense(4 * self.features, name="gates")(_joined(x, h)), 4, -1)

    def _peep(self, name: str, c: Any) -> Any:
        return self.param(name, nn.initializers.zeros, (self.features,)) * c

    @nn.compact
    def __call__(self, state: State, x: Any) -> tuple[State, Any]:
        """One step; the state is (output, memory), and None at first."""
        h, c = state or (None, None)
        i, f, g, o = self._gates(x, h)
        if self.peephole and c is not None:
            i, f = i + self._peep("peep_input", c), f + self._peep("peep_forget", c)
        written = nn.sigmoid(i) * jnp.tanh(g)
        c = written if c is None else nn.sigmoid(f) * c + written
        if self.peephole:
            o = o + self._peep("peep_output", c)
        h = nn.sigmoid(o) * jnp.tanh(c)
        if self.projection:
            h = nn.Dense(self.projection, use_bias=False, name="projection")(h)
        return (h, c), h


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al., EMNLP 2014).

    Attributes:
      features: H, the width of the state.
      reset_after: whether the reset comes after the matrix product (as in cuDNN), so that all gates
        share one product. False: before it, as published.
    """

    features: int
    reset_after: bool = False

    @nn.compact
    def __call__(self, h: State, x: Any) -> tuple[State, Any]:
        """One step; the state is the last output, and None at first."""
        width = self.features
        r, z, n = jnp.split(nn.Dense(3 * width, name="input")(x), 3, -1)
        if h is None:
            h = (1 - nn.sigmoid(z)) * jnp.tanh(n)
            return h, h
        if self.reset_after:
            hr, hz, hn = jnp.split(nn.Dense(3 * width, name="hidden")(h), 3, -1)
            r, z = nn.sigmoid(r + hr), nn.sigmoid(z + hz)
            n = jnp.tanh(n + r * hn)
        else:
            hr, hz = jnp.split(nn.Dense(2 * width, use_bias=False, name="gates")(h), 2, -1)
            r, z = nn.sigmoid(r + hr), nn.sigmoid(z + hz)
            n = jnp.tanh(n + nn.Dense(width, use_bias=False, name="candidate")(r * h))
        h = (1 - z) * n + z * h
        return h, h


class Elman(nn.Module):
    """Simple recurrent network (Elman 1990): h = activation(W x + U h + b)."""

    features: int
    activation: Callable[[Any], Any] = nn.sigmoid

    @nn.compact
    def __call__(self, h: State, x: Any) -> tuple[State, Any]:
        """One step; the state is the last output, and None at first."""
        total = nn.Dense(self.features, name="input")(x)
        if h is not None:
            total += nn.Dense(self.features, use_bias=False, name="hidden")(h)
        h = self.activation(total)
        return h, h


class MGU(nn.Module):
    """Minimal gated unit (Zhou et al. 2016): one gate, f, that forgets and resets."""

    features: int

    @nn.compact
    def __call__(self, h: State, x: Any) -> tuple[State, Any]:
        """One step; the state is the last output, and None at first."""
        f = nn.Dense(self.features, name="forget_input")(x)
        n = nn.Dense(self.features, name="candidate_input")(x)
        if h is None:
            h = nn.sigmoid(f) * jnp.tanh(n)
            return h, h
        f = nn.sigmoid(f + nn.Dense(self.features, use_bias=False, name="forget_hidden")(h))
        n = n + nn.Dense(self.features, use_bias=False, name="candidate_hidden")(f * h)
        h = (1 - f) * h + f * jnp.tanh(n)
        return h, h


def unroll(cell: Cell, xs: Sequence[Any], state: State = None) -> tuple[list[Any], State]:
    """Runs a cell over all steps; returns the outputs of all steps and the last state."""
    outputs = []
    for x in xs:
        state, y = cell(state, x)
        outputs.append(y)
    return outputs, state


def both_ways(forward: Cell, backward: Cell, xs: Sequence[Any]) -> list[Any]:
    """A bidirectional layer (Schuster & Paliwal 1997): concatenates both outputs of each step."""
    ahead, _ = unroll(forward, xs)
    behind, _ = unroll(backward, xs[::-1])
    return [jnp.concatenate(pair, -1) for pair in zip(ahead, behind[::-1], strict=True)]


class Additive(nn.Module):
    """Additive attention (Bahdanau et al. 2015): a query [1, Q] over keys [T, K], values [T, D]."""

    features: int

    @nn.compact
    def __call__(self, query: Any, keys: Any, values: Any) -> tuple[Any, Any]:
        """The weighted value [1, D] and the weights [1, T]; the keys are already projected."""
        seen = jnp.tanh(keys + nn.Dense(self.features, use_bias=False, name="query")(query))
        scores = nn.Dense(1, use_bias=False, name="score")(seen)
        weights = nn.softmax(scores.T, -1)
        return weights @ values, weights
