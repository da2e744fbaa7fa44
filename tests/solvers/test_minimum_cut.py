"""The minimum cut: the nearest partition under dataflow and span."""

import numpy as np
import pytest

from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import PRESETS
from jaxpart.problem.problem import Problem
from jaxpart.solvers.minimum_cut import nearest, nearest_span, squeeze
from tests.support import oracle
from tests.support.problems import layered
from tests.support.strategies import random_graph, random_mcm

WEIGHTS = (0.0, 0.5, 1.0, 3.25)


def steps(problem, f):
    return f[problem.node_pairs[:, 1]] - f[problem.node_pairs[:, 0]]


def random_case(seed):
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, num_chips=int(rng.integers(1, 5)), topology="chain")
    problem = Problem.build(random_graph(rng, 5, mcm.num_chips), mcm)
    y = rng.integers(-1, mcm.num_chips + 1, problem.num_nodes)
    return problem, y, rng.choice(WEIGHTS, problem.num_nodes)


def expected(problem, y, weights, num_chips):
    groups = [np.flatnonzero(problem.colocate == g) for g in range(problem.colocate.max() + 1)]
    pins = {v: int(chip) for v, chip in enumerate(problem.fixed_chip) if chip >= 0}
    return oracle.nearest_span(problem.node_pairs, y, weights, num_chips, pins, groups)


@pytest.mark.parametrize("seed", range(120))
def test_the_cut_is_the_nearest_of_all_partitions_of_span_one(seed):
    problem, y, weights = random_case(seed)
    best = expected(problem, y, weights, problem.num_chips)
    f = nearest_span(problem, y, weights)
    if best is None:
        assert f is None
    else:
        assert f is not None
        assert tuple(f) in best[1] or (weights * np.abs(f - y)).sum() == pytest.approx(best[0])
        assert (steps(problem, f) >= 0).all()
        assert (steps(problem, f) <= 1).all()


@pytest.mark.parametrize("seed", range(0, 120, 8))
def test_the_cut_can_be_kept_to_the_first_chips(seed):
    problem, y, weights = random_case(seed)
    best = expected(problem, y, weights, 2)
    f = nearest_span(problem, y, weights, max_chip=1)
    if best is None:
        assert f is None
    else:
        assert f is not None
        assert (weights * np.abs(f - y)).sum() == pytest.approx(best[0])
        assert f.max() <= 1


def test_a_partition_that_keeps_the_rules_comes_back_unchanged():
    problem, f = layered()
    again = nearest_span(problem, f)
    assert again is not None
    np.testing.assert_array_equal(again, f)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_cuts_over_a_few_levels_end_where_one_cut_over_all_does(share, monkeypatch):
    problem, f = layered()
    rng = np.random.default_rng(1)
    y = np.where(rng.random(len(f)) < share, rng.integers(0, 36, len(f)), f)
    weights = rng.random(len(f))
    few = nearest_span(problem, y, weights)
    monkeypatch.setattr("jaxpart.solvers.minimum_cut._REACH", 36)
    every = nearest_span(problem, y, weights)
    assert few is not None
    assert every is not None
    distance = [(weights * np.abs(g - y)).sum() for g in (few, every)]
    assert distance[0] == pytest.approx(distance[1], rel=1e-9)


def test_without_span_an_edge_may_skip_chips_but_not_run_backward():
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(3))
    tensors = (Tensor(0, 1.0, (1,)), Tensor(1, 1.0, (2,)))
    problem = Problem.build(Graph(nodes, tensors), PRESETS["mcm4"]())
    y = np.array([0, 3, 2])
    f = nearest(problem, y, np.array([1.0, 1.0, 2.0]), rule="acyclic")
    assert f is not None
    np.testing.assert_array_equal(f, [0, 2, 2])
    f = nearest(problem, y, rule="none")
    assert f is not None
    np.testing.assert_array_equal(f, y)


def test_fixed_chips_that_run_backward_along_an_edge_leave_nothing():
    nodes = (Node("a", "op", 1.0, 1.0, pin=2), Node("b", "op", 1.0, 1.0, pin=1))
    problem = Problem.build(Graph(nodes, (Tensor(0, 1.0, (1,)),)), PRESETS["mcm4"]())
    assert nearest_span(problem, np.array([0, 0])) is None
    assert nearest(problem, np.array([0, 0]), rule="none") is not None


def test_squeezing_leaves_no_chip_unused_and_no_fixed_node_moved():
    free = Graph(tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(3)))
    f = squeeze(Problem.build(free, PRESETS["mcm8"]()), np.array([5, 2, 5]))
    assert f is not None
    np.testing.assert_array_equal(f, [1, 0, 1])
    pinned = Graph((Node("a", "op", 1.0, 1.0, pin=2), *free.nodes))
    assert squeeze(Problem.build(pinned, PRESETS["mcm8"]()), np.array([2, 0, 0, 0])) is None
