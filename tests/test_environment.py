from importlib import metadata
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpart
from jaxpart import environment
from jaxpart.cost.device import lower
from jaxpart.cost.evaluate import verify
from jaxpart.cost.tables import make_tables
from jaxpart.errors import InputError
from jaxpart.problem.problem import Problem
from tests.support.graphs import diamonds, line
from tests.support.modules import THREE_CHIPS


@pytest.fixture
def on_gpu(monkeypatch):
    """A process that has warned of nothing yet, on a GPU, with a release that is then set."""
    real = metadata.version
    monkeypatch.setattr(environment, "_warned", False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def release(name):
        monkeypatch.setattr(
            metadata, "version", lambda package: name if package == "jaxlib" else real(package)
        )

    return release


@pytest.mark.parametrize("release", ["0.10.2", "0.11.0", "0.11.0.dev20260701"])
def test_a_slow_release_is_named_once(on_gpu, release):
    on_gpu(release)
    told = []

    environment.warn_of_slow_release(told.append)
    environment.warn_of_slow_release(told.append)

    assert len(told) == 1
    assert told[0].startswith(f"jaxlib {release} has slow scatters on a GPU")


@pytest.mark.parametrize("release", ["0.10.1", "0.11.1", "0.12.0.1"])
def test_other_releases_are_not_named(on_gpu, release):
    on_gpu(release)
    told = []

    environment.warn_of_slow_release(told.append)

    assert told == []


def test_no_release_is_named_on_a_cpu(monkeypatch):
    monkeypatch.setattr(environment, "_warned", False)
    monkeypatch.setattr(metadata, "version", lambda package: "0.10.2")
    told = []

    environment.warn_of_slow_release(told.append)

    assert told == []


def test_the_form_follows_the_default_device(on_gpu):
    on_gpu("0.12.0")
    problem = Problem.build(line([1.0, 1.0], [4]), THREE_CHIPS)
    assert environment.backend() == "gpu"
    assert lower(problem).tables is not None
    for chosen in ("cpu", jax.devices("cpu")[0]):
        with jax.default_device(chosen):
            assert environment.backend() == "cpu"
            assert lower(problem).tables is None


def test_a_problem_is_put_on_the_device_once():
    problem = Problem.build(line([1.0, 1.0], [4]), THREE_CHIPS)
    with mock.patch("jaxpart.cost.device.make_tables", wraps=make_tables) as made:
        arrays = lower(problem, form="arrays")
        assert lower(problem, form="arrays") is arrays
        assert lower(problem) is lower(problem, form="rows")
    assert made.call_count == 1
    assert lower(problem) is not lower(Problem.build(problem.graph, problem.mcm))
    with jax.enable_x64(True):
        assert lower(problem, jnp.float64).node_s.dtype == jnp.float64
    assert lower(problem, jnp.float64).node_s.dtype == jnp.float32


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cuda"])
def test_results_need_the_cpu_beside_an_accelerator(platforms):
    graph = line([1.0, 1.0], [4])
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    expected = f"JAX_PLATFORMS is {platforms}: expected {platforms},cpu, since results"
    jax.config.update("jax_platforms", platforms)
    try:
        with pytest.raises(InputError, match=expected):
            jaxpart.partition(graph, THREE_CHIPS)
        with pytest.raises(InputError, match=expected):
            verify(Problem.build(graph, THREE_CHIPS), np.zeros((2, 1), np.int64))
    finally:
        jax.config.update("jax_platforms", before)


def test_who_lowers_a_problem_on_a_slow_release_is_warned(on_gpu):
    on_gpu("0.10.2")

    with pytest.warns(UserWarning, match="slow scatters"):
        lower(diamonds(3), form="rows")
