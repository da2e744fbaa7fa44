"""The lattice of down-sets (ideals) of a graph, layer by layer.

For an acyclic partition f, {v : f(v) <= c} is an ideal, so a partition is a chain of ideals from
the empty one to all nodes. What bounds and optimal partitions come from that: `ideals`, `stages`,
`fewest`.

A long graph has few ideals a node, but every one is as long as the graph: only a window of each is
kept (`lattice_walk`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from jaxpart.bounds.ideals.bitsets import Words, words_for
from jaxpart.bounds.ideals.walks import Found, compile_walk, walks
from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.problem.structure import largest_antichain

# Words of bit sets that a lattice may have: 0.5 GB twice.
_MOST_WORDS = 64_000_000
# Contracted nodes up to which the largest antichain is looked for first: it takes less than what it
# saves.
_QUICKLY_MATCHED = 2500


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """All ideals of a problem of contracted nodes, and how each grows by one block. I ideals, R
    covers.

    Ideals are sorted by size: the empty one is first, all contracted nodes are last. A cover is a
    pair of ideals that differ by one contracted node; covers are sorted by the smaller one's size.

    Of the ideals of a layer the windows begin at the same word. All contracted nodes before it are
    inside, all behind the window are outside and not needed.
    """

    num_contracted: int
    window: Words  # [I, width] bit sets of contracted nodes, from the layer's first word on
    needed: Words  # [I, width] consumers outside of what is made inside, in the same way
    first_word: (
        IntArray  # [layers] where the windows of the ideals with 0, 1, ... contracted nodes begin
    )
    cut_bytes: FloatArray  # [I] of tensors made inside with a consumer outside
    layer_start: IntArray  # [layers + 1] first ideal with 0, 1, ... contracted nodes
    cover_start: IntArray  # [layers + 1] first cover of the ideals with 0, 1, ... contracted nodes
    parent: NDArray[np.int32]  # [I] one of the ideals that it covers; 0 for the empty one
    last: NDArray[
        np.int32
    ]  # [I] the contracted node that it has beside its parent's; -1 for the empty one
    below: NDArray[np.int32]  # [R] the smaller ideal
    above: NDArray[np.int32]  # [R] the larger
    added: NDArray[np.int32]  # [R] the contracted node that tells them apart

    def __len__(self) -> int:
        return len(self.window)

    @property
    def is_total_order(self) -> bool:
        """Whether the contracted nodes can run in one order only."""
        return len(self) == self.num_contracted + 1

    def sums(self, values: FloatArray) -> FloatArray:
        """[I, ...] sum of `values` [M, ...] over each ideal's blocks."""
        columns = np.ascontiguousarray(values, np.float64).reshape(len(values), -1)
        return _sums(self.parent, self.last, columns).reshape(len(self), *values.shape[1:])

    def members(self) -> Words:
        """[I, words] each ideal as a bit set of all blocks."""
        return self._whole(self.window, before=True)

    def needed_members(self) -> Words:
        """[I, words] `needed` as bit sets of all blocks."""
        return self._whole(self.needed, before=False)

    def _whole(self, windows: Words, *, before: bool) -> Words:
        words = words_for(self.num_contracted)
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


def compile_lattice() -> None:
    """Compiles what lists ideals, or reads what an earlier process compiled."""
    compile_walk()
    _sums(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros((1, 1)))


def count(problem: Problem, limit: int) -> int | None:
    """Number of ideals of the contracted nodes; None where there are more than `limit`."""
    if _is_beyond(problem, limit):
        return None
    total = 1
    for found in walks(problem, limit):
        total += len(found.parent)
        if total > limit:
            return None
    return total


def enumerate_ideals(
    problem: Problem, limit: int, give_up: Callable[[], bool] = lambda: False
) -> Lattice | None:
    """The lattice of the contracted nodes; None where there are more than `limit` ideals.

    `give_up` is asked now and then whether to stop, with None.
    """
    if _is_beyond(problem, limit):
        return None
    parts: list[Found] = []
    total = 1
    for found in walks(problem, limit):
        parts.append(found)
        total += len(found.parent)
        if total > limit or total * found.window.shape[1] > _MOST_WORDS or give_up():
            return None
    return _joined(problem, parts)


def prefixes(problem: Problem) -> Lattice:
    """The part of the lattice that the program order runs through: its first 0, 1, ... blocks.

    Optimal chains within it are the optimal cuts of the program order.
    """
    return _joined(problem, list(walks(problem, problem.num_contracted + 1, in_order=True)))


def _is_beyond(problem: Problem, limit: int) -> bool:
    """Whether there are sure to be more ideals: each subset of an antichain is the top of one."""
    if problem.num_contracted > _QUICKLY_MATCHED:
        return False
    antichain = largest_antichain(problem.num_contracted, problem.contracted.node_pairs)
    return antichain > np.log2(limit)


def _joined(problem: Problem, parts: list[Found]) -> Lattice:
    width = max((found.window.shape[1] for found in parts), default=1)
    ideals = np.concatenate([[1], *(found.ideals for found in parts)])
    covers = np.concatenate([*(found.covers for found in parts), [0]])
    layer_start = np.concatenate([[0], np.cumsum(ideals)])
    # From positions within layers to positions among all.
    of_ideal = np.repeat(layer_start[:-2], ideals[1:]).astype(np.int32)
    of_cover = np.repeat(layer_start[:-2], covers[:-1]).astype(np.int32)
    next_of_cover = np.repeat(layer_start[1:-1], covers[:-1]).astype(np.int32)
    first, none = np.zeros(1, np.int32), np.zeros(0, np.int32)
    empty = np.zeros((1, width), np.uint64)

    def joined(arrays: Iterable[NDArray[np.int32]]) -> NDArray[np.int32]:
        return np.concatenate([none, *arrays])

    def padded(windows: Iterable[Words]) -> Words:
        same = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in windows]
        return np.concatenate([empty, *same])

    return Lattice(
        num_contracted=problem.num_contracted,
        window=padded(found.window for found in parts),
        needed=padded(found.needed for found in parts),
        first_word=np.concatenate([[0], *(found.first_word for found in parts)]).astype(np.int64),
        cut_bytes=np.concatenate([[0.0], *(found.cut_bytes for found in parts)]),
        layer_start=layer_start,
        cover_start=np.concatenate([[0], np.cumsum(covers)]),
        parent=np.concatenate([first, joined(found.parent for found in parts) + of_ideal]),
        last=np.concatenate([first - 1, joined(found.last for found in parts)]),
        below=joined(found.below for found in parts) + of_cover,
        above=joined(found.above for found in parts) + next_of_cover,
        added=joined(found.added for found in parts),
    )
