"""Runs the work of one method in a thread while other methods take their steps."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

# Held while a thread compiles, so that one compiles at a time.
_COMPILE_LOCK = threading.Lock()
# Seconds that one step sleeps while its own work compiles.
_COMPILE_WAIT_S = 0.05


def in_thread(work: Callable[[], T], *, compiles: bool = False) -> Generator[bool, None, T]:
    """Runs `work` in a thread. Yields until it is done, then returns its result.

    Args:
      work: runs once, in a thread of its own.
      compiles: whether the work compiles. Compilation takes seconds of a core and holds Python's
        global lock. Two compilations at once would both be late, so they run one after the other,
        usually in the order of the calls. During a compilation each step of this generator sleeps
        for a short time: no other method runs then, so the compilation has the core.

    Yields:
      Whether the step only waited. False: the step slept for its own compilation.

    Raises:
      Exception: any error that `work` raised.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1)
    is_over, is_compiling = threading.Event(), threading.Event()

    def compile_alone() -> T:
        with _COMPILE_LOCK:
            is_compiling.set()
            if is_over.is_set():  # the generator was closed: nobody needs the result
                raise concurrent.futures.CancelledError
            return work()

    try:
        done = executor.submit(compile_alone if compiles else work)
        while not done.done():
            if is_compiling.is_set():
                concurrent.futures.wait([done], _COMPILE_WAIT_S)
            yield not is_compiling.is_set()
        return done.result()
    finally:
        is_over.set()
        executor.shutdown(wait=False)
