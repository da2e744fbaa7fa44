"""Clones cheap work on inputs and constants into the nodes that consume it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec

from jaxpart.problem.graph import Graph, Tensor, Weight

# Operations with more than a few FLOPs per element: too expensive to repeat for each consumer.
# fmt: off
_HEAVY = frozenset(
    [
        "dot_general", "conv_general_dilated", "ragged_dot_general", "scan", "while", "cond",
        "sort", "top_k", "fft", "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN",
        "Loop", "Scan", "If",
    ]
)
# fmt: on
_MAX_CHAIN = 64  # most nodes of a chain that is cloned


def clone_inputs(graph: Graph) -> Graph:
    """Clones cheap side chains of inputs and constants into the nodes that consume them.

    The host feeds inputs and constants to every chip. A result that depends only on them (an
    attention mask, positional indices) therefore need not cross a link: each consumer can compute
    its own copy, as compilers do. If such a chain stayed as nodes, it would tie all its consumers
    to one chip, or its place would be arbitrary.

    A chain is a node v together with all nodes that v depends on. It has at most `_MAX_CHAIN`
    nodes, none of which

    - has a weight, a fixed chip, a colocation group or profiled seconds;
    - is a matrix product, a convolution, a sort or a loop (an outer product is allowed).

    The chain is cloned if all of these hold:

    1. It is a side chain: v has several consumers that are in no chain, or it has one, and this
       consumer also reads from a node that is in no chain. So the first operations of the main path
       stay nodes.
    2. It is cheap: all its nodes together access at most as many bytes as any one of these
       consumers.

    Each consumer then gets the FLOPs of the chain in addition to its own, and nodes of the chain
    that no other node needs are removed. The bytes accessed of a consumer stay the same, because it
    still reads the result of the chain. Total FLOPs can grow by the clones. All weights stay.
    """
    chain = _input_chains(graph)
    users: list[set[int]] = [set() for _ in graph.nodes]
    on_chains_alone = [True] * len(graph.nodes)  # whether only nodes in chains feed it
    for tensor in graph.tensors:
        users[tensor.producer].update(tensor.consumers)
        if tensor.producer not in chain:
            for q in tensor.consumers:
                on_chains_alone[q] = False
    clones: set[tuple[int, int]] = set()  # (last node of a chain, consumer)
    members: dict[int, set[int]] = {}  # consumer -> nodes cloned into it
    for v, nodes in chain.items():
        outside = [q for q in users[v] if q not in chain]
        main_path = len(outside) == 1 and on_chains_alone[outside[0]]
        accessed = sum(graph.nodes[u].bytes_accessed for u in nodes)
        if not main_path and all(accessed <= graph.nodes[q].bytes_accessed for q in outside):
            clones.update((v, q) for q in outside)
            for q in outside:
                members.setdefault(q, set()).update(nodes)
    if not clones:
        return graph
    nodes = list(graph.nodes)
    for q, cloned in members.items():
        flops = nodes[q].flops + sum(graph.nodes[u].flops for u in cloned)
        nodes[q] = msgspec.structs.replace(nodes[q], flops=flops)
    tensors = []
    for tensor in graph.tensors:
        left = tuple(q for q in tensor.consumers if (tensor.producer, q) not in clones)
        if left or not tensor.consumers:
            tensors.append(msgspec.structs.replace(tensor, consumers=left))
    return drop_dead(dataclasses.replace(graph, nodes=tuple(nodes), tensors=tuple(tensors)))


def drop_dead(graph: Graph) -> Graph:
    """Removes nodes from which no output can be reached, and weights that only they use.

    An output is a tensor without consumers. The nodes that are left keep their order and are
    renumbered without gaps.

    Raises:
      EmptyGraphError: no node reaches an output.
    """
    made: list[list[Tensor]] = [[] for _ in graph.nodes]
    for tensor in graph.tensors:
        made[tensor.producer].append(tensor)
    live: set[int] = set()
    for v in reversed(range(len(graph.nodes))):
        if any(not k.consumers or not live.isdisjoint(k.consumers) for k in made[v]):
            live.add(v)
    if len(live) == len(graph.nodes):
        return graph
    number = {v: new for new, v in enumerate(sorted(live))}

    def renumber(consumers: Iterable[int]) -> tuple[int, ...]:
        return tuple(number[q] for q in consumers if q in live)

    tensors = (
        Tensor(number[k.producer], k.bytes, renumber(k.consumers), k.fixed)
        for k in graph.tensors
        if k.producer in live and (not k.consumers or not live.isdisjoint(k.consumers))
    )
    weights = (
        Weight(w.bytes, renumber(w.consumers), w.fixed)
        for w in graph.weights
        if not w.consumers or not live.isdisjoint(w.consumers)
    )
    nodes = tuple(graph.nodes[v] for v in sorted(live))
    return dataclasses.replace(graph, nodes=nodes, tensors=tuple(tensors), weights=tuple(weights))


def _input_chains(graph: Graph) -> dict[int, frozenset[int]]:
    """The chain (see `clone_inputs`) of each node that has one."""
    parents: list[set[int]] = [set() for _ in graph.nodes]
    made_bytes = [0.0] * len(graph.nodes)
    for tensor in graph.tensors:
        made_bytes[tensor.producer] += tensor.bytes
        for q in tensor.consumers:
            parents[q].add(tensor.producer)
    weighted = {q for weight in graph.weights for q in weight.consumers}
    chain: dict[int, frozenset[int]] = {}
    for v, node in enumerate(graph.nodes):
        # An outer product (rotary positions) is a dot_general too, but with one multiplication for
        # each element of its result.
        elements = made_bytes[v] / (graph.element_bytes or 1)
        heavy = node.op in _HEAVY and node.flops > 2 * elements
        constrained = (node.pin, node.colocate, node.seconds) != (None, None, None)
        if heavy or constrained or v in weighted or not all(p in chain for p in parents[v]):
            continue
        nodes = frozenset((v,)).union(*(chain[p] for p in parents[v]))
        if len(nodes) <= _MAX_CHAIN:
            chain[v] = nodes
    return chain
