"""Which method takes the next step: one that gains goes on, the others share the time."""

import itertools
import math

import numpy as np
import pytest

from jaxpart.portfolio import _Bills, in_turn
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.runtime.state import Budget, Search
from tests.support.device import FakeDevice
from tests.support.graphs import ladder


class Counted(Search):
    """A search whose best is what a test says."""

    value = 1.0

    @property
    def best_s(self):
        return self.value


@pytest.fixture
def search():
    return Counted(Problem.build(ladder(), load_mcm("mcm4")), Budget(None, 1, 0.0), 0)


def logged(log, name, waits=None, gains=None, search=None):
    """Steps of a method that notes them; without end unless `gains` has one."""
    waits, gains = waits or itertools.repeat(False), gains or itertools.repeat(0.0)
    for is_waiting, gain in zip(waits, gains, strict=False):
        log.append(name)
        if search is not None:
            search.value *= math.exp(-gain)
        yield is_waiting


def steps(search, methods, count):
    for _ in itertools.islice(in_turn(search, methods), count):
        pass


def test_methods_without_gain_share_the_steps_once_they_have_begun(search):
    log = []
    names = ("clusters", "tempering", "slicing")
    steps(search, {name: logged(log, name) for name in names}, 400)

    shares = np.array([log[-120:].count(name) for name in names])
    np.testing.assert_array_equal(shares, 40)
    assert log.index("clusters") < log.index("tempering") < log.index("slicing")


def test_a_method_that_gains_goes_on_as_long_as_its_gains_pay_for_its_steps(search):
    log = []
    few = itertools.chain([0.2], itertools.repeat(0.0))
    methods = {
        "clusters": logged(log, "clusters"),
        "tempering": logged(log, "tempering", gains=few, search=search),
    }
    steps(search, methods, 400)

    first = log.index("tempering")
    # What it may be ahead at most: a tenth of a hundred steps.
    assert log[first : first + 10] == ["tempering"] * 10
    assert log[-40:].count("tempering") == 20


def test_gains_too_small_to_pay_do_not_keep_the_others_out(search):
    log = []
    tiny = itertools.repeat(1e-5)
    methods = {
        "clusters": logged(log, "clusters", gains=tiny, search=search),
        "tempering": logged(log, "tempering"),
    }
    steps(search, methods, 400)

    assert abs(log[-100:].count("tempering") - 50) <= 2


def test_a_method_that_waits_does_not_keep_the_others_out_nor_lose_its_next_step(search):
    log = []
    waits = itertools.chain(itertools.repeat(True, 5), itertools.repeat(False))
    methods = {
        "clusters": logged(log, "clusters"),
        "tempering": logged(log, "tempering", waits=waits),
    }
    steps(search, methods, 100)

    assert log.count("tempering") > 30
    asked = [i for i, name in enumerate(log) if name == "tempering"][:6]
    assert all(b - a <= 3 for a, b in itertools.pairwise(asked))


def test_a_method_that_ends_leaves_the_steps_to_the_others(search):
    log = []
    methods = {
        "clusters": logged(log, "clusters", gains=[0.0] * 3),
        "tempering": logged(log, "tempering"),
    }
    steps(search, methods, 50)

    assert log.count("clusters") == 3
    assert log[-20:] == ["tempering"] * 20


def test_without_methods_there_are_no_steps(search):
    assert list(in_turn(search, {})) == []


@pytest.fixture
def timed(search, monkeypatch):
    """A search with a time limit of 1,000 seconds on a device whose clock the test moves."""
    device = FakeDevice(monkeypatch)
    search.budget = Budget(1000.0, None, 0.0)
    search.device_time = device.time
    return search, device


def test_a_step_ahead_is_paid_by_the_method_that_gave_it(timed):
    search, device = timed
    lengths = {"clusters": 1.0, "tempering": 3.0, "slicing": 0.2}
    methods = {name: device.steps(name, s, 0.01) for name, s in lengths.items()}
    steps(search, methods, 3000)

    used_s = device.time.used_s()
    whole_s = device.now_s - 100  # until then not all have begun
    for name in lengths:
        assert used_s[name] == pytest.approx(device.now_s / 3, abs=100), (name, used_s)
    assert max(used_s.values()) - min(used_s.values()) < 100 + 2 * max(lengths.values())
    assert sum(used_s.values()) > 0.98 * whole_s


def test_work_of_the_host_is_paid_by_the_method_whose_turn_it_is(timed):
    search, device = timed
    paid = dict.fromkeys(("tempering", "slicing"), 0.0)

    def on_host():
        while True:
            before_s = device.now_s
            device.host(2.0)
            paid["slicing"] += device.now_s - before_s
            yield

    methods = {"tempering": device.steps("tempering", 1.0, 0.0), "slicing": on_host()}
    steps(search, methods, 600)

    # The device works a second of each two of the host: that second is paid by tempering.
    used_s = device.time.used_s()["tempering"]
    assert used_s == pytest.approx(device.now_s / 2, rel=0.1)


def test_bills_of_turns_add_up_to_the_time_that_passes(monkeypatch):
    device = FakeDevice(monkeypatch)
    bills, paid_s = _Bills(device.time), {}
    turns = [(name, device.steps(name, s, h)) for name, s, h in (("a", 3, 0.5), ("b", 0.25, 1))]
    for name, method in turns * 20:
        bills.begin()
        next(method)
        for owner, seconds in bills.end(name).items():
            paid_s[owner] = paid_s.get(owner, 0.0) + seconds

    assert sum(paid_s.values()) == pytest.approx(device.now_s)
    assert paid_s["a"] >= device.time.used_s()["a"]


def test_a_turn_that_only_waits_costs_nothing_but_what_the_device_does(monkeypatch):
    device = FakeDevice(monkeypatch)
    bills = _Bills(device.time)
    device.time.given("a", 2.0)
    bills.begin()
    device.host(5.0)

    assert bills.end(None) == {"a": 2.0}
