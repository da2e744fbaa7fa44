"""Each way to divide a traced operation, run in parts and compared with the whole."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.division_oracle import Parts, Run, check_cuts

from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.ingest.pt2.importer import from_pt2
from jaxpart.ingest.rewrite.contract import contract
from jaxpart.ingest.rewrite.fuse import fused
from jaxpart.ingest.stablehlo.importer import from_stablehlo

FUNCTIONS = {}


def function(make):
    """Registers a function of parameters and inputs, with their shapes."""
    FUNCTIONS[make.__name__] = make
    return make


def floats(*shape):
    rng = np.random.default_rng(sum(shape) + len(shape))
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@function
def mlp():
    def fn(p, x):
        h = jax.nn.gelu(x @ p["up"] + p["bias"][None])
        return x + h @ p["down"].T

    return fn, {"up": floats(6, 8), "bias": floats(8), "down": floats(6, 8)}, floats(4, 6)


@function
def attention():
    def fn(p, x):
        q, k, v = ((x @ p[n]).reshape(2, 4, 2, 6) for n in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        mask = jnp.tril(jnp.ones((4, 4), bool))
        probs = jax.nn.softmax(jnp.where(mask[None, None], scores, -1e9), axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", probs, v).reshape(2, 4, 12) @ p["o"]

    return fn, {n: floats(12, 12) for n in "qkvo"}, floats(2, 4, 12)


@function
def layers_of_a_stack():
    def fn(p, x):
        def layer(x, w):
            mean = x.mean(-1, keepdims=True)
            x = (x - mean) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * w["scale"][None]
            return x + jnp.tanh(x @ w["a"].T), x.sum(0)

        return lax.scan(layer, x, p)

    return fn, {"a": floats(3, 6, 6), "scale": floats(3, 6)}, floats(4, 6)


@function
def embedding():
    def fn(p, ids):
        rows = p["table"][ids] + p["positions"][:4][None]
        picked = jnp.take_along_axis(rows, (ids[..., None] % 6), axis=2)
        return rows @ p["table"].T, picked, jnp.argmax(rows, -1), lax.top_k(rows, 2)

    return fn, {"table": floats(10, 6), "positions": floats(8, 6)}, jnp.arange(8).reshape(2, 4)


@function
def convolutions():
    def fn(p, x):
        def conv(x, w, **options):
            numbers = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)

        x = jax.nn.relu(conv(x, p["a"], window_strides=(1, 1), padding="SAME"))
        x = lax.pad(x, jnp.float32(0), ((0, 0, 0), (1, 1, 0), (2, 0, 0), (0, 0, 0)))
        x = conv(x, p["b"], window_strides=(2, 1), padding="VALID", feature_group_count=2)
        x = conv(x, p["c"], window_strides=(1, 1), padding="SAME", rhs_dilation=(1, 2))
        up = conv(x, p["d"], window_strides=(1, 1), padding=((2, 2), (1, 1)), lhs_dilation=(2, 1))
        pooled = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 2, 1), "SAME")
        mean = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return up, pooled, mean, x.mean((1, 2))

    shapes = {"a": (3, 3, 4, 4), "b": (3, 3, 2, 4), "c": (3, 3, 4, 6), "d": (3, 3, 6, 2)}
    return fn, {n: floats(*shape) for n, shape in shapes.items()}, floats(2, 12, 10, 4)


@function
def layouts():
    def fn(p, x):
        joined = jnp.concatenate([x, p["a"][None] * x[:, :, :1]], axis=2)
        left, right = jnp.split(joined, [3], axis=2)
        moved = jnp.transpose(left, (2, 0, 1))[::-1].reshape(3, 8, 3)
        kept = lax.slice(x, (0, 1, 0), (4, 6, 4), (1, 1, 2))
        row = lax.dynamic_slice(x, (x.sum().astype(int) % 4, 0, 0), (1, 6, 4))
        written = lax.dynamic_update_slice(x, row, (0, 0, 1))
        summed = jnp.cumsum(x, 1) + lax.cummax(x, axis=1)
        ordered, ids = lax.sort_key_val(x, lax.broadcasted_iota(jnp.int32, x.shape, 1), 1)
        added = x.at[:, jnp.array([1, 3])].add(right[:, :2, :4].repeat(1, 1))
        merged = x.reshape(2, 12, 4).reshape(24, 4).reshape(6, 16)
        return moved, kept, written, summed, ordered, ids, added, merged, jnp.fft.fft(x).real

    return fn, {"a": floats(6, 4)}, floats(4, 6, 4)


@function
def recurrent():
    def fn(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["x"] + h @ p["h"][:, :6])
            return h, h

        h, hs = lax.scan(step, jnp.zeros((2, 6)), xs)
        return hs.reshape(2, 4, 6) @ p["h"], h

    return fn, {"x": floats(6, 6), "h": floats(6, 12)}, floats(4, 2, 6)


@function
def heads_of_one_weight():
    def fn(p, x):
        w = p["qkv"].reshape(3, 2, 4, 8).transpose(0, 3, 1, 2)
        q, k, v = (jnp.einsum("sd,dhe->she", x, w[i]) for i in range(3))
        return jnp.einsum("she,the->hst", q, k), v * (p["scale"] * p["scale"])[None, None]

    return fn, {"qkv": floats(24, 8), "scale": floats(4)}, floats(5, 8)


@function
def bits():
    def fn(p, x):
        as_bytes = lax.bitcast_convert_type(x + p["a"], jnp.uint8)
        again = lax.bitcast_convert_type(as_bytes[:, ::-1], jnp.float32)
        return as_bytes.astype(jnp.int32) + 1, again, lax.bitcast_convert_type(x, jnp.int32)

    return fn, {"a": floats(4, 4)}, floats(4, 4)


@pytest.fixture(scope="module", params=FUNCTIONS)
def run(request):
    return Run(*FUNCTIONS[request.param]())


def test_parts_of_an_equation_compute_the_whole_with_their_share_of_the_flops(run):
    assert check_cuts(run) > 10


def test_parts_of_a_node_need_the_slices_that_the_graph_names_and_no_more(run):
    parts = Parts(run)
    assert parts.check(parts.graph, range(len(parts.graph.nodes))) > 10


def test_parts_of_a_kernel_need_the_slices_that_the_graph_names_and_no_more(run):
    parts = Parts(run)
    assert parts.check(*fused(parts.graph)) > 3


def test_a_kernel_that_hands_on_what_it_sums_over_is_not_divided_by_the_sum():
    def fn(p, x):
        moved = jnp.transpose(jnp.tanh(x))
        return moved[:2], moved @ p["a"]

    parts = Parts(Run(fn, {"a": floats(4, 5)}, floats(4, 6)))
    group = [int(node.op != "tanh") for node in parts.graph.nodes]
    kernels = contract(parts.graph, group)
    assert parts.check(*kernels) == len(kernels.graph.nodes[0].divide) == 2
    assert not kernels.graph.nodes[1].divide


def block(p, x):
    """A block of a transformer: 8 positions, 2 heads of 6, 20 hidden features."""
    q, k, v = ((x @ p[n]).reshape(1, 8, 2, 6) for n in "qkv")
    probs = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
    x = x + jnp.einsum("bhqk,bkhd->bqhd", probs, v).reshape(1, 8, 12) @ p["o"]
    return x + jax.nn.gelu(x @ p["up"] + p["bias"][None, None]) @ p["down"]


def block_graph(**options):
    shapes = {**dict.fromkeys("qkvo", (12, 12)), "up": (12, 20), "bias": (20,), "down": (20, 12)}
    params = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((1, 8, 12), jnp.float32)
    return from_jax(block, params, x, param_argnums=0, **options)


def reached(graph, start, axis):
    """The nodes to which a cut of a node along an axis passes, and how they are divided with it."""
    found, pending = {}, {start}
    while pending:
        v = pending.pop()
        made = [(k, tensor) for k, tensor in enumerate(graph.tensors) if tensor.producer == v]
        for k, q in ((k, q) for k, tensor in made for q in tensor.consumers):
            cut = [d for d in graph.nodes[q].divide if (k, axis) in d.reads]
            if cut and q not in found:
                found[q] = cut
                pending.update({q} if any(d.join is None for d in cut) else ())
    return found


@pytest.mark.parametrize("fuse", [False, True])
def test_the_hidden_axis_of_an_mlp_passes_from_the_first_product_to_the_sum_of_the_second(fuse):
    graph = block_graph(fuse=fuse)
    up, down = products_of(graph, 960)
    (hidden,) = (d for d in graph.nodes[up].divide if d.ways == 20 and d.join is None)
    assert {label for _, label in hidden.weights} == {hidden.axis}
    # Not rows, which the bias repeats, but the feature axis of both weights.
    assert len(hidden.weights) == (2 if fuse else 1)
    found = reached(graph, up, hidden.axis)
    assert set(found) == set(range(up + 1, down + 1))
    (total,) = found[down]
    assert (total.ways, total.join, total.axis) == (20, "sum", hidden.axis)
    assert {label for _, label in total.weights} == {hidden.axis}


@pytest.mark.parametrize("fuse", [False, True])
def test_heads_pass_from_the_projections_through_attention_to_the_output_projection(fuse):
    graph = block_graph(fuse=fuse)
    *inner, output = products_of(graph, 576)
    found = {}
    for v in inner:
        (features,) = (d for d in graph.nodes[v].divide if d.weights and d.join is None)
        found.update(reached(graph, v, features.axis))
    heads = [v for v, cut in found.items() if all(d.ways == 2 for d in cut)]
    assert len(heads) == (6 if fuse else 16)
    # The residual addition in the kernel of the output projection adds no partial sums.
    assert fuse == (output not in found)
    if not fuse:
        (total,) = found[output]
        assert (total.ways, total.join) == (12, "sum")


def products_of(graph, size):
    """The products with a weight of this size in bytes, in order."""
    return sorted(v for w in graph.weights if w.bytes == size for v in w.consumers)


@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_a_stablehlo_module_says_the_same_of_its_products(name):
    fn, params, x = FUNCTIONS[name]()
    text = jax.jit(fn, keep_unused=True).lower(params, x).as_text().encode()
    leaves = range(len(jax.tree.leaves(params)))
    graphs = [
        from_jax(fn, params, x, param_argnums=0),
        from_stablehlo(text, param_argnums=leaves),
    ]
    ours, theirs = (
        [
            (division.ways, division.join, division.halo, len(division.weights))
            for node in graph.nodes
            if node.op in ("dot_general", "conv_general_dilated")
            for division in node.divide
        ]
        for graph in graphs
    )
    assert ours == theirs
    assert ours


def test_every_product_of_an_exported_torch_program_can_be_divided():
    graph = from_pt2(Path(__file__).parent / "programs" / "encoder.pt2")
    products = [node for node in graph.nodes if node.op == "dot_general"]
    assert products
    assert all(node.divide for node in products)
