"""The pool of solver workers: answers arrive whatever happens to a worker."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

from jaxpart.runtime.core_sharing import IS_POSSIBLE
from jaxpart.runtime.pool import SolverPool
from jaxpart.solvers.scip import Status
from tests.support.problems import deep_graph_with_little_memory, layered
from tests.support.workers import TIMEOUT_S, check_answers, ends, noisy


def test_workers_give_way_by_the_niceness_asked_for():
    problem = deep_graph_with_little_memory()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for niceness in (0, 3):
        with SolverPool(problem, niceness=niceness) as pool:
            pool.repair(np.minimum(np.arange(60) // 12, 3), time_limit_s=TIMEOUT_S).result()
            found = [os.getpriority(os.PRIO_PROCESS, worker) for worker in pool.worker_ids]
        assert found == [min(own + niceness, 19)]


def test_the_pool_answers_as_a_call_does():
    check_answers(SolverPool)


def test_the_others_answer_when_a_worker_is_killed_again_and_again():
    problem, f = layered()
    with SolverPool(problem, workers=2) as pool:
        futures = [pool.repair(noisy(f, i), time_limit_s=TIMEOUT_S) for i in range(60)]
        for i in (5, 20, 35):
            futures[i].result()
            os.kill(pool.worker_ids[i % 2], signal.SIGKILL)
        outcomes = [future.result() for future in futures]
        failed = [o for o in outcomes if o.status is Status.ERROR]
        assert len(failed) <= 3
        assert all("ended" in outcome.message for outcome in failed)
        assert all(outcome.status.has_assignment for outcome in outcomes if outcome not in failed)
        assert pool.repair(f).result().status is Status.OPTIMAL


def test_a_worker_that_hangs_is_replaced():
    problem, f = layered()
    with SolverPool(problem, grace_s=0.5) as pool:
        pool.repair(f, time_limit_s=TIMEOUT_S).result()
        os.kill(pool.worker_ids[0], signal.SIGSTOP)
        hung = pool.repair(f, time_limit_s=0.5).result()
        assert hung.status is Status.ERROR
        assert "no answer" in hung.message
        assert pool.repair(f, time_limit_s=TIMEOUT_S).result().status is Status.OPTIMAL


def test_closing_ends_what_runs_and_what_waits_and_leaves_no_process():
    problem, f = layered()
    pool = SolverPool(problem, workers=2)
    pool.repair(f, time_limit_s=TIMEOUT_S).result()
    futures = [pool.exact(f, time_limit_s=TIMEOUT_S) for _ in range(5)]
    workers = pool.worker_ids
    pool.close()
    pool.close()
    assert not wait(futures, timeout=0).not_done
    assert {future.result().status for future in futures} == {Status.ERROR}
    assert all(ends(worker) for worker in workers)
    with pytest.raises(RuntimeError):
        pool.repair(f)


@pytest.mark.parametrize("is_stopped", [False, True] if IS_POSSIBLE else [False])
def test_workers_end_with_a_parent_that_is_killed_and_never_load_jax(tmp_path, is_stopped):
    """And the program that made the pool is not imported again: it has no guard."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
            import sys, time
            sys.path[:0] = sys.argv[1:]
            from tests.support.problems import layered
            from jaxpart.runtime.pool import SolverPool
            assert "jax" not in sys.modules
            problem, f = layered()
            pool = SolverPool(problem)
            pool.repair(f).result()
            pool.exact(f, time_limit_s=60)
            print(pool.worker_ids[0], flush=True)
            time.sleep(60)
        """)
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, str(tmp_path / "program.py"), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        libraries = Path(f"/proc/{worker}/maps")
        if libraries.exists():
            assert "jaxlib" not in libraries.read_text()
        if is_stopped:
            os.kill(worker, signal.SIGSTOP)
        parent.kill()
        assert ends(worker)


@pytest.mark.skipif(not IS_POSSIBLE, reason="processes are found and killed as on Linux")
def test_no_worker_stays_whenever_its_parent_is_killed(tmp_path):
    """Within and after its start, and in the middle of the problem, which fills the pipe."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
            import os, signal, sys, time
            sys.path[:0] = sys.argv[1:]
            from jaxpart.problem.problem import Problem
            from jaxpart.runtime.pool import SolverPool
            from tests.support.graphs import parallel_chains
            from tests.support.modules import THREE_CHIPS
            problem = Problem.build(parallel_chains(20, 400), THREE_CHIPS)
            for delay_ms in (0, 5, 10, 20, 40, 60, 90, 120, 160, 200, 250, 320, 400, 600, 900):
                parent = os.fork()
                if not parent:
                    pool = SolverPool(problem, workers=2)
                    time.sleep(600)
                time.sleep(delay_ms / 1000)
                os.kill(parent, signal.SIGKILL)
                os.waitpid(parent, 0)
        """)
    )
    root, mark = Path(__file__).parents[2], f"JAXPART_TEST={tmp_path}"
    environment = {**os.environ, "JAXPART_TEST": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "program.py"), str(root)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert all(ends(process) for process in marked(mark))


def marked(mark):
    """Numbers of the processes that have an entry in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in (folder / "environ").read_text(errors="replace").split("\0"):
                found.append(int(folder.name))
    return found
