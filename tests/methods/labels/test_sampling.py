"""The two solver modes: what comes out is valid, drawn from what was asked for, and repeatable."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.device import lower, pad_assignments
from jaxpart.cost.evaluate import evaluate
from jaxpart.methods.labels.sampling import fix, sample, sample_lanes
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import MCM, PRESETS, Chip, Constraints
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.strategies import random_graph, random_mcm

BERT = Path(__file__).parents[3] / "data" / "graphs" / "bert-large.json.gz"
CHAIN = random_mcm(np.random.default_rng(0), num_chips=3, topology="chain")  # all rules
HOST = random_mcm(np.random.default_rng(8), num_chips=3, topology="host")  # no triangle rule


def free_skips(chips):
    """A chain that may skip chips, so that chips stay as they were drawn."""
    rules = Constraints(no_skip=False)
    return MCM("free", "chain", (Chip(1e3, 1e3, 1e6),) * chips, 1e3, True, constraints=rules)


def chain(nodes):
    tensors = tuple(Tensor(v, 1, (v + 1,)) for v in range(nodes - 1))
    return Graph(tuple(Node(f"n{v}", "op", 1, 1) for v in range(nodes)), tensors, (), "chain")


def drawn(problem, key=0, log_probs=None, batch=64):
    """What `sample` returns; its two forms return the same."""
    f = sample(lower(problem, form="rows"), jax.random.key(key), log_probs, batch)
    on_arrays = sample(lower(problem, form="arrays"), jax.random.key(key), log_probs, batch)
    np.testing.assert_array_equal(on_arrays, f)
    return np.asarray(f)[: problem.num_nodes]


def keeps_all(graph, mcm, f):
    rules = [rule for rule in oracle.rules_on(mcm) if rule != "memory"]
    return all(oracle.keeps(rule, graph, mcm, f) for rule in rules)


def span_set(graph, mcm):
    """All partitions that keep the rules and go one chip at most along an edge."""
    every = itertools.product(range(len(mcm.chips)), repeat=len(graph.nodes))
    edges = oracle.edges_of(graph)
    return {
        f for f in every if all(f[v] - f[u] <= 1 for u, v in edges) and keeps_all(graph, mcm, f)
    }


def noisy_log_probs(graph, chips, seed=0):
    size = lower(Problem.build(graph, free_skips(chips))).padded_nodes
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, (size, chips)), jnp.float32)


@pytest.mark.parametrize(
    ("mcm", "is_uniform"), [(CHAIN, True), (HOST, False)], ids=["chain, uniform", "host, policy"]
)
def test_samples_keep_all_rules(mcm, is_uniform):
    rng = np.random.default_rng(0)
    count = 0
    while count < 12:
        graph = random_graph(rng, num_nodes=6, max_chips=3, shared_weights=False)
        if not span_set(graph, mcm):
            continue  # pins that leave nothing
        count += 1
        log_probs = None if is_uniform else noisy_log_probs(graph, 3, count)
        for f in drawn(Problem.build(graph, mcm), count, log_probs).T.tolist():
            assert keeps_all(graph, mcm, f)


@pytest.mark.parametrize("mcm", [free_skips(3), CHAIN], ids=["skips", "no skips"])
def test_every_partition_within_the_span_rule_can_be_drawn(mcm):
    nodes = tuple(Node(f"n{v}", "op", 1, 1) for v in range(5))
    # Two branches of unlike length that meet again, and a node apart.
    tensors = (Tensor(0, 1, (1, 3)), Tensor(1, 1, (2,)), Tensor(2, 1, (3,)))
    graph = Graph(nodes, tensors, (), "branches")
    problem = Problem.build(graph, mcm)

    found = {tuple(f) for key in range(4) for f in drawn(problem, key, batch=2048).T.tolist()}

    assert found == span_set(graph, mcm)


def test_a_node_alone_is_drawn_from_its_distribution():
    graph, mcm = chain(1), free_skips(4)
    shares = np.array([0.5, 0.25, 0.25 - 1e-6, 1e-6])
    log_probs = jnp.full((64, 4), jnp.log(shares), jnp.float32) + 7.0  # any constant

    f = drawn(Problem.build(graph, mcm), 0, log_probs, batch=8192)

    np.testing.assert_allclose(np.bincount(f[0], minlength=4) / 8192, shares, atol=0.02)


def test_two_joined_nodes_are_drawn_one_after_the_other():
    graph, mcm = chain(2), free_skips(3)
    given = np.zeros((2, 3, 3))  # [first node drawn, chip of node 0, chip of node 1]
    for c in range(3):
        possible = [d for d in (c, c + 1) if d < 3]
        given[0, c, possible] = 1 / 3 / len(possible)
        possible = [d for d in (c - 1, c) if d >= 0]
        given[1, possible, c] = 1 / 3 / len(possible)

    for key in range(4):
        f = drawn(Problem.build(graph, mcm), key, batch=2048)
        counts = np.zeros((3, 3))
        np.add.at(counts, (f[0], f[1]), 1 / 2048)
        # Either is the first in half of the candidates.
        np.testing.assert_allclose(counts, given.mean(axis=0), atol=0.04)


def test_what_is_almost_ruled_out_is_still_drawn_where_nothing_else_is_possible():
    # Node 0 is on chip 0 for sure, so node 1 is on 0 or 1, both of which its policy all but
    # forbids.
    graph = Graph(
        (Node("n0", "op", 1, 1, pin=0), Node("n1", "op", 1, 1)), (Tensor(0, 1, (1,)),), (), "two"
    )
    log_probs = jnp.tile(jnp.log(jnp.array([[2e-30, 1e-30, 1.0, 0.0]])), (64, 1))

    f = drawn(Problem.build(graph, free_skips(4)), 0, log_probs, batch=8192)

    np.testing.assert_allclose(
        np.bincount(f[1], minlength=4) / 8192, [2 / 3, 1 / 3, 0, 0], atol=0.02
    )


def test_distributions_may_differ_from_candidate_to_candidate():
    graph = chain(3)
    wanted = np.random.default_rng(0).integers(0, 4, 32)
    log_probs = jnp.log(jnp.tile(jax.nn.one_hot(wanted, 4).T[None], (64, 1, 1)))  # [N, C, B]

    f = drawn(Problem.build(graph, free_skips(4)), 0, log_probs, batch=32)

    np.testing.assert_array_equal(f, np.tile(wanted, (3, 1)))


def test_the_key_decides_the_samples():
    problem = Problem.build(chain(12), free_skips(3))

    first, again, other = (drawn(problem, key, batch=2048) for key in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("form", ["rows", "arrays"])
@pytest.mark.parametrize("are_scored", [False, True])
def test_a_part_of_a_batch_is_drawn_like_the_whole(form, are_scored):
    problem = Problem.build(chain(12), CHAIN)
    lowered, key = lower(problem, form=form), jax.random.key(1)
    log_probs = noisy_log_probs(chain(12), 3) if are_scored else None

    whole = np.asarray(sample(lowered, key, log_probs, 64))
    part = np.asarray(sample_lanes(lowered, key, jnp.arange(16, 48), log_probs))

    np.testing.assert_array_equal(part, whole[:, 16:48])


def test_uniform_samples_of_bert_are_valid_but_for_memory_and_spread_over_the_chips():
    problem = Problem.build(Graph.load(BERT), PRESETS["mcm36"]())
    lowered = lower(problem)

    f = sample(lowered, jax.random.key(0), None, 32)

    costs = evaluate(lowered, f)
    assert bool(jnp.all(costs.acyclic & costs.no_skip & costs.triangle))
    assert np.mean(costs.chips_used) > 24
    middle = np.asarray(f)[problem.num_nodes // 2]
    assert 12 < middle.mean() < 24
    assert len(set(middle.tolist())) > 12


def test_fix_keeps_what_is_valid_and_mends_what_is_not():
    rng = np.random.default_rng(5)
    graph = random_graph(rng, num_nodes=6, max_chips=3, shared_weights=False, pins=False)
    lowered = lower(Problem.build(graph, CHAIN))
    good = sorted(span_set(graph, CHAIN))[:4]
    y = np.array([*good, *rng.integers(0, 3, (4, 6))]).T

    f = np.asarray(fix(lowered, pad_assignments(lowered, y)))[:6]

    assert [tuple(g) for g in f.T[: len(good)].tolist()] == good
    assert all(keeps_all(graph, CHAIN, g) for g in f.T.tolist())
