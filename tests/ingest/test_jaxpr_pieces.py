"""Boxes of arrays: what is written at known positions, and what an index known in part reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpart.ingest.jaxpr import boxes
from jaxpart.ingest.jaxpr.demand import operand_boxes
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


def test_a_row_that_is_written_again_is_updated_where_it_is():
    def walk(c, x, pos):
        return c.at[1, pos].set(x).at[1, pos + 1].set(x * 2)[1] * 2

    graph = from_jax(walk, array(L, T, D), array(D), POS, state_argnums=0)
    assert [w.bytes for w in graph.weights] == [CACHE]
    assert [n.op for n in graph.nodes if n.bytes_accessed >= CACHE] == ["mul"]
    assert sum(n.op == "scatter" for n in graph.nodes) == 2


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


COMPUTED = {
    "padded": lambda w: jnp.pad(w, ((0, 1), (0, 0), (0, 0))),
    "rolled": lambda w: jnp.roll(w, 1, 0),
    "repeated": lambda w: jnp.tile(w, (2, 1, 1)),
    "joined, then transposed": lambda w: jnp.concatenate([w[:2], w[2:] * 2]).swapaxes(1, 2),
    "stacked, then reshaped": lambda w: jnp.stack(list(w)).reshape(2, 2, D, D).reshape(L, D, D),
    "normalised each": jax.vmap(lambda a: a / jnp.linalg.norm(a)),
    "multiplied each": lambda w: jnp.einsum("lij,ljk->lik", w, w),
    "summed inside": lambda w: jnp.cumsum(w, axis=1),
    "one written": lambda w: w.at[0].multiply(2.0),
    "chosen": lambda w: jnp.where(jnp.arange(L)[:, None, None] > 1, w, w * 2),
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("walk", ["unrolled", "scanned"])
def test_layers_of_what_is_computed_layer_by_layer_are_weights_of_their_own(compute, walk):
    def unrolled(w, x):
        w = compute(w)
        for i in range(L):
            x = x @ w[i]
        return x

    def scanned(w, x):
        return lax.scan(lambda x, w: (x @ w, None), x, compute(w)[:L])[0]

    chosen = unrolled if walk == "unrolled" else scanned
    graph = from_jax(chosen, array(L, D, D), array(2, D), param_argnums=0)
    assert len(graph.nodes) == L
    assert sorted(w.bytes for w in graph.weights) == [PART] * L
    assert sorted(w.consumers for w in graph.weights) == [(i,) for i in range(L)]


def test_what_mixes_layers_keeps_them_together():
    def walk(w, x):
        w = w / jnp.linalg.norm(w)  # of all layers
        for i in range(L):
            x = x @ w[i]
        return x

    graph = from_jax(walk, array(L, D, D), array(2, D), param_argnums=0)
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(L * PART, (0, 1, 2, 3))]


def test_values_that_are_used_again_and_again_are_followed_once():
    def walk(w, x):
        for _ in range(60):  # 2^60 paths lead back to the parameter
            w = jnp.einsum("lij,ljk->lik", w, w)
        for i in range(L):
            x = x @ w[i]
        return x

    graph = from_jax(walk, array(L, D, D), array(2, D), param_argnums=0)
    assert sorted(w.consumers for w in graph.weights) == [(i,) for i in range(L)]


A, C = np.random.default_rng(0).integers(1, 100, (2, 4, 5, 6)).astype(np.float32)
PRIMITIVES = {
    "add": lambda a, c: lax.add(a, c),
    "broadcast": lambda a, c: lax.broadcast_in_dim(a, (4, 2, 5, 6), (0, 2, 3)),
    "transpose": lambda a, c: lax.transpose(a, (2, 0, 1)),
    "reverse": lambda a, c: lax.rev(a, (0, 2)),
    "slice": lambda a, c: lax.slice(a, (1, 0, 1), (4, 5, 6), (2, 1, 3)),
    "squeeze": lambda a, c: lax.squeeze(lax.slice(a, (1, 0, 0), (2, 5, 6)), (0,)),
    "merge": lambda a, c: lax.reshape(a, (20, 6)),
    "cut": lambda a, c: lax.reshape(a, (4, 5, 2, 3)),
    "reshape": lambda a, c: lax.reshape(a, (3, 8, 5)),
    "concatenate": lambda a, c: lax.concatenate([a, c], 1),
    "pad": lambda a, c: lax.pad(a, np.float32(0), ((1, 2, 0), (-1, 0, 1), (0, 0, 2))),
    "sum": lambda a, c: lax.reduce_sum_p.bind(a, axes=(1,), out_sharding=None),
    "cumsum": lambda a, c: lax.cumsum(a, 1),
    "product": lambda a, c: lax.dot_general(a, c, (((1,), (1,)), ((0,), (0,)))),
    "outer": lambda a, c: lax.dot_general(a, c, (((2,), (2,)), ((), ()))),
    "tile": lambda a, c: jnp.tile(a, (1, 2, 1)),
    "update": lambda a, c: lax.dynamic_update_slice(a, c[:1, :2], (1, 2, 0)),
    "scatter": lambda a, c: a.at[2, 1:3].set(c[0, 1:3]),
    "sort": lambda a, c: lax.sort(a, dimension=1),
}


@pytest.mark.parametrize("fn", PRIMITIVES.values(), ids=PRIMITIVES)
def test_a_box_of_a_result_depends_on_no_more_than_the_boxes_that_are_named(fn):
    """All else is overwritten, equation by equation, and the box stays as it was."""
    closed = jax.make_jaxpr(fn)(A, C)
    environment = dict(zip(closed.jaxpr.invars, (A, C), strict=True))
    environment.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    rng = np.random.default_rng(1)

    def read(atom):
        return np.asarray(atom.val if hasattr(atom, "val") else environment[atom])

    def computed(eqn, values):
        results = eqn.primitive.bind(*values, **eqn.params)
        return [np.asarray(r) for r in (results if eqn.primitive.multiple_results else [results])]

    for eqn in closed.jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        results = computed(eqn, values)
        environment.update(zip(eqn.outvars, results, strict=True))
        known = [v if v.dtype.kind == "i" else None for v in values]
        for _ in range(20):
            at = int(rng.integers(len(results)))
            starts = [int(rng.integers(n)) for n in results[at].shape]
            box = tuple(
                (a, int(rng.integers(a + 1, n + 1)))
                for a, n in zip(starts, results[at].shape, strict=True)
            )
            needed = operand_boxes(eqn, known, at, box)
            changed = []
            for value, part in zip(values, needed, strict=True):
                other = value if value.dtype.kind in "ib" else np.full_like(value, 1e6)
                if part is not None:
                    inside = tuple(slice(*span) for span in part)
                    other = other.copy()
                    other[inside] = value[inside]
                changed.append(other)
            cut = tuple(slice(*span) for span in box)
            after = computed(eqn, changed)[at]
            np.testing.assert_array_equal(after[cut], results[at][cut], str(eqn.primitive))


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
