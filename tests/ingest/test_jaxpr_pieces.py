"""Boxes of arrays: what is written at known positions, and what an index known in part reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpart.ingest.jaxpr import boxes
from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.ingest.jaxpr.views import whole

L, B, T, D = 4, 3, 16, 8
CACHE, PART = 4 * T * D, 4 * D * D  # bytes of the cache and of the weight of one layer


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


POS = array(dtype=jnp.int32)


def attend(x, cache):
    return jax.nn.softmax(x @ cache.T) @ cache


def at_row_and_position(w, c, x, pos):
    for i in range(L):
        c = c.at[i, pos].set((x @ w[i])[0])
        x = attend(x, c[i])
    return x, c


def in_a_loop(w, c, x, pos):
    def step(i, carry):
        x, c = carry
        c = lax.dynamic_update_slice(c, (x @ w[i])[None], (i, pos, 0))
        return attend(x, c[i]), c

    return lax.fori_loop(0, L, step, (x, c))


def added(w, c, x, pos):
    for i in range(L):
        c = c.at[i, pos].add((x @ w[i])[0])
        x = attend(x, c[i, : T // 2])
    return x, c


def row_and_then_position(w, c, x, pos):
    for i in range(L):
        c = c.at[i].set(c[i] * 2)
        c = c.at[i, pos].set((x @ w[i])[0])
        x = attend(x, c[i])
    return x, c


def two_leading_indices(w, c, x, pos):
    c = c[None]
    for i in range(L):
        c = c.at[0, i].set(c[0, i].at[pos].set((x @ w[i])[0]))
        x = attend(x, c[0, i])
    return x, c


def second_axis(w, c, x, pos):
    c = c.reshape(2, L // 2, T, D)
    for i in range(L // 2):
        c = c.at[:, i, pos].set(jnp.concatenate([x @ w[2 * i], x @ w[2 * i + 1]]))
        x = attend(attend(x, c[0, i]), c[1, i])
    return x, c


@pytest.mark.parametrize(
    ("walk", "each"),
    [
        (at_row_and_position, 1),
        (in_a_loop, 1),
        (added, 1),
        (row_and_then_position, 1),
        (two_leading_indices, 1),
        (second_axis, 2),
    ],
)
def test_a_write_at_a_known_row_and_a_position_of_run_time_touches_that_row_alone(walk, each):
    graph = from_jax(
        walk, array(L, D, D), array(L, T, D), array(1, D), POS, param_argnums=0, state_argnums=1
    )
    caches = [w for w in graph.weights if w.bytes != PART]
    assert [w.bytes for w in caches] == [each * CACHE] * (L // each)
    readers = [set(w.consumers) for w in caches]
    assert not any(a & b for i, a in enumerate(readers) for b in readers[:i])
    updates = [n for n in graph.nodes if "scatter" in n.op or "update" in n.op]
    assert len(updates) == L // each
    row = 4 * each * D  # read and written, the index beside it
    assert all(n.bytes_accessed <= 3 * row + 16 for n in updates)


def test_a_batch_is_written_at_a_known_layer_and_a_position_each():
    def walk(c, x, pos):
        for i in range(L):
            c = c.at[i, jnp.arange(B), pos].set(x)
            x = jnp.einsum("bd,btd->bd", x, c[i])
        return x, c

    given = array(L, B, T, D), array(B, D), array(B, dtype=jnp.int32)
    graph = from_jax(walk, *given, state_argnums=0)
    assert [w.bytes for w in graph.weights] == [B * CACHE] * L


def test_rows_that_are_written_and_read_whole_stay_one_array():
    def walk(c, x, pos):
        for i in range(L):
            c = c.at[i, pos].set(x)
        return c.sum()

    graph = from_jax(walk, array(L, T, D), array(D), POS, state_argnums=0)
    assert [w.bytes for w in graph.weights] == [L * CACHE]
    assert sum(node.op == "scatter" for node in graph.nodes) == L


def test_a_write_that_straddles_others_gives_up():
    def walk(c, x):
        c = c.at[0:2].set(x[:2]).at[1:3].set(x[1:3] * 2)
        return c[1] + 1

    graph = from_jax(walk, array(L, D), array(L, D), state_argnums=0)
    assert [w.bytes for w in graph.weights] == [4 * L * D]


def test_an_expert_of_a_known_layer_is_read_of_that_layer_alone():
    def sliced(w, x, e):
        for i in range(L):
            x = x @ w[i, e]
        return x

    def gathered(w, x, e):
        def step(i, x):
            return jnp.einsum("bd,bde->be", x, w[i, e[None]])

        return lax.fori_loop(0, L, step, x)

    for walk in (sliced, gathered):
        graph = from_jax(walk, array(L, 3, D, D), array(1, D), POS, param_argnums=0)
        assert [w.bytes for w in graph.weights] == [3 * PART] * L
        assert [len(w.consumers) for w in graph.weights] == [1] * L


def columns(w):
    joined = w.transpose(1, 0, 2).reshape(D, L * D)
    return [joined[:, i * D : (i + 1) * D] for i in range(L)]


def split_columns(w):
    return jnp.split(w.transpose(1, 0, 2).reshape(D, L * D), L, axis=1)


def concatenated(w):
    joined = jnp.concatenate([w[i] for i in range(L)], axis=1).astype(jnp.bfloat16)
    return [joined[:, i * D : (i + 1) * D].astype(jnp.float32) for i in range(L)]


def stacked_on_the_second_axis(w):
    joined = jnp.stack([w[i] for i in range(L)], axis=1)
    return [joined[:, i] for i in range(L)]


def reversed_columns(w):
    joined = w.transpose(1, 0, 2).reshape(D, L * D)[:, ::-1]
    return [joined[:, i * D : (i + 1) * D] for i in reversed(range(L))]


@pytest.mark.parametrize(
    "parts", [columns, split_columns, concatenated, stacked_on_the_second_axis, reversed_columns]
)
def test_parts_of_layers_laid_beside_each_other_are_weights_of_their_own(parts):
    def walk(w, x):
        for part in parts(w):
            x = x @ part
        return x

    graph = from_jax(walk, array(L, D, D), array(2, D), param_argnums=0)
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(PART, (i,)) for i in range(L)]


def test_a_column_across_layers_keeps_them_together():
    def walk(w, x):
        joined = w.transpose(1, 0, 2).reshape(D, L * D)
        return x @ joined[:, D // 2 : D + D // 2]

    graph = from_jax(walk, array(L, D, D), array(2, D), param_argnums=0)
    assert [w.bytes for w in graph.weights] == [L * PART]


def test_packed_halves_of_a_weight_are_read_once():
    def unpacked(w, x):
        halves = jnp.stack([w & 15, lax.shift_right_logical(w, jnp.int8(4))], axis=1)
        return x @ halves.reshape(2 * D, D).astype(jnp.float32)

    graph = from_jax(unpacked, array(D, D, dtype=jnp.int8), array(2, 2 * D), param_argnums=0)
    (product,) = graph.nodes
    assert product.bytes_accessed == D * D + 4 * 2 * 2 * D + 4 * 2 * D


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_what_numpy_cuts(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 5, size=3))
    flat = np.arange(np.prod(shape)).reshape(shape)

    def draw():
        starts = [int(rng.integers(n)) for n in shape]
        return tuple(
            (a, int(rng.integers(a + 1, n + 1))) for a, n in zip(starts, shape, strict=True)
        )

    def elements(box):
        return set(flat[tuple(slice(*span) for span in box)].ravel().tolist())

    one, other = draw(), draw()
    assert boxes.disjoint(one, other) == (not elements(one) & elements(other))
    assert boxes.contains(one, other) == (elements(other) <= elements(one))
    found = boxes.box_of(shape, boxes.cut(whole(shape), one))
    assert found is not None
    assert elements(found) == elements(one)
    transposed = boxes.cut(whole(shape), one).transposed((2, 1, 0))
    again = boxes.box_of(shape, transposed)
    order = flat[tuple(slice(*span) for span in one)]
    if np.array_equal(order.ravel(), order.transpose(2, 1, 0).ravel()):
        assert again == found
    else:
        assert again is None
