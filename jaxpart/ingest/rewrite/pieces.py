"""The graph with parts: its nodes, and the pieces that tensors and weights become."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from jaxpart.ingest.rewrite.cuts import Cut, Layout, tensor_layouts, weight_layouts
from jaxpart.ingest.rewrite.divisions import with_divisions
from jaxpart.ingest.rewrite.parts import (
    Pieces,
    accesses,
    further_divisions,
    join_node,
    part_node,
    share,
    unique_namer,
)
from jaxpart.ingest.rewrite.uses import Uses
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


class Piece(NamedTuple):
    """What a tensor or weight of the new graph is."""

    of: int  # number of the tensor or weight before
    label: str | None  # of the axis along which it was cut; None: it is whole
    start: Fraction  # share of the axis
    stop: Fraction
    kind: str = "value"  # "partial": one term of the value, or a sum of some; "copy"


class Rewrite:
    """Makes the graph with parts.

    Attributes:
      num_nodes: M, its number of nodes.
      parts_of, joins_of: as in `Split`.
      tensor_pieces, weight_pieces: as `Split.tensors` and `Split.weights`.
    """

    def __init__(self, graph: Graph, cuts: Mapping[int, Cut]) -> None:
        self.graph, self.cuts = graph, cuts
        self.layouts = tensor_layouts(graph, cuts)
        self.weight_layouts = weight_layouts(graph, cuts)
        self.uses = Uses.of(graph)
        self.parts_of: list[tuple[int, ...]] = []
        self.joins_of: dict[int, tuple[int, ...]] = {}
        self.num_nodes = 0
        self._number_nodes()
        self.tensors: list[Tensor] = []
        self.tensor_pieces: list[Piece] = []
        # By new node: tensor or weight before -> the pieces that it reads.
        self.read: list[dict[int, Pieces]] = [{} for _ in range(self.num_nodes)]
        self.held: list[dict[int, Pieces]] = [{} for _ in range(self.num_nodes)]
        self.partials: dict[int, list[int]] = collections.defaultdict(list)  # by new join
        self.weights: list[Weight] = []
        self.weight_pieces: list[Piece] = []
        for k in range(len(graph.tensors)):
            self._cut_tensor(k)
        for w in range(len(graph.weights)):
            self._cut_weight(w)

    def graph_with_parts(self) -> Graph:
        """The graph of M nodes."""
        return dataclasses.replace(
            self.graph,
            nodes=self._nodes(),
            tensors=tuple(self.tensors),
            weights=tuple(self.weights),
        )

    def _number_nodes(self) -> None:
        """Numbers nodes in their old order."""
        for v in range(len(self.graph.nodes)):
            cut = self.cuts.get(v)
            if cut is None:
                self.parts_of.append(self._next(1))
            else:
                self._number_parts(v, cut)

    def _number_parts(self, v: int, cut: Cut) -> None:
        """Numbers parts, with the sums of a chain behind each."""
        is_sum = cut.division.join is not None
        parts, joins = [], []
        for i in range(cut.parts):
            parts += self._next(1)
            if i and cut.is_chain:
                joins += self._next(1)
        if is_sum and not cut.is_chain:
            joins += self._next(1)
        self.parts_of.append(tuple(parts))
        if joins:
            self.joins_of[v] = tuple(joins)

    def _next(self, count: int) -> tuple[int, ...]:
        self.num_nodes += count
        return tuple(range(self.num_nodes - count, self.num_nodes))

    def _add_tensor(
        self, k: int, producer: int, position: int | None, consumers: Iterable[int], kind: str
    ) -> int:
        """Adds a piece of tensor k, or with position None all of it."""
        tensor, layout = self.graph.tensors[k], self.layouts[k]
        piece = _piece(k, layout, position, kind)
        size = (
            tensor.bytes if piece.label is None else share(tensor.bytes, (piece.start, piece.stop))
        )
        self.tensors.append(Tensor(producer, size, tuple(consumers), tensor.fixed))
        self.tensor_pieces.append(piece)
        return len(self.tensors) - 1

    def _cut_tensor(self, k: int) -> None:
        tensor, layout = self.graph.tensors[k], self.layouts[k]
        readers: list[list[int]] = [[] for _ in range(layout.pieces)]
        first = self._add_partials(k)
        for q in tensor.consumers:
            for i, x in enumerate(self.parts_of[q]):
                positions = self._positions(k, q, i)
                for position in positions:
                    readers[position].append(x)
                self.read[x][k] = Pieces(tuple(first + p for p in positions), positions)
        for position, consumers in enumerate(readers):
            self._add_tensor(k, self._maker(k, position), position, consumers, "value")

    def _positions(self, k: int, q: int, part: int) -> range:
        """The pieces of tensor k that a part of node q reads."""
        layout, cut = self.layouts[k], self.cuts.get(q)
        if cut is None or layout.label not in (label for n, label in cut.division.reads if n == k):
            return range(layout.pieces)
        return layout.within(cut.reads(part)) if layout.label is not None else range(1)

    def _maker(self, k: int, position: int) -> int:
        """The node that makes a piece of tensor k."""
        u = self.graph.tensors[k].producer
        cut, parts = self.cuts.get(u), self.parts_of[u]
        if cut is None:
            return parts[0]
        if cut.division.join is None:
            return parts[cut.part_at(self.layouts[k].places[position])]
        return self.joins_of[u][-1]

    def _add_partials(self, k: int) -> int:
        """Adds the partial results of tensor k, if it is a sum; the number of the next tensor."""
        u = self.graph.tensors[k].producer
        cut, parts = self.cuts.get(u), self.parts_of[u]
        if cut is not None and cut.division.join is not None:
            joins = self.joins_of[u]
            if cut.is_chain:
                terms = [(parts[0], joins[0])]
                for part, join, following in zip(parts[1:], joins, [*joins[1:], None], strict=True):
                    terms.append((part, join))
                    if following is not None:
                        terms.append((join, following))
            else:
                terms = [(part, joins[0]) for part in parts]
            for maker, join in terms:
                number = self._add_tensor(k, maker, None, (join,), "partial")
                self.partials[join].append(number)
        return len(self.tensors)

    def _cut_weight(self, w: int) -> None:
        weight, layout = self.graph.weights[w], self.weight_layouts[w]
        consumers: list[list[int]] = [[] for _ in range(layout.pieces)]
        first = len(self.weights)
        for q in weight.consumers:
            cut = self.cuts.get(q)
            label = None if cut is None else dict(cut.division.weights).get(w)
            for i, x in enumerate(self.parts_of[q]):
                positions = range(layout.pieces)
                if cut is not None and label is not None and label == layout.label:
                    positions = layout.within(cut.range_of(i))
                for position in positions:
                    consumers[position].append(x)
                self.held[x][w] = Pieces(tuple(first + p for p in positions), positions)
        for position, readers in enumerate(consumers):
            piece = _piece(w, layout, position, "value")
            size = (
                weight.bytes
                if piece.label is None
                else share(weight.bytes, (piece.start, piece.stop))
            )
            self.weights.append(Weight(size, tuple(readers), weight.fixed))
            self.weight_pieces.append(piece)

    def _nodes(self) -> tuple[Node, ...]:
        nodes: list[Node | None] = [None] * self.num_nodes
        graph = self.graph
        unique = unique_namer(node.name for v, node in enumerate(graph.nodes) if v not in self.cuts)
        for v, node in enumerate(graph.nodes):
            cut = self.cuts.get(v)
            if cut is None:
                (x,) = self.parts_of[v]
                nodes[x] = with_divisions(node, self._further(v, 0, x))
                continue
            found = accesses(graph, self.uses, v, cut.division)
            for i, x in enumerate(self.parts_of[v]):
                name = unique(f"{node.name}/part{i}of{cut.parts}")
                nodes[x] = part_node(node, found, cut, i, name, self._further(v, i, x))
            joins = self.joins_of.get(v, ())
            results = [graph.tensors[k] for k in self.uses.made[v]]
            width = graph.element_bytes or 1
            for j, x in enumerate(joins):
                name = unique(f"{node.name}/sum" + (f"{j + 1}" if len(joins) > 1 else ""))
                terms = 2 if len(joins) > 1 else len(self.parts_of[v])
                divide = self._join_divisions(v, x, is_last=j == len(joins) - 1)
                nodes[x] = join_node(node, name, results, terms, width, divide)
        return tuple(node for node in nodes if node is not None)

    def _further(self, v: int, part: int, x: int) -> tuple[Division, ...]:
        if not self.graph.nodes[v].divide:
            return ()
        return further_divisions(
            self.graph.nodes[v],
            self.cuts.get(v),
            part,
            [self.layouts[k] for k in self.uses.made[v]],
            {k: (self.layouts[k], pieces) for k, pieces in self.read[x].items()},
            {w: (self.weight_layouts[w], pieces) for w, pieces in self.held[x].items()},
        )

    def _join_divisions(self, v: int, x: int, *, is_last: bool) -> tuple[Division, ...]:
        """A sum can be divided along every axis of its results along which they are whole."""
        layouts = [self.layouts[k] for k in self.uses.made[v]]
        in_pieces = {layout.label for layout in layouts if is_last and layout.pieces > 1}
        return tuple(
            Division(d.ways, d.axis, reads=tuple((k, d.axis) for k in self.partials[x]))
            for d in self.graph.nodes[v].divide
            if d.join is None and d.axis not in in_pieces
        )


def _piece(number: int, layout: Layout, position: int | None, kind: str) -> Piece:
    if position is None or layout.pieces == 1:
        return Piece(number, None, Fraction(0), Fraction(1), kind)
    start, stop = layout.places[position], layout.places[position + 1]
    return Piece(number, layout.label, start, stop, kind)
