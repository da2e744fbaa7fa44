"""Lists the ideals of a graph layer by layer, compiled by numba.

A layer is the set of all ideals of one size. A walk grows layer after layer, until its arrays are
full. All ideals of a layer contain the same contracted nodes up to some number, and none far beyond
it. So only a window of each ideal is stored: a few words, if contracted nodes are numbered along
the graph. A new ideal costs one copy of its window, a scan of the neighbours of the contracted node
that joins, and a look-up in a hash table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.bounds.ideals.bitsets import (
    ZERO,
    Words,
    add,
    copy_row,
    discard,
    entry,
    has,
    inner,
    next_in,
    size_of,
    words_for,
)
from jaxpart.problem.problem import FloatArray, IntArray, Problem

WORD = 64  # bits in a word
# Ideals that one call of `_walk` has room for: at first, and at most unless one layer has more.
_LEAST_ROOM, _MOST_ROOM = 1 << 10, 1 << 17
_COVERS = 8  # covers that there is room for, per ideal
# Why a walk stopped: it reached the last layer; the next layer has more ideals or covers than there
# is room for; a contracted node lies beyond the window; a layer has more ideals than the limit.
_DONE, _NO_ROOM, _TOO_NARROW, _TOO_MANY = 0, 1, 2, 3


@functools.cache
def compile_walk() -> None:
    """Compiles the functions of a walk, or loads them from numba's cache."""
    none, two = np.zeros(0, np.int64), np.zeros(2, np.int64)
    sizes, salt = np.zeros(1), np.ones(1, np.uint64)
    graph = _Graph(two, none, two, none, two, none, two[:1], none, np.zeros(0), sizes, salt)
    _walk(graph, _bottom(graph), 0, 1, 1, False)


class _Graph(NamedTuple):
    """The neighbours of M contracted nodes and of K tensors, as compressed sparse rows.

    Row v of `before` is before[before_start[v] : before_start[v + 1]], and so on.
    """

    before_start: IntArray  # [M + 1]
    before: IntArray  # producers of each contracted node
    after_start: IntArray  # [M + 1]
    after: IntArray  # consumers of each contracted node
    taken_start: IntArray  # [M + 1]
    taken: IntArray  # tensors that each contracted node consumes
    consumer_start: IntArray  # [K + 1]
    consumer: IntArray  # consumers of each tensor
    tensor_bytes: FloatArray  # [K]
    sent_bytes: FloatArray  # [M] of the tensors that each makes and others consume
    salt: Words  # [M] random words; the hash of an ideal is the xor of its members' words


class _Layer(NamedTuple):
    """The L ideals of one layer; fields without a comment are as in `Lattice`."""

    first_word: int  # at which the windows begin
    window: Words  # [L, width]
    needed: Words  # [L, width]
    ready: Words  # [L, width] contracted nodes that may join: all their producers are inside
    hashes: Words  # [L]
    cut_bytes: FloatArray  # [L]


class _Links(NamedTuple):
    """How the L ideals of a layer grow from the layer before, by R covers.

    The fields are as in `Lattice`, but ideals are given by their positions within layers.
    """

    parent: IntArray  # [L]
    last: IntArray  # [L]
    below: IntArray  # [R]
    above: IntArray  # [R]
    added: IntArray  # [R]


class WalkResult(NamedTuple):
    """The layers that one walk found, concatenated: I ideals and R covers in all.

    The fields are as in `Lattice`, but ideals are given by their positions within layers.
    """

    window: Words  # [I, width]
    needed: Words  # [I, width]
    cut_bytes: FloatArray  # [I]
    parent: NDArray[np.int32]  # [I]
    last: NDArray[np.int32]  # [I]
    below: NDArray[np.int32]  # [R]
    above: NDArray[np.int32]  # [R]
    added: NDArray[np.int32]  # [R]
    first_word: IntArray  # [layers]
    ideals: IntArray  # [layers] number of ideals
    covers: IntArray  # [layers] number of covers from the layer before


def _graph_of(contracted: Problem) -> _Graph:
    count = contracted.num_nodes
    pairs = contracted.node_pairs.reshape(-1, 2)
    after_start, after = _lists(pairs[:, 0], pairs[:, 1], count)
    before_start, before = _lists(pairs[:, 1], pairs[:, 0], count)
    taken_start, taken = _lists(contracted.edge_consumer, contracted.edge_tensor, count)
    consumer_start, consumer = _lists(
        contracted.edge_tensor, contracted.edge_consumer, contracted.num_tensors
    )
    is_used = np.diff(consumer_start) > 0
    sent = np.bincount(
        contracted.tensor_producer, contracted.tensor_bytes * is_used, minlength=count
    )
    return _Graph(
        before_start,
        before,
        after_start,
        after,
        taken_start,
        taken,
        consumer_start,
        consumer,
        np.ascontiguousarray(contracted.tensor_bytes, np.float64),
        sent.astype(np.float64),
        np.random.default_rng(0).integers(1, 2**64, count, np.uint64),
    )


def _lists(owner: IntArray, items: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """Compressed sparse rows: the start of each owner's row [count + 1], and the sorted items."""
    order = np.argsort(owner, kind="stable")
    start = np.searchsorted(owner[order], np.arange(count + 1))
    return start.astype(np.int64), items[order].astype(np.int64)


def walks(problem: Problem, limit: int, *, in_order: bool = False) -> Iterator[WalkResult]:
    """The layers of 1, 2, ... contracted nodes, a few at a time.

    Args:
      problem: of M contracted nodes, with acyclic dataflow.
      limit: most ideals of a layer. If a layer has more, the last item is a placeholder for
        limit + 1 ideals.
      in_order: whether contracted nodes join in the order of their numbers only.
    """
    graph = _graph_of(problem.contracted)
    layer, size, room = _bottom(graph), 0, _LEAST_ROOM
    while size < problem.num_contracted:
        status, layer, room_of, counts = _walk(graph, layer, size, room, limit, in_order)
        found = _trimmed(room_of, *counts)
        size += len(found.ideals)
        if len(found.ideals):
            yield found
        if status == _NO_ROOM:
            room = min(2 * room, _MOST_ROOM) if len(found.ideals) else 2 * room
        elif status == _TOO_NARROW:
            layer = _wider(layer)
        elif status == _TOO_MANY:
            yield _over_limit(limit + 1)
            return


def _trimmed(found: WalkResult, ideals: int, covers: int, layers: int) -> WalkResult:
    """The first of each, as copies: the room for more is not kept."""
    return WalkResult(
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
    """The layer with windows twice as wide."""
    width = layer.window.shape[1]
    window, needed, ready = (
        np.pad(bits, ((0, 0), (0, width))) for bits in (layer.window, layer.needed, layer.ready)
    )
    return layer._replace(window=window, needed=needed, ready=ready)


def _over_limit(count: int) -> WalkResult:
    """A placeholder for `count` ideals: callers count them by `parent`, and stop."""
    none, words = np.zeros(0, np.int64), np.zeros((0, 1), np.uint64)
    few = np.zeros(count, np.int32)
    return WalkResult(words, words, np.zeros(0), few, few, few, few, few, none, none, none)


@entry
def _walk(
    graph: _Graph, layer: _Layer, size: int, room: int, most: int, in_order: bool
) -> tuple[int, _Layer, WalkResult, tuple[int, int, int]]:
    """Grows layer after layer, as long as there is room.

    Args:
      graph: of M contracted nodes.
      layer: the ideals from which to start.
      size: contracted nodes in each of them.
      room: ideals that there is room for.
      most: most ideals of a layer.
      in_order: whether contracted nodes join in the order of their numbers only.

    Returns:
      Why the walk stopped; the last complete layer; all complete layers after `layer`, with room
      for more; and how many ideals, covers and layers these are.
    """
    width = layer.window.shape[1]
    found = WalkResult(
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
    ideals, covers, layers, status = ZERO, ZERO, ZERO, _DONE
    while size < len(graph.salt):
        status, grown, links = _grown(graph, layer, size, most, in_order)
        if status != _DONE:
            break
        count, more = len(grown.hashes), len(links.below)
        if ideals + count > room or covers + more > _COVERS * room:
            status = _NO_ROOM
            break
        for i in range(count):
            copy_row(found.window, ideals + i, grown.window, i)
            copy_row(found.needed, ideals + i, grown.needed, i)
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
    return status, layer, found, (ideals, covers, layers)


@inner
def _grown(
    graph: _Graph, layer: _Layer, size: int, most: int, in_order: bool
) -> tuple[int, _Layer, _Links]:
    """The next layer: the ideals with one contracted node more.

    Returns:
      _DONE, the next layer and its covers; or why it could not be made, `layer`, and no useful
      covers.
    """
    covers = 0
    for i in range(len(layer.hashes)):
        covers += 1 if in_order else size_of(layer.ready[i])
    slots = 4
    while slots < 2 * covers:
        slots *= 2
    table = np.empty(slots, np.int64)
    for slot in range(slots):
        table[slot] = -1
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
    count, more = ZERO, ZERO
    for i in range(len(layer.hashes)):
        place = next_in(layer.ready[i], ZERO)
        while place >= 0:
            v = WORD * layer.first_word + place
            if not in_order or v == size:
                child_hash = layer.hashes[i] ^ graph.salt[v]
                slot = np.int64(child_hash & np.uint64(slots - 1))
                while table[slot] >= 0:
                    child = table[slot]
                    is_same = grown.hashes[child] == child_hash
                    if is_same and _is_joined(layer.window[i], place, grown.window[child]):
                        break
                    slot = (slot + 1) & (slots - 1)
                if table[slot] < 0:
                    if count == most:
                        return _TOO_MANY, layer, links
                    table[slot] = count
                    grown.hashes[count] = child_hash
                    if not _join(graph, layer, i, v, grown, count):
                        return _TOO_NARROW, layer, links
                    links.parent[count], links.last[count] = i, v
                    count += 1
                links.below[more], links.above[more], links.added[more] = i, table[slot], v
                more += 1
            place = next_in(layer.ready[i], place + 1)
    shift = _full_words(grown.window, count)
    kept = _Layer(
        layer.first_word + shift,
        _shifted(grown.window, count, shift),
        _shifted(grown.needed, count, shift),
        _shifted(grown.ready, count, shift),
        grown.hashes[:count],
        grown.cut_bytes[:count],
    )
    found = _Links(
        links.parent[:count],
        links.last[:count],
        links.below[:more],
        links.above[:more],
        links.added[:more],
    )
    return _DONE, kept, found


@inner
def _is_joined(row: Words, place: int, other: Words) -> bool:
    """Whether `other` is `row` plus the bit at `place`. Equal hashes alone do not prove that."""
    for w in range(len(row)):
        bits = row[w]
        if w == place // WORD:
            bits |= np.uint64(1) << np.uint64(place % WORD)
        if bits != other[w]:
            return False
    return True


@inner
def _join(graph: _Graph, layer: _Layer, i: int, v: int, grown: _Layer, child: int) -> bool:
    """Fills in ideal `child` of `grown`: ideal i of `layer` with contracted node v added.

    Returns:
      Whether all consumers of v are in the window; if not, `child` is incomplete.
    """
    first = WORD * layer.first_word
    window, needed, ready = grown.window[child], grown.needed[child], grown.ready[child]
    copy_row(grown.window, child, layer.window, i)
    copy_row(grown.needed, child, layer.needed, i)
    copy_row(grown.ready, child, layer.ready, i)
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


@inner
def _is_inside(window: Words, first: int, v: int) -> bool:
    """Whether contracted node v is in the ideal; its window begins at number `first`."""
    if v < first:
        return True
    return v - first < WORD * len(window) and has(window, v - first)


@inner
def _full_words(windows: Words, count: int) -> int:
    """Number of leading words whose bits are all set in each of the first `count` windows."""
    shift = windows.shape[1]
    for i in range(count):
        w = 0
        while w < shift and not ~windows[i, w]:
            w += 1
        shift = w
    return shift


@inner
def _shifted(windows: Words, count: int, shift: int) -> Words:
    """The first `count` windows without their first `shift` words, zeros added at the end."""
    moved = np.zeros((count, windows.shape[1]), np.uint64)
    for i in range(count):
        for w in range(windows.shape[1] - shift):
            moved[i, w] = windows[i, w + shift]
    return moved
