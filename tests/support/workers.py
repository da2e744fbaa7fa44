"""Helpers for tests of worker processes."""

import os
import threading
from pathlib import Path

import numpy as np

from jaxpart.solvers.repair import Outcome

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
