"""A clock that stands still while the process is suspended."""

from __future__ import annotations

import threading
import time

# A longer time between two looks at the clock, while it is watched, was a suspension, unless this
# process computed for at least this share of it.
_SUSPENDED_S, _COMPUTING_SHARE = 1.0, 0.05


class Clock:
    """Seconds of `time.perf_counter`, without suspensions once it is watched."""

    def __init__(self) -> None:
        """Is not watched yet."""
        self._lock = threading.Lock()
        self._looked: tuple[float, float] | None = None  # clock and CPU time; None: not watched
        self._suspended_s = 0.0

    def watch(self) -> None:
        """Looks at the clock; called several times a second from the first call on."""
        with self._lock:
            if self._looked is None:
                self._looked = time.perf_counter(), time.process_time()
        self.now_s()

    def now_s(self) -> float:
        """Seconds from an arbitrary moment on."""
        with self._lock:
            now_s = time.perf_counter()
            if self._looked is not None:
                looked_s, computed_s = self._looked
                self._looked = now_s, time.process_time()
                gap_s, computed_s = now_s - looked_s, self._looked[1] - computed_s
                if gap_s > _SUSPENDED_S and computed_s < _COMPUTING_SHARE * gap_s:
                    self._suspended_s += gap_s
            return now_s - self._suspended_s
