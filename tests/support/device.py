"""A device that works through what it is given, by a clock that only tests move."""

from collections import deque

from jaxpart.runtime import device_time
from jaxpart.runtime.device_time import DeviceTime


class FakeDevice:
    """A device and its clock; a result is the seconds that the step takes."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(device_time, "steps_ahead", lambda: 1)
        self.now_s = self.idle_s = 0.0
        self.ends = deque()  # (second, what to call then)
        self.time = DeviceTime(self.watch, lambda: self.now_s)

    def watch(self, seconds, then):
        begin_s = max(self.now_s, self.ends[-1][0] if self.ends else 0.0)
        self.ends.append((begin_s + seconds, then))

    def host(self, seconds):
        """The host works for some seconds, or waits."""
        until_s = self.now_s + seconds
        while self.ends and self.ends[0][0] <= until_s:
            self.now_s, then = self.ends.popleft()
            then()
        if not self.ends:
            self.idle_s += until_s - self.now_s
        self.now_s = until_s

    def steps(self, name, device_s, host_s):
        """A method that gives one step ahead, then waits for the one before and looks at it."""
        pending = deque()
        while True:
            while len(pending) <= 1:
                self.time.given(name, device_s)
                pending.append(self.ends[-1][0])
            self.host(max(0.0, pending.popleft() - self.now_s))
            self.host(host_s)
            yield
