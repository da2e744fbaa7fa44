"""Moves: what they accept is valid, what they keep count of is what evaluation finds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.host import peak_bytes
from jaxpart.errors import InputError
from jaxpart.methods.annealing import by_rows
from jaxpart.methods.annealing.ensemble import exchanged, matching
from jaxpart.methods.annealing.moves import movable, shift_sweep, single_sweep, taken_back
from jaxpart.methods.annealing.price import energy_of
from jaxpart.methods.annealing.row import row_sweep
from jaxpart.methods.annealing.state import chip_graph_of, moves_of
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.annealing import (
    CHIPS,
    LANES,
    SHARE,
    UNIT_S,
    chains_of,
    costed,
    counted,
    instances,
)
from tests.support.strategies import random_graph, random_mcm

HOT = jnp.full((LANES,), 1e9, jnp.float32)

single = jax.jit(single_sweep)
in_row = jax.jit(row_sweep, static_argnames="share")
shift = jax.jit(shift_sweep)
take_back = jax.jit(taken_back)
follow = jax.jit(by_rows.followers, static_argnames="upward")

# The modules of these tests; `test_forms.py` has all.
NAMES = ("row", "row, serial", "branches", "dataflow", "anywhere")


def cases(name, count):
    """Instances, with their moves and chains by rows."""
    for instance in instances(name, count):
        yield instance, instance.moves["rows"], chains_of(instance, "rows", instance.seed)


def columns_of(problem, chains):
    return np.asarray(chains.labels)[problem.contraction].astype(np.int64)


def sweep(moves, chains, order, temperature):
    count = moves.contracted.num_nodes
    if moves.is_row:
        return in_row(moves, chains, order, count, temperature, UNIT_S, share=SHARE)
    return single(moves, chains, order, count, temperature, UNIT_S)


def reversed_head(order, count):
    return np.concatenate([order[:count][::-1], order[count:]])


def without_peaks(problem, memory_bytes, columns):
    if problem.mcm.memory_model == "weights":
        return np.asarray(memory_bytes)
    peaks = [peak_bytes(problem, column)[0] for column in columns.T]
    return np.asarray(memory_bytes) - np.stack(peaks, axis=1)


def assert_keeps_rules(graph, problem, columns):
    """All rules that are on but memory, which moves treat as a penalty."""
    rules = [rule for rule in oracle.rules_on(problem.mcm) if rule != "memory"]
    for column in columns.T:
        f = tuple(column.tolist())
        for rule in rules:
            assert oracle.keeps(rule, graph, problem.mcm, f), (rule, f)


@pytest.mark.parametrize("name", NAMES)
def test_after_a_sweep_partitions_keep_the_rules_and_tables_are_what_evaluation_finds(name):
    moved = 0
    for instance, moves, chains in cases(name, 6):
        graph, problem = instance.graph, instance.problem
        for turn in range(3):
            before = columns_of(problem, chains)
            order = jnp.asarray(np.random.default_rng(turn).permutation(problem.num_contracted))
            order = jnp.resize(order, (moves.contracted.padded_nodes,))
            swept = sweep(moves, chains, order, HOT)
            after = columns_of(problem, swept)
            moved += int((after != before).sum())
            assert_keeps_rules(graph, problem, after)
            costs = costed(moves, swept.labels)
            counts = counted(moves, swept.labels, costs)
            kept = swept.tables
            np.testing.assert_allclose(kept.compute_s, costs.compute_s, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(kept.out_s, costs.out_s, rtol=1e-5, atol=1e-6)
            if moves.is_row:  # what a chip receives, and a link carries, is what the last one sends
                np.testing.assert_array_equal(costs.in_s[1:], costs.out_s[:-1])
            else:
                np.testing.assert_allclose(kept.in_s, costs.in_s, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(kept.link_s, counts.link_s, rtol=1e-5, atol=1e-6)
            if problem.mcm.constraints.memory:
                np.testing.assert_allclose(
                    without_peaks(problem, kept.memory_bytes, before),
                    without_peaks(problem, costs.memory_bytes, after),
                    rtol=1e-5,
                )
                np.testing.assert_array_equal(kept.weight_uses[:-1], counts.weight_uses[:-1])
            if problem.mcm.constraints.no_skip:
                np.testing.assert_array_equal(kept.contracted_on, counts.contracted_on)
            assert (np.asarray(swept.accepted) <= np.asarray(swept.priced)).all()
            energy = energy_of(moves, counts, UNIT_S)
            chains = swept.replace(tables=counts, energy=energy)
    assert moved > 20


@pytest.mark.parametrize("name", ["row", "dataflow"])
def test_energies_of_accepted_moves_are_differences_of_the_energies_of_partitions(name):
    """At zero temperature a sweep never ends above where it began."""
    cold, fell = jnp.full((LANES,), 1e-9, jnp.float32), 0
    for _, moves, chains in cases(name, 6):
        # Peaks are taken as they were: only what moves price counts here.
        order = jnp.arange(moves.contracted.padded_nodes)
        swept = sweep(moves, chains, order, cold)
        start = chains.energy
        end = energy_of(
            moves,
            counted(moves, swept.labels, costed(moves, swept.labels)).replace(
                memory_bytes=swept.tables.memory_bytes
            ),
            UNIT_S,
        )
        assert (np.asarray(end) <= np.asarray(start) * (1 + 1e-5) + 1e-6).all()
        fell += int((np.asarray(end) < np.asarray(start) * (1 - 1e-4)).sum())
    assert fell > 0


@pytest.mark.parametrize("name", NAMES)
def test_shifts_keep_the_rules_whichever_pairs_of_chips_are_taken_back(name):
    moved = 0
    for instance, moves, chains in cases(name, 6):
        seed, graph, problem = instance.seed, instance.graph, instance.problem
        rng = np.random.default_rng(seed)
        for turn in range(4):
            goal = matching(moves, jax.random.key(10 * seed + turn))
            upward = bool(turn % 2)
            chip = jnp.arange(CHIPS)
            goal = jnp.where((goal != chip) & ((goal > chip) == upward), goal, -1)
            number = np.arange(moves.contracted.padded_nodes)
            if upward:
                number[: problem.num_contracted] = number[: problem.num_contracted][::-1]
            quota_s = jnp.asarray(rng.exponential(2.0, (CHIPS, LANES)), jnp.float32)
            seeds = jnp.asarray(rng.random(chains.labels.shape) < 0.5)
            chosen = follow(
                moves,
                chains.labels,
                seeds,
                jnp.asarray(reversed_head(number, problem.num_contracted)),
                problem.num_contracted,
                upward=upward,
            )
            shifted = shift(moves, chains, jnp.asarray(number), goal, quota_s, chosen)
            gain = jnp.asarray(rng.normal(size=(CHIPS, LANES)), jnp.float32)
            kept = take_back(shifted, chains, gain, goal, jnp.full((LANES,), 1.0, jnp.float32))
            assert_keeps_rules(graph, problem, columns_of(problem, shifted))
            assert_keeps_rules(graph, problem, columns_of(problem, kept))
            labels = {id(c): np.asarray(c.labels) for c in (chains, shifted, kept)}
            is_kept = labels[id(kept)] == labels[id(shifted)]
            assert (is_kept | (labels[id(kept)] == labels[id(chains)])).all()
            moved += int((labels[id(kept)] != labels[id(chains)]).sum())
            tables = counted(moves, kept.labels, costed(moves, kept.labels))
            chains = kept.replace(tables=tables, energy=energy_of(moves, tables, UNIT_S))
    assert moved > 10


def test_a_shift_moves_a_prefix_of_the_order_until_its_load_is_spent():
    for _, moves, chains in cases("row", 4):
        goal = jnp.array([-1, 0, -1, -1])
        every = jnp.ones(chains.labels.shape, bool)
        number = jnp.arange(moves.contracted.padded_nodes)
        nothing = jnp.zeros((CHIPS, LANES), jnp.float32)
        stays = shift(moves, chains, number, goal, nothing, every)
        np.testing.assert_array_equal(stays.labels, chains.labels)
        goes = shift(moves, chains, number, goal, nothing + jnp.inf, every)
        has_left = np.asarray(goes.labels) != np.asarray(chains.labels)
        assert (np.asarray(chains.labels)[has_left] == 1).all()
        assert (np.asarray(goes.labels)[has_left] == 0).all()


@pytest.mark.parametrize("name", ["row", "branches"])
def test_what_must_follow_is_all_that_hangs_on_a_seed_on_its_chip(name):
    for instance, moves, chains in cases(name, 4):
        seed, problem = instance.seed, instance.problem
        labels = np.asarray(chains.labels)
        pairs = problem.contracted.node_pairs
        for upward in (True, False):
            seeds = np.random.default_rng(seed).random(labels.shape) < 0.3
            number = np.arange(moves.contracted.padded_nodes)
            order = number if upward else reversed_head(number, problem.num_contracted)
            count = problem.num_contracted
            chosen = follow(moves, chains.labels, jnp.asarray(seeds), order, count, upward=upward)
            chosen = np.asarray(chosen)
            for lane in range(LANES):
                expected = seeds[: problem.num_contracted, lane].copy()
                for _ in range(problem.num_contracted):
                    for u, v in pairs:
                        a, b = (u, v) if upward else (v, u)
                        expected[b] |= expected[a] and labels[u, lane] == labels[v, lane]
                np.testing.assert_array_equal(chosen[: problem.num_contracted, lane], expected)


def test_nodes_that_no_chain_can_move_are_known():
    for instance, moves, chains in cases("row", 4):
        problem = instance.problem
        share = np.asarray(movable(moves, chains.labels))
        order = jnp.arange(moves.contracted.padded_nodes)
        swept = sweep(moves, chains, order, HOT)
        first = (np.asarray(swept.labels) != np.asarray(chains.labels)).any(axis=1).argmax()
        if (np.asarray(swept.labels) != np.asarray(chains.labels)).any():
            assert share[first] > 0
        assert (share[problem.num_contracted :] == 0).all()


def test_chip_graphs_are_their_own_transitive_reduction_and_hold_the_start():
    for instance in instances("branches", 8):
        seed, problem, columns = instance.seed, instance.problem, instance.columns
        start = columns[:, 0]
        larger = chip_graph_of(problem, start, np.random.default_rng(seed))
        pairs = start[problem.node_pairs]
        assert all(larger[a, b] for a, b in pairs if a != b)
        reach = np.linalg.matrix_power(np.eye(CHIPS) + larger, CHIPS) > 0
        for a, b in np.argwhere(larger):
            between = [m for m in range(CHIPS) if m not in (a, b)]
            assert not any(reach[a, m] and reach[m, b] for m in between)


def test_a_mesh_is_refused_with_what_moves_need():
    mcm = random_mcm(np.random.default_rng(0), num_chips=4, topology="mesh")
    graph = random_graph(np.random.default_rng(0), num_nodes=4, pins=False, colocation=False)
    problem = Problem.build(graph, mcm)

    with pytest.raises(InputError, match="moves follow the links of a chain or of none"):
        moves_of(problem, ~np.eye(4, dtype=bool))


def test_temperatures_are_exchanged_between_neighbours_and_none_is_lost():
    temperature = jnp.asarray([0.4, 0.1, 0.2, 0.8], jnp.float32)
    energy = jnp.asarray([1.0, 9.0, 5.0, 0.0], jnp.float32)  # the colder, the higher
    seen = set()
    for seed in range(8):
        after = np.asarray(exchanged(jax.random.key(seed), temperature, energy))
        assert sorted(after) == sorted(np.asarray(temperature))
        seen.add(tuple(after.tolist()))
    # Every allowed exchange helps, so it is made: pairs (1, 2) and (3, 4), or the middle one.
    pairs, middle = (0.8, 0.2, 0.1, 0.4), (0.2, 0.1, 0.4, 0.8)
    np.testing.assert_allclose(sorted(seen), sorted([pairs, middle]), rtol=1e-6)


def test_a_second_graph_of_the_same_bucket_compiles_nothing():
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(row_sweep, n=1), static_argnames="share")
    for _, moves, chains in cases("row", 3):
        order = jnp.arange(moves.contracted.padded_nodes)
        once(moves, chains, order, moves.contracted.num_nodes, HOT, UNIT_S, share=SHARE)
