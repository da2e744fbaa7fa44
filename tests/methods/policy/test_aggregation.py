"""What the network adds up along edges, with and without a scatter, against numpy in float64."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpart.methods.policy import network, ppo
from jaxpart.methods.policy.aggregation import Ends, lists_of, means, read, softmax, sums
from jaxpart.methods.policy.features import features
from jaxpart.methods.policy.network import PLACEMENT, PolicyNetwork
from jaxpart.methods.policy.rollout import Task, act, initial_params
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support import strategies
from tests.support.graphs import ladder
from tests.support.policies import SIZES

ROWS, ENTRIES, WIDTH = 12, 96, 3


@st.composite
def rows_of_entries(draw):
    """Rows of up to 90 entries; many may have the same, a hub. The last row is that of padding."""
    hub = draw(st.integers(0, ROWS - 2))
    rows = draw(st.lists(st.integers(0, ROWS - 2) | st.just(hub), max_size=90))
    return np.array(rows, int)


def both_forms(rows):
    """The ends of the entries for a CPU and, with lists, for a GPU or TPU."""
    padded = np.full(ENTRIES, ROWS - 1, np.int32)
    padded[: len(rows)] = rows
    lists = jax.device_put(lists_of(rows, ROWS, ENTRIES))
    return Ends(jnp.asarray(padded), None), Ends(jnp.asarray(padded), lists)


def drawn(rows, seed=0):
    """Entries and rows of numbers in float64, and the incidence of rows and real entries."""
    rng = np.random.default_rng(seed)
    incidence = np.zeros((ROWS, ENTRIES))
    incidence[rows, np.arange(len(rows))] = 1.0
    return rng.normal(size=(ENTRIES, WIDTH)), rng.normal(size=(ROWS, WIDTH)), incidence


def value_and_change(function, argument, change):
    """The result of a function, and what a change of the result says of its argument."""
    value, pull = jax.vjp(function, jnp.asarray(argument, jnp.float32))
    (back,) = pull(jnp.asarray(change, jnp.float32))
    return np.asarray(value), np.asarray(back)


@given(rows_of_entries())
def test_sums_and_reads_and_their_gradients_are_products_with_the_incidence_matrix(rows):
    entries, nodes, incidence = drawn(rows)
    for ends in both_forms(rows):
        count = len(rows)
        total, back = value_and_change(lambda x, e=ends: sums(x, e, ROWS)[:-1], entries, nodes[:-1])
        np.testing.assert_allclose(total, (incidence @ entries)[:-1], atol=1e-5)
        np.testing.assert_allclose(back[:count], (incidence.T @ nodes)[:count], atol=1e-5)

        found, back = value_and_change(
            lambda x, e=ends, c=count: read(x, e)[:c], nodes, entries[:count]
        )
        np.testing.assert_allclose(found, (incidence.T @ nodes)[:count], atol=1e-5)
        np.testing.assert_allclose(back, incidence @ entries, atol=1e-5)


@given(rows_of_entries())
def test_means_and_attention_are_those_of_numpy_with_and_without_lists(rows):
    entries, _, incidence = drawn(rows)
    entries = entries * 30
    count = len(rows)
    number = incidence.sum(axis=1, keepdims=True)
    weight = np.exp(entries - entries.max())
    shares = weight / np.maximum(incidence.T @ (incidence @ weight), 1e-300)
    for ends in both_forms(rows):
        found = means(jnp.asarray(entries, jnp.float32), ends, ROWS)[:-1]
        expected = (incidence @ entries) / np.maximum(number, 1)
        np.testing.assert_allclose(found, expected[:-1], rtol=1e-5, atol=1e-5)

        attended = softmax(jnp.asarray(entries, jnp.float32), ends, ROWS)[:count]
        np.testing.assert_allclose(attended, shares[:count], rtol=2e-5, atol=1e-6)


def test_padding_with_huge_numbers_changes_no_gradient():
    rows = np.array([0, 1, 1, 2])
    _, ends = both_forms(rows)
    entries = jnp.where(jnp.arange(ENTRIES)[:, None] < 4, 1.0, 1e30) * jnp.ones((ENTRIES, WIDTH))

    def attended(values):
        return jnp.sum(sums(softmax(values, ends, ROWS) * values, ends, ROWS))

    change = np.asarray(jax.grad(attended)(entries))
    assert np.isfinite(change).all()
    assert not change[4:].any()


@functools.cache
def weights():
    """Weights whose heads are not zero."""
    inputs = features(Problem.build(ladder(), load_mcm("mcm4")), 16, 16)
    params = PolicyNetwork(SIZES).init(jax.random.key(3), inputs, jnp.zeros((16, PLACEMENT)))
    leaves, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(shape, noisy)


def test_the_network_and_its_gradient_are_the_same_with_lists_on_random_graphs():
    rng = np.random.default_rng(0)
    figure = jax.jit(jax.value_and_grad(_figure, has_aux=True))
    for _ in range(3):
        graph = strategies.random_graph(rng, num_nodes=24, pins=False)
        problem = Problem.build(graph, strategies.random_mcm(rng, num_chips=4))
        count = problem.num_contracted
        (_, one), slope = figure(weights(), features(problem, 32, 128), count)
        (_, two), other = figure(weights(), features(problem, 32, 128, has_lists=True), count)
        real = lambda leaf, n=count: leaf[:n]  # noqa: E731
        chex.assert_trees_all_close(jax.tree.map(real, one), jax.tree.map(real, two), atol=1e-5)
        chex.assert_trees_all_close(slope, other, rtol=1e-4, atol=1e-5)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) > 1e-2


def _figure(params, inputs, count):
    """A number that every real row of the proposal changes, and the proposal."""
    placement = jnp.sin(jnp.arange(32 * PLACEMENT, dtype=jnp.float32)).reshape(32, PLACEMENT)
    proposal = network.propose(params, SIZES, inputs, placement)
    real = jnp.arange(32) < count
    total = sum(
        jnp.sum(jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), jnp.sin(leaf), 0.0))
        for leaf in jax.tree.leaves(proposal)
    )
    return total / 100, proposal


@pytest.mark.parametrize("decoder", ["labels", "orders"])
def test_no_program_of_the_policy_scatters_floats_on_an_accelerator(decoder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jaxpart.cost.device.warn_of_slow_release", lambda: None)
    task = Task.build(Problem.build(ladder(), load_mcm("mcm4")))
    params = jax.eval_shape(lambda: initial_params(SIZES, task, 0))
    static = {"sizes": SIZES, "decoder": decoder}
    drawing = act.trace(
        params, task.features, task.start, jax.random.key(0), jnp.int32(9), batch=8, **static
    )
    drawn = drawing.out_info
    transition = ppo.Transition(
        task.features, task.start, drawn.actions, drawn.log_prob, jnp.ones(8)
    )
    gradient = functools.partial(ppo.gradient, ppo_config=ppo.PPOConfig(), part=4, **static)
    learning = jax.jit(gradient).trace(params, transition)

    for traced in (drawing, learning):
        for platform in ("cuda", "tpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert "stablehlo.gather" in text
            scattered = re.findall(r'"stablehlo\.scatter".*?\}\) : \(([^)]*)\)', text, re.DOTALL)
            assert len(scattered) == text.count('"stablehlo.scatter"')
            assert not [types for types in scattered if "f32" in types]
