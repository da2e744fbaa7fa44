"""An order in which parts that are cut along one axis run lane by lane."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence
from fractions import Fraction

import msgspec

from jaxpart.ingest.rewrite.split import Split
from jaxpart.ingest.rewrite.uses import Uses
from jaxpart.problem.graph import Graph, Node, Tensor


def lane_order(made: Split) -> list[int]:
    """[M] an order of the nodes in which parts that are cut along one axis run lane by lane.

    `split` leaves a node's parts in its place: all parts of one layer, then all of the next. Here a
    part runs as soon as what it reads is there, so that rows go through several layers before the
    next ones start. Cuts of this order keep the lanes together: little more than the rows at their
    borders goes from chip to chip. On one chip the peak of live activations can be larger.
    """
    graph = made.graph
    successors: list[set[int]] = [set() for _ in graph.nodes]
    waiting = [0] * len(graph.nodes)
    for u, v in {(k.producer, q) for k in graph.tensors for q in k.consumers}:
        successors[u].add(v)
        waiting[v] += 1
    home, start = _homes(made)
    stretch = _stretches(made)
    keys = [(stretch[home[x]], start[x], x) for x in range(len(graph.nodes))]
    queue = [keys[x] for x, count in enumerate(waiting) if not count]
    heapq.heapify(queue)
    order: list[int] = []
    while queue:
        x = heapq.heappop(queue)[2]
        order.append(x)
        for y in successors[x]:
            waiting[y] -= 1
            if not waiting[y]:
                heapq.heappush(queue, keys[y])
    return order


def renumbered(
    made: Split,
    order: Sequence[int],
    nodes: Sequence[Node] | None = None,
    tensors: Sequence[Tensor] | None = None,
) -> Split:
    """The same split with its nodes in another topological order.

    Args:
      made: the split.
      order: [M] the nodes in their new order.
      nodes: [M] what takes the place of the graph's nodes.
      tensors: what takes the place of its tensors.
    """
    number = [0] * len(order)
    for new, old in enumerate(order):
        number[old] = new

    def of(values: Iterable[int]) -> tuple[int, ...]:
        return tuple(number[x] for x in values)

    graph = made.graph
    nodes = graph.nodes if nodes is None else nodes
    tensors = graph.tensors if tensors is None else tensors
    return dataclasses.replace(
        made,
        graph=dataclasses.replace(
            graph,
            nodes=tuple(nodes[x] for x in order),
            tensors=tuple(
                Tensor(number[k.producer], k.bytes, of(k.consumers), k.fixed) for k in tensors
            ),
            weights=tuple(
                msgspec.structs.replace(w, consumers=of(w.consumers)) for w in graph.weights
            ),
        ),
        parts_of=tuple(of(parts) for parts in made.parts_of),
        joins_of={v: of(joins) for v, joins in made.joins_of.items()},
        passes=of(made.passes),
        whole_of=tuple(made.whole_of[x] for x in order),
    )


def _homes(made: Split) -> tuple[list[int], list[Fraction]]:
    """By new node: the node before in whose place it stands, and where its lane starts."""
    graph = made.graph
    home, start = [0] * len(graph.nodes), [Fraction(0)] * len(graph.nodes)
    for v, parts in enumerate(made.parts_of):
        joins = made.joins_of.get(v, ())
        for x in (*parts, *joins):
            home[x] = v
        if v in made.cuts:
            for i, x in enumerate(parts):
                start[x] = made.cuts[v].range_of(i)[0]
            for x in joins:
                start[x] = Fraction(1)
    return home, start


def _stretches(made: Split) -> list[int]:
    """[N] by node before: the stretch of neighbours, cut along one axis, that lanes go through."""
    graph: Graph = made.original
    read = Uses.of(graph).read
    stretches: list[int] = []
    for v in range(len(graph.nodes)):
        cut = made.cuts.get(v)
        labels = {} if cut is None else dict(cut.division.reads)
        linked = False
        for k in read[v]:
            u = graph.tensors[k].producer
            maker = made.cuts.get(u)
            if maker is not None and maker.division.join is None and stretches[u] == stretches[-1]:
                linked = linked or labels.get(k) == maker.division.axis
        stretches.append(stretches[-1] if linked else len(stretches))
    return stretches
