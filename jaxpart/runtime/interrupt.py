"""Signals take effect between the steps of a search, and what was found is kept.

An exception inside compiled code may surface as another error. So no handler raises one: it only
notes the signal. The search reads the note between its steps. Whoever waits for the search reads it
too, and gives a step that takes long only a short time (`engine.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType

from jaxpart.runtime import process

# Signals that end a command, where the system has them. The terminal sends SIGINT at Ctrl-C and
# SIGHUP when it closes; SIGTERM is the polite way to end a program.
_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
Handler = Callable[[int, FrameType | None], None]
# What a command says that a signal ends before it has a result.
NOTHING = "interrupted before there was anything to write"


class Interrupts:
    """The signals that asked this process to end, from the first one on.

    Attributes:
      event: set by the first signal.
      count: number of signals so far.
    """

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.event = threading.Event()
        self.count = 0
        self._number = signal.SIGINT
        self._since_s = 0.0
        self._farewell: str | None = None

    @property
    def code(self) -> int:
        """Exit code as shells count: 128 and the number of the first signal."""
        return 128 + int(self._number)

    @property
    def waited_s(self) -> float:
        """Seconds since the first signal; 0 before it."""
        return time.monotonic() - self._since_s if self.event.is_set() else 0.0

    def leave_at_once(self, farewell: str | None) -> None:
        """Sets what a signal does.

        Args:
          farewell: one line. A signal then ends the process at once, with this line on standard
            error; after a result was saved, the second one does. None: it is only noted.
        """
        self._farewell = farewell

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Notes a signal: the handler."""
        del frame
        if not self.event.is_set():
            self._number, self._since_s = signal.Signals(number), time.monotonic()
        self.count += 1
        self.event.set()
        if self._farewell is not None and (self.count > 1 or self._farewell == NOTHING):
            # Not an exception: an import or compiled code may turn it into another error.
            with contextlib.suppress(OSError):
                os.write(2, f"{self._farewell}\n".encode())
            os._exit(self.code)


_NONE = Interrupts()  # where no command handles signals
_active: Interrupts | None = None


def active() -> Interrupts:
    """The signals of the command that runs; elsewhere, ones that never come."""
    return _active or _NONE


@contextlib.contextmanager
def command_signals() -> Generator[Interrupts]:
    """Handles signals for a command: until `leave_at_once(None)` they end the process at once.

    Ctrl-Z stops the workers too, and what continues this process continues them. A signal that the
    program ignores or handles already is left alone. Outside the main thread nothing changes.
    """
    global _active
    interrupts, before = Interrupts(), _active
    interrupts.leave_at_once(NOTHING)
    handlers: dict[signal.Signals, Handler] = {}
    handlers.update(dict.fromkeys(_ENDING, interrupts.note))
    if hasattr(signal, "SIGTSTP"):
        handlers[signal.SIGTSTP] = _suspend
    with contextlib.ExitStack() as stack:
        for number, handler in handlers.items():
            stack.enter_context(_handled(number, handler))
        _active = interrupts
        try:
            yield interrupts
        finally:
            _active = before


@contextlib.contextmanager
def deferred_interrupt() -> Generator[Interrupts]:
    """Yields the signals that ask a search to end: those of the command, else Ctrl-C.

    From here on signals are only noted. Outside the main thread, or where the program has its own
    handler of SIGINT, none is.
    """
    if _active is not None:
        _active.leave_at_once(None)
        yield _active
        return
    interrupts = Interrupts()
    with _handled(signal.SIGINT, interrupts.note):
        yield interrupts


def ignore_from_now() -> None:
    """Ignores all further signals of `command_signals`, for a process that is about to end."""
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)


def _suspend(number: int, frame: FrameType | None) -> None:
    """Stops the workers and then this process; goes on when it is continued."""
    del number, frame
    process.signal_all(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    process.signal_all(signal.SIGCONT)


@contextlib.contextmanager
def _handled(number: signal.Signals, handler: Handler) -> Generator[None]:
    """Handles a signal where nobody has changed what it does."""
    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(
        number
    ) in (signal.SIG_DFL, signal.default_int_handler)
    before = signal.signal(number, handler) if is_ours else None
    try:
        yield
    finally:
        if is_ours and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, before)
