"""Batches over several devices: the answers of one device, and every device has a part."""

import jax
import numpy as np
import pytest

from jaxpart.cost.evaluate import evaluate
from jaxpart.cost.sharding import devices_for, replicated, split
from tests.support.four_devices import printed_by

PROGRAM = """
import json

import jax
import jax.numpy as jnp
import numpy as np

import tests.conftest
from jaxpart.cost import sharding
from jaxpart.cost.device import lower
from jaxpart.cost.evaluate import evaluate
from jaxpart.problem.problem import Problem
from jaxpart.engine import partition
from jaxpart.methods.labels import search as labels
from jaxpart.methods.labels.sampling import fix, sample_lanes
from tests.support.modules import THREE_CHIPS
from tests.support.graphs import parallel_chains

all_devices, graph, batch = jax.local_device_count, parallel_chains(3, 6), 256
labels._BATCH = batch


def searched(method):
    found = partition(
        graph,
        THREE_CHIPS,
        method=method,
        max_samples=600,
        time_limit_s=None,
        relative_gap=0.0,
        seed=3,
    )
    history = [(count, best) for count, _, best in found.search.history]
    return [found.assignment.tolist(), history]


def on_one_and_on_all(method):
    answers = []
    for devices in (lambda: 1, all_devices):
        jax.local_device_count = devices
        answers.append(searched(method))
    return answers


searches = {method: on_one_and_on_all(method) for method in ("slice", "random", "paper_annealing")}

# The searches have compiled these programs for one device and for four.
problem, key = lower(Problem.build(graph, THREE_CHIPS)), jax.random.key(0)
labelled = np.random.default_rng(0).integers(0, 3, (problem.padded_nodes, batch)).astype(np.int8)
lanes = np.arange(batch, dtype=np.int32)
programs = {
    "evaluate": (evaluate, (None, 1), (labelled,)),
    "fix": (fix, (None, 1), (labelled,)),
    "sample": (sample_lanes, (None, None, 0), (key, lanes)),
}


def close(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return bool(np.allclose(a, b, 1e-6) if a.dtype.kind == "f" else (a == b).all())


same, parts = {}, {}
for form in ("rows", "arrays"):
    whole = sharding.replicated(lower(Problem.build(graph, THREE_CHIPS), form=form), batch)
    for name, (function, axes, arguments) in programs.items():
        found = sharding.split(function, batch, axes)(whole, *arguments)
        alone = function(problem, *map(jnp.asarray, arguments))
        leaves = list(map(jax.tree.leaves, (found, alone)))
        same[f"{name}, {form}"] = all(map(close, *leaves))
        shards = leaves[0][0].addressable_shards
        parts[f"{name}, {form}"] = [
            [shard.data.shape[-1] for shard in shards], len({shard.device for shard in shards})
        ]
traces = []


def seen(unused, rows, scale):
    traces.append(rows.shape)
    return rows * scale


for _ in range(3):
    sharding.split(seen, 32, (None, 0), 0, scale=2)(whole, jnp.ones((32, 3)))
answer = {
    "searches": searches,
    "same": same,
    "parts": parts,
    "traces": sorted(traces),
    "counts": [sharding.devices_for(size) for size in (24, 16, 12, 6, 4, 2, 1, 7)],
    "with least": [sharding.devices_for(size, 64) for size in (512, 256, 192, 128, 64, 2, 129)],
}
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer():
    """What a process with four virtual devices finds."""
    return printed_by(PROGRAM)


@pytest.mark.parametrize("search", ["slice", "random", "paper_annealing"])
def test_searches_on_four_devices_end_as_on_one(answer, search):
    one, four = answer["searches"][search]
    assert one == four


@pytest.mark.parametrize("form", ["rows", "arrays"])
@pytest.mark.parametrize("program", ["evaluate", "fix", "sample"])
def test_every_device_has_an_equal_part_and_finds_what_one_would(answer, program, form):
    name = f"{program}, {form}"
    assert answer["same"][name]
    assert answer["parts"][name] == [[64, 64, 64, 64], 4]


def test_parts_are_of_even_size(answer):
    assert answer["counts"] == [4, 4, 2, 1, 2, 1, 1, 1]


def test_few_candidates_stay_on_few_devices(answer):
    assert answer["with least"] == [4, 4, 2, 2, 1, 1, 1]


def test_a_program_is_traced_for_its_shapes_and_compiled_once(answer):
    assert answer["traces"] == [[8, 3], [32, 3]]


@pytest.mark.parametrize("batch", [1, 6, 512])
def test_on_one_device_nothing_changes(batch, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    tree = {"a": np.ones(3)}
    assert devices_for(batch) == 1
    assert replicated(tree, batch) is tree
    assert split(evaluate, batch, (None, 1)) is evaluate
