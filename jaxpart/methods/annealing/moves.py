"""Annealing moves for thousands of chains in one program, priced by what they touch.

All chains look at the same contracted node in one step, each with a target chip and a verdict of
its own: so the contracted node's edges are read once and the labels of its neighbours are
contiguous rows of B chains. Two kinds of sweeps:

- single contracted nodes, visited in random order; each chain picks one of the chips that the
  neighbours leave (`state`), prices the move and accepts it by Metropolis;
- shifts between pairs of chips: contracted nodes leave one chip for its partner in a topological
  order until a random load has moved (a cut point moves), or chosen contracted nodes with all that
  must follow (a group moves). Pairs are disjoint, so that each is accepted or taken back by itself.

After every sweep `evaluate` counts anew: nothing drifts for longer than a sweep, and peaks of live
activations, which moves take as they were, are exact again. Memory beyond the capacity is a penalty
in between; what is kept as best was valid by `evaluate`.

Floor per proposal of a block of degree d whose tensors have q consumers in all: about 1 + d + q
labels of one byte, and the figures of two chips, 8 floats read and written: some 80 bytes and 100
operations. Here a proposal works on whole columns of C chips instead (about 40 C bytes, in cache):
masked arithmetic over 36 chips costs what two gathers and scatters per chain would.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.methods.annealing.price import (
    allowed_chips,
    committed,
    energy_of,
    holds,
    moved,
    pick,
    seconds_of,
)
from jaxpart.methods.annealing.state import Moves, Tables


@struct.dataclass
class Chains:
    """B chains in the middle of a sweep."""

    labels: Int[Array, "N B"]
    tables: Tables
    energy: Float[Array, " B"]
    noise: UInt32[Array, " B"]  # states of xorshift generators
    priced: Int[Array, " B"]  # moves that kept the rules, so that they were priced
    accepted: Int[Array, " B"]


def single_sweep(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    count: Int[Array, ""],
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
) -> Chains:
    """One proposal for each of the first `count` contracted nodes of `order` in every chain."""

    def visit(i, chains):
        v = order[i]
        source = chains.labels[v].astype(jnp.int32)
        draw = next_noise(chains.noise)
        noise = next_noise(draw)
        allowed = allowed_chips(moves, chains.labels, v)
        target, is_open = pick(moves, chains.tables, allowed, source, draw)
        tables = moved(moves, chains.labels, chains.tables, v, source, target)
        energy = energy_of(moves, tables, unit_s)
        accept = is_open & (energy - chains.energy <= -temperature * jnp.log(uniform(noise)))
        return Chains(
            labels=chains.labels.at[v].set(
                jnp.where(accept, target, source).astype(chains.labels.dtype)
            ),
            tables=committed(moves, chains.tables, tables, accept, v, source, target),
            energy=jnp.where(accept, energy, chains.energy),
            noise=noise,
            priced=chains.priced + is_open,
            accepted=chains.accepted + accept,
        )

    return lax.fori_loop(0, count, visit, chains)


def shift_sweep(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    goal: Int[Array, " C"],
    quota_s: Float[Array, "C B"],
    chosen: Bool[Array, "N B"],
) -> Chains:
    """Shifts contracted nodes from each chip to its goal; `taken_back` decides what stays.

    Args:
      moves: the problem.
      chains: before the sweep.
      order: contracted nodes in the order in which they may leave: of the model where goals are
        lower chips, from its end where they are higher.
      goal: the partner that takes what leaves, or -1; pairs of chips are disjoint.
      quota_s: seconds of compute that each chip gives away at most (the last contracted node beyond
        it too).
      chosen: the contracted nodes that may leave.

    Returns:
      Chains whose labels alone are up to date.
    """
    before = chains.labels
    lane = jnp.arange(before.shape[1])
    has_no_skip = moves.contracted.config.constraints.no_skip

    def visit(i, carry):
        labels, contracted_on, left_s, priced = carry
        v = order[i]
        source = labels[v].astype(jnp.int32)
        target = goal[source]
        left = left_s[source, lane]
        is_open = (target >= 0) & (left > 0)
        target = jnp.maximum(target, 0)
        # By the labels of now and of before: whichever pairs are taken back, rules are kept.
        allowed = allowed_chips(moves, labels, v) & allowed_chips(moves, before, v)
        is_open &= holds(allowed, target) & chosen[v]
        if has_no_skip:
            is_open &= (contracted_on[source, lane] > 1) & (contracted_on[target, lane] > 0)
            step = is_open.astype(contracted_on.dtype)
            contracted_on = contracted_on.at[source, lane].add(-step).at[target, lane].add(step)
        seconds = jnp.where(is_open, seconds_of(moves, v)[source], 0)
        left_s = left_s.at[source, lane].set(left - seconds)
        labels = labels.at[v].set(jnp.where(is_open, target, source).astype(labels.dtype))
        return labels, contracted_on, left_s, priced + is_open

    carry = (before, chains.tables.contracted_on, quota_s, chains.priced)
    labels, _, _, priced = lax.fori_loop(0, moves.contracted.num_nodes, visit, carry)
    return dataclasses.replace(chains, labels=labels, priced=priced)


def taken_back(
    chains: Chains,
    before: Chains,
    gain: Float[Array, "C B"],
    goal: Int[Array, " C"],
    temperature: Float[Array, " B"],
) -> Chains:
    """A shift without the pairs of chips whose energy rose too much, by Metropolis for each pair.

    Args:
      chains: after the shift.
      before: before it.
      gain: what each chip's energy rose by.
      goal: as of the shift.
      temperature: per chain.
    """
    chip = jnp.arange(len(goal))
    taker = jnp.where(goal >= 0, goal, len(goal))
    giver = jnp.full_like(goal, -1).at[taker].set(chip.astype(goal.dtype), mode="drop")
    partner = jnp.where(goal >= 0, goal, jnp.where(giver >= 0, giver, chip))
    gain = jnp.where((partner == chip)[:, None], gain, gain + gain[partner])
    noise = next_noise(chains.noise)
    # One draw per pair: the chain's, mixed with the pair's lower chip.
    mix = (jnp.minimum(partner, chip) + 1).astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    draws = next_noise(next_noise((noise[None] ^ mix[:, None]) | 1))
    kept = gain <= -temperature[None] * jnp.log(uniform(draws))
    lane = jnp.arange(gain.shape[1])
    is_kept = kept[before.labels.astype(jnp.int32), lane[None]]
    labels = jnp.where(is_kept, chains.labels, before.labels)
    moved = jnp.sum(labels != before.labels, axis=0, dtype=jnp.int32)
    return dataclasses.replace(chains, labels=labels, noise=noise, accepted=chains.accepted + moved)


def followers(
    moves: Moves,
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    order: Int[Array, " N"],
    count: Int[Array, ""],
    upward: bool,
) -> Bool[Array, "N B"]:
    """Seeds with all that must follow them off their chip: successors on it (upward), or
    predecessors.

    Looks at the first `count` contracted nodes of `order`: producers first if upward, else
    consumers first.
    """
    contracted = moves.contracted

    def join(v, chosen):
        def look(e, row):
            k = contracted.in_edge_tensor[e] if upward else e
            other = contracted.tensor_producer[k] if upward else contracted.edge_consumer[e]
            return row | (chosen[other] & (labels[other] == labels[v]))

        if upward:
            start, stop = contracted.node_in_edges[v], contracted.node_in_edges[v + 1]
        else:
            start = contracted.tensor_edges[contracted.node_tensors[v]]
            stop = contracted.tensor_edges[contracted.node_tensors[v + 1]]
        return chosen.at[v].set(lax.fori_loop(start, stop, look, chosen[v]))

    return lax.fori_loop(0, count, lambda i, chosen: join(order[i], chosen), seeds)


def movable(moves: Moves, labels: Int[Array, "N B"]) -> Float[Array, " N"]:
    """The share of chains in which each contracted node may be free to move.

    Where data flows to higher chips alone, a contracted node with a producer and a consumer on its
    own chip is not.
    """
    contracted = moves.contracted
    if not moves.by_order:
        return jnp.where(jnp.arange(labels.shape[0]) < contracted.num_nodes, 1.0, 0.0)

    def join(e, carry):
        fed, feeds = carry
        u, v = contracted.edge_producer[e], contracted.edge_consumer[e]
        same = labels[u] == labels[v]
        return fed.at[v].set(fed[v] | same), feeds.at[u].set(feeds[u] | same)

    nothing = jnp.zeros(labels.shape, bool)
    fed, feeds = lax.fori_loop(0, contracted.num_edges, join, (nothing, nothing))
    share = jnp.mean(~(fed & feeds), axis=1, dtype=jnp.float32)
    return jnp.where(jnp.arange(labels.shape[0]) < contracted.num_nodes, share, 0.0)


def uniform(noise: UInt32[Array, "*b"]) -> Float[Array, "*b"]:
    """Numbers in (0, 1) of generator states."""
    return (noise >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25


def next_noise(noise: UInt32[Array, "*b"]) -> UInt32[Array, "*b"]:
    """Marsaglia's xorshift32 (J. Stat. Softw. 8, 2003): a few cycles, where threefry takes many."""
    noise ^= noise << 13
    noise ^= noise >> 17
    return noise ^ (noise << 5)
