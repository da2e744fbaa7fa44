"""Repair, improvement and exact solutions against every partition of tiny problems."""

import dataclasses

import numpy as np
import pytest

from jaxpart.cost import host
from jaxpart.cost.evaluate import verify
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, PRESETS, Chip, Constraints
from jaxpart.problem.problem import Problem
from jaxpart.solvers.lns import lns, solve_exact
from jaxpart.solvers.repair import repair
from jaxpart.solvers.scip import Status
from tests.support import oracle
from tests.support.problems import deep_graph_with_little_memory, parallel_branches
from tests.support.strategies import TOPOLOGIES, random_graph, random_mcm
from tests.support.workers import answer

# Far beyond what any of these takes: a limit that is met fails the test.
TIMEOUT_S = 60.0
WEIGHTS = (0.5, 1.0, 3.25)


@dataclasses.dataclass
class Case:
    problem: Problem
    seconds: dict[tuple[int, ...], float]  # T of every valid partition
    y: np.ndarray
    weights: np.ndarray

    def distance(self, f):
        return float((self.weights * np.abs(np.array(f) - self.y)).sum())


def case(seed, topology):
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 3, topology=topology)
    problem = Problem.build(random_graph(rng, 5, mcm.num_chips), mcm)
    valid = oracle.all_valid(problem.graph, mcm)
    seconds = {f: oracle.evaluate(problem.graph, mcm, f).bottleneck_s for f in valid}
    y = rng.integers(0, mcm.num_chips, problem.num_nodes)
    return Case(problem, seconds, y, rng.choice(WEIGHTS, problem.num_nodes))


CASES = [(seed, topology) for seed in range(30) for topology in TOPOLOGIES]


@pytest.mark.parametrize(("seed", "topology"), CASES)
def test_every_task_agrees_with_trying_all_partitions(seed, topology):
    c = case(seed, topology)
    exact_one = solve_exact(c.problem, time_limit_s=TIMEOUT_S)
    nearest = repair(c.problem, c.y, c.weights, time_limit_s=TIMEOUT_S, window=None, gap=0)
    quick = repair(c.problem, c.y, c.weights, time_limit_s=TIMEOUT_S, window=1)
    if not c.seconds:
        assert {exact_one.status, nearest.status, quick.status} == {Status.INFEASIBLE}
        return
    best_s = min(c.seconds.values())
    assert exact_one.status is Status.OPTIMAL
    f, found_s = answer(exact_one)
    assert c.seconds[tuple(f)] == pytest.approx(best_s, rel=1e-5)
    assert found_s == pytest.approx(best_s, rel=1e-5)
    assert best_s * (1 - 1e-3) - 1e-4 <= exact_one.bound <= best_s

    least = min(map(c.distance, c.seconds))
    assert nearest.status is Status.OPTIMAL
    f, distance = answer(nearest)
    assert tuple(f) in c.seconds
    assert c.distance(f) == distance == pytest.approx(least)
    assert nearest.bound <= least
    f, distance = answer(quick)
    assert tuple(f) in c.seconds
    assert quick.status is not Status.OPTIMAL or distance == pytest.approx(least)

    start = list(c.seconds)[seed % len(c.seconds)]
    improved = lns(c.problem, np.array(start), time_limit_s=TIMEOUT_S)
    f, found_s = answer(improved)
    assert found_s == pytest.approx(c.seconds[tuple(f)])
    assert found_s <= c.seconds[start] + 1e-12
    assert improved.status is not Status.OPTIMAL or found_s <= best_s * (1 + 1e-3)


def test_parallel_branches_go_to_parallel_chips_where_only_that_fits():
    """Each node needs a chip of its own: span has no answer, the triangle rule has."""
    problem = parallel_branches(19.0)
    f, _ = answer(repair(problem, np.array([0, 1, 1, 2]), time_limit_s=TIMEOUT_S))
    assert sorted(f) == [0, 1, 2, 3]
    assert oracle.evaluate(problem.graph, problem.mcm, f).valid


def test_repair_says_that_nothing_fits():
    weightless = repair(parallel_branches(5.0), np.zeros(4, int), time_limit_s=TIMEOUT_S)
    assert weightless.status is Status.INFEASIBLE
    traffic = repair(parallel_branches(12.0), np.zeros(4, int), time_limit_s=TIMEOUT_S)
    assert traffic.status is Status.INFEASIBLE


def test_repair_that_has_no_time_says_so_and_claims_nothing():
    problem = parallel_branches(19.0)
    repaired = repair(problem, np.zeros(4, int), time_limit_s=0.0)
    assert repaired.status is Status.TIME_LIMIT
    assert repaired.assignment is None


def test_an_exact_solution_that_has_no_time_returns_its_incumbent():
    problem = parallel_branches(100.0)
    outcome = solve_exact(problem, incumbent=np.zeros(4, int), time_limit_s=0.0)
    assert outcome.status is Status.FEASIBLE
    assert outcome.objective == 4.0
    np.testing.assert_array_equal(outcome.assignment, np.zeros(4))


def test_a_chip_that_is_one_byte_too_small_is_too_small():
    """The solver's own tolerance, 1e-6 of a capacity of 32 MiB, is 34 bytes."""
    nodes = tuple(Node(name, "op", 0.0, 0.0, seconds=1.0) for name in ("a", "b", "c"))
    weights = (Weight(2.0**24, (0,)), Weight(2.0**24, (1,)), Weight(1.0, (2,)))
    rules = Constraints(no_skip=False)
    for spare, chips_used in ((1.0, 1), (0.0, 2)):
        mcm = MCM("two", "host", (Chip(1.0, 1.0, 2.0**25 + spare),) * 2, 1.0, constraints=rules)
        problem = Problem.build(Graph(nodes, (), weights, element_bytes=None), mcm)
        y = np.zeros(3, int)
        f, _ = answer(repair(problem, y, time_limit_s=TIMEOUT_S, window=None, gap=0))
        assert len(set(f)) == chips_used
        assert oracle.evaluate(problem.graph, mcm, f).valid


def test_repair_moves_what_overflows_to_the_next_chips():
    problem = deep_graph_with_little_memory()
    y = np.minimum(np.arange(60) // 12, 3)
    assert (host.memory_bytes(problem, y) > problem.capacity_bytes).any()
    repaired = repair(problem, y, time_limit_s=TIMEOUT_S)
    assert repaired.status is Status.FEASIBLE
    assert oracle.evaluate(problem.graph, problem.mcm, answer(repaired)[0]).valid


def test_large_neighbourhood_search_evens_out_a_lopsided_partition():
    problem = deep_graph_with_little_memory()
    start, _ = answer(repair(problem, np.arange(60) // 18, time_limit_s=TIMEOUT_S))
    f, found_s = answer(lns(problem, start, time_limit_s=TIMEOUT_S))
    assert found_s < np.bincount(start).max()
    assert found_s <= 16.0
    assert oracle.evaluate(problem.graph, problem.mcm, f).valid


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_of_every_kind_repair_a_chain_of_nodes(name):
    nodes = tuple(Node(f"n{v}", "op", 1e6, 1e5) for v in range(120))
    tensors = tuple(Tensor(v, 1e4, (v + 1,)) for v in range(119))
    weights = tuple(Weight(8.0 * 2**20, (v,)) for v in range(0, 120, 10))
    mcm = PRESETS[name]()
    problem = Problem.build(Graph(nodes, tensors, weights, element_bytes=1), mcm)
    f, _ = answer(repair(problem, np.arange(120) // 40, time_limit_s=TIMEOUT_S))
    assert oracle.evaluate(problem.graph, mcm, f).valid


@pytest.mark.parametrize("seed", [3, 4, 8, 10])
def test_a_window_lies_around_what_squeezing_has_moved(seed):
    """Labels whose nearest cut leaves chips unused, and too little memory for it all."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 16))
    nodes = tuple(Node(f"n{v}", "op", 0.0, 0.0, seconds=1.0) for v in range(count))
    tensors = tuple(
        Tensor(
            v, float(rng.integers(1, 20)), tuple({int(x) for x in rng.integers(v + 1, count, 2)})
        )
        for v in range(count - 1)
    )
    chips = (Chip(1.0, 1.0, float(rng.integers(25, 90))),) * int(rng.integers(3, 7))
    problem = Problem.build(Graph(nodes, tensors, ()), MCM("tight", "chain", chips, 1e3))
    for k in range(6):
        y = rng.integers(0, len(chips), count)
        found = repair(problem, np.sort(y) if k % 2 else y, time_limit_s=TIMEOUT_S, window=1)
        assert found.status in (Status.OPTIMAL, Status.FEASIBLE, Status.INFEASIBLE)
        if found.assignment is not None:
            assert verify(problem, found.assignment[:, None]).valid.all()
