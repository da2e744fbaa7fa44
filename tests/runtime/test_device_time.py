"""The time that a device works for each method, by a clock that the tests move."""

import jax.numpy as jnp
import pytest

from jaxpart.runtime import device_time
from jaxpart.runtime.device_time import DeviceTime
from tests.support.device import FakeDevice


def seconds(step):
    assert step is not None
    return step.seconds()


def test_a_step_lasts_from_the_end_of_the_one_before_to_its_own(monkeypatch):
    device = FakeDevice(monkeypatch)
    first, second = device.time.given("a", 2.0), device.time.given("b", 5.0)
    device.host(3.0)

    assert device.time.used_s() == {"a": 2.0, "b": 1.0}
    device.host(5.0)
    assert (seconds(first), seconds(second)) == (2.0, 5.0)
    assert device.time.used_s() == {"a": 2.0, "b": 5.0}


def test_a_device_with_nothing_to_do_works_for_nobody(monkeypatch):
    device = FakeDevice(monkeypatch)
    device.time.given("a", 1.0)
    device.host(10.0)
    later = device.time.given("a", 1.0)
    device.host(2.0)

    assert seconds(later) == 1.0
    assert device.time.used_s() == {"a": 2.0}


def test_a_step_of_many_programs_lasts_from_the_first_one_on(monkeypatch):
    device = FakeDevice(monkeypatch)
    device.host(1.0)
    step = device.time.given("a", 4.0, since_s=0.5)
    device.host(4.0)

    assert seconds(step) == 4.5


def test_the_end_of_a_step_is_the_end_of_all_before_it(monkeypatch):
    monkeypatch.setattr(device_time, "steps_ahead", lambda: 1)
    now, ends = [0.0], []
    times = DeviceTime(lambda result, then: ends.append(then), lambda: now[0])
    steps = [times.given(name, None) for name in "ab"]
    now[0] = 3.0
    ends[1]()  # threads may be late
    ends[0]()

    assert [seconds(step) for step in steps] == [3.0, 0.0]
    assert times.used_s() == {"a": 3.0, "b": 0.0}


def test_the_end_of_a_real_result_is_seen(monkeypatch):
    monkeypatch.setattr(device_time, "steps_ahead", lambda: 1)
    times = DeviceTime()
    step = times.given("a", jnp.arange(4.0) + 1)

    assert 0 <= seconds(step) < 60
    assert times.used_s() == {"a": pytest.approx(seconds(step))}


def test_on_a_cpu_nothing_is_watched():
    times = DeviceTime(lambda result, then: pytest.fail("watched"))

    assert times.given("a", None) is None
    assert times.used_s() == {}
