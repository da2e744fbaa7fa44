"""Runs work in threads: compilation beside other methods, and a whole search beside its waiter.

The threads are daemons: neither the end of a search nor the end of the program waits for a
compilation that nobody needs any more.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

# Held while a thread compiles, so that one compiles at a time.
_COMPILE_LOCK = threading.Lock()
# Seconds that one step sleeps while its own work compiles.
_COMPILE_WAIT_S = 0.05
# Seconds that a step of `without_holding_up` may take before the other methods go on.
_LONG_STEP_S = 1.0
# Seconds between two looks of `finishes` at what may end its wait.
_POLL_S = 0.02
# Seconds that the end of the program waits for its threads. A thread in compiled code may not
# survive the end of the interpreter.
_AT_EXIT_S = 5.0

_THREADS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def started(work: Callable[[], T]) -> Future[T]:
    """Starts `work` in a daemon thread of its own; the future has its result or its error.

    Its default device is the caller's: `jax.default_device` holds for one thread.
    """
    import jax  # imported late: solver workers have no JAX

    future: Future[T] = Future()
    context = contextvars.copy_context()
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def run() -> None:
        try:
            with jax.default_device(device):
                future.set_result(context.run(work))
        except BaseException as error:  # whoever waits for the future gets it
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    _THREADS.add(thread)
    thread.start()
    return future


def is_any_running() -> bool:
    """Whether a thread that this module started is still at work."""
    return any(thread.is_alive() for thread in list(_THREADS))


@atexit.register
def _wait_at_exit() -> None:
    until_s = time.monotonic() + _AT_EXIT_S
    for thread in list(_THREADS):
        thread.join(max(0.0, until_s - time.monotonic()))


def finishes(done: Future[T], is_late: Callable[[], bool]) -> bool:
    """Waits for work until it has ended or it is too late.

    Args:
      done: the future of the work.
      is_late: looked at again and again; true ends the wait.

    Returns:
      Whether the work has ended.
    """
    while not concurrent.futures.wait([done], _POLL_S).done:
        if is_late():
            return done.done()
    return True


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
    is_over, is_compiling = threading.Event(), threading.Event()

    def compile_alone() -> T:
        with _COMPILE_LOCK:
            is_compiling.set()
            if is_over.is_set():  # the generator was closed: nobody needs the result
                raise concurrent.futures.CancelledError
            return work()

    try:
        done = started(compile_alone if compiles else work)
        while not done.done():
            if is_compiling.is_set():
                concurrent.futures.wait([done], _COMPILE_WAIT_S)
            yield not is_compiling.is_set()
        return done.result()
    finally:
        is_over.set()


def without_holding_up(steps: Generator[object]) -> Generator[bool]:
    """The steps of a method; those that take long, because they compile, hold up no other method.

    The first step counts as a compilation (`in_thread`). Every later one has `_LONG_STEP_S`; after
    that time it goes on in its thread, and the other methods go on too.

    Args:
      steps: of the method. Its steps run in threads, one at a time.

    Yields:
      Whether the step only waited.
    """
    ended = object()
    first = yield from in_thread(lambda: next(steps, ended), compiles=True)
    is_over = first is ended
    while not is_over:
        yield False
        done = started(lambda: next(steps, ended))
        concurrent.futures.wait([done], _LONG_STEP_S)
        while not done.done():
            yield True
        is_over = done.result() is ended
