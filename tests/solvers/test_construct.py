"""Cuts of one order near given labels, against every partition of tiny problems."""

import itertools

import numpy as np
import pytest

from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip
from jaxpart.problem.problem import Problem
from jaxpart.solvers.construct import construct, keeps_rules
from jaxpart.solvers.minimum_cut import nearest
from tests.support import oracle
from tests.support.strategies import TOPOLOGIES, random_graph, random_mcm

CASES = [(seed, topology) for seed in range(40) for topology in TOPOLOGIES]


def random_case(seed, topology):
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 3, topology=topology)
    problem = Problem.build(random_graph(rng, 5, mcm.num_chips), mcm)
    return problem, rng.integers(0, mcm.num_chips, problem.num_nodes)


@pytest.mark.parametrize(("seed", "topology"), CASES)
def test_what_is_constructed_is_valid_and_exists_where_greedy_succeeds(seed, topology):
    problem, y = random_case(seed, topology)
    rule = "acyclic" if problem.mcm.constraints.acyclic else "none"
    weights = np.ones(problem.num_nodes)
    guide = nearest(problem, y, weights, rule=rule)
    valid = oracle.all_valid(problem.graph, problem.mcm)
    if guide is None:
        assert not valid
        return
    f = construct(problem, guide, y, weights)
    if f is None:
        assert oracle.baseline(problem.graph, problem.mcm) is None
    else:
        assert tuple(f) in valid


@pytest.mark.parametrize(("seed", "topology"), CASES[::3])
def test_the_host_keeps_the_rules_that_the_definition_has(seed, topology):
    problem, _ = random_case(seed, topology)
    valid = set(oracle.all_valid(problem.graph, problem.mcm))
    chips = range(problem.num_chips)
    for f in itertools.product(chips, repeat=problem.num_nodes):
        assert keeps_rules(problem, np.array(f)) == (f in valid)


def line(sizes, capacities, pins):
    """A chain of nodes with a weight each, on a chain of chips where only weights count."""
    nodes = tuple(
        Node(f"n{v}", "op", 1.0, 1.0, pin=None if pin < 0 else pin) for v, pin in enumerate(pins)
    )
    tensors = tuple(Tensor(v, 1.0, (v + 1,)) for v in range(len(sizes) - 1))
    weights = tuple(Weight(float(size), (v,)) for v, size in enumerate(sizes))
    chips = tuple(Chip(1.0, 1.0, float(capacity)) for capacity in capacities)
    mcm = MCM("line", "chain", chips, 1e3, memory_model="weights")
    return Problem.build(Graph(nodes, tensors, weights, element_bytes=None), mcm)


@pytest.mark.parametrize("seed", range(40))
def test_where_there_is_one_order_it_is_the_nearest_of_all(seed):
    rng = np.random.default_rng(seed)
    count, chips = 7, 3
    pins = np.where(rng.random(count) < 0.1, rng.integers(0, chips, count), -1)
    problem = line(rng.integers(1, 5, count), rng.integers(4, 12, chips), pins)
    y = rng.integers(0, chips, count)
    weights = rng.choice([0.0, 0.5, 1.0, 3.25], count)
    valid = oracle.all_valid(problem.graph, problem.mcm)
    f = construct(problem, np.zeros(count, np.int64), y, weights)
    if not valid:
        assert f is None
        return
    assert f is not None
    distances = {g: float((weights * np.abs(np.array(g) - y)).sum()) for g in valid}
    assert distances[tuple(f)] == pytest.approx(min(distances.values()))


def test_neighbours_go_together_where_tables_would_be_too_large(monkeypatch):
    """A coarser order still gives a valid answer, if not as near."""
    problem = line([1] * 60, [25, 25, 25], [-1] * 60)
    y = np.minimum(np.arange(60) // 15, 2)
    fine = construct(problem, y, y, np.ones(60))
    monkeypatch.setattr("jaxpart.solvers.construct._MOST_PLACES", 20)
    coarse = construct(problem, y, y, np.ones(60))
    assert fine is not None
    assert coarse is not None
    assert keeps_rules(problem, coarse)
    assert len(np.unique(coarse)) == 3
    assert np.abs(fine - y).sum() <= np.abs(coarse - y).sum()
