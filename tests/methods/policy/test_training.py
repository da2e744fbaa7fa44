"""Learning: PPO's loss by hand, a bandit that must be learned, and runs that go on unchanged."""

import csv
import dataclasses
import functools
import itertools
import json
from contextlib import closing
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost import batch
from jaxpart.cost.evaluate import verify
from jaxpart.errors import FileFormatError, InputError
from jaxpart.methods.policy import checkpoint, ppo, training
from jaxpart.methods.policy import search as policy_search
from jaxpart.methods.policy.actions import LogProbs, log_probs
from jaxpart.methods.policy.checkpoint import Policy
from jaxpart.methods.policy.network import NetworkConfig, propose
from jaxpart.methods.policy.pretraining import (
    LOG,
    VALIDATION,
    PretrainingRun,
    _cut,
    pretrain,
    pretraining_pairs,
)
from jaxpart.methods.policy.rollout import Task, initial_params, play
from jaxpart.methods.policy.search import BATCH, PolicySearchConfig, with_policy
from jaxpart.methods.policy.training import TrainingError
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import MCM, Chip, load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.runtime.state import Budget, Search
from tests.support.graphs import ladder
from tests.support.policies import CONFIG, SIZES


@functools.cache
def task(preset="mcm4"):
    return Task.build(Problem.build(ladder(), load_mcm(preset)))


@functools.cache
def params():
    return initial_params(SIZES, task(), 0)


def round_of(decoder: Any, mode: Any = "fix", state=None, key=0, batch=16):
    start = task().start if state is None else state
    return play(
        params(), SIZES, task(), start, jax.random.key(key), batch=batch, decoder=decoder, mode=mode
    )


def test_advantages_have_mean_zero_spread_one_and_follow_the_rewards():
    rewards = jnp.array([1.0, 1.5, 1.2, 9.0, 1.2, 0.5])
    worth = np.asarray(ppo.advantages(rewards, jnp.array([1, 1, 1, 0, 1, 1], bool)))

    assert abs(worth.mean()) < 1e-6
    assert worth.std() == pytest.approx(1, abs=1e-5)
    assert worth[1] > worth[2] == worth[4] > worth[0] >= worth[5] >= worth[3]


@pytest.mark.parametrize("valid", [True, False])
def test_equal_rewards_teach_nothing(valid):
    assert not np.any(ppo.advantages(jnp.full(8, 1.3), jnp.full(8, valid)))


@pytest.mark.parametrize(
    ("decoder", "mode"), [("orders", "fix"), ("labels", "fix"), ("labels", "sample")]
)
def test_rollouts_keep_the_rules_and_report_exact_costs(decoder, mode):
    made = round_of(decoder, mode)

    f = np.asarray(made.assignments)[: task().problem.num_nodes]
    exact = verify(task().problem, f.astype(np.int64))
    assert exact.valid.all()
    np.testing.assert_allclose(made.costs.bottleneck_s, exact.bottleneck_s, rtol=1e-5)
    assert made.after.bottleneck_s == made.costs.bottleneck_s.min()


def test_labels_may_be_costed_as_they_are_drawn():
    drawn, mended = round_of("labels", "none"), round_of("labels", "fix")

    count = task().problem.num_nodes
    labels = np.asarray(drawn.actions.taken[task().contracted_of])[:count]
    np.testing.assert_array_equal(np.asarray(drawn.assignments)[:count], labels)
    exact = verify(task().problem, np.asarray(drawn.assignments)[:count].astype(np.int64))
    np.testing.assert_array_equal(drawn.costs.valid, exact.valid)
    assert np.asarray(drawn.costs.valid).sum() < np.asarray(mended.costs.valid).sum()


def searched(**changes):
    """A search of four rounds by fresh weights that do not learn."""
    search = Search(task().problem, Budget(None, 4 * BATCH, 0.0), 0)
    use = dataclasses.replace(PolicySearchConfig(learn_after=None, solver=False), **changes)
    kept = []
    with closing(with_policy(None, use, keep=kept.append)(search)) as steps:
        for _ in itertools.islice(steps, 4):
            pass
    return search, kept[-1]


def test_a_search_counts_how_many_of_its_samples_are_valid():
    search, _ = searched()
    as_drawn, _ = searched(mode="none")

    assert search.samples == search.valid == 4 * BATCH
    assert as_drawn.valid < as_drawn.samples == 4 * BATCH


@pytest.mark.parametrize(("refines", "expected"), [(True, [0, 1, 2, 3]), (False, [0, 0, 0, 0])])
def test_without_refinement_every_round_begins_anew(monkeypatch, refines, expected):
    rounds = []

    def noted(params, sizes, task, state, *args, **kwargs):
        rounds.append(int(state.round))
        return play(params, sizes, task, state, *args, **kwargs)

    monkeypatch.setattr(policy_search, "play", noted)
    searched(refines=refines)
    assert rounds == expected


@pytest.mark.parametrize(
    ("learn_after", "expected"), [(None, [16, 16, 64, 64]), (0, [64] * 4), (16, [16, 64, 64, 64])]
)
def test_rounds_are_small_to_begin_with_and_where_nothing_is_learned(
    monkeypatch, learn_after, expected
):
    sizes = []

    def noted(*args, batch, **kwargs):
        sizes.append(batch)
        return play(*args, batch=batch, **kwargs)

    monkeypatch.setattr(policy_search, "play", noted)
    monkeypatch.setattr(policy_search, "ZERO_SHOT", 32)
    searched(learn_after=learn_after)
    assert sizes == expected


def test_the_first_round_and_the_first_gradient_count_as_compilation(monkeypatch):
    phases, entered = {"play": [], "gradient": []}, []
    enter = Search.enter
    monkeypatch.setattr(
        Search, "enter", lambda search, phase: entered.append(phase) or enter(search, phase)
    )

    def noted(name, function):
        def call(*args, **kwargs):
            phases[name].append(entered[-1])
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(policy_search, "play", noted("play", play))
    monkeypatch.setattr(ppo, "gradient", noted("gradient", ppo.gradient))
    searched(learn_after=0, batch=4, ppo_config=ppo.PPOConfig(epochs=1))

    expected = ["compiling", *["policy"] * 3]
    assert phases == {"play": expected, "gradient": expected[: len(phases["gradient"])]}
    assert len(phases["gradient"]) >= 3


def test_fresh_weights_have_the_layers_that_are_asked_for():
    trees = [
        searched(**changes)[1].params["params"]
        for changes in ({}, {"network": NetworkConfig(layers=0)})
    ]
    assert [sum(name.startswith("Layer_") for name in tree) for tree in trees] == [3, 0]


def test_a_round_never_loses_the_best_and_starts_from_it():
    first = round_of("labels")
    second = round_of("labels", state=first.after, key=1)

    assert second.after.bottleneck_s <= first.after.bottleneck_s
    best = int(np.argmin(first.costs.bottleneck_s))
    np.testing.assert_array_equal(second.assignments[:, 0], first.assignments[:, best])


def test_the_loss_is_the_clipped_surrogate_worked_out_by_hand():
    made = round_of("labels")
    worth = jnp.linspace(-1.0, 2.0, 16)
    higher = jnp.where(jnp.arange(16) % 2 == 0, 0.5, -0.5)
    old = LogProbs(made.log_prob.node + higher[None], made.log_prob.centre + higher)
    transition = ppo.Transition(task().features, task().start, made.actions, old, worth)
    settings = ppo.PPOConfig(entropy=0.0)

    loss, report = ppo.ppo_loss(params(), transition, SIZES, settings, "labels")

    gains = []
    shared = made.actions.shared
    moves, centred = np.asarray(shared.moves), np.asarray(shared.is_centred)
    for b in range(16):
        ratio = np.exp(-0.5 if b % 2 == 0 else 0.5)
        gain = min(ratio * float(worth[b]), float(np.clip(ratio, 0.8, 1.2) * worth[b]))
        gains.append(gain * (int(moves[:, b].any()) + int(centred[b])))
    assert float(loss) == pytest.approx(-np.mean(gains), abs=1e-4)
    assert float(report.clipped) == pytest.approx(1.0)


def test_a_bandit_of_two_nodes_is_learned():
    """Chip 3 for one node and chip 0 for the other is what pays, and nothing else does."""
    graph = Graph((Node("a", "x", 1e9, 1e6), Node("b", "y", 2e9, 1e6)), (Tensor(0, 10.0, (1,)),))
    inputs = Task.build(Problem.build(graph, load_mcm("mcm4")))
    weights = initial_params(SIZES, inputs, 0)
    settings = ppo.PPOConfig(learning_rate=1e-2, epochs=2)
    opt_state = ppo.optimizer(settings).init(weights)

    def chance(weights):
        """Of a sample that may move everything to do both."""
        drawn = play(
            weights, SIZES, inputs, inputs.start, jax.random.key(999), batch=256, decoder="labels"
        ).actions
        free = np.asarray(drawn.shared.moves[:2]).all(axis=0)
        taken = np.asarray(drawn.taken[:2])[:, free]
        return np.mean((taken[0] == 3) & (taken[1] == 0))

    before = chance(weights)
    for step in range(150):
        made = play(
            weights, SIZES, inputs, inputs.start, jax.random.key(step), batch=64, decoder="labels"
        )
        reward = (made.actions.taken[0] == 3) * 1.0 + (made.actions.taken[1] == 0) * 1.0
        worth = ppo.advantages(reward, jnp.ones(64, bool))
        transition = ppo.Transition(
            inputs.features, inputs.start, made.actions, made.log_prob, worth
        )
        for _ in range(settings.epochs):
            gradient, _ = ppo.gradient(weights, transition, SIZES, settings, "labels")
            weights, opt_state = ppo.apply_gradients(weights, opt_state, [gradient], settings)

    assert before < 0.2
    assert chance(weights) > 0.6


def test_a_gradient_in_parts_is_the_mean_of_the_gradients_of_the_parts():
    inputs = Task.build(Problem.build(ladder(), load_mcm("mcm4")))
    weights = initial_params(SIZES, inputs, 0)
    made = play(weights, SIZES, inputs, inputs.start, jax.random.key(0), batch=64, decoder="labels")
    worth = jax.random.normal(jax.random.key(1), (64,))
    drawn = made.actions, made.log_prob, worth

    def gradient_of(samples, part=None):
        transition = ppo.Transition(inputs.features, inputs.start, *samples)
        return ppo.gradient(weights, transition, SIZES, ppo.PPOConfig(), "labels", part)

    found = gradient_of(drawn, part=16)

    every = [slice(at, at + 16) for at in range(0, 64, 16)]
    alone = [gradient_of(jax.tree.map(lambda x, at=at: x[..., at], drawn)) for at in every]
    expected = jax.tree.map(lambda *parts: sum(parts) / len(parts), *alone)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found[0]))


def test_graphs_of_a_bucket_are_learned_from_in_one_call_on_an_accelerator(monkeypatch):
    tasks = [Task.build(Problem.build(ladder(n), load_mcm("mcm4"))) for n in (9, 7)]
    sizes = dataclasses.replace(SIZES, layers=1)
    config = dataclasses.replace(
        CONFIG, network=sizes, learned=2, ppo_config=ppo.PPOConfig(epochs=1, minibatch=4)
    )
    found = {"gradient": [], "gradients": []}

    def noted(name):
        program = getattr(ppo, name)

        def call(*arguments):
            found[name].append(program(*arguments))
            return found[name][-1]

        monkeypatch.setattr(ppo, name, call)

    noted("gradient")
    noted("gradients")
    begun = training.begin(config, initial_params(sizes, tasks[0], 0))
    _, rows = training.advance(begun, config, ["a", "b"], tasks)
    monkeypatch.setattr(training, "is_accelerator", lambda: True)
    _, same = training.advance(begun, config, ["a", "b"], tasks)

    assert [len(calls) for calls in found.values()] == [4, 1]
    expected = jax.tree.map(lambda *each: sum(each), *(g for g, _ in found["gradient"]))
    chex.assert_trees_all_close(found["gradients"][0][0], expected, rtol=1e-4, atol=1e-5)
    for one, two in zip(rows, same, strict=True):
        figures = zip(dataclasses.astuple(one)[3:], dataclasses.astuple(two)[3:], strict=True)
        assert all(a == pytest.approx(b, rel=1e-3, abs=1e-5) for a, b in figures)


@pytest.mark.parametrize(("batch", "part"), [(64, 64), (4096, 128), (127, 127), (390, 78), (1, 1)])
def test_parts_are_equal_and_as_large_as_an_accelerator_likes(batch, part):
    assert ppo.part_of(batch) == part


@pytest.mark.parametrize(("chips", "expected"), [(4, 8192), (64, 8192), (1024, 4096), (4096, 1024)])
def test_a_round_on_an_accelerator_is_as_large_as_its_scores_fit(chips, expected, monkeypatch):
    chip = Chip(1e9, 1e9, 1e9)
    mcm = MCM("m", "chain", (chip,) * chips, 1e9)
    inputs = Task.build(Problem.build(ladder(), mcm))
    assert policy_search._accelerator_batch(inputs) is None

    monkeypatch.setattr(policy_search, "is_accelerator", lambda: True)
    monkeypatch.setattr(batch, "is_accelerator", lambda: True)
    monkeypatch.setattr(batch, "_liked", lambda problem, least: 2 * least)
    monkeypatch.setattr(policy_search, "_MOST_SCORES_BYTES", 2**30)

    assert policy_search._accelerator_batch(inputs) == expected


def run_for(folder, steps, **more):
    problems = pretraining_pairs([ladder()], 1, 0)
    run = PretrainingRun(folder, steps, save_every=2, validate_every=2, **more)
    return pretrain(problems, pretraining_pairs([ladder(7)], 1, 0), CONFIG, run)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights_and_log(tmp_path):
    whole = Policy.load(run_for(tmp_path / "whole", 6))
    run_for(tmp_path / "parts", 4)
    # What a kill leaves behind: rows beyond the last checkpoint.
    with (tmp_path / "parts" / LOG).open("a") as file:
        file.write("5,half,labels,0,0,0,0,0,0,0,0\n1,ha")
    parts = Policy.load(run_for(tmp_path / "parts", 6))

    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in (LOG, VALIDATION):
        logs = [list(csv.reader((tmp_path / run / name).open())) for run in ("whole", "parts")]
        assert logs[0] == logs[1]
    assert len(logs[0]) == 1 + 4  # fresh, and after 2, 4 and 6 steps


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (b"", "the file is empty, expected a header"),
        (b"step,score\n\n", "line 2: begins with nothing, expected the number of a step"),
        (b"step,score\n0,1.5\nfirst,1.5\n", "line 3: begins with 'first', expected the number"),
        (b"step,score\n1_0,1.5\n", "line 2: begins with '1_0', expected the number of a step"),
        ("step,score\n\uff12,1.5\n".encode(), "line 2: begins with '\uff12', expected the number"),
        (b"step,score\n-1,1.5\n", "line 2: begins with '-1', expected the number of a step"),
        (b"step,score\n\xff,1.5\n", "is no CSV file in UTF-8"),
        (b"step,score\n" + b"9" * 200_000 + b",1.5\n", "is no CSV file in UTF-8 .field larger"),
    ],
)
def test_a_damaged_log_of_a_run_is_refused_by_its_line(tmp_path, damage, expected):
    path = tmp_path / VALIDATION
    path.write_bytes(damage)

    with pytest.raises(InputError, match=expected) as error:
        _cut(path, 4)
    assert str(error.value).startswith(f"{path}: ")
    assert path.read_bytes() == damage


def test_a_run_cannot_be_where_a_file_is(tmp_path):
    (tmp_path / "run").write_text("")

    with pytest.raises(InputError, match=r"run: cannot be the folder of a run \(File exists\)"):
        run_for(tmp_path / "run", 2)


def test_a_folder_with_a_run_of_another_configuration_is_refused(tmp_path):
    run_for(tmp_path, 2)
    problems = pretraining_pairs([ladder()], 1, 0)

    other = dataclasses.replace(CONFIG, seed=9)
    with pytest.raises(InputError, match="run of another configuration"):
        pretrain(problems, problems, other, PretrainingRun(tmp_path, 2))


def test_figures_that_are_none_stop_the_run_and_keep_the_last_checkpoint(tmp_path, monkeypatch):
    path = run_for(tmp_path, 2)
    kept = path.read_bytes()
    rewards = training.ppo.advantages
    monkeypatch.setattr(training.ppo, "advantages", lambda *a: rewards(*a) * jnp.nan)

    with pytest.raises(TrainingError, match=r"step 2, ladder/chain\d+.*not finite"):
        run_for(tmp_path, 4)
    assert path.read_bytes() == kept


def saved(tmp_path):
    path = tmp_path / "p.policy"
    Policy(params(), SIZES, {"seed": 0}).save(path)
    return path


def with_header(path, **changes):
    line, _, weights = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(line), **changes}).encode() + b"\n" + weights)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    trained = Policy.load(saved(tmp_path))

    assert (trained.network, trained.made) == (SIZES, {"seed": 0})
    for a, b in zip(jax.tree.leaves(params()), jax.tree.leaves(trained.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version is 2, expected 1"),
        ({"features": 0}, "features is 0, expected 2"),
        ({"format": "other"}, "format is 'other', expected 'jaxpart-policy'"),
        ({"sizes": {"depth": 1}}, "depth"),
        ({"sizes": {**dataclasses.asdict(SIZES), "width": 32}}, "has shape"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_by_name(tmp_path, changes, message):
    path = saved(tmp_path)
    with_header(path, **changes)

    with pytest.raises(FileFormatError, match=message) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)


def test_truncated_damaged_and_foreign_files_are_refused(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(FileFormatError, match="truncated"):
        Policy.load(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FileFormatError, match="do not match their hash"):
        Policy.load(path)
    path.write_bytes(b"\x89PNG\n\x00")
    with pytest.raises(FileFormatError, match="no JSON header"):
        Policy.load(path)


def test_a_policy_that_is_no_file_is_refused_with_what_is_shipped():
    with pytest.raises(InputError, match="no such file, and no shipped policy"):
        checkpoint.resolve("nowhere.policy")


def test_entropy_of_labels_is_that_of_their_distribution():
    made = round_of("labels")
    proposal = propose(params(), SIZES, task().features, task().start.seen)
    real = task().features.is_real > 0
    log_prob, entropy = log_probs(
        "labels", task().start.position, proposal.labels, proposal.scores, made.actions, real
    )

    # Minus the mean log-probability of what was drawn estimates it.
    moves = np.asarray(made.actions.shared.moves)
    drawn = -np.asarray(log_prob.node)[moves].mean()
    assert float(entropy) == pytest.approx(drawn + np.log(9), abs=0.15)
    once, again = (pretraining_pairs([ladder()], 2, 0).keys() for _ in range(2))
    assert once == again
