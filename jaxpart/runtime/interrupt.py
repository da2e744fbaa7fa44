"""Ctrl-C between steps: an exception in the midst of compiled code may surface as another error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt() -> Generator[threading.Event]:
    """Yields an event that is set by the first Ctrl-C; the second one raises KeyboardInterrupt.

    Outside the main thread, and where a program handles interrupts its own way, nothing is changed
    and the event is never set.
    """
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
