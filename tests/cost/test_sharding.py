"""Batches over several devices: the answers of one device, and every device has a part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpart.cost.evaluate import evaluate
from jaxpart.cost.sharding import devices_for, replicated, split

ROOT = Path(__file__).parents[2]
# Programs so small that to compile them is all their time: code need not be fast.
FLAGS = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
PROGRAM = """
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

import tests.conftest
from jaxpart.cost import sharding
from jaxpart.cost.device import lower
from jaxpart.cost.evaluate import evaluate
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from jaxpart.engine import partition
from jaxpart.methods.labels import search as labels
from tests.support.modules import THREE_CHIPS
from tests.support.graphs import parallel_chains

all_devices, graph, labels._BATCH = jax.local_device_count, parallel_chains(3, 6), 32


def searched(method, module):
    found = partition(
        graph, module, method=method, max_samples=300, time_limit_s=None, relative_gap=0.0, seed=3
    )
    history = [(count, best) for count, _, best in found.search.history]
    return [found.assignment.tolist(), history]


def on_one_and_on_all(method, module):
    answers = []
    for devices in (lambda: 1, all_devices):
        jax.local_device_count = devices
        answers.append(searched(method, module))
    return answers


free = dataclasses.replace(THREE_CHIPS, constraints=Constraints(triangle=False))
searches = {
    "slice": on_one_and_on_all("slice", THREE_CHIPS),
    "slice, no triangle rule": on_one_and_on_all("slice", free),
    "random": on_one_and_on_all("random", THREE_CHIPS),
    "paper_annealing": on_one_and_on_all("paper_annealing", THREE_CHIPS),
}

problem, batch = lower(Problem.build(graph, THREE_CHIPS)), 32
labelled = np.random.default_rng(0).integers(0, 3, (problem.padded_nodes, batch)).astype(np.int8)
whole = sharding.replicated(problem, batch)
costs = sharding.split(evaluate, batch, (None, 1))(whole, labelled)
alone = evaluate(problem, jnp.asarray(labelled))
same = [
    bool((np.asarray(a) == np.asarray(b)).all())
    for a, b in zip(jax.tree.leaves(costs), jax.tree.leaves(alone), strict=True)
]
traces = []


def seen(unused, rows, scale):
    traces.append(rows.shape)
    return rows * scale


for _ in range(3):
    sharding.split(seen, batch, (None, 0), 0, scale=2)(whole, jnp.ones((batch, 3)))
shards = costs.valid.addressable_shards
answer = {
    "searches": searches,
    "same": all(same),
    "parts": [shard.data.shape[0] for shard in shards],
    "devices": len({shard.device for shard in shards}),
    "traces": sorted(traces),
    "counts": [sharding.devices_for(size) for size in (24, 16, 12, 6, 4, 2, 1, 7)],
}
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer():
    """What a process with four virtual devices finds."""
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "search", ["slice", "slice, no triangle rule", "random", "paper_annealing"]
)
def test_searches_on_four_devices_end_as_on_one(answer, search):
    one, four = answer["searches"][search]
    assert one == four


def test_every_device_has_an_equal_part_and_costs_it_as_one_would(answer):
    assert answer["same"]
    assert answer["parts"] == [8, 8, 8, 8]
    assert answer["devices"] == 4


def test_parts_are_of_even_size(answer):
    assert answer["counts"] == [4, 4, 2, 1, 2, 1, 1, 1]


def test_a_program_is_traced_for_its_shapes_and_compiled_once(answer):
    assert answer["traces"] == [[8, 3], [32, 3]]


@pytest.mark.parametrize("batch", [1, 6, 512])
def test_on_one_device_nothing_changes(batch, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    tree = {"a": np.ones(3)}
    assert devices_for(batch) == 1
    assert replicated(tree, batch) is tree
    assert split(evaluate, batch, (None, 1)) is evaluate
