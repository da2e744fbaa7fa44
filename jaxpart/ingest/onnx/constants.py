"""Tells constants from parameters among the weights of an ONNX model, which stores both alike.

A mask or a position factor touches a table of its own: `np.tril`, indices, frequencies. Such a
table does not stop the cloning of the mask (`rewrite/clone.py`). A parameter does.

A weight is a constant if one of these holds:

1. It is an index or a truth value by its type (`is_index_type`).
2. All nodes that use it are on side chains: cheap nodes that depend on inputs and constants alone,
   and whose results end in nodes that also read from elsewhere, two or more of them. An embedding
   table is no constant, because the layer behind it reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import TensorProto

from jaxpart.ingest.onnx.shapes import Array
from jaxpart.ingest.rewrite.clone import is_heavy
from jaxpart.problem.graph import Graph

# Types in which no weight is quantised.
_INDEX_TYPES = frozenset(
    (
        *(TensorProto.BOOL, TensorProto.INT64, TensorProto.UINT64, TensorProto.STRING),
        *(TensorProto.INT32, TensorProto.UINT32),
    )
)


def is_index_type(array: Array) -> bool:
    """Whether elements are indices or truth values: a stored tensor of them is no parameter."""
    return array.dtype in _INDEX_TYPES


def constant_weights(graph: Graph, certain: Iterable[int]) -> frozenset[int]:
    """The weights of a graph that are constants; the docstring of this module gives the rule.

    Args:
      graph: before side chains are cloned.
      certain: positions in `graph.weights` of those that are constants by their type.

    Returns:
      Positions in `graph.weights`.
    """
    certain = frozenset(certain)
    parents: list[set[int]] = [set() for _ in graph.nodes]
    users: list[set[int]] = [set() for _ in graph.nodes]
    made_bytes = [0.0] * len(graph.nodes)
    for tensor in graph.tensors:
        made_bytes[tensor.producer] += tensor.bytes
        users[tensor.producer].update(tensor.consumers)
        for q in tensor.consumers:
            parents[q].add(tensor.producer)
    cheap = [
        not is_heavy(node, made_bytes[v] / (graph.element_bytes or 1))
        for v, node in enumerate(graph.nodes)
    ]
    constants = frozenset(range(len(graph.weights)))
    while True:  # each turn removes a weight: what it feeds is no longer on a chain
        weighted = {
            v
            for w, weight in enumerate(graph.weights)
            if w not in constants
            for v in weight.consumers
        }
        chained: set[int] = set()
        for v in range(len(graph.nodes)):
            if cheap[v] and v not in weighted and parents[v] <= chained:
                chained.add(v)
        ends, main = _ends(users, parents, chained)
        kept = certain | {
            w
            for w in constants
            if all(v in chained and v not in main for v in graph.weights[w].consumers)
            and len(frozenset().union(*(ends[v] for v in graph.weights[w].consumers))) > 1
        }
        if kept == constants:
            return constants
        constants = kept


def _ends(
    users: list[set[int]], parents: list[set[int]], chained: set[int]
) -> tuple[dict[int, frozenset[int]], set[int]]:
    """Where chains end.

    Args:
      users: [N] the nodes that read from each node.
      parents: [N] the nodes that each node reads from.
      chained: the nodes on chains.

    Returns:
      For each node on a chain: up to two nodes on no chain that its results reach by nodes on
      chains. The nodes on chains that feed an output, or reach a node that reads from chains alone.
    """
    ends: dict[int, frozenset[int]] = {}
    main: set[int] = set()
    for v in sorted(chained, reverse=True):
        outside = {q for q in users[v] if q not in chained}
        inside = users[v] - outside
        found = outside.union(*(ends[q] for q in inside))
        ends[v] = frozenset(sorted(found)[:2])
        if not users[v] or any(parents[q] <= chained for q in outside) or inside & main:
            main.add(v)
    return ends, main
