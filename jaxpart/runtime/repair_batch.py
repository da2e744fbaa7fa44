"""Repairs of many candidates at once: the result, and how the workers of a pool share them."""

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

# Most candidates in one message to a worker; few, so that all workers end at about the same time.
_MOST_PER_MESSAGE = 16
# Deaths of a worker on one candidate after which it is not tried again; a hang counts as two.
_MOST_DEATHS = 3


class RepairStatus(enum.IntEnum):
    """The status of one candidate's repair; up to `VALID_BY_ORDER` there is a valid partition."""

    VALID_BY_CUT = 0  # by the minimum cut, or the candidate itself
    VALID_BY_WINDOW = 1  # by SCIP, on chips near those that the cut left invalid
    VALID_BY_PROGRAM = 2  # by SCIP, with every contracted node free
    VALID_BY_ORDER = 3  # by cuts of an order of the contracted nodes
    INFEASIBLE = 4  # proven: the problem has no valid partition
    TIME_OUT = 5  # nothing found within the limits; a valid partition may exist
    WORKER_DIED = 6  # the worker died or hung too often, or the pool was closed
    FAILED = 7  # the repair raised an exception; see `Repairs.messages`


_STATUS_BY_STEP = {
    Step.CUT: RepairStatus.VALID_BY_CUT,
    Step.WINDOW: RepairStatus.VALID_BY_WINDOW,
    Step.PROGRAM: RepairStatus.VALID_BY_PROGRAM,
    Step.ORDER: RepairStatus.VALID_BY_ORDER,
}
_STATUS_BY_OUTCOME = {
    Status.INFEASIBLE: RepairStatus.INFEASIBLE,
    Status.TIME_LIMIT: RepairStatus.TIME_OUT,
    Status.ERROR: RepairStatus.FAILED,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Repairs:
    """The outcome of B repairs on one problem of N nodes, in the order of the candidates.

    The partitions keep every rule as far as the host checks them; `verify` of `cost/evaluate.py`
    decides.
    """

    assignments: NDArray[np.integer]  # [B, N] chips, smallest signed type; -1 where none was found
    status: NDArray[np.int8]  # [B] RepairStatus
    distance: FloatArray  # [B] weighted distance to the candidate; nan where none was found
    seconds: FloatArray  # [B] time in the worker
    messages: dict[int, str]  # number of the candidate -> its error message

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[B] bool, whether each candidate has a valid partition."""
        return self.status <= RepairStatus.VALID_BY_ORDER


class RepairBatch:
    """The candidates of one call while a pool works on them.

    Any thread may call the methods.

    Attributes:
      future: its result are the repairs, once all candidates are done.
    """

    def __init__(
        self,
        problem: Problem,
        assignments: NDArray[np.integer],
        weights: FloatArray | None,
        options: dict[str, Any],
    ) -> None:
        """Checks the arrays and copies them.

        Args:
          problem: of N nodes and C chips.
          assignments: [B, N] chips, valid or not; numbers outside 0..C-1 are clipped.
          weights: [N] or [B, N] cost of moving each node by one chip; None: ones.
          options: other arguments of `repair` in `solvers/repair.py`.

        Raises:
          InputError: the candidates are not whole numbers [B, N], or the weights have another shape
            or an entry that is negative or not finite.
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
        """Splits the candidates into the portions of the messages.

        Args:
          workers: number of workers that share them.

        Returns:
          For each message, the numbers of its candidates.
        """
        count = len(self._given)
        size = max(1, min(_MOST_PER_MESSAGE, -(-count // (4 * workers))))
        return [list(range(k, min(k + size, count))) for k in range(0, count, size)]

    def message(self, rows: list[int]) -> bytes:
        """The pickled task that asks a worker to repair candidates.

        Args:
          rows: numbers of the candidates.
        """
        weights = self._weights
        if weights is not None and weights.ndim == 2:
            weights = weights[rows]
        arguments = {**self._options, "assignments": self._given[rows], "weights": weights}
        return pickle.dumps((BATCH, arguments), pickle.HIGHEST_PROTOCOL)

    def put(self, row: int, outcome: Outcome) -> None:
        """Stores the outcome of one candidate.

        Args:
          row: number of the candidate.
          outcome: of its repair.
        """
        step = outcome.step
        self._put(
            row,
            _STATUS_BY_OUTCOME[outcome.status] if step is None else _STATUS_BY_STEP[step],
            outcome,
        )

    def may_retry(self, row: int, *, hung: bool) -> bool:
        """Counts that a worker died or hung on a candidate.

        Args:
          row: number of the candidate.
          hung: whether the worker hung.

        Returns:
          Whether to try the candidate again.
        """
        with self._lock:
            self._deaths[row] += 2 if hung else 1
            return bool(self._deaths[row] < _MOST_DEATHS)

    def give_up(self, row: int, message: str) -> None:
        """Gives a candidate the status `WORKER_DIED`, unless it has an outcome already.

        Args:
          row: number of the candidate.
          message: why it was given up.
        """
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
