"""Moves of single blocks along a row of chips: the figures of two chips and the cut between them.

Where every edge stays on its chip or goes to the next (span one), what a chip sends is what the
next receives and what the link between them carries. Block v on chip a may go to a + 1 if all its
producers are on a and all its consumers on a + 1, to a - 1 if all its producers are there and all
its consumers on a. Either way, with lo the lower of the two chips, one cut changes:

    up:    cut[lo] += sum of b(k) over inputs k that no other block on lo + 1 reads - what v sends,

and down takes the same away. So a proposal is one row of labels per neighbour and about a dozen
figures of the chips lo and lo + 1. In most chains a given block cannot move: of every `share`
neighbouring chains at most one, which can, is priced.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from jaxpart.moves import Chains, next_noise, uniform
from jaxpart.moves_price import over_capacity, powered
from jaxpart.moves_state import Moves


def row_sweep(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    count: Int[Array, ""],
    temperature: Float[Array, " B"],
    unit_s: Float[Array, ""],
    share: int,
) -> Chains:
    """One proposal for each of the first `count` blocks of `order` in every chain.

    Args:
      moves: of a row of chips.
      chains: B chains; `energy` and `in_s` are left as they are.
      order: blocks.
      count: how many of them.
      temperature: per chain.
      unit_s: of the energy.
      share: of so many chains at most one moves in a step; divides B.
    """
    blocks, switches = moves.blocks, moves.blocks.switches
    chips, batch = chains.tables.compute_s.shape
    slots = batch // share
    slot = jnp.arange(slots)
    sent_s = _sent_s(moves)
    shared_columns = moves.weights.shared.shape[1]

    def sum_energy(compute_s, cut_below, cut, cut_above):
        if switches.overlap:
            low = jnp.maximum(compute_s[0], jnp.maximum(cut_below, cut))
            high = jnp.maximum(compute_s[1], jnp.maximum(cut, cut_above))
        else:
            low, high = compute_s[0] + cut_below + cut, compute_s[1] + cut + cut_above
        return powered(low / unit_s) + powered(high / unit_s)

    def visit(i, chains):
        labels, tables = chains.labels, chains.tables
        v = order[i]
        rank, noise = _one_of_each(moves, labels, v, chains.noise, share)
        is_open = rank > 0
        is_up = (rank & 1) == 1
        lane = (rank >> 2) % share * slots + slot
        source = labels[v, lane].astype(jnp.int32)
        low = jnp.clip(jnp.where(is_up, source, source - 1), 0, chips - 2)
        high = low + 1
        target = jnp.where(is_up, high, low)
        sign = jnp.where(is_up, 1.0, -1.0).astype(tables.out_s.dtype)

        def consumed(e, gained_s):
            k = blocks.in_edge_tensor[e]

            def look(e, is_read):
                q = blocks.edge_consumer[e]
                return is_read | ((q != v) & (labels[q, lane].astype(jnp.int32) == high))

            start, stop = blocks.tensor_edges[k], blocks.tensor_edges[k + 1]
            is_read = lax.fori_loop(start, stop, look, jnp.zeros(slots, bool))
            return gained_s + jnp.where(is_read, 0, blocks.tensor_bytes[k])

        start, stop = blocks.node_in_edges[v], blocks.node_in_edges[v + 1]
        gained = lax.fori_loop(start, stop, consumed, jnp.zeros(slots, tables.out_s.dtype))
        cut_step = sign * (gained / blocks.link_bandwidth - sent_s[v])
        seconds = blocks.node_s[v]
        taken_low = seconds[blocks.chip_kind[low]] * -sign
        taken_high = seconds[blocks.chip_kind[high]] * sign
        compute = tables.compute_s[low, lane], tables.compute_s[high, lane]
        cut = tables.out_s[low, lane]
        cut_below = jnp.where(low > 0, tables.out_s[jnp.maximum(low - 1, 0), lane], 0)
        cut_above = tables.out_s[high, lane]
        after = compute[0] + taken_low, compute[1] + taken_high
        gain = sum_energy(after, cut_below, cut + cut_step, cut_above)
        gain -= sum_energy(compute, cut_below, cut, cut_above)
        held_low = held_high = jnp.zeros_like(gain)
        if switches.constraints.memory:
            own = moves.weights.own_bytes[v]
            leaves, enters = jnp.full_like(gain, own), jnp.full_like(gain, own)
            for column in range(shared_columns):
                w = moves.weights.shared[v, column]
                size = moves.weights.shared_bytes[w]
                leaves += jnp.where(tables.weight_uses[w, source, lane] == 1, size, 0)
                enters += jnp.where(tables.weight_uses[w, target, lane] == 0, size, 0)
            held_low = jnp.where(is_up, -leaves, enters)
            held_high = jnp.where(is_up, enters, -leaves)
            if switches.memory_model == "full":
                carried = 2 * blocks.link_bandwidth * cut_step
                held_low, held_high = held_low + carried, held_high + carried
            for chip, held in ((low, held_low), (high, held_high)):
                memory, capacity = tables.memory_bytes[chip, lane], blocks.capacity_bytes[chip]
                gain += over_capacity(memory + held, capacity) - over_capacity(memory, capacity)
        if switches.constraints.no_skip:
            above = tables.blocks_on[jnp.minimum(source + 1, chips - 1), lane]
            is_top = (source == chips - 1) | (above == 0)
            is_open &= (tables.blocks_on[source, lane] > 1) | (is_top & ~is_up)
        draw = uniform(next_noise(noise[:slots]))
        accept = is_open & (gain <= -temperature[lane] * jnp.log(draw))

        def add(table, chip, value):
            return table.at[chip, lane].add(
                jnp.where(accept, value, 0).astype(table.dtype),
                unique_indices=True,
                mode="promise_in_bounds",
            )

        label = jnp.where(accept, target, source).astype(labels.dtype)
        new = tables.replace(
            compute_s=add(add(tables.compute_s, low, taken_low), high, taken_high),
            out_s=add(tables.out_s, low, cut_step),
        )
        if switches.constraints.memory:
            memory = add(tables.memory_bytes, low, held_low)
            new = new.replace(memory_bytes=add(memory, high, held_high))
            uses = tables.weight_uses
            for column in range(shared_columns):
                w = moves.weights.shared[v, column]
                one = accept.astype(uses.dtype)
                uses = uses.at[w, source, lane].add(-one).at[w, target, lane].add(one)
            new = new.replace(weight_uses=uses)
        if switches.constraints.no_skip:
            blocks_on = add(tables.blocks_on, source, -1)
            new = new.replace(blocks_on=add(blocks_on, target, 1))
        return chains.replace(
            labels=labels.at[v, lane].set(label, unique_indices=True, mode="promise_in_bounds"),
            tables=new,
            noise=noise,
            priced=chains.priced.at[lane].add(is_open),
            accepted=chains.accepted.at[lane].add(accept),
        )

    return lax.fori_loop(0, count, visit, chains) if chips > 1 else chains


def _sent_s(moves: Moves) -> Float[Array, " N"]:
    """Seconds that each block sends for, were none of its consumers on its chip."""
    blocks = moves.blocks
    is_read = blocks.tensor_edges[1:] > blocks.tensor_edges[:-1]
    size_s = jnp.where(is_read, blocks.tensor_bytes / blocks.link_bandwidth, 0)
    return jnp.zeros_like(size_s).at[blocks.tensor_producer].add(size_s)


def _one_of_each(
    moves: Moves, labels: Int[Array, "N B"], v: Array, noise: UInt32[Array, " B"], share: int
) -> tuple[Int[Array, " slots"], UInt32[Array, " B"]]:
    """Per slot one chain in which block v can move: 4 * its place + 2 + whether it moves up; 0:
    none can. A draw for each chain, and the noise after it."""
    blocks, chips = moves.blocks, moves.blocks.switches.num_chips
    row = labels[v]

    def fed(e, ends):
        label = labels[blocks.tensor_producer[blocks.in_edge_tensor[e]]]
        return jnp.minimum(ends[0], label), jnp.maximum(ends[1], label)

    def feeds(e, ends):
        label = labels[blocks.edge_consumer[e]]
        return jnp.minimum(ends[0], label), jnp.maximum(ends[1], label)

    start, stop = blocks.node_in_edges[v], blocks.node_in_edges[v + 1]
    first_in, last_in = lax.fori_loop(start, stop, fed, (row, row - 1))
    start = blocks.tensor_edges[blocks.node_tensors[v]]
    stop = blocks.tensor_edges[blocks.node_tensors[v + 1]]
    first_out, last_out = lax.fori_loop(start, stop, feeds, (row + 1, row))
    can_rise = (first_in >= row) & (first_out > row) & (row < chips - 1)
    can_fall = (last_in < row) & (last_out <= row) & (row > 0)
    is_free = blocks.pin[v] < 0
    can_rise, can_fall = can_rise & is_free, can_fall & is_free
    noise = next_noise(noise)
    is_up = can_rise & (~can_fall | ((noise >> 31) == 1))
    slots = len(row) // share
    place = jnp.arange(share, dtype=jnp.int32)[:, None]
    # Whose turn it is first changes from step to step, alike for all slots.
    turn = (noise[0] >> 8).astype(jnp.int32) % share
    rank = (place + turn) % share + 1
    code = rank * 2 + is_up.reshape(share, slots)
    best = jnp.max(jnp.where((can_rise | can_fall).reshape(share, slots), code, 0), axis=0)
    chosen = (best // 2 - 1 - turn) % share
    return jnp.where(best > 0, 4 * chosen + 2 + best % 2, 0), noise
