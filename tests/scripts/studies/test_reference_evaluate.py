"""The compiled scalar loop that the benchmark measures against: equal to what decides."""

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxpart.cost.device import lower
from jaxpart.cost.evaluate import verify
from jaxpart.problem.problem import Problem
from tests.support.strategies import random_assignment, random_graph, random_mcm

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
import reference_evaluate

FIGURES = (
    "bottleneck_s",
    "compute_s",
    "in_s",
    "out_s",
    "stage_s",
    "link_s",
    "memory_bytes",
    "sent_bytes",
)
VERDICTS = ("acyclic", "no_skip", "triangle", "memory", "colocation", "fixed_chips", "valid")
# Topology, chips, seed: between them every rule both ways, and chip sets of more than one word.
MODULES = (("chain", 4, 0), ("chain", 70, 6), ("host", 4, 4), ("mesh", 6, 8))


@pytest.mark.parametrize("spec", MODULES, ids=str)
def test_every_figure_and_verdict_equals_those_of_verify(spec):
    topology, chips, seed = spec
    mcm = random_mcm(np.random.default_rng(seed), num_chips=chips, topology=topology)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(12):
        # Some weight is shared in all of them: one compilation of `verify`.
        graph = random_graph(rng, 10, chips, num_weights=8)
        problem = Problem.build(graph, mcm)
        if not lower(problem).config.shared_weights:
            continue
        f = np.array([random_assignment(rng, graph, mcm) for _ in range(16)]).T
        expected = verify(problem, f)

        got = reference_evaluate.evaluate(reference_evaluate.tables(problem), f.T)

        for name in FIGURES:
            np.testing.assert_allclose(getattr(got, name).T, getattr(expected, name), 1e-12, 0)
        for name in ("chips_used", *VERDICTS):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), name)
        seen |= {(name, bool(v)) for name in VERDICTS for v in getattr(got, name)}
    # Verdicts were put to the test both ways.
    assert {("acyclic", True), ("acyclic", False), ("valid", False)} <= seen


def test_a_skipped_chip_is_told_from_a_longer_path_between_two_chips():
    mcm = random_mcm(np.random.default_rng(0), num_chips=3, topology="host")
    graph = random_graph(np.random.default_rng(3), num_nodes=6, num_tensors=8, max_chips=3)
    problem = Problem.build(graph, mcm)
    every = np.stack(np.meshgrid(*[np.arange(3)] * 6, indexing="ij")).reshape(6, -1)

    got = reference_evaluate.evaluate(reference_evaluate.tables(problem), every.T)

    np.testing.assert_array_equal(got.triangle, verify(problem, every).triangle)
    assert (got.acyclic & ~got.triangle).any()
