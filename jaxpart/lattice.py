"""The lattice of down-sets (ideals) of a graph, layer by layer.

For an acyclic partition f, {v : f(v) <= c} is an ideal, so a partition is a chain of ideals from
the empty one to all nodes. What bounds and optimal partitions come from that: `ideals`, `stages`,
`fewest`.

A long graph has few ideals a node, but every one is as long as the graph. All ideals of one size
have the same blocks up to some place and none far behind it, so only a window of each is kept, a
few words wide where the numbers of the blocks follow the graph. The loops are compiled (numba): a
new ideal costs its window, the neighbours of the block that joined, and a look into a hash table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from jaxpart.bitsets import Words, add, discard, has, next_in, size_of, words_for
from jaxpart.problem import FloatArray, IntArray, Problem
from jaxpart.structure import largest_antichain

WORD = 64
# Words of bit sets that a lattice may have: 0.5 GB twice.
_MOST_WORDS = 64_000_000
# Ideals that are found in one go, at first and at most; and covers for each.
_LEAST_ROOM, _MOST_ROOM = 1 << 10, 1 << 17
_COVERS = 8
# Blocks up to which the largest antichain is looked for first: it takes less than what it saves.
_QUICKLY_MATCHED = 2500
# Why a walk stopped: at the last layer, for want of room, because its windows are too narrow, or
# because a layer has more ideals than are wanted.
_DONE, _NO_ROOM, _TOO_NARROW, _TOO_MANY = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """All ideals of a problem of blocks, and how each grows by one block. I ideals, R covers.

    Ideals are sorted by size: the empty one is first, all blocks are last. A cover is a pair of
    ideals that differ by one block; covers are sorted by the smaller one's size.

    Of the ideals of a layer the windows begin at the same word. All blocks before it are inside,
    all behind the window are outside and not needed.
    """

    num_blocks: int
    window: Words  # [I, width] bit sets of blocks, from the layer's first word on
    needed: Words  # [I, width] consumers outside of what is made inside, in the same way
    first_word: IntArray  # [layers] where the windows of the ideals with 0, 1, ... blocks begin
    cut_bytes: FloatArray  # [I] of tensors made inside with a consumer outside
    layer_start: IntArray  # [layers + 1] first ideal with 0, 1, ... blocks
    cover_start: IntArray  # [layers + 1] first cover of the ideals with 0, 1, ... blocks
    parent: NDArray[np.int32]  # [I] one of the ideals that it covers; 0 for the empty one
    last: NDArray[np.int32]  # [I] the block that it has beside its parent's; -1 for the empty one
    below: NDArray[np.int32]  # [R] the smaller ideal
    above: NDArray[np.int32]  # [R] the larger
    added: NDArray[np.int32]  # [R] the block that tells them apart

    def __len__(self) -> int:
        return len(self.window)

    @property
    def is_total_order(self) -> bool:
        """Whether the blocks can run in one order only."""
        return len(self) == self.num_blocks + 1

    def sums(self, values: FloatArray) -> FloatArray:
        """[I, ...] sum of `values` [blocks, ...] over each ideal's blocks."""
        columns = np.ascontiguousarray(values, np.float64).reshape(len(values), -1)
        return _sums(self.parent, self.last, columns).reshape(len(self), *values.shape[1:])

    def members(self) -> Words:
        """[I, words] each ideal as a bit set of all blocks."""
        return self._whole(self.window, before=True)

    def needed_members(self) -> Words:
        """[I, words] `needed` as bit sets of all blocks."""
        return self._whole(self.needed, before=False)

    def _whole(self, windows: Words, *, before: bool) -> Words:
        words = words_for(self.num_blocks)
        whole = np.zeros((len(self), words + windows.shape[1]), np.uint64)
        first = np.repeat(self.first_word, np.diff(self.layer_start))
        rows = np.arange(len(self))[:, None]
        whole[rows, first[:, None] + np.arange(windows.shape[1])] = windows
        if before:
            whole[np.arange(whole.shape[1]) < first[:, None]] = ~np.uint64(0)
        return np.ascontiguousarray(whole[:, :words])


@njit(cache=True)
def _sums(parent: NDArray[np.int32], last: NDArray[np.int32], values: FloatArray) -> FloatArray:
    total = np.zeros((len(parent), values.shape[1]))
    for i in range(1, len(parent)):
        for column in range(values.shape[1]):
            total[i, column] = total[parent[i], column] + values[last[i], column]
    return total


@functools.cache
def compile_lattice() -> None:
    """Compiles what lists ideals, or reads what an earlier process compiled."""
    none, two = np.zeros(0, np.int64), np.zeros(2, np.int64)
    sizes, salt = np.zeros(1), np.ones(1, np.uint64)
    graph = _Graph(two, none, two, none, two, none, two[:1], none, np.zeros(0), sizes, salt)
    _walk(graph, _bottom(graph), 0, 1, 1, False)
    _sums(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros((1, 1)))


def count(problem: Problem, limit: int) -> int | None:
    """Number of ideals of the blocks; None where there are more than `limit`."""
    if _is_beyond(problem, limit):
        return None
    total = 1
    for found in _walks(problem, limit):
        total += len(found.parent)
        if total > limit:
            return None
    return total


def enumerate_ideals(
    problem: Problem, limit: int, give_up: Callable[[], bool] = lambda: False
) -> Lattice | None:
    """The lattice of the blocks; None where there are more than `limit` ideals.

    `give_up` is asked now and then whether to stop, with None.
    """
    if _is_beyond(problem, limit):
        return None
    walks: list[_Found] = []
    total = 1
    for found in _walks(problem, limit):
        walks.append(found)
        total += len(found.parent)
        if total > limit or total * found.window.shape[1] > _MOST_WORDS or give_up():
            return None
    return _joined(problem, walks)


def prefixes(problem: Problem) -> Lattice:
    """The part of the lattice that the program order runs through: its first 0, 1, ... blocks.

    Optimal chains within it are the optimal cuts of the program order.
    """
    return _joined(problem, list(_walks(problem, problem.num_blocks + 1, in_order=True)))


def _is_beyond(problem: Problem, limit: int) -> bool:
    """Whether there are sure to be more ideals: each subset of an antichain is the top of one."""
    if problem.num_blocks > _QUICKLY_MATCHED:
        return False
    antichain = largest_antichain(problem.num_blocks, problem.contracted.node_pairs)
    return antichain > np.log2(limit)


class _Graph(NamedTuple):
    """Neighbours of blocks and of tensors, as lists one behind the other and where each begins."""

    before_start: IntArray
    before: IntArray
    after_start: IntArray
    after: IntArray
    taken_start: IntArray  # tensors by the block that consumes them
    taken: IntArray
    consumer_start: IntArray
    consumer: IntArray
    tensor_bytes: FloatArray
    sent_bytes: FloatArray  # [blocks] of what each makes for others
    salt: Words  # [blocks] a random word each; an ideal's hash is the xor of its blocks'


class _Layer(NamedTuple):
    """The L ideals of one size."""

    first_word: int
    window: Words  # [L, width]
    needed: Words
    ready: Words  # blocks that may join next: all their producers are inside
    hashes: Words  # [L]
    cut_bytes: FloatArray


class _Links(NamedTuple):
    """How the ideals of a layer come from those of the one before; positions within layers."""

    parent: IntArray  # [L]
    last: IntArray
    below: IntArray  # [R]
    above: IntArray
    added: IntArray


class _Found(NamedTuple):
    """Layers that one walk has found, one behind the other; positions are within layers."""

    window: Words
    needed: Words
    cut_bytes: FloatArray
    parent: NDArray[np.int32]
    last: NDArray[np.int32]
    below: NDArray[np.int32]
    above: NDArray[np.int32]
    added: NDArray[np.int32]
    first_word: IntArray
    ideals: IntArray  # of each layer
    covers: IntArray


def _graph_of(blocks: Problem) -> _Graph:
    count = blocks.num_nodes
    pairs = blocks.node_pairs.reshape(-1, 2)
    after_start, after = _lists(pairs[:, 0], pairs[:, 1], count)
    before_start, before = _lists(pairs[:, 1], pairs[:, 0], count)
    taken_start, taken = _lists(blocks.edge_consumer, blocks.edge_tensor, count)
    consumer_start, consumer = _lists(blocks.edge_tensor, blocks.edge_consumer, blocks.num_tensors)
    is_used = np.diff(consumer_start) > 0
    sent = np.bincount(blocks.tensor_producer, blocks.tensor_bytes * is_used, minlength=count)
    return _Graph(
        before_start,
        before,
        after_start,
        after,
        taken_start,
        taken,
        consumer_start,
        consumer,
        np.ascontiguousarray(blocks.tensor_bytes, np.float64),
        sent.astype(np.float64),
        np.random.default_rng(0).integers(1, 2**64, count, np.uint64),
    )


def _lists(owner: IntArray, items: IntArray, count: int) -> tuple[IntArray, IntArray]:
    order = np.argsort(owner, kind="stable")
    start = np.searchsorted(owner[order], np.arange(count + 1))
    return start.astype(np.int64), items[order].astype(np.int64)


def _walks(problem: Problem, limit: int, *, in_order: bool = False) -> Iterator[_Found]:
    """The ideals of 1, 2, ... blocks; more than `limit` where it ends early."""
    graph = _graph_of(problem.contracted)
    layer, size, room = _bottom(graph), 0, _LEAST_ROOM
    while size < problem.num_blocks:
        status, layer, found = _walk(graph, layer, size, room, limit, in_order)
        size += len(found.ideals)
        if len(found.ideals):
            yield found
        if status == _NO_ROOM:
            room = min(2 * room, _MOST_ROOM) if len(found.ideals) else 2 * room
        elif status == _TOO_NARROW:
            layer = _wider(layer)
        elif status == _TOO_MANY:
            yield _no_more(limit + 1)
            return


def _bottom(graph: _Graph) -> _Layer:
    """The layer of the empty ideal."""
    sources = np.flatnonzero(np.diff(graph.before_start) == 0)
    width = 1 << (words_for(int(sources.max()) + 1) - 1).bit_length()
    empty = np.zeros((1, width), np.uint64)
    ready = empty.copy()
    for v in sources.tolist():
        add(ready[0], v)
    return _Layer(0, empty, empty, ready, np.zeros(1, np.uint64), np.zeros(1))


def _wider(layer: _Layer) -> _Layer:
    width = layer.window.shape[1]
    window, needed, ready = (
        np.pad(bits, ((0, 0), (0, width))) for bits in (layer.window, layer.needed, layer.ready)
    )
    return layer._replace(window=window, needed=needed, ready=ready)


def _no_more(count: int) -> _Found:
    """Stands for `count` ideals that nobody wants to see."""
    none, words = np.zeros(0, np.int64), np.zeros((0, 1), np.uint64)
    few = np.zeros(count, np.int32)
    return _Found(words, words, np.zeros(0), few, few, few, few, few, none, none, none)


def _joined(problem: Problem, walks: list[_Found]) -> Lattice:
    width = max((found.window.shape[1] for found in walks), default=1)
    ideals = np.concatenate([[1], *(found.ideals for found in walks)])
    covers = np.concatenate([*(found.covers for found in walks), [0]])
    layer_start = np.concatenate([[0], np.cumsum(ideals)])
    # From positions within layers to positions among all.
    of_ideal = np.repeat(layer_start[:-2], ideals[1:]).astype(np.int32)
    of_cover = np.repeat(layer_start[:-2], covers[:-1]).astype(np.int32)
    next_of_cover = np.repeat(layer_start[1:-1], covers[:-1]).astype(np.int32)
    first, none = np.zeros(1, np.int32), np.zeros(0, np.int32)
    empty = np.zeros((1, width), np.uint64)

    def joined(parts: Iterable[NDArray[np.int32]]) -> NDArray[np.int32]:
        return np.concatenate([none, *parts])

    def padded(parts: Iterable[Words]) -> Words:
        same = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
        return np.concatenate([empty, *same])

    return Lattice(
        num_blocks=problem.num_blocks,
        window=padded(found.window for found in walks),
        needed=padded(found.needed for found in walks),
        first_word=np.concatenate([[0], *(found.first_word for found in walks)]).astype(np.int64),
        cut_bytes=np.concatenate([[0.0], *(found.cut_bytes for found in walks)]),
        layer_start=layer_start,
        cover_start=np.concatenate([[0], np.cumsum(covers)]),
        parent=np.concatenate([first, joined(found.parent for found in walks) + of_ideal]),
        last=np.concatenate([first - 1, joined(found.last for found in walks)]),
        below=joined(found.below for found in walks) + of_cover,
        above=joined(found.above for found in walks) + next_of_cover,
        added=joined(found.added for found in walks),
    )


@njit(cache=True)
def _walk(
    graph: _Graph, layer: _Layer, size: int, room: int, most: int, in_order: bool
) -> tuple[int, _Layer, _Found]:
    """Layer after layer of ideals, as long as there is room.

    Args:
      graph: of the blocks.
      layer: the ideals of `size` blocks.
      size: see there.
      room: ideals that are kept.
      most: ideals that a layer may have.
      in_order: whether blocks join in the order of their numbers alone.

    Returns:
      Why it stopped, the last layer, and all after the first.
    """
    width = layer.window.shape[1]
    found = _Found(
        np.empty((room, width), np.uint64),
        np.empty((room, width), np.uint64),
        np.empty(room),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(_COVERS * room, np.int32),
        np.empty(_COVERS * room, np.int32),
        np.empty(_COVERS * room, np.int32),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
    )
    ideals, covers, layers, status = 0, 0, 0, _DONE
    while size < len(graph.salt):
        status, grown, links = _grown(graph, layer, size, most, in_order)
        if status != _DONE:
            break
        count, more = len(grown.hashes), len(links.below)
        if ideals + count > room or covers + more > _COVERS * room:
            status = _NO_ROOM
            break
        for i in range(count):
            found.window[ideals + i] = grown.window[i]
            found.needed[ideals + i] = grown.needed[i]
            found.cut_bytes[ideals + i] = grown.cut_bytes[i]
            found.parent[ideals + i] = links.parent[i]
            found.last[ideals + i] = links.last[i]
        for r in range(more):
            found.below[covers + r] = links.below[r]
            found.above[covers + r] = links.above[r]
            found.added[covers + r] = links.added[r]
        found.first_word[layers] = grown.first_word
        found.ideals[layers], found.covers[layers] = count, more
        ideals, covers, layers = ideals + count, covers + more, layers + 1
        layer = grown
        size += 1
    kept = _Found(
        found.window[:ideals].copy(),
        found.needed[:ideals].copy(),
        found.cut_bytes[:ideals].copy(),
        found.parent[:ideals].copy(),
        found.last[:ideals].copy(),
        found.below[:covers].copy(),
        found.above[:covers].copy(),
        found.added[:covers].copy(),
        found.first_word[:layers].copy(),
        found.ideals[:layers].copy(),
        found.covers[:layers].copy(),
    )
    return status, layer, kept


@njit(cache=True)
def _grown(
    graph: _Graph, layer: _Layer, size: int, most: int, in_order: bool
) -> tuple[int, _Layer, _Links]:
    """The ideals with one block more; or why there are none."""
    covers = 0
    for i in range(len(layer.hashes)):
        covers += 1 if in_order else size_of(layer.ready[i])
    slots = 4
    while slots < 2 * covers:
        slots *= 2
    table = np.full(slots, -1, np.int64)
    width = layer.window.shape[1]
    grown = _Layer(
        layer.first_word,
        np.empty((covers, width), np.uint64),
        np.empty((covers, width), np.uint64),
        np.empty((covers, width), np.uint64),
        np.empty(covers, np.uint64),
        np.empty(covers),
    )
    links = _Links(
        np.empty(covers, np.int64),
        np.empty(covers, np.int64),
        np.empty(covers, np.int64),
        np.empty(covers, np.int64),
        np.empty(covers, np.int64),
    )
    count, more = 0, 0
    for i in range(len(layer.hashes)):
        place = next_in(layer.ready[i], 0)
        while place >= 0:
            v = WORD * layer.first_word + place
            if not in_order or v == size:
                bits = layer.hashes[i] ^ graph.salt[v]
                slot = np.int64(bits & np.uint64(slots - 1))
                while table[slot] >= 0:
                    child = table[slot]
                    is_same = grown.hashes[child] == bits
                    if is_same and _is_joined(layer.window[i], place, grown.window[child]):
                        break
                    slot = (slot + 1) & (slots - 1)
                if table[slot] < 0:
                    if count == most:
                        return _TOO_MANY, layer, links
                    table[slot] = count
                    grown.hashes[count] = bits
                    if not _join(graph, layer, i, v, grown, count):
                        return _TOO_NARROW, layer, links
                    links.parent[count], links.last[count] = i, v
                    count += 1
                links.below[more], links.above[more], links.added[more] = i, table[slot], v
                more += 1
            place = next_in(layer.ready[i], place + 1)
    shift = _full_words(grown.window[:count])
    kept = _Layer(
        layer.first_word + shift,
        _shifted(grown.window[:count], shift),
        _shifted(grown.needed[:count], shift),
        _shifted(grown.ready[:count], shift),
        grown.hashes[:count].copy(),
        grown.cut_bytes[:count].copy(),
    )
    found = _Links(
        links.parent[:count].copy(),
        links.last[:count].copy(),
        links.below[:more].copy(),
        links.above[:more].copy(),
        links.added[:more].copy(),
    )
    return _DONE, kept, found


@njit(cache=True)
def _is_joined(row: Words, place: int, other: Words) -> bool:
    """Whether the other set is the row's with one more: a hash alone would prove nothing."""
    for w in range(len(row)):
        bits = row[w]
        if w == place // WORD:
            bits |= np.uint64(1) << np.uint64(place % WORD)
        if bits != other[w]:
            return False
    return True


@njit(cache=True)
def _join(graph: _Graph, layer: _Layer, i: int, v: int, grown: _Layer, child: int) -> bool:
    """Makes `child` of ideal i and block v; whether what follows from it fits into the window."""
    first = WORD * layer.first_word
    window, needed, ready = grown.window[child], grown.needed[child], grown.ready[child]
    window[:], needed[:], ready[:] = layer.window[i], layer.needed[i], layer.ready[i]
    add(window, v - first)
    discard(needed, v - first)
    discard(ready, v - first)
    for j in range(graph.after_start[v], graph.after_start[v + 1]):
        w = graph.after[j]
        if w - first >= WORD * len(window):
            return False
        add(needed, w - first)
        is_ready = True
        for k in range(graph.before_start[w], graph.before_start[w + 1]):
            if not _is_inside(window, first, graph.before[k]):
                is_ready = False
                break
        if is_ready:
            add(ready, w - first)
    cut_bytes = layer.cut_bytes[i] + graph.sent_bytes[v]
    for j in range(graph.taken_start[v], graph.taken_start[v + 1]):
        tensor = graph.taken[j]
        is_done = True
        for k in range(graph.consumer_start[tensor], graph.consumer_start[tensor + 1]):
            if not _is_inside(window, first, graph.consumer[k]):
                is_done = False
                break
        if is_done:
            cut_bytes -= graph.tensor_bytes[tensor]
    grown.cut_bytes[child] = cut_bytes
    return True


@njit(cache=True)
def _is_inside(window: Words, first: int, v: int) -> bool:
    if v < first:
        return True
    return v - first < WORD * len(window) and has(window, v - first)


@njit(cache=True)
def _full_words(windows: Words) -> int:
    """Words at the front of the windows that all have in full."""
    shift = windows.shape[1]
    for i in range(len(windows)):
        w = 0
        while w < shift and not ~windows[i, w]:
            w += 1
        shift = w
    return shift


@njit(cache=True)
def _shifted(windows: Words, shift: int) -> Words:
    moved = np.zeros(windows.shape, np.uint64)
    for i in range(len(windows)):
        for w in range(windows.shape[1] - shift):
            moved[i, w] = windows[i, w + shift]
    return moved
