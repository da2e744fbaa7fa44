"""Ctrl-C takes effect between the steps of a search.

An exception inside compiled code may surface as another error. So the first Ctrl-C only sets an
event, which the search reads between its steps.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt() -> Generator[threading.Event]:
    """Yields an event that the first Ctrl-C sets; the second one raises KeyboardInterrupt.

    Outside the main thread, or where the program has its own handler of SIGINT, this changes
    nothing and the event is never set.
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
