"""The lattice of down-sets (ideals) of a graph, layer by layer.

For an acyclic partition f, {v : f(v) <= c} is an ideal, so a partition is a chain of ideals from
the empty one to all nodes. What bounds and optimal partitions come from that: `ideals`, `stages`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from jaxpart.problem import FloatArray, IntArray, Problem
from jaxpart.structure import largest_antichain

WORD = 64
Words = NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """All ideals of a problem of blocks, and how each grows by one block. I ideals, R covers.

    Ideals are sorted by size: the empty one is first, all blocks are last. A cover is a pair of
    ideals that differ by one block; covers are sorted by the smaller one's size.
    """

    members: Words  # [I, words] bit sets of blocks
    needed: Words  # [I, words] consumers outside of what is made inside
    cut_bytes: FloatArray  # [I] of tensors made inside with a consumer outside
    layer_start: IntArray  # [layers + 1] first ideal with 0, 1, ... blocks
    cover_start: IntArray  # [layers + 1] first cover of the ideals with 0, 1, ... blocks
    parent: NDArray[np.int32]  # [I] one of the ideals that it covers; 0 for the empty one
    last: NDArray[np.int32]  # [I] the block that it has beside its parent's; -1 for the empty one
    below: NDArray[np.int32]  # [R] the smaller ideal
    above: NDArray[np.int32]  # [R] the larger
    added: NDArray[np.int32]  # [R] the block that tells them apart

    def __len__(self) -> int:
        return len(self.members)

    def sums(self, values: FloatArray) -> FloatArray:
        """[I, ...] sum of `values` [blocks, ...] over each ideal's blocks."""
        total = np.zeros((len(self), *values.shape[1:]))
        for start, end in itertools.pairwise(self.layer_start[1:].tolist()):
            total[start:end] = total[self.parent[start:end]] + values[self.last[start:end]]
        return total


def count(problem: Problem, limit: int) -> int | None:
    """Number of ideals of the blocks; None where there are more than `limit`."""
    if _is_beyond(problem, limit):
        return None
    total = 0
    for layer in _layers(problem.contracted, limit):
        total += len(layer.members)
        if total > limit:
            return None
    return total


def _is_beyond(problem: Problem, limit: int) -> bool:
    """Whether there are sure to be more ideals: each subset of an antichain is the top of one."""
    return largest_antichain(problem.num_blocks, problem.contracted.node_pairs) > math.log2(limit)


def enumerate_ideals(
    problem: Problem, limit: int, give_up: Callable[[], bool] = lambda: False
) -> Lattice | None:
    """The lattice of the blocks; None where there are more than `limit` ideals.

    `give_up` is asked from layer to layer whether to stop, with None.
    """
    if _is_beyond(problem, limit):
        return None
    layers: list[_Layer] = []
    total = 0
    for layer in _layers(problem.contracted, limit):
        layers.append(layer)
        total += len(layer.members)
        if total > limit or give_up():
            return None
    layer_start = np.cumsum([0, *(len(layer.members) for layer in layers)])
    cover_start = np.cumsum([0, *(len(layer.below) for layer in layers[1:]), 0])
    below = [layer.below + layer_start[i] for i, layer in enumerate(layers[1:])]
    above = [layer.above + layer_start[i + 1] for i, layer in enumerate(layers[1:])]
    parent = [layer.parent + layer_start[i] for i, layer in enumerate(layers[1:])]
    return Lattice(
        members=np.concatenate([layer.members for layer in layers]),
        needed=np.concatenate([layer.needed for layer in layers]),
        cut_bytes=np.concatenate([layer.cut_bytes for layer in layers]),
        layer_start=layer_start,
        cover_start=cover_start,
        parent=_joined([np.zeros(1, np.int64), *parent]),
        last=_joined([np.full(1, -1), *(layer.new for layer in layers[1:])]),
        below=_joined(below),
        above=_joined(above),
        added=_joined([layer.added for layer in layers[1:]]),
    )


def prefixes(problem: Problem) -> Lattice:
    """The part of the lattice that the program order runs through: its first 0, 1, ... blocks.

    Optimal chains within it are the optimal cuts of the program order.
    """
    blocks = _Blocks(problem.contracted)
    count = len(blocks.before)
    layer = _bottom(blocks)
    layers = [layer]
    for v in range(count):
        layer = _joined_by(blocks, layer, np.array([v]), np.array([0]))
        layers.append(layer)
    steps = np.arange(count, dtype=np.int32)
    return Lattice(
        members=np.concatenate([layer.members for layer in layers]),
        needed=np.concatenate([layer.needed for layer in layers]),
        cut_bytes=np.concatenate([layer.cut_bytes for layer in layers]),
        layer_start=np.arange(count + 2),
        cover_start=np.minimum(np.arange(count + 2), count),
        parent=np.concatenate([steps[:1], steps]),
        last=np.concatenate([np.full(1, -1, np.int32), steps]),
        below=steps,
        above=steps + 1,
        added=steps,
    )


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int32]:
    return np.concatenate([*parts, np.zeros(0, np.int64)], dtype=np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class _Layer:
    """The ideals of one size, and the covers that lead to them (positions within their layers)."""

    members: Words
    needed: Words
    ready: Words  # blocks that may join next: all their producers are inside
    hashes: Words  # [L] of the members
    cut_bytes: FloatArray
    parent: IntArray  # [L] in the layer before
    new: IntArray  # [L] the block that it has beside its parent's
    below: IntArray
    above: IntArray
    added: IntArray


class _Blocks:
    """Neighbours of each block as bit sets."""

    def __init__(self, blocks: Problem) -> None:
        count, self.words = blocks.num_nodes, -(-blocks.num_nodes // WORD)
        self.before = np.zeros((count, self.words), np.uint64)
        self.after = np.zeros((count, self.words), np.uint64)
        self.followers: list[list[int]] = [[] for _ in range(count)]
        for u, v in blocks.node_pairs.tolist():
            _set(self.before[v], u)
            _set(self.after[u], v)
            self.followers[u].append(v)
        self.consumers = np.zeros((blocks.num_tensors, self.words), np.uint64)
        self.taken: list[list[int]] = [[] for _ in range(count)]
        for k, q in zip(blocks.edge_tensor.tolist(), blocks.edge_consumer.tolist(), strict=True):
            _set(self.consumers[k], q)
            self.taken[q].append(k)
        self.tensor_bytes = blocks.tensor_bytes
        is_used = self.consumers.any(axis=1)
        self.sent = np.bincount(
            blocks.tensor_producer, blocks.tensor_bytes * is_used, minlength=count
        )
        # One random word a block; an ideal's hash is the xor of its blocks'.
        self.salt = np.random.default_rng(0).integers(1, 2**64, count, np.uint64)


def _set(bits: Words, v: int) -> None:
    bits[v // WORD] |= np.uint64(1) << np.uint64(v % WORD)


def _layers(problem: Problem, limit: int) -> Iterator[_Layer]:
    """The ideals of 0, 1, ... blocks; may end early where one layer alone exceeds `limit`."""
    blocks = _Blocks(problem)
    layer = _bottom(blocks)
    for _ in range(problem.num_nodes):
        yield layer
        layer = _grown(blocks, layer)
        if len(layer.members) > limit:
            break
    yield layer


def _bottom(blocks: _Blocks) -> _Layer:
    none = np.zeros(0, np.int64)
    empty = np.zeros((1, blocks.words), np.uint64)
    ready = empty.copy()
    for v in np.flatnonzero(~blocks.before.any(axis=1)).tolist():
        _set(ready[0], v)
    hashes = np.zeros(1, np.uint64)
    return _Layer(empty, empty, ready, hashes, np.zeros(1), none, none, none, none, none)


def _grown(blocks: _Blocks, layer: _Layer) -> _Layer:
    """The ideals with one block more."""
    is_ready = np.unpackbits(layer.ready.view(np.uint8), axis=1, bitorder="little")
    added, below = np.nonzero(is_ready.T)  # sorted by the block that joins
    return _joined_by(blocks, layer, added, below)


def _joined_by(blocks: _Blocks, layer: _Layer, added: IntArray, below: IntArray) -> _Layer:
    """The ideals that block `added` [R] makes of ideal `below` [R] of the layer."""
    hashes, first, above = np.unique(
        layer.hashes[below] ^ blocks.salt[added], return_index=True, return_inverse=True
    )
    parent, new = below[first], added[first]
    members = layer.members[parent]
    bit = np.uint64(1) << (new % WORD).astype(np.uint64)
    members[np.arange(len(new)), new // WORD] |= bit
    _check_hashes(layer, members, below, above, added)
    needed = (layer.needed[parent] | blocks.after[new]) & ~members
    ready = layer.ready[parent] & ~members
    cut_bytes = layer.cut_bytes[parent] + blocks.sent[new]
    # What follows from a block's joining is worked out for all ideals that it joined at once.
    order = np.argsort(new, kind="stable")
    starts = np.flatnonzero(np.diff(new[order], prepend=-1))
    for start, end in itertools.pairwise([*starts.tolist(), len(order)]):
        rows = order[start:end]
        v = int(new[rows[0]])
        outside = ~members[rows]
        for k in blocks.taken[v]:
            is_done = ~(blocks.consumers[k] & outside).any(axis=1)
            cut_bytes[rows[is_done]] -= blocks.tensor_bytes[k]
        for w in blocks.followers[v]:
            is_free = ~(blocks.before[w] & outside).any(axis=1)
            ready[rows[is_free], w // WORD] |= np.uint64(1) << np.uint64(w % WORD)
    return _Layer(members, needed, ready, hashes, cut_bytes, parent, new, below, above, added)


def _check_hashes(
    layer: _Layer, members: Words, below: IntArray, above: IntArray, added: IntArray
) -> None:
    """Proofs stand on it: ideals of one hash (of 64 bits) must be one ideal."""
    grown = layer.members[below]
    bit = np.uint64(1) << (added % WORD).astype(np.uint64)
    grown[np.arange(len(added)), added // WORD] |= bit
    if not np.array_equal(grown, members[above]):
        raise AssertionError("two ideals share a hash")
