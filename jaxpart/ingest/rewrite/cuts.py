"""Where operations, tensors and weights are cut when operations are split.

A place on an axis is a fraction of its length, from 0 to 1, so that operations with different
numbers of slices can be compared exactly.
"""

from __future__ import annotations

import bisect
import collections
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from jaxpart.errors import InputError
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node

Range = tuple[Fraction, Fraction]  # from where to where on an axis
_FINEST = 4096  # denominator of a halo
_ALL: Range = (Fraction(0), Fraction(1))


class Request(NamedTuple):
    """How to split an operation."""

    division: int | str  # position in `Node.divide`, or label of the axis (its first division)
    parts: int
    chain: bool = False  # whether a join adds one partial result at a time


class Cut(NamedTuple):
    """How an operation is split: the slices of its k parts."""

    division: Division
    places: tuple[int, ...]  # [k + 1] the first slice of each part, and the number of slices
    chain: bool = False  # as in `Request`

    @property
    def parts(self) -> int:
        """The number of parts."""
        return len(self.places) - 1

    @property
    def is_chain(self) -> bool:
        """Whether partial results are summed one by one."""
        return self.chain and self.division.join is not None

    def range_of(self, part: int) -> Range:
        """The part's share of the axis."""
        return _range(self.places[part], self.places[part + 1], self.division.ways, 0)

    def reads(self, part: int) -> Range:
        """The share of the axis that the part reads of divided tensors, with its halo."""
        division = self.division
        return _range(self.places[part], self.places[part + 1], division.ways, division.halo)

    def part_at(self, place: Fraction) -> int:
        """The part whose share holds a place."""
        return bisect.bisect_right(self.places, place * self.division.ways) - 1


@functools.lru_cache(2**16)  # fractions take long to make, and parts along one axis are alike
def _range(start: int, stop: int, ways: int, halo: float) -> Range:
    """From one slice to another of an axis, and so many slices beside them."""
    # 4/9 of a slice, say: its binary fraction would leave slivers between pieces.
    beside = Fraction(halo).limit_denominator(_FINEST) / ways if halo else Fraction(0)
    first, last = Fraction(start, ways) - beside, Fraction(stop, ways) + beside
    return max(first, Fraction(0)), min(last, Fraction(1))


class Layout(NamedTuple):
    """The pieces that a tensor or weight becomes."""

    label: str | None  # of the axis that is cut; None: one piece
    places: tuple[Fraction, ...]  # [P + 1] where pieces begin, and 1

    @property
    def pieces(self) -> int:
        """The number of pieces."""
        return len(self.places) - 1

    def within(self, span: Range) -> range:
        """The pieces that overlap a range of the axis."""
        start, stop = span
        first = bisect.bisect_right(self.places, start) - 1
        return range(first, bisect.bisect_left(self.places, stop))


WHOLE = Layout(None, _ALL)


def resolved(graph: Graph, requests: Mapping[int, Request | Cut]) -> dict[int, Cut]:
    """Places of the cuts of each requested operation.

    Operations that write or read a tensor, or read a weight, along axes of the same label are cut
    at common places where they have as many: those of the greatest common divisor of their ways.

    Args:
      graph: the graph.
      requests: by node number. A `Cut` has its places already.

    Raises:
      InputError: a node cannot be split, or not so.
    """
    chosen: dict[int, tuple[Division, Request]] = {}
    cuts: dict[int, Cut] = {}
    for v, request in sorted(requests.items()):
        if not 0 <= v < len(graph.nodes):
            raise InputError(f"split: node {v}, expected 0 to {len(graph.nodes) - 1}")
        node = graph.nodes[v]
        where = f"split: node {v} ({node.name!r})"
        if isinstance(request, Cut):
            _check_cut(request, node, where)
            cuts[v] = request
        else:
            chosen[v] = _division_of(node, request, where), request
    slices = _common_slices(graph, chosen)
    for v, (division, request) in chosen.items():
        places = equal_parts(division.ways, slices[v], request.parts)
        cuts[v] = Cut(division, places, request.chain)
    return dict(sorted(cuts.items()))


def equal_parts(ways: int, slices: int, parts: int) -> tuple[int, ...]:
    """Places of equal parts; the first ones are one slice longer where it does not come out even.

    Args:
      ways: the length of the axis, in which places are given.
      slices: what cannot be cut further; a divisor of `ways`.
      parts: at most `slices`.
    """
    size, rest = divmod(slices, parts)
    lengths = [size + (i < rest) for i in range(parts)]
    step = ways // slices
    return tuple(step * place for place in itertools.accumulate(lengths, initial=0))


def _check_splittable(node: Node, where: str) -> None:
    if node.colocate is not None:
        raise InputError(f"{where}: is in a colocation group, expected a node in none")
    if not node.divide:
        kind = f"a part of {node.part.of!r} that" if node.part is not None else "a node that"
        raise InputError(f"{where}: is {kind} cannot be divided, expected one with `divide`")


def _check_cut(cut: Cut, node: Node, where: str) -> None:
    _check_splittable(node, where)
    if cut.division not in node.divide:
        raise InputError(f"{where}: has no such division, expected one of its `divide`")
    ascending = all(a < b for a, b in itertools.pairwise(cut.places))
    ends = (cut.places[:1], cut.places[-1:])
    if cut.parts < 2 or not ascending or ends != ((0,), (cut.division.ways,)):
        raise InputError(
            f"{where}: cut at {cut.places}, expected ascending slices from 0 to "
            f"{cut.division.ways}, in two parts or more"
        )


def _division_of(node: Node, request: Request, where: str) -> Division:
    _check_splittable(node, where)
    if isinstance(request.division, str):
        found = [d for d in node.divide if d.axis == request.division]
        if not found:
            axes = ", ".join(repr(d.axis) for d in node.divide)
            raise InputError(f"{where}: has no axis {request.division!r}, expected one of {axes}")
        division = found[0]
    elif 0 <= request.division < len(node.divide):
        division = node.divide[request.division]
    else:
        raise InputError(
            f"{where}: division {request.division}, expected 0 to {len(node.divide) - 1}"
        )
    if not 2 <= request.parts <= division.ways:
        raise InputError(
            f"{where}: {request.parts} parts, expected 2 to the number of slices, {division.ways}"
        )
    return division


def _common_slices(graph: Graph, chosen: Mapping[int, tuple[Division, Request]]) -> dict[int, int]:
    """The number of slices in which each node is cut: its ways, or a divisor of them.

    Nodes stay apart where the common slices would be fewer than the parts.
    """
    root = {v: v for v in chosen}
    slices = {v: division.ways for v, (division, _) in chosen.items()}
    parts = {v: request.parts for v, (_, request) in chosen.items()}

    def find(v: int) -> int:
        while root[v] != v:
            root[v] = v = root[root[v]]
        return v

    for group in _on_one_axis(graph, chosen):
        # What cannot join a set never can: its slices only get fewer, and its parts more.
        tried: set[int] = set()
        for i, u in enumerate(group):
            a = find(u)
            if a in tried:
                continue
            tried.add(a)
            for b in map(find, group[i + 1 :]):
                common = math.gcd(slices[a], slices[b])
                most = max(parts[a], parts[b])
                if a != b and common >= most:
                    root[b], slices[a], parts[a] = a, common, most
    return {v: slices[find(v)] for v in chosen}


def _on_one_axis(
    graph: Graph, chosen: Mapping[int, tuple[Division, Request]]
) -> Iterable[list[int]]:
    """The nodes that are cut along one axis of the same tensor or weight."""
    groups: dict[tuple[str, int, str | None], list[int]] = collections.defaultdict(list)
    for k, tensor in enumerate(graph.tensors):
        maker = chosen.get(tensor.producer)
        if maker is not None and maker[0].join is None:
            groups["tensor", k, maker[0].axis].append(tensor.producer)
    for v, (division, _) in chosen.items():
        for k, label in division.reads:
            groups["tensor", k, label].append(v)
        for w, label in division.weights:
            groups["weight", w, label].append(v)
    return [group for (_, _, label), group in groups.items() if label is not None]


def tensor_layouts(graph: Graph, cuts: Mapping[int, Cut]) -> list[Layout]:
    """[K] the pieces of each tensor.

    A tensor is cut along the axis of its producer's parts, else along the one by which most of its
    consumers that are split read it, at all places where one of these parts begins or ends.
    """
    readers: list[list[tuple[str, list[Range]]]] = [[] for _ in graph.tensors]
    for cut in cuts.values():
        spans = [cut.reads(i) for i in range(cut.parts)]
        for k, label in cut.division.reads:
            if label is not None:
                readers[k].append((label, spans))
    layouts = []
    for k, tensor in enumerate(graph.tensors):
        maker = cuts.get(tensor.producer)
        if maker is not None and maker.division.join is None:
            own = [maker.range_of(i) for i in range(maker.parts)]
            layouts.append(_layout(readers[k], maker.division.axis, own))
        else:
            layouts.append(_layout(readers[k]))
    return layouts


def weight_layouts(graph: Graph, cuts: Mapping[int, Cut]) -> list[Layout]:
    """[W] the pieces of each weight: as those of a tensor whose producer is whole."""
    readers: list[list[tuple[str, list[Range]]]] = [[] for _ in graph.weights]
    for cut in cuts.values():
        spans = [cut.range_of(i) for i in range(cut.parts)]
        for w, label in cut.division.weights:
            if label is not None:
                readers[w].append((label, spans))
    return [_layout(uses) for uses in readers]


def _layout(
    readers: Sequence[tuple[str, list[Range]]], label: str | None = None, own: Sequence[Range] = ()
) -> Layout:
    if label is None:
        if not readers:
            return WHOLE
        count = collections.Counter(axis for axis, _ in readers)
        label = count.most_common(1)[0][0]  # of equal ones, the first
    places = set(_ALL).union(*own)
    for axis, spans in readers:
        if axis == label:
            places.update(*spans)
    return Layout(label, tuple(sorted(places))) if len(places) > 2 else WHOLE
