"""The best of the bounds: against every partition of tiny problems, and by its name."""

import math

import pytest

from jaxpart.bounds.best import best_bound
from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.problem.problem import Problem
from tests.support.graphs import line
from tests.support.modules import unit_module
from tests.support.problems import instance, optimum_s
from tests.support.strategies import TOPOLOGIES


@pytest.mark.parametrize("triangle", [True, False])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_bound_is_above_the_optimum_whatever_is_known(topology, triangle):
    proven = 0
    for seed in range(10):
        problem = instance(topology, seed % 2 == 0, True, triangle, True, "full", 200 + seed)
        best_s = optimum_s(problem)
        if not 0 < best_s < math.inf:
            continue
        for incumbent_s in (None, best_s, 1.5 * best_s):
            bound = best_bound(problem, 60.0, incumbent_s)
            assert combinatorial_bound(problem).seconds <= bound.seconds
            assert bound.seconds <= best_s * (1 + 1e-8)
        proven += best_bound(problem, 60.0, best_s).seconds >= best_s * (1 - 2e-3)
    assert proven >= 4


def test_each_bound_is_named_where_it_is_the_best():
    free = unit_module(4, bandwidth=1e6)
    cases = [
        (line([4, 4, 4, 4], [1, 1, 1]), free, "mean load", 4.0),
        (line([1, 9, 1], [1, 1]), free, "largest node", 9.0),
        (line([3, 3, 3, 3, 3], [1, 1, 1, 1]), free, "reduction", 6.0),
    ]
    for graph, mcm, method, seconds in cases:
        bound = best_bound(Problem.build(graph, mcm), 60.0, seconds)
        assert bound.method == method
        assert bound.seconds == pytest.approx(seconds, rel=1e-4)


def test_without_time_the_cheap_bounds_are_what_there_is():
    problem = Problem.build(line([3] * 5, [1] * 4), unit_module(4, bandwidth=1e6))

    assert best_bound(problem, 0.0) == combinatorial_bound(problem)


def test_a_graph_without_work_has_the_bound_zero():
    problem = Problem.build(line([0, 0], [0]), unit_module(2))

    assert best_bound(problem, 1.0).seconds == 0.0
