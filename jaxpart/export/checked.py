"""The partition that is taken away: valid, and made for the model as it is now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from jaxpart.cost.evaluate import score
from jaxpart.cost.verdicts import broken_rules
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.evaluation import evaluate, evaluation_of
from jaxpart.results.file import StoredResult, read_partition
from jaxpart.results.result import Result, SearchInfo
from jaxpart.results.scored import ScoredPartition

Partition = str | os.PathLike[str] | ScoredPartition | Mapping[str, int] | Sequence[int] | IntArray


def checked_result(graph: Graph, partition: Partition, mcm: MCM | None, where: str) -> Result:
    """The result to take away.

    Args:
      graph: of the model, as it is now.
      partition: a result or its file, a file {"node": chip}, or chips by node name or by position.
      mcm: the module; None: the one that the result brings.
      where: name of the model, for messages.

    Returns:
      The partition with its costs; one that no search has found has the method "given".

    Raises:
      InputError: the file cannot be read; the result was made for another graph; it brings a module
        and another one is given, or neither; or the partition is not valid.
    """
    if isinstance(partition, (str, os.PathLike)):
        stored = read_partition(partition)
        if isinstance(stored, StoredResult):
            _refuse_module(mcm, stored.path)
            return _from_file(stored, graph, where)
        module = _module(mcm, stored.path)
        return as_result(evaluate(graph, module, stored.on(graph, module)), stored.path)
    if isinstance(partition, ScoredPartition):
        _refuse_module(mcm, "the partition")
        problem = Problem.build(graph, partition.problem.mcm)
        if problem.graph.sha256 != partition.problem.graph.sha256:
            raise InputError(
                f"the partition: was made for another graph than {where} is now: "
                f"{_difference(partition.problem.graph, problem.graph)}"
            )
        return as_result(partition, "the partition")
    return as_result(evaluate(graph, _module(mcm, "the partition"), partition), "the partition")


def _from_file(stored: StoredResult, graph: Graph, where: str) -> Result:
    problem = Problem.build(graph, stored.mcm)
    assignment = stored.on(graph, stored.mcm)
    if stored.file.graph_sha256 != problem.graph.sha256:
        found = stored.contradictions(evaluation_of(problem, assignment))
        place = found[-1] if found else "an operator or a cost that no figure of the file shows"
        raise InputError(
            f"{stored.path}: was made for another graph than {where} is now: {place}; expected a "
            "result of this model, with the same sizes of dimensions"
        )
    return Result.load(stored.path, graph, stored.mcm)


def as_result(scored: ScoredPartition, where: str) -> Result:
    """A partition with its costs as a result; one that no search has found has the method "given".

    Args:
      scored: the partition.
      where: what it is, for messages.

    Raises:
      InputError: it is not valid.
    """
    if not scored.valid:
        reason = broken_rules(scored.problem, scored.assignment, scored.costs)[0]
        raise InputError(
            f"{where}: not valid for {scored.problem.graph.name} on {scored.problem.mcm.name} "
            f"({reason.rule}: {reason.detail}), expected a valid partition"
        )
    if isinstance(scored, Result):
        return scored
    return Result(
        scored.problem,
        scored.assignment,
        score(scored.problem, scored.assignment),
        scored.baseline_s,
        min(scored.lower_bound_s, scored.bottleneck_s),
        scored.bound_method,
        (),
        SearchInfo("given", 0, 0.0, 0),
    )


def _module(mcm: MCM | None, where: str) -> MCM:
    if mcm is None:
        raise InputError(f"{where}: brings no module, expected one (mcm)")
    return mcm


def _refuse_module(mcm: MCM | None, where: str) -> None:
    if mcm is not None:
        raise InputError(f"{where}: brings its own module, expected no other (mcm)")


def _difference(old: Graph, new: Graph) -> str:
    """The first place where two graphs differ."""
    if len(old.nodes) != len(new.nodes):
        return f"it had {len(old.nodes):,} nodes, the model has {len(new.nodes):,}"
    for one, other in zip(old.nodes, new.nodes, strict=True):
        if one != other:
            return f"node {one.name!r} is now {other.name!r}, or has other costs"
    if old.tensors != new.tensors:
        return "a tensor has other bytes or consumers"
    return "a weight has other bytes or consumers"
