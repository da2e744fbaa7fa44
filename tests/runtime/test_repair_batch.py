"""Repairs of many candidates: arrays in their order, whatever happens to the workers."""

import os
import signal
import threading

import numpy as np
import pytest

from jaxpart.errors import InputError
from jaxpart.runtime.pool import SolverPool, repair_batch
from jaxpart.runtime.repair_batch import RepairBatch, RepairStatus
from jaxpart.solvers.repair import repair
from tests.support import oracle
from tests.support.problems import deep_graph_with_little_memory, layered, parallel_branches
from tests.support.workers import ends, noisy

TIMEOUT_S = 60.0


def test_a_batch_is_the_repairs_one_by_one_with_one_weight_or_many():
    problem = deep_graph_with_little_memory()
    rng = np.random.default_rng(0)
    anew = rng.integers(-1, problem.num_chips + 2, (4, problem.num_nodes))
    y = np.where(rng.random(anew.shape) < 0.1, anew, np.minimum(np.arange(60) // 12, 3))
    weights = rng.choice([0.5, 1.0, 3.25], y.shape)
    for given in (None, weights[0], weights):
        repairs = repair_batch(problem, y, given, time_limit_s=TIMEOUT_S)
        assert repairs.valid.all()
        for k in range(len(y)):
            weight = weights[k] if given is weights else given
            expected = repair(problem, y[k], weight, time_limit_s=TIMEOUT_S)
            np.testing.assert_array_equal(repairs.assignments[k], expected.assignment)
            assert repairs.distance[k] == expected.objective
            costs = oracle.evaluate(problem.graph, problem.mcm, repairs.assignments[k].tolist())
            assert costs.valid


def test_each_candidate_says_why_it_has_no_partition():
    nothing_fits = repair_batch(
        parallel_branches(12.0), np.zeros((2, 4), int), workers=1, time_limit_s=TIMEOUT_S
    )
    assert set(nothing_fits.status) == {RepairStatus.INFEASIBLE}
    no_time = repair_batch(parallel_branches(19.0), np.zeros((2, 4), int), time_limit_s=0.0)
    assert set(no_time.status) == {RepairStatus.TIME_OUT}
    failed = repair_batch(parallel_branches(19.0), np.zeros((1, 4), int), window="wide")
    assert failed.status[0] == RepairStatus.FAILED
    assert "TypeError" in failed.messages[0]
    for repairs in (nothing_fits, no_time, failed):
        assert not repairs.valid.any()
        assert (repairs.assignments == -1).all()
        assert np.isnan(repairs.distance).all()


def test_no_candidates_are_no_work_and_wrong_ones_are_refused():
    problem, f = layered()
    with SolverPool(problem) as pool:
        assert pool.repair_batch(np.zeros((0, len(f)), int)).result().status.shape == (0,)
        with pytest.raises(InputError, match=r"shape \(2, 3\)"):
            pool.repair_batch(np.zeros((2, 3), int))
        with pytest.raises(InputError, match="float64"):
            pool.repair_batch(np.zeros((2, len(f))))  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="negative"):
            pool.repair_batch(np.stack([f]), -np.ones(len(f)))
        with pytest.raises(InputError, match="weights have shape"):
            pool.repair_batch(np.stack([f]), np.ones(3))


def test_nothing_is_lost_when_workers_are_killed_and_stopped_at_random():
    problem, f = layered()
    y = np.stack([noisy(f, seed) for seed in range(300)])
    rng = np.random.default_rng(0)
    seen = set()
    is_over = threading.Event()

    def kill(pool):
        signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)
        for k in range(6):
            if is_over.wait(0.2):
                return
            victim = pool.worker_ids[int(rng.integers(2))]
            seen.update(pool.worker_ids)
            try:
                os.kill(victim, signals[k % 3])
            except ProcessLookupError:
                continue

    with SolverPool(problem, workers=2, grace_s=0.5, start_s=10) as pool:
        killer = threading.Thread(target=kill, args=(pool,))
        killer.start()
        repairs = pool.repair_batch(y, time_limit_s=1.0).result()
        is_over.set()
        killer.join()
        seen.update(pool.worker_ids)
    answered = repairs.valid
    assert set(repairs.status[~answered]) <= {RepairStatus.WORKER_DIED}
    assert set(np.flatnonzero(~answered)) == set(repairs.messages)
    assert answered.mean() > 0.9
    for k in np.flatnonzero(answered).tolist():
        steps = np.diff(repairs.assignments[k][problem.node_pairs], axis=1)
        assert ((steps >= 0) & (steps <= 1)).all()
        assert repairs.distance[k] == np.abs(repairs.assignments[k] - y[k]).sum()
    assert all(ends(worker) for worker in seen)


def test_a_candidate_on_which_workers_die_or_hang_is_tried_again_but_not_for_ever():
    problem, f = layered()
    batch = RepairBatch(problem, np.stack([f, f]), None, {})
    assert [batch.may_retry(0, hung=False) for _ in range(3)] == [True, True, False]
    assert [batch.may_retry(1, hung=True) for _ in range(2)] == [True, False]
    batch.give_up(0, "it died")
    assert not batch.future.done()
    batch.give_up(1, "it hung")
    repairs = batch.future.result(timeout=0)
    assert repairs.messages == {0: "it died", 1: "it hung"}
    assert set(repairs.status) == {RepairStatus.WORKER_DIED}


def test_closing_the_pool_answers_for_every_candidate():
    problem, f = layered()
    pool = SolverPool(problem, workers=2)
    future = pool.repair_batch(np.stack([noisy(f, seed) for seed in range(500)]))
    pool.close()
    repairs = future.result(timeout=0)
    assert set(repairs.status) <= {RepairStatus.VALID_BY_CUT, RepairStatus.WORKER_DIED}
    assert repairs.status[-1] == RepairStatus.WORKER_DIED
    assert "closed" in repairs.messages[499]
    with pytest.raises(RuntimeError):
        pool.repair_batch(np.stack([f]))
