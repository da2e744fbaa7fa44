"""Which method takes the next step: one that gains goes on, the others share the time."""

import itertools
import math

import numpy as np
import pytest

from jaxpart.portfolio import in_turn
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.runtime.state import Budget, Search
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
