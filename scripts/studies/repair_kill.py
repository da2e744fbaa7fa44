"""Repairs while workers are killed or stopped at random, to see lost answers and memory growth.

A part of `repair.py`.
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

BATCH = 500  # candidates
GRACE_S = 2.0  # seconds beyond the time limit of a repair after which its worker counts as hung
EVERY_S = (0.5, 2.0)  # least and greatest time between two victims, seconds
HANG = 0.2  # share of victims that are stopped instead of killed
_PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes


def run(
    problem: Problem,
    candidates: Callable[[np.random.Generator, int], np.ndarray],
    count: int,
    *,
    workers: int,
    seed: int,
) -> dict[str, object]:
    """Repairs candidates, with two batches in the pool at a time, and counts the answers.

    Args:
      problem: of N nodes.
      candidates: makes candidates [B, N] from a random generator and B.
      count: candidates in all.
      workers: processes of the pool.
      seed: of the candidates and the victims.

    Returns:
      Counts, wall time, memory after each batch, and child processes left at the end.
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
    """Kills or stops a random worker again and again, until it is closed."""

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
                continue  # it is dead already and not replaced yet

    def __enter__(self) -> _Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def _invalid(problem: Problem, repairs: Repairs) -> int:
    """The number of answers that count as valid but are invalid."""
    found = repairs.assignments[repairs.valid]
    # Padding to a fixed size lets all calls share one compiled program.
    padded = np.concatenate([found, np.repeat(found[:1], max(0, BATCH - len(found)), axis=0)])
    costs = jax.tree.map(np.asarray, verify(problem, padded.T))
    return int((~costs.valid[: len(found)]).sum())


def _memory(answered: int, workers: list[int]) -> dict[str, float]:
    """A row: the number of answers so far, resident memory in MiB, and the number of processes."""
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
        return 0.0  # the process has ended
    return pages * _PAGE / 2**20


def _children() -> list[str]:
    """Ids of the child processes of all threads."""
    found = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has ended
            found += (task / "children").read_text().split()
    return found
