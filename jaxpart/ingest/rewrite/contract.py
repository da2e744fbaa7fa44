"""Graph to graph: pure functions that change what the nodes are, not what the graph computes."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from jaxpart.errors import GraphError, InputError, PinError
from jaxpart.ingest.rewrite.groups import Groups
from jaxpart.problem.graph import Graph, Node, Tensor, Weight, from_unordered

# Operations whose work is more than a few FLOPs per element: never recomputed for each consumer.
# fmt: off
_HEAVY = frozenset(
    [
        "dot_general", "conv_general_dilated", "ragged_dot_general", "scan", "while", "cond",
        "sort", "top_k", "fft", "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN",
        "Loop", "Scan", "If",
    ]
)
# fmt: on
_MAX_CLONE = 64  # nodes


def clone_inputs(graph: Graph) -> Graph:
    """Clones cheap side chains of inputs and constants into the nodes that consume them.

    Inputs are fed by the host to every chip, so what is computed from them alone (an attention
    mask, positional indices) need not cross a link: each consumer can compute its own, as compilers
    do. Kept as nodes, such a chain either ties all its consumers to one chip or drifts freely.

    A chain is a node without weights, together with all nodes that it depends on, if those are all
    such nodes and at most 64. It is cloned into its consumers (its nodes vanish, and their FLOPs
    are added to each) if

    - it is a side chain: it has several consumers outside, or its only one also depends on
      the rest of the graph. The first operations of the main path stay nodes;
    - it is cheap: no matrix product, convolution, sort or loop in it, and its nodes access no more
      bytes together than each of the consumers does by itself.

    A node's bytes_accessed stays what it was: it still reads the chain's result, now its own.
    Total FLOPs can grow, by the clones alone; weights stay. A chain with a pinned, colocated or
    profiled node stays.
    """
    chain = _input_chains(graph)
    users: list[set[int]] = [set() for _ in graph.nodes]
    on_chains_alone = [True] * len(graph.nodes)  # no node outside the chains feeds it
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
            tensors.append(Tensor(tensor.producer, tensor.bytes, left))
    return drop_dead(dataclasses.replace(graph, nodes=tuple(nodes), tensors=tuple(tensors)))


def drop_dead(graph: Graph) -> Graph:
    """Drops nodes from which no output can be reached, and the weights that only they use.

    An output is a tensor without consumers; a node without tensors makes none. Numbers close up, in
    the same order.

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
        Tensor(number[k.producer], k.bytes, renumber(k.consumers))
        for k in graph.tensors
        if k.producer in live and (not k.consumers or not live.isdisjoint(k.consumers))
    )
    weights = (
        Weight(w.bytes, renumber(w.consumers))
        for w in graph.weights
        if not w.consumers or not live.isdisjoint(w.consumers)
    )
    nodes = tuple(graph.nodes[v] for v in sorted(live))
    return dataclasses.replace(graph, nodes=nodes, tensors=tuple(tensors), weights=tuple(weights))


class Contraction(NamedTuple):
    """A smaller graph, and the node of it that stands for each of the original's.

    Attributes:
      graph: the contracted graph.
      node_of: [N] for each node of the original, the number of its group's node.
    """

    graph: Graph
    node_of: tuple[int, ...]

    def expand(self, assignment: Sequence[int]) -> tuple[int, ...]:
        """[N] the original's partition that an assignment of the contracted graph stands for.

        Every chip sends, receives and holds the same tensors and weights in both, and every link
        carries the same. Compute is the same where nodes are profiled, or where all of a group are
        bound by the same of arithmetic and SRAM, and else no less in the original. The peak of live
        activations can differ: a group's tensors all live while it runs, and none within it.

        Raises:
          InputError: not one chip for each node of the contracted graph.
        """
        if len(assignment) != len(self.graph.nodes):
            raise InputError(
                f"assignment has {len(assignment)} entries, expected {len(self.graph.nodes)}"
            )
        return tuple(assignment[b] for b in self.node_of)


def contract(graph: Graph, group: Sequence[int]) -> Contraction:
    """Merges the nodes of each group into one.

    FLOPs, bytes accessed and profiled seconds of a group are the sums over its nodes; what its
    nodes hand to each other alone is no tensor any more; weights stay. The new node is called after
    the group's first, and its op is the common one, or "fused". Colocation groups that meet in a
    group become one.

    Args:
      graph: the graph.
      group: [N] group of each node; any integers, equal ones are merged.

    Raises:
      InputError: not one group for each node.
      CycleError: the groups depend on each other in a circle.
      PinError: nodes of one group, or of one colocation group that it joins, are pinned apart.
      GraphError: a group has profiled nodes and others.
    """
    if len(group) != len(graph.nodes):
        raise InputError(f"group has {len(group)} entries, expected {len(graph.nodes)}")
    position: dict[int, int] = {}
    members: list[list[Node]] = []
    of_node = []
    for node, label in zip(graph.nodes, group, strict=True):
        b = position.setdefault(int(label), len(members))
        if b == len(members):
            members.append([])
        members[b].append(node)
        of_node.append(b)
    joined = _joined_groups(members)
    tensors = []
    for tensor in graph.tensors:
        b = of_node[tensor.producer]
        outside = {of_node[q] for q in tensor.consumers} - {b}
        if outside or not tensor.consumers:
            tensors.append(Tensor(b, tensor.bytes, tuple(outside)))
    weights = [Weight(w.bytes, tuple({of_node[q] for q in w.consumers})) for w in graph.weights]
    nodes = [_merged(part, joined) for part in members]
    small = from_unordered(nodes, tensors, weights, graph.name, graph.element_bytes)
    number = {node.name: new for new, node in enumerate(small.nodes)}
    return Contraction(small, tuple(number[members[b][0].name] for b in of_node))


def contract_to(graph: Graph, size: int) -> Contraction:
    """Merges neighbours until at most `size` nodes are left, those with the least work first.

    Work is a node's share of all FLOPs plus its share of all bytes accessed. A node joins its only
    producer or its only consumer; where there is no such pair, its neighbour in a topological
    order. Nodes that are pinned, or profiled, join their like alone: more than `size` may be left.

    Raises:
      InputError: size is below 1.
    """
    if size < 1:
        raise InputError(f"size is {size}, expected 1 or more")
    groups = Groups(graph)
    all_bytes = math.fsum(node.bytes_accessed for node in graph.nodes) or 1.0
    all_flops = graph.total_flops or 1.0
    work = [v.flops / all_flops + v.bytes_accessed / all_bytes for v in graph.nodes]
    kind = [(node.pin, node.seconds is None) for node in graph.nodes]
    left = len(graph.nodes)
    heap: list[tuple[float, int, int]] = []

    def push(u: int, v: int) -> None:
        if kind[u] == kind[v] and groups.can_join(u, v):
            heapq.heappush(heap, (work[u] + work[v], u, v))

    def join(u: int, v: int) -> None:
        groups.join(v, u)
        work[u] += work[v]
        for p in groups.producers[u]:
            push(p, u)
        for q in groups.consumers[u]:
            push(u, q)

    for u in range(left):
        for v in groups.consumers[u]:
            push(u, v)
    while left > size:
        while heap and left > size:
            total, u, v = heapq.heappop(heap)
            is_current = v in groups.consumers[u] and total == work[u] + work[v]
            if is_current and groups.can_join(u, v):
                join(u, v)
                left -= 1
        order = groups.ordered()
        pairs = [(u, v) for u, v in itertools.pairwise(order) if kind[u] == kind[v]]
        if left <= size or not pairs:
            break
        join(*min(pairs, key=lambda pair: work[pair[0]] + work[pair[1]]))
        left -= 1
    return contract(graph, groups.of_nodes())


def _input_chains(graph: Graph) -> dict[int, frozenset[int]]:
    """For each node that depends on inputs alone: itself and all nodes that it depends on."""
    parents: list[set[int]] = [set() for _ in graph.nodes]
    made_bytes = [0.0] * len(graph.nodes)
    for tensor in graph.tensors:
        made_bytes[tensor.producer] += tensor.bytes
        for q in tensor.consumers:
            parents[q].add(tensor.producer)
    weighted = {q for weight in graph.weights for q in weight.consumers}
    chain: dict[int, frozenset[int]] = {}
    for v, node in enumerate(graph.nodes):
        # An outer product (rotary positions) is a dot_general, yet one multiplication per element.
        elements = made_bytes[v] / (graph.element_bytes or 1)
        heavy = node.op in _HEAVY and node.flops > 2 * elements
        fixed = (node.pin, node.colocate, node.seconds) != (None, None, None)
        if heavy or fixed or v in weighted or not all(p in chain for p in parents[v]):
            continue
        nodes = frozenset((v,)).union(*(chain[p] for p in parents[v]))
        if len(nodes) <= _MAX_CLONE:
            chain[v] = nodes
    return chain


def _joined_groups(members: Sequence[Sequence[Node]]) -> dict[int, int]:
    """Colocation group -> the one that stands for it once groups within a group are joined."""
    root: dict[int, int] = {}

    def find(g: int) -> int:
        while root.setdefault(g, g) != g:
            g = root[g]
        return g

    for part in members:
        groups = [find(node.colocate) for node in part if node.colocate is not None]
        for g in groups[1:]:
            root[find(g)] = find(groups[0])
    return {g: find(g) for g in root}


def _merged(part: Sequence[Node], group: dict[int, int]) -> Node:
    first = part[0]
    if len(part) == 1 and first.colocate is None:
        return first
    pins = {node.pin for node in part if node.pin is not None}
    if len(pins) > 1:
        raise PinError(f"the group of {first.name!r} has nodes fixed to chips {sorted(pins)}")
    profiled = [node.seconds for node in part if node.seconds is not None]
    if 0 < len(profiled) < len(part):
        raise GraphError(
            f"the group of {first.name!r} mixes profiled nodes with others, expected either"
        )
    colocate = next((group[v.colocate] for v in part if v.colocate is not None), None)
    return Node(
        name=first.name,
        op=first.op if len({node.op for node in part}) == 1 else "fused",
        flops=sum(node.flops for node in part),
        bytes_accessed=sum(node.bytes_accessed for node in part),
        seconds=sum(profiled) if profiled else None,
        colocate=colocate,
        pin=next(iter(pins), None),
    )
