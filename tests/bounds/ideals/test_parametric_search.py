"""Chains of ideals of least bottleneck, against brute force and against the program over pairs."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from jaxpart.bounds.ideals.lattice import enumerate_ideals, prefixes
from jaxpart.bounds.ideals.pairs import solve
from jaxpart.bounds.ideals.parametric_search import ParametricSearch, can_count
from jaxpart.cost.evaluate import verify
from jaxpart.problem.mcm import MCM, Constraints
from jaxpart.problem.problem import Problem
from tests.support.graphs import diamonds
from tests.support.modules import MODULES
from tests.support.oracle import all_valid, best, evaluate
from tests.support.problems import list_ideals
from tests.support.strategies import random_graph

GAP = 1e-9
ALIKE = [name for name in MODULES if name not in ("unlike chips", "chips may be skipped")]


def chains_of(problem: Problem) -> ParametricSearch:
    lattice = enumerate_ideals(problem, 1_000_000)
    assert lattice is not None
    return ParametricSearch(problem, lattice)


def roomy(mcm: MCM) -> MCM:
    return dataclasses.replace(mcm, constraints=dataclasses.replace(mcm.constraints, memory=False))


def keeps_span(problem: Problem, f) -> bool:
    f = np.asarray(f)
    return bool((f[problem.edge_consumer] - f[problem.edge_producer] <= 1).all())


def best_in_a_row(graph, module: MCM, problem: Problem) -> float | None:
    """The least bottleneck of valid partitions whose edges go to the same chip or the next."""
    rows = [f for f in all_valid(graph, module) if keeps_span(problem, f)]
    return min((evaluate(graph, module, f).bottleneck_s for f in rows), default=None)


@pytest.mark.parametrize("name", ["chain", "chain, no overlap", "mesh"])
def test_the_best_chain_is_the_best_partition_in_a_row(name):
    module = roomy(MODULES[name])
    rng = np.random.default_rng(0)
    solved = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=6 if module.num_chips == 3 else 5, pins=False)
        problem = Problem.build(graph, module)
        optimum = best_in_a_row(graph, module, problem)
        if not optimum:
            continue
        solved += 1
        chain = chains_of(problem).best(0.0, math.inf, gap=GAP)
        assert chain is not None
        assert chain.bottleneck_s == pytest.approx(optimum, rel=1e-8)
        costs = verify(problem, chain.assignment[:, None])
        assert costs.valid[0]
        assert costs.bottleneck_s[0] == pytest.approx(chain.bottleneck_s, rel=1e-12)
        assert chains_of(problem).best(0.0, optimum * (1 - 1e-8), gap=GAP) is None
    assert solved >= 20


@pytest.mark.parametrize("model", ["weights", "full"])
@pytest.mark.parametrize("name", ALIKE)
def test_what_is_found_is_valid_and_what_is_proven_is_never_above_the_optimum(name, model):
    module = dataclasses.replace(MODULES[name], memory_model=model)
    rng = np.random.default_rng(1)
    solved = found = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=6 if module.num_chips == 3 else 5, pins=False)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None or optimum[0] == 0:
            continue
        solved += 1
        chains = chains_of(problem)
        for upper_s in (optimum[0], 2 * optimum[0]):
            assert chains.bound(0.0, upper_s, gap=1e-6) <= optimum[0]
        for candidates in (chains, ParametricSearch(problem, prefixes(problem))):
            chain = candidates.best(optimum[0], math.inf, gap=GAP)
            if chain is not None:
                found += 1
                costs = verify(problem, chain.assignment[:, None])
                assert costs.valid[0]
                assert costs.bottleneck_s[0] <= chain.bottleneck_s * (1 + 1e-9)
    assert solved >= 15
    assert found >= 15


def test_the_bound_ends_within_the_gap_of_the_optimum_where_nothing_is_left_out():
    module = roomy(MODULES["chain, any triangle"])
    rng = np.random.default_rng(2)
    solved = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=6, pins=False)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None or optimum[0] == 0:
            continue
        solved += 1
        bound_s = chains_of(problem).bound(0.0, 3 * optimum[0], gap=1e-6)
        assert optimum[0] / (1 + 2e-6) <= bound_s <= optimum[0]
    assert solved >= 20


@pytest.mark.parametrize("name", ["chain", "chain, no overlap"])
def test_larger_graphs_end_where_the_program_over_pairs_does(name):
    module = dataclasses.replace(MODULES[name], chips=MODULES[name].chips[:1] * 6)
    module = roomy(module)
    rng = np.random.default_rng(3)
    solved = 0
    for _ in range(30):
        graph = random_graph(rng, num_nodes=14, pins=False)
        problem = Problem.build(graph, module)
        ideals = list_ideals(problem, 2000)
        if ideals is None:
            continue
        pairs = solve(problem, ideals, 2 * float(problem.node_s.sum()) + 1.0, span=True)
        chain = chains_of(problem).best(0.0, math.inf, gap=GAP)
        assert pairs is not None
        solved += 1
        assert (chain is None) == (pairs.assignment is None)
        if chain is not None:
            assert chain.bottleneck_s == pytest.approx(pairs.bottleneck_s, rel=1e-8)
    assert solved >= 15


def test_long_graphs_end_where_the_program_over_pairs_does():
    problem = diamonds(60)  # windows move
    ideals = list_ideals(problem, 10_000)
    assert ideals is not None
    for span in (True, False):
        pairs = solve(problem, ideals, 1e9, span=span)
        assert pairs is not None
        if span:
            chain = chains_of(problem).best(0.0, math.inf, gap=GAP)
            assert chain is not None
            assert verify(problem, chain.assignment[:, None]).valid[0]
            assert chain.bottleneck_s == pytest.approx(pairs.bottleneck_s, rel=1e-8)
        else:
            bound_s = chains_of(problem).bound(0.0, 2 * pairs.bottleneck_s, gap=1e-7)
            assert bound_s == pytest.approx(pairs.bottleneck_s, rel=1e-6)


def test_full_chips_are_seen():
    problem = diamonds(60)
    chains = chains_of(problem)
    free = chains.best(0.0, math.inf, gap=GAP, has_memory=False)
    small = dataclasses.replace(problem, capacity_bytes=np.full(4, 1.0))
    assert free is not None
    assert chains_of(small).best(0.0, math.inf, gap=GAP) is None
    assert chains_of(small).best(0.0, math.inf, gap=GAP, has_memory=False) is not None


def test_where_time_runs_out_what_was_known_before_is_returned(monkeypatch):
    monkeypatch.setattr("jaxpart.bounds.ideals.parametric_search._PAIRS", 10)
    chains = chains_of(diamonds(60))
    assert chains.best(0.0, math.inf, gap=GAP, give_up=lambda: True) is None
    assert chains.bound(1e-9, 1.0, gap=GAP, give_up=lambda: True) == 1e-9
    # Looking at the clock changes nothing.
    often = chains.best(0.0, math.inf, gap=GAP)
    monkeypatch.undo()
    seldom = chains.best(0.0, math.inf, gap=GAP)
    assert often is not None
    assert seldom is not None
    np.testing.assert_array_equal(often.assignment, seldom.assignment)


def test_unlike_chips_fixed_chips_and_cycles_are_not_counted():
    rng = np.random.default_rng(4)
    graph = random_graph(rng, num_nodes=6, pins=False)
    assert can_count(Problem.build(graph, MODULES["chain"]))
    assert not can_count(Problem.build(graph, MODULES["unlike chips"]))
    pinned = dataclasses.replace(
        graph, nodes=(msgspec.structs.replace(graph.nodes[0], pin=1), *graph.nodes[1:])
    )
    assert not can_count(Problem.build(pinned, MODULES["chain"]))
    cyclic = dataclasses.replace(
        MODULES["host, any triangle"], constraints=Constraints(acyclic=False, triangle=False)
    )
    assert not can_count(Problem.build(graph, cyclic))
