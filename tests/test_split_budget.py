"""What a search with splitting keeps when time, samples or the user's patience end."""

import dataclasses
import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import jaxpart
from jaxpart import engine
from jaxpart.cost.greedy import baseline_s_of
from jaxpart.errors import InfeasibleError, NothingFoundError
from jaxpart.ingest.rewrite.split import split as rewritten
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Weight
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.results.result import Result, SearchInfo
from jaxpart.runtime import clock
from jaxpart.runtime.interrupt import Interrupts
from jaxpart.split_search import candidates, search
from jaxpart.split_search.budget import Searches
from jaxpart.split_search.candidates import Found, Task, candidate, try_ways
from tests.support import oracle
from tests.support.graphs import layers, line
from tests.support.modules import unit_module

MCM8 = load_mcm("mcm8")
ANY_TRIANGLE = dataclasses.replace(
    MCM8, constraints=dataclasses.replace(MCM8.constraints, triangle=False)
)


def searched(graph, mcm=MCM8, split="auto", **options: Any) -> Result:
    options = {"method": "ideals", "max_samples": 2_000, "time_limit_s": None, **options}
    return jaxpart.partition(graph, mcm, split=split, **options)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def counted_searches(monkeypatch):
    """The graphs and module that are searched."""
    calls, run = [], engine._partition

    def counting(graph, mcm, **options):
        calls.append((graph, mcm, options))
        return run(graph, mcm, **options)

    monkeypatch.setattr(engine, "_partition", counting)
    return calls


@pytest.mark.parametrize("during", [1, 2, 3])
def test_an_interrupt_of_any_search_returns_the_best_so_far(during):
    begun = []

    def method(state):
        begun.append(state.problem)
        while True:
            if len(begun) == during:
                interrupt()
                state.interrupted.wait(10)
            state.samples += 100
            yield

    result = searched(layers(), method=method)

    assert len(begun) == during
    assert result.search.interrupted
    assert result.costs.valid
    assert (result.split is None) == (during == 1)


@pytest.mark.parametrize("step", ["try_ways", "refine_further"])
def test_an_interrupt_between_searches_returns_the_best_so_far(step, monkeypatch):
    searches = counted_searches(monkeypatch)

    def interrupted(*arguments):
        interrupt()
        until_s = time.monotonic() + 10
        while arguments[-1].left_s > 0 and time.monotonic() < until_s:
            time.sleep(0.01)

    monkeypatch.setattr(search, step, interrupted)
    result = searched(layers())

    assert len(searches) == 1
    assert result.search.interrupted
    assert (result.split is None) == (step == "try_ways")


def test_an_interrupt_that_a_program_turns_into_an_exception_loses_nothing():
    def handler(*_):
        raise KeyboardInterrupt

    def method(state):
        interrupt()
        state.interrupted.wait(10)
        yield

    before = signal.signal(signal.SIGINT, handler)
    try:
        result = searched(layers(), method=method)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.search.interrupted
    assert result.split is None


def test_a_valid_candidate_survives_a_last_search_that_finds_nothing(monkeypatch):
    run, calls = engine._partition, []

    def failing(graph, mcm, **options):
        calls.append(graph)
        if len(calls) > 1:
            raise NothingFoundError("nothing in time")
        return run(graph, mcm, **options)

    monkeypatch.setattr(engine, "_partition", failing)
    result = searched(layers())

    assert len(calls) == 3
    assert result.split is not None
    costs = oracle.evaluate(result.problem.graph, MCM8, result.assignment.tolist())
    assert costs.valid
    assert costs.bottleneck_s == pytest.approx(result.bottleneck_s)
    assert result.lower_bound_s <= result.bottleneck_s


def heavy(*sizes: float) -> Graph:
    """Nodes whose weights can be shared out over four chips each."""
    ways = [Division(4, f"{v}", weights=((v, "a"),)) for v in range(len(sizes))]
    nodes = tuple(Node(f"n{v}", "op", 4.0, 0.0, divide=(way,)) for v, way in enumerate(ways))
    return Graph(nodes, (), tuple(Weight(x, (v,)) for v, x in enumerate(sizes)), "heavy", 1)


def test_a_proof_for_the_graph_as_it_is_is_none_for_the_graph_as_split(monkeypatch):
    monkeypatch.setattr(search, "try_ways", lambda *_: None)
    with pytest.raises(NothingFoundError, match=r"no valid partition \(.*but one may exist"):
        searched(heavy(12.0), unit_module(3, capacity=9.0))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((16.0, 16.0), "nor has it as it was split"), ((100.0,), "no way to split its operations")],
)
def test_what_no_split_can_fit_is_proven_infeasible(sizes, message):
    with pytest.raises(InfeasibleError, match=message):
        searched(heavy(*sizes), unit_module(3, capacity=9.0))


@pytest.mark.parametrize("kind", ["unlike chips", "a fixed node"])
def test_operations_are_split_where_no_cut_of_the_order_counts_chips(kind):
    graph, mcm = layers(), MCM8
    if kind == "unlike chips":
        slow = dataclasses.replace(mcm.chips[-1], speed=0.9)
        mcm = dataclasses.replace(mcm, chips=(*mcm.chips[:-1], slow))
    else:
        first = msgspec.structs.replace(graph.nodes[0], pin=0)
        graph = dataclasses.replace(graph, nodes=(first, *graph.nodes[1:]))

    result = searched(graph, mcm)

    assert result.split is not None
    assert result.split.whole_s is not None
    assert result.bottleneck_s < result.split.whole_s / 2
    assert oracle.evaluate(result.problem.graph, mcm, result.assignment.tolist()).valid


@pytest.mark.parametrize(
    ("graph", "mcm"),
    [
        (line([1.0, 5.0, 1.0], [1] * 2), unit_module(2)),
        (layers(heavy=99), ANY_TRIANGLE),
    ],
)
def test_where_nothing_can_be_split_the_whole_has_all_of_the_budget(graph, mcm, monkeypatch):
    monkeypatch.setattr(search, "is_anything_split", lambda _: False)
    calls = counted_searches(monkeypatch)
    searched(graph, mcm)
    assert [(one, options["max_samples"]) for one, _, options in calls] == [(graph, 2_000)]


def test_when_the_tries_bring_nothing_the_whole_is_searched_on(monkeypatch):
    monkeypatch.setattr(search, "try_ways", lambda *_: None)
    calls = counted_searches(monkeypatch)
    graph = layers()
    result = searched(graph)
    assert [one for one, _, _ in calls] == [graph, graph]
    assert calls[1][2]["initial_assignment"] is not None
    assert result.split is None


class FakeTurn:
    """A share of time that does not pass."""

    is_late = False

    def __init__(self, left_s: float, is_timed: bool = True) -> None:
        self.left_s, self.is_timed, self.samples = left_s, is_timed, 0

    def count_sample(self) -> None:
        self.samples += 1


@pytest.mark.parametrize(("left_s", "tries"), [(3.0, 0), (15.0, 1), (20.0, 5), (30.0, 9)])
def test_a_large_graph_is_tried_only_as_far_as_time_allows(left_s, tries, monkeypatch):
    graph = Graph(tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(20_000)), name="large")
    made = []
    monkeypatch.setattr(candidates, "rewritten", lambda *_: made.append(0.0))
    monkeypatch.setattr(candidates, "_with_parts", lambda _, growth, share: made.append(growth))

    found = Found()
    try_ways(Task(graph, MCM8, 4), None, np.inf, found, FakeTurn(left_s))  # pyright: ignore[reportArgumentType]

    assert len(made) == tries
    assert not found.is_complete


def test_without_a_time_limit_the_tries_are_few_and_count_as_samples():
    turn = FakeTurn(np.inf, is_timed=False)
    try_ways(Task(layers(), MCM8, 4), None, np.inf, Found(), turn)  # pyright: ignore[reportArgumentType]
    assert turn.samples == 6


def budget(run, limit_s, *, counts=True, samples=None) -> Searches:
    info = SearchInfo("m", 0, 0.0, 0)
    return Searches(run, limit_s, samples, None, None, Interrupts(), info, count_compilation=counts)


def test_all_searches_have_one_deadline(monkeypatch):
    now, limits = [0.0], []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def run(*_, time_limit_s, on_search, **__):
        limits.append(time_limit_s)
        state = SimpleNamespace(samples=3, searched_s=0.0)
        on_search(state)
        now[0] += time_limit_s + 1.0  # it compiled for a second that does not count
        state.searched_s = time_limit_s
        return SimpleNamespace(bottleneck_s=1.0)

    searches = budget(run, 10.0, counts=False)
    searches(layers(), MCM8, None, 0.2)
    assert searches.left_s == pytest.approx(8.0)
    now[0] += 5.0
    assert searches.left_s == pytest.approx(3.0)
    searches(layers(), MCM8, None, 0.01)
    assert searches.left_s == pytest.approx(2.5)
    now[0] += 2.1
    assert not searches.may_go_on
    assert limits == pytest.approx([2.0, 0.5])
    assert searches.total(searches.info(1.0)).samples == 6


def test_the_time_before_a_search_begins_is_left_out_of_the_next_ones_limit(monkeypatch):
    now, limits = [0.0], []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def run(*_, time_limit_s, on_search, **__):
        limits.append(time_limit_s)
        now[0] += 1.0  # the problem is built
        on_search(SimpleNamespace(samples=0, searched_s=time_limit_s))
        now[0] += time_limit_s
        return SimpleNamespace(bottleneck_s=1.0)

    searches = budget(run, 10.0)
    searches(layers(), MCM8, None, 0.2)
    searches(layers(), MCM8, None, 1.0)
    assert limits == pytest.approx([2.0, 6.0])
    assert searches.left_s == pytest.approx(0.0)


def test_no_search_begins_when_samples_are_spent():
    searches = budget(None, None, samples=1)
    assert searches.may_go_on
    searches.count_sample()
    assert not searches.may_go_on


def test_progress_never_shows_a_partition_that_breaks_the_triangle_rule():
    told = []
    result = searched(layers(), callback=told.append)
    relaxed = [one for one in told if one.phase.startswith("without triangle: ")]
    assert relaxed
    assert all(one.lower_bound_s is None for one in relaxed)
    best = [one.best_s for one in told if one.best_s is not None]
    assert min(best) == pytest.approx(result.bottleneck_s)
    assert best == sorted(best, reverse=True)


def test_a_split_is_compared_to_the_greedy_baseline_of_the_graph_as_it_was():
    graph = layers()
    result = searched(graph)
    assert result.split is not None
    assert result.baseline_s == baseline_s_of(Problem.build(graph, MCM8))
    proven = dataclasses.replace(result, lower_bound_s=result.bottleneck_s)
    assert "optimal for these parts and copies" in proven.summary()
    assert "proven optimal" not in proven.summary()


def test_a_candidate_is_valid_by_every_rule():
    made = rewritten(line([1.0] * 4, [1] * 3), {})
    chips = unit_module(3)
    assert candidate(made, np.array([0, 0, 1, 2]), chips).seconds == 2.0
    for f in ([0, 0, 2, 2], [0, 1, 0, 2]):  # a chip is skipped, data flows to a lower chip
        for rules in (chips.constraints, dataclasses.replace(chips.constraints, triangle=False)):
            module = dataclasses.replace(chips, constraints=rules)
            assert candidate(made, np.array(f), module).seconds == np.inf


def test_where_no_parts_and_no_copies_are_left_the_result_is_of_the_graph_as_it_is(monkeypatch):
    graph = layers()

    def plain(task, whole, whole_s, found, turn):
        found.best = candidate(rewritten(graph, {}), np.zeros(8, np.int64), MCM8)

    monkeypatch.setattr(search, "try_ways", plain)
    monkeypatch.setattr(search, "refine_further", lambda *_: None)
    result = searched(graph)
    assert result.split is None
    assert result.problem.graph == graph
    assert "parts" not in result.bound_method
    assert result.bottleneck_s == searched(graph, split="off").bottleneck_s
