"""Which node reads, makes and holds what."""

from __future__ import annotations

from typing import NamedTuple

from jaxpart.problem.graph import Graph


class Uses(NamedTuple):
    """What each of the N nodes reads, makes and holds; numbers of tensors and weights."""

    read: list[list[int]]
    made: list[list[int]]
    held: list[list[int]]

    @classmethod
    def of(cls, graph: Graph) -> Uses:
        """The uses of a graph."""
        uses = cls(*([[] for _ in graph.nodes] for _ in range(3)))
        for k, tensor in enumerate(graph.tensors):
            uses.made[tensor.producer].append(k)
            for q in tensor.consumers:
                uses.read[q].append(k)
        for w, weight in enumerate(graph.weights):
            for q in weight.consumers:
                uses.held[q].append(w)
        return uses
