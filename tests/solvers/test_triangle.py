"""The chip triangle stated in full: what its rows leave, against the oracle."""

import itertools

import numpy as np
import pytest

from jaxpart.bounds.reachability import reachability_matrix
from jaxpart.problem.problem import Problem
from jaxpart.solvers import cpsat
from jaxpart.solvers.model import Model
from jaxpart.solvers.scip import Limits, Status
from jaxpart.solvers.triangle import state_triangles
from tests.support import oracle
from tests.support.strategies import TOPOLOGIES, random_graph, random_mcm

TIMEOUT_S = 60.0


def stated(seed: int, topology: str) -> Model | None:
    """A tiny problem's model with the rule in full; None where the module has no such rule."""
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 3, topology=topology)
    if not (mcm.constraints.triangle and mcm.constraints.acyclic):
        return None
    problem = Problem.build(random_graph(rng, 5, mcm.num_chips, pins=False), mcm)
    low = np.zeros(problem.num_contracted, np.int64)
    model = Model(problem, low, low + problem.num_chips - 1, unit_s=problem.mean_load_s or 1.0)
    if model.is_infeasible:
        return None
    model.seek_bottleneck()
    assert state_triangles(model, reachability_matrix(problem.contracted))
    return model


def holds(model: Model, f: np.ndarray) -> bool:
    """Whether the point of f keeps every row."""
    point = model.point(f)
    return all(
        sum(a * point[j] for j, a in terms) <= upper + 1e-9
        for terms, upper in zip(model.rows, model.row_upper, strict=True)
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(25))
def test_the_rows_leave_what_keeps_the_rule_and_nothing_else(seed, topology):
    model = stated(seed, topology)
    if model is None:
        return
    graph, mcm = model.problem.graph, model.problem.mcm
    # Memory's peak is stated on demand and has no part in this.
    rules = [rule for rule in oracle.rules_on(mcm) if rule != "memory"]
    tight = {rule for rule in oracle.rules_on(mcm) if rule == "memory"}
    chips = range(mcm.num_chips)
    for contracted in itertools.product(chips, repeat=model.problem.num_contracted):
        f = np.array(contracted)
        nodes = tuple(f[model.problem.contraction].tolist())
        keeps = all(oracle.keeps(rule, graph, mcm, nodes) for rule in rules)
        if not keeps:
            assert not holds(model, f)
        elif all(oracle.keeps(rule, graph, mcm, nodes) for rule in tight):
            assert holds(model, f)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(25))
def test_the_optimum_stays(seed, topology):
    model = stated(seed, topology)
    if model is None:
        return
    found = cpsat.solve(model, Limits(TIMEOUT_S))
    expected = oracle.best(model.problem.graph, model.problem.mcm)
    if expected is None:
        assert found.status is Status.INFEASIBLE
    else:
        assert found.objective is not None
        assert model.unit_s is not None
        assert found.objective * model.unit_s == pytest.approx(expected[0], rel=1e-5)


def test_too_many_rows_are_not_stated():
    rng = np.random.default_rng(0)
    mcm = random_mcm(rng, 2, num_chips=2, topology="chain")
    problem = Problem.build(random_graph(rng, 6, 2), mcm)
    low = np.zeros(problem.num_contracted, np.int64)
    model = Model(problem, low, low + 1, unit_s=1.0)
    model.high = model.low + 2000
    rows = len(model.rows)
    assert not state_triangles(model, reachability_matrix(problem.contracted))
    assert len(model.rows) == rows
