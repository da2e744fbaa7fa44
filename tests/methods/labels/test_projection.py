"""Projection: valid whatever comes in, unchanged where it was, and near the exact nearest."""

import itertools
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpart.cost import device
from jaxpart.cost.device import lower, pad_assignments
from jaxpart.cost.greedy import baseline
from jaxpart.methods.labels.projection import project
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import PRESETS
from jaxpart.problem.problem import Problem
from jaxpart.solvers.minimum_cut import nearest_span
from tests.support import oracle
from tests.support.strategies import graphs, random_graph, random_mcm

BERT = Path(__file__).parents[3] / "data" / "graphs" / "bert-large.json.gz"

# All rules; dataflow and no-skip; dataflow alone; no-skip alone.
MODULES = {
    "all": random_mcm(np.random.default_rng(0), num_chips=3, topology="chain"),
    "dataflow, no-skip": random_mcm(np.random.default_rng(8), num_chips=3, topology="host"),
    "dataflow": random_mcm(np.random.default_rng(1), num_chips=3, topology="host"),
    "no-skip": random_mcm(np.random.default_rng(4), num_chips=3, topology="host"),
}
EVERY = np.array(list(itertools.product(range(3), repeat=5))).T  # [5, 243]


def rules_of(mcm):
    return [rule for rule in oracle.rules_on(mcm) if rule != "memory"]


def in_set(graph, mcm, f):
    """Whether f keeps the rules that projection works with: span for the triangle rule."""
    if mcm.constraints.triangle and any(f[v] - f[u] > 1 for u, v in oracle.edges_of(graph)):
        return False
    return all(oracle.keeps(rule, graph, mcm, f) for rule in rules_of(mcm))


def projected(problem, y):
    """What `project` returns; its two forms return the same."""
    lowered, on_arrays = lower(problem, form="rows"), lower(problem, form="arrays")
    padded = pad_assignments(lowered, y)
    f, holds = project(lowered, padded)
    chex.assert_trees_all_equal(project(on_arrays, padded), (f, holds))
    return np.asarray(f)[: problem.num_nodes], np.asarray(holds)


def test_modules_are_what_they_are_called():
    config = {
        name: (m.constraints.acyclic, m.constraints.no_skip, m.constraints.triangle)
        for name, m in MODULES.items()
    }

    assert config == {
        "all": (True, True, True),
        "dataflow, no-skip": (True, True, False),
        "dataflow": (True, False, False),
        "no-skip": (False, True, False),
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_label_vector_of_small_graphs_becomes_valid_and_valid_ones_stay(name):
    mcm, rng = MODULES[name], np.random.default_rng(0)
    for _ in range(12):
        graph = random_graph(rng, num_nodes=5, max_chips=3, shared_weights=False)
        was_good = np.array([in_set(graph, mcm, f) for f in EVERY.T.tolist()])
        f, holds = projected(Problem.build(graph, mcm), EVERY)

        # Where pins leave nothing, nothing is claimed; where they leave something, it is found.
        assert holds.all() if was_good.any() else not holds.any()
        if was_good.any():
            assert all(in_set(graph, mcm, g) for g in f.T.tolist())
        np.testing.assert_array_equal(f[:, was_good], EVERY[:, was_good])


@pytest.mark.parametrize("name", ["all", "dataflow, no-skip"])
@settings(max_examples=20)
@given(data=st.data())
def test_what_leaves_keeps_all_rules(name, data):
    mcm = MODULES[name]
    graph = data.draw(graphs(max_nodes=12, max_chips=3, shared_weights=False))
    seed = data.draw(st.integers(0, 2**16))
    y = np.random.default_rng(seed).integers(0, 3, (len(graph.nodes), EVERY.shape[1]))

    f, holds = projected(Problem.build(graph, mcm), y)

    for b in np.flatnonzero(holds)[:8]:
        assert in_set(graph, mcm, f[:, b].tolist())
    if all(node.pin is None for node in graph.nodes):
        assert holds.all()
    again, _ = projected(Problem.build(graph, mcm), f)
    np.testing.assert_array_equal(again[:, holds], f[:, holds])


def test_on_small_graphs_it_is_near_the_exact_nearest():
    mcm, rng = MODULES["all"], np.random.default_rng(1)
    moved = nearest = 0
    for _ in range(10):
        graph = random_graph(rng, num_nodes=5, max_chips=3, shared_weights=False, pins=False)
        f, _ = projected(Problem.build(graph, mcm), EVERY)
        good = np.array([g for g in EVERY.T if in_set(graph, mcm, g.tolist())])
        distances = np.abs(good[:, :, None] - EVERY[None]).sum(axis=1)
        moved += np.abs(f - EVERY).sum()
        nearest += distances.min(axis=0).sum()

    assert nearest <= moved <= 1.2 * nearest


def nearest_by_cut(problem, y):
    found = [nearest_span(problem, column) for column in y.T]
    return np.stack([f for f in found if f is not None], axis=1)


@pytest.fixture(scope="module")
def bert():
    problem = Problem.build(Graph.load(BERT), PRESETS["mcm36"]())
    return problem, baseline(problem)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_with_labels_of_a_good_bert_partition_randomised_it_is_near_the_cut(bert, share):
    problem, good = bert
    rng = np.random.default_rng(0)
    y = np.repeat(good[:, None], 16, axis=1)
    is_noise = rng.random(y.shape) < share
    y[is_noise] = rng.integers(0, 36, is_noise.sum())

    f, holds = projected(problem, y)

    assert holds.all()
    cut = nearest_by_cut(problem, y)
    moved, least = np.abs(f - y).sum(axis=0), np.abs(cut - y).sum(axis=0)
    assert (moved <= 1.5 * least).all()
    graph, mcm = problem.graph, problem.mcm
    assert in_set(graph, mcm, f[:, 0].tolist())


def test_uniform_labels_on_bert_become_valid_and_near_the_cut(bert):
    problem, _ = bert
    y = np.random.default_rng(0).integers(0, 36, (problem.num_nodes, 16))

    f, holds = projected(problem, y)

    assert holds.all()
    assert all(in_set(problem.graph, problem.mcm, g) for g in f.T.tolist())
    cut = nearest_by_cut(problem, y[:, :4])
    assert np.abs(f - y)[:, :4].sum() <= 1.1 * np.abs(cut - y[:, :4]).sum()


def test_padding_and_other_candidates_change_nothing(monkeypatch):
    graph = random_graph(np.random.default_rng(3), num_nodes=5, max_chips=3, shared_weights=False)
    problem = Problem.build(graph, MODULES["all"])
    f, _ = projected(problem, EVERY)
    beside, _ = projected(problem, np.where(np.arange(243) % 2 == 0, EVERY, 0))
    monkeypatch.setattr(device, "bucket_size", lambda count: 128)

    larger, _ = projected(problem, EVERY)

    np.testing.assert_array_equal(beside[:, ::2], f[:, ::2])
    np.testing.assert_array_equal(larger, f)


def test_a_second_graph_of_the_same_bucket_compiles_nothing():
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(project.__wrapped__, n=1))  # pyright: ignore
    rng = np.random.default_rng(0)

    for nodes in (5, 9):
        graph = random_graph(rng, num_nodes=nodes, max_chips=3, shared_weights=False)
        lowered = lower(Problem.build(graph, MODULES["all"]))
        once(lowered, pad_assignments(lowered, rng.integers(0, 3, (nodes, 8))))
