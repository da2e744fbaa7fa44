"""Moves of contracted nodes along a row of chips; a move changes two chips and one cut.

On a row of chips every edge stays on its chip or goes to the next one.

1. What chip a sends is what chip a + 1 receives and what the link between them carries: cut[a].
2. Contracted node v on chip a may move up to a + 1 if all its producers are on a and all its
   consumers on a + 1. It may move down to a - 1 if all its producers are on a - 1 and all its
   consumers on a.
3. Let lo be the lower of the two chips. Both moves change the cut between lo and lo + 1 alone.
   Moving up changes it by

       + sum of b(k) over all inputs k of v that no other node on lo + 1 reads
       - sum of b(k) over all outputs k of v that have a consumer.

   The inputs come from lo, and v now reads them on lo + 1. The outputs went to lo + 1, and v now
   makes them there. Moving down changes the cut by the same amount with the opposite sign.

A proposal therefore reads one row of labels per neighbour and about a dozen numbers of the chips lo
and lo + 1. In most chains a given contracted node cannot move. The B chains are divided into slots
of `share` chains; in each slot, at most one chain in which the node can move is priced. On whole
arrays (`by_arrays.py`) the other chains are priced too, and stay where they are; `shift_at_once.py`
has the shifts.
"""

from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.stage import stage_s
from jaxpart.cost.tables import take
from jaxpart.methods.annealing import by_arrays, by_rows
from jaxpart.methods.annealing.moves import Chains, next_noise, uniform
from jaxpart.methods.annealing.price import form_of, over_capacity, powered, seconds_of
from jaxpart.methods.annealing.state import Moves


@struct.dataclass
class _Step:
    """The priced move of one contracted node in some of the chains, one chain per slot.

    A pair is the increase on the lower and on the higher of the two chips.
    """

    lane: Int[Array, " slots"] | None  # the chain of each slot; None: all chains
    is_open: Bool[Array, " slots"]  # whether the move keeps the rules
    source: Int[Array, " slots"]
    target: Int[Array, " slots"]
    compute_s: tuple[Array, Array]
    cut_s: Float[Array, " slots"]  # increase of the traffic between the two chips
    memory_bytes: tuple[Array, Array]
    gain: Float[Array, " slots"]  # increase of the energy


def row_sweep(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    count: Int[Array, ""],
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
    share: int,
) -> Chains:
    """Visits the first `count` contracted nodes of `order`, with at most one proposal per slot.

    Args:
      moves: the problem, on a row of chips.
      chains: B chains; `energy` and `in_s` are not updated.
      order: contracted nodes.
      count: how many of them are visited.
      temperature: of each chain.
      unit_s: unit of the energy, seconds.
      share: chains per slot, of which at most one moves in a step; divides B.
    """
    slots = temperature.shape[0] // share
    form = form_of(moves)

    def visit(i, is_step, chains):
        v = order[i]
        code, noise = _one_per_slot(moves, chains.labels, v, chains.noise, share)
        place, is_open, is_up = (code >> 2) % share, code > 0, (code & 1) == 1
        if form is by_rows:
            lane = place * slots + jnp.arange(slots)
        else:  # all chains are priced: it takes no longer, and needs no gather of labels per slot
            lane = None
            is_chosen = place[None] == jnp.arange(share)[:, None]
            is_open = (is_chosen & (is_open & is_step)[None]).reshape(-1)
            is_up = jnp.tile(is_up, share)
            noise = jnp.where(is_step, noise, chains.noise)
        step = _priced(moves, chains, v, lane, is_open, is_up, unit_s)
        chance = jnp.log(uniform(next_noise(noise[:slots])))
        if lane is None:
            accept = step.is_open & (step.gain <= -temperature * jnp.tile(chance, share))
        else:
            accept = step.is_open & (step.gain <= -temperature[lane] * chance)
        chains = dataclasses.replace(
            chains,
            noise=noise,
            priced=_raised(chains.priced, lane, step.is_open),
            accepted=_raised(chains.accepted, lane, accept),
        )
        return _made(moves, chains, v, step, accept)

    return form.visited(len(order), count, visit, chains) if moves.after.shape[1] > 1 else chains


def row_shift(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    count: Int[Array, ""],
    source: Int[Array, ""],
    upward: Bool[Array, ""],
    quota_s: Float[Array, " B"],
    chosen: Bool[Array, "N B"],
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
) -> Chains:
    """Moves contracted nodes from one chip to a neighbouring chip; each chain keeps all or none.

    Args:
      moves: the problem, on a row of chips.
      chains: B chains; `energy` and `in_s` are not updated.
      order: contracted nodes in the order in which they may leave: producers first if downward,
        consumers first if upward.
      count: how many of them are visited.
      source: the chip that they leave, the same in all chains.
      upward: whether they move to the next chip, or to the previous one.
      quota_s: compute that leaves in each chain, seconds; the last contracted node may exceed it.
      chosen: the contracted nodes that may leave.
      temperature: of each chain; Metropolis decides on the total change of the energy.
      unit_s: unit of the energy, seconds.
    """
    batch = temperature.shape[0]
    lane, start = jnp.arange(batch), chains
    is_up = jnp.broadcast_to(upward, (batch,))

    def visit(i, carry):
        chains, left_s, gain = carry
        v = order[i]
        can_rise, can_fall = by_rows.free_ways(moves, chains.labels, v)
        is_open = jnp.where(upward, can_rise, can_fall) & (chains.labels[v] == source)
        is_open &= chosen[v] & (left_s > 0)
        step = _priced(moves, chains, v, lane, is_open, is_up, unit_s)
        left_s -= jnp.where(step.is_open, seconds_of(moves, v)[source], 0)
        gain += jnp.where(step.is_open, step.gain, 0)
        return _made(moves, chains, v, step, step.is_open), left_s, gain

    carry = (chains, quota_s, jnp.zeros_like(quota_s))
    chains, left_s, gain = lax.fori_loop(0, count, visit, carry)
    noise = next_noise(start.noise)
    has_moved = left_s < quota_s
    accept = gain <= -temperature * jnp.log(uniform(noise))

    def keep(old, new):
        return jnp.where(accept.reshape((1,) * (new.ndim - 1) + (-1,)), new, old)

    return dataclasses.replace(
        start,
        labels=keep(start.labels, chains.labels),
        tables=jax.tree.map(keep, start.tables, chains.tables),
        noise=noise,
        priced=start.priced + has_moved,
        accepted=start.accepted + (has_moved & accept),
    )


def _priced(
    moves: Moves,
    chains: Chains,
    v: Array,
    lane: Int[Array, " slots"] | None,
    is_open: Bool[Array, " slots"],
    is_up: Bool[Array, " slots"],
    unit_s: Float[Array, ""],
) -> _Step:
    """Prices moving contracted node v up or down in some chains.

    Args:
      moves: the problem, on a row of chips.
      chains: B chains.
      v: the contracted node.
      lane: the chain of each slot; None: all chains, in order.
      is_open: whether the edges of v allow the move.
      is_up: whether v moves up.
      unit_s: unit of the energy, seconds.
    """
    contracted, config = moves.contracted, moves.contracted.config
    labels, tables, chips = chains.labels, chains.tables, moves.after.shape[1]
    source = (take(labels, v) if lane is None else labels[v, lane]).astype(jnp.int32)
    at = jnp.arange(len(source)) if lane is None else lane
    low = jnp.clip(jnp.where(is_up, source, source - 1), 0, chips - 2)
    high = low + 1
    sign = jnp.where(is_up, 1.0, -1.0).astype(tables.out_s.dtype)

    if lane is None:
        gained = by_arrays.bytes_read_first(moves, labels, v, high)
    else:
        gained = by_rows.bytes_read_first(moves, labels, v, high, lane)
    cut_step = sign * (gained / contracted.link_bandwidth - moves.sent_s[v])
    seconds = seconds_of(moves, v)
    steps = -sign * seconds[low], sign * seconds[high]
    on = partial(_on, at=at)
    compute = on(tables.compute_s, low), on(tables.compute_s, high)
    cut = on(tables.out_s, low)
    below = jnp.where(low > 0, on(tables.out_s, jnp.maximum(low - 1, 0)), 0)
    above = on(tables.out_s, high)

    after = compute[0] + steps[0], compute[1] + steps[1]
    gain = energy_of_two(config.overlap, after, below, cut + cut_step, above, unit_s)
    gain -= energy_of_two(config.overlap, compute, below, cut, above, unit_s)
    target = jnp.where(is_up, high, low)
    held = jnp.zeros_like(gain), jnp.zeros_like(gain)
    if config.constraints.memory:
        held = _held(moves, chains, v, at, source, target, is_up, cut_step)
        for chip, more in zip((low, high), held, strict=True):
            memory, capacity = on(tables.memory_bytes, chip), contracted.capacity_bytes[chip]
            gain += over_capacity(memory + more, capacity) - over_capacity(memory, capacity)
    if config.constraints.no_skip:  # only the highest chip in use may become empty
        next_on = on(tables.contracted_on, jnp.minimum(source + 1, chips - 1))
        is_top = (source == chips - 1) | (next_on == 0)
        is_open &= (on(tables.contracted_on, source) > 1) | (is_top & ~is_up)
    return _Step(lane, is_open, source, target, steps, cut_step, held, gain)


def _on(table: Array, chip: Int[Array, " slots"], at: Int[Array, " slots"]) -> Array:
    """[slots] what a table [C, B] has on one chip of each chain.

    By one number for each entry: for pairs of numbers XLA makes an array in a kernel of its own.
    """
    entry = chip * table.shape[1] + at
    return table.reshape(-1).at[entry].get(mode="promise_in_bounds")


def energy_of_two(
    overlap: bool,
    compute_s: tuple[Array, Array],
    below_s: Array,
    cut_s: Array,
    above_s: Array,
    unit_s: Float[Array, ""],
) -> Array:
    """The energy of the stages of two neighbouring chips.

    Args:
      overlap: whether a chip computes, receives and sends at the same time.
      compute_s: seconds of compute of the lower and of the higher one.
      below_s: seconds of traffic to the lower one.
      cut_s: from the lower to the higher one.
      above_s: from the higher one.
      unit_s: unit of the energy, seconds.
    """
    first = stage_s(overlap, compute_s[0], below_s, cut_s)
    second = stage_s(overlap, compute_s[1], cut_s, above_s)
    return powered(first / unit_s) + powered(second / unit_s)


def _held(
    moves: Moves,
    chains: Chains,
    v: Array,
    lane: Int[Array, " slots"],
    source: Int[Array, " slots"],
    target: Int[Array, " slots"],
    is_up: Bool[Array, " slots"],
    cut_step: Float[Array, " slots"],
) -> tuple[Array, Array]:
    """The increase in memory of the lower and the higher chip: weights and buffers, bytes."""
    uses = chains.tables.weight_uses
    leaves = enters = jnp.full_like(cut_step, moves.weights.own_bytes[v])
    for column in range(moves.weights.shared.shape[1]):
        w = moves.weights.shared[v, column]
        size = moves.weights.shared_bytes[w]
        leaves += jnp.where(uses[w, source, lane] == 1, size, 0)
        enters += jnp.where(uses[w, target, lane] == 0, size, 0)
    low, high = jnp.where(is_up, -leaves, enters), jnp.where(is_up, enters, -leaves)
    if moves.contracted.config.memory_model == "full":
        carried = 2 * moves.contracted.link_bandwidth * cut_step
        low, high = low + carried, high + carried
    return low, high


def _made(
    moves: Moves, chains: Chains, v: Array, step: _Step, accept: Bool[Array, " slots"]
) -> Chains:
    """The chains after contracted node v moved in all slots that accept it."""
    tables, lane, rules = chains.tables, step.lane, moves.contracted.config.constraints
    source, target = step.source, step.target
    low = jnp.minimum(source, target)

    def add(table, chip, value):
        value = jnp.where(accept, value, 0).astype(table.dtype)
        if lane is None:
            return by_arrays.added(table, chip, value)
        return table.at[chip, lane].add(value, unique_indices=True, mode="promise_in_bounds")

    def add_both(table, values):
        return add(add(table, low, values[0]), low + 1, values[1])

    new = dataclasses.replace(
        tables,
        compute_s=add_both(tables.compute_s, step.compute_s),
        out_s=add(tables.out_s, low, step.cut_s),
    )
    if rules.memory:
        uses, one = tables.weight_uses, accept.astype(tables.weight_uses.dtype)
        if lane is None:
            uses = by_arrays.uses_after(moves, uses, accept, v, source, target)
        for column in range(moves.weights.shared.shape[1] if lane is not None else 0):
            w = moves.weights.shared[v, column]
            uses = uses.at[w, source, lane].add(-one).at[w, target, lane].add(one)
        memory = add_both(tables.memory_bytes, step.memory_bytes)
        new = dataclasses.replace(new, memory_bytes=memory, weight_uses=uses)
    if rules.no_skip:
        new = dataclasses.replace(
            new, contracted_on=add(add(tables.contracted_on, source, -1), target, 1)
        )
    label = jnp.where(accept, target, source).astype(chains.labels.dtype)
    if lane is None:  # a scatter would check the bounds, in a kernel of its own
        labels = lax.dynamic_update_index_in_dim(chains.labels, label, v, 0)
    else:
        labels = chains.labels.at[v, lane].set(label, unique_indices=True, mode="promise_in_bounds")
    return dataclasses.replace(chains, labels=labels, tables=new)


def _raised(count: Int[Array, " B"], lane: Array | None, step: Bool[Array, " slots"]) -> Array:
    """The counts of all chains, one higher in the slots where `step` is true."""
    return count + step if lane is None else count.at[lane].add(step, unique_indices=True)


def _one_per_slot(
    moves: Moves, labels: Int[Array, "N B"], v: Array, noise: UInt32[Array, " B"], share: int
) -> tuple[Int[Array, " slots"], UInt32[Array, " B"]]:
    """Chooses, in each slot, one chain in which contracted node v can move.

    The chain at place p of slot s has number p * slots + s.

    Returns:
      Per slot, 4 * place + 2 + (1 if it moves up, else 0), or 0 if no chain can move; and the next
      generator states.
    """
    can_rise, can_fall = form_of(moves).free_ways(moves, labels, v)
    noise = next_noise(noise)
    is_up = can_rise & (~can_fall | ((noise >> 31) == 1))
    slots = len(noise) // share
    place = jnp.arange(share, dtype=jnp.int32)[:, None]
    # The open chain of highest rank is chosen. A random turn, the same in all slots, rotates ranks.
    turn = (noise[0] >> 8).astype(jnp.int32) % share
    rank = (place + turn) % share + 1
    code = rank * 2 + is_up.reshape(share, slots)
    code = jnp.where((can_rise | can_fall).reshape(share, slots), code, 0)
    best = functools.reduce(jnp.maximum, code)  # in one kernel with what is read of it
    chosen = (best // 2 - 1 - turn) % share
    return jnp.where(best > 0, 4 * chosen + 2 + best % 2, 0), noise
