"""Shifts along a row of chips on whole arrays, without a step per contracted node.

`row_shift` in `row.py` walks over the contracted nodes of a chip in the order in which they may
leave, and prices each. Which of them leave follows from the labels alone:

1. Some cannot leave, whatever the others do: their chip is fixed, they are not chosen, or an edge
   joins them to the chip on the other side.
2. Neither can those that may leave only after one of these, which is what `followers` finds.
3. Of the others, those leave before which less than the quota has left: a running sum.

The changes of the energy add up to its change in all. So the loads of the two chips are compared
before and after the shift, once.

Floor of a shift, for B chains: the labels, read and written, and the loads of two chips. For 4,096
chains of BERT-large that is 17 MB, or 5 us of an H100's memory. The two products of `followers`
take 0.1 ms, the running sum over N rows of floats (34 MB, passed over about eight times) another.
"""

from __future__ import annotations

import dataclasses
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.tables import reduce_segments, take
from jaxpart.methods.annealing import by_arrays
from jaxpart.methods.annealing.moves import Chains, next_noise, uniform
from jaxpart.methods.annealing.price import over_capacity
from jaxpart.methods.annealing.row import energy_of_two
from jaxpart.methods.annealing.state import Moves, Tables, uses_on


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
    """As in `row.py`; `order` has every contracted node once."""
    chips = moves.contracted.config.num_chips
    low = jnp.clip(jnp.where(upward, source, source - 1), 0, chips - 2)
    target = jnp.where(upward, low + 1, low)
    tables = chains.tables
    leaves = _leavers(moves, chains, order, count, source, upward, quota_s, chosen)
    labels = jnp.where(leaves, target.astype(chains.labels.dtype), chains.labels)
    left_s = _on_chip(moves.contracted.node_s[:, moves.contracted.chip_kind[source]], leaves)
    shifted = _tables_after(moves, tables, labels, leaves, low, source, target)
    gain = _energy(moves, shifted, low, unit_s) - _energy(moves, tables, low, unit_s)
    noise = next_noise(chains.noise)
    has_moved = quota_s - left_s < quota_s
    accept = gain <= -temperature * jnp.log(uniform(noise))

    def keep(old, new):
        return jnp.where(accept.reshape((1,) * (new.ndim - 1) + (-1,)), new, old)

    return dataclasses.replace(
        chains,
        labels=keep(chains.labels, labels),
        tables=jax.tree.map(keep, tables, shifted),
        noise=noise,
        priced=chains.priced + has_moved,
        accepted=chains.accepted + (has_moved & accept),
    )


def _leavers(
    moves: Moves,
    chains: Chains,
    order: Int[Array, " N"],
    count: Int[Array, ""],
    source: Int[Array, ""],
    upward: Bool[Array, ""],
    quota_s: Float[Array, " B"],
    chosen: Bool[Array, "N B"],
) -> Bool[Array, "N B"]:
    """Which contracted nodes leave the chip; the arguments are those of `row_shift`."""
    contracted, labels = moves.contracted, chains.labels
    chips, rows = contracted.config.num_chips, jnp.arange(labels.shape[0])
    is_here = (labels == source.astype(labels.dtype)) & (rows < contracted.num_nodes)[:, None]
    fed, feeds = by_arrays.fed_and_feeds(contracted, labels, from_here=False)
    is_end = source == jnp.where(upward, chips - 1, 0)
    is_held = jnp.where(upward, fed, feeds) | ~chosen | is_end
    is_held = is_here & (is_held | (contracted.fixed_chip >= 0)[:, None])
    # Upward, consumers leave first: the producers of one that is held stay with it.
    stays = by_arrays.followers(moves, labels, is_held, order, count, ~upward, source)

    # From here on, row i is the contracted node that may leave as the i-th.
    goes = take(is_here & ~stays, order)
    seconds = take(contracted.node_s, order)[:, contracted.chip_kind[source]]
    gone_s = jnp.cumsum(jnp.where(goes, seconds[:, None], 0), axis=0)
    gone_s = jnp.concatenate([jnp.zeros_like(gone_s[:1]), gone_s[:-1]])
    goes &= gone_s < quota_s[None]
    if contracted.config.constraints.no_skip:  # only the highest chip in use may become empty
        on = chains.tables.contracted_on
        is_top = (source == chips - 1) | (on[jnp.minimum(source + 1, chips - 1)] == 0)
        is_all = (jnp.sum(goes, axis=0, dtype=on.dtype) == on[source]) & ~(is_top & ~upward)
        last = jnp.max(jnp.where(goes, rows[:, None], -1), axis=0)
        goes &= ~(is_all[None] & (rows[:, None] == last[None]))
    return take(goes, jnp.zeros_like(order).at[order].set(rows, unique_indices=True))


def _tables_after(
    moves: Moves,
    tables: Tables,
    labels: Int[Array, "N B"],
    leaves: Bool[Array, "N B"],
    low: Int[Array, ""],
    source: Int[Array, ""],
    target: Int[Array, ""],
) -> Tables:
    """The tables after contracted nodes moved from one chip to another.

    Args:
      moves: the problem, on a row of chips.
      tables: before the shift.
      labels: chips of contracted nodes after it.
      leaves: the contracted nodes that moved.
      low: the lower one of the two chips.
      source: the chip that they left.
      target: the chip that they went to.
    """
    contracted, rules = moves.contracted, moves.contracted.config.constraints

    def add(table, chip, more):
        return by_arrays.added(table, jnp.broadcast_to(chip, more.shape), more.astype(table.dtype))

    def seconds(chip):
        return _on_chip(contracted.node_s[:, contracted.chip_kind[chip]], leaves)

    cut_s = _cut_bytes(moves, labels, low) / contracted.link_bandwidth
    compute_s = add(add(tables.compute_s, source, -seconds(source)), target, seconds(target))
    new = dataclasses.replace(tables, compute_s=compute_s, out_s=tables.out_s.at[low].set(cut_s))
    if rules.no_skip:
        moved = jnp.sum(leaves, axis=0, dtype=jnp.int32)
        on = add(add(tables.contracted_on, source, -moved), target, moved)
        new = dataclasses.replace(new, contracted_on=on)
    if not rules.memory:
        return new
    own = _on_chip(moves.weights.own_bytes, leaves)
    memory, uses = tables.memory_bytes, tables.weight_uses
    for chip, more in ((source, -own), (target, own)):
        if moves.weights.shared.shape[1]:
            now = uses_on(moves, labels, chip[None])[:, 0]
            step = (now > 0).astype(more.dtype) - (uses[:, chip] > 0)
            more = more + jnp.sum(step * moves.weights.shared_bytes[:, None], axis=0)
            uses = uses.at[:, chip].set(now)
        memory = add(memory, chip, more)
    if contracted.config.memory_model == "full":
        carried = 2 * contracted.link_bandwidth * (cut_s - tables.out_s[low])
        memory = add(add(memory, low, carried), low + 1, carried)
    return dataclasses.replace(new, memory_bytes=memory, weight_uses=uses)


def _cut_bytes(moves: Moves, labels: Int[Array, "N B"], low: Int[Array, ""]) -> Float[Array, " B"]:
    """Bytes that a chip sends to the next one."""
    contracted = moves.contracted
    assert contracted.tables is not None
    next_chip = (low + 1).astype(labels.dtype)
    is_read = reduce_segments(
        lambda e: take(labels, take(contracted.edge_consumer, e)) == next_chip,
        contracted.tables.tensor_edges,
        operator.or_,
        False,
    )
    is_sent = is_read & (take(labels, contracted.tensor_producer) == low.astype(labels.dtype))
    return jnp.sum(jnp.where(is_sent, contracted.tensor_bytes[:, None], 0), axis=0)


def _on_chip(amount: Float[Array, " N"], leaves: Bool[Array, "N B"]) -> Float[Array, " B"]:
    """The sum of what the contracted nodes that leave have."""
    return jnp.sum(jnp.where(leaves, amount[:, None], 0), axis=0)


def _energy(
    moves: Moves, tables: Tables, low: Int[Array, ""], unit_s: Float[Array, ""]
) -> Float[Array, " B"]:
    """The energy of chip `low` and the next one."""
    config, out_s = moves.contracted.config, tables.out_s
    below = jnp.where(low > 0, out_s[jnp.maximum(low - 1, 0)], 0)
    compute_s = tables.compute_s[low], tables.compute_s[low + 1]
    energy = energy_of_two(config.overlap, compute_s, below, out_s[low], out_s[low + 1], unit_s)
    if config.constraints.memory:
        for chip in (low, low + 1):
            capacity = moves.contracted.capacity_bytes[chip]
            energy += over_capacity(tables.memory_bytes[chip], capacity)
    return energy
