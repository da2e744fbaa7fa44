from importlib import metadata

import jax
import pytest
from support.graphs import diamonds

from jaxpart import environment
from jaxpart.cost.device import lower


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


def test_who_lowers_a_problem_on_a_slow_release_is_warned(on_gpu):
    on_gpu("0.10.2")

    with pytest.warns(UserWarning, match="slow scatters"):
        lower(diamonds(3), form="rows")
