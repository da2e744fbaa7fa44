"""What the triangle rule says of the nodes between the ends of an edge.

Let w lie on a path from u to v beside the edge (u, v). With f(u) = a and f(v) = b, a != b, the chip
graph has the edge a -> b. Were f(w) another chip x, the nodes of the path would lead from a over x
to b: a longer path beside a -> b, which the rule forbids. So every node between the ends of an edge
runs on the chip of the one or of the other: two chips hold the whole interval.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.bounds.reachability import members, reachability
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import FloatArray, Problem

BoolArray = NDArray[np.bool_]
# Contracted nodes beyond which bit sets of all ancestors are not made: 2 x 50 MB.
_MAX_CONTRACTED = 20_000
# Entries of a table of edges and contracted nodes that is unpacked at once.
_CHUNK_ENTRIES = 8_000_000
_WORD = 64


class Heaviest(NamedTuple):
    """The interval with the most of something: of the contracted nodes between and at an edge's
    ends.
    """

    amount: float
    producer: int  # contracted node
    consumer: int  # contracted node


def heaviest_interval(
    problem: Problem, amounts_of: Callable[[BoolArray], FloatArray]
) -> Heaviest | None:
    """The edge whose ends and what is between hold the most of something.

    Args:
      problem: contracted for this.
      amounts_of: takes sets of contracted nodes, bool [sets, contracted nodes], to how much each
        holds, [sets].

    Returns:
      None where no edge has anything between its ends, or there are too many blocks.
    """
    contracted = problem.contracted
    if contracted.num_nodes > _MAX_CONTRACTED or not len(contracted.node_pairs):
        return None
    below, above = reachability(contracted)
    producer, consumer = contracted.node_pairs.T
    best: Heaviest | None = None
    step = max(1, _CHUNK_ENTRIES // contracted.num_nodes)
    for start in range(0, len(producer), step):
        u, v = producer[start : start + step], consumer[start : start + step]
        between = below[u] & above[v]
        beside = np.flatnonzero(between.any(axis=1))
        if not len(beside):
            continue
        u, v = u[beside], v[beside]
        inside = members(between[beside], contracted.num_nodes)
        rows = np.arange(len(beside))
        inside[rows, u] = inside[rows, v] = True
        held = amounts_of(inside)
        most = int(held.argmax())
        if best is None or held[most] > best.amount:
            best = Heaviest(float(held[most]), int(u[most]), int(v[most]))
    return best


def two_chips(problem: Problem, interval: Heaviest) -> Problem:
    """What two chips must do for the interval of an edge, and nothing else.

    Every valid partition of `problem` gives a valid one of this with a bottleneck no higher: its
    contracted nodes run on two chips of the fastest kind with the largest memory, transfers are
    free, and of memory only weights count. So a lower bound here is one there, and where nothing is
    valid here, nothing is there.
    """
    contracted = problem.contracted
    below, above = reachability(contracted)
    ends = [interval.producer, interval.consumer]
    between = members(below[ends[0]] & above[ends[1]], contracted.num_nodes)
    between[ends] = True
    number = np.cumsum(between) - 1  # of the contracted nodes that stay
    count = int(between.sum())
    pairs = number[contracted.node_pairs[between[contracted.node_pairs].all(axis=1)]]
    uses = between[contracted.use_node]
    mcm = problem.mcm
    chip = max(mcm.chips, key=lambda chip: chip.sram_bytes)
    rules = dataclasses.replace(mcm.constraints, no_skip=False, triangle=False)
    module = MCM("two chips", "chain", (chip,) * 2, 1.0, memory_model="weights", constraints=rules)
    return dataclasses.replace(
        problem,
        mcm=module,
        node_s=contracted.node_s[between].min(axis=1, keepdims=True),
        chip_kind=np.zeros(2, np.int64),
        capacity_bytes=np.full(2, chip.sram_bytes, np.float64),
        fixed_chip=np.full(count, -1, np.int64),
        colocate=np.full(count, -1, np.int64),
        # One tensor without bytes for each edge.
        tensor_producer=pairs[:, 0],
        tensor_bytes=np.zeros(len(pairs)),
        edge_tensor=np.arange(len(pairs)),
        edge_consumer=pairs[:, 1],
        use_weight=contracted.use_weight[uses],
        use_node=number[contracted.use_node[uses]],
    )


def sums(amounts: FloatArray) -> Callable[[BoolArray], FloatArray]:
    """For `heaviest_interval`: the sum of `amounts` [M]."""
    return lambda inside: inside @ amounts


def distinct_weight_bytes(problem: Problem) -> Callable[[BoolArray], FloatArray]:
    """For `heaviest_interval`: bytes of the weights in use, each once."""
    contracted = problem.contracted

    @functools.cache  # gigabytes on a large graph, of which no set is ever asked
    def uses() -> NDArray[np.float32]:
        table = np.zeros((contracted.num_nodes, len(contracted.weight_bytes)), np.float32)
        table[contracted.use_node, contracted.use_weight] = 1
        return table

    def held(inside: BoolArray) -> FloatArray:
        used = (inside.astype(np.float32) @ uses() > 0).astype(np.float64)
        return used @ contracted.weight_bytes

    return held
