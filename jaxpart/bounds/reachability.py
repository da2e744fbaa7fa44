"""Reachability between the nodes of an acyclic graph, as bit sets and as a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxpart.problem.problem import FloatArray, Problem

_WORD = 64


def reachability(problem: Problem) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Bit sets of the descendants and of the ancestors of each node.

    Args:
      problem: acyclic, of N nodes numbered in topological order.

    Returns:
      [N, words] descendants and [N, words] ancestors, the node itself excluded; bit v of a set
      stands for node v.
    """
    count = problem.num_nodes
    below = np.zeros((count, -(-count // _WORD)), np.uint64)
    above = np.zeros_like(below)
    word = np.arange(count) // _WORD
    bit = np.uint64(1) << (np.arange(count) % _WORD).astype(np.uint64)
    pairs = problem.node_pairs.tolist()
    for u, v in sorted(pairs, reverse=True):
        below[u] |= below[v]
        below[u, word[v]] |= bit[v]
    for u, v in sorted(pairs, key=lambda pair: pair[1]):
        above[v] |= above[u]
        above[v, word[u]] |= bit[u]
    return below, above


def members(sets: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    """Unpacks bit sets [..., words] of `count` nodes to booleans [..., count]."""
    bits = np.unpackbits(sets.view(np.uint8), axis=-1, bitorder="little")
    return bits[..., :count].astype(bool)


def reachability_matrix(problem: Problem) -> FloatArray:
    """A matrix [N, N]: 1.0 where a path leads from the row's node to the column's, else 0.0.

    The diagonal is 1.0. The problem is acyclic, its N nodes are numbered in topological order.
    """
    reach = members(reachability(problem)[0], problem.num_nodes).astype(np.float64)
    np.fill_diagonal(reach, 1.0)
    return reach
