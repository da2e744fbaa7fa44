"""The price of moving one contracted node, for thousands of chains at once.

The labels of the neighbours and the tables of the chips determine everything: which chips keep all
edges of the contracted node within the chip graph, the traffic of its tensors before and after the
move, and the memory of the chips. What is read of the neighbours exists in two forms with one
meaning, `by_rows.py` and `by_arrays.py`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.stage import stage_s
from jaxpart.methods.annealing import by_arrays, by_rows
from jaxpart.methods.annealing.state import WORD, Moves, Tables, chip_column

# Exponent of the energy: the longest stage dominates, and stages close to it break ties.
POWER = 16
# Energy of a chip that holds twice its capacity; a stage of length `unit_s` has energy 1.
_OVERFULL = 40.0
# Largest ratio of a stage to `unit_s`; its 16th power is still a finite float32.
_MOST_RATIO = 100.0


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


def form_of(moves: Moves):
    """The module whose functions read the neighbours of a contracted node."""
    return by_rows if moves.neighbours is None else by_arrays


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
    change = form_of(moves).change(moves, labels, tables, v, source, target)
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
    uses = old.weight_uses
    if len(uses):
        uses = form_of(moves).uses_after(moves, uses, accept, v, source, target)

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
