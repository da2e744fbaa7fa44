"""Parts of parameters are weights of their own; sizes and types of weights, tensors and reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.ingest.jaxpr.views import changed, overlap_groups, whole

L, D = 6, 8
INDICES = np.array([3, 1, 0, 2, 5, 4])


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def layer(x, w):
    return jnp.tanh(x @ w)


def layers(weights, x):
    for w in weights:
        x = layer(x, w)
    return x


def scanned(weights, x):
    return lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0]


def looped(index):
    return lambda p, x: lax.fori_loop(0, L, lambda i, x: layer(x, index(p, i)), x)


def while_loop(p, x):
    def step(carry):
        return carry[0] + 1, layer(carry[1], p[carry[0]])

    return lax.while_loop(lambda carry: carry[0] < L, step, (0, x))[1]


def pairs(p, x):
    return lax.fori_loop(0, L // 2, lambda i, x: layer(layer(x, p[2 * i]), p[2 * i + 1]), x)


def nested(p, x):
    groups = p.reshape(2, L // 2, D, D)
    return lax.scan(lambda x, group: (scanned(group, x), None), x, groups)[0]


FORWARD, BACKWARD = list(range(L)), list(reversed(range(L)))
WALKS = {
    "iterated": (layers, FORWARD),
    "unstacked": (lambda p, x: layers(jnp.unstack(p), x), FORWARD),
    "split": (lambda p, x: layers([w[0] for w in jnp.split(p, L)], x), FORWARD),
    "negative indices": (lambda p, x: layers([p[i - L] for i in range(L)], x), FORWARD),
    "scanned": (scanned, FORWARD),
    "rematerialised": (jax.checkpoint(scanned), FORWARD),
    "scanned in groups": (nested, FORWARD),
    "scanned over indices": (
        lambda p, x: lax.scan(lambda x, i: (layer(x, p[i]), None), x, jnp.arange(L))[0],
        FORWARD,
    ),
    "fori_loop": (looped(lambda p, i: p[i]), FORWARD),
    "fori_loop, dynamic_index": (
        looped(lambda p, i: lax.dynamic_index_in_dim(p, i, keepdims=False)),
        FORWARD,
    ),
    "fori_loop, take": (looped(lambda p, i: jnp.take(p, i, axis=0)), FORWARD),
    "fori_loop, backwards": (looped(lambda p, i: p[L - 1 - i]), BACKWARD),
    "fori_loop, pairs": (pairs, FORWARD),
    "while_loop": (while_loop, FORWARD),
    "literal dynamic indices": (
        lambda p, x: layers([lax.dynamic_index_in_dim(p, i, keepdims=False) for i in range(L)], x),
        FORWARD,
    ),
    "reversed": (lambda p, x: scanned(p[::-1], x), BACKWARD),
    "flipped": (lambda p, x: layers(jnp.flip(p, 0), x), BACKWARD),
    "permuted": (lambda p, x: scanned(p[INDICES], x), INDICES.tolist()),
    "cast": (lambda p, x: scanned(p.astype(jnp.bfloat16), x), FORWARD),
    "scaled": (lambda p, x: scanned(p * 0.5, x), FORWARD),
    "every second, then the others": (
        lambda p, x: scanned(p[1::2], scanned(p[::2], x)),
        [0, 2, 4, 1, 3, 5],
    ),
}


@pytest.mark.parametrize("name", WALKS)
def test_each_layer_of_a_stack_is_a_weight_of_its_own(name):
    walk, order = WALKS[name]
    graph = from_jax(walk, array(L, D, D), array(2, D), param_argnums=0)
    products = [v for v, node in enumerate(graph.nodes) if node.op == "dot_general"]
    assert len(products) == L
    # weights come in the order of the stack; the walk says which product reads which
    assert [(w.bytes, w.consumers) for w in graph.weights] == [
        (256, (products[order.index(i)],)) for i in range(L)
    ]
    assert graph.total_flops == L * (2 * 2 * D * D + 2 * D)


def test_layers_on_another_axis_or_in_a_flat_array_are_weights_too():
    def columns(p, x):
        return layers([p[:, i] for i in range(L)], x)

    def flat(p, x):
        return layers([p[i * D * D : (i + 1) * D * D].reshape(D, D) for i in range(L)], x)

    for walk, shape in ((columns, (D, L, D)), (flat, (L * D * D,))):
        graph = from_jax(walk, array(*shape), array(2, D), param_argnums=0)
        assert [(w.bytes, w.consumers) for w in graph.weights] == [
            (256, (2 * i,)) for i in range(L)
        ]


def test_parameters_that_are_stacked_to_be_scanned_stay_apart():
    graph = from_jax(
        lambda p, x: scanned(jnp.stack(p), x), [array(D, D)] * 3, array(2, D), param_argnums=0
    )
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(256, (v,)) for v in (0, 2, 4)]


def test_quantised_layers_and_their_scales_are_weights_of_their_own():
    def fn(p, x):
        return scanned(p["q"].astype(jnp.float32) * p["scale"], x)

    params = {"q": array(3, D, D, dtype=jnp.int8), "scale": array(3, 1, D)}
    graph = from_jax(fn, params, array(2, D), param_argnums=0)
    assert [(w.bytes, w.fixed, w.consumers) for w in graph.weights] == [
        *((64, True, (v,)) for v in (0, 2, 4)),
        *((32, False, (v,)) for v in (0, 2, 4)),
    ]
    # 64 bytes of int8 and 32 of the scale, two float arrays of [2, 8]
    assert graph.nodes[0].bytes_accessed == 64 + 32 + 128
    assert graph.nodes[0].fixed_bytes == 64


def test_indices_that_depend_on_inputs_read_the_whole_stack():
    graph = from_jax(
        lambda p, x, i: layer(x, p[i]),
        array(L, D, D),
        array(2, D),
        array(dtype=jnp.int32),
        param_argnums=0,
    )
    assert [w.bytes for w in graph.weights] == [L * 256]


def test_parts_that_one_node_reads_are_one_weight():
    table = np.array([0, 3, 3, 1])
    graph = from_jax(lambda p, x: x + p[table], array(9, D), array(4, D), param_argnums=0)
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(3 * 32, (0,))]


def test_a_branch_of_a_known_loop_counter_is_the_only_one():
    def step(p, i, x):
        return lax.cond(i % 2 == 0, lambda x: layer(x, p[i]), jnp.sin, x)

    def fn(p, x):
        return lax.fori_loop(0, 4, lambda i, x: step(p, i, x), x)

    graph = from_jax(fn, array(4, D, D), array(2, D), param_argnums=0)
    assert [node.op for node in graph.nodes] == ["dot_general", "tanh", "sin"] * 2
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(256, (0,)), (256, (3,))]


@pytest.mark.parametrize("seed", range(60))
def test_views_select_what_numpy_selects(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 5, size=3))
    elements, view = np.arange(np.prod(shape)).reshape(shape), whole(shape)
    for _ in range(6):
        axis = int(rng.integers(elements.ndim)) if elements.ndim else 0
        kind = rng.integers(4)
        if not elements.ndim:
            break
        if kind == 0:
            start, step = int(rng.integers(elements.shape[axis])), int(rng.integers(1, 3))
            stop = int(rng.integers(start + 1, elements.shape[axis] + 1))
            cut = changed(view, lambda v, at=(axis, start, stop, step): v.sliced(*at))
            if cut is None:
                continue
            view = cut
            elements = np.moveaxis(np.moveaxis(elements, axis, 0)[start:stop:step], 0, axis)
        elif kind == 1:
            view, elements = view.reversed((axis,)), np.flip(elements, axis)
        elif kind == 2:
            order = [int(a) for a in rng.permutation(elements.ndim)]
            view, elements = view.transposed(order), elements.transpose(order)
        else:
            to = [(-1,), (2, -1), (-1, 2), (3, -1), (-1, 3)][int(rng.integers(5))]
            if elements.size % abs(np.prod(to)) == 0:
                after = elements.reshape(to)
                reshaped = changed(view, lambda v, to=after.shape: v.reshaped(to))
                if reshaped is not None:
                    view, elements = reshaped, after
    positions = np.array(view.offset)
    for extent, stride in view.pairs:
        positions = positions[..., None] + np.arange(extent) * stride
    assert view.shape == elements.shape
    assert np.array_equal(positions.reshape(view.shape), elements)
    region = view.region()
    assert region.elements == len(np.unique(elements))
    assert (region.offset, region.end) == (elements.min(), elements.max() + 1)


def test_integers_of_numpy_select_parts_too():
    cuts: Any = np.array([0, 3, 6])
    zero, three, six = cuts
    left, right = (whole((4, 6)).sliced(1, *span) for span in ((zero, three), (three, six)))
    assert len(overlap_groups([left.region(), right.region()])) == 2
    sizes: Any = np.array([3, 5])
    graph = from_jax(
        lambda w, x: [x @ part for part in lax.split(w, sizes, axis=1)],
        array(4, 8),
        array(2, 4),
        param_argnums=0,
    )
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(48, (0,)), (80, (1,))]


def test_regions_are_grouped_where_they_share_an_element():
    table = whole((4, 6))
    left, right = table.sliced(1, 0, 3).region(), table.sliced(1, 3, 6).region()
    row = table.row(1).region()
    corner = table.sliced(0, 2, 4).sliced(1, 4, 6).region()
    assert overlap_groups([left, right]) == [[left], [right]]
    assert overlap_groups([left, corner]) == [[left], [corner]]
    assert [set(group) for group in overlap_groups([left, row, right])] == [{left, row, right}]


@pytest.mark.parametrize(
    ("dtype", "count", "size", "fixed"),
    [
        (jnp.int4, 15, 8, True),
        (jnp.uint4, 16, 8, True),
        (jnp.int2, 15, 4, True),
        (jnp.int8, 15, 15, True),
        (jnp.bool_, 15, 15, True),
        (jnp.int32, 15, 60, True),
        (jnp.float4_e2m1fn, 15, 8, True),
        (jnp.float8_e4m3fn, 15, 15, True),
        (jnp.float8_e5m2, 15, 15, True),
        (jnp.bfloat16, 15, 30, False),
        (jnp.float32, 15, 60, False),
    ],
)
def test_each_type_counts_its_own_bits_and_floats_of_16_bits_and_more_alone_scale(
    dtype, count, size, fixed
):
    def fn(w, x):
        return x * w.astype(jnp.float32)

    given = array(count, dtype=dtype), array(count)
    graph = from_jax(fn, *given, param_argnums=0)
    assert [(w.bytes, w.fixed) for w in graph.weights] == [(size, fixed)]
    # a weight that is cast is read in its own type
    assert graph.nodes[0].bytes_accessed == size + 2 * 4 * count
    assert graph.nodes[0].fixed_bytes == (size if fixed else 0)
    deployed = from_jax(fn, *given, param_argnums=0, element_bytes=2)
    assert [w.bytes for w in deployed.weights] == [size if fixed else 2 * count]


def test_tensors_of_integers_and_booleans_are_fixed():
    def fn(x, ids):
        return jnp.where(x > 0, x, 1.0), ids + 1

    graph = from_jax(fn, array(4), array(4, dtype=jnp.int32))
    assert [(node.op, node.bytes_accessed, node.fixed_bytes) for node in graph.nodes] == [
        ("gt", 16 + 4, 4),
        ("select_n", 4 + 16 + 16, 4),
        ("add", 32, 32),
    ]
    assert [(k.bytes, k.fixed) for k in graph.tensors] == [(4, True), (16, False), (16, True)]
    small = graph.rescaled(1)
    assert [node.bytes_accessed for node in small.nodes] == [4 + 4, 4 + 4 + 4, 32]
    assert small == from_jax(fn, array(4), array(4, dtype=jnp.int32), element_bytes=1)


def test_rows_of_a_quantised_table_are_read_in_its_own_type():
    def fn(table, ids):
        return table.astype(jnp.float32)[ids]

    graph = from_jax(fn, array(100, 16, dtype=jnp.int8), array(3, dtype=jnp.int32), param_argnums=0)
    gather = next(node for node in graph.nodes if node.op == "gather")
    assert gather.bytes_accessed == 3 * 16 + 3 * 4 + 3 * 64
    assert gather.fixed_bytes == 3 * 16 + 3 * 4


def test_real_transforms_count_half_of_complex_ones():
    full = 5 * 64 * 1024 * 10
    complex_fft = from_jax(jnp.fft.fft, array(64, 1024, dtype=jnp.complex64))
    real = from_jax(jnp.fft.rfft, array(64, 1024))
    inverse = from_jax(lambda x: jnp.fft.irfft(x, 1024), array(64, 513, dtype=jnp.complex64))
    assert [g.nodes[-1].flops for g in (complex_fft, real, inverse)] == [full, full / 2, full / 2]
