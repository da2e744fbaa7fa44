"""The engine: valid results only, never worse than the baseline, the same answer twice."""

import dataclasses

import numpy as np
import pytest

from jaxpart.cost.evaluate import verify
from jaxpart.engine import method_of, partition
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.methods import METHODS
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import Constraints, load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.runtime import clock, state
from tests.support import oracle
from tests.support.graphs import parallel_chains
from tests.support.modules import CHIP, THREE_CHIPS
from tests.support.strategies import random_graph


@pytest.mark.parametrize("method", METHODS)
def test_results_of_every_method_are_valid_and_no_worse_than_the_baseline(method):
    graph = parallel_chains(3, 6)
    result = partition(graph, THREE_CHIPS, method=method, time_limit_s=3, max_samples=300, seed=1)
    judged = oracle.evaluate(graph, THREE_CHIPS, result.assignment.tolist())
    assert judged.valid
    np.testing.assert_allclose(judged.bottleneck_s, result.bottleneck_s, rtol=1e-12)
    assert result.baseline_s is not None
    assert result.bottleneck_s <= result.baseline_s
    assert result.lower_bound_s <= result.bottleneck_s
    history = [best for _, _, best in result.search.history]
    assert history == sorted(history, reverse=True)
    assert history[-1] == result.bottleneck_s


def test_every_method_that_is_described_exists():
    for name in METHODS:
        assert callable(method_of(name))


@pytest.mark.parametrize("method", ["slice", "ideals", "exact", "auto"])
def test_best_methods_find_the_optimum_of_small_graphs(method):
    rng = np.random.default_rng(5)
    module = dataclasses.replace(THREE_CHIPS, constraints=Constraints(triangle=False))
    module = dataclasses.replace(module, memory_model="weights")
    for _ in range(3):
        graph = random_graph(rng, max_nodes=6, max_chips=3)
        optimum = oracle.best(graph, module)
        if optimum is None:
            continue
        result = partition(graph, module, method=method, time_limit_s=100, max_samples=600)
        np.testing.assert_allclose(result.bottleneck_s, optimum[0], rtol=1e-9)


def test_search_over_orders_beats_the_program_order():
    graph = parallel_chains(4, 30)
    problem = Problem.build(graph, load_mcm("mcm8"))
    module = dataclasses.replace(THREE_CHIPS, chips=(CHIP,) * 8)
    first = partition(
        graph, module, method="slice", max_samples=2, time_limit_s=None, relative_gap=0
    )
    later = partition(
        graph, module, method="slice", max_samples=2000, time_limit_s=None, relative_gap=0
    )
    assert later.bottleneck_s < first.bottleneck_s
    assert problem.num_nodes == len(later.assignment)


@pytest.mark.parametrize("method", ["slice", "auto", "paper_annealing"])
def test_same_seed_and_samples_give_the_same_answer(method):
    graph = parallel_chains(4, 12)
    arguments = {"method": method, "max_samples": 600, "time_limit_s": None, "relative_gap": 0.0}
    one, two = (partition(graph, THREE_CHIPS, seed=7, **arguments) for _ in range(2))
    np.testing.assert_array_equal(one.assignment, two.assignment)
    assert [h[::2] for h in one.search.history] == [h[::2] for h in two.search.history]


def test_a_start_better_than_what_is_found_is_kept():
    graph = parallel_chains(3, 6)
    good = partition(graph, THREE_CHIPS, method="auto", time_limit_s=5)
    kept = partition(graph, THREE_CHIPS, method="greedy", initial_assignment=good.assignment)
    assert kept.bottleneck_s == good.bottleneck_s


def test_an_invalid_start_is_never_reported():
    graph = parallel_chains(3, 6)
    backward = np.zeros(len(graph.nodes), int)
    backward[0] = 1
    result = partition(graph, THREE_CHIPS, method="greedy", initial_assignment=backward)
    problem = Problem.build(graph, THREE_CHIPS)
    assert verify(problem, result.assignment[:, None]).valid[0]


def test_proven_optimal_search_stops_early():
    result = partition(parallel_chains(1, 10), THREE_CHIPS, time_limit_s=None)
    assert result.gap is not None
    assert result.gap <= 1e-4


def heavy(weight_bytes: float, pins: tuple[int | None, ...] = (None, None)) -> Graph:
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0, pin=pin) for v, pin in enumerate(pins))
    weights = tuple(Weight(weight_bytes, (v,)) for v in range(len(pins)))
    return Graph(nodes, (Tensor(0, 1.0, (1,)),), weights, "heavy", None)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (heavy(5e3), "'n0' take"),
        (heavy(3.5e3, (None,) * 4), "weights take"),
        (heavy(1.0, (2, 0)), "'n0' is fixed to chip 2, but feeds 'n1'"),
        (heavy(1.0, (None, 2)), "'n1' is fixed to chip 2"),
    ],
)
def test_infeasible_problems_say_why(graph, reason):
    with pytest.raises(InfeasibleError, match=reason):
        partition(graph, THREE_CHIPS)


def test_a_method_that_finds_nothing_says_so():
    # Two nodes of 3 kB fit on two chips, but the pinned neighbour forces the walk astray.
    graph = heavy(3.5e3, (None, 1))
    small = dataclasses.replace(CHIP, sram_bytes=3501)
    module = dataclasses.replace(THREE_CHIPS, chips=(CHIP, small))
    with pytest.raises(NothingFoundError, match="greedy"):
        partition(graph, module, method="greedy")


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "magic"},
        {"time_limit_s": 0},
        {"max_samples": -1},
        {"relative_gap": -0.5},
        {"initial_assignment": [0]},
        {"initial_assignment": [9] * 8},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InputError):
        partition(parallel_chains(1, 6), THREE_CHIPS, **arguments)


def test_a_fixed_chip_beyond_the_module_is_refused():
    with pytest.raises(InputError, match=r"'n1'.*chip 7"):
        partition(heavy(1.0, (None, 7)), THREE_CHIPS)


@pytest.mark.parametrize("counts", [False, True])
def test_what_is_compiled_is_beside_the_search_time_only_where_it_is_asked_for(monkeypatch, counts):
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    problem = Problem.build(parallel_chains(2, 2), THREE_CHIPS)
    budget = state.Budget(10.0, None, 0.0)
    search = state.Search(problem, budget, 0, count_compilation=counts)
    now[0] = 1.0
    search.start_clock()
    now[0] = 3.0
    with search.compiling():
        assert search.phase == "compiling"
        now[0] = 8.0
    now[0] = 9.0

    # From 1 to 9, without the 5 s from 3 to 8; or everything.
    assert search.searched_s == (9.0 if counts else 3.0)
    assert search.elapsed_s == 9.0
    assert search.phase == "start"


def test_time_in_which_the_process_is_suspended_does_not_count(monkeypatch):
    now, computed = [0.0], [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(clock.time, "process_time", lambda: computed[0])
    problem = Problem.build(parallel_chains(2, 2), THREE_CHIPS)
    search = state.Search(problem, state.Budget(10.0, None, 0.0), 0)
    search.watch_clock()
    now[0] = 0.5
    search.watch_clock()
    now[0] = 100.5  # suspended: it computed nothing
    assert search.searched_s == 0.5
    now[0], computed[0] = 104.5, 3.9  # compiled code held the lock
    assert search.searched_s == 4.5
    now[0] = 105.0
    assert search.elapsed_s == 5.0
