"""Helpers for tests of worker processes."""

import os
import threading
from pathlib import Path

import numpy as np

from jaxpart.runtime.pool import SolverPool
from jaxpart.solvers.repair import Outcome, repair
from jaxpart.solvers.scip import Status
from tests.support.problems import deep_graph_with_little_memory

TIMEOUT_S = 60.0


def noisy(f, seed):
    """f [N] with 2% of its labels replaced by random chips."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(f)) < 0.02, rng.integers(0, f.max() + 1, len(f)), f)


def ends(process_id):
    """Whether a process ends within 30 s: it no longer exists, or is a zombie."""
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


def answer(outcome: Outcome) -> tuple[np.ndarray, float]:
    """The assignment and the objective of an outcome, which must have both."""
    assert outcome.status.has_assignment
    assert outcome.assignment is not None
    assert outcome.objective is not None
    return outcome.assignment, outcome.objective


def check_answers(pool_of):
    """Asserts that a pool answers as calls in this process do, and tells of a call that fails.

    Args:
      pool_of: makes the pool of a problem.
    """
    problem = deep_graph_with_little_memory()
    y = np.minimum(np.arange(60) // 12, 3)
    pool: SolverPool
    with pool_of(problem) as pool:
        repaired = pool.repair(y, time_limit_s=TIMEOUT_S).result()
        expected = repair(problem, y, time_limit_s=TIMEOUT_S)
        assert (repaired.status, repaired.objective) == (expected.status, expected.objective)
        np.testing.assert_array_equal(answer(repaired)[0], answer(expected)[0])
        f, _ = answer(repaired)
        f, improved_s = answer(pool.lns(f, time_limit_s=TIMEOUT_S).result())
        solved = pool.exact(f, time_limit_s=TIMEOUT_S).result()
        assert solved.status is Status.OPTIMAL
        assert answer(solved)[1] <= improved_s
        proven = pool.prove(f, time_limit_s=TIMEOUT_S).result()
        assert proven.status is Status.OPTIMAL
        assert proven.bound <= improved_s * (1 + 1e-6)
        refused = pool.repair(np.zeros(3, int)).result()
        assert refused.status is Status.ERROR
        assert refused.message
