"""Copies on the chips between, so that no tensor takes a short cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from jaxpart.errors import InputError
from jaxpart.ingest.rewrite.lanes import renumbered
from jaxpart.ingest.rewrite.parts import copy_node, unique_namer
from jaxpart.ingest.rewrite.split import Split
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor


def relayed(made: Split, assignment: Sequence[int]) -> tuple[Split, tuple[int, ...]]:
    """Makes a partition keep the triangle rule: what would take a short cut is handed on.

    The chip graph becomes its transitive reduction. A tensor whose consumers are on chips that its
    producer's chip no longer sends to goes along the edges that are left, each time from the
    highest chip that can send it. Every chip that hands tensors on has one copy node for all of
    them. It stands before the chip's other nodes, and costs no FLOP, but reads and writes what it
    copies. On a chain where neighbours send to each other, links carry what they did before.

    Args:
      made: the split graph.
      assignment: [M] chip of each node; data never flows to a lower chip.

    Returns:
      The split with copies (`Split.passes`), its nodes in the order of chips; and the partition.
      The same split and partition where nothing takes a short cut.

    Raises:
      InputError: `assignment` does not have one chip for each node, or data flows to a lower chip.
    """
    graph = made.graph
    if len(assignment) != len(graph.nodes):
        raise InputError(f"assignment has {len(assignment)} entries, expected {len(graph.nodes)}")
    f = [int(chip) for chip in assignment]
    edges = {(f[k.producer], f[q]) for k in graph.tensors for q in k.consumers}
    if any(a > b for a, b in edges):
        raise InputError("relays: data flows to a lower chip, expected the same or a higher one")
    senders = _reduction((a, b) for a, b in edges if a != b)
    handing = _Handing(graph, f, senders)
    if not handing.chips:
        return made, tuple(f)
    chips = (*f, *handing.chips)
    order = sorted(range(len(chips)), key=lambda x: (chips[x], x < len(f), x))
    copies = dataclasses.replace(
        made,
        whole_of=(*made.whole_of, *(None for _ in handing.chips)),
        tensors=(
            *made.tensors,
            *(made.tensors[k]._replace(kind="copy") for k in handing.copied),
        ),
        passes=tuple(range(len(f), len(chips))),
    )
    after = renumbered(copies, order, handing.nodes(), handing.tensors)
    return after, tuple(chips[x] for x in order)


def _reduction(edges: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Chip -> the chips that send to it in the transitive reduction, ascending."""
    senders: dict[int, list[int]] = {}
    for a, b in sorted(edges):
        senders.setdefault(b, []).append(a)
    before: dict[int, set[int]] = {}  # all chips from which a chip is reached
    found: dict[int, list[int]] = {}
    for b in sorted(senders):
        indirect: set[int] = set().union(*(before.get(a, set()) for a in senders[b]))
        found[b] = [a for a in senders[b] if a not in indirect]
        before[b] = indirect.union(senders[b])
    return found


class _Handing:
    """The graph with a copy on each chip that hands tensors on.

    Attributes:
      chips: the chip of each added node.
      copied: the tensor that each added tensor is a copy of.
    """

    def __init__(self, made: Graph, f: Sequence[int], senders: Mapping[int, list[int]]) -> None:
        self.before = made
        self.f = f
        self.senders = senders
        self.chips: list[int] = []
        self.copied: list[int] = []
        self.node_on: dict[int, int] = {}
        self.reads: dict[int, list[Tensor]] = {}  # by added node: what it copies
        self.tensors = list(made.tensors)
        self.now: dict[tuple[int, int], int] = {}  # consumer, tensor -> the copy that it reads
        for k, tensor in enumerate(made.tensors):
            self._hand_on(k, tensor)

    def _hand_on(self, k: int, tensor: Tensor) -> None:
        source = self.f[tensor.producer]
        readers: dict[int, list[int]] = {}
        for q in tensor.consumers:
            readers.setdefault(self.f[q], []).append(q)
        if all(source in (b, *self.senders.get(b, ())) for b in readers):
            return
        reached = self._reached(source, max(readers))
        targets: dict[int, list[int]] = {}  # chip -> the chips that it sends the tensor to
        pending = [b for b in readers if b != source]
        seen = {source, *pending}
        while pending:
            b = pending.pop()
            a = max(one for one in self.senders[b] if one in reached)
            targets.setdefault(a, []).append(b)
            if a not in seen:
                seen.add(a)
                pending.append(a)
        number = {source: k}
        for a in sorted(targets):
            if a != source:
                self.tensors.append(
                    msgspec.structs.replace(tensor, producer=self._copy_on(a), consumers=())
                )
                number[a] = len(self.tensors) - 1
                self.copied.append(k)
        for a, following in targets.items():
            consumers = list(readers.get(a, ())) if a == source else []
            for b in following:
                consumers += readers.get(b, ())
                self.now.update(dict.fromkeys(((q, k) for q in readers.get(b, ())), number[a]))
                if b in targets:
                    consumers.append(self._copy_on(b))
                    self.reads[self._copy_on(b)].append(tensor)
            self.tensors[number[a]] = msgspec.structs.replace(
                self.tensors[number[a]], consumers=tuple(sorted(consumers))
            )

    def _reached(self, source: int, last: int) -> set[int]:
        reached = {source}
        for b in range(source + 1, last + 1):
            if not reached.isdisjoint(self.senders.get(b, ())):
                reached.add(b)
        return reached

    def _copy_on(self, chip: int) -> int:
        if chip not in self.node_on:
            self.node_on[chip] = len(self.f) + len(self.chips)
            self.chips.append(chip)
            self.reads[self.node_on[chip]] = []
        return self.node_on[chip]

    def nodes(self) -> list[Node]:
        """The nodes, with the added ones last."""
        nodes = [self._reading(x, node) for x, node in enumerate(self.before.nodes)]
        unique = unique_namer(node.name for node in nodes)
        for chip in self.chips:
            nodes.append(copy_node(unique(f"relay{chip}"), self.reads[self.node_on[chip]]))
        return nodes

    def _reading(self, x: int, node: Node) -> Node:
        """The node, whose divisions name the copies that it reads."""
        if not node.divide:
            return node
        divide: list[Division] = []
        for division in node.divide:
            reads = tuple((self.now.get((x, k), k), label) for k, label in division.reads)
            divide.append(msgspec.structs.replace(division, reads=reads))
        return msgspec.structs.replace(node, divide=tuple(divide))
