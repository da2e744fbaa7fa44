"""The two forms of the annealing programs: rows of chains, and whole arrays, move the same.

Amounts of the problems are exact in float32, so that what chains keep is equal bit for bit, and
equal to what is computed anew from their labels. Energies are powers, which may differ by rounding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.host import peak_bytes
from jaxpart.methods.annealing import by_arrays, by_rows, row, shift_at_once
from jaxpart.methods.annealing import ensemble as ensembles
from jaxpart.methods.annealing.ensemble import ensemble_of, matching, temper
from jaxpart.methods.annealing.moves import movable, shift_sweep, single_sweep
from jaxpart.methods.annealing.neighbours import readers_of
from tests.support import oracle
from tests.support.annealing import (
    CHIPS,
    FORMS,
    LANES,
    MODULES,
    SHARE,
    UNIT_S,
    chains_of,
    instances,
    rebuilt,
)
from tests.support.compiling import quick

WARM = jnp.geomspace(1e-3, 1e3, LANES).astype(jnp.float32)
TABLES = ("compute_s", "in_s", "out_s", "link_s", "memory_bytes", "contracted_on")

single = quick(single_sweep)
in_row = quick(row.row_sweep, static=("share",))
shift_row = quick(row.row_shift), quick(shift_at_once.row_shift)
shift = quick(shift_sweep)
follow = quick(by_rows.followers, static=("upward",)), quick(by_arrays.followers)
can_move = quick(movable)


def pairs(name, count):
    """Problems with the moves in both forms and chains of both that start alike."""
    for instance in instances(name, count):
        both = [instance.moves[form] for form in FORMS]
        chains = [chains_of(instance, form, 7) for form in FORMS]
        assert_same(instance.problem, *chains)
        yield instance, np.random.default_rng(instance.seed), both, chains


def assert_same(problem, first, second):
    """All that chains hold but the energies and what stands for no weight and for padding."""
    assert first.labels.dtype == second.labels.dtype
    for field in ("noise", "priced", "accepted"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    count = problem.num_contracted
    np.testing.assert_array_equal(first.labels[:count], second.labels[:count])
    for field in TABLES:
        one, other = getattr(first.tables, field), getattr(second.tables, field)
        np.testing.assert_array_equal(one, other, err_msg=field)
    uses = first.tables.weight_uses, second.tables.weight_uses
    np.testing.assert_array_equal(uses[0][:-1], uses[1][:-1])
    np.testing.assert_allclose(first.energy, second.energy, rtol=1e-5)


def assert_kept(instance, chains):
    """The tables are those of the labels, but for peaks of memory; the costs are the oracle's."""
    problem, count = instance.problem, instance.problem.num_contracted
    new = rebuilt(instance, "arrays", chains.labels)
    for field in TABLES:
        if (field == "in_s" and instance.moves["arrays"].is_row) or field == "memory_bytes":
            continue  # on a row of chips, a chip receives what the one before it sends
        one, other = getattr(chains.tables, field), getattr(new, field)
        np.testing.assert_array_equal(one, other, err_msg=field)
    np.testing.assert_array_equal(chains.tables.weight_uses[:-1], new.weight_uses[:-1])
    columns = np.asarray(chains.labels)[:count][problem.contraction].astype(np.int64)
    for lane in range(LANES):
        truth = oracle.evaluate(instance.graph, problem.mcm, tuple(columns[:, lane].tolist()))
        np.testing.assert_allclose(chains.tables.compute_s[:, lane], truth.compute_s, rtol=1e-6)
        np.testing.assert_allclose(chains.tables.out_s[:, lane], truth.out_s, rtol=1e-6)
        if not problem.mcm.constraints.memory:
            continue
        held = chains.tables.memory_bytes[:, lane] - peaks_of(problem, instance.columns[:, lane])
        expected = truth.memory_bytes - peaks_of(problem, columns[:, lane])
        np.testing.assert_allclose(held, expected, rtol=1e-6)


def peaks_of(problem, column):
    """Peak bytes of live activations on each chip, as far as they count."""
    is_full = problem.mcm.memory_model == "full"
    return peak_bytes(problem, column)[0] if is_full else np.zeros(CHIPS)


@pytest.mark.parametrize("name", MODULES)
def test_sweeps_accept_the_same_moves_and_keep_what_evaluation_and_the_oracle_find(name):
    accepted = 0
    for instance, rng, both, chains in pairs(name, 3):
        for _ in range(3):
            order = rng.permutation(instance.problem.num_contracted)
            order = jnp.resize(jnp.asarray(order), (both[0].contracted.padded_nodes,))
            count = jnp.int32(rng.integers(len(instance.columns) + 1))
            for i, moves in enumerate(both):
                if moves.is_row:
                    chains[i] = in_row(moves, chains[i], order, count, WARM, UNIT_S, share=SHARE)
                else:
                    chains[i] = single(moves, chains[i], order, count, WARM, UNIT_S)
            assert_same(instance.problem, *chains)
            shares = [can_move(m, c.labels) for m, c in zip(both, chains, strict=True)]
            np.testing.assert_array_equal(*shares)
        assert_kept(instance, chains[1])
        accepted += int(chains[0].accepted.sum())
    assert accepted > 15


def ordered(moves, problem, upward):
    """The order in which contracted nodes may leave, and the reverse of it."""
    producers_first = np.arange(moves.contracted.padded_nodes)
    consumers_first = producers_first.copy()
    count = problem.num_contracted
    consumers_first[:count] = consumers_first[:count][::-1]
    both = jnp.asarray(producers_first), jnp.asarray(consumers_first)
    return both[::-1] if upward else both


@pytest.mark.parametrize("name", MODULES)
def test_shifts_move_the_same_groups(name):
    moved = 0
    for instance, rng, both, chains in pairs(name, 3):
        problem, count = instance.problem, instance.problem.num_contracted
        for turn in range(8):
            upward, labels = bool(turn % 2), chains[0].labels
            leaving, following = ordered(both[0], problem, upward)
            seeds = jnp.asarray(rng.random(labels.shape) < 0.5)
            source = jnp.int32(rng.integers(CHIPS))
            chosen = [
                run(moves, labels, seeds, following, count, upward=upward)
                for run, moves in zip(follow, both, strict=True)
            ]
            np.testing.assert_array_equal(chosen[0][:count], chosen[1][:count])
            is_cut = jnp.bool_(turn % 4 < 2)
            chosen = [c | is_cut for c in chosen]
            quota_s = jnp.asarray(rng.exponential(4.0, (CHIPS, LANES)), jnp.float32)
            quota_s = jnp.where(is_cut, quota_s, jnp.inf)
            goal = matching(both[0], jax.random.key(turn))
            chip = jnp.arange(CHIPS)
            goal = jnp.where((goal != chip) & ((goal > chip) == upward), goal, -1)
            for i, moves in enumerate(both):
                before = chains[i]
                if moves.is_row:
                    arguments = leaving, count, source, jnp.bool_(upward), quota_s[0], chosen[i]
                    chains[i] = shift_row[i](moves, before, *arguments, WARM, UNIT_S)
                else:
                    chains[i] = shift(moves, before, leaving, goal, quota_s, chosen[i])
                    tables = rebuilt(instance, FORMS[i], chains[i].labels)
                    chains[i] = dataclasses.replace(chains[i], tables=tables)
                moved += int((chains[i].labels[:count] != before.labels[:count]).sum())
            assert_same(problem, *chains)
        if both[1].is_row:
            assert_kept(instance, chains[1])
    assert moved > 20


@pytest.mark.parametrize("name", ["row", "branches"])
def test_products_of_matrices_find_the_same_followers_as_walks(name):
    for instance, rng, both, (_, chains) in pairs(name, 3):
        problem, moves, labels = instance.problem, both[1], chains.labels
        assert moves.contracted.tables is not None
        tables = dataclasses.replace(moves.contracted.tables, distance=None)
        walking = dataclasses.replace(
            moves, contracted=dataclasses.replace(moves.contracted, tables=tables)
        )
        for upward in (False, True):
            seeds = jnp.asarray(rng.random(labels.shape) < 0.5)
            rest = ordered(moves, problem, upward)[1], problem.num_contracted, upward
            walked = follow[1](walking, labels, seeds, *rest)
            is_real = np.arange(len(labels)) < problem.num_contracted
            found = follow[1](moves, labels, seeds, *rest)
            np.testing.assert_array_equal(found[is_real], walked[is_real])
            for source in range(CHIPS):
                rows = (np.asarray(labels) == source) & is_real[:, None]
                found = follow[1](moves, labels, seeds, *rest, jnp.int32(source))
                np.testing.assert_array_equal(np.asarray(found)[rows], np.asarray(walked)[rows])


@pytest.mark.parametrize("name", ["row", "dataflow"])
def test_rounds_are_the_same(name, monkeypatch):
    for rounds in ("sweep", "_sweeps"):
        program = quick(getattr(ensembles, rounds), static=("share",))
        monkeypatch.setattr(ensembles, rounds, program)
    for instance, _, both, (chains, _) in pairs(name, 2):
        ensemble = ensemble_of(chains.labels, jax.random.key(1))
        orders = jnp.arange(both[0].contracted.padded_nodes)[None]
        first, second = (
            temper(moves, ensemble, orders, jax.random.key(2), UNIT_S, 8, share=SHARE)
            for moves in both
        )
        for field in ("labels", "best"):
            one, other = getattr(first, field), getattr(second, field)
            count = instance.problem.num_contracted
            np.testing.assert_array_equal(one[:count], other[:count])
        for field in ("temperature", "noise", "best_s", "proposed", "priced", "accepted"):
            np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
        assert first.accepted > 0


@pytest.mark.parametrize("count", [0, 1, 64, 65, 192])
def test_visits_in_blocks_are_as_many_as_asked_for(count):
    def visit(i, is_step, carry):
        visits, total = carry
        return visits + jnp.where(is_step, 1, 0), total + jnp.where(is_step, i, 0)

    none = jnp.int32(0), jnp.int32(0)
    found = [form.visited(192, jnp.int32(count), visit, none) for form in (by_rows, by_arrays)]

    assert found[0] == found[1] == (count, count * (count - 1) // 2)


def test_readers_are_the_consumers_of_a_tensor():
    for instance in instances("row", 3):
        contracted, moves = instance.problem.contracted, instance.moves["arrays"]
        count = contracted.num_tensors
        tensor = jnp.argsort(jnp.asarray(contracted.tensor_producer), stable=True)
        reader, is_reader = readers_of(moves.contracted, moves.near, jnp.arange(count))
        for k in range(count):
            found = np.asarray(reader[k])[np.asarray(is_reader)[k, :, 0]]
            expected = contracted.edge_consumer[contracted.edge_tensor == int(tensor[k])]
            assert sorted(found.tolist()) == sorted(expected.tolist())
