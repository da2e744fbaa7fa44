"""Processes that take turns on the cores that a search leaves them.

Niceness alone does not do it: where the system shares its cores out by session or by container, it
does not count between them, and on one core four busy processes then have a quarter each, the
search among them. So those that are busy and too many are stopped (SIGSTOP), and go on in turn.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Generator

# Stopping needs a way to end with the parent even so; only Linux has one.
IS_POSSIBLE = sys.platform == "linux"
_TURN_S = 0.1
_PR_SET_PDEATHSIG = 1


class CoreSharing:
    """At most so many of the busy processes run at a time. Where stopping is not possible, all."""

    def __init__(self, slots: int) -> None:
        """Stops nothing yet.

        Args:
          slots: processes that may run at a time.
        """
        self._slots = slots
        self._busy: collections.deque[subprocess.Popen[bytes]] = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def busy(self, process: subprocess.Popen[bytes]) -> Generator[None]:
        """While inside, the process is busy and takes turns; after it, it runs."""
        if not IS_POSSIBLE:
            yield
            return
        with self._changed:
            if self._thread is None and len(self._busy) >= self._slots:
                thread = threading.Thread(target=self._rotate, daemon=True)
                thread.start()  # it waits for the lock
                self._thread = thread
            self._busy.append(process)
        try:
            yield
        finally:
            with self._changed:
                self._busy.remove(process)
                _send(process, signal.SIGCONT)
                self._changed.notify()

    def _rotate(self) -> None:
        """A turn after the other, as long as there are more than may run."""
        with self._changed:
            try:
                while len(self._busy) > self._slots:
                    in_turn = list(self._busy)
                    for process in in_turn[self._slots :]:
                        _send(process, signal.SIGSTOP)
                    for process in in_turn[: self._slots]:
                        _send(process, signal.SIGCONT)
                    self._busy.rotate(-self._slots)
                    self._changed.wait(_TURN_S)
            finally:
                for process in self._busy:
                    _send(process, signal.SIGCONT)
                self._thread = None


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # it ended meanwhile, or may not be told
        process.send_signal(number)


def end_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends, stopped or not."""
    if IS_POSSIBLE:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
