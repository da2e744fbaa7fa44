"""The pool of solver workers: answers arrive whatever happens to a worker."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from test_solver_cut import layered
from test_solver_repair import answer, deep_graph_with_little_memory

from jaxpart.solver.pool import SolverPool
from jaxpart.solver.repair import repair
from jaxpart.solver.scip import Status
from jaxpart.solver.turns import IS_POSSIBLE

PATIENCE_S = 60.0


def noisy(f, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(f)) < 0.02, rng.integers(0, f.max() + 1, len(f)), f)


def ends(process_id):
    """Whether a process ends: it answers no signal any more, or is a zombie."""
    stat = Path(f"/proc/{process_id}/stat")
    for _ in range(600):
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        if stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        threading.Event().wait(0.05)
    return False


def test_workers_give_way_by_the_niceness_asked_for():
    problem = deep_graph_with_little_memory()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for niceness in (0, 3):
        with SolverPool(problem, niceness=niceness) as pool:
            pool.repair(np.minimum(np.arange(60) // 12, 3), time_limit_s=PATIENCE_S).result()
            found = [os.getpriority(os.PRIO_PROCESS, worker) for worker in pool.worker_ids]
        assert found == [min(own + niceness, 19)]


def test_the_pool_answers_as_a_call_does():
    problem = deep_graph_with_little_memory()
    y = np.minimum(np.arange(60) // 12, 3)
    with SolverPool(problem) as pool:
        repaired = pool.repair(y, time_limit_s=PATIENCE_S).result()
        expected = repair(problem, y, time_limit_s=PATIENCE_S)
        assert (repaired.status, repaired.objective) == (expected.status, expected.objective)
        np.testing.assert_array_equal(answer(repaired)[0], answer(expected)[0])
        f, _ = answer(repaired)
        f, polished_s = answer(pool.polish(f, time_limit_s=PATIENCE_S).result())
        solved = pool.exact(f, time_limit_s=PATIENCE_S).result()
        assert solved.status is Status.OPTIMAL
        assert answer(solved)[1] <= polished_s
        refused = pool.repair(np.zeros(3, int)).result()
        assert refused.status is Status.ERROR
        assert refused.message


def test_the_others_answer_when_a_worker_is_killed_again_and_again():
    problem, f = layered()
    with SolverPool(problem, workers=2) as pool:
        futures = [pool.repair(noisy(f, i), time_limit_s=PATIENCE_S) for i in range(60)]
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
        pool.repair(f, time_limit_s=PATIENCE_S).result()
        os.kill(pool.worker_ids[0], signal.SIGSTOP)
        hung = pool.repair(f, time_limit_s=0.5).result()
        assert hung.status is Status.ERROR
        assert "no answer" in hung.message
        assert pool.repair(f, time_limit_s=PATIENCE_S).result().status is Status.OPTIMAL


def test_closing_ends_what_runs_and_what_waits_and_leaves_no_process():
    problem, f = layered()
    pool = SolverPool(problem, workers=2)
    pool.repair(f, time_limit_s=PATIENCE_S).result()
    futures = [pool.exact(f, time_limit_s=PATIENCE_S) for _ in range(5)]
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
            from test_solver_cut import layered
            from jaxpart.solver.pool import SolverPool
            assert "jax" not in sys.modules
            problem, f = layered()
            pool = SolverPool(problem)
            pool.repair(f).result()
            pool.exact(f, time_limit_s=60)
            print(pool.worker_ids[0], flush=True)
            time.sleep(60)
        """)
    )
    tests = Path(__file__).parent
    command = [sys.executable, str(tmp_path / "program.py"), str(tests), str(tests.parent)]
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
