"""Contraction: merges each group of nodes into one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxpart.errors import GraphError, InputError, PinError
from jaxpart.ingest.rewrite.divisions import Composer, renumbered, with_divisions
from jaxpart.problem.graph import Graph, Node, Tensor, Weight, from_unordered


class Contraction(NamedTuple):
    """A contracted graph, and the map from the N nodes of the original graph to its M nodes.

    Attributes:
      graph: the contracted graph.
      node_of: [N] for each node of the original graph, the node of the contracted graph.
    """

    graph: Graph
    node_of: tuple[int, ...]

    def expand(self, assignment: Sequence[int]) -> tuple[int, ...]:
        """Expands an assignment of the contracted graph to the original graph.

        The costs of the two partitions compare as follows:

        - Tensors sent and received, link loads and weights are the same.
        - Compute is the same if nodes are profiled, or if all nodes of a group are limited by the
          same resource (arithmetic or SRAM bandwidth). Otherwise the original needs at least as
          much, since a sum of maxima is at least the maximum of the sums.
        - The peak of live activations can differ. In the contracted graph all tensors that a group
          hands on are live while it runs, and its inner tensors do not exist.

        Args:
          assignment: [M] chip of each node of the contracted graph.

        Returns:
          [N] chip of each node of the original graph.

        Raises:
          InputError: `assignment` does not have one chip for each node of the contracted graph.
        """
        if len(assignment) != len(self.graph.nodes):
            raise InputError(
                f"assignment has {len(assignment)} entries, expected {len(self.graph.nodes)}"
            )
        return tuple(assignment[b] for b in self.node_of)


def contract(graph: Graph, group: Sequence[int]) -> Contraction:
    """Merges the nodes of each group into one node.

    - FLOPs, bytes accessed and profiled seconds of the new node are the sums over the group.
    - Tensors that only the group itself consumes are removed. All weights stay.
    - The name is that of the group's first node. The op is that of all nodes if they have the same,
      else "fused".
    - The new node can be divided along an axis if all nodes of the group with FLOPs can, and if
      what they hand to each other is written as it is read.
    - If a group has nodes of several colocation groups, these colocation groups become one.

    Args:
      graph: of N nodes.
      group: [N] group of each node; any integers. Nodes with equal integers are merged.

    Raises:
      InputError: `group` does not have one group for each node.
      CycleError: the groups depend on each other in a cycle.
      PinError: nodes of one group, or of one merged colocation group, have different fixed chips.
      GraphError: a group has nodes with profiled seconds and nodes without.
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
    kept: dict[int, int] = {}  # tensor -> its number in the contracted graph
    for k, tensor in enumerate(graph.tensors):
        b = of_node[tensor.producer]
        outside = {of_node[q] for q in tensor.consumers} - {b}
        if outside or not tensor.consumers:
            kept[k] = len(tensors)
            tensors.append(Tensor(b, tensor.bytes, tuple(outside), tensor.fixed))
    weights = [
        Weight(w.bytes, tuple({of_node[q] for q in w.consumers}), w.fixed) for w in graph.weights
    ]
    numbers: list[list[int]] = [[] for _ in members]
    for v, b in enumerate(of_node):
        numbers[b].append(v)
    composer = Composer(graph)
    nodes = [
        with_divisions(_merged(part, joined), renumbered(composer.divisions(group), kept))
        for part, group in zip(members, numbers, strict=True)
    ]
    small = from_unordered(nodes, tensors, weights, graph.name, graph.element_bytes)
    number = {node.name: new for new, node in enumerate(small.nodes)}
    return Contraction(small, tuple(number[members[b][0].name] for b in of_node))


def _joined_groups(members: Sequence[Sequence[Node]]) -> dict[int, int]:
    """Joins colocation groups that have nodes in the same group.

    Returns:
      Colocation group -> the number of the joined colocation group.
    """
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
    chips = {node.pin for node in part if node.pin is not None}
    if len(chips) > 1:
        raise PinError(f"the group of {first.name!r} has nodes fixed to chips {sorted(chips)}")
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
        fixed_bytes=sum(node.fixed_bytes for node in part),
        seconds=sum(profiled) if profiled else None,
        colocate=colocate,
        pin=next(iter(chips), None),
    )
