"""Work of one method beside the steps of the others."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

_COMPILING = threading.Lock()


def in_thread(work: Callable[[], T], *, compiles: bool = False) -> Generator[bool, None, T]:
    """Yields True until the work is done, and returns what it gave.

    Args:
      compiles: the work takes seconds of a core: one such work after the other, since two at once
        would both be late. Whoever asks first is served first.

    Raises:
      Exception: what the work raised.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1)
    is_over = threading.Event()

    def in_turn() -> T:
        with _COMPILING:
            if is_over.is_set():  # nobody waits for it any more
                raise concurrent.futures.CancelledError
            return work()

    try:
        done = executor.submit(in_turn if compiles else work)
        while not done.done():
            yield True
        return done.result()
    finally:
        is_over.set()
        executor.shutdown(wait=False)
