"""Bisection over bottlenecks on the lattice of ideals, against brute force."""

import dataclasses

import numpy as np
import pytest

from jaxpart.bounds.ideals.lattice import enumerate_ideals
from jaxpart.bounds.ideals.load_program import Stages, least_bottleneck
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem
from tests.support.modules import MODULES
from tests.support.oracle import best
from tests.support.strategies import random_graph


def lattice_of(problem: Problem):
    lattice = enumerate_ideals(problem, 1_000_000)
    assert lattice is not None
    return lattice


def relaxed(mcm: MCM) -> MCM:
    """Without the rules that chains of ideals leave out."""
    constraints = dataclasses.replace(mcm.constraints, triangle=False, memory=False)
    return dataclasses.replace(mcm, constraints=constraints)


@pytest.mark.parametrize("name", ["chain", "unlike chips", "chips may be skipped"])
def test_on_an_overlapping_chain_it_is_exact_but_for_memory_and_the_triangle_rule(name):
    module = relaxed(MODULES[name])
    rng = np.random.default_rng(0)
    solved = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=6, max_chips=3)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None or optimum[0] == 0:
            continue
        solved += 1
        stages = Stages(problem, lattice_of(problem))
        is_known, chain = stages.chain(optimum[0])
        assert is_known
        assert chain is not None
        assert tuple(chain) in set(optimum[1])
        assert stages.chain(optimum[0] * (1 - 1e-9)) == (True, None)
    assert solved >= 20


@pytest.mark.parametrize("name", MODULES)
def test_what_it_proves_is_never_above_the_optimum(name):
    module = MODULES[name]
    rng = np.random.default_rng(1)
    solved = 0
    for _ in range(30):
        graph = random_graph(rng, max_nodes=6 if module.num_chips == 3 else 5, max_chips=3)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None or optimum[0] == 0:
            continue
        solved += 1
        lattice = lattice_of(problem)
        for upper_s in (optimum[0], 2 * optimum[0]):
            outcome = least_bottleneck(problem, lattice, 0.0, upper_s, gap=1e-6)
            assert outcome.lower_s <= optimum[0]
    assert solved >= 10


def test_the_bisection_ends_within_the_gap_of_the_optimum():
    module = relaxed(MODULES["chain"])
    rng = np.random.default_rng(2)
    for _ in range(30):
        graph = random_graph(rng, max_nodes=6, max_chips=3)
        problem = Problem.build(graph, module)
        optimum = best(graph, module)
        if optimum is None or optimum[0] == 0:
            continue
        outcome = least_bottleneck(problem, lattice_of(problem), 0.0, 3 * optimum[0], gap=1e-3)
        assert outcome.lower_s <= optimum[0] <= outcome.lower_s * (1 + 1e-3) * (1 + 1e-9)
        assert outcome.assignment is not None


def test_where_time_runs_out_what_was_known_before_is_returned():
    graph = random_graph(np.random.default_rng(3), num_nodes=18, colocation=False)
    problem = Problem.build(graph, MODULES["chain"])

    outcome = least_bottleneck(
        problem, lattice_of(problem), 50.0, 100.0, gap=1e-3, give_up=lambda: True
    )

    assert (outcome.lower_s, outcome.assignment) == (50.0, None)
