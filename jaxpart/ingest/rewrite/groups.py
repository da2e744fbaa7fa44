"""Groups of nodes that grow by joining: what contraction and fusion decide on."""

from __future__ import annotations

from jaxpart.problem.graph import Graph
from jaxpart.problem.topological import topological_order


class Groups:
    """A partition of a graph's nodes into groups, at first one node each.

    A group is called by one of its nodes. Joining a group with its only producer, or with its only
    consumer, never closes a cycle: a path that leaves the two and comes back would have to pass
    through that one itself. Neither does joining neighbours in a topological order.

    Attributes:
      producers: [N] groups that feed each block.
      consumers: [N] groups that each group feeds.
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
        """The group that holds node v."""
        while self._root[v] != v:
            self._root[v] = v = self._root[self._root[v]]
        return v

    def alive(self) -> list[int]:
        """All groups, in ascending number."""
        return [b for b, root in enumerate(self._root) if b == root]

    def of_nodes(self) -> list[int]:
        """[N] the block of each node."""
        return [self.find(v) for v in range(len(self._root))]

    def can_join(self, u: int, v: int) -> bool:
        """Whether group v is fed by u alone, or u feeds v alone: then joining closes no cycle."""
        return self.producers[v] == {u} or self.consumers[u] == {v}

    def join(self, b: int, into: int) -> None:
        """Block b becomes a part of group `into`."""
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

    def ordered(self) -> list[int]:
        """All groups in a topological order."""
        alive = self.alive()
        number = {b: i for i, b in enumerate(alive)}
        order = topological_order([[number[q] for q in sorted(self.consumers[b])] for b in alive])
        if order is None:
            raise AssertionError("joined blocks close a cycle")
        return [alive[i] for i in order]
