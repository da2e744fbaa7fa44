"""The result file: its schema, and the partition in it.

A partition alone may also come as plain JSON, `{"node": chip, ...}`.
"""

from __future__ import annotations

import json
import os
from typing import Literal

import msgspec
import numpy as np

from jaxpart.errors import FileFormatError, InputError, MCMError
from jaxpart.files import read_bytes
from jaxpart.graph import Graph
from jaxpart.mcm import MCM, MCMFile
from jaxpart.problem import IntArray


class _Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chip: int
    compute_s: float
    in_s: float
    out_s: float
    memory_bytes: float


class _Link(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"source": "from", "target": "to"},
):
    source: int
    target: int
    busy_s: float


class _Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: str
    samples: int
    wall_s: float
    seed: int


class ResultFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schema of a result file; every key is there, and no other."""

    format: Literal["jaxpart-result"]
    version: Literal[1]
    graph: str
    graph_sha256: str
    mcm: MCMFile
    assignment: msgspec.Raw
    valid: bool
    bottleneck_s: float
    throughput_per_s: float | None
    baseline_s: float | None
    improvement: float | None
    lower_bound_s: float
    bound_method: str
    gap: float | None
    stages: tuple[_Stage, ...]
    links: tuple[_Link, ...]
    search: _Search


def read_assignment(path: str | os.PathLike[str], graph: Graph, mcm: MCM) -> IntArray:
    """[N] chips from a result file, or from plain JSON {"node": chip, ...}; valid or not.

    Raises:
      FileFormatError: neither of the two, or a broken one.
      InputError: not every node of `graph` exactly once, or a chip that `mcm` does not have.
    """
    content = read_bytes(path)
    try:
        top = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: {error}; expected a result or a partition") from error
    # A node of a plain partition may be called "format", but its chip is no string.
    if bytes(top.get("format", b"")).startswith(b'"'):
        pairs = chips_by_name(decode(content, path).assignment, path)
    else:
        pairs = chips_by_name(content, path)
    return assignment_of(pairs, graph, mcm, path)


def decode(content: bytes, path: str | os.PathLike[str]) -> ResultFile:
    """A result file from its bytes; `path` is for messages.

    Raises:
      FileFormatError: the file is empty, cut off, or breaks the schema.
    """
    if not content.strip():
        raise FileFormatError(f"{path}: the file is empty, expected a result")
    try:
        return msgspec.json.decode(content, type=ResultFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def module_of(file: ResultFile, path: str | os.PathLike[str]) -> MCM:
    """The module in the file, its stages and links checked against it.

    Raises:
      FileFormatError: the description is inconsistent, or stages or links are not its own.
    """
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


def chips_by_name(content: bytes | msgspec.Raw, path: str | os.PathLike[str]) -> dict[str, int]:
    """Chip by node name, from a JSON object in which no name stands twice.

    Raises:
      FileFormatError: no object, a name twice, or a value that is no chip number.
    """
    text = bytes(content)
    if not text.lstrip().startswith(b"{"):
        raise FileFormatError(f'{path}: assignment: expected an object {{"node": chip, ...}}')
    chips: dict[str, int] = {}
    for name, chip in json.loads(text, object_pairs_hook=list):
        if name in chips:
            raise FileFormatError(f"{path}: assignment: {name!r} stands twice, expected once")
        if type(chip) is not int or chip < 0:
            raise FileFormatError(
                f"{path}: assignment: {name!r} is on {chip!r}, expected a chip number, 0 or more"
            )
        chips[name] = chip
    return chips


def assignment_of(
    chips: dict[str, int], graph: Graph, mcm: MCM, path: str | os.PathLike[str]
) -> IntArray:
    """[N] chips in node order.

    Raises:
      InputError: not every node of `graph` exactly once, or a chip that `mcm` does not have.
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
    beyond = next((name for name in names if chips[name] >= mcm.num_chips), None)
    if beyond is not None:
        raise InputError(
            f"{path}: assignment: {beyond!r} is on chip {chips[beyond]}, but {mcm.name} has chips "
            f"0 to {mcm.num_chips - 1}"
        )
    return np.array([chips[name] for name in names], np.int64)
