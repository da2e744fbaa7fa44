"""The throw-away model of replicated stages, against all ways to cut tiny problems."""

import itertools

import numpy as np
import pytest
import replication

from jaxpart.cost.host import bottleneck_s
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.problem import Problem
from tests.support.graphs import line
from tests.support.modules import unit_module


def by_trial(problem, most):
    """The least bottleneck over all cuts and all numbers of copies, without skipping tensors."""
    count, best_s = problem.num_nodes, np.inf
    for ends in itertools.product([0, 1], repeat=count - 1):
        f = np.concatenate([[0], np.cumsum(ends)])
        stages = f[-1] + 1
        spans = f[problem.edge_consumer] - f[problem.edge_producer]
        if (spans > 1).any():
            continue
        for copies in itertools.product(range(1, most + 1), repeat=int(stages)):
            if sum(copies) > problem.num_chips:
                continue
            loads = np.bincount(f, problem.node_s[:, 0]) / copies
            crossing = [
                problem.tensor_bytes[
                    (problem.tensor_producer < i) & (problem.last_consumer >= i)
                ].sum()
                for i in np.flatnonzero(ends) + 1
            ]
            links = np.array(crossing) / problem.mcm.link_bandwidth
            best_s = min(best_s, max(loads.max(), links.max(initial=0)))
    return best_s


@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_program_finds_what_trying_everything_finds(most):
    rng = np.random.default_rng(3)
    for _ in range(6):
        nodes = tuple(Node(f"n{v}", "op", float(rng.integers(1, 9)), 0.0) for v in range(5))
        tensors = tuple(
            Tensor(v, float(rng.integers(0, 6)), tuple(rng.integers(v + 1, 5, 2).tolist()))
            for v in range(4)
        )
        problem = Problem.build(Graph(nodes, tensors), unit_module(4))
        found = replication.bottleneck_s(replication.segments_of(problem), 4, most)
        assert found == pytest.approx(by_trial(problem, most))


def test_one_chip_a_stage_is_the_best_cut_of_a_path():
    problem = Problem.build(line([3.0, 1.0, 2.0, 2.0], [0] * 3), unit_module(2))
    found = replication.bottleneck_s(replication.segments_of(problem), 2, 1)
    assert found == pytest.approx(bottleneck_s(problem, np.array([0, 0, 1, 1])))


def test_each_copy_holds_the_weights_once():
    graph = Graph(
        tuple(Node(f"n{v}", "op", 1.0, 0.0) for v in range(3)),
        (),
        (Weight(4.0, (0, 1)), Weight(4.0, (1, 2))),
    )
    held = replication.segments_of(Problem.build(graph, unit_module(3, capacity=7))).fits
    assert held[0, 1]  # one weight
    assert not held[0, 2]  # both
    assert held[2, 3]


def test_what_fits_no_chip_has_no_bottleneck():
    problem = Problem.build(line([1.0], [], [8]), unit_module(4, capacity=7))
    assert replication.bottleneck_s(replication.segments_of(problem), 4, 4) is None


def test_rows_become_means_and_counts():
    row = {"mcm": "m", "mean_load_s": 1.0, "known_s": 2.0, "copies_1_s": 4.0}
    rows = [
        row | {"copies_2_s": 2.0, "copies_any_s": 1.0},
        row | {"copies_2_s": 0.5, "copies_any_s": 1.0},
        row | {"copies_2_s": None, "copies_any_s": None},
    ]
    assert replication.table_rows(rows) == [
        ["m", "2", "2.000", "4.000", "1.000", "1.000", "1", "2"]
    ]
