"""The two forms of the annealing programs: rows of chains, and whole arrays, move the same.

Amounts of the random problems are multiples of 125 and rates are powers of two times 1000, so sums
of seconds and bytes are exact in any order. Energies are powers, which may differ by rounding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.device import pad_assignments
from jaxpart.cost.evaluate import verify
from jaxpart.methods.annealing import by_arrays, by_rows, row, shift_at_once
from jaxpart.methods.annealing.ensemble import ensemble_of, evaluated, matching, temper
from jaxpart.methods.annealing.moves import Chains, movable, shift_sweep, single_sweep
from jaxpart.methods.annealing.neighbours import neighbours_of
from jaxpart.methods.annealing.price import energy_of
from jaxpart.methods.annealing.state import chip_graph_of, moves_of, tables_of
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from tests.support.strategies import random_graph, random_mcm

CHIPS, LANES, SHARE = 4, 16, 4
FORMS = ("rows", "arrays")
EVERY = np.stack(np.meshgrid(*[np.arange(CHIPS)] * 6, indexing="ij")).reshape(6, -1)
WARM = jnp.geomspace(1e-3, 1e3, LANES).astype(jnp.float32)
UNIT_S = jnp.float32(1.0)

single = jax.jit(single_sweep)
in_row = jax.jit(row.row_sweep, static_argnames="share")
shift_row = jax.jit(row.row_shift), jax.jit(shift_at_once.row_shift)
shift = jax.jit(shift_sweep)
follow = jax.jit(by_rows.followers, static_argnames="upward"), jax.jit(by_arrays.followers)
can_move = jax.jit(movable)
counted = jax.jit(tables_of)
costed = jax.jit(evaluated)


def module(seed, topology, *, overlap, memory_model, **rules):
    mcm = random_mcm(np.random.default_rng(seed), num_chips=CHIPS, topology=topology)
    return dataclasses.replace(
        mcm, overlap=overlap, memory_model=memory_model, constraints=Constraints(**rules)
    )


MODULES = {
    "row": module(3, "chain", overlap=True, memory_model="full"),
    "row, no memory": module(1, "chain", overlap=False, memory_model="weights", memory=False),
    "row, host": module(5, "host", overlap=False, memory_model="weights", no_skip=False),
    "branches": module(3, "chain", overlap=True, memory_model="full"),
    "branches, host": module(7, "host", overlap=False, memory_model="full"),
    "dataflow": module(2, "chain", overlap=False, memory_model="full", triangle=False),
    "anywhere": module(
        4, "host", overlap=True, memory_model="weights", acyclic=False, triangle=False
    ),
}


def cases(name, count):
    """Problems, the moves in both forms, and chains of valid partitions with one chip graph."""
    mcm, seed = MODULES[name], 0
    while count:
        seed += 1
        rng = np.random.default_rng(seed)
        graph = random_graph(rng, num_nodes=6, num_tensors=7, num_weights=4, max_chips=CHIPS)
        problem = Problem.build(graph, mcm)
        if (problem.contracted_fixed_chip == -2).any():
            continue
        valid = EVERY[:, verify(problem, EVERY).valid]
        steps = valid[problem.edge_consumer] - valid[problem.edge_producer]
        if name.startswith("branches"):
            valid = valid[:, (steps > 1).any(axis=0)]
        elif name.startswith("row"):
            valid = valid[:, (steps <= 1).all(axis=0)]
        if valid.shape[1] < 2:
            continue
        chip_graph = chip_graph_of(problem, valid[:, rng.integers(valid.shape[1])], rng)
        joined = chip_graph | np.eye(CHIPS, dtype=bool)
        pairs = valid[problem.node_pairs].transpose(2, 0, 1)
        valid = valid[:, joined[pairs[..., 0], pairs[..., 1]].all(axis=1)]
        both = [moves_of(problem, chip_graph, form) for form in FORMS]
        columns = np.zeros((problem.num_contracted, LANES), np.int64)
        columns[problem.contraction] = valid[:, rng.integers(valid.shape[1], size=LANES)]
        labels = jnp.asarray(pad_assignments(both[0].contracted, columns))
        count -= 1
        yield rng, problem, both, labels


def chains_of(moves, labels, seed):
    tables = counted(moves, labels, costed(moves, labels))
    noise = jax.random.bits(jax.random.key(seed), (LANES,), jnp.uint32) | 1
    none = jnp.zeros(LANES, jnp.int32)
    return Chains(labels, tables, energy_of(moves, tables, UNIT_S), noise, none, none)


def assert_same(problem, first, second):
    """All that chains hold but the energies and what stands for no weight and for padding."""
    assert first.labels.dtype == second.labels.dtype
    for field in ("noise", "priced", "accepted"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    count = problem.num_contracted
    np.testing.assert_array_equal(first.labels[:count], second.labels[:count])
    for field in ("compute_s", "in_s", "out_s", "link_s", "memory_bytes", "contracted_on"):
        one, other = getattr(first.tables, field), getattr(second.tables, field)
        np.testing.assert_array_equal(one, other, err_msg=field)
    uses = first.tables.weight_uses, second.tables.weight_uses
    np.testing.assert_array_equal(uses[0][:-1], uses[1][:-1])
    np.testing.assert_allclose(first.energy, second.energy, rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_sweeps_accept_the_same_moves(name):
    accepted = 0
    for rng, problem, both, labels in cases(name, 5):
        assert both[0].is_row == name.startswith("row")
        pair = [chains_of(moves, labels, 7) for moves in both]
        assert_same(problem, *pair)
        for _ in range(3):
            order = rng.permutation(problem.num_contracted)
            order = jnp.resize(jnp.asarray(order), (both[0].contracted.padded_nodes,))
            count = jnp.int32(rng.integers(problem.num_contracted + 1))
            for i, moves in enumerate(both):
                if moves.is_row:
                    pair[i] = in_row(moves, pair[i], order, count, WARM, UNIT_S, share=SHARE)
                else:
                    pair[i] = single(moves, pair[i], order, count, WARM, UNIT_S)
            assert_same(problem, *pair)
            shares = [can_move(m, c.labels) for m, c in zip(both, pair, strict=True)]
            np.testing.assert_array_equal(*shares)
        accepted += int(pair[0].accepted.sum())
    assert accepted > 20


@pytest.mark.parametrize("name", MODULES)
def test_shifts_move_the_same_groups(name):
    moved = 0
    for rng, problem, both, labels in cases(name, 5):
        pair = [chains_of(moves, labels, 3) for moves in both]
        size, count = both[0].contracted.padded_nodes, problem.num_contracted
        for turn in range(4):
            upward = bool(turn % 2)
            producers_first = np.arange(size)
            consumers_first = producers_first.copy()
            consumers_first[:count] = consumers_first[:count][::-1]
            leaving = consumers_first if upward else producers_first
            following = producers_first if upward else consumers_first
            seeds = jnp.asarray(rng.random((size, LANES)) < 0.5)
            source = jnp.int32(rng.integers(CHIPS))
            goal = matching(both[0], jax.random.key(turn))
            chip = jnp.arange(CHIPS)
            goal = jnp.where((goal != chip) & ((goal > chip) == upward), goal, -1)
            quota_s = jnp.asarray(rng.exponential(4.0, (CHIPS, LANES)), jnp.float32)
            chosen = [
                np.asarray(run(moves, labels, seeds, following, count, upward=upward))
                for run, moves in zip(follow, both, strict=True)
            ]
            np.testing.assert_array_equal(chosen[0][:count], chosen[1][:count])
            on_source = np.asarray(labels) == int(source)
            one_chip = follow[1](both[1], labels, seeds, following, count, upward, source)
            np.testing.assert_array_equal(
                np.asarray(one_chip)[:count][on_source[:count]],
                chosen[0][:count][on_source[:count]],
            )
            for i, moves in enumerate(both):
                before = pair[i]
                if moves.is_row:
                    pair[i] = shift_row[i](
                        moves,
                        before,
                        leaving,
                        count,
                        source,
                        upward,
                        quota_s[0],
                        chosen[i],
                        WARM,
                        UNIT_S,
                    )
                else:
                    pair[i] = shift(moves, before, leaving, goal, quota_s, chosen[i])
                    tables = counted(moves, pair[i].labels, costed(moves, pair[i].labels))
                    pair[i] = pair[i].replace(tables=tables)
                moved += int((pair[i].labels[:count] != before.labels[:count]).sum())
            assert_same(problem, *pair)
            labels = pair[0].labels
    assert moved > 20


@pytest.mark.parametrize("name", ["row", "dataflow"])
def test_rounds_are_the_same(name):
    for _, problem, both, labels in cases(name, 2):
        size = both[0].contracted.padded_nodes
        ensemble = ensemble_of(labels, jax.random.key(1))
        orders = jnp.arange(size)[None]
        first, second = (
            temper(moves, ensemble, orders, jax.random.key(2), UNIT_S, 8, share=SHARE)
            for moves in both
        )
        count = problem.num_contracted
        for field in ("labels", "best"):
            one, other = getattr(first, field), getattr(second, field)
            np.testing.assert_array_equal(one[:count], other[:count])
        for field in ("temperature", "noise", "best_s", "proposed", "priced", "accepted"):
            np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
        assert first.accepted > 0


def test_readers_are_the_other_consumers_of_what_a_node_consumes():
    for _, problem, both, _ in cases("row", 5):
        contracted, moves = problem.contracted, both[1]
        shared = np.asarray(moves.weights.shared)
        near = neighbours_of(moves.contracted, shared, len(moves.weights.shared_bytes))
        np.testing.assert_array_equal(contracted.contraction, np.arange(contracted.num_nodes))
        start = np.asarray(near.reader_start)
        for v in range(contracted.num_nodes):
            inputs = contracted.edge_tensor[contracted.edge_consumer == v]
            expected = [
                contracted.edge_consumer[
                    (contracted.edge_tensor == k) & (contracted.edge_consumer != v)
                ]
                for k in inputs
            ]
            found = np.asarray(near.reader)[start[v] : start[v + 1]]
            assert sorted(found) == sorted(np.concatenate([[], *expected]).astype(int))
