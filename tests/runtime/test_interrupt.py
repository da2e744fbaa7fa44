"""Ctrl-C from Python: the best so far is returned, or nothing is, and no handler stays behind."""

import signal
import threading

import numpy as np
import pytest

from jaxpart.engine import partition
from jaxpart.runtime.interrupt import deferred_interrupt
from jaxpart.runtime.state import AbandonedError
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS
from tests.support.workers import TIMEOUT_S


def interrupt_when(condition, times=1):
    """A progress callback that presses Ctrl-C, the first time that the condition holds."""
    pressed = []

    def callback(progress):
        if condition(progress) and not pressed:
            pressed.append(progress)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return callback


@pytest.mark.parametrize("times", [1, 2])
def test_once_something_is_found_it_is_returned(times):
    pressed = interrupt_when(lambda progress: progress.best_s is not None, times)
    result = partition(
        parallel_chains(3, 12), THREE_CHIPS, method="slice", time_limit_s=None, callback=pressed
    )
    assert result.search.interrupted
    assert result.costs.valid
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("times", [1, 2])
def test_before_anything_is_found_no_step_is_waited_for(times):
    is_over = threading.Event()
    press = interrupt_when(lambda _: True, times)

    def callback(progress):
        press(progress)
        is_over.wait(TIMEOUT_S)

    with pytest.raises(KeyboardInterrupt):
        partition(parallel_chains(3, 12), THREE_CHIPS, time_limit_s=None, callback=callback)
    is_over.set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ends_by", ["limit", "interrupt", "second interrupt"])
def test_a_long_step_holds_up_neither_the_time_limit_nor_an_interrupt(ends_by):
    is_over, told, unwound = threading.Event(), [], threading.Event()

    def method(search):
        search.offer(np.zeros((36, 1), int))
        yield
        for _ in range({"limit": 0, "interrupt": 1, "second interrupt": 2}[ends_by]):
            signal.raise_signal(signal.SIGINT)
        assert is_over.wait(TIMEOUT_S)
        told.clear()
        try:
            search.offer(np.repeat([0, 1, 2], 12)[:, None])  # better, but too late
        except AbandonedError:
            unwound.set()
            raise

    result = partition(
        parallel_chains(3, 12),
        THREE_CHIPS,
        method=method,
        time_limit_s=0.5 if ends_by == "limit" else None,
        relative_gap=0.0,
        callback=told.append,
    )
    found = result.assignment.copy()
    is_over.set()
    assert unwound.wait(TIMEOUT_S)
    assert result.search.interrupted == (ends_by != "limit")
    assert result.costs.valid
    assert not told
    np.testing.assert_array_equal(result.assignment, found)


def test_a_program_that_handles_interrupts_itself_keeps_its_handler():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with deferred_interrupt() as interrupts:
            signal.raise_signal(signal.SIGINT)
        assert seen
        assert not interrupts.event.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
