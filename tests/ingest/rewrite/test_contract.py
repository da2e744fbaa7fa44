"""Contraction: groups become nodes, and a partition of them costs what its expansion costs."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from jaxpart.errors import CycleError, GraphError, InputError, PinError
from jaxpart.ingest.rewrite.clone import clone_inputs
from jaxpart.ingest.rewrite.contract import contract
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from tests.support import oracle
from tests.support.strategies import random_graph, random_mcm


@st.composite
def graphs(draw) -> Graph:
    """Random graphs of up to 12 nodes, with light and heavy operations, weights and outputs."""
    count = draw(st.integers(1, 12))
    nodes = tuple(
        Node(
            f"n{v}",
            draw(st.sampled_from(["add", "dot_general", "select_n"])),
            draw(st.integers(0, 50)),
            draw(st.integers(0, 50)),
        )
        for v in range(count)
    )
    tensors = []
    for v in range(count):
        for _ in range(draw(st.integers(1, 2))):
            later = st.integers(v + 1, count - 1) if v + 1 < count else st.nothing()
            consumers = draw(st.lists(later, max_size=3)) if v + 1 < count else []
            tensors.append(Tensor(v, draw(st.integers(0, 9)), tuple(consumers)))
    weights = [
        Weight(draw(st.integers(0, 9)), tuple(draw(st.sets(st.integers(0, count - 1), min_size=1))))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return Graph(nodes, tuple(tensors), tuple(weights), "random", 1)


def edges(graph: Graph) -> set[tuple[str, str]]:
    names = [node.name for node in graph.nodes]
    return {(names[k.producer], names[q]) for k in graph.tensors for q in k.consumers}


@given(graphs(), st.data())
@settings(deadline=None, max_examples=150)
def test_contracting_keeps_flops_and_weights_and_invents_no_transfer(graph, data):
    count = len(graph.nodes)
    cuts = sorted(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    small = contract(
        graph, cuts
    ).graph  # contracted nodes of neighbours in a topological order: acyclic
    assert small.total_flops == graph.total_flops
    assert small.weight_bytes == graph.weight_bytes
    assert [w.bytes for w in small.weights] == [w.bytes for w in graph.weights]
    first = {label: graph.nodes[cuts.index(label)].name for label in set(cuts)}
    contracted_of = {node.name: first[b] for node, b in zip(graph.nodes, cuts, strict=True)}
    between = {(contracted_of[u], contracted_of[v]) for u, v in edges(graph)}
    assert edges(small) == {(u, v) for u, v in between if u != v}
    # every tensor kept is one of the graph's, and goes where that went
    position = {node.name: v for v, node in enumerate(small.nodes)}
    for k in small.tensors:
        assert any(
            position[contracted_of[graph.nodes[t.producer].name]] == k.producer
            and t.bytes == k.bytes
            and {position[contracted_of[graph.nodes[q].name]] for q in t.consumers} - {k.producer}
            == set(k.consumers)
            for t in graph.tensors
        )


@given(graphs())
@settings(deadline=None)
def test_contracting_nothing_changes_nothing(graph):
    same = contract(graph, range(len(graph.nodes))).graph
    assert edges(same) == edges(graph)
    assert {node.name: node for node in same.nodes} == {node.name: node for node in graph.nodes}


@given(graphs())
@settings(deadline=None, max_examples=150)
def test_cloning_never_loses_work_weights_or_adds_edges(graph):
    small = clone_inputs(graph)
    assert small.total_flops >= graph.total_flops
    assert small.weight_bytes == graph.weight_bytes
    assert edges(small) <= edges(graph)
    before = {node.name: node for node in graph.nodes}
    gone = set(before) - {node.name for node in small.nodes}
    weighted = {graph.nodes[q].name for w in graph.weights for q in w.consumers}
    assert gone.isdisjoint(weighted)
    for node in small.nodes:
        assert node.flops >= before[node.name].flops
        assert node.bytes_accessed == before[node.name].bytes_accessed


def test_contracting_joins_colocation_groups_fixed_chips_and_seconds():
    nodes = (
        Node("a", "add", 1, 1, seconds=1.0, colocate=1),
        Node("b", "mul", 1, 1, seconds=2.0, colocate=2, pin=3),
        Node("c", "add", 1, 1, seconds=3.0, colocate=2),
    )
    graph = Graph(nodes, (Tensor(0, 1, (1,)), Tensor(1, 1, (2,)), Tensor(2, 1, ())))
    small = contract(graph, [7, 7, 9]).graph
    assert small.nodes == (
        Node("a", "fused", 2, 2, seconds=3.0, colocate=1, pin=3),
        Node("c", "add", 1, 1, seconds=3.0, colocate=1),
    )
    assert small.tensors == (Tensor(0, 1, (1,)), Tensor(1, 1, ()))


def test_contractions_that_make_no_sense_are_refused():
    nodes = tuple(Node(name, "add", 1, 1) for name in "abc")
    path = Graph(nodes, (Tensor(0, 1, (1,)), Tensor(1, 1, (2,)), Tensor(2, 1, ())))
    with pytest.raises(CycleError, match="close a cycle"):
        contract(path, [0, 1, 0])
    with pytest.raises(InputError, match="expected 3"):
        contract(path, [0, 1])
    pinned = Graph((Node("a", "add", 1, 1, pin=0), Node("b", "add", 1, 1, pin=1)))
    with pytest.raises(PinError, match="'a' has nodes fixed to chips"):
        contract(pinned, [0, 0])
    mixed = Graph((Node("a", "add", 1, 1, seconds=1.0), Node("b", "add", 1, 1)))
    with pytest.raises(GraphError, match="mixes profiled"):
        contract(mixed, [0, 0])


@given(st.integers(0, 2**32 - 1), st.data())
@settings(deadline=None, max_examples=100)
def test_a_partition_of_a_contracted_graph_expands_to_one_with_the_same_cost_terms(seed, data):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, pins=False)
    profiled = tuple(msgspec.structs.replace(v, seconds=float(v.flops)) for v in graph.nodes)
    graph = dataclasses.replace(graph, nodes=profiled)
    mcm = random_mcm(rng)
    count = len(graph.nodes)
    cuts = sorted(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    small = contract(graph, cuts)
    chips = st.integers(0, len(mcm.chips) - 1)
    f = data.draw(st.lists(chips, min_size=len(set(cuts)), max_size=len(set(cuts))))
    contracted = oracle.evaluate(small.graph, mcm, f)
    expanded = oracle.evaluate(graph, mcm, small.expand(f))
    assert expanded.compute_s == pytest.approx(contracted.compute_s, rel=1e-12)
    assert expanded.in_s == pytest.approx(contracted.in_s, rel=1e-12)
    assert expanded.out_s == pytest.approx(contracted.out_s, rel=1e-12)
    assert expanded.busy_s == pytest.approx(contracted.busy_s, rel=1e-12)
    assert expanded.bottleneck_s == pytest.approx(contracted.bottleneck_s, rel=1e-12)
    rules = ("acyclic", "no_skip", "triangle", "colocation", "fixed_chips")
    assert all(getattr(expanded, rule) == getattr(contracted, rule) for rule in rules)


def test_a_partition_of_another_size_is_not_expanded():
    small = contract(Graph(tuple(Node(name, "add", 1, 1) for name in "abc")), [0, 1, 1])
    assert small.expand([5, 6]) == (5, 6, 6)
    with pytest.raises(InputError, match="assignment has 3 entries, expected 2"):
        small.expand([0, 1, 2])
