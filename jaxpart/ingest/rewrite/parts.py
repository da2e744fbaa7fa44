"""What parts of an operation cost, and how they can be divided further."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from jaxpart.ingest.rewrite.cuts import Cut, Layout, Range
from jaxpart.ingest.rewrite.uses import Uses
from jaxpart.problem.division import Division, Part
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


def share(amount: float, span: Range) -> float:
    """The share of an amount that falls on a range of an axis.

    Shares of neighbouring ranges add up exactly, in any order: they are whole numbers where the
    amount is one, else whole multiples of its last binary digit. A range gets what the amount up
    to its end, rounded down, exceeds the amount up to its start.
    """
    amount = float(amount)
    unit = math.ulp(amount)
    if amount.is_integer():
        unit = max(unit, 1.0)
    units = int(amount / unit)  # exact: units are powers of two
    start, stop = (units * x.numerator // x.denominator for x in span)
    return unit * (stop - start)


class Access(NamedTuple):
    """Bytes accessed: those of floats, and those that no element size scales."""

    floats: float
    fixed: float


def _access(values: Iterable[Tensor | Weight], span: Range | None = None) -> Access:
    sums = [0.0, 0.0]
    for value in values:
        sums[value.fixed] += value.bytes if span is None else share(value.bytes, span)
    return Access(*sums)


class _Touched(NamedTuple):
    """What an operation accesses of a tensor or weight that is divided."""

    amount: float  # bytes
    fixed: bool
    is_read: bool  # whether it is an operand from another node, which may be read with a halo


class Accesses(NamedTuple):
    """What an operation accesses, as one division divides it.

    Attributes:
      divided: what parts share out.
      whole: what each part accesses all of.
    """

    divided: tuple[_Touched, ...]
    whole: Access

    def of_part(self, cut: Cut, part: int) -> Access:
        """Bytes that a part accesses: its share of what is divided, and the whole of the rest."""
        sums = list(self.whole)
        own, read = cut.range_of(part), cut.reads(part)
        for touched in self.divided:
            sums[touched.fixed] += share(touched.amount, read if touched.is_read else own)
        return Access(*sums)


def accesses(graph: Graph, uses: Uses, v: int, division: Division) -> Accesses:
    """What a node accesses: what a division divides of it, and the rest.

    The rest is all that is not known to be divided, inputs of the graph included. Where a node
    accesses fewer bytes than its operands and results have (it gathers, say), the largest operands
    are those of which it touches a part; then the results.
    """
    node = graph.nodes[v]
    cut_tensors, cut_weights = (
        {number for number, label in pairs if label is not None}
        for pairs in (division.reads, division.weights)
    )
    found: list[tuple[bool, bool, Tensor | Weight]] = [  # whether divided, whether read
        *((k in cut_tensors, True, graph.tensors[k]) for k in uses.read[v]),
        *((w in cut_weights, False, graph.weights[w]) for w in uses.held[v]),
    ]
    found.sort(key=lambda entry: -entry[2].bytes)
    found += [(division.join is None, False, graph.tensors[k]) for k in uses.made[v]]
    total = (node.bytes_accessed - node.fixed_bytes, node.fixed_bytes)
    untouched = [
        max(_access(x for _, _, x in found)[fixed] - total[fixed], 0.0) for fixed in (0, 1)
    ]
    left = list(total)
    divided = []
    for is_divided, is_read, value in found:
        less = min(untouched[value.fixed], value.bytes)
        untouched[value.fixed] -= less
        if is_divided:
            divided.append(_Touched(value.bytes - less, value.fixed, is_read))
            left[value.fixed] -= value.bytes - less
    return Accesses(tuple(divided), Access(*(max(amount, 0.0) for amount in left)))


def part_node(
    node: Node, found: Accesses, cut: Cut, part: int, name: str, divide: tuple[Division, ...]
) -> Node:
    """The node of one part.

    Args:
      node: the whole operation.
      found: what it accesses.
      cut: how it is split.
      part: which part.
      name: of the new node.
      divide: ways to divide it further.
    """
    span, access = cut.range_of(part), found.of_part(cut, part)
    of, first = node.name, 0
    if node.part is not None and node.part.axis == cut.division.axis:
        of, first = node.part.of, node.part.start
    return Node(
        name=name,
        op=node.op,
        flops=share(node.flops, span),
        bytes_accessed=access.floats + access.fixed,
        seconds=None if node.seconds is None else share(node.seconds, span),
        pin=node.pin,
        fixed_bytes=access.fixed,
        divide=divide,
        part=Part(of, cut.division.axis, first + cut.places[part], first + cut.places[part + 1]),
    )


def join_node(
    node: Node,
    name: str,
    results: Sequence[Tensor],
    terms: int,
    width: float,
    divide: tuple[Division, ...],
) -> Node:
    """The node that sums partial results.

    Args:
      node: the operation whose parts made them.
      name: of the new node.
      results: the results of the operation.
      terms: how many partial results of each it sums.
      width: bytes of a float element; the elements of fixed tensors are counted as bytes.
      divide: ways to divide the new node.
    """
    access = _access(results)
    elements = access.fixed + access.floats / width
    return Node(
        name=name,
        op="sum",
        flops=(terms - 1) * elements,
        bytes_accessed=(terms + 1) * (access.floats + access.fixed),
        fixed_bytes=(terms + 1) * access.fixed,
        pin=node.pin,
        divide=divide,
    )


def copy_node(name: str, copied: Sequence[Tensor]) -> Node:
    """The node that relays tensors: it reads and writes each once."""
    access = _access(copied)
    return Node(
        name=name,
        op="copy",
        flops=0.0,
        bytes_accessed=2 * (access.floats + access.fixed),
        fixed_bytes=2 * access.fixed,
    )


_UNCUT = Division(1, "")


class Pieces(NamedTuple):
    """The pieces of one tensor or weight that a new node reads."""

    numbers: tuple[int, ...]  # of the new tensors or weights
    positions: range  # among all pieces of the layout


def further_divisions(
    node: Node,
    cut: Cut | None,
    part: int,
    made: Iterable[Layout],
    tensors: Mapping[int, tuple[Layout, Pieces]],
    weights: Mapping[int, tuple[Layout, Pieces]],
) -> tuple[Division, ...]:
    """The ways to divide a node of the new graph that are left.

    A label of an axis says that a whole tensor is cut along it. So a division is left out where
    results of the node are in several pieces along its own axis, and what the node reads in pieces
    of the same axis is read whole by its parts, unless the piece is exactly the node's own share.

    Args:
      node: the node before.
      cut: how it was split; None: it was not.
      part: which part the new node is.
      made: the layouts of the node's results.
      tensors: tensor before -> its layout and the pieces that the new node reads.
      weights: likewise.
    """
    if cut is not None and cut.division.join is not None:
        return ()
    span = None if cut is None else cut.range_of(part)
    in_pieces = {
        layout.label
        for layout in made
        if layout.pieces > 1 and (span is None or len(layout.within(span)) > 1)
    }
    sliced = _UNCUT if cut is None else cut.division
    found = []
    for division in node.divide:
        ways = division.ways
        if cut is not None and division.axis == cut.division.axis:
            if division != cut.division:
                continue
            ways = cut.places[part + 1] - cut.places[part]
        if ways < 2 or (division.join is None and division.axis in in_pieces):
            continue
        own = span if cut is not None and division == cut.division else None
        found.append(
            msgspec.structs.replace(
                division,
                ways=ways,
                halo=min(division.halo, ways),
                reads=_labels(division.reads, tensors, sliced.reads, own),
                weights=_labels(division.weights, weights, sliced.weights, own),
            )
        )
    return tuple(found)


def _labels(
    pairs: Iterable[tuple[int, str | None]],
    uses: Mapping[int, tuple[Layout, Pieces]],
    sliced: Iterable[tuple[int, str | None]],
    own: Range | None,
) -> tuple[tuple[int, str | None], ...]:
    """The pairs of a division of the new node.

    Args:
      pairs: those before.
      uses: tensor or weight before -> its layout and the pieces that the new node reads.
      sliced: the pairs of the division by which the node was cut.
      own: the share of the new node, if it is divided further by the same division.
    """
    cut_by = dict(sliced)
    found: list[tuple[int, str | None]] = []
    for number, label in pairs:
        layout, pieces = uses[number]
        cut_label = cut_by.get(number)
        in_pieces = layout.pieces > 1
        if cut_label is not None and (not in_pieces or layout.label != cut_label):
            kept = None  # the node reads a share of it, and no label says which
        elif label != layout.label or not in_pieces:
            kept = label
        else:
            first, last = pieces.positions[0], pieces.positions[-1]
            exact = own == (layout.places[first], layout.places[last + 1])
            kept = label if exact and len(pieces.numbers) == 1 else None
        found += [(new, kept) for new in pieces.numbers]
    return tuple(found)


def unique_namer(taken: Iterable[str]) -> Callable[[str], str]:
    """A function that makes names unique by a number at their end."""
    used = set(taken)

    def name(wanted: str) -> str:
        found, number = wanted, 1
        while found in used:
            number += 1
            found = f"{wanted}.{number}"
        used.add(found)
        return found

    return name
