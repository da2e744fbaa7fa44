"""How long an accelerator works for each method, whoever waits for it.

Methods give an accelerator steps ahead (`steps_ahead` in `cost/batch.py`), and it works through
them in that order. While the host waits for a step of one method, the device may work on one of
another. So the time of the host's turns says nothing of what a method costs. What does is from when
to when the device works on each step: from the end of the step before, or from the time at which
the step was given if the device had nothing to do, to its own end.

Where no step is ahead (a CPU), the host's turns are the time of the methods, and nothing is
watched.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax

from jaxpart.cost.batch import steps_ahead
from jaxpart.runtime.background import started

# Calls a function once a result is there.
Watch = Callable[[Any, Callable[[], None]], None]


class Step:
    """A step that the device was given."""

    def __init__(self, owner: str, given_s: float) -> None:
        """Makes a step that is not done.

        Args:
          owner: name of the method.
          given_s: when the device was given it, by the clock.
        """
        self.owner = owner
        self.given_s = given_s
        self._worked_s = 0.0
        self._is_done = threading.Event()

    def seconds(self) -> float:
        """How long the device worked on it. Waits for its end."""
        self._is_done.wait()
        return self._worked_s

    def end(self, worked_s: float) -> None:
        """Notes how long the device worked on it."""
        self._worked_s = worked_s
        self._is_done.set()


def watch_in_thread(result: Any, then: Callable[[], None]) -> None:
    """Calls `then` from a thread once a result is on the device, or once its program has failed."""

    def wait() -> None:
        try:
            jax.block_until_ready(result)
        finally:
            then()

    started(wait)


class DeviceTime:
    """The time that the device worked for each method."""

    def __init__(
        self, watch: Watch = watch_in_thread, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Makes a device that was given nothing.

        Args:
          watch: sees when a result is there.
          clock: seconds.
        """
        self.clock = clock
        self._watch = watch
        self._lock = threading.Lock()
        self._waiting: deque[Step] = deque()  # that the device works on, in this order
        self._free_s = -float("inf")  # when the last step ended
        self._used_s: dict[str, float] = {}

    def given(self, owner: str, result: Any, since_s: float | None = None) -> Step | None:
        """Notes that the device was given a step.

        Args:
          owner: name of the method.
          result: arrays that the step makes; no later program may be given their memory.
          since_s: when it was given the first program of the step, by the clock. None: now.

        Returns:
          The step; None where no step is ahead.
        """
        if not steps_ahead():
            return None
        step = Step(owner, self.clock() if since_s is None else since_s)
        with self._lock:
            self._waiting.append(step)
        self._watch(result, lambda: self._ended(step))
        return step

    def used_s(self) -> dict[str, float]:
        """Seconds that the device has worked for each method up to now."""
        with self._lock:
            used_s = dict(self._used_s)
            if self._waiting:
                first = self._waiting[0]
                worked_s = self.clock() - max(first.given_s, self._free_s)
                used_s[first.owner] = used_s.get(first.owner, 0.0) + worked_s
        return used_s

    def _ended(self, step: Step) -> None:
        """Notes the end of a step, and with it that of all before it."""
        with self._lock:
            now_s = self.clock()
            while step in self._waiting:
                first = self._waiting.popleft()
                worked_s = max(0.0, now_s - max(first.given_s, self._free_s))
                self._used_s[first.owner] = self._used_s.get(first.owner, 0.0) + worked_s
                self._free_s = now_s
                first.end(worked_s)
