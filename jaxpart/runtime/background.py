"""Work of one method beside the steps of the others."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

_COMPILING = threading.Lock()
_TURN_S = 0.05


def in_thread(work: Callable[[], T], *, compiles: bool = False) -> Generator[bool, None, T]:
    """Yields until the work is done, and returns what it gave.

    Args:
      compiles: the work takes seconds of a core and holds Python's lock: one such work after the
        other, since two at once would both be late. Whoever asks first is served first. While it
        goes on its turns are slept away, so that what others do in theirs does not slow it down.

    Yields:
      Whether it had to wait: False where a turn was given to what compiles.

    Raises:
      Exception: what the work raised.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1)
    is_over, is_compiling = threading.Event(), threading.Event()

    def in_turn() -> T:
        with _COMPILING:
            is_compiling.set()
            if is_over.is_set():  # nobody waits for it any more
                raise concurrent.futures.CancelledError
            return work()

    try:
        done = executor.submit(in_turn if compiles else work)
        while not done.done():
            if is_compiling.is_set():
                concurrent.futures.wait([done], _TURN_S)
            yield not is_compiling.is_set()
        return done.result()
    finally:
        is_over.set()
        executor.shutdown(wait=False)
