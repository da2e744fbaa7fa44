"""Edge intervals: by the triangle rule, two chips run all nodes between the ends of an edge.

The interval of an edge (u, v) is u, v and all contracted nodes on paths from u to v. Claim: with
acyclic dataflow and the triangle rule, every node of it runs on the chip of u or on the chip of v.

Proof.
1. Let w lie on a path from u to v, and let f(u) = a, f(v) = b and f(w) = x.
2. If a = b, then a <= x <= a by acyclic dataflow, so x = a.
3. If a != b, the edge (u, v) puts the edge a -> b into the chip graph.
4. If x were neither a nor b, the path would put a longer path from a over x to b into the chip
   graph. The triangle rule forbids this.
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
# Largest number of contracted nodes for which bit sets of reachable nodes are made (2 x 50 MB).
_MAX_CONTRACTED = 20_000
# Entries of the table [edges, contracted nodes] that are unpacked at once, one byte each.
_CHUNK_ENTRIES = 8_000_000


class Heaviest(NamedTuple):
    """The edge interval that holds the largest amount."""

    amount: float  # in the unit of `amounts_of`
    producer: int  # the contracted node at which the edge begins
    consumer: int  # the contracted node at which the edge ends


def heaviest_interval(
    problem: Problem, amounts_of: Callable[[BoolArray], FloatArray]
) -> Heaviest | None:
    """Finds the edge interval that holds the largest amount, for example of work or of weights.

    Args:
      problem: of M contracted nodes, with acyclic dataflow.
      amounts_of: takes sets of contracted nodes, bool [sets, M], to the amount in each, [sets].

    Returns:
      The interval; None if no edge has a contracted node between its ends, or if there are too many
      contracted nodes to look.
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
        nonempty = np.flatnonzero(between.any(axis=1))
        if not len(nonempty):
            continue
        u, v = u[nonempty], v[nonempty]
        inside = members(between[nonempty], contracted.num_nodes)
        rows = np.arange(len(nonempty))
        inside[rows, u] = inside[rows, v] = True
        held = amounts_of(inside)
        most = int(held.argmax())
        if best is None or held[most] > best.amount:
            best = Heaviest(float(held[most]), int(u[most]), int(v[most]))
    return best


def two_chips(problem: Problem, interval: Heaviest) -> Problem:
    """The problem of running one edge interval on two chips, and nothing else.

    It is a relaxation of `problem`. The two chips have the largest memory of the module. Every
    contracted node takes the time of its fastest kind of chip. Transfers are free, and only weights
    take memory. So every valid partition of `problem` gives a valid partition of this
    problem whose bottleneck is no higher. Hence a lower bound for this problem is one for
    `problem`, and if this problem has no valid partition, `problem` has none.

    Args:
      problem: of M contracted nodes, with acyclic dataflow and the triangle rule.
      interval: of one of its edges.

    Returns:
      A problem whose nodes are the interval's contracted nodes, on two equal chips.
    """
    contracted = problem.contracted
    below, above = reachability(contracted)
    ends = [interval.producer, interval.consumer]
    between = members(below[ends[0]] & above[ends[1]], contracted.num_nodes)
    between[ends] = True
    number = np.cumsum(between) - 1  # new number of each contracted node of the interval
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
        # One tensor of zero bytes for each edge.
        tensor_producer=pairs[:, 0],
        tensor_bytes=np.zeros(len(pairs)),
        edge_tensor=np.arange(len(pairs)),
        edge_consumer=pairs[:, 1],
        use_weight=contracted.use_weight[uses],
        use_node=number[contracted.use_node[uses]],
    )


def sums(amounts: FloatArray) -> Callable[[BoolArray], FloatArray]:
    """For `heaviest_interval`: the sum of `amounts` [M] over each set."""
    return lambda inside: inside @ amounts


def distinct_weight_bytes(problem: Problem) -> Callable[[BoolArray], FloatArray]:
    """For `heaviest_interval`: bytes of the weights that each set uses, each weight once."""
    contracted = problem.contracted

    # Made on first use: it takes gigabytes on a large graph, where no set is ever looked at.
    @functools.cache
    def uses() -> NDArray[np.float32]:
        table = np.zeros((contracted.num_nodes, len(contracted.weight_bytes)), np.float32)
        table[contracted.use_node, contracted.use_weight] = 1
        return table

    def held(inside: BoolArray) -> FloatArray:
        used = (inside.astype(np.float32) @ uses() > 0).astype(np.float64)
        return used @ contracted.weight_bytes

    return held
