"""One worker process of a pool at a time, its pipes, and what becomes of it."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from jaxpart.runtime.core_sharing import CoreSharing

# The workers look for packages where this process does; they import nothing of its `__main__`.
_COMMAND = (
    "import sys; sys.path[:] = {path!r}; from jaxpart.runtime.worker import main; main({niceness})"
)
# Starts in a row that may fail: processes that are killed from outside before they are ready.
_STARTS = 5


class WorkerEndedError(Exception):
    """A worker died, or was killed because it hung, or because the pool was closed."""

    def __init__(self, message: str, *, hung: bool = False) -> None:
        """`hung`: whether it gave no answer in time."""
        super().__init__(message)
        self.hung = hung


class SolverWorker(Protocol):
    """What a pool needs of a worker, wherever that runs; `Worker` says what each part does."""

    @property
    def worker_id(self) -> int | None:
        """Number of its process, if one runs."""
        ...

    def start(self) -> None:
        """Gets it ready."""
        ...

    def run(self, message: bytes, timeout_s: float, count: int) -> Iterator[Any]:
        """The `count` answers to one message, as they come."""
        ...

    def close(self) -> None:
        """Ends it, for good."""
        ...

    def discard(self) -> None:
        """Frees what is left of it."""
        ...


class Worker:
    """One process at a time, replaced when it dies. `run` and `start` are one thread's alone.

    Attributes:
      process: the one that runs now, if any.
    """

    def __init__(
        self, content: bytes, start_s: float, niceness: int = 0, sharing: CoreSharing | None = None
    ) -> None:
        """Starts nothing yet.

        Args:
          content: the pickled problem.
          start_s: seconds after which a process that is not ready counts as hung.
          niceness: by how much the process gives way to others.
          turns: that it takes while it is busy.
        """
        self._niceness = niceness
        self._sharing = sharing
        self._content = content
        self._start_s = start_s
        self._lock = threading.Lock()  # between starting a process and closing the pool
        self._is_closed = False
        self._is_ready = False
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def worker_id(self) -> int | None:
        """Number of the process that runs now, if any."""
        return None if self.process is None else self.process.pid

    def start(self) -> None:
        """Starts a process, hands it the problem, and waits until it is ready.

        Raises:
          WorkerEndedError: the pool was closed, or no process gets ready.
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
        """The `count` answers to one message, as they come.

        Args:
          message: for the process.
          patience_s: how long to wait for each.
          count: of answers.

        Raises:
          WorkerEndedError: the process died, or did not answer in time.
        """
        if not self._is_ready or self.process is None or self.process.poll() is not None:
            self.start()
        try:
            for k in range(count):
                with self._turn():
                    answer = self._receive(timeout_s, message if k == 0 else b"")
                yield answer
        except WorkerEndedError:
            self._is_ready = False
            raise

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        if self._sharing is None or self.process is None:
            return contextlib.nullcontext()
        return self._sharing.busy(self.process)

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
                        _COMMAND.format(path=sys.path, niceness=self._niceness),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise WorkerEndedError(f"no process could be started: {error}") from error

    def _receive(self, timeout_s: float, message: bytes = b"") -> Any:
        """Sends a message, if any, and waits for an answer."""
        process = self.process
        if process is None or process.stdout is None:
            raise WorkerEndedError("the pool was closed")
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        # It watches the sending too: a stopped process takes no more than fits into its pipe.
        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            if message:
                self._send(message)
            return pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            process.kill()
            code = process.wait()
            if self._is_closed:
                reason = "the pool was closed"
            elif hung.is_set():
                reason = f"the worker gave no answer in {timeout_s:.0f} s and was killed"
            else:
                reason = f"the worker ended with exit code {code}"
            raise WorkerEndedError(reason, hung=hung.is_set()) from error
        finally:
            timer.cancel()

    def _send(self, message: bytes) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(message)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            # Dead already: whoever waits for its answer finds the end of its output.
            return
