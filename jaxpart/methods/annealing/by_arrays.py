"""What a move reads of the neighbours of a contracted node, all at once: the form for a GPU or TPU.

The neighbours are lists of a static length, masked (`neighbours.py`), so that XLA fuses what is
read of them into a few kernels. `by_rows.py` has functions of the same names and meaning.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.tables import reduce_segments, take
from jaxpart.methods.annealing.neighbours import (
    consumers_of,
    feeders_of,
    inputs_of,
    outputs_of,
    readers_of,
)
from jaxpart.methods.annealing.state import Change, Moves, Tables, chip_column

_BLOCK = 64  # steps of a block; divides every padded size

Carry = TypeVar("Carry")


def allowed_chips(moves: Moves, labels: Int[Array, "N B"], v: Array) -> UInt32[Array, "words B"]:
    """As in `by_rows.py`."""
    contracted, near = moves.contracted, moves.near
    every = jnp.uint32(0xFFFFFFFF)

    def common(sets, chip, is_real):
        """The intersection of the sets of some chips."""
        found = jnp.where(is_real[None], sets[:, chip.astype(jnp.int32)], every)
        return lax.reduce(found, every, lax.bitwise_and, (1,))

    producer, is_input = feeders_of(moves.near, v)
    consumer, is_read = consumers_of(near, v)
    allowed = common(moves.after, take(labels, producer), is_input)
    allowed &= common(moves.before, take(labels, consumer), is_read)
    return jnp.where(take(contracted.fixed_chip, v) >= 0, jnp.uint32(0), allowed)


def change(
    moves: Moves,
    labels: Int[Array, "N B"],
    tables: Tables,
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> Change:
    """As in `by_rows.py`; `out_s` has a row per chip on a row of chips, too."""
    contracted, near = moves.contracted, moves.near
    chip = chip_column(len(tables.in_s))[:, None]
    link = chip_column(len(tables.link_s))[:, None]

    def seconds(tensor, is_real):
        size_s = take(contracted.tensor_bytes, tensor)[:, None] / contracted.link_bandwidth
        return jnp.where(is_real, size_s, 0)

    def total(size_s, is_less, is_more, axis=0):
        """Seconds of all tensors: negative where traffic ends, positive where it begins."""
        step = is_more.astype(size_s.dtype) - is_less.astype(size_s.dtype)
        return jnp.sum(size_s * step, axis=axis)

    def on_links(size_s, old, new):
        """What moves from the links between chips `old` to the links between chips `new`."""
        is_old = (link >= old[0][None]) & (link < old[1][None])
        is_new = (link >= new[0][None]) & (link < new[1][None])
        return total(size_s[None], is_old, is_new, axis=1)

    def others(tensor, is_real):
        """Chips of the consumers of some tensors, other than v: [tensors, consumers, B]."""
        reader, is_reader = readers_of(contracted, near, tensor)
        is_other = is_reader & is_real[:, None] & (reader != v)[:, :, None]
        return jnp.where(is_other, take(labels, reader).astype(jnp.int32), -1)

    def any_is(chips, chip):
        return jnp.any(chips == chip, axis=1)

    def any_is_not(chips, chip):
        return jnp.any((chips >= 0) & (chips != chip), axis=1)

    here, there = source[None, None], target[None, None]

    # What v consumes.
    tensor, is_input = inputs_of(near, v)
    size_s, label = seconds(tensor, is_input), others(tensor, is_input)
    home = take(labels, take(contracted.tensor_producer, tensor)).astype(jnp.int32)
    away = any_is_not(label, home[:, None])
    is_far, will_be_far = home != source[None], home != target[None]
    no = jnp.zeros_like(is_far)
    in_from = total(size_s, is_far & ~any_is(label, here), no)
    in_to = total(size_s, no, will_be_far & ~any_is(label, there))
    is_home = home[None] == chip
    out_s = total(
        size_s[None], is_home & (away | is_far)[None], is_home & (away | will_be_far)[None], axis=1
    )
    link_s = jnp.zeros_like(tables.link_s)
    if len(link):
        far = jnp.max(label, axis=1)
        old, new = jnp.maximum(far, source[None]), jnp.maximum(far, target[None])
        link_s += on_links(size_s, (home, old), (home, new))

    # What v makes.
    tensor, is_output = outputs_of(contracted, near, v)
    size_s, label = seconds(tensor, is_output), others(tensor, is_output)
    on_source, on_target = any_is(label, here), any_is(label, there)
    away, away_new = any_is_not(label, here), any_is_not(label, there)
    no = jnp.zeros_like(on_source)
    if len(link):
        far = jnp.max(label, axis=1)
        link_s += on_links(size_s, (source[None], far), (target[None], far))
    return Change(
        in_from + total(size_s, no, on_source),
        in_to + total(size_s, on_target, no),
        total(size_s, away, no),
        total(size_s, no, away_new),
        out_s,
        link_s,
    )


def uses_after(
    moves: Moves,
    uses: Int[Array, "W C B"],
    accept: Bool[Array, " B"],
    v: Array,
    source: Int[Array, " B"],
    target: Int[Array, " B"],
) -> Int[Array, "W C B"]:
    """As in `by_rows.py`, by one scatter of integers; the row that stands for no weight stays."""
    shared = moves.weights.shared[v][None, :, None]  # [1, R, 1]
    if not shared.shape[1]:
        return uses
    # Entries that stand for no weight, and chains that do not accept, are out of bounds.
    weight = jnp.where(accept[None, None] & (shared < len(uses) - 1), shared, len(uses))
    chip = jnp.stack([source, target])[:, None]  # [2, 1, B]
    step = jnp.array([-1, 1], uses.dtype)[:, None, None]
    lane = jnp.arange(uses.shape[2])[None, None]
    return uses.at[weight, chip, lane].add(step, unique_indices=True, mode="drop")


def free_ways(
    moves: Moves, labels: Int[Array, "N B"], v: Array
) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """As in `by_rows.py`."""
    contracted, chips, row = moves.contracted, moves.contracted.config.num_chips, take(labels, v)
    producer, is_input = feeders_of(moves.near, v)
    consumer, is_read = consumers_of(moves.near, v)
    fed, feeds = take(labels, producer), take(labels, consumer)
    is_free = take(contracted.fixed_chip, v) < 0
    can_rise = jnp.all(~is_input | (fed >= row[None]), axis=0) & (row < chips - 1)
    can_rise &= jnp.all(~is_read | (feeds > row[None]), axis=0)
    can_fall = jnp.all(~is_input | (fed < row[None]), axis=0) & (row > 0)
    can_fall &= jnp.all(~is_read | (feeds <= row[None]), axis=0)
    return can_rise & is_free, can_fall & is_free


def bytes_read_first(
    moves: Moves, labels: Int[Array, "N B"], v: Array, chip: Int[Array, " B"]
) -> Float[Array, " B"]:
    """As in `by_rows.py`, in all chains."""
    contracted, near = moves.contracted, moves.near
    tensor, is_input = inputs_of(near, v)
    reader, is_reader = readers_of(contracted, near, tensor)
    is_there = is_reader & (reader != v)[:, :, None]
    is_there &= take(labels, reader).astype(jnp.int32) == chip[None, None]
    size = jnp.where(is_input, take(contracted.tensor_bytes, tensor)[:, None], 0)
    return jnp.sum(jnp.where(jnp.any(is_there, axis=1), 0, size), axis=0)


def followers(
    moves: Moves,
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    order: Int[Array, " N"],
    count: Int[Array, ""],
    upward: bool | Bool[Array, ""],
    source: Int[Array, ""] | None = None,
) -> Bool[Array, "N B"]:
    """As in `by_rows.py`, by products of matrices if they fit.

    Where data never flows to a lower chip, a contracted node on a path between two on one chip is
    on that chip too. So a contracted node follows if a seed on its chip has a path to it. For each
    chip this is a product of matrices of zeros and ones, whatever the depth of the graph:
    2 * N * N * B operations (34 G for 4,096 chains of BERT-large, 0.05 ms of an H100's matrix
    units). A walk would be as many steps of several us as contracted nodes are visited.

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
      seeds: whether each contracted node is a seed.
      order: contracted nodes, producers first if upward, consumers first if downward.
      count: how many contracted nodes of `order` are visited.
      upward: whether the seeds move to a higher chip.
      source: the only chip whose contracted nodes matter, all of which are visited. None: every
        contracted node matters and is visited.
    """
    tables, chips = moves.contracted.tables, moves.contracted.config.num_chips
    if not moves.by_order or tables is None or tables.distance is None:
        return _followers_by_walk(moves, labels, seeds, order, count, upward)
    # Along edges the distance is 0.
    pulled_by = (jnp.where(upward, tables.distance.T, tables.distance) == 0).astype(jnp.bfloat16)

    def join(chip, chosen):
        is_here = labels == chip.astype(labels.dtype)
        here = (seeds & is_here).astype(jnp.bfloat16)
        # Sums of zeros and ones are above 0 where one of them is 1, however they are rounded.
        pulled = jnp.dot(pulled_by, here, preferred_element_type=jnp.float32)
        return chosen | (is_here & (pulled > 0))

    return lax.fori_loop(0, chips, join, seeds) if source is None else join(source, seeds)


def _followers_by_walk(
    moves: Moves,
    labels: Int[Array, "N B"],
    seeds: Bool[Array, "N B"],
    order: Int[Array, " N"],
    count: Int[Array, ""],
    upward: bool | Bool[Array, ""],
) -> Bool[Array, "N B"]:
    """`followers`, one contracted node after the other."""

    def visit(i, is_step, chosen):
        v = order[i]
        producer, is_input = feeders_of(moves.near, v)
        consumer, is_read = consumers_of(moves.near, v)
        other = jnp.concatenate([producer, consumer])
        pulls = jnp.concatenate([is_input & upward, is_read & ~jnp.asarray(upward)])
        pulls = pulls & take(chosen, other) & (take(labels, other) == labels[v][None])
        return chosen.at[v].set(chosen[v] | (is_step & jnp.any(pulls, axis=0)))

    return visited(len(order), count, visit, seeds)


def fed_and_feeds(
    contracted: DeviceProblem, labels: Int[Array, "N B"], *, from_here: bool = True
) -> tuple[Bool[Array, "N B"], Bool[Array, "N B"]]:
    """Whether each contracted node has a producer, and whether it has a consumer, on its chip.

    Args:
      contracted: its nodes are the contracted nodes.
      labels: their chips.
      from_here: False asks for producers and consumers on other chips instead.
    """
    tables = contracted.tables
    assert tables is not None
    agrees = operator.eq if from_here else operator.ne

    def from_producer(i: Array) -> Array:
        producer = take(contracted.tensor_producer, take(contracted.in_edge_tensor, i))
        return agrees(take(labels, producer), take(labels, take(tables.in_edge_consumer, i)))

    def to_consumer(e: Array) -> Array:
        producer, consumer = take(contracted.edge_producer, e), take(contracted.edge_consumer, e)
        return agrees(take(labels, producer), take(labels, consumer))

    fed = reduce_segments(from_producer, tables.node_in_edges, operator.or_, False)
    goes = reduce_segments(to_consumer, tables.tensor_edges, operator.or_, False)
    feeds = reduce_segments(lambda k: take(goes, k), tables.node_tensors, operator.or_, False)
    return fed, feeds


def visited(
    most: int,
    count: Int[Array, ""],
    visit: Callable[[Array, Bool[Array, ""], Carry], Carry],
    carry: Carry,
) -> Carry:
    """As in `by_rows.py`, in blocks of a static number of steps.

    A block beyond the last visit is skipped. The host is asked once a block whether it is, and
    never before a step.

    Args:
      most: no `count` is higher.
      count: how many steps do something.
      visit: takes the number of the step, whether it does something, and the carry.
      carry: the first one.
    """

    def block(number, carry):
        def step(j, carry):
            i = number * _BLOCK + j
            return visit(i, i < count, carry)

        return lax.cond(
            number * _BLOCK < count,
            lambda carry: lax.fori_loop(0, _BLOCK, step, carry),
            lambda carry: carry,
            carry,
        )

    return lax.fori_loop(0, most // _BLOCK, block, carry)


def added(table: Array, chip: Int[Array, " B"], amount: Array) -> Array:
    """As in `by_rows.py`; the whole table is written, in one kernel with what surrounds it."""
    return table + jnp.where(chip_column(len(table)) == chip[None], amount[None], 0)


def put(table: Array, chip: Int[Array, " B"], value: Array) -> Array:
    """As in `by_rows.py`, likewise."""
    return jnp.where(chip_column(len(table)) == chip[None], value[None], table)
