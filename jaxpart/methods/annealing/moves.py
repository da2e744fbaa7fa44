"""Annealing moves for thousands of chains in one device program.

In one step all chains visit the same contracted node. Each chain has its own target chip and its
own verdict. The edges of the contracted node are read once, and the labels of a neighbour are one
contiguous row of B chains. There are two kinds of sweeps:

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
"""

from __future__ import annotations

import dataclasses
import operator

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.tables import Tables as EdgeTables
from jaxpart.cost.tables import reduce_segments, take
from jaxpart.methods.annealing.neighbours import consumers_of, inputs_of, visited
from jaxpart.methods.annealing.price import (
    allowed_chips,
    committed,
    energy_of,
    holds,
    moved,
    pick,
    seconds_of,
)
from jaxpart.methods.annealing.state import Moves, Tables, chip_column


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

    def visit(i, is_step, chains):
        v = order[i]
        source = chains.labels[v].astype(jnp.int32)
        draw = next_noise(chains.noise)
        noise = next_noise(draw)
        allowed = allowed_chips(moves, chains.labels, v)
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

    return visited(moves.neighbours is not None, count, visit, chains)


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
    before = chains.labels
    lane = jnp.arange(before.shape[1])
    has_no_skip = moves.contracted.config.constraints.no_skip

    at_once = moves.neighbours is not None
    chip = chip_column(len(goal))

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
        allowed = allowed_chips(moves, labels, v) & allowed_chips(moves, before, v)
        is_open &= holds(allowed, target) & chosen[v]
        if has_no_skip:
            is_open &= (contracted_on[source, lane] > 1) & (contracted_on[target, lane] > 0)
            step = is_open.astype(contracted_on.dtype)
            if at_once:
                there = (chip == target).astype(step.dtype) - (chip == source)
                contracted_on += there * step
            else:
                contracted_on = contracted_on.at[source, lane].add(-step).at[target, lane].add(step)
        seconds = jnp.where(is_open, seconds_of(moves, v)[source], 0)
        if at_once:
            left_s -= jnp.where(chip == source, seconds, 0)
        else:
            left_s = left_s.at[source, lane].set(left - seconds)
        labels = labels.at[v].set(jnp.where(is_open, target, source).astype(labels.dtype))
        return labels, contracted_on, left_s, priced + is_open

    carry = (before, chains.tables.contracted_on, quota_s, chains.priced)
    labels, _, _, priced = visited(at_once, moves.contracted.num_nodes, visit, carry)
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


def followers(
    moves: Moves,
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    order: Int[Array, " N"],
    count: Int[Array, ""],
    upward: bool | Bool[Array, ""],
    source: Array | None = None,
) -> Bool[Array, "N B"]:
    """The seeds and all contracted nodes that must leave their chip with them.

    These are the successors on the same chip (upward) or the predecessors on it (downward).

    On whole arrays, where data never flows to a lower chip, the contracted nodes on a path between
    two on one chip are on that chip too. So v follows if a seed on its chip has a path to it. For
    each chip this is a product of matrices of zeros and ones, whatever the depth of the graph:
    2 * N * N * B operations (34 G for 4,096 chains of BERT-large, 0.05 ms of an H100's matrix
    units). A walk would be as many steps of 3 us as contracted nodes are visited.

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
      seeds: whether each contracted node is a seed.
      order: contracted nodes, producers first if upward, consumers first if downward.
      count: how many contracted nodes of `order` are visited.
      upward: whether the seeds move to a higher chip; known while tracing if there are no
        `path_lengths`.
      source: the only chip whose contracted nodes matter, all of which are visited. None: every
        contracted node matters and is visited.
    """
    contracted, near = moves.contracted, moves.neighbours
    paths = path_lengths(moves)
    if paths is not None:
        return _followers_at_once(moves, paths, labels, seeds, upward, source)

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

    def join_at_once(v, is_step, chosen):
        assert near is not None
        if upward:
            tensor, is_real = inputs_of(contracted, near, v)
            other = take(contracted.tensor_producer, tensor)
        else:
            other, _, is_real = consumers_of(contracted, near, v)
        is_drawn = is_real & take(chosen, other) & (take(labels, other) == labels[v])
        return chosen.at[v].set(chosen[v] | (is_step & jnp.any(is_drawn, axis=0)))

    def visit(i, is_step, chosen):
        return join(order[i], chosen) if near is None else join_at_once(order[i], is_step, chosen)

    return visited(near is not None, count, visit, seeds)


def path_lengths(moves: Moves) -> Int[Array, "N N"] | None:
    """At [u, v], 0 where contracted node u has a path to v; None if `followers` has to walk."""
    tables = moves.contracted.tables
    return tables.distance if tables is not None and moves.by_order else None


def _followers_at_once(
    moves: Moves,
    paths: Int[Array, "N N"],
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    upward: bool | Bool[Array, ""],
    source: Array | None,
) -> Bool[Array, "N B"]:
    """`followers` as products of matrices."""
    pulled_by = (jnp.where(upward, paths.T, paths) == 0).astype(jnp.bfloat16)

    def join(chip, chosen):
        is_here = labels == chip.astype(labels.dtype)
        here = (seeds & is_here).astype(jnp.bfloat16)
        # Sums of zeros and ones are above 0 where one of them is 1, however they are rounded.
        pulled = jnp.dot(pulled_by, here, preferred_element_type=jnp.float32)
        return chosen | (is_here & (pulled > 0))

    if source is not None:
        return join(source, seeds)
    return lax.fori_loop(0, moves.contracted.config.num_chips, join, seeds)


def movable(moves: Moves, labels: Int[Array, "N B"]) -> Float[Array, " N"]:
    """The share of chains in which each contracted node may be able to move.

    With acyclic dataflow, a contracted node with a producer and a consumer on its own chip cannot
    move.

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
    """
    contracted, tables = moves.contracted, moves.contracted.tables
    if not moves.by_order:
        return jnp.where(jnp.arange(labels.shape[0]) < contracted.num_nodes, 1.0, 0.0)

    def join(e, carry):
        fed, feeds = carry
        u, v = contracted.edge_producer[e], contracted.edge_consumer[e]
        same = labels[u] == labels[v]
        return fed.at[v].set(fed[v] | same), feeds.at[u].set(feeds[u] | same)

    if tables is None:
        nothing = jnp.zeros(labels.shape, bool)
        fed, feeds = lax.fori_loop(0, contracted.num_edges, join, (nothing, nothing))
    else:
        fed, feeds = _fed_and_feeds(contracted, tables, labels)
    share = jnp.mean(~(fed & feeds), axis=1, dtype=jnp.float32)
    return jnp.where(jnp.arange(labels.shape[0]) < contracted.num_nodes, share, 0.0)


def _fed_and_feeds(
    contracted: DeviceProblem, tables: EdgeTables, labels: Int[Array, "N B"]
) -> tuple[Bool[Array, "N B"], Bool[Array, "N B"]]:
    """Whether each contracted node has a producer, and whether it has a consumer, on its chip."""

    def from_producer(i: Array) -> Array:
        producer = take(contracted.tensor_producer, take(contracted.in_edge_tensor, i))
        return take(labels, producer) == take(labels, take(tables.in_edge_consumer, i))

    def to_consumer(e: Array) -> Array:
        producer, consumer = take(contracted.edge_producer, e), take(contracted.edge_consumer, e)
        return take(labels, producer) == take(labels, consumer)

    fed = reduce_segments(from_producer, tables.node_in_edges, operator.or_, False)
    stays = reduce_segments(to_consumer, tables.tensor_edges, operator.or_, False)
    feeds = reduce_segments(lambda k: take(stays, k), tables.node_tensors, operator.or_, False)
    return fed, feeds


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
