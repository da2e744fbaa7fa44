"""Repairs while their workers are killed and stopped at random: is anything lost, does memory grow?

Part of `repair.py`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxpart.cost.evaluate import verify
from jaxpart.problem.problem import Problem
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.repair_batch import Repairs, RepairStatus

BATCH = 500
GRACE_S = 2.0  # beyond a repair's limit of a second, until a worker counts as hung
EVERY_S = (0.5, 2.0)  # between two victims
HANG = 0.2  # of the victims are stopped, not killed
_PAGE = os.sysconf("SC_PAGE_SIZE")


def run(
    problem: Problem,
    candidates: Callable[[np.random.Generator, int], np.ndarray],
    count: int,
    *,
    workers: int,
    seed: int,
) -> dict[str, object]:
    """Repairs `count` candidates, two batches under way at a time; what became of them.

    Args:
      candidates: a generator and a number B -> [B, N].
    """
    rng = np.random.default_rng(seed)
    sizes = [min(BATCH, count - k) for k in range(0, count, BATCH)]
    statuses: collections.Counter[str] = collections.Counter()
    memory: list[dict[str, float]] = []
    invalid = answered = 0
    began = time.perf_counter()
    with SolverPool(problem, workers, grace_s=GRACE_S) as pool:
        pool.repair_batch(candidates(rng, 4 * workers)).result()
        with _Killer(pool, seed) as killer:
            waiting: collections.deque = collections.deque()
            for size in [*sizes, 0]:
                if size:
                    waiting.append(pool.repair_batch(candidates(rng, size)))
                while len(waiting) > (1 if size else 0):
                    repairs: Repairs = waiting.popleft().result()
                    answered += len(repairs.status)
                    statuses.update(RepairStatus(s).name.lower() for s in repairs.status.tolist())
                    invalid += _invalid(problem, repairs)
                    memory.append(_memory(answered, pool.worker_ids))
                    print(
                        f"{answered:6d} answered, {killer.killed} killed, {killer.stopped} stopped,"
                        f" parent {memory[-1]['parent_mib']:.0f} MiB, workers "
                        f"{memory[-1]['largest_worker_mib']:.0f} MiB at most, "
                        f"{memory[-1]['processes']:.0f} processes",
                        flush=True,
                    )
    left = len(_children())
    print(f"{dict(statuses)}, {invalid} invalid, {left} processes left behind")
    return {
        "repairs": count,
        "answered": answered,
        "statuses": dict(statuses),
        "invalid": invalid,
        "killed": killer.killed,
        "stopped": killer.stopped,
        "wall_s": time.perf_counter() - began,
        "memory": memory,
        "processes_left": left,
    }


class _Killer:
    """Kills or stops a worker every now and then, until it is closed."""

    def __init__(self, pool: SolverPool, seed: int) -> None:
        self.killed = self.stopped = 0
        self._pool = pool
        self._rng = np.random.default_rng([seed, 1])
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._is_over.wait(self._rng.uniform(*EVERY_S)):
            victims = self._pool.worker_ids
            victim = victims[int(self._rng.integers(len(victims)))]
            try:
                if self._rng.random() < HANG:
                    os.kill(victim, signal.SIGSTOP)
                    self.stopped += 1
                else:
                    os.kill(victim, signal.SIGKILL)
                    self.killed += 1
            except ProcessLookupError:
                continue  # dead already, and not replaced yet

    def __enter__(self) -> _Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def _invalid(problem: Problem, repairs: Repairs) -> int:
    """Answers that count as valid and are not."""
    found = repairs.assignments[repairs.valid]
    # Always as many as a batch has, so that one program is compiled.
    padded = np.concatenate([found, np.repeat(found[:1], max(0, BATCH - len(found)), axis=0)])
    costs = jax.tree.map(np.asarray, verify(problem, padded.T))
    return int((~costs.valid[: len(found)]).sum())


def _memory(answered: int, workers: list[int]) -> dict[str, float]:
    return {
        "answered": answered,
        "parent_mib": _resident_mib(os.getpid()),
        "largest_worker_mib": max((_resident_mib(worker) for worker in workers), default=0.0),
        "processes": len(_children()),
    }


def _resident_mib(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # killed in the meantime
    return pages * _PAGE / 2**20


def _children() -> list[str]:
    found = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended has none
            found += (task / "children").read_text().split()
    return found
