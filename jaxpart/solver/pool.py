"""Solver tasks in worker processes, beside whatever the caller does."""

from __future__ import annotations

import contextlib
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.problem import FloatArray, IntArray, Problem
from jaxpart.solver.batch import Batch, Repairs
from jaxpart.solver.repair import Outcome
from jaxpart.solver.scip import Status

# How much longer than its own time limit a task may take (to state a program, to be interrupted)
# before its worker counts as hung.
_GRACE_S = 20.0
# The workers look for packages where this process does; they import nothing of its `__main__`.
_COMMAND = "import sys; sys.path[:] = {path!r}; from jaxpart.solver.worker import main; main()"


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

    def __init__(self, problem: Problem, workers: int = 1, *, grace_s: float = _GRACE_S) -> None:
        """Starts the workers in the background.

        Args:
          problem: what all tasks are about.
          workers: number of processes, one task each at a time.
          grace_s: seconds beyond its time limit after which a task's worker is killed.
        """
        self._problem = problem
        self._content = pickle.dumps(problem, pickle.HIGHEST_PROTOCOL)
        self._grace_s = grace_s
        self._tasks: queue.SimpleQueue[_Task | _Chunk | None] = queue.SimpleQueue()
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # between taking tasks and closing the pool
        self._workers = [_Worker(self._content) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def repair(
        self,
        y: IntArray,
        weights: FloatArray | None = None,
        *,
        time_limit_s: float = 1.0,
        **options: Any,
    ) -> Future[Outcome]:
        """As `repair.repair`."""
        return self._submit("repair", time_limit_s, y=y, weights=weights, **options)

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
        batch = Batch(
            self._problem, assignments, weights, {**options, "time_limit_s": time_limit_s}
        )
        for rows in batch.chunks(len(self._workers)):
            self._tasks.put(_Chunk(batch, rows, time_limit_s + self._grace_s))
        return batch.future

    def polish(self, f: IntArray, *, time_limit_s: float, **options: Any) -> Future[Outcome]:
        """As `polish.polish`."""
        return self._submit("polish", time_limit_s, f=f, **options)

    def exact(
        self, incumbent: IntArray | None = None, *, time_limit_s: float, **options: Any
    ) -> Future[Outcome]:
        """As `polish.solve_exact`."""
        return self._submit("exact", time_limit_s, incumbent=incumbent, **options)

    def prove(
        self, incumbent: IntArray | None = None, *, time_limit_s: float, **options: Any
    ) -> Future[Outcome]:
        """As `prove.prove`."""
        return self._submit("prove", time_limit_s, incumbent=incumbent, **options)

    @property
    def worker_ids(self) -> list[int]:
        """Process numbers of the workers that run now."""
        return [w.process.pid for w in self._workers if w.process is not None]

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

    def _submit(self, name: str, time_limit_s: float, **arguments: Any) -> Future[Outcome]:
        arguments["time_limit_s"] = time_limit_s
        future: Future[Outcome] = Future()
        message = pickle.dumps((name, arguments), pickle.HIGHEST_PROTOCOL)
        self._put(_Task(message, time_limit_s + self._grace_s, future))
        return future

    def _put(self, *tasks: _Task | _Chunk) -> None:
        with self._lock:
            if self._is_closed.is_set():
                raise RuntimeError("the pool was closed")
            for task in tasks:
                self._tasks.put(task)

    def _serve(self, worker: _Worker) -> None:
        """One worker's thread: starts it, hands it tasks, starts it again."""
        with contextlib.suppress(OSError):  # whoever runs a task tries again, and hears of it
            worker.start()
        while (task := self._tasks.get()) is not None:
            if isinstance(task, _Chunk):
                self._serve_chunk(worker, task)
            elif task.future.set_running_or_notify_cancel():
                try:
                    outcome = next(worker.run(task.message, task.patience_s, 1))
                except _WorkerEndedError as error:
                    outcome = Outcome(Status.ERROR, message=str(error))
                task.future.set_result(outcome)

    def _serve_chunk(self, worker: _Worker, chunk: _Chunk) -> None:
        """Takes a worker's answers as they come; what it leaves goes back to the queue."""
        batch, rows, done = chunk.batch, chunk.rows, 0
        try:
            for outcome in worker.run(batch.message(rows), chunk.patience_s, len(rows)):
                batch.put(rows[done], outcome)
                done += 1
            return
        except _WorkerEndedError as error:
            if self._is_closed.is_set():
                chunk._replace(rows=rows[done:]).abandon(str(error))
                return
            if error.hung or not batch.may_retry(rows[done]):
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
    patience_s: float
    future: Future[Outcome]

    def abandon(self, message: str) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(Outcome(Status.ERROR, message=message))


class _Chunk(NamedTuple):
    """Some candidates of a batch."""

    batch: Batch
    rows: list[int]
    patience_s: float  # for each

    def abandon(self, message: str) -> None:
        for row in self.rows:
            self.batch.give_up(row, message)


class _WorkerEndedError(Exception):
    """A worker died, or was killed because it hung, or because the pool was closed."""

    def __init__(self, message: str, *, hung: bool = False) -> None:
        super().__init__(message)
        self.hung = hung


class _Worker:
    """One process at a time, replaced when it dies."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._lock = threading.Lock()  # between starting a process and closing the pool
        self._is_closed = False
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts a process and hands it the problem."""
        with self._lock:
            if self._is_closed:
                return
            self.discard()
            self.process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        self._send(self._content)

    def run(self, message: bytes, patience_s: float, count: int) -> Iterator[Outcome]:
        """The `count` outcomes of one message, as they come.

        Args:
          message: for the process.
          patience_s: how long to wait for each.
          count: of outcomes.

        Raises:
          _WorkerEndedError: the process died, or did not answer in time.
        """
        try:
            if self.process is None or self.process.poll() is not None:
                self.start()
        except OSError as error:
            raise _WorkerEndedError(f"no worker process could be started: {error}") from error
        process = self.process
        if process is None or process.stdout is None:
            raise _WorkerEndedError("the pool was closed")
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        for k in range(count):
            timer = threading.Timer(patience_s, give_up)
            timer.daemon = True
            timer.start()
            try:
                if k == 0:
                    self._send(message)
                outcome = pickle.load(process.stdout)
            except (EOFError, pickle.UnpicklingError) as error:
                process.kill()
                code = process.wait()
                if self._is_closed:
                    raise _WorkerEndedError("the pool was closed") from error
                if hung.is_set():
                    raise _WorkerEndedError(
                        f"the worker gave no answer in {patience_s:.0f} s and was killed", hung=True
                    ) from error
                raise _WorkerEndedError(f"the worker ended with exit code {code}") from error
            finally:
                timer.cancel()
            yield outcome

    def close(self) -> None:
        """Kills the process, for good."""
        with self._lock:
            self._is_closed = True
            if self.process is not None:
                self.process.kill()
                self.process.wait()

    def discard(self) -> None:
        """Closes the pipes of a process that has ended."""
        for pipe in (self.process.stdin, self.process.stdout) if self.process else ():
            # What a dead process never read cannot be flushed.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def _send(self, message: bytes) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(message)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            # Dead already: whoever waits for its answer finds the end of its output.
            return
