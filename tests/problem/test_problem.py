"""A graph on a module as arrays: times, rescaled bytes, and nodes that must share a chip."""

import dataclasses

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpart.errors import InfeasibleError, InputError
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip, Constraints
from jaxpart.problem.problem import Problem, contract
from tests.support.strategies import graphs, mcms

SLOW = Chip(peak_flops=10, sram_bandwidth=2, sram_bytes=100)
FAST = Chip(peak_flops=20, sram_bandwidth=2, sram_bytes=50, speed=4)
FREE = Constraints(acyclic=False, triangle=False)


def module(*chips, **changes):
    return MCM("m", "host", chips, 1.0, **changes)


def chain(length, colocate=(), pin=(), skips=()):
    """A chain of nodes, with edges `skips` beside it."""
    group, chip = dict(colocate), dict(pin)
    nodes = tuple(
        Node(f"n{v}", "op", 1, 1, colocate=group.get(v), pin=chip.get(v)) for v in range(length)
    )
    edges = [(v, v + 1) for v in range(length - 1)] + list(skips)
    return Graph(nodes, tuple(Tensor(u, 1, (v,)) for u, v in edges))


def test_a_nodes_time_is_the_slower_of_computing_and_reading_on_each_kind_of_chip():
    graph = Graph(
        (
            Node("computes", "op", flops=100, bytes_accessed=2),
            Node("reads", "op", flops=1, bytes_accessed=40),
            Node("profiled", "op", flops=100, bytes_accessed=40, seconds=3),
            Node("instant", "op", flops=100, bytes_accessed=40, seconds=0),
        )
    )

    problem = Problem.build(graph, module(SLOW, FAST, SLOW))

    assert problem.node_s.tolist() == [[10, 5 / 4], [20, 20 / 4], [3, 3 / 4], [0, 0]]
    assert problem.chip_kind.tolist() == [0, 1, 0]
    assert problem.capacity_bytes.tolist() == [100, 50, 100]
    # (33 on slow + 7 on fast + 33 on slow) / 3 chips is a mean total; / 3 a mean load.
    assert problem.mean_load_s == pytest.approx((33 + 7 + 33) / 3 / 3, rel=1e-12)


def test_tensors_and_weights_become_sorted_pairs():
    graph = Graph(
        tuple(Node(f"n{v}", "op", 1, 1) for v in range(4)),
        (Tensor(0, 5, (3, 1)), Tensor(1, 6, ()), Tensor(0, 7, (1,)), Tensor(2, 0, (3,))),
        (Weight(8, (2, 0)), Weight(9, ()), Weight(10, (3,))),
    )

    problem = Problem.build(graph, module(SLOW))

    assert problem.tensor_producer.tolist() == [0, 1, 0, 2]
    assert problem.tensor_bytes.tolist() == [5, 6, 7, 0]
    assert problem.edge_tensor.tolist() == [0, 0, 2, 3]
    assert problem.edge_consumer.tolist() == [1, 3, 1, 3]
    assert problem.edge_producer.tolist() == [0, 0, 0, 2]
    assert problem.last_consumer.tolist() == [3, 1, 1, 3]
    assert problem.node_pairs.tolist() == [[0, 1], [0, 3], [2, 3]]
    assert problem.weight_bytes.tolist() == [8, 9, 10]
    assert problem.use_weight.tolist() == [0, 0, 2]
    assert problem.use_node.tolist() == [0, 2, 3]
    assert (problem.num_nodes, problem.num_chips, problem.num_tensors) == (4, 1, 4)


def test_a_graph_of_one_node_and_nothing_else_is_a_problem():
    problem = Problem.build(Graph((Node("only", "op", 1, 1),)), module(SLOW))

    assert problem.node_pairs.shape == (0, 2)
    assert problem.contraction.tolist() == [0]
    assert problem.contracted_pairs.shape == (0, 2)
    assert problem.contracted is problem
    assert problem.last_consumer.tolist() == []


@pytest.mark.parametrize(
    ("counted_as", "computes_in", "ratio"),
    [(4, 1, 0.25), (4, 4, 1), (2, 4, 2), (None, 1, 1), (4, None, 1)],
)
def test_bytes_are_counted_in_what_the_module_computes_in(counted_as, computes_in, ratio):
    graph = Graph(
        (Node("a", "op", 0, 64), Node("b", "op", 0, 8)),
        (Tensor(0, 16, (1,)),),
        (Weight(32, (0,)),),
        element_bytes=counted_as,
    )

    problem = Problem.build(graph, module(SLOW, element_bytes=computes_in))

    assert problem.node_s[0, 0] == 64 * ratio / SLOW.sram_bandwidth
    assert problem.tensor_bytes.tolist() == [16 * ratio]
    assert problem.weight_bytes.tolist() == [32 * ratio]
    assert problem.graph.tensors[0].bytes == 16 * ratio


def test_a_fixed_chip_beyond_the_chips_names_its_node():
    graph = chain(3, pin=[(1, 2)])

    assert Problem.build(graph, module(SLOW, SLOW, SLOW)).fixed_chip.tolist() == [-1, 2, -1]
    with pytest.raises(InputError, match=r"node 1 \('n1'\): fixed to chip 2, but m has chips 0 to"):
        Problem.build(graph, module(SLOW, SLOW))


# Contracted nodes


def test_without_colocation_every_node_is_its_own_contracted_node():
    problem = Problem.build(chain(5), module(SLOW))

    assert problem.contraction.tolist() == [0, 1, 2, 3, 4]
    assert problem.contracted is problem


def test_what_lies_between_two_colocated_nodes_shares_their_chip_where_dataflow_is_acyclic():
    graph = chain(6, colocate=[(1, 9), (3, 9)])

    assert Problem.build(graph, module(SLOW)).contraction.tolist() == [0, 1, 1, 1, 2, 3]
    assert Problem.build(graph, module(SLOW, constraints=FREE)).contraction.tolist() == [
        0,
        1,
        2,
        1,
        3,
        4,
    ]


def test_groups_that_feed_each_other_become_one_contracted_node():
    # Two chains side by side: 0 -> 2 -> 4 and 1 -> 3 -> 5; groups {0, 3} and {1, 2} close a cycle.
    nodes = tuple(
        Node(f"n{v}", "op", 1, 1, colocate=g) for v, g in enumerate([7, 5, 5, 7, None, None])
    )
    graph = Graph(nodes, tuple(Tensor(v, 1, (v + 2,)) for v in range(4)))

    assert Problem.build(graph, module(SLOW)).contraction.tolist() == [0, 0, 0, 0, 1, 2]


def test_a_group_of_one_is_no_cycle():
    assert Problem.build(chain(3, colocate=[(1, 4)]), module(SLOW)).contraction.tolist() == [
        0,
        1,
        2,
    ]


def oracle_groups(graph, merge_cycles):
    """Sets of nodes that share a chip, by networkx."""
    together = nx.Graph()
    together.add_nodes_from(range(len(graph.nodes)))
    first = {}
    for v, node in enumerate(graph.nodes):
        if node.colocate is not None:
            together.add_edge(first.setdefault(node.colocate, v), v)
    if merge_cycles:
        # An edge forth is dataflow; sharing a chip is an edge both ways.
        reach = nx.DiGraph(together)
        reach.add_edges_from((k.producer, q) for k in graph.tensors for q in k.consumers)
        parts = nx.strongly_connected_components(reach)
    else:
        parts = nx.connected_components(together)
    return {frozenset(part) for part in parts}


@given(graphs(max_nodes=12, pins=False), mcms())
def test_contracted_nodes_are_those_of_the_oracle_and_numbered_as_said(graph, mcm):
    problem = Problem.build(graph, mcm)
    acyclic = mcm.constraints.acyclic

    members = [
        frozenset(np.flatnonzero(problem.contraction == b)) for b in range(problem.num_contracted)
    ]

    assert set(members) == oracle_groups(graph, acyclic)
    pairs = {
        (problem.contraction[k.producer], problem.contraction[q])
        for k in graph.tensors
        for q in k.consumers
    }
    pairs = {(a, b) for a, b in pairs if a != b}
    assert {tuple(pair) for pair in problem.contracted_pairs.tolist()} == pairs
    if not acyclic:
        assert [min(part) for part in members] == sorted(min(part) for part in members)
        return
    # Kahn's order, the contracted node with the smallest first node first.
    quotient = nx.DiGraph()
    quotient.add_nodes_from(range(problem.num_contracted))
    quotient.add_edges_from(pairs)
    order = nx.lexicographical_topological_sort(quotient, key=lambda b: min(members[b]))
    assert list(order) == list(range(problem.num_contracted))


@given(graphs(max_nodes=12, pins=False), st.booleans())
def test_contraction_names_each_contracted_node_by_its_smallest_node(graph, merge_cycles):
    problem = Problem.build(graph, module(SLOW))

    first = contract(problem.num_nodes, problem.colocate, problem.node_pairs, merge_cycles)

    expected = {v: min(part) for part in oracle_groups(graph, merge_cycles) for v in part}
    assert first.tolist() == [expected[v] for v in range(problem.num_nodes)]


def test_a_fixed_chip_of_one_node_is_that_of_its_contracted_node():
    graph = chain(6, colocate=[(1, 9), (3, 9)], pin=[(2, 1), (5, 0)])

    problem = Problem.build(graph, module(SLOW, SLOW))

    assert problem.contracted_fixed_chip.tolist() == [-1, 1, -1, 0]
    assert problem.contracted.fixed_chip.tolist() == [-1, 1, -1, 0]


def test_fixed_chips_that_differ_within_a_contracted_node_have_no_solution():
    graph = chain(6, colocate=[(1, 9), (3, 9)], pin=[(2, 1), (3, 0)])

    problem = Problem.build(graph, module(SLOW, SLOW))

    assert problem.contracted_fixed_chip.tolist() == [-1, -2, -1, -1]
    with pytest.raises(InfeasibleError, match="fixed to different chips"):
        _ = problem.contracted


@given(graphs(max_nodes=10, pins=False), mcms(), st.data())
def test_a_partition_of_contracted_nodes_costs_what_its_nodes_cost(graph, mcm, data):
    problem = Problem.build(graph, mcm)
    contracted = problem.contracted
    last = mcm.num_chips - 1
    chips = [data.draw(st.integers(0, last)) for _ in range(problem.num_contracted)]
    f_contracted, f_nodes = np.array(chips), np.array(chips)[problem.contraction]

    assert figures(contracted, f_contracted) == figures(problem, f_nodes)


def figures(problem, f):
    """Compute and weights of each chip, and what each tensor sends where."""
    compute, weights = np.zeros(problem.num_chips), np.zeros(problem.num_chips)
    for v, c in enumerate(f):
        compute[c] += problem.node_s[v, problem.chip_kind[c]]
    held = {(w, int(f[v])) for w, v in zip(problem.use_weight, problem.use_node, strict=True)}
    for w, c in held:
        weights[c] += problem.weight_bytes[w]
    sent = {
        (int(k), int(f[u]), int(f[v]))
        for k, u, v in zip(
            problem.edge_tensor, problem.edge_producer, problem.edge_consumer, strict=True
        )
        if f[u] != f[v]
    }
    return np.round(compute, 9).tolist(), weights.tolist(), sent


# Assignments


def test_an_assignment_is_one_chip_of_the_module_for_each_node():
    problem = Problem.build(chain(3), module(SLOW, SLOW))

    assert problem.assignment_of([0, 1, 1]).tolist() == [0, 1, 1]
    for wrong in ([0, 1], [0, 1, 1, 1], np.zeros((1, 3), np.int64)):
        with pytest.raises(InputError, match=r"assignment has shape .*, expected \(3,\)"):
            problem.assignment_of(wrong)
    for wrong in ([0, 1, 2], [-1, 0, 0]):
        with pytest.raises(InputError, match="expected 0 to 1"):
            problem.assignment_of(wrong)
    for wrong in (np.array([0, 0.5, 1]), np.array([0.0, 1.0, 1.0]), np.array([False, True, True])):
        with pytest.raises(InputError, match=r"assignment is of type .*, expected whole numbers"):
            problem.assignment_of(wrong)


def test_a_problem_cannot_be_changed():
    problem = Problem.build(chain(3), module(SLOW))

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(problem, "fixed_chip", None)  # noqa: B010 (an assignment is a type error)
