"""Why a partition is valid or not: each rule's verdict in words, with an example if it fails.

`cost/evaluate.py` decides the verdicts; this module only explains them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxpart.cost import host
from jaxpart.errors import InputError
from jaxpart.problem.problem import IntArray, Problem

if TYPE_CHECKING:
    from jaxpart.cost.evaluate import Costs

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one rule says about one partition."""

    rule: str
    is_on: bool  # whether the module or the graph asks for the rule
    holds: bool
    detail: str  # one phrase; if the rule fails, an example


def verdicts(problem: Problem, assignment: IntArray, costs: Costs) -> tuple[Verdict, ...]:
    """Every rule's verdict on one partition, whether the rule is on or off.

    Args:
      problem: of N nodes.
      assignment: [N] chip of each node.
      costs: of this assignment, from `score` in `cost/evaluate.py`.
    """
    rules = problem.mcm.constraints
    graph_has_groups = bool((problem.colocate >= 0).any())
    graph_has_fixed_chips = bool((problem.fixed_chip >= 0).any())
    table = (
        ("acyclic dataflow", rules.acyclic, costs.acyclic, _acyclic),
        ("no skipped chip", rules.no_skip, costs.no_skip, _no_skip),
        ("chip triangle", rules.triangle, costs.triangle, _triangle),
        ("memory", rules.memory, costs.memory, lambda p, f: _memory(p, costs)),
        ("colocation", graph_has_groups, costs.colocation, _colocation),
        ("fixed chips", graph_has_fixed_chips, costs.fixed_chips, _fixed_chips),
    )
    return tuple(
        Verdict(rule, is_on, bool(holds), explain(problem, assignment))
        for rule, is_on, holds, explain in table
    )


def broken_rules(problem: Problem, assignment: IntArray, costs: Costs) -> tuple[Verdict, ...]:
    """The verdicts of the rules that are on and do not hold; empty for a valid partition.

    Args:
      problem: of N nodes.
      assignment: [N] chip of each node.
      costs: of this assignment, from `score` in `cost/evaluate.py`.
    """
    return tuple(v for v in verdicts(problem, assignment, costs) if v.is_on and not v.holds)


def require_valid(problem: Problem, assignment: IntArray, costs: Costs, where: object) -> None:
    """Refuses a partition that is not valid.

    Args:
      problem: of N nodes.
      assignment: [N] chip of each node.
      costs: of this assignment, from `score` in `cost/evaluate.py`.
      where: what the message begins with, such as the file of the partition.

    Raises:
      InputError: a rule that is on does not hold; the message names the first one.
    """
    for reason in broken_rules(problem, assignment, costs)[:1]:
        raise InputError(
            f"{where}: not valid for {problem.graph.name} on {problem.mcm.name} ({reason.rule}: "
            f"{reason.detail}), expected a valid partition"
        )


def _acyclic(problem: Problem, f: IntArray) -> str:
    pairs = problem.node_pairs
    backward = pairs[f[pairs[:, 0]] > f[pairs[:, 1]]]
    if not len(backward):
        return "data flows to the same or a higher chip"
    u, v = backward[0]
    return (
        f"{len(backward)} of {len(pairs)} edges flow backward, as {_node(problem, f, u)} -> "
        f"{_node(problem, f, v)}"
    )


def _no_skip(problem: Problem, f: IntArray) -> str:
    used = np.unique(f)
    skipped = np.setdiff1d(np.arange(used[-1]), used)
    if not len(skipped):
        return f"{len(used)} of {problem.num_chips} chips in use, from chip 0 on"
    return f"nothing on {_chips(skipped)}, but something on chip {used[-1]}"


def _triangle(problem: Problem, f: IntArray) -> str:
    hops = f[problem.node_pairs]
    hops = hops[hops[:, 0] != hops[:, 1]]
    if (hops[:, 0] > hops[:, 1]).any():
        return "undefined where data flows backward"
    for path in host.triangle_conflicts(problem, f):
        return f"chip {path[0]} sends to chip {path[-1]} directly and through chip {path[1]}"
    return "no chip sends directly to a chip that it also reaches through others"


def _memory(problem: Problem, costs: Costs) -> str:
    held, room = np.asarray(costs.memory_bytes), problem.capacity_bytes
    over = np.flatnonzero(held > room)
    c = int(np.argmax(held / room))
    figures = f"chip {c} needs {held[c] / _MIB:.2f} of {room[c] / _MIB:.2f} MiB"
    if not len(over):
        return f"fullest: {figures}"
    return figures if len(over) == 1 else f"{len(over)} chips are over, most of all {figures}"


def _colocation(problem: Problem, f: IntArray) -> str:
    first: dict[int, int] = {}
    for v in np.flatnonzero(problem.colocate >= 0).tolist():
        u = first.setdefault(int(problem.colocate[v]), v)
        if f[u] != f[v]:
            return f"{_node(problem, f, u)} and {_node(problem, f, v)} must share a chip"
    return "each group is on one chip" if first else "the graph has no groups"


def _fixed_chips(problem: Problem, f: IntArray) -> str:
    fixed = np.flatnonzero(problem.fixed_chip >= 0)
    misplaced = fixed[f[fixed] != problem.fixed_chip[fixed]]
    if len(misplaced):
        v = misplaced[0]
        return f"{_node(problem, f, v)} is fixed to chip {problem.fixed_chip[v]}"
    return "each fixed node is where it must be" if len(fixed) else "the graph has no fixed chips"


def _node(problem: Problem, f: IntArray, v: int) -> str:
    return f"{problem.graph.nodes[v].name!r} (chip {f[v]})"


def _chips(chips: IntArray) -> str:
    shown = ", ".join(str(c) for c in chips[:6])
    return f"chip{'s' if len(chips) > 1 else ''} {shown}{', ...' if len(chips) > 6 else ''}"
