"""Shortest paths between all pairs of contracted nodes, under the rule on edges.

The rule is 0 <= f(v) - f(u) <= 1 for every edge (u, v). These are difference constraints: the least
f above some wishes y is f(v) = max over u of y(u) - distance(u, v), where an edge has distance 0
along it and 1 against it (Murota, Discrete Convex Analysis, 2003; Bellman's shortest paths).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
_njit: Any = njit  # numba's types do not know all of its options


@_njit(cache=True, nogil=True)
def shortest_paths(
    next_start: IntArray,
    next_node: IntArray,
    back_start: IntArray,
    back_node: IntArray,
    found: NDArray[Any],
) -> None:
    """Lowers `found` to the distances, in place: a search from each node, nearest first.

    Args:
      next_start: [M + 1] the edges from node u lead to next_node[next_start[u]] and on.
      next_node: [E] the ends of the edges, by their beginnings.
      back_start: [M + 1] likewise, the edges to node v.
      back_node: [E] the beginnings of the edges, by their ends.
      found: [N, N], N at least M; 0 on the diagonal, elsewhere the largest distance of interest.
    """
    count = len(next_start) - 1
    here, beyond = np.empty(count, np.int64), np.empty(count, np.int64)
    for source in range(count):
        row = found[source]
        here[0] = source
        size, distance = 1, 0
        while size:
            at = 0
            while at < size:  # along the edges: all at this distance, those found on the way too
                u = here[at]
                at += 1
                for i in range(next_start[u], next_start[u + 1]):
                    v = next_node[i]
                    if row[v] > distance:
                        row[v] = distance
                        here[size] = v
                        size += 1
            distance += 1
            later = 0
            for at in range(size):  # one step against an edge leads to the next distance
                u = here[at]
                for i in range(back_start[u], back_start[u + 1]):
                    v = back_node[i]
                    if row[v] > distance:
                        row[v] = distance
                        beyond[later] = v
                        later += 1
            size = later
            here, beyond = beyond, here
