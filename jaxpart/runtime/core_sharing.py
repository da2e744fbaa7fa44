"""Core sharing: background processes run in turn on the cores that a search leaves free.

Niceness alone is not enough. Some systems divide their cores between sessions or containers, and
there niceness has no effect across these. On one core, the search and three busy solvers would then
get a quarter each. So `CoreSharing` stops the surplus of busy processes (SIGSTOP) and lets them
continue (SIGCONT) in turn.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator

# Whether processes can be stopped. A stopped process must still end with its parent, and only Linux
# can do that (`end_with_parent`).
IS_POSSIBLE = sys.platform == "linux"
# Seconds that a process runs before the next one continues.
_TIME_SLICE_S = 0.1
# The option of Linux's `prctl` that sets the signal at the parent's death.
_PR_SET_PDEATHSIG = 1


class CoreSharing:
    """Lets a limited number of the busy processes run at a time.

    Where processes cannot be stopped (`IS_POSSIBLE`), all of them run.
    """

    def __init__(self, slots: int) -> None:
        """Makes an empty group; stops nothing yet.

        Args:
          slots: number of busy processes that may run at a time.
        """
        self._slots = slots
        self._busy: collections.deque[subprocess.Popen[bytes]] = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def busy(self, process: subprocess.Popen[bytes]) -> Generator[None]:
        """Context in which the process is busy and shares the cores; afterwards it runs freely.

        Args:
          process: a process of this machine that does work inside the context.
        """
        if not IS_POSSIBLE:
            yield
            return
        with self._changed:
            if self._thread is None and len(self._busy) >= self._slots:
                thread = threading.Thread(target=self._rotate, daemon=True)
                thread.start()  # it waits for the lock, so the process is in the queue by then
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
        """Gives each process its time slice, while more are busy than may run."""
        with self._changed:
            try:
                while len(self._busy) > self._slots:
                    queue = list(self._busy)
                    for process in queue[self._slots :]:
                        _send(process, signal.SIGSTOP)
                    for process in queue[: self._slots]:
                        _send(process, signal.SIGCONT)
                    self._busy.rotate(-self._slots)
                    self._changed.wait(_TIME_SLICE_S)
            finally:
                for process in self._busy:
                    _send(process, signal.SIGCONT)
                self._thread = None


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # the process has ended, or refuses the signal
        process.send_signal(number)


def end_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when the thread that started it ends.

    A stopped process is killed too. If the parent is gone already, this process ends at once. Where
    `IS_POSSIBLE` is false, only that is checked.

    Args:
      parent: number of the process that started this one.
    """
    if IS_POSSIBLE:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the kernel knew the wish. The process then has a new parent.
    if os.getppid() != parent:
        os._exit(0)
