"""Clusters grown by merging: what they keep, and what they find, against brute force."""

import dataclasses

import numpy as np
import pytest

from jaxpart.bounds.ideals.bitsets import members
from jaxpart.cost.evaluate import verify
from jaxpart.engine import partition
from jaxpart.methods.clusters.growth import measured
from jaxpart.methods.clusters.packing import grown, loosened
from jaxpart.methods.clusters.quotient import (
    Quotient,
    Weigher,
    compacted,
    labels_of,
    quotient_of,
    reduce,
    root,
    topological,
    weigher_of,
)
from jaxpart.problem.problem import Problem
from tests.support.graphs import grid
from tests.support.modules import MODULES, chain_module
from tests.support.oracle import best, evaluate, has_no_triangle
from tests.support.strategies import random_graph


def weigher(problem: Problem) -> Weigher:
    return weigher_of(problem, 1.0)


def single_nodes(problem: Problem) -> Quotient:
    pairs = problem.contracted.node_pairs
    return quotient_of(np.arange(problem.num_contracted), pairs, weigher(problem))


def random_state(seed: int) -> np.ndarray:
    return np.array([seed + 1], np.uint64)


def chip_edges(problem: Problem, labels: np.ndarray) -> set[tuple[int, int]]:
    pairs = labels[problem.contracted.node_pairs]
    return {(a, b) for a, b in pairs.tolist() if a != b}


def test_grown_clusters_are_a_partition_that_keeps_dataflow_and_triangle_rule():
    rng, state = np.random.default_rng(0), random_state(0)
    for _ in range(60):
        graph = random_graph(rng, max_nodes=14, pins=False)
        problem = Problem.build(graph, MODULES["chain"])
        single, pairs = np.arange(problem.num_contracted), problem.contracted.node_pairs
        for count in (problem.num_contracted, 3, 2, 1):
            labels = grown(single, pairs, weigher(problem), count, 3, True, state)
            assert len(labels) == problem.num_contracted
            assert sorted(set(labels)) == list(range(labels.max() + 1))
            assert labels.max() < count
            edges = chip_edges(problem, labels)
            assert all(a < b for a, b in edges)
            assert has_no_triangle(edges)


def test_a_loosened_place_is_single_nodes_and_the_rest_stays_together():
    rng, state = np.random.default_rng(4), random_state(4)
    for _ in range(40):
        problem = Problem.build(random_graph(rng, max_nodes=14, pins=False), MODULES["chain"])
        single, pairs = np.arange(problem.num_contracted), problem.contracted.node_pairs
        labels = grown(single, pairs, weigher(problem), 5, 3, True, state)
        centre = int(rng.integers(labels.max() + 1))

        cluster = loosened(labels, centre, pairs, weigher(problem), state)

        assert sorted(set(cluster)) == list(range(cluster.max() + 1))
        loose = {v for v in single if (cluster == cluster[v]).sum() == 1}
        assert {v for v in single if labels[v] == centre} <= loose
        for a in range(labels.max() + 1):
            inside = np.flatnonzero(labels == a)
            together = len(set(cluster[inside])) == 1
            assert together or set(inside.tolist()) <= loose


def test_bit_sets_after_merging_are_those_of_a_fresh_quotient():
    rng, state = np.random.default_rng(1), random_state(1)
    for _ in range(30):
        problem = Problem.build(random_graph(rng, max_nodes=14, pins=False), MODULES["chain"])
        quotient = single_nodes(problem)
        reduce(quotient, weigher(problem), state)
        pairs = problem.contracted.node_pairs
        order = topological(quotient)
        labels = labels_of(quotient, np.arange(problem.num_contracted))
        fresh = quotient_of(labels, pairs, weigher(problem))
        position = {a: i for i, a in enumerate(order.tolist())}
        for a, i in position.items():
            for name in ("after", "before", "below", "above"):
                mapped = {position[x] for x in members(getattr(quotient, name)[a])}
                assert mapped == set(members(getattr(fresh, name)[i]))
            assert quotient.size[a] == pytest.approx(fresh.size[i])


def test_a_compacted_quotient_is_the_one_of_its_clusters_in_their_order():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        problem = Problem.build(random_graph(rng, int(rng.integers(3, 12))), chain_module(4))
        quotient = single_nodes(problem)
        reduce(quotient, weigher(problem), random_state(seed))

        dense, number = compacted(quotient)
        again, same = compacted(dense)

        fresh = quotient_of(number, problem.contracted.node_pairs, weigher(problem))
        for name in ("alive", "home", "first", "after", "before", "below", "above", "shared"):
            np.testing.assert_array_equal(getattr(dense, name), getattr(fresh, name), name)
            np.testing.assert_array_equal(getattr(again, name), getattr(fresh, name), name)
        np.testing.assert_allclose(dense.seconds, fresh.seconds)
        np.testing.assert_allclose(dense.size, fresh.size)
        assert same.tolist() == list(range(len(members(quotient.alive))))
        assert (
            members(quotient.alive)[number] == [root(quotient, v) for v in range(len(number))]
        ).all()


def test_clusters_with_a_circle_are_refused():
    problem = Problem.build(grid(1, 3), chain_module(3))

    with pytest.raises(ValueError, match="circle"):
        quotient_of(np.array([0, 1, 0]), np.array([(0, 1), (1, 2)]), weigher(problem))


def test_a_cluster_of_too_many_weights_is_larger_than_any_time():
    rng = np.random.default_rng(5)
    for _ in range(20):
        graph = random_graph(rng, max_nodes=10, pins=False)
        problem = Problem.build(graph, dataclasses.replace(MODULES["chain"], memory_model="full"))
        contracted, sizes = problem.contracted, weigher(problem)
        quotient = quotient_of(np.zeros(contracted.num_nodes, int), contracted.node_pairs, sizes)
        held = contracted.weight_bytes[np.unique(contracted.use_weight)].sum()
        seconds = contracted.node_s.min(axis=1).sum()
        expected = seconds if held <= sizes.capacity else 100 * held / sizes.capacity
        assert quotient.size[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["chain", "chain, no overlap", "host, any triangle", "mesh"])
def test_merit_is_the_bottleneck_and_what_does_not_fit(name):
    rng = np.random.default_rng(2)
    for model in ("weights", "full"):
        mcm = dataclasses.replace(MODULES[name], memory_model=model)
        for _ in range(20):
            graph = random_graph(rng, max_nodes=7, pins=False, colocation=False)
            problem = Problem.build(graph, mcm)
            labels = np.sort(rng.integers(0, mcm.num_chips, problem.num_nodes))
            merit = measured(problem, labels).merit
            expected = evaluate(graph, mcm, labels.tolist())
            assert merit.bottleneck_s == pytest.approx(expected.bottleneck_s)
            held = np.array(expected.memory_bytes) - problem.capacity_bytes
            assert merit.overfull == pytest.approx(np.maximum(held, 0).sum())


def test_a_recurrent_grid_runs_on_chips_side_by_side():
    graph, mcm = grid(2, 4), chain_module(8)

    result = partition(graph, mcm, method="clusters", max_samples=200)

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
        result = partition(graph, mcm, method="clusters", max_samples=60)
        assert result.bottleneck_s >= optimum[0] * (1 - 1e-12)
        found += result.bottleneck_s <= optimum[0] * (1 + 1e-12)
    assert found >= 15
