"""The lattice of ideals (down-sets) of a graph, layer by layer.

An ideal is a set of contracted nodes that contains all producers of its members. For a partition f
with acyclic dataflow, {v : f(v) <= c} is an ideal for every chip c. So a partition is a chain of
ideals I_0 < I_1 < ... from the empty ideal to all nodes, and each chip runs a segment: the
difference of two successive ideals. Three dynamic programs find lower bounds and partitions among
such chains:

- `bounds/ideals/pairs.py`: over pairs of ideals, with memory and traffic;
- `bounds/ideals/load_program.py`: one contracted node at a time, for many ideals;
- `bounds/ideals/parametric_search.py`: the fewest chips within a limit, where chips are alike.

A long graph has few ideals per node, but each ideal is as long as the graph. Therefore only a
window of each ideal is stored (`bounds/ideals/walks.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from jaxpart.bounds.ideals.bitsets import Words, entry, words_for
from jaxpart.bounds.ideals.walks import WalkResult, compile_walk, walks
from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.problem.structure import largest_antichain

# Most words in `window` of a lattice, and in `needed`: 0.5 GB each.
_MOST_WORDS = 64_000_000
# Contracted nodes up to which the largest antichain is computed first. Beyond, that costs more time
# than it saves.
_MAX_ANTICHAIN_NODES = 2500


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """I ideals of the contracted nodes, and R covers between them.

    Ideals are sorted by size: the empty ideal is first, the set of all contracted nodes is last.
    A layer is the set of all ideals of one size. A cover is a pair of ideals that differ by one
    contracted node; covers are sorted by the size of the smaller ideal.

    The windows of all ideals of a layer begin at the same word. All contracted nodes before the
    window are inside the ideal; all contracted nodes after it are outside and not needed.
    """

    num_contracted: int
    window: Words  # [I, width] members of each ideal, from word `first_word` of its layer on
    needed: Words  # [I, width] outside consumers of tensors made inside; windows as above
    first_word: IntArray  # [layers] first word of the windows of layer 0, 1, ...
    cut_bytes: FloatArray  # [I] of tensors made inside with a consumer outside
    layer_start: IntArray  # [layers + 1] first ideal of layer 0, 1, ...
    cover_start: IntArray  # [layers + 1] first cover whose smaller ideal is in layer 0, 1, ...
    parent: NDArray[np.int32]  # [I] an ideal with one contracted node less; 0 for the empty ideal
    last: NDArray[np.int32]  # [I] the contracted node that `parent` lacks; -1 for the empty ideal
    below: NDArray[np.int32]  # [R] the smaller ideal
    above: NDArray[np.int32]  # [R] the larger ideal
    added: NDArray[np.int32]  # [R] the contracted node by which they differ

    def __len__(self) -> int:
        return len(self.window)

    @property
    def is_total_order(self) -> bool:
        """Whether there is one ideal of each size.

        If these are all ideals, this means that only one order of the contracted nodes is
        topological.
        """
        return len(self) == self.num_contracted + 1

    def sums(self, values: FloatArray) -> FloatArray:
        """[I, ...] sum of `values` [M, ...] over the members of each ideal."""
        columns = np.ascontiguousarray(values, np.float64).reshape(len(values), -1)
        return _sums(self.parent, self.last, columns).reshape(len(self), *values.shape[1:])

    def members(self) -> Words:
        """[I, words] each ideal as a bit set of all contracted nodes."""
        return self._whole(self.window, before=True)

    def needed_members(self) -> Words:
        """[I, words] `needed` as bit sets of all contracted nodes."""
        return self._whole(self.needed, before=False)

    def _whole(self, windows: Words, *, before: bool) -> Words:
        """[I, words] windows as whole bit sets; `before`: whether all bits before them are set."""
        words = words_for(self.num_contracted)
        whole = np.zeros((len(self), words + windows.shape[1]), np.uint64)
        first = np.repeat(self.first_word, np.diff(self.layer_start))
        rows = np.arange(len(self))[:, None]
        whole[rows, first[:, None] + np.arange(windows.shape[1])] = windows
        if before:
            whole[np.arange(whole.shape[1]) < first[:, None]] = ~np.uint64(0)
        return np.ascontiguousarray(whole[:, :words])


@entry
def _sums(parent: NDArray[np.int32], last: NDArray[np.int32], values: FloatArray) -> FloatArray:
    total = np.zeros((len(parent), values.shape[1]))
    for i in range(1, len(parent)):
        for column in range(values.shape[1]):
            total[i, column] = total[parent[i], column] + values[last[i], column]
    return total


def compile_lattice() -> None:
    """Compiles the functions that list ideals, or loads them from numba's cache."""
    compile_walk()
    _sums(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros((1, 1)))


def count(problem: Problem, limit: int) -> int | None:
    """Number of ideals of the contracted nodes; None if there are more than `limit`."""
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
    """All ideals of the contracted nodes, as a lattice.

    Args:
      problem: of M contracted nodes, with acyclic dataflow.
      limit: most ideals to list.
      give_up: called from time to time; if it returns True, listing stops.

    Returns:
      The lattice; None if there are more than `limit` ideals, if it would take too much memory, or
      if `give_up` stopped it.
    """
    if _is_beyond(problem, limit):
        return None
    parts: list[WalkResult] = []
    total = 1
    for found in walks(problem, limit):
        parts.append(found)
        total += len(found.parent)
        if total > limit or total * found.window.shape[1] > _MOST_WORDS or give_up():
            return None
    return _joined(problem, parts)


def prefixes(problem: Problem) -> Lattice:
    """The ideals that are prefixes of the program order: the first 0, 1, ... contracted nodes.

    A best chain among them is an optimal cut of the program order.
    """
    return _joined(problem, list(walks(problem, problem.num_contracted + 1, in_order=True)))


def _is_beyond(problem: Problem, limit: int) -> bool:
    """Whether a large antichain proves that there are more than `limit` ideals.

    Different subsets of an antichain generate different ideals, so an antichain of size a gives at
    least 2^a of them. False proves nothing.
    """
    if problem.num_contracted > _MAX_ANTICHAIN_NODES:
        return False
    antichain = largest_antichain(problem.num_contracted, problem.contracted.node_pairs)
    return antichain > np.log2(limit)


def _joined(problem: Problem, parts: list[WalkResult]) -> Lattice:
    """The lattice of the empty ideal and the layers of all parts, smallest first."""
    width = max((found.window.shape[1] for found in parts), default=1)
    ideals = np.concatenate([[1], *(found.ideals for found in parts)])
    covers = np.concatenate([*(found.covers for found in parts), [0]])
    layer_start = np.concatenate([[0], np.cumsum(ideals)])
    # Offsets that turn positions within a layer into positions in the lattice.
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
