"""Core sharing: a limited number of busy processes run, all make progress, none stays stopped."""

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxpart.runtime import core_sharing as sharing_module
from jaxpart.runtime.core_sharing import IS_POSSIBLE, CoreSharing
from jaxpart.runtime.pool import SolverPool
from tests.support.problems import layered
from tests.support.workers import TIMEOUT_S, answer, noisy

linux_only = pytest.mark.skipif(not IS_POSSIBLE, reason="processes are stopped on Linux alone")


def is_stopped(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def eventually(holds):
    """Whether it comes to hold within a minute."""
    return any(holds() or threading.Event().wait(0.01) for _ in range(6000))


@contextlib.contextmanager
def spinning(count):
    """Processes that are busy."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@linux_only
@pytest.mark.parametrize("slots", [1, 2])
def test_busy_processes_share_cores_and_run_on_when_there_are_few(slots):
    sharing = CoreSharing(slots)
    with spinning(3) as processes:
        with contextlib.ExitStack() as busy:
            for process in processes[:2]:
                busy.enter_context(sharing.busy(process))
            with sharing.busy(processes[2]):
                for process in processes:
                    assert eventually(lambda process=process: is_stopped(process))
                    assert eventually(lambda process=process: not is_stopped(process))
                # What is told to stop has stopped, and nobody else, before others go on.
                assert eventually(lambda: sum(map(is_stopped, processes)) == 3 - slots)
            assert eventually(lambda: not is_stopped(processes[2]))
        assert eventually(lambda: not any(map(is_stopped, processes)))


@linux_only
def test_a_process_that_ends_holds_up_nobody():
    sharing = CoreSharing(1)
    with spinning(2) as (first, second), sharing.busy(first), sharing.busy(second):
        assert eventually(lambda: is_stopped(first))
        first.kill()
        first.wait()
        assert eventually(lambda: is_stopped(second))
        assert eventually(lambda: not is_stopped(second))


@pytest.mark.parametrize("is_possible", [False, True])
def test_pools_that_share_cores_answer_as_others_do(monkeypatch, is_possible):
    monkeypatch.setattr(sharing_module, "IS_POSSIBLE", is_possible and IS_POSSIBLE)
    problem, f = layered()
    ys = [noisy(f, seed) for seed in range(6)]
    sharing = CoreSharing(1)
    with (
        SolverPool(problem) as alone,
        SolverPool(problem, 2, sharing=sharing) as pool,
        SolverPool(problem, sharing=sharing) as other,
    ):
        expected = [alone.repair(y, time_limit_s=TIMEOUT_S).result() for y in ys]
        batch = other.repair_batch(np.array(ys), time_limit_s=TIMEOUT_S)
        found = [pool.repair(y, time_limit_s=TIMEOUT_S) for y in ys]
        for future, outcome in zip(found, expected, strict=True):
            np.testing.assert_array_equal(answer(future.result())[0], answer(outcome)[0])
        assert batch.result().valid.all()
