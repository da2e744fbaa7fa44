"""Ways to divide nodes, kept right while a graph is rewritten."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from jaxpart.ingest.labels import pairs
from jaxpart.ingest.rewrite.uses import Uses
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node

# Operations that move or relabel all elements of a tensor.
# fmt: off
VIEWS = frozenset(
    [
        "bitcast_convert_type", "broadcast", "broadcast_in_dim", "broadcast_to", "copy", "copy_p",
        "expand_dims", "layout_constraint", "name", "optimization_barrier", "reshape", "rev",
        "sharding_constraint", "squeeze", "stop_gradient", "tile", "transpose",
        "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    ]
)
# fmt: on
# What they do to a sum they do to its terms.
_LINEAR = VIEWS - {"bitcast_convert_type"} | {"slice", "split", "unstack", "Slice", "Split"}


def with_divisions(node: Node, divide: tuple[Division, ...]) -> Node:
    """The node with other ways to divide it."""
    return node if node.divide == divide else msgspec.structs.replace(node, divide=divide)


def renumbered(
    divide: Iterable[Division], tensors: Mapping[int, int], weights: Mapping[int, int] | None = None
) -> tuple[Division, ...]:
    """Divisions in the numbers of another graph.

    Args:
      divide: divisions of a node.
      tensors: number of a tensor -> its number there, for the tensors that the node still reads.
      weights: likewise for weights; by default they keep their numbers.
    """
    return tuple(
        msgspec.structs.replace(
            division,
            reads=tuple((tensors[k], label) for k, label in division.reads if k in tensors),
            weights=division.weights
            if weights is None
            else tuple((weights[w], label) for w, label in division.weights if w in weights),
        )
        for division in divide
    )


def past_views(
    graph: Graph, v: int, views: Collection[int], read: Sequence[Sequence[int]]
) -> tuple[Division, ...]:
    """The ways to divide a node that now reads tensors themselves, and read views of them before.

    Args:
      graph: with the views.
      v: number of the node.
      views: numbers of the nodes that make views; each shows one tensor.
      read: [N] the tensors that each node reads.

    Returns:
      The divisions, in the numbers of `graph`.
    """
    divide = graph.nodes[v].divide
    if not any(graph.tensors[k].producer in views for k in read[v]):
        return divide
    found = []
    for division in divide:
        ways, labels, reads = division.ways, dict(division.reads), {}
        for k in read[v]:
            label = labels.get(k)
            while graph.tensors[k].producer in views:
                view = graph.tensors[k].producer
                through = _cut_along(graph.nodes[view], label)
                shown, *others = read[view]
                k, label = shown, None
                if through is not None and not others:
                    label = dict(through.reads).get(shown)
                    ways = math.gcd(ways, through.ways) if label is not None else ways
            reads.setdefault(k, set()).add(label)
        if ways > 1:
            halo = division.halo * ways / division.ways if division.halo else 0
            found.append(
                msgspec.structs.replace(division, ways=ways, halo=halo, reads=tuple(pairs(reads)))
            )
    return tuple(found)


def _cut_along(node: Node, label: str | None) -> Division | None:
    """The division of a node that cuts its results along a label; None if there is none."""
    return next((d for d in node.divide if d.join is None and d.axis == label), None)


@dataclasses.dataclass(frozen=True)
class _Share:
    """What a part of a group does of one node.

    Attributes:
      division: how the node is divided; None where each part does all of it.
      halo: the share of the axis that a part reads beside its own, on either side.
    """

    division: Division | None
    halo: float = 0


class Composer:
    """Finds the ways to divide groups of nodes of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._uses = Uses.of(graph)

    def divisions(self, group: Sequence[int]) -> tuple[Division, ...]:
        """The ways to divide a group of nodes that becomes one node.

        A group is divided along a label if all that leaves it is written along that label, and each
        tensor inside is written along the label by which it is read. What has no FLOPs may be done
        whole, or beyond its share, by each part. Partial sums may only leave the group, as they are
        or as views and parts of them.

        Args:
          group: its nodes, ascending.

        Returns:
          The divisions, in the numbers of the graph that has the nodes of the group.
        """
        nodes = self._graph.nodes
        if len(group) == 1:
            return nodes[group[0]].divide
        members = set(group)
        leaving = {
            k
            for v in group
            for k in self._uses.made[v]
            for consumers in [self._graph.tensors[k].consumers]
            if not consumers or not members.issuperset(consumers)
        }
        last = max((self._graph.tensors[k].producer for k in leaving), default=None)
        axes: dict[tuple[str, bool], None] = {}
        if last is not None:
            axes.update(((d.axis, False), None) for d in nodes[last].divide if d.join is None)
        axes.update(((d.axis, True), None) for v in group for d in nodes[v].divide if d.join)
        found = []
        for axis, is_sum in axes:
            shares = self._shares(group, leaving, axis, is_sum)
            division = None if shares is None else self._joined(shares, axis, is_sum)
            if division is not None:
                found.append(division)
        return tuple(found)

    def _shares(
        self, group: Sequence[int], leaving: set[int], axis: str, is_sum: bool
    ) -> dict[int, _Share] | None:
        """What a part does of each node of a group; None if the group is not divided so.

        Args:
          group: its nodes, ascending.
          leaving: numbers of the tensors that leave it.
          axis: label along which these are cut.
          is_sum: whether they are partial sums over that axis instead.
        """
        shares: dict[int, _Share] = {}
        # Tensor -> how it is read: a label, None for whole, or True for a partial sum.
        wanted: dict[int, set[Any]] = {k: {is_sum or axis} for k in leaving}
        halo: dict[int, float] = {}  # tensor -> what is read beside the share
        inside = {k for v in group for k in self._uses.made[v]}
        for v in reversed(group):
            node = self._graph.nodes[v]
            asked = set().union(*(wanted.get(k, ()) for k in self._uses.made[v]))
            beside = max((halo.get(k, 0) for k in self._uses.made[v]), default=0)
            division = None
            if True in asked:
                if asked != {True}:  # what it makes would be both a term and a whole value
                    return None
                division = next((d for d in node.divide if d.join and d.axis == axis), None)
                if division is None:
                    inner = [k for k in self._uses.read[v] if k in inside]
                    if node.op not in _LINEAR or len(self._uses.read[v]) != 1 or not inner:
                        return None
                    wanted.setdefault(inner[0], set()).add(True)
                    shares[v] = _Share(None)  # it may hold weights
                    continue
            elif len(asked) == 1 and None not in asked:
                (label,) = asked
                division = _cut_along(node, label)
            if division is None and (node.flops or not leaving.isdisjoint(self._uses.made[v])):
                return None
            if beside and node.flops:
                return None
            reach = beside + (division.halo / division.ways if division else 0)
            shares[v] = _Share(division, reach)
            labels = dict(division.reads) if division else {}
            for k in self._uses.read[v]:
                if k in inside:
                    wanted.setdefault(k, set()).add(labels.get(k))
                    halo[k] = max(halo.get(k, 0), reach)
        return shares

    def _joined(self, shares: Mapping[int, _Share], axis: str, is_sum: bool) -> Division | None:
        """The division of a group of which a part does these shares; None if it has no slices."""
        divided = [share for share in shares.values() if share.division is not None]
        ways = math.gcd(*(share.division.ways for share in divided if share.division))
        halo = max((share.halo for share in divided), default=0) * ways or 0
        if ways < 2 or 2 * halo >= ways - 1:
            return None
        reads: dict[int, set[str | None]] = {}
        weights: dict[int, set[str | None]] = {}
        for v in sorted(shares):
            division = shares[v].division
            for all_read, own, found in (
                (self._uses.read[v], division.reads if division else (), reads),
                (self._uses.held[v], division.weights if division else (), weights),
            ):
                labels = dict(own)
                for number in all_read:
                    found.setdefault(number, set()).add(labels.get(number))
        for v in shares:
            for k in self._uses.made[v]:
                reads.pop(k, None)
        return Division(
            ways, axis, "sum" if is_sum else None, halo, tuple(pairs(reads)), tuple(pairs(weights))
        )
