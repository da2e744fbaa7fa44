"""Both forms of each program give the same, bit for bit, on 6,000 nodes and 1,024 chips.

Labels are int16 there, sets of chips have 32 words, and segments of edges several levels. All
amounts are multiples of 125 over powers of two, so that sums are exact in any order. `evaluate` has
a test of its own (`tests/cost/test_evaluate.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.device import lower, pad_assignments
from jaxpart.methods.annealing import row
from jaxpart.methods.annealing.ensemble import evaluated
from jaxpart.methods.annealing.moves import Chains
from jaxpart.methods.annealing.price import energy_of
from jaxpart.methods.annealing.state import moves_of, tables_of
from jaxpart.methods.labels.projection import project
from jaxpart.methods.labels.sampling import sample_lanes
from jaxpart.methods.orders.probe import probe
from jaxpart.methods.orders.search import mutate, order_by
from jaxpart.methods.orders.slicing import slice_orders
from jaxpart.methods.orders.weights import weights_of
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip
from jaxpart.problem.problem import Problem
from tests.support.compiling import quick

NODES, CHIPS, BATCH, WINDOW = 6000, 1024, 2, 64
FORMS = ("rows", "arrays")


def deep(nodes: int) -> Graph:
    """A path with short cuts, groups of two, and a tensor with 70 consumers."""
    rng = np.random.default_rng(0)
    flops, sizes = 125.0 * rng.integers(1, 9, nodes), 125.0 * rng.integers(1, 7, nodes)
    members = tuple(
        Node(f"n{v}", "op", flops[v], 125.0, colocate=v // 40 if v % 40 < 2 else None)
        for v in range(nodes)
    )
    tensors = []
    for v in range(nodes - 1):
        near = {v + 1, min(nodes - 1, v + int(rng.integers(1, 7)))} if v % 3 == 0 else {v + 1}
        tensors.append(Tensor(v, sizes[v], tuple(sorted(near))))
    hub = nodes // 2
    tensors.append(Tensor(hub, 250.0, tuple(range(hub + 1, hub + 71))))
    weights = tuple(Weight(125.0, (v, v + 1)) for v in range(0, nodes - 1, nodes // 6))
    return Graph(members, tuple(tensors), weights, "deep", 1)


@functools.cache
def deep_problem() -> Problem:
    """On a chain of chips on which everything fits."""
    chips = (Chip(1024.0, 1024.0, 1e9),) * CHIPS
    return Problem.build(deep(NODES), MCM("m", "chain", chips, 1024.0))


@functools.cache
def nodes_of(form):
    return lower(deep_problem(), form=form)


@functools.cache
def contracted_of(form):
    return lower(deep_problem().contracted, form=form)


def rising(problem: Problem) -> np.ndarray:
    """[N, BATCH] labels that rise from chip 0 to the last; some are random in the last column."""
    rng = np.random.default_rng(1)
    f = np.repeat(np.arange(problem.num_nodes)[:, None] * CHIPS // problem.num_nodes, BATCH, axis=1)
    is_noise = rng.random(problem.num_nodes) < 0.1
    f[is_noise, -1] = rng.integers(0, CHIPS, is_noise.sum())
    return f


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype


def test_the_problem_is_as_large_as_it_should_be():
    assert deep_problem().num_contracted > 5800
    assert nodes_of("rows").config.chip_dtype == jnp.int16
    tables = nodes_of("arrays").tables
    assert tables is not None
    assert len(tables.tensor_edges) == 3


def test_labels_are_projected_alike():
    labels = jnp.asarray(pad_assignments(nodes_of("rows"), rising(deep_problem())))
    found = [quick(project)(nodes_of("rows"), labels), project(nodes_of("arrays"), labels)]

    assert_same(*found)
    assert found[0][1].all()
    assert found[0][0].max() == CHIPS - 1


def test_samples_are_drawn_alike():
    lanes = jnp.arange(1)  # a product of 6,144 x 6,144 in each of 14 rounds
    arguments = jax.random.key(0), lanes
    found = [
        quick(sample_lanes)(nodes_of("rows"), *arguments),
        sample_lanes(nodes_of("arrays"), *arguments),
    ]

    assert_same(*found)
    assert found[0].max() > 127


@functools.cache
def orders(form):
    device = contracted_of(form)
    program = jnp.arange(device.padded_nodes, dtype=jnp.float32)[None]
    return order_by(device, mutate(jax.random.key(0), program, device.num_nodes, BATCH))


def peaks() -> jax.Array:
    rng = np.random.default_rng(2)
    return jnp.asarray(125.0 * rng.integers(0, 9, orders("rows").shape), jnp.float32)


def test_orders_are_sorted_alike():
    assert_same(*map(orders, FORMS))


def test_orders_are_cut_alike():
    found = [
        slice_orders(contracted_of(form), orders("rows"), peaks(), window=WINDOW) for form in FORMS
    ]

    assert_same(*found)
    assert np.isfinite(found[0][0]).any()
    assert found[0][1].max() > 127


def test_orders_are_probed_alike():
    weights = weights_of(deep_problem().contracted, contracted_of("rows").padded_nodes)
    limits_s = jnp.array([20.0, 160.0])
    given = weights, orders("rows").T, peaks().T, limits_s
    found = [probe(contracted_of(form), *given, window=WINDOW) for form in FORMS]

    assert_same(*found)
    assert found[0].covered.min() > 64


def test_chains_move_alike_on_a_row_of_chips():
    problem = deep_problem()
    moves = {form: moves_of(problem, np.eye(CHIPS, k=1, dtype=bool), form) for form in FORMS}
    count = problem.num_contracted
    labels = np.zeros((count, BATCH), np.int64)
    labels[problem.contraction] = rising(problem)[:, :1]  # whose edges keep to the row
    labels = jnp.asarray(pad_assignments(moves["rows"].contracted, labels))
    order = jnp.asarray(np.random.default_rng(3).permutation(count))
    order, visits = jnp.resize(order, (len(labels),)), jnp.int32(256)
    unit_s, warm = jnp.float32(64.0), jnp.array([1e-2, 1e2], jnp.float32)
    noise, none = jnp.arange(1, BATCH + 1, dtype=jnp.uint32), jnp.zeros(BATCH, jnp.int32)

    costs = quick(evaluated)(moves["rows"], labels)

    def swept(moves):
        tables = quick(tables_of)(moves, labels, costs)
        chains = Chains(labels, tables, energy_of(moves, tables, unit_s), noise, none, none)
        sweep = quick(row.row_sweep, static=("share",))
        return sweep(moves, chains, order, visits, warm, unit_s, share=1)

    one, other = (swept(moves[form]) for form in FORMS)
    np.testing.assert_array_equal(one.labels[:count], other.labels[:count])
    for field in ("noise", "priced", "accepted"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    for field in ("compute_s", "in_s", "out_s", "link_s", "memory_bytes", "contracted_on"):
        first, second = getattr(one.tables, field), getattr(other.tables, field)
        np.testing.assert_array_equal(first, second, err_msg=field)
    assert one.accepted.sum() > 0
