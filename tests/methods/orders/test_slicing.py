"""Slicing against every set of cuts, on random small graphs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.device import Form, lower
from jaxpart.cost.evaluate import verify
from jaxpart.cost.host import peak_bounds
from jaxpart.methods.orders import slicing_by_arrays
from jaxpart.methods.orders.search import mutate, order_by
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.problem.mcm import Constraints, load_mcm
from jaxpart.problem.problem import Problem
from tests.support.modules import MODULES, WEIGHTS_ONLY
from tests.support.problems import every_slicing, keeps_span
from tests.support.strategies import random_graph

FORMS = ("rows", "arrays")


def program_order_cut(
    problem: Problem, form: Form, cautious: bool = False
) -> tuple[float, np.ndarray]:
    contracted = lower(problem.contracted, form=form)
    order = jnp.arange(contracted.padded_nodes, dtype=jnp.int32)[None]
    peak = np.zeros((1, contracted.padded_nodes), np.float32)
    peak[0, : problem.num_contracted] = peak_bounds(problem)[int(cautious)]
    bottleneck_s, chips = slice_orders(contracted, order, jnp.asarray(peak), 64)
    return float(bottleneck_s[0]), np.asarray(chips)[problem.contraction][:, 0].astype(np.int64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODULES)
def test_program_order_is_cut_as_well_as_the_best_of_all_cuts(name, form):
    module = MODULES[name]
    rng = np.random.default_rng(0)
    solved = 0
    for _ in range(25):
        problem = Problem.build(random_graph(rng, max_nodes=7, max_chips=module.num_chips), module)
        if (problem.contracted_fixed_chip == -2).any():
            continue
        candidates = every_slicing(problem)
        costs = verify(problem, candidates)
        allowed = costs.valid
        if module.constraints.triangle:
            allowed = allowed & keeps_span(problem, candidates)
        bottleneck_s, assignment = program_order_cut(problem, form)
        if not allowed.any():
            assert bottleneck_s == np.inf
            continue
        solved += 1
        found = verify(problem, assignment[:, None])
        assert found.valid[0]
        best = costs.bottleneck_s[allowed].min()
        np.testing.assert_allclose(found.bottleneck_s[0], best, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(bottleneck_s, best, rtol=1e-5, atol=1e-9)
    assert solved >= 10


@pytest.mark.parametrize("form", FORMS)
def test_of_full_memory_one_bound_misses_nothing_and_the_other_always_fits(form):
    module = dataclasses.replace(WEIGHTS_ONLY, memory_model="full")
    rng = np.random.default_rng(1)
    solved = fitted = 0
    for _ in range(40):
        graph = random_graph(rng, max_nodes=7, max_chips=3)
        problem = Problem.build(graph, module)
        candidates = every_slicing(problem)
        costs = verify(problem, candidates)
        allowed = costs.valid & keeps_span(problem, candidates)
        if allowed.any():
            solved += 1
            bottleneck_s, _ = program_order_cut(problem, form)
            assert bottleneck_s <= costs.bottleneck_s[allowed].min() * (1 + 1e-5) + 1e-9
        bottleneck_s, assignment = program_order_cut(problem, form, cautious=True)
        if bottleneck_s < np.inf:
            fitted += 1
            assert verify(problem, assignment[:, None]).valid[0]
    assert solved >= 10
    assert fitted >= 10


def random_orders(problem: Problem, batch: int) -> jnp.ndarray:
    """Topological orders [batch, N] of a contracted problem."""
    lowered = lower(problem, form="rows")
    program = jnp.arange(lowered.padded_nodes, dtype=jnp.float32)[None]
    keys = mutate(jax.random.key(problem.num_nodes), program, problem.num_nodes, batch)
    return order_by(lowered, keys)


# With a power of two as bandwidth, all sums are exact. With another one XLA may multiply by its
# rounded reciprocal, in one program and not in another.
EXACT = {
    name: dataclasses.replace(module, link_bandwidth=1024.0)
    for name, module in {
        **MODULES,
        "full memory": dataclasses.replace(WEIGHTS_ONLY, memory_model="full"),
        "full memory, any triangle": dataclasses.replace(
            MODULES["chain, any triangle"], memory_model="full"
        ),
        "no memory rule": dataclasses.replace(
            WEIGHTS_ONLY, constraints=Constraints(memory=False, triangle=False, no_skip=False)
        ),
    }.items()
}


LONG = ("chain", "unlike chips", "chips may be skipped", "full memory, any triangle")


@pytest.mark.parametrize(
    ("name", "nodes", "window", "graphs"),
    [*((name, 9, 5, 3) for name in EXACT), *((name, 70, 40, 1) for name in LONG)],
)
def test_both_forms_agree_bit_for_bit(name, nodes, window, graphs):
    rng = np.random.default_rng(nodes)
    chips = tuple(dataclasses.replace(chip, sram_bytes=450 * nodes) for chip in EXACT[name].chips)
    module = dataclasses.replace(EXACT[name], chips=chips)
    found = 0
    for _ in range(graphs):
        graph = random_graph(
            rng, 7, 2, num_nodes=nodes, num_tensors=nodes, num_weights=nodes // 2, pins=nodes < 20
        )
        problem = Problem.build(graph, module)
        if (problem.contracted_fixed_chip == -2).any():
            continue
        problem = problem.contracted
        orders = random_orders(problem, 8)
        peaks = jnp.asarray(125.0 * rng.integers(0, 9, orders.shape), jnp.float32)
        rows, arrays = (
            slice_orders(lower(problem, form=form), orders, peaks, window) for form in FORMS
        )
        np.testing.assert_array_equal(arrays[0], rows[0])
        np.testing.assert_array_equal(arrays[1], rows[1])
        found += int(np.isfinite(np.asarray(rows[0])).sum())
    assert found


def test_a_tpu_sorts_stages_otherwise_and_cuts_alike(monkeypatch):
    # A TPU's choice, made for a CPU.
    monkeypatch.setattr(slicing_by_arrays, "_chosen", lambda *a, tpu, default: tpu(*a))
    monkeypatch.setattr(slicing_by_arrays, "_LENGTHS", 2)
    for name in ("unlike chips", "full memory, any triangle"):
        slice_orders.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
        test_both_forms_agree_bit_for_bit(name, 9, 5, 3)
    slice_orders.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("form", FORMS)
def test_orders_of_a_batch_are_cut_independently(form):
    rng = np.random.default_rng(2)
    problem = Problem.build(random_graph(rng, max_nodes=7, max_chips=3), WEIGHTS_ONLY)
    contracted = lower(problem.contracted, form=form)
    program = np.arange(contracted.padded_nodes, dtype=np.int32)
    orders = [program]
    pairs = {tuple(pair) for pair in problem.contracted_pairs.tolist()}
    for v in range(problem.num_contracted - 1):
        if (v, v + 1) not in pairs:
            swapped = program.copy()
            swapped[[v, v + 1]] = swapped[[v + 1, v]]
            orders.append(swapped)
    peak = jnp.zeros((len(orders), contracted.padded_nodes))
    together = slice_orders(contracted, jnp.asarray(np.stack(orders)), peak, 64)
    for b, order in enumerate(orders):
        alone = slice_orders(contracted, jnp.asarray(order)[None], peak[:1], 64)
        assert together[0][b] == alone[0][0]
        np.testing.assert_array_equal(together[1][:, b], alone[1][:, 0])


@pytest.mark.parametrize("form", FORMS)
def test_second_graph_of_a_bucket_compiles_nothing(form):
    rng = np.random.default_rng(3)
    slice_orders.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    order = jnp.arange(64, dtype=jnp.int32)[None]
    for _ in range(4):
        graph = random_graph(rng, max_nodes=7, max_chips=3, num_weights=0)
        problem = Problem.build(graph, load_mcm("mcm4"))
        slice_orders(lower(problem.contracted, form=form), order, jnp.zeros((1, 64)), 64)
    assert slice_orders._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_window_covers_the_longest_segment_within_the_bottleneck():
    rng = np.random.default_rng(4)
    for _ in range(20):
        problem = Problem.build(random_graph(rng, max_nodes=9, max_chips=3), WEIGHTS_ONLY)
        contracted = problem.contracted
        seconds = contracted.node_s[:, 0]
        limit = float(seconds.max())
        longest = max(
            j - i
            for i in range(len(seconds))
            for j in range(i + 1, len(seconds) + 1)
            if seconds[i:j].sum() <= limit
        )
        assert window_for(contracted, limit) >= longest
