"""Thousands of annealing chains on a ladder of temperatures, in one device program.

Source: parallel tempering (Geyer 1991; Earl and Deem, Phys. Chem. Chem. Phys. 7, 2005). Chains at
neighbouring temperatures exchange their temperatures by Metropolis. Good partitions of hot chains
cool down, and chains that are stuck warm up. `moves.py` explains the sweeps and their cost.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.evaluate import Costs, evaluate
from jaxpart.methods.annealing import by_arrays, by_rows, row, shift_at_once
from jaxpart.methods.annealing.moves import (
    Chains,
    movable,
    next_noise,
    shift_sweep,
    single_sweep,
    taken_back,
    uniform,
)
from jaxpart.methods.annealing.price import chip_energy, energy_of
from jaxpart.methods.annealing.state import WORD, Moves, tables_of

# Ends of the temperature ladder, in units of energy: a stage of length `unit_s` has energy 1.
_HOTTEST, _COLDEST = 0.3, 1e-4
# Share of sweeps that move single contracted nodes; all others shift cut points or groups.
_SINGLE_SHARE = 0.6
# Share of shifts that move a cut point; all others move a group.
_CUT_SHARE = 0.6
# A cut point moves past compute of `unit_s` halved at most this many times (log-uniform).
_MOST_HALVINGS = 10.0
# Mean number of contracted nodes that a group on a row of chips grows from.
_SEEDS_PER_GROUP = 1.5
# Contracted nodes that can move in a smaller share of the chains are visited less often.
_RARELY_MOVABLE = 0.125


@struct.dataclass
class Ensemble:
    """B chains between sweeps, the best partitions that they found, and counts of their moves."""

    labels: Int[Array, "N B"]  # chips of contracted nodes
    temperature: Float[Array, " B"]
    noise: UInt32[Array, " B"]  # states of xorshift generators
    best: Int[Array, "N B"]  # the best valid partition of each chain
    best_s: Float[Array, " B"]  # inf: none
    proposed: Float[Array, ""]
    priced: Float[Array, ""]
    accepted: Float[Array, ""]


def ensemble_of(labels: Int[Array, "N B"], key: jax.Array) -> Ensemble:
    """Chains that start from given partitions, from the hottest to the coldest temperature.

    Args:
      labels: chips of contracted nodes.
      key: seeds the generators of the chains.
    """
    batch = labels.shape[1]
    ladder = _HOTTEST * (_COLDEST / _HOTTEST) ** (jnp.arange(batch) / max(batch - 1, 1))
    none = jnp.zeros((), jnp.float32)
    return Ensemble(
        labels=labels,
        temperature=ladder.astype(jnp.float32),
        noise=jax.random.bits(key, (batch,), jnp.uint32) | 1,
        best=labels,
        best_s=jnp.full((batch,), jnp.inf, jnp.float32),
        proposed=none,
        priced=none,
        accepted=none,
    )


def temper(
    moves: Moves,
    ensemble: Ensemble,
    orders: Int[Array, "R N"],
    key: jax.Array,
    unit_s: Float[Array, ""],
    sweeps: int | Int[Array, ""],
    share: int = 4,
) -> Ensemble:
    """Sweeps over the contracted nodes in all chains; `evaluate` computes all costs before each.

    On a CPU all sweeps are one call. A GPU would ask the host before each sweep of such a loop, so
    that there each sweep is a call.

    Args:
      moves: the problem, with N contracted nodes.
      ensemble: its partitions keep every edge within the chip graph of `moves`.
      orders: R topological orders of the contracted nodes, for shifts; padding comes last.
      key: the same key gives the same answer.
      unit_s: unit of the energy, seconds; about the best bottleneck known.
      sweeps: number of sweeps; the next call evaluates the result of the last one.
      share: see `row_sweep` in `row.py`; divides B.

    Returns:
      The chains after the sweeps.
    """
    if moves.neighbours is None:
        return _sweeps(moves, ensemble, orders, key, unit_s, jnp.int32(sweeps), share)
    for number in range(int(sweeps)):
        ensemble = sweep(moves, ensemble, orders, key, unit_s, jnp.int32(number), share)
    return ensemble


def _sweep(
    moves: Moves,
    ensemble: Ensemble,
    orders: Int[Array, "R N"],
    key: jax.Array,
    unit_s: Float[Array, ""],
    number: Int[Array, ""],
    share: int = 4,
) -> Ensemble:
    """One sweep; `number` is its number, and the other arguments are those of `temper`."""
    keys = jax.random.split(jax.random.fold_in(key, number), 3)
    costs = evaluated(moves, ensemble.labels)
    ensemble = _kept(ensemble, costs)
    tables = tables_of(moves, ensemble.labels, costs)
    energy = energy_of(moves, tables, unit_s)
    temperature = exchanged(keys[0], ensemble.temperature, energy)
    zeros = jnp.zeros(energy.shape, jnp.int32)
    chains = Chains(ensemble.labels, tables, energy, ensemble.noise, zeros, zeros)
    single = partial(_single, moves, temperature, unit_s, keys[1], share)
    ways = _row_shifts if moves.is_row else _shift
    shift = partial(ways, moves, temperature, unit_s, keys[1], orders)
    is_single = jax.random.uniform(keys[2]) < _SINGLE_SHARE
    chains, visited = lax.cond(is_single, single, shift, chains)
    return dataclasses.replace(
        ensemble,
        labels=chains.labels,
        temperature=temperature,
        noise=chains.noise,
        proposed=ensemble.proposed + visited * float(energy.shape[0]),
        priced=ensemble.priced + jnp.sum(chains.priced, dtype=jnp.float32),
        accepted=ensemble.accepted + jnp.sum(chains.accepted, dtype=jnp.float32),
    )


sweep = jax.jit(_sweep, static_argnames="share")


@partial(jax.jit, static_argnames="share")
def _sweeps(
    moves: Moves,
    ensemble: Ensemble,
    orders: Int[Array, "R N"],
    key: jax.Array,
    unit_s: Float[Array, ""],
    sweeps: Int[Array, ""],
    share: int,
) -> Ensemble:
    """`temper` as one call."""

    def step(i, ensemble):
        return _sweep(moves, ensemble, orders, key, unit_s, i, share)

    return lax.fori_loop(0, sweeps, step, ensemble)


def evaluated(moves: Moves, labels: Int[Array, "N B"]) -> Costs:
    """Costs of partitions of the contracted nodes, computed on the nodes (`cost/evaluate.py`).

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
    """
    return evaluate(moves.nodes, labels[moves.nodes.contraction])


def _kept(ensemble: Ensemble, costs: Costs) -> Ensemble:
    """The ensemble with the best valid partition of each chain updated."""
    better = costs.valid & (costs.bottleneck_s < ensemble.best_s)
    return dataclasses.replace(
        ensemble,
        best=jnp.where(better[None], ensemble.labels, ensemble.best),
        best_s=jnp.where(better, costs.bottleneck_s, ensemble.best_s),
    )


def exchanged(
    key: jax.Array, temperature: Float[Array, " B"], energy: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Temperatures after neighbours on the ladder exchanged theirs, with detailed balance.

    Pairs are rungs (0, 1), (2, 3), ... or (1, 2), (3, 4), ..., at random.

    Args:
      key: the same key gives the same exchanges.
      temperature: of each chain, in any order.
      energy: of each chain.
    """
    batch = temperature.shape[0]
    parity_key, accept_key = jax.random.split(key)
    order = jnp.argsort(temperature)
    rung = jnp.arange(batch)
    parity = jax.random.randint(parity_key, (), 0, 2)
    other = jnp.where((rung + parity) % 2 == 0, rung + 1, rung - 1)
    other = jnp.where((other < 0) | (other >= batch), rung, other)
    cold, hot = jnp.minimum(rung, other), jnp.maximum(rung, other)
    t, e = temperature[order], energy[order]
    gain = (1 / t[cold] - 1 / t[hot]) * (e[cold] - e[hot])
    draw = jnp.log(jax.random.uniform(accept_key, (batch,)))[cold]
    taken = jnp.where(draw < gain, t[other], t)
    return temperature.at[order].set(taken, unique_indices=True)


def _single(
    moves: Moves,
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
    key: jax.Array,
    share: int,
    chains: Chains,
) -> tuple[Chains, Float[Array, ""]]:
    """A sweep of single contracted nodes in random order.

    Returns:
      The chains after it, and the number of proposals per chain.
    """
    keys = jax.random.split(key)
    nodes = chains.labels.shape[0]
    least_share = jax.random.uniform(keys[0], (nodes,)) * _RARELY_MOVABLE
    is_visited = least_share < movable(moves, chains.labels)
    order = jnp.argsort(jnp.where(is_visited, jax.random.uniform(keys[1], (nodes,)), 2.0))
    count = jnp.sum(is_visited, dtype=jnp.int32)
    if moves.is_row:
        chains = row.row_sweep(moves, chains, order, count, temperature, unit_s, share)
    else:
        chains = single_sweep(moves, chains, order, count, temperature, unit_s)
    return chains, count.astype(jnp.float32)


def _row_shifts(
    moves: Moves,
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
    key: jax.Array,
    orders: Int[Array, "R N"],
    chains: Chains,
) -> tuple[Chains, Float[Array, ""]]:
    """Shifts away from some random chips of a row, one chip after the other.

    All chains use the same chips, and in each step all move a cut point or all move a group.

    Returns:
      The chains after it, and the number of proposals per chain.
    """
    chips = moves.after.shape[1]
    nodes, batch = chains.labels.shape
    row_shift = (row if moves.neighbours is None else shift_at_once).row_shift

    def shift(i, chains):
        keys = jax.random.split(jax.random.fold_in(key, i), 7)
        source = jax.random.randint(keys[0], (), 0, chips)
        upward = jax.random.bernoulli(keys[1])
        order = orders[jax.random.randint(keys[2], (), 0, orders.shape[0])]
        is_here = jnp.any(chains.labels == source.astype(chains.labels.dtype), axis=1)
        is_here &= jnp.arange(nodes) < moves.contracted.num_nodes
        # First the contracted nodes on this chip, in the order in which they may leave.
        at = jnp.where(upward, -jnp.arange(nodes), jnp.arange(nodes))
        order = order[jnp.argsort(jnp.where(is_here[order], at, nodes))]
        count = jnp.sum(is_here, dtype=jnp.int32)
        load = 2.0 ** -(_MOST_HALVINGS * jax.random.uniform(keys[3], (batch,)))
        is_cut = jax.random.bernoulli(keys[4], _CUT_SHARE)
        rate = jnp.where(is_cut, 1.0, _SEEDS_PER_GROUP / jnp.maximum(count, 1))
        seeds = _draws(keys[5], nodes, batch) < rate
        chosen = _with_followers(moves, chains.labels, seeds, order, count, upward, source)
        quota_s = jnp.where(is_cut, load * unit_s, jnp.inf)
        return row_shift(
            moves, chains, order, count, source, upward, quota_s, chosen, temperature, unit_s
        )

    count = max(1, chips // 4)
    return lax.fori_loop(0, count, shift, chains), jnp.float32(count)


def _draws(key: jax.Array, nodes: int, batch: int) -> Float[Array, "N B"]:
    """Random numbers in (0, 1), by xorshift from one draw per row mixed with one per column.

    N * B draws of threefry would take longer than the moves.
    """
    rows, lanes = jax.random.split(key)
    bits = jax.random.bits(rows, (nodes, 1), jnp.uint32)
    bits = (bits ^ jax.random.bits(lanes, (1, batch), jnp.uint32)) * jnp.uint32(0x9E3779B9)
    return uniform(next_noise(next_noise(bits | 1)))


def _with_followers(
    moves: Moves,
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    order: Int[Array, " N"],
    count: Int[Array, ""],
    upward: Bool[Array, ""],
    source: Array | None = None,
) -> Bool[Array, "N B"]:
    """`followers`; `order` is the order in which contracted nodes may leave, the reverse of its."""
    number = jnp.arange(len(order))
    order = order[jnp.where(number < count, count - 1 - number, number)]
    if moves.neighbours is not None:
        return by_arrays.followers(moves, labels, seeds, order, count, upward, source)
    ways = [partial(by_rows.followers, moves, upward=way) for way in (False, True)]
    return lax.cond(upward, ways[1], ways[0], labels, seeds, order, count)


def _shift(
    moves: Moves,
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
    key: jax.Array,
    orders: Int[Array, "R N"],
    chains: Chains,
) -> tuple[Chains, Float[Array, ""]]:
    """A sweep that shifts cut points, or groups of contracted nodes, between pairs of chips.

    Returns:
      The chains after it, and the number of proposals per chain.
    """
    keys = jax.random.split(key, 6)
    nodes, batch = chains.labels.shape
    count = moves.contracted.num_nodes
    goal = matching(moves, keys[0])
    upward = jax.random.bernoulli(keys[1])
    chip = jnp.arange(goal.shape[0])
    goal = jnp.where((goal != chip) & ((goal > chip) == upward), goal, -1)
    # Contracted nodes that move to higher chips are visited from the end of the order.
    number = jnp.arange(nodes)
    number = jnp.where(upward & (number < count), count - 1 - number, number)
    order = orders[jax.random.randint(keys[2], (), 0, orders.shape[0])][number]
    load = 2.0 ** -(_MOST_HALVINGS * jax.random.uniform(keys[3], (goal.shape[0], batch)))
    is_cut = jax.random.bernoulli(keys[4], _CUT_SHARE)

    # A group shift has about one seed per chip in each chain.
    rate = jnp.where(is_cut, 1.0, goal.shape[0] / jnp.maximum(count, 1))
    seeds = _draws(keys[5], nodes, batch) < rate
    chosen = _with_followers(moves, chains.labels, seeds, order, count, upward)
    quota_s = jnp.where(is_cut, load * unit_s, jnp.inf)
    shifted = shift_sweep(moves, chains, order, goal, quota_s, chosen)
    costs = evaluated(moves, shifted.labels)
    tables = tables_of(moves, shifted.labels, costs)
    gain = chip_energy(moves, tables, unit_s) - chip_energy(moves, chains.tables, unit_s)
    return taken_back(shifted, chains, gain, goal, temperature), count.astype(jnp.float32)


def matching(moves: Moves, key: jax.Array) -> Int[Array, " C"]:
    """Random disjoint pairs of chips of which one may feed the other.

    Args:
      moves: the problem.
      key: the same key gives the same pairs.

    Returns:
      The partner of each chip; the chip itself if it has none.
    """
    chips = moves.after.shape[1]
    chip = jnp.arange(chips)
    bits = moves.after[chip // WORD] >> (chip % WORD).astype(jnp.uint32)[:, None]
    feeds: Bool[Array, "C C"] = (bits & 1) == 1  # [to, from]
    joined = (feeds | feeds.T) & (chip[:, None] != chip[None])
    order_key, rank_key = jax.random.split(key)
    order = jax.random.permutation(order_key, chips)
    rank = jax.random.uniform(rank_key, (chips, chips))

    def visit(i, partner):
        a = order[i]
        is_free = joined[a] & (partner == chip)
        b = jnp.argmax(jnp.where(is_free, rank[a], -1.0))
        pairs = jnp.any(is_free) & (partner[a] == a)
        return jnp.where(pairs & (chip == a), b, jnp.where(pairs & (chip == b), a, partner)).astype(
            partner.dtype
        )

    return lax.fori_loop(0, chips, visit, chip)
