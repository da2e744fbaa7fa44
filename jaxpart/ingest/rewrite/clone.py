"""Clones cheap work on inputs and constants into the nodes that consume it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from jaxpart.ingest.rewrite.divisions import renumbered, with_divisions
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

# Operations with more than a few FLOPs per element: too expensive to repeat for each consumer.
# fmt: off
_HEAVY = frozenset(
    [
        "dot_general", "conv_general_dilated", "ragged_dot_general", "scan", "while", "cond",
        "sort", "top_k", "fft", "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN",
        "Loop", "Scan", "If", "Attention", "ConvInteger", "DFT", "DeformConv", "Einsum",
        "MatMulInteger", "QLinearConv", "QLinearMatMul", "STFT", "TopK", "DynamicQuantizeMatMul",
        "FusedConv", "FusedGemm", "FusedMatMul", "GroupQueryAttention", "MatMulBnb4",
        "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QAttention",
        "TransposeMatMul",
    ]
)
# fmt: on
_MAX_CHAIN = 64  # most nodes of a chain that is cloned
_FEW_FLOPS = 8  # per element of a result: a mask has three or four, random numbers ten and more
# Most bytes of constants that a cloned chain may bring to each consumer. Every chip with a consumer
# then holds a copy. 4 MiB is an eighth of a chip's memory in the presets, and enough for a boolean
# mask of 2,048 x 2,048 or tables of 2,048 positions x 512 float32. A larger constant, copied to all
# chips, would cost more memory than the freedom to place the consumers is worth.
MAX_CONSTANT_BYTES = 4 * 2**20


class Cloning(NamedTuple):
    """A graph with clones, and what became of the N nodes of the original graph.

    Attributes:
      graph: the graph with clones.
      node_of: [N] the node of the new graph; None for a node that its clones replace.
      clones: consumer -> the nodes that are cloned into it; numbers of the original graph.
    """

    graph: Graph
    node_of: tuple[int | None, ...]
    clones: dict[int, set[int]]


def clone_inputs(graph: Graph, constants: Collection[int] = frozenset()) -> Graph:
    """Clones cheap side chains of inputs and constants into the nodes that consume them.

    The host feeds inputs and constants to every chip. A result that depends only on them (an
    attention mask, positional indices) therefore need not cross a link: each consumer can compute
    its own copy, as compilers do. If such a chain stayed as nodes, it would tie all its consumers
    to one chip, or its place would be arbitrary.

    A chain is a node v together with all nodes that v depends on. It has at most `_MAX_CHAIN`
    nodes, none of which

    - has a weight that is a parameter, a fixed chip, a colocation group or profiled seconds;
    - is a matrix product, a convolution, a sort or a loop (an outer product is allowed).

    The constants of a chain have at most `MAX_CONSTANT_BYTES` together, each once.

    The chain is cloned if all of these hold:

    1. It is a side chain: v has several consumers that are in no chain, or it has one, and this
       consumer also reads from a node that is in no chain. So the first operations of the main path
       stay nodes.
    2. It is cheap: all its nodes together access at most as many bytes as any one of these
       consumers. Where it has at most `_FEW_FLOPS` per element of its result, compilers make it one
       kernel: then the tensors that only its own nodes read do not count.

    Each consumer then gets the FLOPs of the chain in addition to its own, and nodes of the chain
    that no other node needs are removed. The bytes accessed of a consumer stay the same, because it
    still reads the result of the chain. Total FLOPs can grow by the clones. All parameters stay. A
    constant of a cloned chain gets the consumers of the chain, and loses the nodes that vanish.

    A consumer can be divided as before. Its clones count as shared out among the parts, although a
    part that needs all of a chain's result computes all of it: there are few FLOPs in a chain.

    Args:
      graph: the graph.
      constants: numbers of the weights that are constants; all others are parameters.
    """
    return cloned(graph, constants).graph


def cloned(graph: Graph, constants: Collection[int] = frozenset()) -> Cloning:
    """As `clone_inputs`; also says what became of each node."""
    chain = _input_chains(graph, frozenset(constants))
    users: list[set[int]] = [set() for _ in graph.nodes]
    on_chains_alone = [True] * len(graph.nodes)  # whether only nodes in chains feed it
    made: list[list[Tensor]] = [[] for _ in graph.nodes]
    for tensor in graph.tensors:
        made[tensor.producer].append(tensor)
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
        width = graph.element_bytes or 1
        elements = sum(k.bytes / (1 if k.fixed else width) for k in made[v])
        if sum(graph.nodes[u].flops for u in nodes) <= _FEW_FLOPS * elements:
            accessed -= _inner_bytes(nodes, made)
        if not main_path and all(accessed <= graph.nodes[q].bytes_accessed for q in outside):
            clones.update((v, q) for q in outside)
            for q in outside:
                members.setdefault(q, set()).update(nodes)
    if not clones:
        return Cloning(graph, tuple(range(len(graph.nodes))), {})
    nodes = list(graph.nodes)
    for q, copied in members.items():
        flops = nodes[q].flops + sum(graph.nodes[u].flops for u in copied)
        nodes[q] = msgspec.structs.replace(nodes[q], flops=flops)
    tensors = []
    number: dict[int, int] = {}  # tensor -> its number in the graph with clones
    for k, tensor in enumerate(graph.tensors):
        left = tuple(q for q in tensor.consumers if (tensor.producer, q) not in clones)
        if left or not tensor.consumers:
            number[k] = len(tensors)
            tensors.append(msgspec.structs.replace(tensor, consumers=left))
    read: list[set[int]] = [set() for _ in nodes]  # tensors that stay
    for k in number:
        for q in graph.tensors[k].consumers:
            if (graph.tensors[k].producer, q) not in clones:
                read[q].add(k)
    nodes = [
        with_divisions(node, renumbered(node.divide, {k: number[k] for k in read[v]}))
        for v, node in enumerate(nodes)
    ]
    weights = _handed_on(graph, members, frozenset(constants))
    cloned_graph = dataclasses.replace(
        graph, nodes=tuple(nodes), tensors=tuple(tensors), weights=tuple(weights)
    )
    new_number = {v: new for new, v in enumerate(_live_nodes(cloned_graph))}
    node_of = tuple(map(new_number.get, range(len(graph.nodes))))
    return Cloning(drop_dead(cloned_graph), node_of, members)


def _inner_bytes(nodes: Collection[int], made: Sequence[Sequence[Tensor]]) -> float:
    """Bytes that some nodes write and read between each other.

    Args:
      nodes: numbers of the nodes.
      made: [N] the tensors that each node of the graph produces.
    """
    inner = 0.0
    for u in nodes:
        for tensor in made[u]:
            readers = sum(q in nodes for q in tensor.consumers)
            inner += tensor.bytes * (readers + (0 < readers == len(tensor.consumers)))
    return inner


def _handed_on(
    graph: Graph, members: dict[int, set[int]], constants: frozenset[int]
) -> Iterable[Weight]:
    """The weights; the constants of a chain have its consumers as consumers too.

    Args:
      graph: the graph before cloning.
      members: consumer -> the nodes that are cloned into it.
      constants: numbers of the weights that are constants.
    """
    for w, weight in enumerate(graph.weights):
        if w not in constants:
            yield weight
            continue
        readers = set(weight.consumers)
        readers.update(q for q, copied in members.items() if not readers.isdisjoint(copied))
        yield msgspec.structs.replace(weight, consumers=tuple(sorted(readers)))


def drop_dead(graph: Graph) -> Graph:
    """Removes nodes from which no output can be reached, and weights that only they use.

    An output is a tensor without consumers. The nodes that are left keep their order and are
    renumbered without gaps.

    Raises:
      EmptyGraphError: no node reaches an output.
    """
    live = _live_nodes(graph)
    if len(live) == len(graph.nodes):
        return graph
    number = {v: new for new, v in enumerate(live)}

    def renumber(consumers: Iterable[int]) -> tuple[int, ...]:
        return tuple(number[q] for q in consumers if q in number)

    tensors = [
        k
        for k, tensor in enumerate(graph.tensors)
        if tensor.producer in number and _is_read(tensor.consumers, number)
    ]
    weights = [w for w, weight in enumerate(graph.weights) if _is_read(weight.consumers, number)]
    tensor_number = {k: new for new, k in enumerate(tensors)}
    weight_number = {w: new for new, w in enumerate(weights)}
    return dataclasses.replace(
        graph,
        nodes=tuple(
            with_divisions(node, renumbered(node.divide, tensor_number, weight_number))
            for node in (graph.nodes[v] for v in live)
        ),
        tensors=tuple(
            msgspec.structs.replace(
                tensor,
                producer=number[tensor.producer],
                consumers=renumber(tensor.consumers),
            )
            for tensor in (graph.tensors[k] for k in tensors)
        ),
        weights=tuple(
            msgspec.structs.replace(weight, consumers=renumber(weight.consumers))
            for weight in (graph.weights[w] for w in weights)
        ),
    )


def _is_read(consumers: Sequence[int], nodes: Collection[int]) -> bool:
    """Whether something is an output, or one of the nodes reads it."""
    return not consumers or any(q in nodes for q in consumers)


def _live_nodes(graph: Graph) -> list[int]:
    """The nodes from which an output can be reached, ascending."""
    made: list[list[Tensor]] = [[] for _ in graph.nodes]
    for tensor in graph.tensors:
        made[tensor.producer].append(tensor)
    live: set[int] = set()
    for v in reversed(range(len(graph.nodes))):
        if any(not k.consumers or not live.isdisjoint(k.consumers) for k in made[v]):
            live.add(v)
    return sorted(live)


def is_heavy(node: Node, elements: float) -> bool:
    """Whether a node is too expensive to be repeated for each consumer.

    An outer product (rotary positions) is a matrix product too, but with one multiplication for
    each element of its result: it is not heavy.

    Args:
      node: the node.
      elements: number of elements of its results.
    """
    return node.op in _HEAVY and node.flops > 2 * elements


def _input_chains(graph: Graph, constants: frozenset[int]) -> dict[int, frozenset[int]]:
    """The chain (see `clone_inputs`) of each node that has one.

    Args:
      graph: the graph.
      constants: numbers of the weights that are constants.
    """
    parents: list[set[int]] = [set() for _ in graph.nodes]
    made_bytes = [0.0] * len(graph.nodes)
    for tensor in graph.tensors:
        made_bytes[tensor.producer] += tensor.bytes
        for q in tensor.consumers:
            parents[q].add(tensor.producer)
    with_parameter: set[int] = set()
    held: dict[int, set[int]] = {}  # node -> the constants that it reads
    for w, weight in enumerate(graph.weights):
        if w not in constants:
            with_parameter.update(weight.consumers)
            continue
        for q in weight.consumers:
            held.setdefault(q, set()).add(w)
    chain: dict[int, frozenset[int]] = {}
    for v, node in enumerate(graph.nodes):
        heavy = is_heavy(node, made_bytes[v] / (graph.element_bytes or 1))
        constrained = (node.pin, node.colocate, node.seconds) != (None, None, None)
        if heavy or constrained or v in with_parameter:
            continue
        if not all(p in chain for p in parents[v]):
            continue
        nodes = frozenset((v,)).union(*(chain[p] for p in parents[v]))
        if len(nodes) > _MAX_CHAIN:
            continue
        brought = set().union(*(held.get(u, ()) for u in nodes))
        if math.fsum(graph.weights[w].bytes for w in brought) <= MAX_CONSTANT_BYTES:
            chain[v] = nodes
    return chain
