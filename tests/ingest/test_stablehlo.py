"""StableHLO modules: the same graph as from JAX, and the same numbers when they run."""

from __future__ import annotations

import gzip
import runpy
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.interpreters.mlir
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jaxlib.mlir.dialects import stablehlo

import jaxpart
from jaxpart.errors import EmptyGraphError
from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.ingest.rewrite.fuse import fuse
from jaxpart.ingest.stablehlo.importer import from_stablehlo
from jaxpart.ingest.stablehlo.module import parse
from jaxpart.ingest.stablehlo.rules import rules_for
from jaxpart.problem.graph import Graph
from tests.support.lowered_functions import CASES, array

CHECK = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "studies" / "check_flops.py"))
PRODUCTS = ("dot_general", "conv_general_dilated")


@pytest.fixture(autouse=True)
def loops_of_unknown_length_are_kept():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*while_0 is kept as one node")
        yield


def lowered(fn, *arguments) -> bytes:
    return jax.jit(fn, keep_unused=True).lower(*arguments).as_text().encode()


def both(fn, params, x) -> tuple[Graph, Graph]:
    leaves = range(len(jax.tree.leaves(params)))
    ours = from_jax(fn, params, x, param_argnums=0)
    return ours, from_stablehlo(lowered(fn, params, x), param_argnums=leaves)


def products(graph: Graph) -> list[float]:
    return [node.flops for node in graph.nodes if node.op in PRODUCTS]


def weights(graph: Graph) -> list[float]:
    return sorted(weight.bytes for weight in graph.weights)


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


@pytest.mark.parametrize("name", CASES)
def test_products_and_weights_equal_those_of_jax_and_the_rest_is_within_two_percent(name):
    ours, theirs = both(*CASES[name])

    assert products(theirs) == products(ours)
    assert weights(theirs) == weights(ours)
    assert theirs.total_flops == pytest.approx(ours.total_flops, rel=0.02)
    ours, theirs = fuse(ours), fuse(theirs)
    bytes_of_both = [sum(node.bytes_accessed for node in g.nodes) for g in (ours, theirs)]
    # The second result of an argmax is written, though nothing reads it.
    assert bytes_of_both[1] == pytest.approx(
        bytes_of_both[0], rel=0.1 if name == "reductions" else 0.02
    )
    assert len(theirs.nodes) == len(ours.nodes)


@pytest.mark.parametrize("name", CASES)
def test_a_module_that_went_back_to_jax_computes_what_it_was_lowered_from(name):
    fn, params, x = CASES[name]
    random = np.random.default_rng(0)

    def filled(aval):
        if jnp.issubdtype(aval.dtype, jnp.integer):
            return random.integers(0, 5, aval.shape).astype(aval.dtype)
        return random.normal(size=aval.shape).astype(aval.dtype)

    params, x = jax.tree.map(filled, (params, x))
    module = rules_for(parse(lowered(fn, params, x), name), name)
    assert not module.constants

    with jax.enable_x64(True):
        results = jax.jit(lambda *given: module(given, []))(*jax.tree.leaves((params, x)))

    for result, expected in zip(results, jax.tree.leaves(jax.jit(fn)(params, x)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("name", {**CHECK["EXACT"], **CHECK["BY_DESIGN"]})
def test_flops_of_single_operations_are_those_of_jax(name):
    fn, arguments, _ = {**CHECK["EXACT"], **CHECK["BY_DESIGN"]}[name]
    # JAX lowers a logistic function to negate, exponential, add and divide.
    factor = 4 if name == "logistic" else 1

    theirs = from_stablehlo(lowered(fn, *arguments)).total_flops

    assert theirs == factor * from_jax(fn, *arguments).total_flops


def pooled_gradient(x):
    def pool(y):
        return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID").sum()

    return jax.grad(pool)(x)


def factored(x):
    square = lax.linalg.cholesky(x @ x.T, symmetrize_input=False)
    return lax.linalg.triangular_solve(square, x, left_side=True, lower=True)


@pytest.mark.parametrize(
    ("fn", "argument"),
    [
        (pooled_gradient, array(2, 8, 8)),
        (factored, array(6, 6)),
        (lambda x: lax.reduce_precision(x, 5, 10), array(4, 4)),
        (lambda x: lax.bitcast_convert_type(x, jnp.int32) + 1, array(4, 4)),
        (lambda x: lax.optimization_barrier(x) + 1, array(4, 4)),
        (lambda x: lax.complex(x, x) * 1j, array(4, 4)),
        (lambda x: lax.cumsum(x, 1, reverse=True) + lax.cummax(x, 0), array(4, 5)),
        (lambda x: lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "SAME"), array(1, 3, 5, 5)),
        (
            lambda x: lax.reduce((x, x), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (0,)),
            array(4, 5),
        ),
    ],
)
def test_operations_that_only_their_names_price_count_as_in_jax(fn, argument):
    text = jax.jit(fn).trace(argument).lower(lowering_platforms=("tpu",)).as_text()

    graph = from_stablehlo(text.encode())

    assert graph.total_flops == from_jax(fn, argument).total_flops
    assert ops(graph) == ops(from_jax(fn, argument))


def test_random_bits_and_collectives_of_one_device_have_the_names_of_jax():
    text = b"""func.func @main(%k: tensor<2xui64>) -> tensor<64xui32> {
      %0, %1 = stablehlo.rng_bit_generator %k, algorithm = THREE_FRY
        : (tensor<2xui64>) -> (tensor<2xui64>, tensor<64xui32>)
      %2 = "stablehlo.all_reduce"(%1) <{replica_groups = dense<0> : tensor<1x1xi64>}> ({
      ^bb0(%a: tensor<ui32>, %b: tensor<ui32>):
        %3 = stablehlo.add %a, %b : tensor<ui32>
        stablehlo.return %3 : tensor<ui32>
      }) : (tensor<64xui32>) -> tensor<64xui32>
      return %2 : tensor<64xui32>
    }"""

    graph = from_stablehlo(text)

    assert [(node.op, node.flops) for node in graph.nodes] == [("rng_bit_generator", 2 + 64)]


def test_batch_normalisation_is_written_out_and_folds_its_parameters():
    text = b"""func.func @main(%x: tensor<2x3x4xf32>, %p: tensor<3xf32>) -> tensor<2x3x4xf32> {
      %0 = "stablehlo.batch_norm_inference"(%x, %p, %p, %p, %p)
        <{epsilon = 1.0e-3 : f32, feature_index = 1 : i64}>
        : (tensor<2x3x4xf32>, tensor<3xf32>, tensor<3xf32>, tensor<3xf32>, tensor<3xf32>)
        -> tensor<2x3x4xf32>
      return %0 : tensor<2x3x4xf32>
    }"""

    graph = from_stablehlo(text, param_argnums=1)

    assert ops(graph) == {"sub": 1, "mul": 2, "add": 1}
    assert weights(graph) == [3 * 4]


@pytest.mark.parametrize("form", ["text", "bytecode", "artifact", "gzip", "lowered"])
def test_every_form_of_a_module_gives_the_same_graph(tmp_path, form):
    fn, params, x = CASES["mlp"]
    text = lowered(fn, params, x)
    module = parse(text, "mlp")
    contents = {
        "text": text,
        "bytecode": jax.interpreters.mlir.module_to_bytecode(module),
        "artifact": stablehlo.serialize_portable_artifact(module, stablehlo.get_minimum_version()),
        "gzip": gzip.compress(text),
    }
    expected = from_stablehlo(text, param_argnums=range(4), name="mlp")
    if form == "lowered":
        source = jax.jit(fn).lower(params, x)
        assert from_stablehlo(source, param_argnums=range(4), name="mlp") == expected
        return
    path = tmp_path / "mlp.file"
    path.write_bytes(contents[form])

    assert from_stablehlo(path, param_argnums=range(4)) == expected
    assert jaxpart.load_graph(path, param_argnums=range(4)) == expected


@pytest.mark.parametrize("name", ["attention", "scan", "lookups", "composite", "branches"])
def test_an_exported_function_has_the_arguments_that_it_was_written_with(tmp_path, name):
    fn, params, x = CASES[name]
    exported = export.export(jax.jit(fn))(params, x)
    path = tmp_path / "stage.jaxexport"
    path.write_bytes(exported.serialize())

    graph = from_stablehlo(path, param_argnums=0)

    assert products(graph) == products(from_jax(fn, params, x, param_argnums=0))
    assert weights(graph) == weights(from_jax(fn, params, x, param_argnums=0))
    assert from_stablehlo(exported, param_argnums=0, name="stage") == graph
    assert jaxpart.load_graph(path, param_argnums=(0,)) == graph


def test_arguments_that_an_exported_function_does_not_use_keep_their_positions():
    exported = export.export(jax.jit(lambda unused, w, *, x: x @ w))(
        array(3), array(8, 4), x=array(2, 8)
    )

    graph = from_stablehlo(exported, param_argnums=1)

    assert [weight.bytes for weight in graph.weights] == [8 * 4 * 4]


def test_of_a_module_for_several_platforms_the_first_is_counted():
    def fn(x, w):
        return lax.platform_dependent(x, cpu=lambda x: x @ w, default=lambda x: x * 2)

    exported = export.export(jax.jit(fn), platforms=("cpu", "tpu"))(array(2, 8), array(8, 8))

    assert ops(from_stablehlo(exported, param_argnums=1)) == {"dot_general": 1}


def test_a_polynomial_of_an_exported_module_is_the_difference_to_jax():
    # A portable artifact holds no chlo: erfc, one FLOP an element here, is written out in it.
    def fn(x):
        return lax.erfc(x)

    exported = from_stablehlo(export.export(jax.jit(fn))(array(30, 70)))

    assert ops(from_stablehlo(lowered(fn, array(30, 70)))) == {"erfc": 1}
    assert exported.total_flops > 20 * 30 * 70


def test_a_lookup_that_fills_in_values_is_written_out_when_lowered():
    def fn(table, i):
        return jnp.take(table, i, axis=0)

    ours, theirs = both(fn, array(100, 8), array(2, 5, dtype=jnp.int32))

    assert ops(theirs) - ops(ours) == {"select_n": 1}
    assert ops(ours) - ops(theirs) == {}


def test_a_loop_of_unknown_length_counts_one_step_and_says_so():
    fn, params, x = CASES["while"]
    with pytest.warns(UserWarning, match="while_0 is kept as one node.*at run time only"):
        graph = from_stablehlo(lowered(fn, params, x), param_argnums=0)

    assert ops(graph) == {"while": 1}


def test_a_loop_with_more_steps_than_the_limit_is_one_node_of_all_its_steps():
    fn, params, x = CASES["for"]
    with pytest.warns(UserWarning, match="all its 5 steps"):
        graph = from_stablehlo(lowered(fn, params, x), param_argnums=0, unroll_limit=2)

    whole = from_stablehlo(lowered(fn, params, x), param_argnums=0)
    assert len(graph.nodes) == 1
    # Counting and comparing the steps is work of a loop that is kept.
    assert graph.total_flops == whole.total_flops + 5 * 3


@pytest.mark.parametrize(
    ("bounds", "is_split"),
    [
        (["0:2, 0:6", "2:6, 0:6"], True),
        (["0:6, 0:1", "0:6, 1:2", "0:6, 2:6"], True),
        (["0:2, 0:6", "2:5, 0:6"], False),
        (["0:3, 0:6", "2:6, 0:6"], False),
        (["2:6, 0:6", "0:2, 0:6"], False),
        (["0:2, 0:3", "2:6, 3:6"], False),
        (["0:6:2, 0:6", "2:6, 0:6"], False),
        (["0:6, 0:6", "0:6, 0:6"], False),
    ],
)
def test_slices_that_tile_an_array_along_one_axis_are_one_split(bounds, is_split):
    x = np.arange(36.0, dtype=np.float32).reshape(6, 6)
    spans = [[slice(*map(int, one.split(":"))) for one in b.split(", ")] for b in bounds]
    taken = [x[tuple(one)] for one in spans]
    shapes = ["x".join(map(str, part.shape)) for part in taken]
    lines = [
        f"%{i} = stablehlo.slice %x [{b}] : (tensor<6x6xf32>) -> tensor<{s}xf32>"
        for i, (b, s) in enumerate(zip(bounds, shapes, strict=True))
    ]
    names = ", ".join(f"%{i}" for i in range(len(bounds)))
    types = ", ".join(f"tensor<{s}xf32>" for s in shapes)
    text = "\n".join(
        [
            f"func.func @main(%x: tensor<6x6xf32>) -> ({types}) {{",
            *lines,
            f"return {names} : {types} }}",
        ]
    )
    module = rules_for(parse(text.encode(), "text"), "text")

    for found, expected in zip(module([jnp.asarray(x)], []), taken, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert ("split" in ops(from_stablehlo(text.encode()))) == is_split


def test_a_custom_call_is_counted_by_its_shapes_and_named():
    text = b"""func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> tensor<4x8xf32> {
      %0 = stablehlo.dot %x, %w : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
      %1 = stablehlo.custom_call @mine(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32>
      %2 = stablehlo.custom_call @Sharding(%1) : (tensor<4x8xf32>) -> tensor<4x8xf32>
      return %2 : tensor<4x8xf32>
    }"""
    with pytest.warns(UserWarning, match="no cost rule for custom_call_mine"):
        graph = from_stablehlo(text, param_argnums=1)

    assert [(node.op, node.flops) for node in graph.nodes] == [
        ("dot_general", 2 * 4 * 8 * 8),
        ("custom_call_mine", 4 * 8),
    ]
    assert graph.nodes[1].bytes_accessed == 2 * 4 * 4 * 8


def test_an_operation_without_a_rule_is_named_with_its_dialect():
    text = b"""func.func @main(%x: tensor<4xf32>) -> tensor<4xi1> {
      %0 = chlo.is_inf %x : tensor<4xf32> -> tensor<4xi1>
      return %0 : tensor<4xi1>
    }"""
    with pytest.warns(UserWarning, match="no cost rule for chlo.is_inf"):
        graph = from_stablehlo(text)

    assert graph.total_flops == 4


def test_large_constants_are_weights_whether_their_elements_are_there_or_not():
    matrix = np.arange(4096.0, dtype=np.float32).reshape(64, 64)
    text = jax.jit(lambda x: (x @ matrix) @ matrix).lower(array(2, 64)).as_text()
    assert text.count("tensor<64x64xf32>") > 1
    elided = b"""func.func @main(%x: tensor<2x64xf32>) -> tensor<2x64xf32> {
      %w = stablehlo.constant dense_resource<__elided__> : tensor<64x64xf32>
      %0 = stablehlo.dot %x, %w : (tensor<2x64xf32>, tensor<64x64xf32>) -> tensor<2x64xf32>
      return %0 : tensor<2x64xf32>
    }"""

    assert weights(from_stablehlo(text.encode())) == [64 * 64 * 4]
    assert weights(from_stablehlo(elided)) == [64 * 64 * 4]


def test_a_constant_of_equal_elements_is_read_as_one():
    text = b"""func.func @main(%x: tensor<64x64xf32>) -> tensor<64x64xf32> {
      %w = stablehlo.constant dense<2.0> : tensor<64x64xf32>
      %0 = stablehlo.multiply %x, %w : tensor<64x64xf32>
      return %0 : tensor<64x64xf32>
    }"""

    graph = from_stablehlo(text)

    assert graph.weights == ()
    assert graph.nodes[0].bytes_accessed == 2 * 4 * 64 * 64


def test_types_keep_their_sizes():
    text = b"""func.func @main(%x: tensor<8xf64>, %i: tensor<8xi64>, %q: tensor<8xi4>,
                               %h: tensor<8xf8E4M3FN>) -> (tensor<8xf64>, tensor<8xi64>) {
      %0 = stablehlo.convert %q : (tensor<8xi4>) -> tensor<8xi64>
      %1 = stablehlo.add %0, %i : tensor<8xi64>
      %2 = stablehlo.convert %h : (tensor<8xf8E4M3FN>) -> tensor<8xf64>
      %3 = stablehlo.multiply %2, %x : tensor<8xf64>
      return %3, %1 : tensor<8xf64>, tensor<8xi64>
    }"""

    graph = from_stablehlo(text)

    assert [node.bytes_accessed for node in graph.nodes] == [4 + 64, 3 * 64, 8 + 64, 3 * 64]
    assert graph.element_bytes == 8
    scaled = from_stablehlo(text, element_bytes=1)
    assert [node.bytes_accessed for node in scaled.nodes] == [4 + 64, 3 * 64, 8 + 8, 3 * 8]


def test_a_state_is_memory_of_a_chip_and_no_edge():
    def fn(cache, x):
        return lax.dynamic_update_slice(cache, x, (3, 0)) @ x.T

    graph = from_stablehlo(lowered(fn, array(16, 8), array(1, 8)), state_argnums=0)

    assert weights(graph) == weights(from_jax(fn, array(16, 8), array(1, 8), state_argnums=0))
    assert weights(graph)


def test_a_module_of_parameters_alone_has_no_nodes():
    with pytest.raises(EmptyGraphError, match="no operation depends on an input"):
        from_stablehlo(lowered(lambda w: w + 1, array(3)), param_argnums=0)


def test_a_forgotten_parameter_is_warned_of():
    with pytest.warns(UserWarning, match="no argument is named as parameters"):
        from_stablehlo(lowered(jnp.matmul, array(4, 1024), array(1024, 1024)))
