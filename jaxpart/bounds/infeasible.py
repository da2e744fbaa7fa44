"""Simple proofs that no partition is valid."""

from __future__ import annotations

import numpy as np

from jaxpart.bounds.intervals import distinct_weight_bytes, heaviest_interval
from jaxpart.problem.problem import CONTRADICTORY, FloatArray, Problem

_MIB = 2**20


def why_infeasible(problem: Problem) -> str | None:
    """Looks for a simple reason why no partition is valid.

    The reasons are: fixed chips that contradict each other, the dataflow or the no-skip rule;
    weights that are too large for one chip or for all chips together; tensors of one node that are
    too large for a chip beside its weights; and an edge interval whose weights are too large for
    two chips (triangle rule). Each reason is a proof. If none is found, nothing is proven.

    Args:
      problem: of N nodes.

    Returns:
      One sentence with the reason; None if no reason was found.
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
    for m in np.flatnonzero(problem.contracted_fixed_chip == CONTRADICTORY).tolist():
        fixed = np.flatnonzero((problem.contraction == m) & (problem.fixed_chip >= 0)).tolist()
        u = fixed[0]
        v = next(x for x in fixed if problem.fixed_chip[x] != problem.fixed_chip[u])
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
    # For every contracted node: the highest fixed chip among it and its ancestors, and its source.
    # The pairs are sorted by their first node, so the values of u are final when (u, v) comes.
    source = np.where(contracted.fixed_chip >= 0, np.arange(contracted.num_nodes), -1)
    highest = contracted.fixed_chip.copy()
    for u, v in contracted.node_pairs.tolist():
        if highest[u] > highest[v]:
            if contracted.fixed_chip[v] >= 0:
                first, later = (
                    int(np.flatnonzero((problem.contraction == m) & (problem.fixed_chip >= 0))[0])
                    for m in (int(source[u]), v)
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
        m = int(np.argmax(held - room))
        members = np.flatnonzero(problem.contraction == m)
        others = f" and the {len(members) - 1} nodes colocated with it" if len(members) > 1 else ""
        return (
            f"the weights of {_name(problem, int(members[0]))}{others} take "
            f"{held[m] / _MIB:.1f} MiB, {_chip(problem, m)} has {room[m] / _MIB:.1f} MiB"
        )
    if problem.mcm.memory_model == "full":
        live = _live_bytes(problem)
        excess = held[problem.contraction] + live - room[problem.contraction]
        v = int(np.argmax(excess))
        m = int(problem.contraction[v])
        if excess[v] > 0:
            return (
                f"{_name(problem, v)} reads and writes tensors of {live[v] / _MIB:.1f} MiB beside "
                f"{held[m] / _MIB:.1f} MiB of weights on its chip, {_chip(problem, m)} has "
                f"{room[m] / _MIB:.1f} MiB"
            )
    used = np.unique(contracted.use_weight)
    total, capacity = contracted.weight_bytes[used].sum(), contracted.capacity_bytes.sum()
    if total > capacity:
        return (
            f"the weights take {total / _MIB:.1f} MiB, all {problem.num_chips} chips together have "
            f"{capacity / _MIB:.1f} MiB"
        )
    return None


def _chip(problem: Problem, m: int) -> str:
    """The chip with the most room for a contracted node."""
    fixed = problem.contracted.fixed_chip[m]
    return f"chip {fixed}" if fixed >= 0 else "the largest chip"


def _live_bytes(problem: Problem) -> FloatArray:
    """Bytes [N] of the tensors that each node reads and writes: they are live while it runs.

    A tensor that comes from another chip takes twice its bytes, in buffers.
    """
    live = np.zeros(problem.num_nodes)
    np.add.at(live, problem.tensor_producer, problem.tensor_bytes)
    np.add.at(live, problem.edge_consumer, problem.tensor_bytes[problem.edge_tensor])
    return live


def _too_large_between(problem: Problem) -> str | None:
    """Tests that two chips can hold each edge interval's weights (`bounds/intervals.py`)."""
    rules = problem.mcm.constraints
    if not (rules.memory and rules.triangle and rules.acyclic):
        return None
    contracted = problem.contracted
    found = heaviest_interval(problem, distinct_weight_bytes(problem))
    room = 2 * float(contracted.capacity_bytes.max())
    if found is None or found.amount <= room:
        return None
    ends = [int(np.argmax(problem.contraction == m)) for m in (found.producer, found.consumer)]
    return (
        f"{_name(problem, ends[0])} feeds {_name(problem, ends[1])}, so that by the triangle rule "
        f"two chips must hold the nodes between them: {found.amount / _MIB:.1f} MiB of weights, "
        f"two chips have {room / _MIB:.1f} MiB; a module with triangle = false has no such rule"
    )
