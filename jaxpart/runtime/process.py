"""A worker of a pool: one process at a time, with its pipes; a new one when it dies."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from jaxpart.runtime.core_sharing import CoreSharing

# A worker has the import path of this process, but imports nothing of its `__main__`. The other
# imports take a second: before them the worker makes sure that it does not outlive this process.
_COMMAND = (
    "import sys; sys.path[:] = {path!r}; "
    "from jaxpart.runtime.core_sharing import end_with_parent; end_with_parent({parent}); "
    "from jaxpart.runtime.worker import main; main({niceness})"
)
# Seconds of the slices in which a wait for an answer is counted (`_Patience`).
_SLICE_S = 1.0
# Starts in a row that may fail; another program may kill a process before it is ready.
_STARTS = 5


# The workers of this process that have not been closed.
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def signal_all(number: signal.Signals) -> None:
    """Sends a signal to every worker process of this machine that this process started."""
    for worker in list(_WORKERS):
        with contextlib.suppress(OSError):  # it has ended
            if worker.process is not None:
                worker.process.send_signal(number)


class WorkerEndedError(Exception):
    """A worker died, or was killed because it hung, or because the pool was closed."""

    def __init__(self, message: str, *, hung: bool = False) -> None:
        """Makes the error.

        Args:
          message: why the worker ended.
          hung: whether it was killed because it gave no answer in time.
        """
        super().__init__(message)
        self.hung = hung


class SolverWorker(Protocol):
    """The interface of a worker, on this machine (`Worker`) or on another one.

    The methods of `Worker` describe it in full.
    """

    @property
    def worker_id(self) -> int | None:
        """Number of its process; None if none runs."""
        ...

    def start(self) -> None:
        """Starts the worker and waits until it is ready."""
        ...

    def run(self, message: bytes, timeout_s: float, count: int) -> Iterator[Any]:
        """Sends a message and yields its `count` answers as they come."""
        ...

    def close(self) -> None:
        """Ends the worker; it never starts again."""
        ...

    def discard(self) -> None:
        """Frees the resources of a worker that has ended."""
        ...


class Worker:
    """A worker process of this machine, replaced by a new one when it dies.

    Only one thread may call `start` and `run`.

    Attributes:
      process: the process that runs now, or None.
    """

    def __init__(
        self, content: bytes, start_s: float, niceness: int = 0, sharing: CoreSharing | None = None
    ) -> None:
        """Makes the worker; starts no process yet.

        Args:
          content: the pickled problem.
          start_s: seconds after which a process that is not ready counts as hung.
          niceness: niceness of the process.
          sharing: shares cores among busy processes. None: it always runs.
        """
        self._niceness = niceness
        self._sharing = sharing
        self._content = content
        self._start_s = start_s
        self._lock = threading.Lock()  # no process starts after the pool is closed
        self._is_closed = False
        self._is_ready = False
        self.process: subprocess.Popen[bytes] | None = None
        _WORKERS.add(self)

    @property
    def worker_id(self) -> int | None:
        """Number of the process that runs now; None if none runs."""
        return None if self.process is None else self.process.pid

    def start(self) -> None:
        """Starts a process, sends it the problem, and waits until it is ready.

        Raises:
          WorkerEndedError: the pool was closed, or no process became ready.
        """
        self._is_ready = False
        for attempt in range(_STARTS):
            self._spawn()
            try:
                self._receive(self._start_s, self._content)
            except WorkerEndedError:
                if self._is_closed or attempt == _STARTS - 1:
                    raise
            else:
                self._is_ready = True
                return

    def run(self, message: bytes, timeout_s: float, count: int) -> Iterator[Any]:
        """Sends a message and yields its answers as they come.

        Args:
          message: a pickled task for the process.
          timeout_s: seconds to wait for each answer.
          count: number of answers.

        Raises:
          WorkerEndedError: the process died, or did not answer in time.
        """
        if not self._is_ready or self.process is None or self.process.poll() is not None:
            self.start()
        try:
            for k in range(count):
                with self._shared_cores():
                    answer = self._receive(timeout_s, message if k == 0 else b"")
                yield answer
        except WorkerEndedError:
            self._is_ready = False
            raise

    def _shared_cores(self) -> contextlib.AbstractContextManager[None]:
        if self._sharing is None or self.process is None:
            return contextlib.nullcontext()
        return self._sharing.busy(self.process)

    def close(self) -> None:
        """Kills the process; none is started afterwards."""
        with self._lock:
            self._is_closed = True
            if self.process is not None:
                self.process.kill()
                self.process.wait()

    def discard(self) -> None:
        """Closes the pipes of a process that has ended."""
        for pipe in (self.process.stdin, self.process.stdout) if self.process else ():
            # Closing flushes, which fails for data that the dead process never read.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def _spawn(self) -> None:
        with self._lock:
            if self._is_closed:
                raise WorkerEndedError("the pool was closed")
            self.discard()
            try:
                self.process = subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        _COMMAND.format(path=sys.path, parent=os.getpid(), niceness=self._niceness),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise WorkerEndedError(f"no process could be started: {error}") from error

    def _receive(self, timeout_s: float, message: bytes = b"") -> Any:
        """Sends a message unless it is empty, and waits for one answer."""
        process = self.process
        if process is None or process.stdout is None:
            raise WorkerEndedError("the pool was closed")
        # Patience covers sending too: a stopped process reads nothing, so a full pipe blocks.
        patience = _Patience(timeout_s, process)
        try:
            if message:
                self._send(message)
            return pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            process.kill()
            code = process.wait()
            if self._is_closed:
                reason = "the pool was closed"
            elif patience.is_over:
                reason = f"the worker gave no answer in {timeout_s:.0f} s and was killed"
            else:
                reason = f"the worker ended with exit code {code}"
            raise WorkerEndedError(reason, hung=patience.is_over) from error
        finally:
            patience.end()

    def _send(self, message: bytes) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(message)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            # The process is dead: reading its answer finds the end of its output.
            return


class _Patience:
    """Kills a process unless its answer comes in time.

    The time is counted in slices that were waited for, not by the clock: while this process is
    suspended, none passes.
    """

    def __init__(self, timeout_s: float, process: subprocess.Popen[bytes]) -> None:
        self.is_over = False
        self._left_s, self._process = timeout_s, process
        self._has_answer = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def end(self) -> None:
        """The answer has come."""
        self._has_answer.set()

    def _wait(self) -> None:
        while self._left_s > 0:
            if self._has_answer.wait(min(self._left_s, _SLICE_S)):
                return
            self._left_s -= _SLICE_S
        self.is_over = True
        self._process.kill()
