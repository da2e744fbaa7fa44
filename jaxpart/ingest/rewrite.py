"""Graph to graph: pure functions that change what the nodes are, not what the graph computes."""

from __future__ import annotations

import dataclasses

import msgspec

from jaxpart.graph import Graph, Tensor, Weight

# Operations whose work is more than a few FLOPs per element: never recomputed for each consumer.
_HEAVY = frozenset(
    ["dot_general", "conv_general_dilated", "ragged_dot_general", "scan", "while", "cond", "sort", "top_k", "fft", "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Loop", "Scan", "If"]
)
_MAX_CLONE = 64  # nodes


def clone_inputs(graph: Graph) -> Graph:
    """Clones cheap side chains of inputs and constants into the nodes that consume them.

    Inputs are fed by the host to every chip, so what is computed from them alone (an attention mask,
    positional indices) need not cross a link: each consumer can compute its own, as compilers do.
    Kept as nodes, such a chain either ties all its consumers to one chip or drifts freely.

    A chain is a node without weights, together with all nodes that it depends on, if those are all
    such nodes and at most 64. It is cloned into its consumers (its nodes vanish, and the FLOPs
    are added to each) if

    - it is a side chain: it has several consumers outside, or its only one also depends on
      the rest of the graph. The first operations of the main path stay nodes;
    - it is cheap: no matrix product, convolution, sort or loop in it, and its nodes access no more
      bytes than any of the consumers does by itself.

    A consumer's bytes_accessed stays what it was: it still reads the chain's result, now its own.
    Total FLOPs can grow, by the clones alone; weights stay.
    """
    count = len(graph.nodes)
    parents: list[set[int]] = [set() for _ in range(count)]
    users: list[set[int]] = [set() for _ in range(count)]
    is_output = [False] * count
    for tensor in graph.tensors:
        is_output[tensor.producer] |= not tensor.consumers
        for q in tensor.consumers:
            parents[q].add(tensor.producer)
            users[tensor.producer].add(q)
    weighted = {q for weight in graph.weights for q in weight.consumers}

    chain: list[frozenset[int] | None] = []  # the node and all that it depends on
    for v, node in enumerate(graph.nodes):
        chains = [chain[p] for p in parents[v]]
        known = [part for part in chains if part is not None]
        fixed = node.pin is not None or node.colocate is not None or node.seconds is not None
        if v in weighted or fixed or node.op in _HEAVY or len(known) < len(chains):
            chain.append(None)
            continue
        nodes = frozenset((v,)).union(*known)
        chain.append(nodes if len(nodes) <= _MAX_CLONE else None)

    added = [0.0] * count
    clones: set[tuple[int, int]] = set()  # (last node of a chain, consumer)
    for v, nodes in enumerate(chain):
        outside = [q for q in users[v] if chain[q] is None]
        if nodes is None or not outside:
            continue
        on_main_path = len(outside) == 1 and all(chain[p] is not None for p in parents[outside[0]])
        accessed = sum(graph.nodes[u].bytes_accessed for u in nodes)
        cheap = all(accessed <= graph.nodes[q].bytes_accessed for q in outside)
        if cheap and not on_main_path:
            clones.update((v, q) for q in outside)
    for q in {q for _, q in clones}:
        inside = frozenset().union(*(chain[v] or () for v, r in clones if r == q))
        added[q] = sum(graph.nodes[u].flops for u in inside)

    kept = set()
    for v in reversed(range(count)):
        if (
            chain[v] is None
            or is_output[v]
            or any(q in kept and (v, q) not in clones for q in users[v])
        ):
            kept.add(v)
    number = {v: new for new, v in enumerate(sorted(kept))}
    tensors = []
    for tensor in graph.tensors:
        if tensor.producer not in kept:
            continue
        consumers = tuple(
            number[q] for q in tensor.consumers if q in kept and (tensor.producer, q) not in clones
        )
        if consumers or not tensor.consumers:
            tensors.append(Tensor(number[tensor.producer], tensor.bytes, consumers))
    nodes = [
        msgspec.structs.replace(graph.nodes[v], flops=graph.nodes[v].flops + added[v])
        for v in sorted(kept)
    ]
    weights = [Weight(w.bytes, tuple(number[q] for q in w.consumers)) for w in graph.weights]
    return dataclasses.replace(
        graph, nodes=tuple(nodes), tensors=tuple(tensors), weights=tuple(weights)
    )
