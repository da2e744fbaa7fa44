"""Learning a first placement from partitions found: by hand, a swap learned, runs resumed."""

import csv
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.engine import partition
from jaxpart.errors import FileFormatError, InputError
from jaxpart.methods.policy import imitation
from jaxpart.methods.policy.checkpoint import Policy
from jaxpart.methods.policy.imitation import (
    Example,
    ImitationConfig,
    distance,
    imitate,
    positions,
    read_examples,
)
from jaxpart.methods.policy.pretraining import (
    VALIDATION,
    PretrainingRun,
    pretrain,
    pretraining_pairs,
)
from jaxpart.methods.policy.rollout import Task, initial_params, proposed
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.results.result import Result
from tests.support.graphs import ladder
from tests.support.policies import CONFIG, SIZES

LESSONS = ImitationConfig(epochs=60, batch=1, learning_rate=1e-2)


def two_chains():
    """Four nodes of the same load, interleaved in program order: 0 -> 2 and 1 -> 3."""
    nodes = tuple(Node(f"n{v}", "dot" if v % 2 else "add", 4e9, 1e6) for v in range(4))
    return Graph(nodes, (Tensor(0, 10.0, (2,)), Tensor(1, 10.0, (3,))), name="two-chains")


@functools.cache
def problem():
    return Problem.build(two_chains(), load_mcm("mcm4"))


def one_chain_first():
    return Example(problem(), np.array([0, 2, 1, 3]))


def test_a_contracted_node_stands_in_the_middle_of_its_chips_share_of_the_load():
    task = Task.build(problem())

    apart = positions(task, np.array([0, 2, 1, 3]))
    together = positions(task, np.array([0, 0, 0, 1]))

    np.testing.assert_allclose(apart[:4], [1 / 8, 5 / 8, 3 / 8, 7 / 8])
    np.testing.assert_allclose(together[:4], [3 / 8, 3 / 8, 3 / 8, 7 / 8])
    assert not np.any(apart[4:])


def test_fresh_weights_are_as_far_away_as_program_order():
    task = Task.build(problem())
    fresh = initial_params(SIZES, task, 0)
    target = positions(task, one_chain_first().assignment)

    found = distance(fresh, SIZES, task.features, task.start.seen, target)

    # Program order stands at 1/8, 3/8, 5/8, 7/8: two of the four contracted nodes are a quarter
    # away.
    assert float(found) == pytest.approx(2 / 4 * (1 / 4) ** 2, rel=1e-4)


def test_an_order_is_learned_from_a_partition_and_the_first_round_starts_from_it():
    task = Task.build(problem())
    fresh = initial_params(SIZES, task, 0)
    losses = []
    report = lambda epoch, loss: losses.append((epoch, loss))  # noqa: E731

    params = imitate(fresh, SIZES, {"a": one_chain_first()}, LESSONS, report)

    assert [epoch for epoch, _ in losses] == list(range(60))
    assert losses[-1][1] < 0.05 * losses[0][1]
    order = proposed(params, SIZES, task.features, task.start)[1]
    np.testing.assert_array_equal(order[:4], [0, 2, 1, 3])
    # The second round begins with program order, whatever was learned.
    state = jax.tree.map(lambda leaf: leaf, task.start)
    later = proposed(params, SIZES, task.features, state.replace(round=jnp.int32(1)))  # pyright: ignore
    np.testing.assert_array_equal(later[1][:4], [0, 1, 2, 3])


def test_the_same_seed_teaches_the_same():
    fresh = initial_params(SIZES, Task.build(problem()), 0)
    examples = {"a": one_chain_first(), "b": Example(problem(), np.array([0, 0, 1, 1]))}
    config = ImitationConfig(epochs=3, batch=1)

    once, again = (imitate(fresh, SIZES, examples, config) for _ in range(2))

    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_lessons_of_a_bucket_are_learned_in_one_call(monkeypatch):
    """As on an accelerator, with the weights that a call for each lesson gives."""
    sizes = dataclasses.replace(SIZES, layers=1)
    fresh = initial_params(sizes, Task.build(problem()), 0)
    other = Problem.build(ladder(), load_mcm("mcm8"))
    chips = [(0, 2, 1, 3), (0, 0, 1, 1), (0, 1, 2, 3)]
    examples = {str(chip): Example(problem(), np.array(chip)) for chip in chips}
    examples["other"] = Example(other, np.arange(9) % 8)
    config = ImitationConfig(epochs=2, batch=4)
    calls, losses = [], []

    def noted(name):
        program = getattr(imitation, name)

        def call(*arguments):
            calls.append(name)
            return program(*arguments)

        monkeypatch.setattr(imitation, name, call)

    noted("_gradient")
    noted("_gradient_of_several")
    alone = imitate(fresh, sizes, examples, config, lambda _, loss: losses.append(loss))
    assert calls == ["_gradient"] * 8
    calls.clear()
    monkeypatch.setattr(imitation, "is_accelerator", lambda: True)
    found = imitate(fresh, sizes, examples, config, lambda _, loss: losses.append(loss))

    assert calls == ["_gradient_of_several"] * 4
    chex.assert_trees_all_close(found, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-5)


def result_in(folder, graph):
    result = partition(graph, load_mcm("mcm4"), method="greedy")
    folder.mkdir(exist_ok=True)
    result.save(folder / f"{graph.name}-mcm4.result.json")
    return result


def test_examples_are_the_result_files_of_the_graphs_named(tmp_path):
    own = result_in(tmp_path, two_chains())
    result_in(tmp_path, ladder())

    found = read_examples(tmp_path, [two_chains()])

    assert list(found) == ["two-chains-mcm4.result.json"]
    example = found["two-chains-mcm4.result.json"]
    assert isinstance(own, Result)
    np.testing.assert_array_equal(example.assignment, own.assignment)
    assert example.problem.mcm == load_mcm("mcm4")


def test_a_folder_without_examples_or_with_damaged_ones_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \*\.result\.json of a graph to train on"):
        read_examples(tmp_path, [ladder()])
    result_in(tmp_path, ladder())
    with pytest.raises(InputError, match=r"no .* of a graph to train on"):
        read_examples(tmp_path, [two_chains()])
    (tmp_path / "x.result.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"x\.result\.json"):
        read_examples(tmp_path, [ladder()])


class KilledError(Exception):
    """What a test raises in the middle of a run."""


def taught_run(folder, steps, assignment=(0, 2, 1, 3), taught=lambda epoch, loss: None):
    train, valid = pretraining_pairs([ladder()], 1, 0), pretraining_pairs([ladder(7)], 1, 0)
    return pretrain(
        train,
        valid,
        CONFIG,
        PretrainingRun(folder, steps, save_every=2, validate_every=2),
        examples={"a": Example(problem(), np.array(assignment))},
        imitation=ImitationConfig(epochs=4, batch=1),
        taught=taught,
    )


def test_a_taught_run_that_was_killed_at_any_stage_ends_with_the_same_weights(tmp_path):
    epochs = []
    note = lambda epoch, loss: epochs.append(epoch)  # noqa: E731
    whole = Policy.load(taught_run(tmp_path / "whole", 2, taught=note))
    assert epochs == [0, 1, 2, 3]

    def kill(epoch, loss):
        raise KilledError

    with pytest.raises(KilledError):
        taught_run(tmp_path / "parts", 2, taught=kill)
    taught_run(tmp_path / "parts", 0)
    parts = Policy.load(taught_run(tmp_path / "parts", 2, taught=kill))  # not taught again

    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_array_equal(a, b)
    logs = [list(csv.reader((tmp_path / run / VALIDATION).open())) for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [row[0] for row in logs[0]] == ["step", "0", "0", "2"]  # fresh, taught, trained


def test_a_folder_taught_by_other_examples_is_refused(tmp_path):
    taught_run(tmp_path, 0)

    with pytest.raises(InputError, match="run of another configuration"):
        taught_run(tmp_path, 0, assignment=(0, 0, 1, 1))
