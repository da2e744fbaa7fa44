"""The price of moving one contracted node, for thousands of chains at once.

The labels of the neighbours and the tables of the chips determine everything: which chips keep all
edges of the contracted node within the chip graph, the traffic of its tensors before and after the
move, and the memory of the chips.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.stage import stage_s
from jaxpart.cost.tables import take
from jaxpart.methods.annealing.neighbours import (
    Neighbours,
    any_of,
    consumers_of,
    inputs_of,
    outputs_of,
    readers_of,
)
from jaxpart.methods.annealing.state import WORD, Moves, Tables, chip_column

# Exponent of the energy: the longest stage dominates, and stages close to it break ties.
POWER = 16
# Energy of a chip that holds twice its capacity; a stage of length `unit_s` has energy 1.
_OVERFULL = 40.0
# Largest ratio of a stage to `unit_s`; its 16th power is still a finite float32.
_MOST_RATIO = 100.0


@struct.dataclass
class _Change:
    """The change in traffic that a move makes in each chain, seconds."""

    in_from: Float[Array, " B"]  # received by the source
    in_to: Float[Array, " B"]  # received by the target
    out_from: Float[Array, " B"]  # sent by the source
    out_to: Float[Array, " B"]  # sent by the target
    # Sent by the chips of its producers. By loops over rows it is empty on a row of chips, where
    # `out_from` and `out_to` hold it.
    out_s: Float[Array, "C B"]
    link_s: Float[Array, "L B"]


def chip_energy(moves: Moves, tables: Tables, unit_s: Float[Array, ""]) -> Float[Array, "C B"]:
    """The energy of each chip: a power of its stage in units, plus a penalty for memory.

    Args:
      moves: the problem.
      tables: of B chains.
      unit_s: unit of the energy, seconds.
    """
    config = moves.contracted.config
    busy_s = stage_s(config.overlap, tables.compute_s, tables.in_s, tables.out_s)
    energy = powered(busy_s / unit_s)
    if config.constraints.memory:
        energy += over_capacity(tables.memory_bytes, moves.contracted.capacity_bytes[:, None])
    return energy


def energy_of(moves: Moves, tables: Tables, unit_s: Float[Array, ""]) -> Float[Array, " B"]:
    """The energy of each chain: the sum of the energies of its chips and links.

    Args:
      moves: the problem.
      tables: of B chains.
      unit_s: unit of the energy, seconds.
    """
    energy = jnp.sum(chip_energy(moves, tables, unit_s), axis=0)
    if tables.link_s.shape[0]:
        energy += jnp.sum(powered(tables.link_s / unit_s), axis=0)
    return energy


def over_capacity(held_bytes: Array, capacity_bytes: Array) -> Array:
    """The energy of memory above a capacity; a capacity of 0 counts as 1 byte."""
    return _OVERFULL * jnp.maximum(held_bytes / jnp.maximum(capacity_bytes, 1) - 1, 0)


def powered(ratio: Array) -> Array:
    """The energy of a chip or link that is busy for `ratio` times the unit."""
    return jnp.minimum(ratio, _MOST_RATIO) ** POWER


def seconds_of(moves: Moves, v: Array) -> Float[Array, " C"]:
    """Compute time of contracted node v on each chip, seconds."""
    return moves.contracted.node_s[v][moves.contracted.chip_kind]


def allowed_chips(moves: Moves, labels: Int[Array, "N B"], v: Array) -> UInt32[Array, "words B"]:
    """The chips on which contracted node v keeps all its edges within the chip graph.

    The result is a set of chips per chain, `WORD` chips in a word. It is empty if v has a fixed
    chip.
    """
    contracted = moves.contracted

    def after(e, allowed):
        u = contracted.tensor_producer[contracted.in_edge_tensor[e]]
        return allowed & moves.after[:, labels[u].astype(jnp.int32)]

    def before(e, allowed):
        return allowed & moves.before[:, labels[contracted.edge_consumer[e]].astype(jnp.int32)]

    every = jnp.full((moves.after.shape[0], labels.shape[1]), 0xFFFFFFFF, jnp.uint32)
    every = jnp.where(contracted.fixed_chip[v] >= 0, jnp.uint32(0), every)
    if moves.neighbours is not None:
        tensor, is_input = inputs_of(contracted, moves.neighbours, v)
        consumer, _, is_read = consumers_of(contracted, moves.neighbours, v)
        every &= _common(
            moves.after, take(labels, take(contracted.tensor_producer, tensor)), is_input
        )
        return every & _common(moves.before, take(labels, consumer), is_read)
    allowed = lax.fori_loop(
        contracted.node_in_edges[v], contracted.node_in_edges[v + 1], after, every
    )
    start = contracted.tensor_edges[contracted.node_tensors[v]]
    stop = contracted.tensor_edges[contracted.node_tensors[v + 1]]
    return lax.fori_loop(start, stop, before, allowed)


def _common(
    sets: UInt32[Array, "words C"], chip: Int[Array, "M B"], is_real: Bool[Array, "M 1"]
) -> UInt32[Array, "words B"]:
    """The intersection of the sets of some chips."""
    every = jnp.uint32(0xFFFFFFFF)
    found = jnp.where(is_real, sets[:, chip.astype(jnp.int32)], every)
    return lax.reduce(found, every, lax.bitwise_and, (1,))


def holds(allowed: UInt32[Array, "words B"], chip: Int[Array, " B"]) -> Bool[Array, " B"]:
    """Whether the chip of each chain is in its set of chips."""
    word = chip_column(allowed.shape[0]) == (chip // WORD)[None]
    bit = (allowed >> (chip % WORD).astype(jnp.uint32)[None]) & 1
    return jnp.any(word & (bit == 1), axis=0)


def pick(
    moves: Moves,
    tables: Tables,
    allowed: UInt32[Array, "words B"],
    source: Int[Array, " B"],
    noise: UInt32[Array, " B"],
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Picks a random allowed chip in each chain, other than the source.

    Args:
      moves: the problem.
      tables: of B chains.
      allowed: sets of chips, from `allowed_chips`.
      source: the chip of the contracted node.
      noise: random bits.

    Returns:
      The chip, and whether there is one.
    """
    chips = moves.contracted.config.num_chips
    chip = chip_column(chips)
    bits = jnp.repeat(allowed, WORD, axis=0, total_repeat_length=len(allowed) * WORD)[:chips]
    is_open = ((bits >> (chip % WORD).astype(jnp.uint32)) & 1) == 1
    is_open &= chip != source[None]
    if moves.contracted.config.constraints.no_skip:
        used = jnp.sum(tables.contracted_on > 0, axis=0, dtype=jnp.int32)
        alone = jnp.sum(jnp.where(chip == source[None], tables.contracted_on, 0), axis=0) == 1
        # A contracted node that is alone on its chip may leave only the highest chip in use, for a
        # lower one.
        most = jnp.where(alone, jnp.where(source == used - 1, source - 1, -1), used)
        is_open &= chip <= most[None]
    # The first open chip at or below a random one, cyclically.
    turn = ((noise >> 16) * jnp.uint32(chips) >> 16).astype(jnp.int32)
    rank = chip + turn[None]
    rank = jnp.where(rank >= chips, rank - chips, rank)
    best = jnp.max(jnp.where(is_open, rank, -1), axis=0)
    target = best - turn
    return jnp.where(target < 0, target + chips, target) % chips, best >= 0


def _change(
    moves: Moves,
    labels: Int[Array, "N B"],
    tables: Tables,
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> _Change:
    """The change in traffic if contracted node v moves from `source` to `target`."""
    contracted = moves.contracted
    if moves.neighbours is not None:
        return _change_at_once(moves, moves.neighbours, labels, tables, v, source, target)
    chip, link = chip_column(len(tables.in_s)), chip_column(len(tables.link_s))
    no = jnp.zeros(source.shape, bool)

    def others(k, home, new_home):
        """Looks at the consumers of tensor k other than v.

        Returns:
          Whether any of them is on the source, on the target, not on chip `home`, not on chip
          `new_home`; and the highest of their chips (-1: there are none).
        """

        def look(e, seen):
            on_source, on_target, away, away_new, far = seen
            q = contracted.edge_consumer[e]
            label = labels[q].astype(jnp.int32)
            there = q != v
            return (
                on_source | (there & (label == source)),
                on_target | (there & (label == target)),
                away | (there & (label != home)),
                away_new | (there & (label != new_home)),
                jnp.where(there, jnp.maximum(far, label), far),
            )

        start, stop = contracted.tensor_edges[k], contracted.tensor_edges[k + 1]
        return lax.fori_loop(start, stop, look, (no, no, no, no, jnp.full_like(source, -1)))

    def amount(k, is_less, is_more):
        """Seconds of tensor k: negative where traffic ends, positive where it begins."""
        size_s = contracted.tensor_bytes[k] / contracted.link_bandwidth
        return size_s * (is_more.astype(size_s.dtype) - is_less.astype(size_s.dtype))

    def on_links(change, k, old, new):
        """Moves tensor k from the links between chips `old` to the links between chips `new`."""
        if not len(link):
            return change.link_s
        is_old = (link >= old[0][None]) & (link < old[1][None])
        is_new = (link >= new[0][None]) & (link < new[1][None])
        return change.link_s + amount(k, is_old, is_new)

    def consumed(e, change):
        k = contracted.in_edge_tensor[e]
        home = labels[contracted.tensor_producer[k]].astype(jnp.int32)
        on_source, on_target, away, _, far = others(k, home, home)
        sent = amount(k, away | (source != home), away | (target != home))
        if moves.is_row:  # the producer is on the source or the target
            at_source = home == source
            out_from = change.out_from + jnp.where(at_source, sent, 0)
            out_to = change.out_to + jnp.where(at_source, 0, sent)
            out_s = change.out_s
        else:
            out_from, out_to = change.out_from, change.out_to
            out_s = change.out_s + jnp.where(chip == home[None], sent[None], 0)
        ends = jnp.maximum(far, source), jnp.maximum(far, target)
        return _Change(
            change.in_from + amount(k, (source != home) & ~on_source, no),
            change.in_to + amount(k, no, (target != home) & ~on_target),
            out_from,
            out_to,
            out_s,
            on_links(change, k, (home, ends[0]), (home, ends[1])),
        )

    def made(k, change):
        on_source, on_target, away, away_new, far = others(k, source, target)
        return _Change(
            change.in_from + amount(k, no, on_source),
            change.in_to + amount(k, on_target, no),
            change.out_from + amount(k, away, no),
            change.out_to + amount(k, no, away_new),
            change.out_s,
            on_links(change, k, (source, far), (target, far)),
        )

    nothing = jnp.zeros(source.shape, tables.in_s.dtype)
    out_s = jnp.zeros_like(tables.out_s)[: 0 if moves.is_row else None]
    links = jnp.zeros_like(tables.link_s)
    change = _Change(nothing, nothing, nothing, nothing, out_s, links)
    start, stop = contracted.node_in_edges[v], contracted.node_in_edges[v + 1]
    change = lax.fori_loop(start, stop, consumed, change)
    return lax.fori_loop(contracted.node_tensors[v], contracted.node_tensors[v + 1], made, change)


def _change_at_once(
    moves: Moves,
    near: Neighbours,
    labels: Int[Array, "N B"],
    tables: Tables,
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> _Change:
    """`_change` by reductions over the inputs, the outputs and their consumers, all at once."""
    contracted = moves.contracted
    chip = chip_column(len(tables.in_s))[:, None]
    link = jnp.arange(len(tables.link_s), dtype=jnp.int32)[:, None, None]
    bandwidth = contracted.link_bandwidth

    def seconds(tensor, is_real):
        return jnp.where(is_real, take(contracted.tensor_bytes, tensor)[:, None] / bandwidth, 0)

    def total(size_s, is_less, is_more, axis=0):
        """Seconds of all tensors: negative where traffic ends, positive where it begins."""
        step = is_more.astype(size_s.dtype) - is_less.astype(size_s.dtype)
        return jnp.sum(size_s * step, axis=axis)

    def farthest(label, is_there, group, groups):
        """The highest chip of each group; -1 if it is empty."""
        number = jnp.arange(groups)[:, None, None]
        here = is_there[None] & (group[:, None] == number)
        return jnp.max(jnp.where(here, label[None], -1), axis=1)

    def on_links(size_s, old, new):
        is_old = (link >= old[0][None]) & (link < old[1][None])
        is_new = (link >= new[0][None]) & (link < new[1][None])
        return total(size_s[None], is_old, is_new, axis=1)

    # What v consumes. Its other consumers are the readers.
    tensor, is_input = inputs_of(contracted, near, v)
    size_s, inputs = seconds(tensor, is_input), near.most_inputs
    home = take(labels, take(contracted.tensor_producer, tensor)).astype(jnp.int32)
    reader, read, is_reader = readers_of(near, v)
    label = take(labels, reader).astype(jnp.int32)
    on_source = any_of(is_reader & (label == source), read, inputs)
    on_target = any_of(is_reader & (label == target), read, inputs)
    away = any_of(is_reader & (label != take(home, read)), read, inputs)
    no = jnp.zeros(home.shape, bool)
    is_far, will_be_far = source != home, target != home
    in_from = total(size_s, is_far & ~on_source, no)
    in_to = total(size_s, no, will_be_far & ~on_target)
    is_home = home[None] == chip
    sent = size_s * (
        (away | will_be_far).astype(size_s.dtype) - (away | is_far).astype(size_s.dtype)
    )
    out_s = jnp.sum(jnp.where(is_home, sent[None], 0), axis=1)
    link_s = jnp.zeros_like(tables.link_s)
    if len(link):
        far = farthest(label, is_reader, read, inputs)
        link_s += on_links(
            size_s, (home, jnp.maximum(far, source)), (home, jnp.maximum(far, target))
        )

    # What v makes.
    tensor, is_output = outputs_of(contracted, near, v)
    size_s, outputs = seconds(tensor, is_output), near.most_outputs
    consumer, made, is_read = consumers_of(contracted, near, v)
    label = take(labels, consumer).astype(jnp.int32)
    on_source = any_of(is_read & (label == source), made, outputs)
    on_target = any_of(is_read & (label == target), made, outputs)
    away = any_of(is_read & (label != source), made, outputs)
    away_new = any_of(is_read & (label != target), made, outputs)
    no = jnp.zeros(on_source.shape, bool)
    if len(link):
        far = farthest(label, is_read, made, outputs)
        link_s += on_links(size_s, (source[None], far), (target[None], far))
    return _Change(
        in_from + total(size_s, no, on_source),
        in_to + total(size_s, on_target, no),
        total(size_s, away, no),
        total(size_s, no, away_new),
        out_s,
        link_s,
    )


def moved(
    moves: Moves,
    labels: Int[Array, "N B"],
    tables: Tables,
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> Tables:
    """The tables with contracted node v on its target; `weight_uses` is not updated.

    Args:
      moves: the problem.
      labels: chips of contracted nodes before the move.
      tables: before the move.
      v: the contracted node.
      source: its chip in each chain.
      target: its new chip in each chain.
    """
    config = moves.contracted.config
    change = _change(moves, labels, tables, v, source, target)
    chip = chip_column(config.num_chips)
    dtype = tables.in_s.dtype
    leaves, enters = chip == source[None], chip == target[None]
    step = enters.astype(jnp.int32) - leaves.astype(jnp.int32)

    def at(leaving, entering):
        return jnp.where(leaves, leaving[None], 0) + jnp.where(enters, entering[None], 0)

    in_s = at(change.in_from, change.in_to)
    out_s = at(change.out_from, change.out_to)
    if len(change.out_s):
        out_s += change.out_s
    held = jnp.zeros_like(tables.memory_bytes)
    if config.constraints.memory:
        held = moves.weights.own_bytes[v] * step.astype(dtype)
        for column in range(moves.weights.shared.shape[1]):
            w = moves.weights.shared[v, column]
            uses, size = tables.weight_uses[w], moves.weights.shared_bytes[w]
            held += jnp.where(enters & (uses == 0), size, 0)
            held -= jnp.where(leaves & (uses == 1), size, 0)
        if config.memory_model == "full":
            held += 2 * moves.contracted.link_bandwidth * (in_s + out_s)
    return Tables(
        tables.compute_s + seconds_of(moves, v)[:, None] * step.astype(dtype),
        tables.in_s + in_s,
        tables.out_s + out_s,
        tables.link_s + change.link_s,
        tables.memory_bytes + held,
        tables.contracted_on + step,
        tables.weight_uses,
    )


def committed(
    moves: Moves,
    old: Tables,
    new: Tables,
    accept: Bool[Array, " B"],
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> Tables:
    """The new tables in chains that accept the move, the old ones in others.

    Args:
      moves: the problem.
      old: tables before the move.
      new: those of `moved`; `weight_uses` is updated here.
      accept: whether each chain accepts.
      v: the contracted node.
      source: its chip in each chain before the move.
      target: its chip in each chain after the move.
    """
    chip = chip_column(moves.contracted.config.num_chips)
    uses = old.weight_uses
    if len(uses):
        step = (chip == target[None]).astype(uses.dtype) - (chip == source[None])
        step = jnp.where(accept[None], step, 0).astype(uses.dtype)
        for column in range(moves.weights.shared.shape[1]):
            w = moves.weights.shared[v, column]
            uses = uses.at[w].set(uses[w] + step)

    def keep(old, new):
        return jnp.where(accept[None], new, old)

    return Tables(
        compute_s=keep(old.compute_s, new.compute_s),
        in_s=keep(old.in_s, new.in_s),
        out_s=keep(old.out_s, new.out_s),
        link_s=keep(old.link_s, new.link_s),
        memory_bytes=keep(old.memory_bytes, new.memory_bytes),
        contracted_on=keep(old.contracted_on, new.contracted_on),
        weight_uses=uses,
    )
