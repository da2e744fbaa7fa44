"""Solver tasks in worker processes, beside whatever the caller does."""

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

# How much longer than its own time limit a task may take (to state a program, to be interrupted)
# before its worker counts as hung.
_GRACE_S = 20.0
# So many times as long where workers take turns, and are stopped meanwhile.
_GRACE_FACTOR = 4.0
# Until a worker that starts is ready: on a busy machine, Python and the solvers take a while.
_START_S = 60.0


class SolverPool:
    """Worker processes that hold one problem and take tasks on it.

    Tasks return futures at once, whose results are always an `Outcome`: a task whose worker dies or
    hangs, or that is still waiting when the pool is closed, ends with `Status.ERROR`, and the pool
    goes on with a new worker. Of a batch, no other candidate is lost with such a worker, and one
    whose worker died is tried again.

    The workers are fresh interpreters with pipes of their own: they import neither JAX nor the
    user's `__main__`, share no lock that a killed one could keep, belong to a session of their own
    (Ctrl-C does not reach them), and end when the pipe from this process does. A context manager;
    `close` ends all at once.
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
          problem: what all tasks are about.
          workers: number of processes, one task each at a time.
          grace_s: seconds beyond its time limit after which a task's worker is killed.
          start_s: seconds after which a worker that does not get ready is killed.
          niceness: by how much processes of this machine give way to others.
          turns: that they take while they are busy.
        """
        self._problem = problem
        self._content = pickle.dumps(problem, pickle.HIGHEST_PROTOCOL)
        self._grace_s = grace_s if sharing is None else _GRACE_FACTOR * grace_s
        self._tasks: queue.SimpleQueue[_Task | _Chunk | None] = queue.SimpleQueue()
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # between taking tasks and closing the pool
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
          task: a function of a module that the worker can import, without JAX.
          time_limit_s: that the task keeps; its worker is killed some time after.
          arguments: what can be pickled.

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
        """As `repair.repair`."""
        return self.submit(repair, time_limit_s=time_limit_s, y=y, weights=weights, **options)

    def repair_batch(
        self,
        assignments: NDArray[np.integer],
        weights: FloatArray | None = None,
        *,
        time_limit_s: float = 1.0,
        **options: Any,
    ) -> Future[Repairs]:
        """Repairs B candidates, shared among all workers; the future cannot be cancelled.

        Args:
          assignments: [B, N] chips, valid or not.
          weights: [N] or [B, N] cost of moving each node by one chip; ones by default.
          time_limit_s: for each candidate.
          options: as of `repair.repair`, the same for all.

        Raises:
          InputError: as `Batch`.
          RuntimeError: the pool was closed.
        """
        if self._is_closed.is_set():
            raise RuntimeError("the pool was closed")
        batch = RepairBatch(
            self._problem, assignments, weights, {**options, "time_limit_s": time_limit_s}
        )
        for rows in batch.chunks(len(self._workers)):
            self._tasks.put(_Chunk(batch, rows, time_limit_s + self._grace_s))
        return batch.future

    def lns(self, f: IntArray, *, time_limit_s: float, **options: Any) -> Future[Outcome]:
        """As `polish.polish`."""
        return self.submit(lns, time_limit_s=time_limit_s, f=f, **options)

    def exact(
        self, incumbent: IntArray | None = None, *, time_limit_s: float, **options: Any
    ) -> Future[Outcome]:
        """As `polish.solve_exact`."""
        return self.submit(solve_exact, time_limit_s=time_limit_s, incumbent=incumbent, **options)

    def prove(
        self, incumbent: IntArray | None = None, *, time_limit_s: float, **options: Any
    ) -> Future[Outcome]:
        """As `prove.prove`."""
        return self.submit(prove, time_limit_s=time_limit_s, incumbent=incumbent, **options)

    @property
    def worker_ids(self) -> list[int]:
        """Process numbers of the workers that run now."""
        return [w.worker_id for w in self._workers if w.worker_id is not None]

    def close(self) -> None:
        """Kills the workers; tasks that have not ended end with `Status.ERROR`. May be repeated."""
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
        """One worker's thread: starts it, hands it tasks, starts it again."""
        with contextlib.suppress(
            WorkerEndedError
        ):  # whoever runs a task tries again, and hears of it
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
        """Takes a worker's answers as they come; what it leaves goes back to the queue."""
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
    """As `SolverPool.repair_batch`, in a pool of its own; waits for the end."""
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
    """Some candidates of a batch."""

    batch: RepairBatch
    rows: list[int]
    timeout_s: float  # for each

    def abandon(self, message: str) -> None:
        for row in self.rows:
            self.batch.give_up(row, message)
