"""Solver tasks in worker processes, in the background of the caller."""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.runtime.core_sharing import CoreSharing
from jaxpart.runtime.process import SolverWorker, Worker, WorkerEndedError
from jaxpart.runtime.repair_batch import RepairBatch, Repairs
from jaxpart.runtime.worker import Task, name_of
from jaxpart.solvers.lns import lns, solve_exact
from jaxpart.solvers.prove import prove
from jaxpart.solvers.repair import Outcome, repair
from jaxpart.solvers.scip import Status

# Seconds beyond its time limit after which a task's worker counts as hung. A task may take longer
# than its limit to state a program or to stop a solver.
_GRACE_S = 20.0
# Factor on the grace where workers share cores, because a worker is then stopped from time to time.
_GRACE_FACTOR = 4.0
# Seconds that a worker may take to start; Python and the solvers load slowly on a busy machine.
_START_S = 60.0


class SolverPool:
    """Worker processes that hold one problem and run tasks on it.

    A call returns a future at once. The result of the future of a task is always an `Outcome`. A
    task ends with `Status.ERROR` if its worker dies or hangs, or if it still waits when the pool is
    closed. The pool then goes on with a new worker. In a batch, a candidate whose worker died is
    tried again, and the other candidates are not lost.

    Each worker is a fresh interpreter with its own pipes:

    - it imports neither JAX nor the user's `__main__`;
    - it shares no lock, so a killed worker holds none;
    - it has a session of its own, so Ctrl-C does not reach it;
    - it ends when its pipe from this process closes.

    A pool is a context manager; `close` ends all workers at once.
    """

    def __init__(
        self,
        problem: Problem,
        workers: int = 1,
        *,
        grace_s: float = _GRACE_S,
        start_s: float = _START_S,
        niceness: int = 0,
        sharing: CoreSharing | None = None,
    ) -> None:
        """Starts the workers in the background.

        Args:
          problem: the problem of all tasks.
          workers: number of processes; each runs one task at a time.
          grace_s: seconds beyond its time limit after which a task's worker is killed.
          start_s: seconds after which a worker that is not ready is killed.
          niceness: niceness of the processes on this machine.
          sharing: shares cores among busy workers. None: all busy workers run.
        """
        self._problem = problem
        self._content = pickle.dumps(problem, pickle.HIGHEST_PROTOCOL)
        self._grace_s = grace_s if sharing is None else _GRACE_FACTOR * grace_s
        self._tasks: queue.SimpleQueue[_Task | _Chunk | None] = queue.SimpleQueue()
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # no task enters the queue after the pool is closed
        self._niceness, self._sharing = niceness, sharing
        self._workers = [self._new_worker(self._content, start_s) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task, *, time_limit_s: float, **arguments: Any) -> Future[Outcome]:
        """Runs `task(problem, time_limit_s=..., **arguments)` in a worker.

        Args:
          task: a function of a module that the worker can import and that does not need JAX.
          time_limit_s: seconds that the task may take. Its worker is killed after that time and the
            grace.
          arguments: keyword arguments of the task, which must pickle.

        Returns:
          The future of the task's outcome.

        Raises:
          RuntimeError: the pool was closed.
        """
        arguments["time_limit_s"] = time_limit_s
        future: Future[Outcome] = Future()
        message = pickle.dumps((name_of(task), arguments), pickle.HIGHEST_PROTOCOL)
        self._put(_Task(message, time_limit_s + self._grace_s, future))
        return future

    def repair(
        self,
        y: IntArray,
        weights: FloatArray | None = None,
        *,
        time_limit_s: float = 1.0,
        **options: Any,
    ) -> Future[Outcome]:
        """Runs `repair` of `solvers/repair.py` in a worker, with the same arguments."""
        return self.submit(repair, time_limit_s=time_limit_s, y=y, weights=weights, **options)

    def repair_batch(
        self,
        assignments: NDArray[np.integer],
        weights: FloatArray | None = None,
        *,
        time_limit_s: float = 1.0,
        **options: Any,
    ) -> Future[Repairs]:
        """Repairs B candidates, shared among all workers.

        Args:
          assignments: [B, N] chips, valid or not.
          weights: [N] or [B, N] cost of moving each node by one chip; ones by default.
          time_limit_s: seconds for each candidate.
          options: other arguments of `repair` in `solvers/repair.py`, the same for all candidates.

        Returns:
          The future of all repairs; it cannot be cancelled.

        Raises:
          InputError: as `RepairBatch`.
          RuntimeError: the pool was closed.
        """
        batch = RepairBatch(
            self._problem, assignments, weights, {**options, "time_limit_s": time_limit_s}
        )
        timeout_s = time_limit_s + self._grace_s
        self._put(*(_Chunk(batch, rows, timeout_s) for rows in batch.chunks(len(self._workers))))
        return batch.future

    def lns(self, f: IntArray, *, time_limit_s: float, **options: Any) -> Future[Outcome]:
        """Runs `lns` of `solvers/lns.py` in a worker, with the same arguments."""
        return self.submit(lns, time_limit_s=time_limit_s, f=f, **options)

    def exact(
        self, incumbent: IntArray | None = None, *, time_limit_s: float, **options: Any
    ) -> Future[Outcome]:
        """Runs `solve_exact` of `solvers/lns.py` in a worker, with the same arguments."""
        return self.submit(solve_exact, time_limit_s=time_limit_s, incumbent=incumbent, **options)

    def prove(
        self, incumbent: IntArray | None = None, *, time_limit_s: float, **options: Any
    ) -> Future[Outcome]:
        """Runs `prove` of `solvers/prove.py` in a worker, with the same arguments."""
        return self.submit(prove, time_limit_s=time_limit_s, incumbent=incumbent, **options)

    @property
    def worker_ids(self) -> list[int]:
        """Process numbers of the workers that run now; of Ray workers, on their own machines."""
        return [w.worker_id for w in self._workers if w.worker_id is not None]

    def close(self) -> None:
        """Kills the workers. Tasks that have not ended get `Status.ERROR`. May be called again."""
        with self._lock:
            self._is_closed.set()
        for _ in self._threads:
            self._tasks.put(None)
        for worker in self._workers:
            worker.close()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.discard()
        while not self._tasks.empty():
            task = self._tasks.get()
            if task is not None:
                task.abandon("the pool was closed")

    def __enter__(self) -> SolverPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _new_worker(self, content: bytes, start_s: float) -> SolverWorker:
        return Worker(content, start_s, self._niceness, self._sharing)

    def _put(self, *tasks: _Task | _Chunk) -> None:
        with self._lock:
            if self._is_closed.is_set():
                raise RuntimeError("the pool was closed")
            for task in tasks:
                self._tasks.put(task)

    def _serve(self, worker: SolverWorker) -> None:
        """Serves one worker, in a thread: starts it and gives it tasks until the pool is closed."""
        with contextlib.suppress(WorkerEndedError):  # `run` starts it again, and reports a failure
            worker.start()
        while (task := self._tasks.get()) is not None:
            if isinstance(task, _Chunk):
                self._serve_chunk(worker, task)
            elif task.future.set_running_or_notify_cancel():
                try:
                    outcome = next(worker.run(task.message, task.timeout_s, 1))
                except WorkerEndedError as error:
                    outcome = Outcome(Status.ERROR, message=str(error))
                task.future.set_result(outcome)

    def _serve_chunk(self, worker: SolverWorker, chunk: _Chunk) -> None:
        """Takes a worker's answers as they come.

        If the worker ends early, the candidates without an answer go back to the queue.
        """
        batch, rows, done = chunk.batch, chunk.rows, 0
        try:
            for outcome in worker.run(batch.message(rows), chunk.timeout_s, len(rows)):
                batch.put(rows[done], outcome)
                done += 1
            return
        except WorkerEndedError as error:
            if self._is_closed.is_set():
                chunk._replace(rows=rows[done:]).abandon(str(error))
                return
            if not batch.may_retry(rows[done], hung=error.hung):
                batch.give_up(rows[done], str(error))
                done += 1
        if done < len(rows):
            self._tasks.put(chunk._replace(rows=rows[done:]))


def repair_batch(
    problem: Problem,
    assignments: NDArray[np.integer],
    weights: FloatArray | None = None,
    *,
    workers: int = 2,
    time_limit_s: float = 1.0,
    **options: Any,
) -> Repairs:
    """Repairs B candidates in a pool of its own, and waits for the end.

    Args:
      problem: of N nodes.
      assignments: [B, N] chips, valid or not.
      weights: as of `SolverPool.repair_batch`.
      workers: number of processes.
      time_limit_s: seconds for each candidate.
      options: as of `SolverPool.repair_batch`.

    Raises:
      InputError: as `RepairBatch`.
    """
    with SolverPool(problem, workers) as pool:
        future = pool.repair_batch(assignments, weights, time_limit_s=time_limit_s, **options)
        return future.result()


class _Task(NamedTuple):
    message: bytes
    timeout_s: float
    future: Future[Outcome]

    def abandon(self, message: str) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(Outcome(Status.ERROR, message=message))


class _Chunk(NamedTuple):
    """The candidates of a batch that go to a worker in one message."""

    batch: RepairBatch
    rows: list[int]
    timeout_s: float  # for each candidate

    def abandon(self, message: str) -> None:
        for row in self.rows:
            self.batch.give_up(row, message)
