"""Sweeps of keys along the edges, in both forms, against one edge at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpart.cost.device import Form, lower, stacked
from jaxpart.methods.orders.search import mutate, order_by, swept
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import MCM, Constraints
from jaxpart.problem.problem import Problem
from tests.support.modules import CHIP, THREE_CHIPS
from tests.support.strategies import graphs, random_graph

BOTH: tuple[Form, Form] = ("rows", "arrays")
BATCH = 5


def by_single_edges(problem: Problem, keys: np.ndarray, nodes: int) -> np.ndarray:
    """[B, N] the keys after a sweep: even rows forward, odd rows backward."""
    apart = np.float32(max(1e-3, nodes * 4e-7))
    keys = keys.copy()
    pairs = sorted({tuple(pair) for pair in problem.contracted_pairs.tolist()}, key=lambda p: p[1])
    for u, v in pairs:
        keys[::2, v] = np.maximum(keys[::2, v], keys[::2, u] + apart)
    for u, v in sorted(pairs, reverse=True):
        keys[1::2, u] = np.minimum(keys[1::2, u], keys[1::2, v] - apart)
    keys[:, problem.num_contracted :] = 16 * nodes + np.arange(problem.num_contracted, nodes)
    return keys


def fans(width: int, alone: int = 0) -> Graph:
    """A node, `width` consumers of it, one consumer of all of them, and nodes without edges."""
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(width + 2 + alone))
    middle = range(1, width + 1)
    tensors = (Tensor(0, 1.0, tuple(middle)), *(Tensor(v, 1.0, (width + 1,)) for v in middle))
    return Graph(nodes, tensors, (), "fans", 1)


def check(problem: Problem, seed: int, batch: int = BATCH) -> None:
    """Both forms give the keys of single edges, and orders that the edges allow."""
    contracted = problem.contracted
    devices = [lower(contracted, form=form) for form in BOTH]
    nodes, count = devices[0].padded_nodes, contracted.num_nodes
    # Small keys of both signs need other roundings than large ones.
    keys = np.array(
        mutate(jax.random.key(seed), jnp.arange(nodes, dtype=jnp.float32)[None], count, batch)
    )
    keys -= np.float32(count / 2)
    expected = by_single_edges(problem, keys, nodes)
    order = np.argsort(expected, axis=1, kind="stable")
    position = np.argsort(order, axis=1)
    first, second = problem.contracted_pairs.T
    assert (position[:, first] < position[:, second]).all()
    for device in devices:
        np.testing.assert_array_equal(swept(device, jnp.asarray(keys)), expected)
        np.testing.assert_array_equal(order_by(device, jnp.asarray(keys)), order)


@settings(deadline=None, max_examples=40)
@given(graphs(max_nodes=9), st.integers(0, 99))
def test_a_sweep_takes_each_edge_once_in_order(graph: Graph, seed: int):
    check(Problem.build(graph, THREE_CHIPS), seed)


@pytest.mark.parametrize("nodes", [70, 300])
def test_long_graphs_take_many_steps(nodes: int):
    rng = np.random.default_rng(nodes)
    for tensors in (nodes // 2, 4 * nodes):
        graph = random_graph(rng, num_nodes=nodes, num_tensors=tensors, num_weights=0)
        check(Problem.build(graph, THREE_CHIPS), tensors)


@pytest.mark.parametrize("width", [8, 9, 64, 65, 100])
def test_nodes_with_many_neighbours_collect_them_by_relays(width: int):
    check(Problem.build(fans(width), THREE_CHIPS), width)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_number_of_orders_is_swept(batch: int):
    check(Problem.build(fans(20), THREE_CHIPS), 0, batch)


@pytest.mark.parametrize("form", BOTH)
def test_a_batch_of_problems_gives_the_orders_of_each_alone(form: Form):
    # With relays the first needs more rows than there are nodes with padding.
    graphs = (fans(40, 21), fans(33))
    problems = [lower(Problem.build(graph, THREE_CHIPS), form=form) for graph in graphs]
    if form == "arrays":
        sweeps = [p.tables.sweeps for p in problems if p.tables is not None]
        steps = [s.node.shape[0] for s in sweeps if s is not None]
        assert steps == [10, 8]
    keys = jax.random.normal(jax.random.key(0), (2, BATCH, 64))

    together = jax.vmap(order_by)(stacked(problems), keys)

    for i, problem in enumerate(problems):
        np.testing.assert_array_equal(together[i], order_by(problem, keys[i]))


@pytest.mark.parametrize("form", BOTH)
def test_second_graph_of_a_bucket_compiles_nothing(form: Form):
    order_by.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(0)
    for _ in range(3):
        graph = random_graph(rng, max_nodes=9, num_weights=0)
        problem = lower(Problem.build(graph, THREE_CHIPS).contracted, form=form)
        order_by(problem, jnp.zeros((2, problem.padded_nodes)))
    assert order_by._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_forms_agree_where_edges_between_contracted_nodes_run_both_ways():
    # Nodes 0 and 2 share a chip, so the contracted nodes feed each other.
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0, colocate=0 if v != 1 else None) for v in range(3))
    graph = Graph(nodes, (Tensor(0, 1.0, (1,)), Tensor(1, 1.0, (2,))), (), "cycle", 1)
    free = Constraints(acyclic=False, triangle=False)
    contracted = Problem.build(
        graph, MCM("h", "host", (CHIP,) * 2, 1e3, constraints=free)
    ).contracted
    assert sorted(map(tuple, contracted.node_pairs.tolist())) == [(0, 1), (1, 0)]
    rows, arrays = (lower(contracted, form=form) for form in BOTH)
    keys = jnp.asarray(np.random.default_rng(0).uniform(0, 40, (4, rows.padded_nodes)), jnp.float32)

    np.testing.assert_array_equal(swept(arrays, keys), swept(rows, keys))
    np.testing.assert_array_equal(order_by(arrays, keys), order_by(rows, keys))
