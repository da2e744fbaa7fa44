"""Solver tasks in worker processes, beside whatever the caller does."""

from __future__ import annotations

import contextlib
import pickle
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple

from jaxpart.problem import FloatArray, IntArray, Problem
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
    goes on with a new worker.

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
        self._content = pickle.dumps(problem, pickle.HIGHEST_PROTOCOL)
        self._grace_s = grace_s
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._is_closed = threading.Event()
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
            if task is not None and task.future.set_running_or_notify_cancel():
                task.future.set_result(_failed("the pool was closed"))

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
        if self._is_closed.is_set():
            raise RuntimeError("the pool was closed")
        arguments["time_limit_s"] = time_limit_s
        future: Future[Outcome] = Future()
        message = pickle.dumps((name, arguments), pickle.HIGHEST_PROTOCOL)
        self._tasks.put(_Task(message, time_limit_s + self._grace_s, future))
        return future

    def _serve(self, worker: _Worker) -> None:
        """One worker's thread: starts it, hands it tasks, starts it again."""
        worker.start()
        while (task := self._tasks.get()) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            task.future.set_result(worker.run(task.message, task.patience_s))


class _Task(NamedTuple):
    message: bytes
    patience_s: float
    future: Future[Outcome]


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

    def run(self, message: bytes, patience_s: float) -> Outcome:
        """The outcome of one task; ERROR where the process dies, or does not answer in time."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        process = self.process
        if process is None or process.stdout is None:
            return _failed("the pool was closed")
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        timer = threading.Timer(patience_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            self._send(message)
            return pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            process.kill()
            code = process.wait()
            if self._is_closed:
                return _failed("the pool was closed")
            if hung.is_set():
                return _failed(f"the worker gave no answer in {patience_s:.0f} s and was killed")
            return _failed(f"the worker ended with exit code {code}")
        finally:
            timer.cancel()

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


def _failed(message: str) -> Outcome:
    return Outcome(Status.ERROR, message=message)
