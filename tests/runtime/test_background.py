"""Background work between the steps of a search: what waits for what."""

import threading

import jax
import pytest

from jaxpart.runtime.background import in_thread, started


def returned(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_steps_are_waits_except_while_its_own_work_compiles():
    may_end = threading.Event()
    beside = in_thread(lambda: may_end.wait(60.0))
    assert [next(beside) for _ in range(3)] == [True] * 3
    compiling = in_thread(lambda: may_end.wait(60.0), compiles=True)
    while next(compiling):  # until its thread has begun
        pass
    assert [next(compiling) for _ in range(3)] == [False] * 3
    assert next(in_thread(lambda: None, compiles=True)) is True  # behind the other
    may_end.set()
    assert returned(compiling) is True


def test_a_thread_has_the_default_device_of_who_starts_it():
    def chosen():
        return jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    assert started(chosen).result() is None
    with jax.default_device(jax.devices()[0]):
        assert started(chosen).result() is jax.devices()[0]


def test_what_the_work_gives_or_raises_comes_back():
    assert returned(in_thread(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        returned(in_thread(lambda: 1 // 0))


def test_one_compiles_after_the_other_and_not_for_nobody():
    may_end, ran = threading.Event(), []

    def first():
        ran.append("first")
        may_end.wait(60.0)

    def second():
        ran.append("second")

    holder = in_thread(first, compiles=True)
    next(holder)
    while not ran:
        next(holder)
    waiting, left = in_thread(second, compiles=True), in_thread(second, compiles=True)
    next(waiting)
    next(left)
    left.close()
    assert returned(in_thread(lambda: "at once")) == "at once"
    assert ran == ["first"]
    may_end.set()
    returned(holder)
    returned(waiting)
    # Whoever is served last comes after the one that was left.
    returned(in_thread(lambda: ran.append("last"), compiles=True))
    assert ran == ["first", "second", "last"]
