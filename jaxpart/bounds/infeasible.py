"""Simple reasons why no partition can be valid."""

from __future__ import annotations

import numpy as np

from jaxpart.bounds.intervals import distinct_weight_bytes, heaviest_interval
from jaxpart.problem.problem import CONTRADICTORY, Problem

_MIB = 2**20


def why_infeasible(problem: Problem) -> str | None:
    """One sentence that proves that nothing is valid; None where no simple reason was found.

    Looks at pins, at weights that no chip or not all chips can hold, at what the triangle rule
    leaves to two chips, and at fixed chips that would leave chips without a node. Each reason is a
    proof; finding none proves nothing.
    """
    return (
        _fixed_chips_in_one_contracted_node(problem)
        or _fixed_chips_against_dataflow(problem)
        or _fixed_chips_beyond_the_nodes(problem)
        or _too_large(problem)
        or _too_large_between(problem)
    )


def _name(problem: Problem, v: int) -> str:
    return repr(problem.graph.nodes[v].name)


def _fixed_chips_in_one_contracted_node(problem: Problem) -> str | None:
    for b in np.flatnonzero(problem.contracted_fixed_chip == CONTRADICTORY).tolist():
        pinned = np.flatnonzero((problem.contraction == b) & (problem.fixed_chip >= 0)).tolist()
        u = pinned[0]
        v = next(x for x in pinned if problem.fixed_chip[x] != problem.fixed_chip[u])
        return (
            f"{_name(problem, u)} and {_name(problem, v)} must share a chip (colocation groups "
            "with dataflow in both directions), but are fixed to chips "
            f"{problem.fixed_chip[u]} and {problem.fixed_chip[v]}"
        )
    return None


def _fixed_chips_against_dataflow(problem: Problem) -> str | None:
    if not problem.mcm.constraints.acyclic:
        return None
    contracted = problem.contracted
    # The ancestor (itself included) with the highest pin, for every contracted node; pairs are in
    # order.
    source = np.where(contracted.fixed_chip >= 0, np.arange(contracted.num_nodes), -1)
    highest = contracted.fixed_chip.copy()
    for u, v in contracted.node_pairs.tolist():
        if highest[u] > highest[v]:
            if contracted.fixed_chip[v] >= 0:
                first, later = (
                    int(np.flatnonzero((problem.contraction == b) & (problem.fixed_chip >= 0))[0])
                    for b in (int(source[u]), v)
                )
                return (
                    f"{_name(problem, first)} is fixed to chip {problem.fixed_chip[first]}, but "
                    f"feeds {_name(problem, later)}, which is fixed to chip "
                    f"{problem.fixed_chip[later]}: data would flow backward"
                )
            highest[v], source[v] = highest[u], source[u]
    return None


def _fixed_chips_beyond_the_nodes(problem: Problem) -> str | None:
    if not problem.mcm.constraints.no_skip:
        return None
    v = int(np.argmax(problem.fixed_chip))
    if problem.fixed_chip[v] < problem.num_contracted:
        return None
    return (
        f"{_name(problem, v)} is fixed to chip {problem.fixed_chip[v]}, but the graph has "
        f"{problem.num_contracted} groups of nodes to fill the chips before it"
    )


def _too_large(problem: Problem) -> str | None:
    if not problem.mcm.constraints.memory:
        return None
    contracted = problem.contracted
    held = np.zeros(contracted.num_nodes)
    np.add.at(held, contracted.use_node, contracted.weight_bytes[contracted.use_weight])
    room = np.where(
        contracted.fixed_chip >= 0,
        contracted.capacity_bytes[contracted.fixed_chip],
        contracted.capacity_bytes.max(),
    )
    if (held > room).any():
        b = int(np.argmax(held - room))
        members = np.flatnonzero(problem.contraction == b)
        others = f" and the {len(members) - 1} nodes colocated with it" if len(members) > 1 else ""
        where = (
            f"chip {contracted.fixed_chip[b]}"
            if contracted.fixed_chip[b] >= 0
            else "the largest chip"
        )
        return (
            f"the weights of {_name(problem, int(members[0]))}{others} take "
            f"{held[b] / _MIB:.1f} MiB, {where} has {room[b] / _MIB:.1f} MiB"
        )
    used = np.unique(contracted.use_weight)
    total, capacity = contracted.weight_bytes[used].sum(), contracted.capacity_bytes.sum()
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
    contracted = problem.contracted
    found = heaviest_interval(problem, distinct_weight_bytes(problem))
    room = 2 * float(contracted.capacity_bytes.max())
    if found is None or found.amount <= room:
        return None
    ends = [int(np.argmax(problem.contraction == b)) for b in (found.producer, found.consumer)]
    return (
        f"{_name(problem, ends[0])} feeds {_name(problem, ends[1])}, so that by the triangle rule "
        f"two chips must hold the nodes between them: {found.amount / _MIB:.1f} MiB of weights, "
        f"two chips have {room / _MIB:.1f} MiB"
    )
