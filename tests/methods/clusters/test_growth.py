"""Growing in a worker: what it hands back, goes on with, and how a search takes it in."""

import dataclasses
from concurrent.futures import Future

import numpy as np
import pytest

from jaxpart.cost.evaluate import verify
from jaxpart.methods.clusters.growth import STALL_LIMIT, can_grow, measured
from jaxpart.methods.clusters.search import clusters_background
from jaxpart.methods.clusters.task import Grown, grow
from jaxpart.problem.graph import Node
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.state import Budget, Search
from jaxpart.solvers.repair import Outcome
from jaxpart.solvers.scip import Status
from tests.support.graphs import grid
from tests.support.modules import chain_module

LONG_S = 60.0
IN_A_ROW = np.arange(8) // 2  # of the grid's cells in number order: two a chip


@pytest.fixture
def problem():
    return Problem.build(grid(2, 4), chain_module(8))


def test_what_is_grown_is_better_than_what_was_known_and_valid(problem):
    outcome = grow(problem, IN_A_ROW, time_limit_s=0.5, bound_s=1.0)

    assert outcome.status is Status.FEASIBLE
    assert outcome.objective == pytest.approx(100.0)
    assert outcome.assignment is not None
    costs = verify(problem, outcome.assignment[:, None])
    assert costs.valid[0]
    assert costs.bottleneck_s[0] == pytest.approx(outcome.objective)
    assert outcome.samples > 10
    assert 0 <= outcome.stall_limit <= STALL_LIMIT


def test_nothing_comes_back_where_nothing_is_better(problem):
    best = grow(problem, time_limit_s=0.5, bound_s=1.0).assignment
    assert best is not None
    outcome = grow(problem, best, time_limit_s=0.2, bound_s=1.0, best_s=100.0)

    assert (outcome.status, outcome.assignment) == (Status.TIME_LIMIT, None)
    assert outcome.incumbent is not None


def test_growing_goes_on_with_its_incumbent_up_to_the_stall_limit(problem):
    incumbent = problem.contracted_assignment(IN_A_ROW)
    # No time for a second step: what comes back is the lead after one.
    after_one = grow(problem, time_limit_s=0.0, bound_s=1.0, incumbent=incumbent, stall_limit=7)

    assert after_one.samples == 1
    assert after_one.incumbent is not None
    gained = measured(problem, after_one.incumbent).merit < measured(problem, incumbent).merit
    assert after_one.stall_limit == (STALL_LIMIT if gained else 6)


def test_however_short_the_slices_fresh_ones_and_the_best_alternate(problem):
    best = np.arange(8) // 2
    incumbent, stall_limit, turn, firsts = None, STALL_LIMIT, True, []
    for _ in range(2000):
        step = grow(
            problem, best, time_limit_s=0.0, bound_s=1.0, best_s=1.0,
            incumbent=incumbent, stall_limit=min(stall_limit, 20), improves_best_next=turn,
        )  # fmt: skip
        if step.improves_best_next != turn:
            firsts.append(turn)
        incumbent, stall_limit, turn = step.incumbent, step.stall_limit, step.improves_best_next
    assert firsts[:4] == [True, False, True, False]


def test_what_is_grown_has_to_beat_the_best_with_the_chips_that_it_leaves_out(problem):
    fast, slow = problem.mcm.chips[0], dataclasses.replace(problem.mcm.chips[0], speed=0.5)
    rules = Constraints(no_skip=False)
    mcm = dataclasses.replace(problem.mcm, chips=(fast, fast, slow, slow), constraints=rules)
    unlike = Problem.build(grid(2, 4), mcm)
    f = np.repeat([0, 2], 4)
    best_s = float(verify(unlike, f[:, None]).bottleneck_s[0])

    outcome = grow(unlike, f, time_limit_s=0.2, bound_s=1.0, best_s=best_s)

    assert outcome.assignment is not None
    assert verify(unlike, outcome.assignment[:, None]).bottleneck_s[0] <= best_s / 2


def test_as_many_chips_as_equal_nodes_need_are_enough():
    graph = grid(1, 36)
    problem = Problem.build(graph, chain_module(6))
    total_s = float(problem.node_s[:, 0].sum())
    # Rounding makes seven of six chips' worth.
    best_s = np.nextafter(total_s / 6, 0.0)
    assert grow(problem, time_limit_s=0.1, bound_s=1.0, best_s=best_s).incumbent is not None


def test_what_does_not_fit_is_an_incumbent_and_no_answer(problem):
    # Nothing that is sent has room.
    tight = dataclasses.replace(problem.mcm.chips[0], sram_bytes=1e-3)
    mcm = dataclasses.replace(
        problem.mcm, chips=(tight,) * 8, memory_model="full", constraints=Constraints()
    )
    outcome = grow(Problem.build(grid(2, 4), mcm), time_limit_s=0.2, bound_s=1.0)

    assert (outcome.status, outcome.assignment) == (Status.TIME_LIMIT, None)
    assert outcome.incumbent is not None


def test_a_worker_grows_as_a_call_does(problem):
    with SolverPool(problem) as pool:
        outcome = pool.submit(grow, best=IN_A_ROW, time_limit_s=0.5, bound_s=1.0).result(LONG_S)

    assert isinstance(outcome, Grown)
    assert outcome.objective == pytest.approx(100.0)


class Asked:
    """A pool that notes what it is asked, and answers at once what a test says."""

    def __init__(self, *answers):
        self.answers, self.asked, self.is_closed = list(answers), [], False

    def submit(self, task, *, best, **options):
        assert task is grow
        self.asked.append({"best": best, **options})
        future = Future()
        if self.answers:
            future.set_result(self.answers.pop(0))
        return future

    def close(self):
        self.is_closed = True


class AskedSearch(Search):
    """A search whose pool is given."""

    pool = None

    def open_pool(self, problem=None, **_):
        assert self.pool is not None, "no process: it would decide by time"
        return self.pool


def beside(problem, pool, limit_s=LONG_S):
    search = AskedSearch(problem, Budget(limit_s, None, 0.0), 0)
    search.pool = pool
    search.start_clock()
    search.offer(IN_A_ROW[:, None])
    return search, clusters_background(search)


def test_slices_go_on_where_the_last_one_ended_and_what_they_find_is_offered(problem):
    better = grow(problem, IN_A_ROW, time_limit_s=3, bound_s=1.0)
    incumbent = np.zeros(problem.num_contracted, np.int64)
    rest = {"samples": 5, "incumbent": incumbent, "stall_limit": 3, "improves_best_next": False}
    pool = Asked(Grown(Status.FEASIBLE, better.assignment, **rest))
    search, steps = beside(problem, pool)

    next(steps)  # the pool is opened
    next(steps)
    assert search.best_s == pytest.approx(200.0)
    assert len(pool.asked) == 2  # the next one as soon as the first is home; it is not answered
    next(steps)

    assert (pool.asked[0]["incumbent"], pool.asked[0]["improves_best_next"]) == (None, True)
    assert pool.asked[0]["best_s"] == pytest.approx(200.0)
    assert pool.asked[1]["incumbent"] is incumbent
    assert (pool.asked[1]["stall_limit"], pool.asked[1]["improves_best_next"]) == (3, False)
    assert pool.asked[1]["seed"] != pool.asked[0]["seed"]
    assert len(pool.asked) == 2
    assert search.best_s == pytest.approx(100.0)
    assert search.samples == 5
    steps.close()
    assert pool.is_closed


def test_a_worker_that_dies_costs_its_slice_and_is_told_once(problem):
    dead = Outcome(Status.ERROR, message="the worker ended")
    incumbent = np.zeros(problem.num_contracted, np.int64)
    pool = Asked(Grown(Status.TIME_LIMIT, incumbent=incumbent), dead, dead)
    search, steps = beside(problem, pool)

    for _ in range(5):
        next(steps)

    assert search.notes == ["a solver task failed: the worker ended"]
    # Whatever it died of is not handed to the next one.
    assert [asked["incumbent"] is incumbent for asked in pool.asked] == [False, True, False, False]


def test_a_worker_that_only_dies_gets_no_more_work(problem):
    pool = Asked(*[Outcome(Status.ERROR, message="the worker ended")] * 9)
    _, steps = beside(problem, pool)

    for _ in range(9):
        next(steps)

    assert len(pool.asked) == 3


def test_the_last_slice_is_home_before_the_time_is_up(problem):
    for limit_s, least, most in ((LONG_S, 1.0, 1.0), (0.5, 0.05, 0.45)):
        pool = Asked()
        _, steps = beside(problem, pool, limit_s)
        next(steps)
        next(steps)
        assert least <= pool.asked[0]["time_limit_s"] <= most


def test_without_a_time_limit_growing_runs_in_this_process(problem):
    search = AskedSearch(problem, Budget(None, 100, 0.0), 0)

    next(clusters_background(search))
    assert search.best is not None


def test_fixed_chips_and_long_steps_are_left_to_others(problem):
    assert can_grow(problem)
    graph = grid(2, 4)
    pinned = Node("first", "cell", flops=100.0, bytes_accessed=0.0, pin=0)
    graph = dataclasses.replace(graph, nodes=(pinned, *graph.nodes[1:]))
    pinned_problem = Problem.build(graph, problem.mcm)
    assert not can_grow(pinned_problem)
    assert list(clusters_background(Search(pinned_problem, Budget(1.0, None, 0.0), 0))) == []
