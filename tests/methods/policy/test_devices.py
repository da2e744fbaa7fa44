"""The policy on several devices: the samples and gradients of one device."""

import pytest

from tests.support.four_devices import printed_by

PROGRAM = """
import dataclasses
import json

import jax
import numpy as np

import tests.conftest
from jaxpart.methods.policy import ppo
from jaxpart.methods.policy.rollout import Task, initial_params, play
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support.graphs import ladder
from tests.support.policies import SIZES

task = Task.build(Problem.build(ladder(), load_mcm("mcm4")))
sizes, settings = dataclasses.replace(SIZES, layers=1), ppo.PPOConfig()
params, key = initial_params(sizes, task, 0), jax.random.key(0)
answers = {}
for devices in (1, 2, 4):
    jax.local_device_count = lambda: devices
    made = play(params, sizes, task, task.start, key, batch=32, decoder="labels")
    worth = ppo.advantages(task.reference_s / made.costs.bottleneck_s, made.costs.valid)
    transition = ppo.Transition(task.features, task.start, made.actions, made.log_prob, worth)
    learned = ppo.gradient(params, transition, sizes, settings, "labels", 8)
    # One part is for one device.
    alone = ppo.gradient(params, transition, sizes, settings, "labels", 32)
    found = made.assignments, made.actions, made.log_prob, made.after, worth, learned, alone
    arrays = made.actions.taken, learned[1].loss, alone[1].loss
    places = [len(array.sharding.device_set) for array in arrays]
    answers[devices] = [np.asarray(leaf) for leaf in jax.tree.leaves(found)], places

one, _ = answers[1]
differences = {
    devices: max(
        float(np.abs(a.astype(float) - b).max() / max(np.abs(a).max(), 1e-2))
        for a, b in zip(one, found, strict=True)
    )
    for devices, (found, _) in answers.items()
}
same = {
    devices: all(
        (a == b).all() for a, b in zip(one, found, strict=True) if a.dtype.kind in "iub"
    )
    for devices, (found, _) in answers.items()
}
print(json.dumps([differences, same, {d: places for d, (_, places) in answers.items()}]))
"""


@pytest.fixture(scope="module")
def answer():
    """How far a process is from one device with one, two and four virtual ones."""
    return printed_by(PROGRAM)


@pytest.mark.parametrize("devices", [2, 4])
def test_samples_and_gradients_on_several_devices_are_those_of_one(answer, devices):
    differences, same, places = (found[str(devices)] for found in answer)

    assert same  # partitions, and who may move
    assert differences <= 2e-5  # a mean of means is rounded otherwise
    assert places == [devices, devices, 1]
