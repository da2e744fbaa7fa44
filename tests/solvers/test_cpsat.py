"""CP-SAT and the proofs against every partition of tiny problems, for all combinations of rules."""

import itertools

import numpy as np
import pytest

from jaxpart.cost.host import bottleneck_s
from jaxpart.problem.problem import Problem
from jaxpart.solvers import cpsat
from jaxpart.solvers.model import Model
from jaxpart.solvers.prove import prove
from jaxpart.solvers.scip import Limits, Status
from tests.support import oracle
from tests.support.strategies import TOPOLOGIES, random_graph, random_mcm

# Far beyond what any of these takes: a limit that is met fails the test.
TIMEOUT_S = 60.0
VALID_SEED = 0  # a chain with several valid partitions, of several T


def tiny(seed: int, topology: str) -> tuple[Problem, dict[tuple[int, ...], float]]:
    """A problem and the T of its valid partitions, by the oracle."""
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 3, topology=topology)
    problem = Problem.build(random_graph(rng, 5, mcm.num_chips), mcm)
    valid = oracle.all_valid(problem.graph, mcm)
    return problem, {f: oracle.evaluate(problem.graph, mcm, f).bottleneck_s for f in valid}


CASES = list(itertools.product(range(50), TOPOLOGIES))


def test_the_cases_meet_every_combination_of_rules():
    seen = set()
    for seed, topology in CASES:
        mcm = tiny(seed, topology)[0].mcm
        rules = mcm.constraints
        seen |= {
            (topology, name, value)
            for name, value in [
                ("overlap", mcm.overlap),
                ("memory model", mcm.memory_model),
                ("acyclic", rules.acyclic),
                ("no skip", rules.no_skip),
                ("triangle", rules.triangle),
                ("memory", rules.memory),
            ]
        }
    for topology in TOPOLOGIES:
        for name in ("overlap", "no skip", "triangle", "memory"):
            assert {(topology, name, True), (topology, name, False)} <= seen
        assert {(topology, "memory model", x) for x in ("full", "weights")} <= seen
    assert ("host", "acyclic", False) in seen


@pytest.mark.parametrize(("seed", "topology"), CASES)
def test_the_optimum_is_that_of_trying_all_partitions(seed, topology):
    problem, seconds = tiny(seed, topology)
    outcome = prove(problem, time_limit_s=TIMEOUT_S, gap=1e-6)
    if not seconds:
        assert outcome.status is Status.INFEASIBLE
        return
    best_s = min(seconds.values())
    assert outcome.status is Status.OPTIMAL
    assert outcome.assignment is not None
    assert seconds[tuple(outcome.assignment.tolist())] == pytest.approx(best_s, rel=1e-5)
    assert outcome.objective == pytest.approx(best_s, rel=1e-5)
    assert best_s * (1 - 1e-4) <= outcome.bound <= best_s * (1 + 1e-12)


@pytest.mark.parametrize("prover", ["cpsat", "scip", "reduction"])
@pytest.mark.parametrize("seed", range(20))
def test_from_any_incumbent_nothing_better_is_lost_and_no_bound_too_high(seed, prover):
    for topology in TOPOLOGIES:
        problem, seconds = tiny(seed, topology)
        if not seconds:
            continue
        best_s = min(seconds.values())
        for f in list(seconds)[:: max(1, len(seconds) // 3)]:
            outcome = prove(
                problem,
                incumbent=np.array(f),
                prover=prover,
                gap=1e-4,
                time_limit_s=TIMEOUT_S,
            )
            assert outcome.bound <= best_s * (1 + 1e-12)
            assert outcome.objective is not None
            assert outcome.objective <= seconds[f] * (1 + 1e-9)
            if prover != "reduction":
                assert outcome.status is Status.OPTIMAL
                assert outcome.objective <= best_s * (1 + 2e-4)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_bottleneck_is_the_oracles(topology):
    for seed in range(40):
        problem, seconds = tiny(seed, topology)
        for f, expected_s in seconds.items():
            assert bottleneck_s(problem, np.array(f)) == pytest.approx(expected_s, rel=1e-12)


def test_a_cutoff_below_the_optimum_leaves_nothing_and_proves_itself():
    problem, seconds = tiny(VALID_SEED, "chain")
    best_s = min(seconds.values())
    low = np.zeros(problem.num_contracted, np.int64)
    model = Model(problem, low, low + problem.num_chips - 1, unit_s=best_s)
    model.seek_bottleneck()
    found = cpsat.solve(model, Limits(TIMEOUT_S), cutoff=0.9)
    assert found.status is Status.INFEASIBLE
    assert found.bound == pytest.approx(0.9)


def test_a_partition_to_start_from_is_no_worse_than_what_comes_back():
    problem, seconds = tiny(VALID_SEED, "chain")
    worst = max(seconds, key=seconds.__getitem__)
    low = np.zeros(problem.num_contracted, np.int64)
    model = Model(problem, low, low + problem.num_chips - 1, unit_s=min(seconds.values()))
    model.seek_bottleneck()
    start = np.zeros(problem.num_contracted, np.int64)
    start[problem.contraction] = worst
    found = cpsat.solve(model, Limits(TIMEOUT_S), [start])
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(1.0, rel=1e-6)


def test_without_time_there_is_a_bound_and_no_wrong_claim():
    problem, seconds = tiny(VALID_SEED, "chain")
    outcome = prove(problem, time_limit_s=0.0)
    assert outcome.status in (Status.TIME_LIMIT, Status.OPTIMAL)
    assert 0 < outcome.bound <= min(seconds.values())
