"""JAX functions: what becomes a node, a weight, a tensor, and what it costs."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from jaxpart.errors import EmptyGraphError, InputError
from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.problem.graph import Graph

CHECK = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "studies" / "check_flops.py"))


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def edges(graph: Graph) -> list[tuple[str, str]]:
    names = [node.name for node in graph.nodes]
    return sorted((names[k.producer], names[q]) for k in graph.tensors for q in k.consumers)


@pytest.mark.parametrize("name", CHECK["EXACT"])
def test_flops_are_within_two_percent_of_xla(name):
    ours, xla = CHECK["flops_of_both"](CHECK["EXACT"][name])
    assert ours == pytest.approx(xla, rel=0.02)


def test_flops_of_loops_count_every_known_trip_and_the_costliest_branch():
    def scanned(c, xs):
        return lax.scan(lambda c, x: (c @ x, None), c, xs)[0]

    def looped(x):
        return lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ c, x)

    def branched(which, x):
        return lax.cond(which, lambda x: x @ x, lambda x: x, x)

    with pytest.warns(UserWarning, match="scan_0 is kept as one node"):
        scan = from_jax(scanned, array(4, 4), array(10, 4, 4), unroll_limit=0)
    assert (ops(scan), scan.total_flops) == (["scan"], 10 * 128)
    # each step reads its carry and its row, and writes its carry
    assert scan.nodes[0].bytes_accessed == 10 * 4 * (16 + 16 + 16)
    with pytest.warns(UserWarning, match="while_0 is kept as one node.*at run time only"):
        loop = from_jax(looped, array(4, 4))
    assert (ops(loop), loop.total_flops) == (["while"], 128 + 1)
    branch = from_jax(branched, array(dtype=jnp.bool_), array(4, 4))
    assert branch.nodes[-1].op == "cond"
    assert branch.nodes[-1].flops == 128


def test_one_node_per_equation_and_one_tensor_per_variable():
    def fn(w, x):
        y = jnp.tanh(x @ w)
        return y * y + y

    graph = from_jax(fn, array(8, 8), array(4, 8), param_argnums=0)
    assert [node.name for node in graph.nodes] == ["dot_general_0", "tanh_0", "mul_0", "add_0"]
    assert [(k.producer, k.bytes, k.consumers) for k in graph.tensors] == [
        (0, 128, (1,)),
        (1, 128, (2, 3)),
        (2, 128, (3,)),
        (3, 128, ()),
    ]
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(256, (0,))]
    assert [node.bytes_accessed for node in graph.nodes] == [128 + 256 + 128, 256, 256, 384]
    assert graph.total_flops == 2 * 4 * 8 * 8 + 3 * 32


def test_wrappers_are_opened():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))

    @jax.custom_jvp
    def cosine(x):
        return jnp.cos(x)

    cosine.defjvps(lambda t, y, x: -t * jnp.sin(x))

    def fn(x):
        x = jax.jit(jnp.exp)(x)
        x = jax.checkpoint(jnp.tanh)(x)
        return jax.jit(lambda x: cosine(sine(x)))(x)

    graph = from_jax(fn, array(4))
    assert ops(graph) == ["exp", "tanh", "sin", "cos"]
    assert edges(graph) == [("exp_0", "tanh_0"), ("sin_0", "cos_0"), ("tanh_0", "sin_0")]


def test_a_reduction_counts_the_work_of_combining_two_elements():
    def fn(x):
        def combine(a, b):
            return jnp.tanh(a) + b

        total = lax.reduce(x, np.float32(0), combine, (0,))
        return lax.reduce_window(total, np.float32(0), combine, (3,), (1,), "SAME")

    graph = from_jax(fn, array(5, 8))
    assert [(node.op, node.flops) for node in graph.nodes] == [
        ("reduce", 2 * (5 * 8 - 8)),
        ("reduce_window", 2 * (3 - 1) * 8),
    ]


def test_the_small_programs_inside_reductions_and_sorts_stay_shut():
    def fn(x, u):
        x = lax.reduce_window(x, 0.0, lambda a, b: a * b, (3,), (1,), "SAME")
        x = x.at[jnp.array([1, 2])].add(u)
        return lax.sort(x)

    graph = from_jax(fn, array(9), array(2))
    assert ops(graph) == ["reduce_window", "scatter-add", "sort"]


def test_layout_and_casts_of_a_weight_vanish_and_leave_the_weight_to_its_consumer():
    def fn(params, x):
        w = params["w"].astype(jnp.float32).reshape(8, 4).T
        scale = params["gamma"] / jnp.sqrt(params["variance"] + 1e-3)
        return (x @ w) * jnp.broadcast_to(scale, (5, 8))

    params = {
        "w": array(32, dtype=jnp.bfloat16),
        "gamma": array(8),
        "variance": array(8),
    }
    graph = from_jax(fn, params, array(5, 4), param_argnums=0)
    assert ops(graph) == ["dot_general", "mul"]
    assert sorted((w.bytes, w.consumers) for w in graph.weights) == [
        (32, (1,)),
        (32, (1,)),
        (64, (0,)),
    ]
    # the scale is computed ahead of time, and read once however far it is broadcast
    assert graph.nodes[1].bytes_accessed == 160 + 32 + 160


def test_a_shared_parameter_is_one_weight_with_many_consumers():
    def fn(table, ids):
        return table[ids] @ table.T

    graph = from_jax(fn, array(100, 16), array(3, dtype=jnp.int32), param_argnums=(0,))
    gather, dot = ops(graph).index("gather"), ops(graph).index("dot_general")
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(6400, (gather, dot))]
    # the rows touched, the indices and the result; not the table
    assert graph.nodes[gather].bytes_accessed == 3 * 64 + 3 * 4 + 3 * 64


def test_bytes_of_indexed_tables_are_the_bytes_touched():
    def fn(table, row, i):
        table = lax.dynamic_update_slice(table, row, (i, 0))
        table = table.at[i].set(row[0])
        return lax.dynamic_slice(table, (i, 0), (1, 8)), table[3:5]

    graph = from_jax(fn, array(100, 8), array(1, 8), array(dtype=jnp.int32))
    touched = {node.op: node.bytes_accessed for node in graph.nodes}
    assert touched["dynamic_update_slice"] == 32 + 4 + 32
    assert touched["scatter"] == 32 + 4 + 32 + 32
    assert touched["dynamic_slice"] == 32 + 4 + 32
    assert touched["slice"] == 64 + 64


def test_lookups_by_constant_positions_fold_and_keep_the_rows_that_they_take():
    def fn(positions, x):
        return x + positions[jnp.arange(4)]

    graph = from_jax(fn, array(16, 8), array(4, 8), param_argnums=0)
    assert ops(graph) == ["add"]
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(128, (0,))]
    assert graph.nodes[0].bytes_accessed == 3 * 128


def test_large_captured_constants_are_weights_and_small_ones_come_from_the_host():
    large, small = np.ones((32, 32), np.float32), np.ones((1, 32), np.float32)
    graph = from_jax(lambda x: (x @ large + small) @ large, array(4, 32))
    assert ops(graph) == ["dot_general", "add", "dot_general"]
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(4096, (0, 2))]


def test_stacked_layers_of_an_unrolled_scan_are_weights_of_their_own():
    def fn(w, x):
        return lax.scan(lambda h, wi: (jnp.tanh(h @ wi), None), x, w)[0]

    graph = from_jax(fn, array(3, 8, 8), array(4, 8), param_argnums=0)
    assert ops(graph) == ["dot_general", "tanh"] * 3
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(256, (v,)) for v in (0, 2, 4)]
    with pytest.warns(UserWarning, match="kept as one node"):
        kept = from_jax(fn, array(3, 8, 8), array(4, 8), param_argnums=0, unroll_limit=2)
    assert graph.total_flops == kept.total_flops


def test_parts_of_a_weight_that_overlap_are_the_whole_weight():
    def parts(w, x):
        return x @ w[:, :4] @ w[:4, 4:]

    def overlapping(w, x):
        return x @ w[:, :4] @ w[:4]

    apart = from_jax(parts, array(8, 8), array(2, 8), param_argnums=0)
    assert {(w.bytes, w.consumers) for w in apart.weights} == {(128, (0,)), (64, (1,))}
    together = from_jax(overlapping, array(8, 8), array(2, 8), param_argnums=0)
    assert [(w.bytes, w.consumers) for w in together.weights] == [(256, (0, 1))]


def test_the_steps_of_an_unrolled_recurrence_share_their_weights():
    def fn(w, xs):
        def step(h, x):
            h = jnp.tanh(h @ w + x)
            return h, h

        return lax.scan(step, jnp.zeros((1, 8)), xs)[1]

    graph = from_jax(fn, array(8, 8), array(5, 1, 8), param_argnums=0)
    # the first state is constant, so its product with the weight folds away
    assert ops(graph).count("dot_general") == 4
    assert "concatenate" not in ops(graph)  # each step returns its own row
    assert len(graph.weights) == 1
    assert len(graph.weights[0].consumers) == 5
    with pytest.warns(UserWarning, match="scan_0 .* all its 5 steps; unroll_limit=5 unrolls"):
        kept = from_jax(fn, array(8, 8), array(5, 1, 8), param_argnums=0, unroll_limit=4)
    assert ops(kept) == ["scan"]


def test_reversed_scans_hand_steps_on_backwards():
    def fn(xs):
        last, rows = lax.scan(lambda c, x: (c + x, c), 0.0, xs, reverse=True)
        return last, jnp.sin(rows)

    graph = from_jax(fn, array(3))
    concatenate = next(v for v, node in enumerate(graph.nodes) if node.op == "concatenate")
    made = [k.producer for k in graph.tensors if concatenate in k.consumers]
    assert len(made) == 2  # the first state, 0, is a constant
    assert ops(graph).count("add") == 3


def test_a_mask_does_not_tie_layers_together():
    def fn(w, x, mask):
        bias = jnp.where(mask > 0, 0.0, -1e9)
        for layer in range(4):
            x = jnp.tanh(x @ w[layer] + bias)
        return x

    graph = from_jax(fn, array(4, 16, 16), array(8, 16), array(1, 16), param_argnums=0)
    assert ops(graph) == ["dot_general", "add", "tanh"] * 4
    assert len(edges(graph)) == 11
    # its own addition, and its clone of the mask: comparison, selection, cast
    assert graph.nodes[1].flops == 8 * 16 + 3 * 16
    assert len(graph.weights) == 4


def test_dead_code_and_unused_parameters_are_dropped():
    def fn(params, x):
        jnp.exp(x @ params["unused"])
        values, _ = lax.top_k(x @ params["used"], 2)
        return values

    params = {"used": array(8, 8), "unused": array(8, 8)}
    graph = from_jax(fn, params, array(4, 8), param_argnums=0)
    assert ops(graph) == ["dot_general", "top_k"]
    assert len(graph.weights) == 1
    assert [k.producer for k in graph.tensors] == [0, 1]  # the indices go nowhere


def test_two_results_between_the_same_nodes_are_two_tensors():
    def fn(x):
        values, indices = lax.top_k(x, 2)
        return lax.sort((values, indices))[1]

    graph = from_jax(fn, array(8))
    assert [(k.producer, k.bytes, k.consumers) for k in graph.tensors] == [
        (0, 8, (1,)),
        (0, 8, (1,)),
        (1, 8, ()),
    ]


def test_element_bytes_rescale_floats_alone():
    def fn(w, x, ids):
        return x[ids] @ w

    arguments = array(8, 8), array(16, 8), array(4, 1, dtype=jnp.int32)
    traced = from_jax(fn, *arguments, param_argnums=0)
    int8 = from_jax(fn, *arguments, param_argnums=0, element_bytes=1)
    assert (traced.element_bytes, int8.element_bytes) == (4, 1)
    assert (traced.weight_bytes, int8.weight_bytes) == (256, 64)
    assert traced.total_flops == int8.total_flops
    gather = ops(int8).index("gather")
    assert int8.nodes[gather].bytes_accessed == 32 + 16 + 32
    half = from_jax(lambda x: x * x, array(4, dtype=jnp.bfloat16))
    assert half.element_bytes == 2


def test_concrete_and_abstract_arguments_give_the_same_graph():
    def fn(w, x):
        return jax.nn.gelu(x @ w)

    abstract = from_jax(fn, array(8, 8), array(4, 8), param_argnums=0)
    concrete = from_jax(fn, jnp.ones((8, 8)), np.ones((4, 8), np.float32), param_argnums=-2)
    assert abstract.sha256 == concrete.sha256


def test_an_unknown_operation_is_counted_by_its_shapes_with_a_warning_that_names_it():
    with pytest.warns(UserWarning, match=r"no cost rule for svd"):
        graph = from_jax(lambda x: jnp.linalg.svd(x, compute_uv=False), array(6, 4))
    assert graph.nodes[-1].flops == 4
    assert graph.nodes[-1].bytes_accessed == 4 * (24 + 4)


def test_random_numbers_effects_and_gradients_are_traced_without_warnings():
    def fn(w, key, x):
        jax.debug.print("{}", x)
        noise = jax.random.normal(key, x.shape)
        return jax.grad(lambda w: jnp.sum(jax.nn.relu((x + noise) @ w)))(w)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = from_jax(fn, array(8, 8), jax.random.key(0), array(4, 8), param_argnums=0)
    assert "random_bits" in ops(graph)
    assert "debug_callback" not in ops(graph)
    assert ops(graph).count("dot_general") == 2


@pytest.mark.parametrize("position", [1, -1, np.int64(1), (1,), np.array([1])])
def test_positions_are_whole_numbers_of_any_kind(position):
    graph = from_jax(jnp.matmul, array(4, 8), array(8, 2), param_argnums=position)
    assert [w.bytes for w in graph.weights] == [64]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"param_argnums": 2}, "param_argnums names argument 2, expected 0 to 1"),
        ({"param_argnums": (0, -3)}, "param_argnums names argument -3"),
        ({"param_argnums": "0"}, "param_argnums is '0', expected positions"),
        ({"param_argnums": 0.0}, "param_argnums is 0.0, expected positions"),
        ({"param_argnums": None}, "param_argnums is None, expected positions"),
        ({"state_argnums": ("x",)}, "state_argnums is .*, expected positions"),
        ({"unroll_limit": -1}, "unroll_limit is -1, expected 0 or more"),
        ({"element_bytes": 0}, "element_bytes is 0, expected a positive number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        from_jax(jnp.matmul, array(4, 4), array(4, 4), **settings)


def test_a_function_that_cannot_be_traced_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r"product: cannot be traced \(TypeError: .*dot_general"):
        from_jax(jnp.matmul, array(4, 4), array(5, 5), name="product")
    with pytest.raises(InputError, match="cannot be traced"):
        from_jax(lambda x: 1 if x > 0 else 2, array())


def test_symbolic_shapes_are_refused():
    (batch,) = export.symbolic_shape("batch")
    with pytest.raises(InputError, match=r"shape \(batch, 3\), expected whole numbers"):
        from_jax(jnp.tanh, array(batch, 3))


def test_a_function_of_parameters_alone_has_no_graph():
    with pytest.raises(EmptyGraphError, match="no operation depends on an input"):
        from_jax(jnp.tanh, array(4), param_argnums=0)


class Unnamed:
    """A function whose name raises, or is no text."""

    def __init__(self, name):
        self.name = name

    @property
    def __name__(self):
        if self.name is None:
            raise RuntimeError
        return self.name

    def __call__(self, x):
        return x + 1


@pytest.mark.parametrize("name", [None, 3, b"model"])
def test_a_function_without_a_name_of_text_is_named_by_its_type(name):
    assert from_jax(Unnamed(name), jnp.ones(2)).name == "Unnamed"
