"""What parts of operations take, before any is split: shares as fractions, not in whole bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpart.ingest.rewrite.parts import accesses
from jaxpart.ingest.rewrite.uses import Uses
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import FloatArray

Way = tuple[int, Division]  # a node, and how it is divided


class Estimates(NamedTuple):
    """What parts take of a chip that runs each of them alone.

    One row for each way to divide a node, one column for each number of parts, from 1 on.

    Attributes:
      seconds: [D, most] of the longest part; the mean over the chips.
      traffic_s: [D, most] of the ports, for the part that reads or writes most.
      middle_s: [D, most] of the ports, for a part between two others.
      memory: [D, most] bytes of the first part, which has the most slices.
    """

    seconds: FloatArray
    traffic_s: FloatArray
    middle_s: FloatArray
    memory: FloatArray


class _Amounts(NamedTuple):
    """What the parts of D ways take: all of some, and shares of the rest.

    Attributes:
      whole: [D] what each part takes.
      own: [D] what is shared out by slices.
      read: [D] what is shared out by slices with their halo.
    """

    whole: FloatArray
    own: FloatArray
    read: FloatArray

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, float]]) -> _Amounts:
        return cls(*np.array(rows, np.float64).reshape(-1, 3).T)

    def at(self, own: FloatArray, read: FloatArray) -> FloatArray:
        """[D, most] the amounts of parts that have these shares."""
        return self.whole[:, None] + self.own[:, None] * own + self.read[:, None] * read


def estimates(graph: Graph, uses: Uses, mcm: MCM, ways: Sequence[Way], most: int) -> Estimates:
    """What equal parts take, for every number of them.

    Of each number of parts, the first, which has the most slices, and one in the middle, which has
    the widest halo, are looked at. Where an axis has fewer slices, the last column that is of use
    is the one with as many parts.

    Args:
      graph: in the module's element size.
      uses: of the graph.
      mcm: the module.
      ways: the D nodes and their divisions.
      most: most parts.
    """
    kinds = [(v, d, graph.nodes[v], d.join is None) for v, d in ways]
    of_reads = [dict(d.reads) for _, d in ways]
    of_weights = [dict(d.weights) for _, d in ways]

    def read_of(i: int, v: int) -> tuple[float, float, float]:
        cut = [graph.tensors[k].bytes for k in uses.read[v] if of_reads[i].get(k) is not None]
        return sum(graph.tensors[k].bytes for k in uses.read[v]) - sum(cut), 0.0, sum(cut)

    def held_by(i: int, v: int) -> tuple[float, float, float]:
        cut = [graph.weights[w].bytes for w in uses.held[v] if of_weights[i].get(w) is not None]
        return sum(graph.weights[w].bytes for w in uses.held[v]) - sum(cut), sum(cut), 0.0

    def made_by(v: int, *, divided: bool) -> tuple[float, float, float]:
        size = sum(graph.tensors[k].bytes for k in uses.made[v])
        return (0.0, size, 0.0) if divided else (size, 0.0, 0.0)

    def accessed_by(v: int, division: Division) -> tuple[float, float, float]:
        found = accesses(graph, uses, v, division)
        shared = [0.0, 0.0]
        for touched in found.divided:
            shared[touched.is_read] += touched.amount
        return found.whole.floats + found.whole.fixed, shared[0], shared[1]

    received = _Amounts.of([read_of(i, v) for i, (v, _) in enumerate(ways)])
    sent = _Amounts.of([made_by(v, divided=divided) for v, _, _, divided in kinds])
    held = _Amounts.of([held_by(i, v) for i, (v, _) in enumerate(ways)])
    accessed = _Amounts.of([accessed_by(v, d) for v, d in ways])
    flops = np.array([node.flops for _, _, node, _ in kinds], np.float64)[:, None]
    profiled = np.array(
        [math.nan if node.seconds is None else node.seconds for _, _, node, _ in kinds], np.float64
    )[:, None]
    first, middle = (_shares([d for _, d in ways], most, at_middle=x) for x in (False, True))
    seconds, ports = [], []
    for own, read in (first, middle):
        accesses_at = accessed.at(own, read)
        roofline = sum(
            np.maximum(flops * own / chip.peak_flops, accesses_at / chip.sram_bandwidth)
            / chip.speed
            * (mcm.chips.count(chip) / mcm.num_chips)
            for chip in dict.fromkeys(mcm.chips)
        )
        slowness = sum(1 / chip.speed for chip in mcm.chips) / mcm.num_chips
        seconds.append(np.where(np.isnan(profiled), roofline, profiled * own * slowness))
        ports.append(np.maximum(received.at(own, read), sent.at(own, read)) / mcm.link_bandwidth)
    memory = held.at(*first)
    if mcm.memory_model != "weights":
        memory = memory + 2 * received.at(*first) + 3 * sent.at(*first)
    return Estimates(np.maximum(*seconds), np.maximum(*ports), ports[1], memory)


def _shares(
    divisions: Sequence[Division], most: int, *, at_middle: bool
) -> tuple[FloatArray, FloatArray]:
    """[D, most] shares of one of 1 to `most` equal parts in its axis, without and with its halo."""
    ways = np.array([d.ways for d in divisions], np.int64).reshape(-1, 1)
    halo = np.array([d.halo for d in divisions], np.float64).reshape(-1, 1)
    parts = np.minimum(np.arange(1, most + 1), ways)
    size, rest = np.divmod(ways, parts)
    at = parts // 2 if at_middle else np.zeros_like(parts)
    at = np.minimum(at, parts - 1)
    start, stop = at * size + np.minimum(at, rest), (at + 1) * size + np.minimum(at + 1, rest)
    reads = np.minimum(stop + halo, ways) - np.maximum(start - halo, 0)
    return (stop - start) / ways, reads / ways
