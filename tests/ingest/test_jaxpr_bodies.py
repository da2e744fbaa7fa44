"""Bodies that other importers leave shut: devices, kernels, exported modules, sparse products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.experimental import pallas as pl
from jax.experimental import sparse
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxpart.ingest.jaxpr.importer import from_jax


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def mlp(x, a, b):
    return jnp.maximum(x @ a, 0.0) @ b


WEIGHTS = (array(16, 64), array(64, 16))


def sharded(devices, *, check_vma=True):
    return jax.shard_map(
        lambda x, a, b: lax.psum(mlp(x, a, b), "x"),
        mesh=AbstractMesh((devices,), ("x",)),
        in_specs=(P(), P(None, "x"), P("x", None)),
        out_specs=P(),
        check_vma=check_vma,
    )


def test_a_shard_map_on_one_device_is_its_body():
    plain = from_jax(lambda p, x: mlp(x, *p), WEIGHTS, array(8, 16), param_argnums=0)
    f = sharded(1)
    graph = from_jax(lambda p, x: f(x, *p), WEIGHTS, array(8, 16), param_argnums=0)
    assert graph.sha256 == plain.sha256


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_shard_map_on_several_devices_counts_the_work_of_all(check_vma):
    f = sharded(4, check_vma=check_vma)
    graph = from_jax(lambda p, x: f(x, *p), WEIGHTS, array(8, 16), param_argnums=0)
    assert [node.op for node in graph.nodes][:3] == ["dot_general", "max", "dot_general"]
    # the products and the activation of the whole, and the sum of four partial results
    assert [node.flops for node in graph.nodes] == [
        2 * 8 * 16 * 64,
        8 * 64,
        2 * 8 * 64 * 16,
        3 * 8 * 16,
    ]
    assert [w.bytes for w in graph.weights] == [4 * 16 * 64] * 2
    assert graph.tensors[0].bytes == 4 * 8 * 64


def product_kernel(x, w, out):
    out[...] = x[...] @ w[...]


def product(**settings):
    def fn(x, w):
        return pl.pallas_call(
            product_kernel,
            out_shape=array(128, 512),
            grid=(4,),
            in_specs=[
                pl.BlockSpec((128, 256), lambda i: (0, 0)),
                pl.BlockSpec((256, 128), lambda i: (0, i)),
            ],
            out_specs=pl.BlockSpec((128, 128), lambda i: (0, i)),
            interpret=True,
            **settings,
        )(x, w)

    return fn


def test_a_kernel_counts_its_own_estimate():
    estimate = pl.CostEstimate(flops=1000, transcendentals=24, bytes_accessed=4000)
    arguments = array(128, 256), array(256, 512)
    graph = from_jax(product(cost_estimate=estimate), *arguments, param_argnums=1)
    assert (graph.nodes[0].flops, graph.nodes[0].bytes_accessed) == (1024, 4000)
    int8 = from_jax(product(cost_estimate=estimate), *arguments, param_argnums=1, element_bytes=1)
    assert int8.nodes[0].bytes_accessed == 1000


def test_a_kernel_without_an_estimate_counts_its_body_for_each_step_of_the_grid():
    graph = from_jax(product(), array(128, 256), array(256, 512), param_argnums=1)
    assert [(node.op, node.flops) for node in graph.nodes] == [("pallas_call", 2 * 128 * 256 * 512)]


def test_an_exported_module_counts_what_xla_counts_and_says_that_it_is_one_node():
    exported = export.export(jax.jit(lambda x, w: jnp.tanh(x @ w)))(array(8, 4), array(4, 16))
    with pytest.warns(UserWarning, match=r"call_exported_0 is kept as one node.*jax\.export"):
        graph = from_jax(
            lambda w, x: exported.call(x, w), array(4, 16), array(8, 4), param_argnums=0
        )
    (node,) = graph.nodes
    assert node.flops == 2 * 8 * 4 * 16 + 8 * 16
    assert [w.bytes for w in graph.weights] == [256]


def test_a_sparse_product_counts_two_per_stored_element_and_column():
    matrix = sparse.BCOO((jnp.ones(20), jnp.zeros((20, 2), jnp.int32)), shape=(16, 32))
    graph = from_jax(lambda m, x: m @ x, matrix, array(32, 8), param_argnums=0)
    (node,) = graph.nodes
    assert node.flops == 2 * 20 * 8
    assert [(w.bytes, w.fixed) for w in graph.weights] == [(80, False), (160, True)]


def test_a_branch_counts_the_bytes_of_its_costliest_side():
    def fn(which, x):
        return lax.cond(which, lambda x: x @ x @ x, lambda x: x, x)

    graph = from_jax(fn, array(dtype=jnp.bool_), array(4, 4))
    # two products of three arrays; the first reads one array twice, and counts it once
    assert graph.nodes[-1].bytes_accessed == 4 * 16 * (2 + 3)


def test_the_warning_for_an_unknown_operation_says_that_the_figures_hang_on_it():
    with pytest.warns(UserWarning, match="no cost rule for svd.*the figures hang on it"):
        from_jax(lambda x: jnp.linalg.svd(x, compute_uv=False), array(6, 4))
