"""The shape of a graph, costs aside: how deep, how wide, and whether two are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jaxpart.problem.graph import Graph


def topology_hash(graph: Graph) -> str:
    """Hash of nodes and edges alone: the same for graphs that differ in costs or numbering.

    Each node is labelled by all paths into it and all paths out of it; the hash is of the edges'
    labels. Isomorphic graphs share it. So do, seldom, graphs that are none: the labels tell nodes
    apart as colour refinement does in two sweeps (Weisfeiler & Leman 1968), not more.
    """
    before, after = _neighbours(graph)
    count = len(before)
    into, out = [""] * count, [""] * count
    for v in range(count):
        into[v] = _digest(sorted(into[u] for u in before[v]))
    for v in reversed(range(count)):
        out[v] = _digest(sorted(out[w] for w in after[v]))
    label = [_digest((into[v], out[v])) for v in range(count)]
    edges = sorted(label[u] + label[v] for v in range(count) for u in before[v])
    return _digest((str(count), *sorted(label), *edges))


def depth(graph: Graph) -> int:
    """Nodes on the longest path."""
    before, _ = _neighbours(graph)
    length: list[int] = []
    for predecessors in before:
        length.append(1 + max((length[u] for u in predecessors), default=0))
    return max(length)


def width(graph: Graph) -> int:
    """Nodes of the largest antichain: how many can run side by side at most."""
    before, _ = _neighbours(graph)
    pairs = [(u, v) for v, predecessors in enumerate(before) for u in predecessors]
    return largest_antichain(len(before), np.array(pairs, np.int64).reshape(-1, 2))


def largest_antichain(count: int, pairs: NDArray[np.int64]) -> int:
    """Size of the largest set of `count` nodes of which no two are joined by a path of `pairs`.

    By Dilworth's theorem the fewest paths that cover all nodes, where paths may share nodes: N
    less the largest matching of each node with one that comes after it (Fulkerson 1956), found as
    a maximum flow in which a path may pass through nodes that it does not match.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    node = np.arange(count)
    enter, leave, source, sink = node, count + node, 2 * count, 2 * count + 1
    tail = np.concatenate([np.full(count, source), enter, enter, leave[pairs[:, 0]]])
    head = np.concatenate([leave, np.full(count, sink), leave, enter[pairs[:, 1]]])
    capacity = np.repeat(
        np.array([1, 1, count, count], np.int32), [count, count, count, len(pairs)]
    )
    network = coo_array((capacity, (tail, head)), shape=(2 * count + 2,) * 2).tocsr()
    return count - int(maximum_flow(network, source, sink).flow_value)


def _neighbours(graph: Graph) -> tuple[list[set[int]], list[set[int]]]:
    """For each node its producers and its consumers, each once."""
    before: list[set[int]] = [set() for _ in graph.nodes]
    after: list[set[int]] = [set() for _ in graph.nodes]
    for tensor in graph.tensors:
        after[tensor.producer].update(tensor.consumers)
        for q in tensor.consumers:
            before[q].add(tensor.producer)
    return before, after


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
