"""How many candidates a device wants in a step, and how many are computed together."""

import json
import types

import jax
import pytest

from jaxpart import environment
from jaxpart.cost import batch
from jaxpart.cost.chunks import width_of
from jaxpart.cost.device import lower
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support.graphs import line

PROBLEM = lower(Problem.build(line([1.0, 1.0], [4]), load_mcm("mcm4")))


def device(start_s: float, candidate_s: float):
    """Seconds of a step on a device with a fixed cost of each step."""
    return lambda size: start_s + size * candidate_s


@pytest.mark.parametrize(
    ("start_s", "candidate_s", "expected"),
    [
        (0.0, 1e-5, 64),  # nothing is gained by more
        (1e-3, 1e-9, 16_384),  # the start is all that counts
        (1e-4, 1e-7, 4096),  # 8.0 of 9.4 million candidates/s
    ],
)
def test_the_smallest_batch_with_nearly_the_best_throughput_is_taken(
    start_s, candidate_s, expected
):
    assert batch.worthwhile(device(start_s, candidate_s), 64, 16_384) == expected


def test_a_cpu_is_not_asked(monkeypatch):
    monkeypatch.setattr(batch, "_seconds", lambda *_: pytest.fail("timed"))
    assert batch.candidates_per_step(PROBLEM, 512) == 512


def test_an_accelerator_is_asked_once_and_the_answer_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(batch, "is_accelerator", lambda: True)
    asked = []

    def seconds(problem, size):
        asked.append(size)
        return device(1e-3, 1e-9)(size)

    monkeypatch.setattr(batch, "_seconds", seconds)
    assert batch.candidates_per_step(PROBLEM, 512) == 8192
    assert asked == [512, 2048, 8192]
    assert batch.candidates_per_step(PROBLEM, 512) == 8192
    assert len(asked) == 3

    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert batch.candidates_per_step(PROBLEM, 512) == 4 * 8192  # what one of them likes, each
    assert batch.batch_within(PROBLEM, 512, 2**20, 2**30) == 4 * 1024
    assert batch.batch_within(PROBLEM, 512, 2**20, 2**30, is_shared=False) == 1024
    with jax.default_device(jax.devices()[0]):  # it has the batch alone
        assert batch.candidates_per_step(PROBLEM, 512) == 8192
    assert len(asked) == 3

    kept = tmp_path / "cache" / "batches.json"
    (key,) = json.loads(kept.read_bytes())
    assert "64 nodes, 4 chips, chain" in key
    wrong = [json.dumps({key: size}).encode() for size in (0, -512, 511, 2**40, True, 1024.0)]
    for times, content in enumerate([b"{damaged", b"[]", *wrong], 2):
        kept.write_bytes(content)
        assert batch.candidates_per_step(PROBLEM, 512) == 4 * 8192
        assert len(asked) == 3 * times
        assert json.loads(kept.read_bytes()) == {key: 8192}


@pytest.mark.parametrize(
    ("candidate_bytes", "expected"),
    [
        (1, 4096),  # what the device likes
        (2**20, 1024),
        (3 * 2**20, 256),  # the largest power of two of which all fit
        (2**26, 64),  # never fewer than on a CPU
        (2**40, 64),
    ],
)
def test_candidates_that_take_much_memory_are_fewer(monkeypatch, candidate_bytes, expected):
    monkeypatch.setattr(batch, "_liked", lambda problem, least: 4096)
    assert batch.batch_within(PROBLEM, 64, candidate_bytes, 2**30) == 64
    monkeypatch.setattr(batch, "is_accelerator", lambda: True)
    assert batch.batch_within(PROBLEM, 64, candidate_bytes, 2**30) == expected


def test_candidates_get_a_share_of_the_memory_that_the_device_says_it_has(monkeypatch):
    monkeypatch.setattr(batch, "_liked", lambda problem, least: 16_384)
    monkeypatch.setattr(batch, "is_accelerator", lambda: True)
    assert batch.batch_within(PROBLEM, 64, 2**22) == 1024  # it does not say: 4 GiB
    on_gpu(monkeypatch, 64 * 2**30)
    assert batch.batch_within(PROBLEM, 64, 2**22) == 2048  # an eighth
    assert width_of(2**20) == 4096  # a sixteenth
    assert width_of(2**30) == 16  # a quarter
    on_gpu(monkeypatch, -1)
    assert width_of(2**20) == 2048


def on_gpu(monkeypatch, bytes_limit):
    """Makes a GPU with so much memory the default device; a negative one is not known."""
    gpu = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": bytes_limit})
    monkeypatch.setattr(environment, "backend", lambda: "gpu")
    monkeypatch.setattr(environment, "default_device", lambda: gpu)


@pytest.mark.parametrize(
    ("candidate_bytes", "expected"),
    [
        (2**20, 2048),
        (5 * 2**20, 384),  # a multiple of 128
        (2**25, 128),  # more than the budget, but not by much
        (2**30, 8),  # 128 of them fit in no memory
        (2**40, 1),
    ],
)
def test_a_chunk_has_fewer_candidates_the_more_memory_each_takes(candidate_bytes, expected):
    assert width_of(candidate_bytes) == expected
