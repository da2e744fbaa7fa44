"""Simple reasons why no partition can be valid."""

from __future__ import annotations

import numpy as np

from jaxpart.bounds.intervals import distinct_weight_bytes, heaviest_interval
from jaxpart.problem.problem import Problem

_MIB = 2**20


def why_infeasible(problem: Problem) -> str | None:
    """One sentence that proves that nothing is valid; None where no simple reason was found.

    Looks at pins, at weights that no chip or not all chips can hold, at what the triangle rule
    leaves to two chips, and at pins that would leave chips without a node. Each reason is a proof;
    finding none proves nothing.
    """
    return (
        _pins_in_a_block(problem)
        or _pins_against_dataflow(problem)
        or _pins_beyond_the_nodes(problem)
        or _too_large(problem)
        or _too_large_between(problem)
    )


def _name(problem: Problem, v: int) -> str:
    return repr(problem.graph.nodes[v].name)


def _pins_in_a_block(problem: Problem) -> str | None:
    for b in np.flatnonzero(problem.block_pin == -2).tolist():
        pinned = np.flatnonzero((problem.block == b) & (problem.pin >= 0)).tolist()
        u = pinned[0]
        v = next(x for x in pinned if problem.pin[x] != problem.pin[u])
        return (
            f"{_name(problem, u)} and {_name(problem, v)} must share a chip (colocation groups "
            "with dataflow in both directions), but are pinned to chips "
            f"{problem.pin[u]} and {problem.pin[v]}"
        )
    return None


def _pins_against_dataflow(problem: Problem) -> str | None:
    if not problem.mcm.constraints.acyclic:
        return None
    blocks = problem.contracted
    # The ancestor (itself included) with the highest pin, for every block; pairs are in order.
    source = np.where(blocks.pin >= 0, np.arange(blocks.num_nodes), -1)
    highest = blocks.pin.copy()
    for u, v in blocks.node_pairs.tolist():
        if highest[u] > highest[v]:
            if blocks.pin[v] >= 0:
                first, later = (
                    int(np.flatnonzero((problem.block == b) & (problem.pin >= 0))[0])
                    for b in (int(source[u]), v)
                )
                return (
                    f"{_name(problem, first)} is pinned to chip {problem.pin[first]}, but feeds "
                    f"{_name(problem, later)}, which is pinned to chip {problem.pin[later]}: data "
                    "would flow backward"
                )
            highest[v], source[v] = highest[u], source[u]
    return None


def _pins_beyond_the_nodes(problem: Problem) -> str | None:
    if not problem.mcm.constraints.no_skip:
        return None
    v = int(np.argmax(problem.pin))
    if problem.pin[v] < problem.num_blocks:
        return None
    return (
        f"{_name(problem, v)} is pinned to chip {problem.pin[v]}, but the graph has "
        f"{problem.num_blocks} groups of nodes to fill the chips before it"
    )


def _too_large(problem: Problem) -> str | None:
    if not problem.mcm.constraints.memory:
        return None
    blocks = problem.contracted
    held = np.zeros(blocks.num_nodes)
    np.add.at(held, blocks.use_node, blocks.weight_bytes[blocks.use_weight])
    room = np.where(blocks.pin >= 0, blocks.capacity_bytes[blocks.pin], blocks.capacity_bytes.max())
    if (held > room).any():
        b = int(np.argmax(held - room))
        members = np.flatnonzero(problem.block == b)
        others = f" and the {len(members) - 1} nodes colocated with it" if len(members) > 1 else ""
        where = f"chip {blocks.pin[b]}" if blocks.pin[b] >= 0 else "the largest chip"
        return (
            f"the weights of {_name(problem, int(members[0]))}{others} take "
            f"{held[b] / _MIB:.1f} MiB, {where} has {room[b] / _MIB:.1f} MiB"
        )
    used = np.unique(blocks.use_weight)
    total, capacity = blocks.weight_bytes[used].sum(), blocks.capacity_bytes.sum()
    if total > capacity:
        return (
            f"the weights take {total / _MIB:.1f} MiB, all {problem.num_chips} chips together have "
            f"{capacity / _MIB:.1f} MiB"
        )
    return None


def _too_large_between(problem: Problem) -> str | None:
    """Two chips hold all that lies between the ends of an edge (`intervals`)."""
    rules = problem.mcm.constraints
    if not (rules.memory and rules.triangle and rules.acyclic):
        return None
    blocks = problem.contracted
    found = heaviest_interval(problem, distinct_weight_bytes(problem))
    room = 2 * float(blocks.capacity_bytes.max())
    if found is None or found.amount <= room:
        return None
    ends = [int(np.argmax(problem.block == b)) for b in (found.producer, found.consumer)]
    return (
        f"{_name(problem, ends[0])} feeds {_name(problem, ends[1])}, so that by the triangle rule "
        f"two chips must hold the nodes between them: {found.amount / _MIB:.1f} MiB of weights, "
        f"two chips have {room / _MIB:.1f} MiB"
    )
