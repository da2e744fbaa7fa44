"""One chip at a time, what is before it and after it: against every partition of tiny problems."""

import dataclasses
import itertools
import math

import pytest

from jaxpart.bounds.best import ideals_bound
from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.bounds.superblocks import superblock_bound, sweep
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from tests.support.graphs import line
from tests.support.modules import unit_module
from tests.support.problems import instance, optimum_s
from tests.support.strategies import TOPOLOGIES

BOTH = (True, False)
RULES_AND_MODELS = list(itertools.product(TOPOLOGIES, BOTH, BOTH, BOTH, BOTH, ("full", "weights")))
PER_SWITCH = 11  # 96 combinations: over 1,000 instances


@pytest.mark.parametrize("config", RULES_AND_MODELS, ids=lambda s: "-".join(map(str, s)))
def test_no_bound_refutes_the_optimum(config):
    for seed in range(PER_SWITCH):
        problem = instance(*config, seed=seed)
        best_s = optimum_s(problem)
        if 0 < best_s < math.inf:
            assert not sweep(problem, best_s).is_refuted  # reduction included
            low_s = combinatorial_bound(problem).seconds
            assert low_s <= best_s * (1 + 1e-8)
            if low_s > 0:
                bound_s = ideals_bound(problem, low_s, 2 * best_s, lambda: False)
                assert low_s <= bound_s <= best_s * (1 + 1e-8)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_bound_lies_between_what_was_known_and_the_optimum(topology):
    close = 0
    for seed in range(12):
        problem = instance(topology, seed % 2 == 0, True, False, True, "full", 100 + seed)
        best_s = optimum_s(problem)
        if not 0 < best_s < math.inf:
            continue
        bound_s = superblock_bound(problem, best_s / 64, 4 * best_s)
        assert best_s / 64 <= bound_s <= best_s * (1 + 1e-8)
        close += bound_s >= 0.99 * best_s
    assert close >= 3


def test_where_cheap_cuts_are_far_apart_a_chip_does_all_that_lies_between():
    # Cuts of one byte on both sides of six nodes joined by nine bytes each.
    problem = Problem.build(line([1] * 8, [1, 9, 9, 9, 9, 9, 1]), unit_module(8))

    assert sweep(problem, 5.9).is_refuted
    assert not sweep(problem, 6.0).is_refuted


def test_parallel_branches_add_up_in_the_cut_though_each_is_cheap():
    # Four branches of 3 bytes side by side: apart, any two nodes are joined by little.
    nodes = tuple(Node(f"v{i}", "op", 1, 0) for i in range(10))
    tensors = [Tensor(0, 3, (q,)) for q in range(1, 5)]
    tensors += [Tensor(p, 3, (p + 4,)) for p in range(1, 5)]
    tensors += [Tensor(p, 3, (9,)) for p in range(5, 9)]
    problem = Problem.build(Graph(nodes, tuple(tensors), (), "branches"), unit_module(10))

    assert superblock_bound(problem, 1.0, 12.0) == pytest.approx(10.0, rel=2e-3)


def test_without_overlap_a_chip_computes_receives_and_sends_one_after_the_other():
    problem = Problem.build(line([4] * 3, [1, 1]), unit_module(3, overlap=False))

    assert superblock_bound(problem, 1.0, 12.0) == pytest.approx(6.0, rel=2e-3)


def test_a_chip_with_a_huge_weight_has_no_room_for_the_transfers_of_a_cut():
    # 4 of 10 bytes are left beside the weight; a tensor of 3 lies in the buffer twice.
    graph = line([5, 1, 5], [3, 3], [0, 6, 0])

    roomy = Problem.build(graph, unit_module(3, bandwidth=10.0, capacity=100))
    tight = Problem.build(graph, unit_module(3, bandwidth=10.0, capacity=10))

    assert not sweep(roomy, 6.0).is_refuted
    assert sweep(tight, 10.9).is_refuted


def test_where_data_may_flow_backward_nothing_is_claimed():
    problem = Problem.build(line([4] * 3, [1, 1]), unit_module(3, topology="host"))
    rules = Constraints(acyclic=False, triangle=False)
    cyclic = dataclasses.replace(problem, mcm=dataclasses.replace(problem.mcm, constraints=rules))

    assert superblock_bound(cyclic, 1.0, 12.0) == 1.0


def test_a_lower_link_rate_never_lowers_the_bound():
    bounds = [
        superblock_bound(
            Problem.build(line([4, 1, 1, 4], [2, 6, 2]), unit_module(4, bandwidth=rate)), 1.0, 20.0
        )
        for rate in (4.0, 1.0, 0.25)
    ]

    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]


def test_when_told_to_stop_it_returns_what_it_has():
    problem = Problem.build(line([4] * 3, [1, 1]), unit_module(3))

    assert superblock_bound(problem, 1.0, 12.0, give_up=lambda: True) == 1.0
    assert not sweep(problem, 3.9, give_up=lambda: False).tests
