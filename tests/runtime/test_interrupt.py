"""Ctrl-C from Python: the best so far is returned, or nothing is, and no handler stays behind."""

import signal

import pytest

from jaxpart.engine import partition
from jaxpart.runtime.interrupt import deferred_interrupt
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS


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


def test_before_anything_is_found_the_second_press_is_not_waited_for():
    with pytest.raises(KeyboardInterrupt):
        partition(
            parallel_chains(3, 12),
            THREE_CHIPS,
            time_limit_s=None,
            callback=interrupt_when(lambda _: True, 2),
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_interrupts_itself_keeps_its_handler():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with deferred_interrupt() as interrupted:
            signal.raise_signal(signal.SIGINT)
        assert seen
        assert not interrupted.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
