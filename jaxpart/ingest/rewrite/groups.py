"""Groups of nodes that grow by joining, for contraction and fusion."""

from __future__ import annotations

from jaxpart.problem.graph import Graph


class Groups:
    """Disjoint groups of the nodes of a graph; at first, each node is a group.

    The number of a group is the number of one of its nodes. A join of groups u and v closes a cycle
    only if a path between u and v passes through a third group. There is no such path

    - if v is the only consumer of u: every path out of u goes directly to v;
    - if u is the only producer of v: every path into v comes directly from u;
    - if u and v are neighbours in a topological order: no group comes between them.

    Attributes:
      producers: [N] the groups that feed each group.
      consumers: [N] the groups that each group feeds.
    """

    def __init__(self, graph: Graph) -> None:
        self._root = list(range(len(graph.nodes)))
        self.producers: list[set[int]] = [set() for _ in graph.nodes]
        self.consumers: list[set[int]] = [set() for _ in graph.nodes]
        for tensor in graph.tensors:
            self.consumers[tensor.producer].update(tensor.consumers)
            for q in tensor.consumers:
                self.producers[q].add(tensor.producer)

    def find(self, v: int) -> int:
        """The group of node v."""
        while self._root[v] != v:
            self._root[v] = v = self._root[self._root[v]]
        return v

    def alive(self) -> list[int]:
        """The numbers of all groups, ascending."""
        return [b for b, root in enumerate(self._root) if b == root]

    def of_nodes(self) -> list[int]:
        """[N] the group of each node."""
        return [self.find(v) for v in range(len(self._root))]

    def join(self, b: int, into: int) -> None:
        """Merges group `b` into group `into`."""
        self._root[b] = into
        for p in self.producers[b]:
            self.consumers[p].discard(b)
        for q in self.consumers[b]:
            self.producers[q].discard(b)
        self.producers[into] = (self.producers[into] | self.producers[b]) - {b, into}
        self.consumers[into] = (self.consumers[into] | self.consumers[b]) - {b, into}
        self.producers[b] = set()
        self.consumers[b] = set()
        for p in self.producers[into]:
            self.consumers[p].add(into)
        for q in self.consumers[into]:
            self.producers[q].add(into)
