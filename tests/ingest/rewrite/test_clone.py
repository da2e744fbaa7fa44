"""Side chains that read constants: cloned whatever the size of the constants, up to a bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from jaxpart.errors import EmptyGraphError
from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.ingest.rewrite import clone
from jaxpart.ingest.rewrite.clone import clone_inputs, drop_dead
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


def masked(
    constant_bytes: float | None = None, other_consumers: tuple[int, ...] = (), **of_first
) -> Graph:
    """A mask (nodes 0 and 1) that the main path (2, 3, 4) uses twice.

    Args:
      constant_bytes: of a constant that node 0 reads; None: there is none.
      other_consumers: of the constant.
      of_first: fields of node 0.
    """
    nodes = (
        msgspec.structs.replace(Node("compare", "gt", 1, 4), **of_first),
        Node("select", "select_n", 2, 4),
        Node("embed", "gather", 0, 100),
        Node("first", "add", 100, 100),
        Node("second", "add", 100, 100),
    )
    tensors = (
        Tensor(0, 4, (1,)),
        Tensor(1, 4, (3, 4)),
        Tensor(2, 50, (3,)),
        Tensor(3, 50, (4,)),
        Tensor(4, 50, ()),
    )
    weights = (Weight(10, (2,)),)
    if constant_bytes is not None:
        weights += (Weight(constant_bytes, (0, *other_consumers), True),)
    return Graph(nodes, tensors, weights, "masked", 1)


def assert_cloned(graph: Graph) -> None:
    """Asserts that both layers do the work of the mask, and that nothing else ties them to it."""
    assert [(node.name, node.flops) for node in graph.nodes] == [
        ("embed", 0),
        ("first", 103),
        ("second", 103),
    ]
    assert [(k.producer, k.consumers) for k in graph.tensors] == [(0, (1,)), (1, (2,)), (2, ())]


def test_a_cheap_mask_becomes_part_of_each_consumer():
    graph = clone_inputs(masked())
    assert_cloned(graph)
    assert graph.weights == (Weight(10, (0,)),)


@pytest.mark.parametrize(
    "graph",
    [
        masked(bytes_accessed=1000),
        masked(pin=0),
        masked(seconds=1.0),
        masked(op="dot_general", flops=1000),
    ],
    ids=["dear", "pinned", "profiled", "a matrix product"],
)
def test_what_is_dear_or_fixed_is_not_cloned(graph):
    assert clone_inputs(graph) == graph


def test_the_start_of_the_main_path_stays_nodes():
    nodes = tuple(Node(name, "add", 1, 8) for name in ("scale", "shift", "layer"))
    tensors = (Tensor(0, 4, (1,)), Tensor(1, 4, (2,)), Tensor(2, 4, ()))
    graph = Graph(nodes, tensors, (Weight(4, (2,)),), "path", 1)
    assert clone_inputs(graph) == graph


def test_nodes_that_reach_no_output_are_dropped():
    nodes = tuple(Node(name, "add", 1, 8) for name in "abcd")
    tensors = (Tensor(0, 4, (1, 2)), Tensor(1, 4, (3,)), Tensor(2, 4, ()))
    weights = (Weight(1, (0,)), Weight(2, (1, 2)), Weight(3, (3,)))
    graph = drop_dead(Graph(nodes, tensors, weights))  # d makes nothing, and b feeds d alone
    assert [node.name for node in graph.nodes] == ["a", "c"]
    assert graph.tensors == (Tensor(0, 4, (1,)), Tensor(1, 4, ()))
    assert graph.weights == (Weight(1, (0,)), Weight(2, (1,)))
    with pytest.raises(EmptyGraphError):
        drop_dead(Graph(nodes[:1]))


def test_a_constant_goes_with_its_chain_to_each_consumer():
    graph = clone_inputs(masked(64 * 1024), {1})
    assert_cloned(graph)
    assert graph.weights == (Weight(10, (0,)), Weight(64 * 1024, (1, 2), True))


def test_a_constant_keeps_its_other_consumers():
    graph = clone_inputs(masked(100, other_consumers=(2,)), {1})
    assert graph.weights == (Weight(10, (0,)), Weight(100, (0, 1, 2), True))


def test_a_chain_with_a_parameter_stays():
    graph = masked(100)
    assert clone_inputs(graph) == graph
    with_parameter = Graph(graph.nodes, graph.tensors, (*graph.weights, Weight(1, (1,))))
    assert clone_inputs(with_parameter, {1}) == with_parameter


def test_tensors_inside_a_chain_do_not_make_it_dear():
    graph = masked(1)
    nodes = (Node("and", "and", 1, 61), Node("select", "select_n", 2, 64), *graph.nodes[2:])
    tensors = (Tensor(0, 60, (1,)), *graph.tensors[1:])
    # as one kernel the chain reads 1 byte and writes 4; its nodes alone access 125
    assert len(clone_inputs(Graph(nodes, tensors, graph.weights), {1}).nodes) == 3


@pytest.mark.parametrize("over", [False, True])
def test_constants_are_copied_up_to_the_stated_bytes(over):
    graph = masked(clone.MAX_CONSTANT_BYTES + over)
    assert (clone_inputs(graph, {1}) == graph) == over


def test_the_bound_counts_all_constants_of_a_chain_each_once():
    half = clone.MAX_CONSTANT_BYTES / 2
    graph = masked(half)
    shared = Weight(half, (0, 1))
    within = Graph(graph.nodes, graph.tensors, (*graph.weights, shared), "masked", 1)
    assert len(clone_inputs(within, {1, 2}).nodes) == 3
    more = Graph(graph.nodes, graph.tensors, (*within.weights, Weight(1, (1,))), "masked", 1)
    assert clone_inputs(more, {1, 2, 3}) == more


def layers(make_bias):
    """Four layers that add a bias of [64, 64] which depends on inputs."""

    def fn(w, x, given):
        bias = make_bias(given)
        for layer in range(4):
            x = jnp.tanh((x @ w[layer]) + bias)
        return x

    shape = jax.ShapeDtypeStruct
    return fn, shape((4, 64, 64), jnp.float32), shape((64, 64), jnp.float32)


LOWER = np.tril(np.ones((64, 64), bool))  # 4 KiB
TABLE = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)  # 16 KiB


@pytest.mark.parametrize(
    ("make_bias", "constant"),
    [
        (lambda m: jnp.where(LOWER & m[None], 0.0, -1e9), 4096),
        (lambda m: jnp.where(m[None], TABLE, 0.0), 16384),
        (lambda m: m[None] * TABLE, 16384),
        (lambda m: jnp.where(jnp.tril(jnp.ones((64, 64), bool)) & m[None], 0.0, -1e9), None),
    ],
    ids=["mask of np.tril", "table", "position factors", "mask of jnp.tril"],
)
def test_what_inputs_and_constants_make_does_not_tie_layers(make_bias, constant):
    fn, w, x = layers(make_bias)
    graph = from_jax(fn, w, x, jax.ShapeDtypeStruct((64,), jnp.bool_), param_argnums=0)
    assert [node.op for node in graph.nodes] == ["dot_general", "add", "tanh"] * 4
    assert [len(k.consumers) for k in graph.tensors] == [1] * 11 + [0]
    additions = (1, 4, 7, 10)
    constants = [(w.bytes, w.consumers) for w in graph.weights if len(w.consumers) > 1]
    assert constants == ([] if constant is None else [(constant, additions)])


def test_parameters_are_no_constants():
    def fn(w, table, x, given):
        bias = jnp.where(given[None], table, 0.0)
        for layer in range(4):
            x = jnp.tanh((x @ w[layer]) + bias)
        return x

    shape = jax.ShapeDtypeStruct
    square = shape((64, 64), jnp.float32)
    inputs = shape((4, 64, 64), jnp.float32), square, square, shape((64,), jnp.bool_)
    graph = from_jax(fn, *inputs, param_argnums=(0, 1))
    assert max(len(k.consumers) for k in graph.tensors) == 4
