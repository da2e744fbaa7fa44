"""On an accelerator the next step is on the device before the host looks at the last one."""

import dataclasses

import pytest

from jaxpart.engine import partition
from jaxpart.methods.annealing import search as annealing
from jaxpart.methods.labels import search as labels
from jaxpart.methods.orders import prober
from jaxpart.methods.orders import search as orders
from jaxpart.methods.policy import search as policy
from jaxpart.problem.mcm import Constraints
from jaxpart.runtime.state import Search
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

GRAPH = parallel_chains(3, 6)
MODULE = dataclasses.replace(THREE_CHIPS, constraints=Constraints(memory=False))
# Per method: its module, the program that begins a step, the program's test of a real step (not one
# that only compiles), and where the host looks at a step.
METHODS = {
    "random": (labels, "evaluate", lambda args: True, (Search, "offer_batch")),
    "paper_annealing": (labels, "evaluate", lambda args: True, (Search, "offer_batch")),
    "policy": (policy, "play", lambda args: True, (Search, "offer_batch")),
    "slice": (orders, "survivors", lambda args: True, (orders, "_winners")),
    "slice, no triangle rule": (orders, "slice_orders", lambda args: True, (Search, "offer_batch")),
    "tempering": (annealing, "temper", lambda args: int(args[-1]) > 0, (annealing, "_offered")),
}


def events_of(method, ahead, monkeypatch):
    """What the host does, in order: "start" of a step on the device, "look" at its results."""
    module, program, is_step, (place, look) = METHODS[method]
    events = []

    def logged(function, event, is_event=lambda args: True):
        def call(*args, **kwargs):
            if is_event(args):
                events.append(event)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(module, "steps_ahead", lambda: ahead)
    monkeypatch.setattr(module, program, logged(getattr(module, program), "start", is_step))
    monkeypatch.setattr(place, look, logged(getattr(place, look), "look"))
    # Enough for a few steps; a run of annealing has a hundred times as many.
    samples = {"tempering": 20_000, "policy": 400}.get(method, 3000)
    rules = dataclasses.replace(MODULE.constraints, triangle="no triangle" not in method)
    result = partition(
        GRAPH,
        dataclasses.replace(MODULE, constraints=rules),
        method=method.split(",")[0],
        policy="fresh",
        max_samples=samples,
        time_limit_s=None,
        relative_gap=0.0,
    )
    assert result.costs.valid
    return events


def lead_of(events):
    """How many steps are on the device and not looked at, when the host looks; least and most."""
    looks = [i for i, event in enumerate(events) if event == "look"]
    assert len(looks) > 2
    leads = [events[:i].count("start") - number for number, i in enumerate(looks)]
    return min(leads), max(leads)


@pytest.mark.parametrize("method", ["random", "slice", "tempering"])
def test_on_a_cpu_the_host_looks_at_each_step_at_once(method, monkeypatch):
    assert lead_of(events_of(method, 0, monkeypatch)) == (1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_on_an_accelerator_another_step_is_on_the_device_by_then(method, monkeypatch):
    events = events_of(method, 1, monkeypatch)

    if method == "paper_annealing":  # nothing can start before the first partitions are costed
        events = events[2:]
    assert lead_of(events) == (2, 2)


@pytest.mark.parametrize(
    ("method", "module", "question"),
    [
        ("random", labels, "candidates_per_step"),
        ("paper_annealing", labels, "candidates_per_step"),
        ("slice", prober, "batch_within"),
    ],
)
def test_asking_the_device_counts_as_compilation(method, module, question, monkeypatch):
    phases, entered = [], []
    enter, ask = Search.enter, getattr(module, question)
    monkeypatch.setattr(
        Search, "enter", lambda search, phase: entered.append(phase) or enter(search, phase)
    )
    monkeypatch.setattr(module, question, lambda *args: phases.append(entered[-1]) or ask(*args))

    partition(GRAPH, MODULE, method=method, max_samples=600, time_limit_s=None, relative_gap=0.0)

    assert phases == ["compiling"]
