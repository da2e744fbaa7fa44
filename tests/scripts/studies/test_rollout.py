"""Which samples of a round the rollout study sends to repair."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import rollout

from jaxpart.cost.device import lower, pad_assignments
from jaxpart.cost.evaluate import evaluate
from jaxpart.methods.policy.rollout import Rollout
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support.graphs import line
from tests.support.oracle import keeps, rescaled, rules_on


def test_the_fastest_samples_that_break_memory_alone_are_repaired():
    graph = line([4e9, 1e9, 2e9, 3e9], [1, 1, 1], [8, 8, 8, 8])
    mcm = load_mcm("mcm4")
    chips = tuple(dataclasses.replace(chip, sram_bytes=18.0) for chip in mcm.chips)
    mcm = dataclasses.replace(mcm, chips=chips, element_bytes=graph.element_bytes)
    problem = Problem.build(graph, mcm)
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 3, (4, 64)), axis=0)
    device = lower(problem)
    assignments = jnp.asarray(pad_assignments(device, labels))
    costs = evaluate(device, assignments)
    empty = jnp.zeros(0)
    made = Rollout(empty, empty, assignments, costs, empty)  # pyright: ignore

    found = rollout._overflowing(problem, made, 5)

    scaled = rescaled(graph, mcm)
    wanted = {
        tuple(f)
        for f in labels.T.tolist()
        if not keeps("memory", scaled, mcm, f)
        and all(keeps(rule, scaled, mcm, f) for rule in rules_on(mcm) if rule != "memory")
    }
    assert 0 < len(found) <= 5
    assert {tuple(f) for f in found.tolist()} <= wanted
    times = [evaluate(device, pad_assignments(device, f[:, None])).bottleneck_s[0] for f in found]
    assert times == sorted(times)
    others = [f for f in wanted if f not in {tuple(f) for f in found.tolist()}]
    slowest = max(times)
    for f in others:
        column = pad_assignments(device, np.array(f)[:, None])
        assert evaluate(device, column).bottleneck_s[0] >= slowest
