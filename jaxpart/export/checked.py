"""The partition that is taken away: valid, and made for the model as it is now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpart.cost.evaluate import score
from jaxpart.cost.verdicts import broken_rules
from jaxpart.errors import InputError
from jaxpart.ingest.load import model_sha256
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.evaluation import evaluate, evaluation_of
from jaxpart.results.file import StoredResult, read_partition
from jaxpart.results.result import Result, SearchInfo
from jaxpart.results.scored import ScoredPartition

_EXPECTED = (
    "expected a result of this model, and the options that partition was given: --dim, "
    "--param-argnums, --seconds"
)
Partition = str | os.PathLike[str] | ScoredPartition | Mapping[str, int] | Sequence[int] | IntArray


def checked_result(graph: Graph, partition: Partition, mcm: MCM | None, where: str) -> Result:
    """The result to take away.

    Args:
      graph: of the model, as it is now.
      partition: a result or its file, a file {"node": chip}, or chips by node name or by position.
      mcm: the module; None: the one that the result brings.
      where: path of the model.

    Returns:
      The partition with its costs; one that no search has found has the method "given".

    Raises:
      InputError: the file cannot be read; the result was made for another graph, or of
        another file than the model's (where it has its hash; external data does not count); it
        brings a module and another one is given, or neither; or the partition is not valid.
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
                f"{_difference(partition.problem.graph, problem.graph)}; {_EXPECTED}"
            )
        if isinstance(partition, Result):
            _refuse_changed(partition.model_sha256, "the partition", where)
        return as_result(partition, "the partition")
    return as_result(evaluate(graph, _module(mcm, "the partition"), partition), "the partition")


def _from_file(stored: StoredResult, graph: Graph, where: str) -> Result:
    problem = Problem.build(graph, stored.mcm)
    assignment = stored.on(graph, stored.mcm)
    if stored.file.graph_sha256 != problem.graph.sha256:
        found = stored.contradictions(evaluation_of(problem, assignment))
        place = found[-1] if found else "an operator or a cost that no figure of the file shows"
        raise InputError(
            f"{stored.path}: was made for another graph than {where} is now: {place}; {_EXPECTED}"
        )
    result = Result.load(stored.path, graph, stored.mcm)
    _refuse_changed(result.model_sha256, stored.path, where)
    return result


def _refuse_changed(expected: str | None, made: str, where: str) -> None:
    """Refuses a model whose file has another hash than the result says, where it says one."""
    if expected is not None and model_sha256(where) != expected:
        raise InputError(
            f"{where}: the model changed since {made} was made (its SHA-256 is another), expected "
            "the file that was partitioned"
        )


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
    """The first place where two graphs differ, and how."""
    if len(old.nodes) != len(new.nodes):
        return f"it had {len(old.nodes):,} nodes, the model has {len(new.nodes):,}"
    for one, other in zip(old.nodes, new.nodes, strict=True):
        if one.name != other.name:
            return f"node {one.name!r} is now {other.name!r}"
        if changes := _changes(one, other):
            return f"node {one.name!r}: {changes}"
    return (
        _first_difference("tensor", old.tensors, new.tensors)
        or _first_difference("weight", old.weights, new.weights)
        or "its floats have another size"
    )


def _first_difference(what: str, old: Sequence[Any], new: Sequence[Any]) -> str:
    if len(old) != len(new):
        return f"it had {len(old):,} {what}s, the model has {len(new):,}"
    pairs = enumerate(zip(old, new, strict=True))
    return next((f"{what} {i}: {_changes(a, b)}" for i, (a, b) in pairs if a != b), "")


def _changes(old: Any, new: Any) -> str:
    """The figures of a record that changed: `flops 8 -> 16`."""
    changes = []
    for field in old.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        plain = all(x is None or isinstance(x, (str, int, float)) for x in (before, after))
        changes.append(f"{field} {_shown(before)} -> {_shown(after)}" if plain else field)
    return ", ".join(changes)


def _shown(value: str | float | None) -> str:
    return str(value) if value is None or isinstance(value, (str, bool)) else f"{value:.12g}"
