"""Functions of every kind that stages must compute as they are: one case each.

A case is a function, its arguments, and the options of `from_jax`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Case:
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]


CASES: dict[str, Callable[[], Case]] = {}


def case(**options):
    """Registers a function that makes the function and its arguments."""

    def register(make):
        def made_case():
            fn, args = make()
            return Case(fn, args, options)

        CASES[make.__name__] = made_case
        return make

    return register


def floats(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 0.5, dtype)


@case(param_argnums=0)
def mlp_with_skips():
    def fn(weights, x):
        first = x
        for i, w in enumerate(weights):
            x = jax.nn.gelu(x @ w) + x
            if i == 3:
                x = x + first
        return x

    return fn, ([floats(i, 8, 8) for i in range(6)], floats(9, 3, 8))


@case(param_argnums=0, fuse=True)
def fused_mlp():
    def fn(weights, x):
        for w, b in weights:
            x = jax.nn.silu(x @ w + b)
            x = x - x.mean(axis=-1, keepdims=True)
        return x.T

    return fn, ([(floats(i, 8, 8), floats(i + 9, 8)[None]) for i in range(4)], floats(19, 3, 8))


@case(param_argnums=0)
def tied_weights():
    def fn(table, tokens):
        x = jnp.take(table, tokens, axis=0)
        x = jnp.tanh(x @ floats(3, 8, 8))
        x = jnp.tanh(x @ table.T)
        return jax.nn.softmax(x @ table)

    return fn, (floats(0, 12, 8), jnp.array([[0, 3, 11], [5, 5, 1]]))


@case(param_argnums=0)
def unrolled_scan():
    def fn(stacked, x):
        def layer(x, w):
            y = jnp.tanh(x @ w["w"] + w["b"][None])
            return y, y.sum(axis=0)

        return lax.scan(layer, x, stacked)

    return fn, ({"w": floats(0, 5, 8, 8), "b": floats(1, 5, 8)}, floats(2, 3, 8))


@case(param_argnums=0, unroll_limit=0)
def whole_scan():
    def fn(stacked, x):
        x = jnp.sin(x)
        x, sums = lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, stacked)
        return jnp.cos(x), sums * 2

    return fn, (floats(0, 5, 8, 8), floats(2, 3, 8))


@case()
def reversed_scan_of_an_input():
    def fn(xs):
        def step(h, x):
            h = jnp.tanh(h * 0.5 + x)
            return h, (h, x * 2)

        h, (hs, doubled) = lax.scan(step, jnp.zeros(4), xs, reverse=True)
        return h, hs[1] + doubled[2], hs

    return fn, (floats(0, 6, 4),)


@case()
def scan_without_steps():
    def fn(xs, x):
        return lax.scan(lambda h, x: (h + x, h * x), jnp.sin(x), xs)

    return fn, (jnp.zeros((0, 4)), floats(0, 4))


@case()
def loops_of_known_and_unknown_length():
    def fn(x):
        y = lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + i, x)
        z = lax.while_loop(lambda z: z.sum() < 40, lambda z: z * 1.5 + 1, jnp.abs(y))
        none = lax.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, c[1] * 2), (0, jnp.cos(z)))
        return y * z, none[1]

    return fn, (floats(0, 4),)


@case()
def branches():
    def fn(x, flag):
        y = lax.cond(flag, jnp.sin, jnp.cos, x)
        z = lax.switch(2, [jnp.sin, jnp.cos, jnp.tanh], y)
        return lax.cond(z.sum() > 0, lambda a, b: a + b, lambda a, b: a - b, y, z), flag

    return fn, (floats(0, 4), jnp.array(True))


@case(param_argnums=1)
def custom_derivatives_and_remat():
    @jax.custom_jvp
    def soft(x):
        return jnp.log1p(jnp.exp(x))

    soft.defjvp(lambda primals, tangents: (soft(*primals), tangents[0]))

    @jax.custom_vjp
    def scaled(x, w):
        return x * w

    scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, g: (g, g))

    def fn(x, w):
        def loss(x):
            y = soft(jax.jit(jnp.sin)(x))
            y = jax.checkpoint(lambda y: jnp.tanh(y @ w["w"]) * y)(y)
            return scaled(y, w["s"]).sum()

        return jax.value_and_grad(loss)(x)

    return fn, (floats(0, 3, 8), {"w": floats(1, 8, 8), "s": floats(2, 3, 8)})


@case(param_argnums=0)
def closed_over_constants_and_plain_outputs():
    large, small = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30), np.arange(3.0)

    def fn(w, x, unused):
        y = jnp.sin(x @ large) @ w
        z = (y * small[None, :].astype(np.float32)).sum(axis=0)
        return {"x": x, "w": w, "large": large, "seven": 7, "y": y, "z": z, "again": y, "wt": w.T}

    return fn, (floats(0, 30, 3), floats(1, 2, 20), floats(2, 2))


@case(param_argnums=0)
def integers_and_narrow_floats():
    def fn(weights, x):
        q, scale = weights["q"], weights["scale"]
        y = x.astype(jnp.bfloat16) @ (q.astype(jnp.bfloat16) * scale)
        top, where = lax.top_k(y, 2)
        return top.astype(jnp.float32), where, jnp.argmax(y, axis=1) + 1, y

    weights = {
        "q": jnp.asarray(np.random.default_rng(0).integers(-9, 9, (8, 6)), jnp.int8),
        "scale": floats(0, 1, 6, dtype=jnp.bfloat16),
    }
    return fn, (weights, floats(1, 4, 8))


@case(param_argnums=0)
def attention_with_a_cloned_mask():
    def fn(weights, x, lengths):
        keep = jnp.arange(6)[None, :] < lengths[:, None]
        bias = jnp.where(keep, 0.0, -1e9)[:, None, :]
        causal = jnp.tril(jnp.ones((6, 6), bool))[None]
        for w in weights:
            q, k, v = jnp.split(x @ w["qkv"], 3, axis=-1)
            scores = jnp.where(causal, q @ k.swapaxes(1, 2) / 3 + bias, -1e9)
            x = x + jax.nn.softmax(scores, axis=-1) @ v @ w["o"]
        return x

    weights = [{"qkv": floats(i, 8, 24), "o": floats(i + 5, 8, 8)} for i in range(4)]
    return fn, (weights, floats(1, 2, 6, 8), jnp.array([4, 6]))


@case(param_argnums=0)
def random_keys():
    def fn(w, x, key):
        for k in jax.random.split(key, 3):
            x = jnp.tanh(x @ w) * jax.random.bernoulli(k, 0.8, (3, 8))
        return x, jax.random.fold_in(key, 3)

    return fn, (floats(0, 8, 8), floats(1, 3, 8), jax.random.key(7))


@case(param_argnums=0, state_argnums=1)
def decoding_with_a_cache():
    def fn(weights, cache, x, position):
        for i in range(3):
            q, k = x @ weights["q"][i], x @ weights["k"][i]
            cache = lax.dynamic_update_slice(cache, k[None, None], (i, position, 0))
            x = x + jax.nn.softmax(cache[i] @ q) @ cache[i]
        return x, cache

    weights = {"q": floats(0, 3, 8, 8), "k": floats(1, 3, 8, 8)}
    return fn, (weights, floats(2, 3, 5, 8), floats(3, 8), jnp.array(2))


@case(param_argnums=0, state_argnums=1)
def scanned_decoding_with_a_cache():
    def fn(weights, cache, x, position):
        def layer(x, given):
            w, old = given
            old = lax.dynamic_update_slice(old, (x @ w)[None], (position, 0))
            return x + jax.nn.softmax(old @ x) @ old, old

        return lax.scan(layer, x, (weights, cache))

    return fn, (floats(1, 3, 8, 8), floats(2, 3, 5, 8), floats(3, 8), jnp.array(2))


@case(param_argnums=0)
def written_and_read_back():
    def fn(w, x):
        memory = jnp.zeros((6, 8))
        for i in range(4):
            x = jnp.tanh(x @ w)
            memory = memory.at[i].set(x)
            memory = memory.at[i + 1].add(2 * x)
            memory = memory.at[i, 2:5].multiply(0.5)
        return memory[2] + memory[3], memory[jnp.array([1, 0])].sum(), memory

    return fn, (floats(0, 8, 8), floats(1, 8))


@case(param_argnums=0)
def gates_and_joined_parts():
    def fn(w, xs):
        h = c = jnp.zeros((2, 4))
        out = []
        for x in xs:
            i, f, g, o = jnp.split(jnp.concatenate([x, h], axis=1) @ w, 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            out.append(h)
        return jnp.stack(out), jnp.flip(jnp.concatenate(out, axis=1), 1)

    return fn, (floats(0, 7, 16), floats(1, 4, 2, 3))


@case(param_argnums=0, fuse=True)
def convolutions():
    def fn(kernels, x):
        for k in kernels:
            y = lax.conv_general_dilated(x, k, (1, 1), "SAME")
            mean = y.mean(axis=(0, 2, 3), keepdims=True)
            x = x + jax.nn.relu((y - mean) * lax.rsqrt(y.var(axis=(0, 2, 3), keepdims=True) + 1e-5))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    return fn, ([floats(i, 4, 4, 3, 3) for i in range(3)], floats(9, 2, 4, 6, 6))


@case()
def sorting_and_solving():
    def fn(a, b):
        order = jnp.argsort(b)
        x = jnp.linalg.solve(a @ a.T + jnp.eye(4), b[order])
        return jnp.cumsum(x), jnp.sort(x)[::-1], jnp.fft.rfft(x).real

    return fn, (floats(0, 4, 4), floats(1, 4))


@case(param_argnums=0)
def mixed_experts():
    def fn(weights, x):
        scores = jax.nn.softmax(x @ weights["route"])
        chosen = jnp.argmax(scores, axis=-1)
        out = jax.vmap(lambda t, e: jnp.tanh(t @ weights["experts"][e]))(x, chosen)
        return out * jnp.take_along_axis(scores, chosen[:, None], axis=1), chosen

    return fn, ({"route": floats(0, 8, 3), "experts": floats(1, 3, 8, 8)}, floats(2, 5, 8))


@functools.cache
def made(name: str) -> Case:
    """The case of this name."""
    return CASES[name]()


def rising_chips(graph, seed, chips=4):
    """A chip for each node, such that data flows to higher chips alone."""
    rng = np.random.default_rng(seed)
    readers = [[] for _ in graph.nodes]
    for tensor in graph.tensors:
        readers[tensor.producer].extend(tensor.consumers)
    assignment = [0] * len(graph.nodes)  # at first, the least chip of each node
    for v, least in enumerate(assignment):
        assignment[v] = least if rng.random() < 0.7 else int(rng.integers(least, chips))
        for q in readers[v]:
            assignment[q] = max(assignment[q], assignment[v])
    return assignment


def assert_same(got, expected, tolerance):
    """Equal structures, shapes and types; values within a tolerance, one of bfloat16's if not 0."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = jnp.asarray(one), jnp.asarray(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        allowed = tolerance
        if one.dtype == jnp.bfloat16:
            allowed = tolerance and max(tolerance, 2.0**-7)
            one, other = one.astype(jnp.float32), other.astype(jnp.float32)
        np.testing.assert_allclose(one, other, rtol=allowed, atol=allowed)
