"""What a move reads of the neighbours of a contracted node, by loops over them: the form for a CPU.

Each step of a loop reads one row of B labels, which fits a cache. `by_arrays.py` has functions of
the same names and meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.device import DeviceProblem
from jaxpart.methods.annealing.state import Change, Moves, Tables, chip_column

Carry = TypeVar("Carry")


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
    allowed = lax.fori_loop(
        contracted.node_in_edges[v], contracted.node_in_edges[v + 1], after, every
    )
    start, stop = _read_edges(contracted, v)
    return lax.fori_loop(start, stop, before, allowed)


def change(
    moves: Moves,
    labels: Int[Array, "N B"],
    tables: Tables,
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> Change:
    """The change in traffic if contracted node v moves from `source` to `target`."""
    contracted = moves.contracted
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
        return Change(
            change.in_from + amount(k, (source != home) & ~on_source, no),
            change.in_to + amount(k, no, (target != home) & ~on_target),
            out_from,
            out_to,
            out_s,
            on_links(change, k, (home, ends[0]), (home, ends[1])),
        )

    def made(k, change):
        on_source, on_target, away, away_new, far = others(k, source, target)
        return Change(
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
    change = Change(nothing, nothing, nothing, nothing, out_s, links)
    start, stop = contracted.node_in_edges[v], contracted.node_in_edges[v + 1]
    change = lax.fori_loop(start, stop, consumed, change)
    return lax.fori_loop(contracted.node_tensors[v], contracted.node_tensors[v + 1], made, change)


def uses_after(
    moves: Moves,
    uses: Int[Array, "W C B"],
    accept: Bool[Array, " B"],
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> Int[Array, "W C B"]:
    """The uses of shared weights after contracted node v moved in the chains that accept it."""
    chip = chip_column(moves.contracted.config.num_chips)
    step = (chip == target[None]).astype(uses.dtype) - (chip == source[None])
    step = jnp.where(accept[None], step, 0).astype(uses.dtype)
    for column in range(moves.weights.shared.shape[1]):
        w = moves.weights.shared[v, column]
        uses = uses.at[w].set(uses[w] + step)
    return uses


def free_ways(
    moves: Moves, labels: Int[Array, "N B"], v: Array
) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """In which chains v can move to the next chip of the row, and in which to the previous one."""
    contracted, chips = moves.contracted, moves.contracted.config.num_chips
    row = labels[v]

    def fed(e, ends):
        label = labels[contracted.tensor_producer[contracted.in_edge_tensor[e]]]
        return jnp.minimum(ends[0], label), jnp.maximum(ends[1], label)

    def feeds(e, ends):
        label = labels[contracted.edge_consumer[e]]
        return jnp.minimum(ends[0], label), jnp.maximum(ends[1], label)

    start, stop = contracted.node_in_edges[v], contracted.node_in_edges[v + 1]
    first_in, last_in = lax.fori_loop(start, stop, fed, (row, row - 1))
    start, stop = _read_edges(contracted, v)
    first_out, last_out = lax.fori_loop(start, stop, feeds, (row + 1, row))
    can_rise = (first_in >= row) & (first_out > row) & (row < chips - 1)
    can_fall = (last_in < row) & (last_out <= row) & (row > 0)
    is_free = contracted.fixed_chip[v] < 0
    return can_rise & is_free, can_fall & is_free


def bytes_read_first(
    moves: Moves,
    labels: Int[Array, "N B"],
    v: Array,
    chip: Int[Array, " slots"],
    lane: Int[Array, " slots"],
) -> Float[Array, " slots"]:
    """Bytes of the inputs of v that no other contracted node on a chip reads.

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
      v: the contracted node.
      chip: of each slot.
      lane: the chain of each slot.
    """
    contracted = moves.contracted

    def consumed(e, gained):
        k = contracted.in_edge_tensor[e]

        def look(e, is_read):
            q = contracted.edge_consumer[e]
            return is_read | ((q != v) & (labels[q, lane].astype(jnp.int32) == chip))

        start, stop = contracted.tensor_edges[k], contracted.tensor_edges[k + 1]
        is_read = lax.fori_loop(start, stop, look, jnp.zeros(lane.shape, bool))
        return gained + jnp.where(is_read, 0, contracted.tensor_bytes[k])

    nothing = jnp.zeros(lane.shape, contracted.tensor_bytes.dtype)
    start, stop = contracted.node_in_edges[v], contracted.node_in_edges[v + 1]
    return lax.fori_loop(start, stop, consumed, nothing)


def followers(
    moves: Moves,
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    order: Int[Array, " N"],
    count: Int[Array, ""],
    upward: bool,
) -> Bool[Array, "N B"]:
    """The seeds and all contracted nodes that must leave their chip with them.

    These are the successors on the same chip (upward) or the predecessors on it (downward).

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
      seeds: whether each contracted node is a seed.
      order: contracted nodes, producers first if upward, consumers first if downward.
      count: how many contracted nodes of `order` are visited.
      upward: whether the seeds move to a higher chip.
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
            start, stop = _read_edges(contracted, v)
        return chosen.at[v].set(lax.fori_loop(start, stop, look, chosen[v]))

    return lax.fori_loop(0, count, lambda i, chosen: join(order[i], chosen), seeds)


def fed_and_feeds(
    contracted: DeviceProblem, labels: Int[Array, "N B"]
) -> tuple[Bool[Array, "N B"], Bool[Array, "N B"]]:
    """Whether each contracted node has a producer, and whether it has a consumer, on its chip."""

    def join(e, carry):
        fed, feeds = carry
        u, v = contracted.edge_producer[e], contracted.edge_consumer[e]
        same = labels[u] == labels[v]
        return fed.at[v].set(fed[v] | same), feeds.at[u].set(feeds[u] | same)

    nothing = jnp.zeros(labels.shape, bool)
    return lax.fori_loop(0, contracted.num_edges, join, (nothing, nothing))


def visited(
    most: int,
    count: Int[Array, ""],
    visit: Callable[[Array, bool, Carry], Carry],
    carry: Carry,
) -> Carry:
    """Visits 0 to count - 1.

    Args:
      most: no `count` is higher.
      count: how many steps there are.
      visit: takes the number of the step, whether it does something, and the carry.
      carry: the first one.
    """
    return lax.fori_loop(0, count, lambda i, carry: visit(i, True, carry), carry)


def added(table: Array, chip: Int[Array, " B"], amount: Array) -> Array:
    """The table [C, B] with an amount [B] added on one chip of each chain."""
    return table.at[chip, jnp.arange(len(chip))].add(amount)


def put(table: Array, chip: Int[Array, " B"], value: Array) -> Array:
    """The table [C, B] with a value [B] put on one chip of each chain."""
    return table.at[chip, jnp.arange(len(chip))].set(value)


def _read_edges(contracted: DeviceProblem, v: Array) -> tuple[Array, Array]:
    """The first edge of what v makes, and one past the last."""
    start = contracted.tensor_edges[contracted.node_tensors[v]]
    return start, contracted.tensor_edges[contracted.node_tensors[v + 1]]
