"""The evolution of orders: who survives, whose cuts are looked for, and the programs of a GPU."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost import batch
from jaxpart.engine import partition
from jaxpart.methods.orders import search as orders
from jaxpart.methods.orders.probe import Probed
from jaxpart.problem.mcm import Constraints
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

LANES, NODES = 40, 6


def test_those_survive_that_cover_most_and_at_a_tie_the_later_lanes():
    rng = np.random.default_rng(0)
    rows = rng.permuted(np.tile(np.arange(NODES, dtype=np.int32), (LANES, 1)), axis=1)
    covered = rng.integers(0, 5, LANES).astype(np.int32)
    passes = covered == 4
    found = Probed(jnp.asarray(passes), jnp.asarray(covered), jnp.zeros((NODES, LANES), jnp.int32))

    kept, lanes, pass_too = orders.survivors(jnp.asarray(rows), found)

    expected = sorted(range(LANES), key=lambda lane: (-covered[lane], -lane))[:16]
    np.testing.assert_array_equal(lanes, expected)
    np.testing.assert_array_equal(kept, rows[expected])
    np.testing.assert_array_equal(pass_too, passes[expected])


def test_the_best_of_parents_and_children_survive_and_at_a_tie_the_children():
    rng = np.random.default_rng(1)
    children = rng.permuted(np.tile(np.arange(NODES, dtype=np.int32), (12, 1)), axis=1)
    seconds = rng.integers(1, 4, 12).astype(np.float32)
    valid = rng.random(12) < 0.7
    costs = types.SimpleNamespace(valid=jnp.asarray(valid), bottleneck_s=jnp.asarray(seconds))
    parents, fitness = rng.random((9, NODES), np.float32), np.float32([1, 1, 2, 2, 2, 3, 3, 3, 9])  # pyright: ignore

    arguments = jnp.asarray(children), costs, jnp.asarray(parents), jnp.asarray(fitness)
    keys, best_s = orders.fittest.__wrapped__(*arguments)  # pyright: ignore

    pool = np.concatenate([np.where(valid, seconds, np.inf), fitness])
    expected = sorted(range(21), key=lambda i: (pool[i], i))[:16]
    np.testing.assert_array_equal(best_s, pool[expected])
    of_children = np.argsort(children, axis=1)
    np.testing.assert_array_equal(keys, np.concatenate([of_children, parents])[expected])


@pytest.mark.parametrize(("best_s", "expected"), [(1.0, [5, 2, 1, 0]), (0.9, [])])
def test_orders_that_beat_only_a_former_incumbent_are_not_cut(best_s, expected):
    passes = jnp.asarray([True, False, True, True, True, True])
    lanes = jnp.asarray([5, 4, 2, 1, 0, 3])
    limit_s = 1.0 * orders._BETTER
    found = orders._Generation(limit_s, jnp.arange(6)[:, None] * 10, lanes, passes)

    rows, chosen = orders._winners(types.SimpleNamespace(best_s=best_s), found)  # pyright: ignore

    assert chosen.tolist() == expected
    assert rows[:, 0].tolist() == [0, 20, 30, 40][: len(expected)]


@pytest.mark.parametrize("triangle", [True, False])
def test_by_the_programs_of_a_gpu_a_search_finds_what_it_finds_by_those_of_a_cpu(
    triangle, monkeypatch
):
    module = dataclasses.replace(
        THREE_CHIPS, constraints=Constraints(memory=False, triangle=triangle)
    )

    def best_s(samples):
        result = partition(
            parallel_chains(3, 6),
            module,
            method="slice",
            max_samples=samples,
            time_limit_s=None,
            relative_gap=0.0,
        )
        assert result.costs.valid
        return float(result.costs.bottleneck_s)

    on_cpu = best_s(2000)
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jaxpart.cost.device.warn_of_slow_release", lambda: None)
    monkeypatch.setattr(batch, "_liked", lambda *_: asked.append(1) or 128)

    assert best_s(4000) <= on_cpu * 1.01
    assert asked
