"""The baseline against the oracle's walk, to the letter."""

import dataclasses

import numpy as np

from jaxpart.cost.greedy import baseline
from jaxpart.problem.mcm import MCM, Chip, Constraints
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.strategies import random_graph

_CHIP = Chip(peak_flops=1e3, sram_bandwidth=1e3, sram_bytes=4e3)
_FULL = MCM("full", "chain", (_CHIP,) * 3, 1e3)
_MODULES = (
    _FULL,
    dataclasses.replace(_FULL, memory_model="weights", overlap=False),
    dataclasses.replace(_FULL, chips=(_CHIP, dataclasses.replace(_CHIP, speed=2.0), _CHIP)),
    dataclasses.replace(_FULL, topology="host", constraints=Constraints(triangle=False)),
)


def test_baseline_is_the_oracles():
    rng = np.random.default_rng(0)
    found = missing = 0
    for trial in range(160):
        module = _MODULES[trial % len(_MODULES)]
        # Capacities from roomy to hopeless, so that every branch of the walk is taken.
        room = float(rng.choice([300, 1000, 3000, 10000]))
        module = dataclasses.replace(
            module, chips=tuple(dataclasses.replace(c, sram_bytes=room) for c in module.chips)
        )
        graph = random_graph(rng, max_nodes=9, max_chips=3)
        expected = oracle.baseline(graph, module)
        actual = baseline(Problem.build(graph, module))
        if expected is None:
            missing += 1
            assert actual is None
        else:
            found += 1
            assert actual is not None
            assert list(expected) == actual.tolist()
    assert found >= 30
    assert missing >= 10
