"""The baseline against the oracle's walk, to the letter."""

import dataclasses

import numpy as np

from jaxpart.greedy import baseline, peak_bytes
from jaxpart.mcm import MCM, Chip, Constraints
from jaxpart.problem import Problem
from tests import oracle
from tests.strategies import random_graph

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


def test_peak_of_a_chip_is_the_oracles():
    rng = np.random.default_rng(1)
    module = dataclasses.replace(_FULL, constraints=Constraints(triangle=False, no_skip=False))
    for _ in range(60):
        graph = random_graph(rng, max_nodes=8, max_chips=3)
        problem = Problem.build(graph, module)
        assignment = np.sort(rng.integers(0, 3, problem.num_nodes))
        full = oracle.evaluate(graph, module, assignment.tolist())
        for chip in range(3):
            nodes = np.flatnonzero(assignment == chip)
            weights = sum(w.bytes for w in problem.graph.weights if set(w.consumers) & set(nodes))
            boundary = 2 * module.link_bandwidth * (full.in_s[chip] + full.out_s[chip])
            expected = full.memory_bytes[chip] - weights - boundary
            np.testing.assert_allclose(peak_bytes(problem, nodes), expected, atol=1e-6)
