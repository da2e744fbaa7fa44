"""The batched cost model against the oracle: every figure, every verdict."""

import dataclasses
import itertools
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxpart.cost import device
from jaxpart.cost.device import Form, lower, pad_assignments
from jaxpart.cost.evaluate import evaluate, verify
from jaxpart.cost.kernel_gate import unchecked_version
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import PRESETS
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.strategies import random_assignment, random_graph, random_mcm

BERT = Path(__file__).parents[2] / "data" / "graphs" / "bert-large.json.gz"
GRAPHS = 10
BATCH = 8

# Topology, chips, seed: between them every switch both ways, unlike chips, and chip sets of
# more than one word.
MODULES = (
    ("chain", 4, 0),
    ("chain", 4, 6),
    ("chain", 40, 6),
    ("host", 3, 1),
    ("host", 4, 4),
    ("mesh", 4, 1),
    ("mesh", 6, 8),
)

FIGURES = ("compute_s", "in_s", "out_s", "stage_s", "memory_bytes")


def module(topology, chips, seed):
    return random_mcm(np.random.default_rng(seed), num_chips=chips, topology=topology)


FORMS: tuple[Form, ...] = ("rows", "arrays")
KERNEL: tuple[Form, ...] = () if unchecked_version() else ("kernel",)


def problems(mcm, count=GRAPHS, seed=0, max_nodes=8, form: Form = "rows"):
    """Random graphs on one module that share a compilation, with a batch of partitions each."""
    rng = np.random.default_rng(seed)
    config = None
    while count:
        graph = random_graph(rng, max_nodes, len(mcm.chips))
        problem = Problem.build(graph, mcm)
        lowered = lower(problem, form=form)
        config = config or lowered.config
        if lowered.config != config:
            continue
        f = np.array([random_assignment(rng, graph, mcm) for _ in range(BATCH)]).T
        count -= 1
        yield graph, problem, lowered, f


def assert_equal_to_oracle(costs, graph, mcm, f, rtol):
    for b in range(f.shape[1]):
        expected = oracle.evaluate(graph, mcm, f[:, b].tolist())
        for name in FIGURES:
            got = np.asarray(getattr(costs, name))[:, b]
            np.testing.assert_allclose(got, getattr(expected, name), rtol, 0, err_msg=name)
        link_s = [expected.busy_s[link] for link in mcm.links]
        np.testing.assert_allclose(np.asarray(costs.link_s)[:, b], link_s, rtol, 0)
        np.testing.assert_allclose(costs.bottleneck_s[b], expected.bottleneck_s, rtol, 0)
        assert costs.chips_used[b] == len(set(f[:, b].tolist()))
        sent = sum(
            sum(oracle.sent_bytes(oracle.rescaled(graph, mcm), f[:, b].tolist(), c))
            for c in range(len(mcm.chips))
        )
        np.testing.assert_allclose(costs.sent_bytes[b], sent, rtol, 0)
        for rule in oracle.RULES:
            # The triangle rule is stated for chip graphs without cycles.
            if rule != "triangle" or expected.acyclic:
                assert bool(getattr(costs, rule)[b]) == getattr(expected, rule), rule
        assert bool(costs.valid[b]) == expected.valid


@pytest.mark.parametrize("spec", MODULES, ids=str)
def test_float64_figures_and_verdicts_equal_the_oracles(spec):
    mcm = module(*spec)
    for graph, problem, _, f in problems(mcm):
        assert_equal_to_oracle(verify(problem, f), graph, mcm, f, 1e-12)


@pytest.mark.parametrize(
    ("spec", "form"),
    [(spec, "rows") for spec in MODULES[::2]]
    + [(spec, "arrays") for spec in MODULES]
    + [(spec, form) for spec in MODULES[::2] for form in KERNEL],
    ids=str,
)
def test_float32_figures_are_within_a_hundred_thousandth(spec, form):
    mcm = module(*spec)
    for graph, _, lowered, f in problems(mcm, seed=1, form=form):
        costs = evaluate(lowered, pad_assignments(lowered, f))
        assert_equal_to_oracle(costs, graph, mcm, f, 1e-5)


def test_modules_cover_every_switch_both_ways():
    modules = [module(*spec) for spec in MODULES]

    for rule in ("acyclic", "no_skip", "triangle", "memory"):
        assert {getattr(mcm.constraints, rule) for mcm in modules} == {True, False}, rule
    assert {mcm.overlap for mcm in modules} == {True, False}
    assert {mcm.memory_model for mcm in modules} == {"full", "weights"}
    assert {len(set(mcm.chips)) > 1 for mcm in modules} == {True, False}


@pytest.mark.parametrize("form", FORMS + KERNEL)
def test_padding_changes_nothing(monkeypatch, form):
    mcm = module("chain", 4, 0)
    _, problem, lowered, f = next(problems(mcm, form=form))
    costs = evaluate(lowered, pad_assignments(lowered, f))
    monkeypatch.setattr(device, "bucket_size", lambda count: 256)

    larger = lower(problem, form=form)
    padded = pad_assignments(larger, f)
    padded[problem.num_nodes :] = 3  # what stands in padding rows does not matter

    chex.assert_trees_all_equal(evaluate(larger, padded), costs)


@pytest.mark.parametrize("form", FORMS + KERNEL)
def test_a_candidate_costs_the_same_alone_and_in_a_batch(form):
    mcm = module(*MODULES[0])
    _, _, lowered, f = next(problems(mcm, form=form))
    padded = pad_assignments(lowered, f)
    batch = evaluate(lowered, padded)

    alone = [evaluate(lowered, padded[:, b : b + 1]) for b in range(BATCH)]

    together = jax.tree.map(lambda *columns: np.concatenate(columns, axis=-1), *alone)
    chex.assert_trees_all_equal(together, batch)


@pytest.mark.parametrize("form", FORMS + KERNEL)
def test_a_second_graph_of_the_same_bucket_compiles_nothing(form):
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(evaluate.__wrapped__, n=1))  # pyright: ignore

    for _, _, lowered, f in problems(module("chain", 4, 0), count=4, form=form):
        once(lowered, pad_assignments(lowered, f))


@pytest.mark.parametrize("spec", [("chain", 3, 0), ("host", 3, 1)], ids=str)
def test_the_best_of_all_partitions_is_the_oracles_best(spec):
    mcm = module(*spec)
    every = np.array(list(itertools.product(range(3), repeat=4))).T
    rng = np.random.default_rng(0)
    for _ in range(8):
        graph = random_graph(rng, num_nodes=4, max_chips=3, num_weights=0)
        costs = verify(Problem.build(graph, mcm), every)
        expected = oracle.best(graph, mcm)
        if expected is None:
            assert not costs.valid.any()
            continue
        best = costs.bottleneck_s[costs.valid].min()
        assert best == pytest.approx(expected[0], rel=1e-12)
        is_best = costs.valid & (costs.bottleneck_s <= best * (1 + 1e-12))
        assert {tuple(f) for f in every[:, is_best].T.tolist()} == set(expected[1])


def test_bert_large_costs_what_the_oracle_says():
    graph, mcm = Graph.load(BERT), PRESETS["mcm36"]()
    rng = np.random.default_rng(0)
    share = np.arange(len(graph.nodes)) * 36 // len(graph.nodes)
    f = np.clip(share + rng.integers(-1, 2, share.shape), 0, 35)[:, None]

    assert_equal_to_oracle(verify(Problem.build(graph, mcm), f), graph, mcm, f, 1e-12)


def test_bert_large_costs_the_same_on_whole_arrays():
    graph, mcm = Graph.load(BERT), PRESETS["mcm36"]()
    rng = np.random.default_rng(1)
    share = np.arange(len(graph.nodes)) * 36 // len(graph.nodes)
    near = [np.clip(share + rng.integers(-1, 2, share.shape), 0, 35) for _ in range(2)]
    f = np.stack([*near, share], axis=1)

    lowered = lower(Problem.build(graph, mcm), form="arrays")
    assert_equal_to_oracle(evaluate(lowered, pad_assignments(lowered, f)), graph, mcm, f, rtol=1e-5)


@pytest.mark.parametrize(
    ("topology", "chips", "nodes"),
    [("chain", 1024, 6000), ("mesh", 256, 1500), ("host", 130, 1500)],
)
def test_both_forms_agree_on_large_problems(topology, chips, nodes):
    rng = np.random.default_rng(2)
    graph = random_graph(rng, num_nodes=nodes, max_chips=chips, num_tensors=nodes, pins=False)
    mcm = random_mcm(rng, num_chips=chips, topology=topology)
    full = dataclasses.replace(mcm, memory_model="full")
    problem = Problem.build(graph, full)
    rise = np.sort(rng.integers(0, chips, nodes))
    f = np.stack([rise, rng.integers(0, chips, nodes), rise // 2], axis=1)

    costs = [
        evaluate(lowered, pad_assignments(lowered, f))
        for lowered in (lower(problem, form=form) for form in FORMS)
    ]

    assert costs[0].acyclic.tolist() == [True, False, True]
    chex.assert_trees_all_close(*costs, rtol=1e-5)
