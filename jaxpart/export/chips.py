"""The chip of each node, from whatever a user has of a partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxpart.cost.verdicts import broken_rules
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph
from jaxpart.results.file import in_node_order
from jaxpart.results.scored import ScoredPartition

Partition = ScoredPartition | Mapping[str, int] | Sequence[int] | np.ndarray


def chips_of(graph: Graph, partition: Partition) -> tuple[int, ...]:
    """The chip of each node.

    Args:
      graph: of N nodes.
      partition: a result or evaluation of this graph, the chip of each node by name, or [N] the
        chip of each node.

    Returns:
      [N] chip of each node.

    Raises:
      InputError: the partition breaks a rule of its module or is one of another graph; or it does
        not give one chip, 0 or more, for each node.
    """
    if isinstance(partition, ScoredPartition):
        return _scored(graph, partition)
    if isinstance(partition, Mapping):
        chips = in_node_order(dict(partition), graph, None, graph.name)
    else:
        chips = np.asarray(partition)
    if chips.shape != (len(graph.nodes),):
        raise InputError(
            f"{graph.name}: the assignment has shape {chips.shape}, expected ({len(graph.nodes)},)"
        )
    if chips.dtype.kind not in "iu":
        raise InputError(
            f"{graph.name}: the assignment is of type {chips.dtype}, expected whole numbers"
        )
    if chips.min() < 0:
        node = graph.nodes[int(chips.argmin())].name
        raise InputError(f"{graph.name}: {node!r} is on chip {chips.min()}, expected 0 or more")
    return tuple(chips.tolist())


def _scored(graph: Graph, partition: ScoredPartition) -> tuple[int, ...]:
    problem = partition.problem
    scored = problem.graph  # in the module's element size
    same = scored.element_bytes is not None and graph.rescaled(scored.element_bytes)
    if scored.sha256 not in (graph.sha256, same and same.sha256):
        raise InputError(
            f"{graph.name}: the result is one of another graph, {scored.name}, with "
            f"{len(scored.nodes)} nodes; expected one of this graph, with {len(graph.nodes)}"
        )
    if not partition.valid:
        rule = broken_rules(problem, partition.assignment, partition.costs)[0]
        raise InputError(
            f"{graph.name}: the partition is not valid on {problem.mcm.name} ({rule.rule}: "
            f"{rule.detail}), expected a valid one"
        )
    return tuple(partition.assignment.tolist())
