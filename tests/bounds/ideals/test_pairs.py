"""Ideals against brute force: their number, the bound, and what the program finds."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxpart.bounds.combinatorial import bound_of, combinatorial_bound
from jaxpart.bounds.ideals.pairs import count_ideals, list_prefixes, solve
from jaxpart.cost.evaluate import verify
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.problem import Problem
from tests.support.modules import MODULES
from tests.support.oracle import all_valid, best
from tests.support.problems import list_ideals
from tests.support.strategies import random_graph, random_mcm


def down_sets(problem: Problem) -> int:
    pairs = problem.contracted_pairs.tolist()
    return sum(
        all(not (subset >> v) & 1 or (subset >> u) & 1 for u, v in pairs)
        for subset in range(1 << problem.num_contracted)
    )


def test_ideals_are_the_down_sets():
    rng = np.random.default_rng(0)
    for _ in range(50):
        problem = Problem.build(random_graph(rng, max_nodes=9, max_chips=3), MODULES["chain"])
        expected = down_sets(problem)
        assert count_ideals(problem, 10_000) == expected
        assert count_ideals(problem, expected) == expected
        assert count_ideals(problem, expected - 1) is None


def test_figures_of_an_ideal_are_those_of_its_members():
    rng = np.random.default_rng(1)
    for _ in range(30):
        problem = Problem.build(random_graph(rng, max_nodes=8, max_chips=3), MODULES["chain"])
        if (problem.contracted_fixed_chip == -2).any():
            continue
        ideals = list_ideals(problem, 10_000)
        assert ideals is not None
        contracted = problem.contracted
        for i in range(len(ideals.load_s)):
            bits = int(ideals.members[i, 0])
            inside = np.array([(bits >> v) & 1 for v in range(contracted.num_nodes)], bool)
            np.testing.assert_allclose(ideals.load_s[i], contracted.node_s[inside].sum(axis=0))
            crossing, needed = 0.0, 0
            for k in range(contracted.num_tensors):
                targets = contracted.edge_consumer[contracted.edge_tensor == k]
                if inside[contracted.tensor_producer[k]] and not inside[targets].all():
                    crossing += contracted.tensor_bytes[k]
                    needed |= sum(1 << int(q) for q in targets if not inside[q])
            assert ideals.cut_bytes[i] == crossing
            assert int(ideals.needed[i, 0]) == needed


@pytest.mark.parametrize("name", MODULES)
def test_bounds_are_never_above_the_optimum(name):
    module = MODULES[name]
    rng = np.random.default_rng(2)
    solved = 0
    for _ in range(25):
        chips = module.num_chips
        graph = random_graph(rng, max_nodes=6 if chips == 3 else 5, max_chips=chips)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None:
            continue
        solved += 1
        assert combinatorial_bound(problem).seconds <= optimum[0]
        ideals = list_ideals(problem, 10_000)
        assert ideals is not None
        for incumbent_s in (optimum[0], 2 * optimum[0]):
            relaxed = solve(problem, ideals, incumbent_s, span=False)
            assert relaxed is not None
            assert bound_of(relaxed, incumbent_s).seconds <= optimum[0]
    assert solved >= 10


def test_bounds_hold_on_random_modules():
    rng = np.random.default_rng(3)
    for _ in range(150):
        module = random_mcm(rng, max_chips=3)
        graph = random_graph(rng, max_nodes=5, max_chips=module.num_chips)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None:
            continue
        assert combinatorial_bound(problem).seconds <= optimum[0]
        if module.constraints.acyclic:
            ideals = list_ideals(problem, 10_000)
            assert ideals is not None
            relaxed = solve(problem, ideals, optimum[0], span=False)
            assert relaxed is not None
            assert bound_of(relaxed, optimum[0]).seconds <= optimum[0]


def test_without_the_triangle_rule_the_program_is_exact_on_chain_and_host():
    rng = np.random.default_rng(4)
    solved = 0
    for name in ("host, any triangle", "chain, any triangle"):
        module = MODULES[name]
        module = dataclasses.replace(
            module, constraints=dataclasses.replace(module.constraints, memory=False)
        )
        for _ in range(25):
            graph = random_graph(rng, max_nodes=6, max_chips=3)
            problem = Problem.build(graph, module)
            optimum = best(graph, module)
            if optimum is None:
                continue
            solved += 1
            ideals = list_ideals(problem, 10_000)
            assert ideals is not None
            outcome = solve(problem, ideals, 2 * optimum[0], span=False)
            assert outcome is not None
            assert outcome.assignment is not None
            costs = verify(problem, outcome.assignment[:, None])
            assert costs.valid[0]
            np.testing.assert_allclose(costs.bottleneck_s[0], optimum[0], rtol=1e-12)
    assert solved >= 20


def test_with_the_span_rule_the_program_finds_the_best_such_partition():
    module = MODULES["chain"]
    rng = np.random.default_rng(5)
    solved = 0
    for _ in range(30):
        graph = random_graph(rng, max_nodes=6, max_chips=3, shared_weights=False)
        problem = Problem.build(graph, module)
        valid = all_valid(graph, module)
        if (problem.contracted_fixed_chip == -2).any() or not valid:
            continue
        candidates = np.array(valid).T
        step = candidates[problem.edge_consumer] - candidates[problem.edge_producer]
        candidates = candidates[:, (step <= 1).all(axis=0)]
        if not candidates.shape[1]:
            continue
        solved += 1
        ideals = list_ideals(problem, 10_000)
        assert ideals is not None
        outcome = solve(problem, ideals, np.inf, span=True)
        assert outcome is not None
        assert outcome.assignment is not None
        found = verify(problem, outcome.assignment[:, None])
        assert found.valid[0]
        expected = verify(problem, candidates).bottleneck_s.min()
        np.testing.assert_allclose(found.bottleneck_s[0], expected, rtol=1e-12)
    assert solved >= 10


@pytest.mark.parametrize("name", ["chain", "chain, no overlap", "unlike chips"])
def test_prefixes_give_the_optimal_cuts_of_the_program_order(name):
    module = MODULES[name]
    rng = np.random.default_rng(6)
    solved = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=6, max_chips=3)
        problem = Problem.build(graph, module)
        ways = itertools.combinations_with_replacement(
            range(module.num_chips), problem.num_contracted
        )
        candidates = np.array(list(ways)).T[problem.contraction]
        step = candidates[problem.edge_consumer] - candidates[problem.edge_producer]
        candidates = candidates[:, (step <= 1).all(axis=0)]
        expected = verify(problem, candidates)
        if not expected.valid.any():
            continue
        solved += 1
        outcome = solve(problem, list_prefixes(problem), np.inf, span=True)
        assert outcome is not None
        assert outcome.assignment is not None
        found = verify(problem, outcome.assignment[:, None])
        assert found.valid[0]
        optimum = expected.bottleneck_s[expected.valid].min()
        np.testing.assert_allclose(found.bottleneck_s[0], optimum, rtol=1e-12)
    assert solved >= 15


def test_on_a_total_order_the_program_with_the_span_rule_is_exact():
    rng = np.random.default_rng(7)
    solved = 0
    for name in ("chain", "chain, no overlap", "unlike chips"):
        module = MODULES[name]
        for _ in range(15):
            count = int(rng.integers(2, 7))
            graph = total_order(rng, count)
            optimum = best(graph, module)
            problem = Problem.build(graph, module)
            ideals = list_ideals(problem, 1000)
            assert ideals is not None
            assert ideals.is_total_order
            if optimum is None:
                continue
            solved += 1
            outcome = solve(problem, ideals, 2 * optimum[0], span=True, is_bound=True)
            assert outcome is not None
            np.testing.assert_allclose(outcome.bottleneck_s, optimum[0], rtol=1e-12)
    assert solved >= 20


def total_order(rng: np.random.Generator, count: int) -> Graph:
    """Each node feeds the next, and some feed later ones."""
    nodes = [Node(f"n{v}", "op", float(rng.integers(1, 9)) * 100, 0.0) for v in range(count)]
    tensors = []
    for v in range(count - 1):
        later = [w for w in range(v + 2, count) if rng.random() < 0.3]
        tensors.append(Tensor(v, float(rng.integers(1, 9)) * 100, (v + 1, *later)))
    weights = [Weight(float(rng.integers(0, 3)) * 500, (v,)) for v in range(count)]
    return Graph(tuple(nodes), tuple(tensors), tuple(weights))
