"""Repairs of many candidates at once: what comes back, and how a pool's workers share them."""

from __future__ import annotations

import dataclasses
import enum
import pickle
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxpart.errors import InputError
from jaxpart.problem.problem import FloatArray, Problem
from jaxpart.runtime.worker import BATCH
from jaxpart.solvers.repair import Outcome, Step
from jaxpart.solvers.scip import Status

# Candidates in one message to a worker: few, so that all workers end together.
_MOST_PER_MESSAGE = 16
# A candidate is tried again until its worker has died on it so often; to hang counts twice.
_DEATHS = 3


class RepairStatus(enum.IntEnum):
    """What became of one candidate. Up to `VALID_BY_ORDER` there is a valid partition."""

    VALID_BY_CUT = 0  # the minimum cut, or the candidate itself
    VALID_BY_WINDOW = 1  # SCIP on the surroundings of what the cut left broken
    VALID_BY_PROGRAM = 2  # SCIP with every contracted node free
    VALID_BY_ORDER = 3  # cuts of an order of the contracted nodes
    INFEASIBLE = 4  # proven: the problem has no valid partition
    TIME_OUT = 5  # nothing found within the limits; a valid partition may exist
    WORKER_DIED = 6  # again and again, or hung, or the pool was closed
    FAILED = 7  # an exception; `messages` has it

    @property
    def is_valid(self) -> bool:
        """Whether a partition comes with it."""
        return self <= RepairStatus.VALID_BY_ORDER


_OF_STEP = {
    Step.CUT: RepairStatus.VALID_BY_CUT,
    Step.WINDOW: RepairStatus.VALID_BY_WINDOW,
    Step.PROGRAM: RepairStatus.VALID_BY_PROGRAM,
    Step.ORDER: RepairStatus.VALID_BY_ORDER,
}
_OF_STATUS = {
    Status.INFEASIBLE: RepairStatus.INFEASIBLE,
    Status.TIME_LIMIT: RepairStatus.TIME_OUT,
    Status.ERROR: RepairStatus.FAILED,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Repairs:
    """The outcome of B repairs on one problem of N nodes, in the candidates' order.

    The partitions keep every rule as far as the host can tell; `cost.verify` decides.
    """

    assignments: NDArray[np.integer]  # [B, N] smallest signed type; rows of -1 where none is valid
    status: NDArray[np.int8]  # [B] RepairStatus
    distance: FloatArray  # [B] weighted, to the candidate; nan where none is valid
    seconds: FloatArray  # [B] in the worker
    messages: dict[int, str]  # candidate -> what went wrong

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[B] which candidates have a partition."""
        return self.status <= RepairStatus.VALID_BY_ORDER


class RepairBatch:
    """One call's candidates, on their way through a pool. Methods may run on any thread."""

    def __init__(
        self,
        problem: Problem,
        assignments: NDArray[np.integer],
        weights: FloatArray | None,
        options: dict[str, Any],
    ) -> None:
        """Checks the arrays and keeps copies of them.

        Raises:
          InputError: an array has another shape, is no array of whole numbers, or has a negative
            or infinite weight.
        """
        given = np.asarray(assignments)
        if given.ndim != 2 or given.shape[1] != problem.num_nodes or given.dtype.kind not in "iu":
            raise InputError(
                f"candidates have shape {given.shape} and type {given.dtype}, expected whole "
                f"numbers [B, {problem.num_nodes}]"
            )
        dtype = np.int8 if problem.num_chips <= 127 else np.int16
        if problem.num_chips > np.iinfo(np.int16).max:
            dtype = np.int32
        self._given = np.clip(given, 0, problem.num_chips - 1).astype(dtype)
        self._weights = None if weights is None else np.array(weights, np.float64)
        if self._weights is not None:
            if self._weights.shape not in (given.shape, given.shape[1:]):
                raise InputError(
                    f"weights have shape {self._weights.shape}, expected ({given.shape[1]},) or "
                    f"{given.shape}"
                )
            if not (np.isfinite(self._weights) & (self._weights >= 0)).all():
                raise InputError("a weight is negative or not finite, expected numbers from 0 on")
        self._options = options
        self._lock = threading.Lock()
        count = len(given)
        self._left = count
        self._deaths = np.zeros(count, np.int64)
        self._is_done = np.zeros(count, bool)
        self.future: Future[Repairs] = Future()
        self.future.set_running_or_notify_cancel()
        self._repairs = Repairs(
            np.full(given.shape, -1, dtype),
            np.full(count, RepairStatus.WORKER_DIED, np.int8),
            np.full(count, np.nan),
            np.zeros(count),
            {},
        )
        if not count:
            self.future.set_result(self._repairs)

    def chunks(self, workers: int) -> list[list[int]]:
        """The candidates, in a message's portions."""
        count = len(self._given)
        size = max(1, min(_MOST_PER_MESSAGE, -(-count // (4 * workers))))
        return [list(range(k, min(k + size, count))) for k in range(0, count, size)]

    def message(self, rows: list[int]) -> bytes:
        """What a worker is told of these candidates."""
        weights = self._weights
        if weights is not None and weights.ndim == 2:
            weights = weights[rows]
        arguments = {**self._options, "assignments": self._given[rows], "weights": weights}
        return pickle.dumps((BATCH, arguments), pickle.HIGHEST_PROTOCOL)

    def put(self, row: int, outcome: Outcome) -> None:
        """Takes one candidate's outcome."""
        step = outcome.step
        self._put(row, _OF_STATUS[outcome.status] if step is None else _OF_STEP[step], outcome)

    def may_retry(self, row: int, *, hung: bool) -> bool:
        """Counts that a worker died on a candidate, or hung; whether to try it again."""
        with self._lock:
            self._deaths[row] += 2 if hung else 1
            return bool(self._deaths[row] < _DEATHS)

    def give_up(self, row: int, message: str) -> None:
        """No more tries for a candidate."""
        self._put(row, RepairStatus.WORKER_DIED, Outcome(Status.ERROR, message=message))

    def _put(self, row: int, status: RepairStatus, outcome: Outcome) -> None:
        with self._lock:
            if self._is_done[row]:
                return
            self._is_done[row] = True
            repairs = self._repairs
            repairs.status[row] = status
            repairs.seconds[row] = outcome.seconds
            if outcome.assignment is not None and outcome.objective is not None:
                repairs.assignments[row] = outcome.assignment
                repairs.distance[row] = outcome.objective
            if outcome.message:
                repairs.messages[row] = outcome.message
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self.future.set_result(self._repairs)
