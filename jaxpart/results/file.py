"""The result file: its schema, and the partition in it.

A partition without a result can also be a plain JSON file, `{"node": chip, ...}`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from jaxpart.errors import FileFormatError, InputError, MCMError
from jaxpart.files import decode_json, read_bytes, without_mark
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM, MCMFile
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.ratios import gap_of

if TYPE_CHECKING:
    from jaxpart.results.scored import ScoredPartition

_Figure = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Largest relative difference of two float64 figures that is only rounding; no note is made.
_ROUNDING_ERROR = 1e-9


class _Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chip: int
    compute_s: _Figure
    in_s: _Figure
    out_s: _Figure
    memory_bytes: _Figure


class _Link(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"source": "from", "target": "to"},
):
    source: int
    target: int
    busy_s: _Figure


class _Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: str
    samples: _Count
    wall_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    seed: _Count


class ResultFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schema of a result file. All keys without a default are required; others are errors."""

    format: Literal["jaxpart-result"]
    version: Literal[1]
    graph: str
    graph_sha256: str
    mcm: MCMFile
    assignment: msgspec.Raw
    valid: bool
    bottleneck_s: _Figure
    throughput_per_s: _Figure | None
    baseline_s: _Figure | None
    improvement: _Figure | None
    lower_bound_s: _Figure
    bound_method: str
    gap: _Figure | None
    stages: tuple[_Stage, ...]
    links: tuple[_Link, ...]
    search: _Search
    # Of the model's file that was partitioned; absent: the file was not known.
    model_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | UnsetType = UNSET


@dataclasses.dataclass(frozen=True)
class StoredPartition:
    """A partition from a file, by node name; it is not yet matched with a graph."""

    path: str
    chips: dict[str, int]  # chip by node name

    def on(self, graph: Graph, mcm: MCM) -> IntArray:
        """[N] the chips in the order of the nodes of `graph`; the partition may be invalid.

        Raises:
          InputError: as `in_node_order`.
        """
        return in_node_order(self.chips, graph, mcm, self.path)


@dataclasses.dataclass(frozen=True)
class StoredResult(StoredPartition):
    """A result file: a partition, and the module and the costs stored with it."""

    file: ResultFile
    mcm: MCM

    def notes(self, scored: ScoredPartition) -> tuple[str, ...]:
        """The differences between the file and a new scoring of it, one sentence each.

        The figures of the file are compared only if it was made for the same graph and module.

        Args:
          scored: the new scoring.
        """
        file, problem, notes = self.file, scored.problem, []
        if file.graph_sha256 != problem.graph.sha256:
            notes.append(f"made for another graph ({file.graph}); scored on {problem.graph.name}")
        if self.mcm.sha256 != problem.mcm.sha256:
            notes.append(f"made for another module ({self.mcm.name}); scored on {problem.mcm.name}")
        return tuple(notes or _contradictions(file, scored))

    def contradictions(self, scored: ScoredPartition) -> tuple[str, ...]:
        """The figures of the file that differ from a new scoring, whatever the file was made for.

        Args:
          scored: the new scoring.
        """
        return tuple(_contradictions(self.file, scored))

    def is_for(self, problem: Problem) -> bool:
        """Whether the file was made for the same graph and module; names may differ."""
        is_same_graph = self.file.graph_sha256 == problem.graph.sha256
        return is_same_graph and self.mcm.sha256 == problem.mcm.sha256


def read_partition(path: str | os.PathLike[str]) -> StoredPartition:
    """Reads a result file, or plain JSON {"node": chip, ...}.

    Returns:
      A `StoredResult` for a result file.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: the file is neither of the two, or breaks the schema (negative figures
        included); the lower bound is above the bottleneck, or the gap is not the one between them.
    """
    content = without_mark(read_bytes(path))
    if not content.strip():
        raise FileFormatError(f"{path}: the file is empty, expected a result or a partition")
    expected = "; expected a result or a partition"
    top = decode_json(content, dict[str, msgspec.Raw], path, expected=expected)
    # A plain partition can have a node named "format", but its value is a number, not a string.
    if not bytes(top.get("format", b"")).startswith(b'"'):
        return StoredPartition(os.fspath(path), _chips_by_name(content, path))
    file = decode_json(content, ResultFile, path)
    _check_bound(file, path)
    chips = _chips_by_name(bytes(file.assignment), path)
    return StoredResult(os.fspath(path), chips, file, _module_of(file, path))


def read_result(path: str | os.PathLike[str]) -> StoredResult:
    """Reads a result file; a plain partition is an error.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: the file breaks the schema.
    """
    stored = read_partition(path)
    if not isinstance(stored, StoredResult):
        raise FileFormatError(f"{path}: format is missing, expected 'jaxpart-result'")
    return stored


def read_assignment(path: str | os.PathLike[str], graph: Graph, mcm: MCM) -> IntArray:
    """Reads the assignment in a file that `read_partition` accepts.

    Args:
      path: of the file.
      graph: of N nodes.
      mcm: of C chips.

    Returns:
      [N] chip of each node; the partition may be invalid.

    Raises:
      InputError: as `read_partition` and `in_node_order`.
    """
    return read_partition(path).on(graph, mcm)


def _module_of(file: ResultFile, path: str | os.PathLike[str]) -> MCM:
    """The module in the file; checks that stages and links of the file fit it."""
    try:
        mcm = file.mcm.resolve()
    except MCMError as error:
        raise FileFormatError(f"{path}: mcm: {error}") from error
    if [stage.chip for stage in file.stages] != list(range(mcm.num_chips)):
        raise FileFormatError(
            f"{path}: stages: expected one for each chip 0 to {mcm.num_chips - 1}, in order"
        )
    if sorted((link.source, link.target) for link in file.links) != list(mcm.links):
        raise FileFormatError(f"{path}: links: expected the {len(mcm.links)} links of the module")
    return mcm


def _check_bound(file: ResultFile, path: str | os.PathLike[str]) -> None:
    """Refuses a lower bound that is none, and a gap that is not the one between the two figures."""
    bottleneck_s, bound_s = file.bottleneck_s, file.lower_bound_s
    if bound_s > bottleneck_s * (1 + _ROUNDING_ERROR):
        raise FileFormatError(
            f"{path}: lower_bound_s is {bound_s}, expected at most bottleneck_s, {bottleneck_s}"
        )
    gap = gap_of(bottleneck_s, bound_s)
    # A gap near 0 has few digits: what is compared is T / lower bound.
    if not _agree(*(None if one is None else 1 + one for one in (file.gap, gap))):
        raise FileFormatError(
            f"{path}: gap is {_shown(file.gap)}, expected bottleneck_s / lower_bound_s - 1, "
            f"{_shown(gap)}"
        )


def _contradictions(file: ResultFile, scored: ScoredPartition) -> list[str]:
    """What the file says otherwise than a new scoring of it on the same graph and module."""
    notes = []
    if file.valid != scored.valid:
        word = {True: "valid", False: "not valid"}
        notes.append(f"the file says {word[file.valid]}, the partition is {word[scored.valid]}")
    for what, said, found, unit in (
        ("the bottleneck", _in_us(file.bottleneck_s), _in_us(scored.bottleneck_s), " us"),
        ("the throughput", file.throughput_per_s, scored.throughput_per_s, " inferences/s"),
        ("the baseline", _in_us(file.baseline_s), _in_us(scored.baseline_s), " us"),
        ("the improvement", file.improvement, scored.improvement, "x"),
    ):
        if not _agree(said, found):
            notes.append(f"the file says {_difference(what, said, found, unit)}")
    if file.lower_bound_s > scored.bottleneck_s * (1 + _ROUNDING_ERROR):
        notes.append(
            f"the file says {_shown(_in_us(file.lower_bound_s))} us for the lower bound, the "
            f"bottleneck is {_shown(_in_us(scored.bottleneck_s))} us"
        )
    return notes + _contradictions_of_parts(file, scored)


def _contradictions_of_parts(file: ResultFile, scored: ScoredPartition) -> list[str]:
    """At most one note: the first figure of a chip or link that differs, and how many others do."""
    costs, links = scored.costs, scored.problem.mcm.links
    busy = {(link.source, link.target): link.busy_s for link in file.links}
    stated: list[tuple[str, float, float]] = [  # what, in the file, found
        (f"{key} of chip {stage.chip}", getattr(stage, key), float(getattr(costs, key)[stage.chip]))
        for stage in file.stages
        for key in ("compute_s", "in_s", "out_s", "memory_bytes")
    ]
    stated += [
        (f"busy_s of link {source} -> {target}", busy[source, target], float(found))
        for (source, target), found in zip(links, costs.link_s, strict=True)
    ]
    different = [part for part in stated if not _agree(*part[1:])]
    if not different:
        return []
    others = len(different) - 1
    more = f" (and {others} more figures of chips and links differ)" if others else ""
    return [f"the file says {_difference(*different[0], unit='')}{more}"]


def _agree(said: float | None, found: float | None) -> bool:
    if said is None or found is None:
        return said is found
    return math.isclose(said, found, rel_tol=_ROUNDING_ERROR)


def _in_us(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def _difference(what: str, said: float | None, found: float | None, unit: str) -> str:
    """Two figures that differ, in as few digits as show it."""
    digits = next((d for d in (6, 12) if _shown(said, d) != _shown(found, d)), 17)
    words = [
        "none" if value is None else f"{_shown(value, digits)}{unit}" for value in (said, found)
    ]
    return f"{words[0]} for {what}, it is {words[1]}"


def _shown(value: float | None, digits: int = 6) -> str:
    return "none" if value is None else f"{value:.{digits}g}"


def _chips_by_name(content: bytes, path: str | os.PathLike[str]) -> dict[str, int]:
    """Chip by node name, from a JSON object; a repeated name is an error."""
    if not content.lstrip().startswith(b"{"):
        raise FileFormatError(f'{path}: assignment: expected an object {{"node": chip, ...}}')
    chips: dict[str, int] = {}
    # msgspec reads an object with a repeated name without a word. It checks the rest: types, text.
    decode_json(content, dict[str, Any], path, place="assignment: ")
    for name, chip in json.loads(content, object_pairs_hook=list, parse_int=_integer):
        if name in chips:
            raise FileFormatError(f"{path}: assignment: {name!r} stands twice, expected once")
        if type(chip) is not int or chip < 0:
            raise FileFormatError(
                f"{path}: assignment: {name!r} is on {chip!r}, expected a chip number, 0 or more"
            )
        chips[name] = chip
    return chips


def _integer(digits: str) -> int | str:
    """A whole number; the digits themselves where they are too many for a chip's number."""
    return int(digits) if len(digits) < 20 else digits


def in_node_order(
    chips: dict[str, int], graph: Graph, mcm: MCM | None, path: str | os.PathLike[str]
) -> IntArray:
    """Puts the chips of an assignment in node order.

    Args:
      chips: chip by node name.
      graph: of N nodes.
      mcm: of C chips; None: any number of chips.
      path: for messages.

    Returns:
      [N] chip of each node.

    Raises:
      InputError: `chips` lacks a node of `graph`, names an unknown one, or names a chip that `mcm`
        does not have.
    """
    names = [node.name for node in graph.nodes]
    missing = [name for name in names if name not in chips]
    unknown = sorted(chips.keys() - set(names))
    if missing or unknown:
        which = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is no node of it"
        raise InputError(
            f"{path}: assignment: expected the {len(names)} nodes of {graph.name}, but {which} "
            f"({len(missing)} missing, {len(unknown)} unknown)"
        )
    if mcm is None:
        return np.array([chips[name] for name in names])
    beyond = next((name for name in names if chips[name] >= mcm.num_chips), None)
    if beyond is not None:
        raise InputError(
            f"{path}: assignment: {beyond!r} is on chip {chips[beyond]}, but {mcm.name} has chips "
            f"0 to {mcm.num_chips - 1}"
        )
    return np.array([chips[name] for name in names], np.int64)
