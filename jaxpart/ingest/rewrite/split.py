"""Splits operations into parts. `jaxpart.split` chooses which; this is the rewrite itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

from jaxpart.errors import InputError
from jaxpart.ingest.rewrite.cuts import Cut, Request, resolved
from jaxpart.ingest.rewrite.pieces import Piece, Rewrite
from jaxpart.problem.graph import Graph


@dataclasses.dataclass(frozen=True)
class Split:
    """A graph of which operations were split: from N nodes to M.

    Attributes:
      original: the graph before.
      graph: the graph with parts, joins (op "sum"); copies (op "copy") if `relayed`.
      cuts: how nodes were split, by number before.
      parts_of: [N] the nodes that do the work of each node before: its parts, or itself.
      joins_of: the joins of the nodes before that have some, in the order of their parts.
      passes: copies that `relayed` added for a partition.
      whole_of: [M] the node before; None for joins and copies.
      tensors: what each tensor of the new graph is.
      weights: what each weight is.
    """

    original: Graph
    graph: Graph
    cuts: Mapping[int, Cut]
    parts_of: tuple[tuple[int, ...], ...]
    joins_of: Mapping[int, tuple[int, ...]]
    whole_of: tuple[int | None, ...]
    tensors: tuple[Piece, ...]
    weights: tuple[Piece, ...]
    passes: tuple[int, ...] = ()

    def extended(self, assignment: Sequence[int]) -> tuple[int, ...]:
        """The partition of the new graph that leaves everything where it is.

        Parts and joins are on the chip of the whole. The boundary of each chip and its weights stay
        the same. Compute grows by what parts read again and by joins; the peak of live activations
        by partial results alone.

        Args:
          assignment: [N] chip of each node before.

        Returns:
          [M] chip of each node.

        Raises:
          InputError: `assignment` does not have one chip for each node.
        """
        _check_unrelayed(self)
        _check_length(assignment, self.original)
        chips = [0] * len(self.graph.nodes)
        for v, chip in enumerate(assignment):
            for x in (*self.parts_of[v], *self.joins_of.get(v, ())):
                chips[x] = chip
        return tuple(chips)

    def carried(self, other: Split, assignment: Sequence[int]) -> tuple[int, ...]:
        """A partition of another split of the same graph, carried over to this one.

        A part goes to the chip on which its first slice is. Where each part here is within one part
        there, along the same axis, no tensor goes between two chips that did not send to each other
        before.

        Args:
          other: the other split.
          assignment: of its graph, one chip for each node.

        Returns:
          [M] chip of each node.

        Raises:
          InputError: the original graphs differ, or `assignment` does not fit `other`.
        """
        if self.original != other.original:
            raise InputError("split: the partition is of another graph, expected the same one")
        for one in (self, other):
            _check_unrelayed(one)
        _check_length(assignment, other.graph)
        chips = [0] * len(self.graph.nodes)
        for v, parts in enumerate(self.parts_of):
            before = [other.place_of(v, place) for place in self._starts(v)]
            for x, i in zip(parts, before, strict=True):
                chips[x] = assignment[other.parts_of[v][i]]
            joins, old = self.joins_of.get(v, ()), other.joins_of.get(v, ())
            for j, x in enumerate(joins):
                i = before[j + 1] if len(joins) > 1 else len(other.parts_of[v]) - 1
                if old and (i or len(joins) == 1):
                    chips[x] = assignment[old[min(i, len(old)) - 1]]
                else:  # a sum within what was one part
                    chips[x] = assignment[other.parts_of[v][i]]
        return tuple(chips)

    def joined(self, assignment: Sequence[int]) -> tuple[Split, tuple[int, ...]]:
        """Makes neighbouring parts on one chip one part again.

        Compute is never more. The peak of live activations may be, since a longer part has all its
        results at once: whoever reports the outcome checks it, and keeps the parts if it is not
        valid.

        Args:
          assignment: [M] chip of each node.

        Returns:
          The split with fewer parts, and the same partition of it.

        Raises:
          InputError: `assignment` does not have one chip for each node.
        """
        _check_unrelayed(self)
        _check_length(assignment, self.graph)
        cuts: dict[int, Request | Cut] = {}
        for v, cut in self.cuts.items():
            places = self._joined_places(v, cut, assignment)
            if len(places) > 2:
                cuts[v] = cut._replace(places=places)
        joined = split(self.original, cuts)
        return joined, joined.carried(self, assignment)

    def place_of(self, v: int, place: Fraction) -> int:
        """Which part of node v (before) has a place on the axis that was cut."""
        return self.cuts[v].part_at(place) if v in self.cuts else 0

    def _starts(self, v: int) -> list[Fraction]:
        if v not in self.cuts:
            return [Fraction(0)]
        cut = self.cuts[v]
        return [cut.range_of(i)[0] for i in range(cut.parts)]

    def _joined_places(self, v: int, cut: Cut, assignment: Sequence[int]) -> tuple[int, ...]:
        chips = [assignment[x] for x in self.parts_of[v]]
        sums = [assignment[x] for x in self.joins_of.get(v, ())]
        firsts = [0]  # the first part of each run
        for i in range(1, cut.parts):
            first = firsts[-1]
            same = chips[i] == chips[first]
            if cut.is_chain:  # the sums within a run become part of it
                before = sums[first - 1] if first else chips[0]
                same = same and sums[i - 1] == before
            if not same:
                firsts.append(i)
        if len(firsts) == 1 and sums and sums[-1] != chips[0]:
            return cut.places
        return (*(cut.places[i] for i in firsts), cut.division.ways)


def split(graph: Graph, requests: Mapping[int, Request | Cut]) -> Split:
    """Splits nodes of a graph into parts.

    A node is divided along an axis in `ways` slices (`problem/division.py`). Each of its k parts is
    a run of slices; the first `ways mod k` parts are one slice longer.

    - Parts share the FLOPs and seconds, the results, and the operands and weights that the division
      divides. Each part reads the rest whole. It accesses its share of the one and the whole of the
      other.
    - A tensor that is written or read in parts becomes one tensor for each piece that some part
      writes or reads alone, and so does a weight. Whoever reads it whole reads all pieces. A part
      with a halo reads the pieces on either side too.
    - With `join: "sum"` each part makes a result of the whole size. An added node of op "sum" adds
      them, with one FLOP for each addition; a chain of such nodes, each of which adds one more, if
      the request says so.
    - Operations that are cut along axes of the same label, or read the same weight so, are cut at
      the same places (`Request`).

    Sums over parts and pieces (FLOPs, seconds, bytes of tensors and weights) are exactly those of
    the graph before, see `parts.share`. Nodes keep their order, with a node's parts in its place.
    So on one chip the peak of live activations is that of the graph before at most, plus partial
    results.

    Args:
      graph: the graph.
      requests: how to split each node that is split, by its number.

    Raises:
      InputError: a request does not fit the graph: no such node or division, more parts than
        slices, a node in a colocation group, or a part that cannot be divided further.
    """
    cuts = resolved(graph, requests)
    made = Rewrite(graph, cuts)
    whole_of: list[int | None] = [None] * made.num_nodes
    for v, parts in enumerate(made.parts_of):
        for x in parts:
            whole_of[x] = v
    return Split(
        graph,
        made.graph_with_parts(),
        cuts,
        tuple(made.parts_of),
        made.joins_of,
        tuple(whole_of),
        tuple(made.tensor_pieces),
        tuple(made.weight_pieces),
    )


def _check_unrelayed(made: Split) -> None:
    if made.passes:
        raise InputError("split: has copies for one partition, expected the split before `relayed`")


def _check_length(assignment: Sequence[int], graph: Graph) -> None:
    if len(assignment) != len(graph.nodes):
        raise InputError(f"assignment has {len(assignment)} entries, expected {len(graph.nodes)}")
