"""Clusters grown by merging: what they keep, and what they find, against brute force."""

import dataclasses

import numpy as np
import pytest

from jaxpart.cost import verify
from jaxpart.graph import Graph, Node, Tensor
from jaxpart.mcm import MCM, Chip
from jaxpart.problem import Problem
from jaxpart.quotient import Quotient, Weigher, bits, groups_of
from jaxpart.search.clusters import merit_of
from jaxpart.search.engine import partition
from tests.oracle import best, evaluate, has_no_triangle
from tests.strategies import random_graph
from tests.test_slicing import MODULES


def quotient_of(problem: Problem) -> Quotient:
    pairs = problem.contracted.node_pairs.tolist()
    singles = [[v] for v in range(problem.num_blocks)]
    return Quotient(singles, pairs, Weigher(problem, 1.0))


def chip_edges(problem: Problem, labels: np.ndarray) -> set[tuple[int, int]]:
    pairs = labels[problem.contracted.node_pairs]
    return {(a, b) for a, b in pairs.tolist() if a != b}


def grid(rows: int, steps: int) -> Graph:
    """A recurrent network: `rows` layers over `steps` time steps, equal cells."""
    nodes = tuple(
        Node(f"{r}.{t}", "cell", flops=100.0, bytes_accessed=0.0)
        for t in range(steps)
        for r in range(rows)
    )
    tensors = []
    for v in range(rows * steps):
        row, step = v % rows, v // rows
        consumers = [v + 1] if row + 1 < rows else []
        consumers += [v + rows] if step + 1 < steps else []
        tensors.append(Tensor(v, 1.0, tuple(consumers)))
    return Graph(nodes, tuple(tensors), name="grid")


def chain_module(chips: int) -> MCM:
    return MCM("m", "chain", (Chip(1.0, 1.0, 1e9),) * chips, 1e3)


def test_reduced_clusters_are_a_partition_that_keeps_dataflow_and_triangle_rule():
    rng = np.random.default_rng(0)
    for _ in range(60):
        graph = random_graph(rng, max_nodes=14, pins=False)
        problem = Problem.build(graph, MODULES["chain"])
        quotient = quotient_of(problem)
        quotient.reduce(rng)
        for count in (len(quotient), 3, 2, 1):
            packed = quotient.pack(count, rng)
            assert packed is not None
            assert len(packed) <= count
            labels = packed.labels()
            assert sorted(set(labels)) == list(range(len(packed)))
            edges = chip_edges(problem, labels)
            assert all(a < b for a, b in edges)
            assert has_no_triangle(edges)
            members = sorted(v for a in bits(packed.alive) for v in packed.members[a])
            assert members == list(range(problem.num_blocks))


def test_bit_sets_after_merging_are_those_of_a_fresh_quotient():
    rng = np.random.default_rng(1)
    for _ in range(30):
        problem = Problem.build(random_graph(rng, max_nodes=14, pins=False), MODULES["chain"])
        quotient = quotient_of(problem)
        quotient.reduce(rng)
        pairs = problem.contracted.node_pairs.tolist()
        order = quotient.topological()
        fresh = Quotient([quotient.members[a] for a in order], pairs, quotient.weigher)
        position = {a: i for i, a in enumerate(order)}
        for a in order:
            for name in ("after", "before", "below", "above"):
                mapped = {position[x] for x in bits(getattr(quotient, name)[a])}
                assert mapped == set(bits(getattr(fresh, name)[position[a]]))
            assert quotient.size[a] == pytest.approx(fresh.size[position[a]])


def test_groups_with_a_circle_are_refused():
    problem = Problem.build(grid(1, 3), chain_module(3))

    with pytest.raises(ValueError, match="circle"):
        Quotient([[0, 2], [1]], [(0, 1), (1, 2)], Weigher(problem, 1.0))


def test_groups_are_those_of_the_labels():
    assert groups_of(np.array([1, 0, 1, 2])) == [[1], [0, 2], [3]]


@pytest.mark.parametrize("name", ["chain", "chain, no overlap", "host, any triangle", "mesh"])
def test_merit_is_the_bottleneck_and_what_does_not_fit(name):
    rng = np.random.default_rng(2)
    for model in ("weights", "full"):
        mcm = dataclasses.replace(MODULES[name], memory_model=model)
        for _ in range(20):
            graph = random_graph(rng, max_nodes=7, pins=False, colocation=False)
            problem = Problem.build(graph, mcm)
            labels = np.sort(rng.integers(0, mcm.num_chips, problem.num_nodes))
            merit = merit_of(problem, labels)
            expected = evaluate(graph, mcm, labels.tolist())
            assert merit.bottleneck_s == pytest.approx(expected.bottleneck_s)
            held = np.array(expected.memory_bytes) - problem.capacity_bytes
            assert merit.overfull == pytest.approx(np.maximum(held, 0).sum())


def test_a_recurrent_grid_runs_on_chips_side_by_side():
    graph, mcm = grid(2, 4), chain_module(8)

    result = partition(graph, mcm, method="clusters", samples=200)

    assert result.bottleneck_s == 100.0  # a cell a chip; in a row of chips, two cells at least
    assert verify(result.problem, result.assignment[:, None]).valid[0]


def test_on_tiny_graphs_clusters_come_near_the_optimum_and_never_below():
    rng = np.random.default_rng(3)
    mcm = MODULES["chain"]
    found = 0
    for _ in range(25):
        graph = random_graph(rng, max_nodes=7, pins=False)
        optimum = best(graph, mcm)
        if optimum is None or optimum[0] == 0:
            continue
        result = partition(graph, mcm, method="clusters", samples=60)
        assert result.bottleneck_s >= optimum[0] * (1 - 1e-12)
        found += result.bottleneck_s <= optimum[0] * (1 + 1e-12)
    assert found >= 15
