"""Topological orders, and cycles in graphs that have none."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def topological_order(successors: Sequence[Iterable[int]]) -> list[int] | None:
    """Orders positions by Kahn's algorithm; among ready positions, the smallest comes first.

    Args:
      successors: [N] for each position, the positions that must come later; repeats are allowed.

    Returns:
      [N] the positions in order; None if there is a cycle.
    """
    indegree = [0] * len(successors)
    targets = [set(later) for later in successors]
    for later in targets:
        for v in later:
            indegree[v] += 1
    ready = [v for v, degree in enumerate(indegree) if degree == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        u = heapq.heappop(ready)
        order.append(u)
        for v in targets[u]:
            indegree[v] -= 1
            if indegree[v] == 0:
                heapq.heappush(ready, v)
    return order if len(order) == len(successors) else None


def find_cycle(successors: Sequence[Iterable[int]]) -> list[int]:
    """Finds one cycle by depth-first search.

    Args:
      successors: [N] as for `topological_order`.

    Returns:
      The positions on the cycle, in order; empty if there is no cycle.
    """
    state = [0] * len(successors)  # 0 new, 1 on the current path, 2 done
    for root in range(len(successors)):
        if state[root]:
            continue
        path, pending = [root], [iter(successors[root])]
        state[root] = 1
        while path:
            v = next(pending[-1], None)
            if v is None:
                state[path.pop()] = 2
                pending.pop()
            elif state[v] == 1:
                return path[path.index(v) :]
            elif state[v] == 0:
                state[v] = 1
                path.append(v)
                pending.append(iter(successors[v]))
    return []
