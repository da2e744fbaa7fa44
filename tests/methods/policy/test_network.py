"""The policy's inputs and network: what must not matter does not, and probabilities are true."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.errors import InputError
from jaxpart.methods.policy import features as feature_set
from jaxpart.methods.policy import network
from jaxpart.methods.policy.actions import (
    Shared,
    draw_labels,
    draw_orders,
    draw_shared,
    label_log_probs,
    log_probs,
    order_keys,
)
from jaxpart.methods.policy.features import features
from jaxpart.methods.policy.network import PLACEMENT, MoveProposal, PolicyNetwork
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support import strategies
from tests.support.graphs import ladder
from tests.support.policies import SIZES


@functools.cache
def weights(seed=3):
    """Weights whose heads are not zero."""
    inputs = features(Problem.build(ladder(), load_mcm("mcm4")), 16, 16)
    params = PolicyNetwork(SIZES).init(jax.random.key(seed), inputs, jnp.zeros((16, PLACEMENT)))
    leaves, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(shape, noisy)


def propose(inputs, placement):
    return network.propose(weights(), SIZES, inputs, placement)


def placement_of(rows, count, seed=0):
    drawn = np.random.default_rng(seed).random((count, PLACEMENT)).astype(np.float32)
    return jnp.asarray(np.pad(drawn, ((0, rows - count), (0, 0))))


def test_nodes_in_another_order_get_the_same_proposal_in_that_order():
    inputs, count = features(Problem.build(ladder(), load_mcm("mcm8")), 16, 16), 9
    placement = placement_of(16, count)
    order = np.concatenate([np.random.default_rng(1).permutation(count), np.arange(count, 16)])
    place = np.argsort(order)
    by_node = ("node", "position", "order_basis", "label_basis", "is_real")
    changed = dataclasses.replace(
        inputs,
        pair_from=place[inputs.pair_from].astype(np.int32),
        pair_to=place[inputs.pair_to].astype(np.int32),
        **{name: getattr(inputs, name)[order] for name in by_node},
    )

    expected = propose(inputs, placement)
    found = propose(changed, placement[order])

    for old, new in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(old[order][:count], new[:count], atol=2e-4)
    assert float(np.ptp(expected.labels.shift[:count])) > 1e-3


def test_a_larger_bucket_changes_no_proposal():
    problem, count = Problem.build(ladder(), load_mcm("mcm8")), 9

    small = propose(features(problem, 16, 16), placement_of(16, count))
    large = propose(features(problem, 40, 64), placement_of(40, count))

    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(a[:count], b[:count], atol=2e-4)


@pytest.mark.parametrize("preset", ["mcm4", "mcm36", "mcm64", "mesh6x6", "mixed16"])
def test_the_same_weights_score_the_chips_of_any_module(preset):
    mcm = load_mcm(preset)
    inputs = features(Problem.build(ladder(), mcm), 16, 16)
    shapes = jax.eval_shape(
        lambda: PolicyNetwork(SIZES).init(jax.random.key(0), inputs, jnp.zeros((16, PLACEMENT)))
    )

    proposal = propose(inputs, placement_of(16, 9))

    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, weights())
    assert proposal.scores.shape == (16, mcm.num_chips)
    assert bool(jnp.all(jnp.isfinite(proposal.scores)))


def test_features_are_finite_on_random_graphs_and_modules():
    rng = np.random.default_rng(5)
    for _ in range(60):
        problem = Problem.build(
            strategies.random_graph(rng, pins=False), strategies.random_mcm(rng)
        )
        inputs = features(problem, 16, 64)
        for leaf in jax.tree.leaves(inputs):
            assert np.isfinite(leaf).all()
        assert inputs.is_real.sum() == problem.num_contracted


def test_fresh_heads_propose_no_shift_and_no_preference_for_a_chip():
    inputs = features(Problem.build(ladder(), load_mcm("mcm8")), 16, 16)
    params = PolicyNetwork(SIZES).init(jax.random.key(0), inputs, jnp.zeros((16, PLACEMENT)))

    proposal = network.propose(params, SIZES, inputs, placement_of(16, 9))

    for figure in (proposal.orders.shift, proposal.labels.shift, proposal.scores):
        assert not np.any(figure)


def test_a_graph_beyond_the_largest_bucket_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(feature_set, "MAX_FEATURE_ROWS", 8)

    with pytest.raises(InputError, match=r"9 contracted nodes, more than .* largest bucket \(8\)"):
        features(Problem.build(ladder(), load_mcm("mcm4")), 16, 16)


def example_moves(rows, rank=3):
    keys = jax.random.split(jax.random.key(7), 3)
    return MoveProposal(
        jax.random.normal(keys[0], (rows,)),
        jax.random.normal(keys[1], (rows, rank)),
        0.3 * jax.random.normal(keys[2], (rows,)),
        jnp.arange(rows) / 2,
    )


def one_shared(rows, batch, moves=True):
    """The same first stage for every sample."""
    z = jnp.broadcast_to(jnp.array([[0.5], [-1.0], [0.2]]), (3, batch))
    return Shared(
        z,
        jnp.full(batch, 0.7),
        jnp.full(batch, 0.8),
        jnp.full((rows, batch), moves),
        jnp.zeros(batch, int),
        jnp.zeros(batch, bool),
    )


def test_labels_are_drawn_as_often_as_their_log_probabilities_say():
    rows, chips, batch = 4, 5, 40_000
    base, moves = jnp.array([0.1, 0.4, 0.6, 0.9]), example_moves(4)
    scores = jax.random.normal(jax.random.key(1), (rows, chips))
    shared = one_shared(rows, batch)

    actions = draw_labels(jax.random.key(2), base, moves, scores, shared)
    log_prob, _ = log_probs("labels", base, moves, scores, actions, jnp.ones(rows, bool))

    expected = np.exp(label_log_probs(base, moves, scores, one_shared(rows, 1)))[:, :, 0]
    for v in range(rows):
        drawn = np.bincount(np.asarray(actions.taken[v], int), minlength=chips) / batch
        np.testing.assert_allclose(drawn, expected[v], atol=0.01)
        said = np.exp(log_prob.node[v])
        np.testing.assert_allclose(said, expected[v][np.asarray(actions.taken[v], int)], rtol=1e-4)


def test_order_moves_have_the_density_of_their_normal_distribution():
    rows, batch = 3, 40_000
    base, moves = jnp.arange(3.0), example_moves(3)
    shared = one_shared(rows, batch)

    actions = draw_orders(jax.random.key(2), moves, shared)
    log_prob, _ = log_probs(
        "orders", base, moves, jnp.zeros((rows, 2)), actions, jnp.ones(rows, bool)
    )

    mean = np.asarray(moves.shift + moves.directions @ shared.z[:, 0])
    spread = np.exp(moves.log_spread)
    np.testing.assert_allclose(actions.taken.mean(axis=1), mean, atol=0.03)
    np.testing.assert_allclose(actions.taken.std(axis=1), spread, rtol=0.03)
    off = (np.asarray(actions.taken) - mean[:, None]) / spread[:, None]
    density = np.exp(-0.5 * off**2) / (spread[:, None] * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(np.exp(log_prob.node), density, rtol=1e-3)


def test_nodes_that_may_not_move_keep_their_place_and_chip_and_have_no_probability():
    base, moves = jnp.array([0.1, 0.4, 0.6, 0.9]), example_moves(4)
    still = one_shared(4, 6, moves=False)
    scores = jnp.zeros((4, 5))

    labels = draw_labels(jax.random.key(0), base, moves, scores, still)
    keys = order_keys(jnp.arange(4.0), draw_orders(jax.random.key(0), moves, still))
    log_prob, _ = log_probs("labels", base, moves, scores, labels, jnp.ones(4, bool))

    assert (np.asarray(labels.taken) == np.array([0, 2, 3, 4])[:, None]).all()
    assert (np.asarray(keys) == np.arange(4.0)).all()
    assert not np.any(log_prob.node)


@pytest.mark.parametrize("decoder", ["orders", "labels"])
def test_the_first_sample_moves_nothing_and_padding_never_moves(decoder):
    shared = draw_shared(
        jax.random.key(0),
        jnp.arange(32.0),
        example_moves(32),
        jnp.int32(20),
        8,
        batch=64,
        decoder=decoder,
    )

    moves = np.asarray(shared.moves)
    assert not moves[:, 0].any()
    assert not moves[20:].any()
    assert moves[:20, 1].all()
    assert 1 < moves[:20, 2:].sum(axis=0).min() < 20


def test_centres_are_drawn_as_often_as_their_log_probabilities_say():
    rows, batch = 4, 40_000
    moves = example_moves(rows)
    shared = draw_shared(
        jax.random.key(0), jnp.arange(4.0), moves, jnp.int32(3), 8, batch=batch, decoder="labels"
    )
    actions = draw_labels(jax.random.key(1), jnp.zeros(4), moves, jnp.zeros((4, 8)), shared)
    real = jnp.arange(rows) < 3
    said, _ = log_probs("labels", jnp.zeros(4), moves, jnp.zeros((4, 8)), actions, real)

    centred = np.asarray(shared.is_centred)
    centre = np.asarray(shared.centre)[centred]
    weight = np.exp(np.asarray(moves.focus)) * np.asarray(real)
    expected = weight / weight.sum()
    drawn = np.bincount(centre, minlength=rows) / len(centre)
    np.testing.assert_allclose(drawn, expected, atol=0.01)
    np.testing.assert_allclose(np.exp(said.centre)[centred], expected[centre], rtol=1e-4)
    assert not np.any(np.asarray(said.centre)[~centred])
