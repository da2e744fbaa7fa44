"""Nodes between the ends of an edge share its two chips: against every valid partition."""

import dataclasses

import numpy as np
import pytest

from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.bounds.intervals import heaviest_interval, sums
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip
from jaxpart.problem.problem import Problem
from tests.support.modules import MODULES
from tests.support.oracle import all_valid, best
from tests.support.strategies import random_graph


def skip_connection(length: int, weight_bytes: float = 0.0) -> Graph:
    """A chain of equal nodes whose first feeds its last as well."""
    nodes = tuple(Node(f"n{v}", "op", flops=100.0, bytes_accessed=0.0) for v in range(length))
    tensors = [Tensor(0, 1.0, (1, length - 1))]
    tensors += [Tensor(v, 1.0, (v + 1,)) for v in range(1, length - 1)]
    weights = tuple(Weight(weight_bytes, (v,)) for v in range(length))
    return Graph(nodes, tuple(tensors), weights, "skip")


def module(chips: int, sram_bytes: float = 1e9) -> MCM:
    return MCM("m", "chain", (Chip(1.0, 1.0, sram_bytes),) * chips, 1e9, memory_model="weights")


def test_the_interval_of_an_edge_is_on_its_two_chips_in_every_valid_partition():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=7, colocation=False, pins=False)
        mcm = MODULES["chain"]
        problem = Problem.build(graph, mcm)
        rank = np.arange(problem.num_contracted, dtype=float)
        for f in all_valid(graph, mcm):
            for u, v in problem.node_pairs.tolist():
                between = set(_between(problem, u, v))
                seen += len(between)
                assert {f[w] for w in between} <= {f[u], f[v]}
        found = heaviest_interval(problem, sums(rank))
        held = [
            rank[[u, v, *between]].sum()
            for u, v in problem.node_pairs.tolist()
            if (between := _between(problem, u, v))
        ]
        assert (None if found is None else found.amount) == max(held, default=None)
    assert seen > 100


def _between(problem: Problem, u: int, v: int) -> list[int]:
    below, above = {u}, {v}
    for a, b in problem.node_pairs.tolist():
        if a in below:
            below.add(b)
    for a, b in reversed(problem.node_pairs.tolist()):
        if b in above:
            above.add(a)
    return sorted((below & above) - {u, v})


def test_a_skip_connection_leaves_a_chain_to_two_chips():
    problem = Problem.build(skip_connection(10), module(5))

    bound = combinatorial_bound(problem)

    assert bound.method == "edge interval"
    assert bound.seconds == pytest.approx(500.0)
    optimum = best(skip_connection(6), module(3))
    assert optimum is not None
    assert optimum[0] == 300.0


def test_without_the_triangle_rule_nothing_is_said_of_intervals():
    mcm = module(5)
    rules = dataclasses.replace(mcm.constraints, triangle=False)
    problem = Problem.build(skip_connection(10), dataclasses.replace(mcm, constraints=rules))

    assert combinatorial_bound(problem).method == "mean load"


def test_weights_that_two_chips_cannot_hold_between_the_ends_of_an_edge_are_a_reason():
    graph = skip_connection(6, weight_bytes=2.0**20)
    tight, roomy = module(6, 2.5 * 2**20), module(6, 3 * 2**20)

    reason = why_infeasible(Problem.build(graph, tight))

    assert reason is not None
    assert reason.startswith("'n0' feeds 'n5', so that by the triangle rule two chips must hold")
    assert "6.0 MiB of weights, two chips have 5.0 MiB" in reason
    assert not all_valid(graph, tight)
    assert why_infeasible(Problem.build(graph, roomy)) is None
    assert all_valid(graph, roomy)
