"""Annealing moves for thousands of chains in one device program.

In one step all chains visit the same contracted node. Each chain has its own target chip and its
own verdict. The edges of the contracted node are read once, and the labels of a neighbour are one
contiguous row of B chains. What reads them has two forms with one meaning (`by_rows.py` for a CPU,
`by_arrays.py` for a GPU or TPU), which accept the same moves. There are two kinds of sweeps:

- Single moves. Contracted nodes are visited in random order. Each chain picks one of the chips that
  the neighbours allow (`price.py`), prices the move and accepts it by Metropolis.
- Shifts between disjoint pairs of chips. Contracted nodes leave one chip for its partner. Either
  they leave in a topological order until a random load has moved (a cut point moves), or chosen
  contracted nodes leave with all that must follow them (a group moves). Each pair is accepted or
  taken back on its own.

`evaluate` computes all costs anew after every sweep. Rounding errors therefore last one sweep. The
same holds for the peaks of live activations, which moves leave unchanged. During a sweep, memory
above the capacity is a penalty. A partition is kept as the best one only if `evaluate` finds it
valid.

Least possible work per proposal, for a contracted node of degree d whose tensors have q consumers
in all: about 1 + d + q labels of one byte, and 8 floats of two chips read and written; some 80
bytes and 100 operations. The code works on whole columns of C chips instead (about 40 C bytes, in
cache). For 36 chips, this masked arithmetic costs as much as two gathers and scatters per chain.
`neighbours.py` has the floor on a GPU.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.methods.annealing.price import (
    committed,
    energy_of,
    form_of,
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
    priced: Int[Array, " B"]  # moves that keep the rules and therefore were priced
    accepted: Int[Array, " B"]


def single_sweep(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    count: Int[Array, ""],
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
) -> Chains:
    """One proposal for each of the first `count` contracted nodes of `order` in every chain.

    Args:
      moves: the problem.
      chains: before the sweep.
      order: contracted nodes.
      count: how many of them are visited.
      temperature: of each chain.
      unit_s: unit of the energy, seconds.
    """

    form = form_of(moves)

    def visit(i, is_step, chains):
        v = order[i]
        source = chains.labels[v].astype(jnp.int32)
        draw = next_noise(chains.noise)
        noise = next_noise(draw)
        allowed = form.allowed_chips(moves, chains.labels, v)
        target, is_open = pick(moves, chains.tables, allowed, source, draw)
        is_open &= is_step
        tables = moved(moves, chains.labels, chains.tables, v, source, target)
        energy = energy_of(moves, tables, unit_s)
        accept = is_open & (energy - chains.energy <= -temperature * jnp.log(uniform(noise)))
        return Chains(
            labels=chains.labels.at[v].set(
                jnp.where(accept, target, source).astype(chains.labels.dtype)
            ),
            tables=committed(moves, chains.tables, tables, accept, v, source, target),
            energy=jnp.where(accept, energy, chains.energy),
            noise=jnp.where(is_step, noise, chains.noise),
            priced=chains.priced + is_open,
            accepted=chains.accepted + accept,
        )

    return form.visited(len(order), count, visit, chains)


def shift_sweep(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    goal: Int[Array, " C"],
    quota_s: Float[Array, "C B"],
    chosen: Bool[Array, "N B"],
) -> Chains:
    """Shifts contracted nodes from each chip to its goal; `taken_back` then accepts or rejects.

    Args:
      moves: the problem.
      chains: before the sweep.
      order: contracted nodes in the order in which they may leave: a topological order where goals
        are lower chips, the reverse of one where goals are higher chips.
      goal: the partner that receives the contracted nodes, or -1; pairs of chips are disjoint.
      quota_s: compute that each chip gives away, seconds; the last contracted node may exceed it.
      chosen: the contracted nodes that may leave.

    Returns:
      The chains with new `labels` and `priced`; the tables and the energy are out of date.
    """
    form, before = form_of(moves), chains.labels
    lane = jnp.arange(before.shape[1])
    has_no_skip = moves.contracted.config.constraints.no_skip

    def visit(i, is_step, carry):
        labels, contracted_on, left_s, priced = carry
        v = order[i]
        source = labels[v].astype(jnp.int32)
        target = goal[source]
        left = left_s[source, lane]
        is_open = (target >= 0) & (left > 0) & is_step
        target = jnp.maximum(target, 0)
        # Allowed by the labels of now and by those before the sweep: the rules then hold whichever
        # pairs are taken back.
        allowed = form.allowed_chips(moves, labels, v) & form.allowed_chips(moves, before, v)
        is_open &= holds(allowed, target) & chosen[v]
        if has_no_skip:
            is_open &= (contracted_on[source, lane] > 1) & (contracted_on[target, lane] > 0)
            step = is_open.astype(contracted_on.dtype)
            contracted_on = form.added(form.added(contracted_on, source, -step), target, step)
        seconds = jnp.where(is_open, seconds_of(moves, v)[source], 0)
        left_s = form.put(left_s, source, left - seconds)
        labels = labels.at[v].set(jnp.where(is_open, target, source).astype(labels.dtype))
        return labels, contracted_on, left_s, priced + is_open

    carry = (before, chains.tables.contracted_on, quota_s, chains.priced)
    labels, _, _, priced = form.visited(len(order), moves.contracted.num_nodes, visit, carry)
    return dataclasses.replace(chains, labels=labels, priced=priced)


def taken_back(
    chains: Chains,
    before: Chains,
    gain: Float[Array, "C B"],
    goal: Int[Array, " C"],
    temperature: Float[Array, " B"],
) -> Chains:
    """Takes back the shift of each pair of chips that Metropolis rejects.

    Args:
      chains: after the shift.
      before: before the shift.
      gain: increase of the energy of each chip.
      goal: that of the shift.
      temperature: of each chain.
    """
    chip = jnp.arange(len(goal))
    taker = jnp.where(goal >= 0, goal, len(goal))
    giver = jnp.full_like(goal, -1).at[taker].set(chip.astype(goal.dtype), mode="drop")
    partner = jnp.where(goal >= 0, goal, jnp.where(giver >= 0, giver, chip))
    gain = jnp.where((partner == chip)[:, None], gain, gain + gain[partner])
    noise = next_noise(chains.noise)
    # One draw per pair: the draw of the chain, mixed with the lower chip of the pair.
    mix = (jnp.minimum(partner, chip) + 1).astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    draws = next_noise(next_noise((noise[None] ^ mix[:, None]) | 1))
    kept = gain <= -temperature[None] * jnp.log(uniform(draws))
    lane = jnp.arange(gain.shape[1])
    is_kept = kept[before.labels.astype(jnp.int32), lane[None]]
    labels = jnp.where(is_kept, chains.labels, before.labels)
    moved = jnp.sum(labels != before.labels, axis=0, dtype=jnp.int32)
    return dataclasses.replace(chains, labels=labels, noise=noise, accepted=chains.accepted + moved)


def movable(moves: Moves, labels: Int[Array, "N B"]) -> Float[Array, " N"]:
    """The share of chains in which each contracted node may be able to move.

    With acyclic dataflow, a contracted node with a producer and a consumer on its own chip cannot
    move.

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
    """
    contracted = moves.contracted
    if not moves.by_order:
        return jnp.where(jnp.arange(labels.shape[0]) < contracted.num_nodes, 1.0, 0.0)
    fed, feeds = form_of(moves).fed_and_feeds(contracted, labels)
    share = jnp.mean(~(fed & feeds), axis=1, dtype=jnp.float32)
    return jnp.where(jnp.arange(labels.shape[0]) < contracted.num_nodes, share, 0.0)


def uniform(noise: UInt32[Array, "*b"]) -> Float[Array, "*b"]:
    """Random numbers in (0, 1), one for each generator state."""
    return (noise >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25


def next_noise(noise: UInt32[Array, "*b"]) -> UInt32[Array, "*b"]:
    """The next state of each generator: xorshift32 (Marsaglia, J. Stat. Softw. 8, 2003).

    A state is never 0. Xorshift takes fewer cycles than threefry.
    """
    noise ^= noise << 13
    noise ^= noise >> 17
    return noise ^ (noise << 5)
