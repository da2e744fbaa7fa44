"""Solvers on Ray: the answers of the local pool, and a worker that dies costs one candidate.

What needs Ray is marked, since it is large: `pip install -e '.[test,ray]'`, then `pytest -m ray`.
"""

import contextlib
import importlib.util
import os
import signal

import numpy as np
import pytest

from jaxpart.cli import main
from jaxpart.engine import partition
from jaxpart.errors import InputError
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.ray_pool import RayPool, open_pool
from jaxpart.runtime.repair_batch import RepairStatus
from jaxpart.solvers.scip import Status
from tests.support.graphs import parallel_chains as branching
from tests.support.modules import THREE_CHIPS
from tests.support.problems import layered
from tests.support.workers import TIMEOUT_S, check_answers, noisy


def test_without_ray_a_ray_pool_is_refused_in_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    problem, _ = layered()
    with pytest.raises(InputError, match="jaxpart\\[ray\\]"):
        open_pool("ray", problem)
    with pytest.raises(InputError, match="not installed"):
        partition(branching(2, 3), THREE_CHIPS, pool="ray")
    assert main(["partition", "bert-large", "--pool", "ray"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_pool_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="'cloud', expected one of local, ray"):
        partition(branching(2, 3), THREE_CHIPS, pool="cloud")


def test_the_default_pool_is_the_local_one():
    problem, _ = layered()
    with open_pool("local", problem) as pool:
        assert type(pool) is SolverPool


@pytest.fixture(scope="module")
def cluster():
    """A Ray of one core on this machine."""
    ray = importlib.import_module("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.ray
def test_a_ray_pool_answers_as_a_call_does(cluster):
    check_answers(RayPool)


@pytest.mark.ray
def test_a_killed_ray_worker_costs_its_task_and_a_batch_nothing(cluster):
    problem, f = layered()
    with RayPool(problem) as pool:
        futures = [pool.repair(noisy(f, i), time_limit_s=TIMEOUT_S) for i in range(12)]
        futures[3].result()
        os.kill(pool.worker_ids[0], signal.SIGKILL)
        outcomes = [future.result() for future in futures]
        failed = [outcome for outcome in outcomes if outcome.status is Status.ERROR]
        assert len(failed) <= 1
        assert all("ended" in outcome.message for outcome in failed)
        assert all(outcome.status.has_assignment for outcome in outcomes if outcome not in failed)
        batch = np.stack([noisy(f, i) for i in range(12)])
        future = pool.repair_batch(batch, time_limit_s=TIMEOUT_S)
        os.kill(pool.worker_ids[0], signal.SIGKILL)
        repairs = future.result()
        assert repairs.valid.all()
        assert RepairStatus.WORKER_DIED not in repairs.status


@pytest.mark.ray
def test_a_ray_worker_that_hangs_is_replaced(cluster):
    problem, f = layered()
    with RayPool(problem, grace_s=0.5) as pool:
        pool.repair(f, time_limit_s=TIMEOUT_S).result()
        worker = pool.worker_ids[0]
        os.kill(worker, signal.SIGSTOP)
        hung = pool.repair(f, time_limit_s=0.5).result()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        assert hung.status is Status.ERROR
        assert "no answer" in hung.message
        assert pool.repair(f, time_limit_s=TIMEOUT_S).result().status is Status.OPTIMAL


@pytest.mark.ray
def test_closing_a_ray_pool_ends_what_runs_and_what_waits(cluster):
    problem, f = layered()
    pool = RayPool(problem)
    pool.repair(f, time_limit_s=TIMEOUT_S).result()
    futures = [pool.exact(f, time_limit_s=TIMEOUT_S) for _ in range(3)]
    pool.close()
    pool.close()
    assert {future.result(timeout=TIMEOUT_S).status for future in futures} == {Status.ERROR}
    assert pool.worker_ids == []
    with pytest.raises(RuntimeError):
        pool.repair(f)


@pytest.mark.ray
def test_a_search_sends_its_proof_to_ray(cluster):
    """The core that Ray has is taken by the pool of the proof; nothing runs here."""
    local = partition(branching(2, 6), THREE_CHIPS, method="exact", time_limit_s=None)
    found = partition(branching(2, 6), THREE_CHIPS, method="exact", time_limit_s=None, pool="ray")
    assert found.bottleneck_s == local.bottleneck_s
    assert found.lower_bound_s == local.lower_bound_s
    assert found.notes == local.notes
