"""The structure of a graph without its costs: hash, depth and width."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jaxpart.problem.graph import Graph


def topology_hash(graph: Graph) -> str:
    """Hash of the nodes and edges; costs, names and numbering do not change it.

    1. A forward sweep labels each node by the labels of its producers, that is, by all paths into
       the node. A backward sweep labels it by its consumers, that is, by all paths out of it.
    2. The hash covers the pair of labels of each node, and the pairs of both ends of each edge.

    Isomorphic graphs have the same hash. Other graphs rarely have the same hash, but can: two
    sweeps of colour refinement (Weisfeiler & Leman 1968) do not distinguish all nodes.
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
    """Number of nodes on the longest path."""
    before, _ = _neighbours(graph)
    length: list[int] = []
    for predecessors in before:
        length.append(1 + max((length[u] for u in predecessors), default=0))
    return max(length)


def width(graph: Graph) -> int:
    """Number of nodes of the largest antichain: at most this many nodes can run in parallel."""
    before, _ = _neighbours(graph)
    pairs = [(u, v) for v, predecessors in enumerate(before) for u in predecessors]
    return largest_antichain(len(before), np.array(pairs, np.int64).reshape(-1, 2))


def largest_antichain(count: int, pairs: NDArray[np.int64]) -> int:
    """Size of the largest antichain: a set of nodes with no path from one to another.

    1. By Dilworth's theorem, it is the smallest number of paths that cover all nodes, where paths
       may share nodes.
    2. That number is N minus the size of a maximum matching of nodes to later nodes, where a node
       is matched to at most one later and to at most one earlier node (Fulkerson 1956). A later
       node is one that a path reaches.
    3. A maximum flow gives this matching. One unit of flow goes from an earlier node u to a later
       node v that u is matched to. It may pass through other nodes (edges `enter` -> `leave`)
       without matching them, so the transitive closure is not needed.

    Args:
      count: N, the number of nodes.
      pairs: [P, 2] the edges (from, to) of an acyclic graph.
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
    """The producers and the consumers of each node, without repeats."""
    before: list[set[int]] = [set() for _ in graph.nodes]
    after: list[set[int]] = [set() for _ in graph.nodes]
    for tensor in graph.tensors:
        after[tensor.producer].update(tensor.consumers)
        for q in tensor.consumers:
            before[q].add(tensor.producer)
    return before, after


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
