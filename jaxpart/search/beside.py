"""Work of one method beside the steps of the others."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> Generator[bool, None, T]:
    """Yields True until the work is done, and returns what it gave.

    Raises:
      Exception: what the work raised.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1)
    try:
        done = executor.submit(work)
        while not done.done():
            yield True
        return done.result()
    finally:
        executor.shutdown(wait=False)
