"""Contraction: groups of nodes become one node each."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxpart.errors import GraphError, InputError, PinError
from jaxpart.ingest.rewrite.groups import Groups
from jaxpart.problem.graph import Graph, Node, Tensor, Weight, from_unordered


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
