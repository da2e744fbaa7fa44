"""Measured seconds of nodes, joined to a graph by the names of its nodes.

Two kinds of files are read, recognised by their content:

- CSV in UTF-8 with commas (RFC 4180). The first line has names of columns, `name` and `seconds`
  among them; other columns are ignored. `jaxpart profile` writes it.
- What ONNX Runtime's profiler writes (JSON), as it is. The seconds of a node are the median over
  the runs of the session; the first run is left out where there are more. The nodes of a body (If,
  Loop, Scan) are part of the node that runs them. The profiler counts whole microseconds. It names
  a node that has no name by its operator and position, which is no name of a graph's node: give
  names to nodes, or let `jaxpart profile` do it.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from jaxpart.errors import CostError, FileFormatError, InputError
from jaxpart.files import (
    MAX_TEXT_BYTES,
    decode_json,
    kind_of_content,
    read_bytes,
    uncompressed,
    without_mark,
    write_whole,
)
from jaxpart.problem.graph import Graph
from jaxpart.problem.limits import COST_EXPECTED, is_cost
from jaxpart.text import decimal

_COLUMNS = ("name", "seconds")
_SHOWN = 3  # names that a warning lists
_KERNEL = "_kernel_time"  # ends the name of a node's event


class _Event(msgspec.Struct, frozen=True):
    """One event of ONNX Runtime's profiler; times in microseconds."""

    name: str = ""
    cat: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: int = 0
    tid: int = 0

    @property
    def end(self) -> float:
        """When it ended."""
        return self.ts + self.dur


def with_seconds(graph: Graph, seconds: Mapping[str, float] | str | os.PathLike[str]) -> Graph:
    """The graph with measured times of its nodes, which replace the roofline.

    Args:
      graph: of N nodes.
      seconds: by the node's name, on a chip of speed 1; or the path of a file of them, as
        `read_seconds` reads it.

    Returns:
      The graph. A node without a measured time keeps what it had.

    Raises:
      InputError: the file cannot be read, or no name is that of a node.
      FileFormatError: the file breaks its format.
      CostError: a time is negative, not finite, or out of range.

    Warns:
      UserWarning: a node has no measured time, or a name is no node's; the message names the first.
    """
    if isinstance(seconds, Mapping):
        where, found = "seconds", {str(k): _checked(v, repr(k)) for k, v in seconds.items()}
    else:
        where, found = os.fspath(seconds), read_seconds(seconds)
    names = [node.name for node in graph.nodes]
    missing = [name for name in names if name not in found]
    unknown = sorted(found.keys() - set(names))
    if len(missing) == len(names):
        example = f"it has {unknown[0]!r}" if unknown else "it has none"
        raise InputError(
            f"{where}: no name is a node of {graph.name}, expected names such as {names[0]!r}, but "
            f"{example}"
        )
    if missing:
        warnings.warn(
            f"{where}: {len(missing):,} of {len(names):,} nodes of {graph.name} have no seconds "
            f"({_first(missing)}); the cost model's own time stands for them",
            stacklevel=2,
        )
    if unknown:
        warnings.warn(
            f"{where}: {len(unknown):,} of {len(found):,} names are no nodes of {graph.name} "
            f"({_first(unknown)}); they are ignored",
            stacklevel=2,
        )
    replace = msgspec.structs.replace
    nodes = tuple(replace(v, seconds=found.get(v.name, v.seconds)) for v in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes)


def read_seconds(path: str | os.PathLike[str]) -> dict[str, float]:
    """Reads measured seconds, CSV or what ONNX Runtime's profiler writes; gzipped or not.

    Returns:
      Seconds by name, in the order of the file.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: the file is empty or none of the two, a column is missing, or a name stands
        twice.
      CostError: a time is negative, not finite, or out of range.
    """
    content = without_mark(uncompressed(read_bytes(path, MAX_TEXT_BYTES), path))
    if not content.strip():
        raise FileFormatError(f"{path}: the file is empty, expected seconds of nodes")
    if content.lstrip()[:1] in (b"[", b"{"):
        runs = _from_profiler(content, path)
        return {name: statistics.median(taken) for name, taken in runs.items()}
    return _from_csv(content, path)


def profiler_runs(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Reads what ONNX Runtime's profiler writes.

    Returns:
      The seconds of a node in each run but the first, where there are more, by its name.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: the file is no such file.
      CostError: a time is negative, not finite, or out of range.
    """
    return _from_profiler(read_bytes(path, MAX_TEXT_BYTES), path)


def write_seconds(path: str | os.PathLike[str], seconds: Mapping[str, float]) -> None:
    """Writes seconds by name as CSV, either completely or not at all.

    Raises:
      InputError: the folder does not exist or cannot be written.
    """
    text = io.StringIO()
    # The writer does not see that a carriage return needs quotes where lines end otherwise.
    quoting = csv.QUOTE_NONNUMERIC if any("\r" in name for name in seconds) else csv.QUOTE_MINIMAL
    rows = csv.writer(text, lineterminator="\n", quoting=quoting)
    rows.writerow(_COLUMNS)
    rows.writerows((name, float(value)) for name, value in seconds.items())
    write_whole(path, text.getvalue().encode())


def _from_csv(content: bytes, path: str | os.PathLike[str]) -> dict[str, float]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        what = kind_of_content(content) or f"no UTF-8 text (byte {error.start})"
        raise FileFormatError(f"{path}: is {what}, expected CSV in UTF-8") from error
    if kind := kind_of_content(content):
        raise FileFormatError(f"{path}: is {kind}, expected CSV in UTF-8")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, float] = {}
    try:
        header = [column.strip() for column in next(rows)]
        columns = [_column(header, name, path) for name in _COLUMNS]
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise FileFormatError(f"{where}: {len(row)} fields, expected {len(header)}")
            name, figure = (row[column] for column in columns)
            if name in found:
                raise FileFormatError(f"{where}: {name!r} stands twice, expected once")
            value = decimal(figure.strip())
            if value is None:
                raise CostError(f"{where}: seconds is {figure!r}, expected {COST_EXPECTED}")
            found[name] = _checked(value, f"{where}: {name!r}")
    except csv.Error as error:
        raise FileFormatError(f"{path}: line {rows.line_num}: broken CSV ({error})") from error
    if not found:
        raise FileFormatError(f"{path}: has no row, expected seconds of nodes")
    return found


def _column(header: Sequence[str], name: str, path: str | os.PathLike[str]) -> int:
    count = header.count(name)
    if count != 1:
        raise FileFormatError(
            f"{path}: line 1: {count or 'no'} column {name!r}, expected one, "
            f"between commas; the columns are {', '.join(map(repr, header))}"
        )
    return header.index(name)


def _from_profiler(content: bytes, path: str | os.PathLike[str]) -> dict[str, list[float]]:
    expected = "; expected what ONNX Runtime's profiler writes"
    events = decode_json(content, list[_Event], path, expected=expected)
    for position, event in enumerate(events):
        if not 0 <= event.dur < 1e15 or not 0 <= event.ts < 1e18:
            raise CostError(
                f"{path}: event {position} ({event.name!r}): began at {event.ts:g} us and took "
                f"{event.dur:g} us, expected numbers, 0 or more"
            )
    nodes = [event for event in events if event.cat == "Node" and event.name.endswith(_KERNEL)]
    if not nodes:
        raise FileFormatError(f"{path}: no event is of a node{expected}")
    runs = sorted(
        (event for event in events if event.cat == "Session" and event.name == "model_run"),
        key=lambda event: event.ts,
    )
    per_run: dict[str, list[float]] = {}
    for run in _by_run(nodes, runs[1:] or runs, path):
        for name, taken in run.items():
            per_run.setdefault(name, []).append(taken / 1e6)
    return per_run


def _by_run(
    nodes: Sequence[_Event], runs: Sequence[_Event], path: str | os.PathLike[str]
) -> Iterator[dict[str, float]]:
    """For each run: microseconds of each node, all of its times in the run together."""
    if not runs:
        raise FileFormatError(f"{path}: no event is a run of the model, expected one or more")
    outer = sorted(_outermost(nodes), key=lambda event: event.ts)
    at = 0
    for run in runs:
        while at < len(outer) and outer[at].ts < run.ts:
            at += 1
        taken: collections.defaultdict[str, float] = collections.defaultdict(float)
        while at < len(outer) and outer[at].ts <= run.end:
            taken[outer[at].name.removesuffix(_KERNEL)] += outer[at].dur
            at += 1
        yield taken


def _outermost(events: Sequence[_Event]) -> Iterator[_Event]:
    """The events that are not within another one of their thread: no nodes of bodies."""
    ends: dict[tuple[int, int], float] = {}
    # Of those that begin together the longest is the outer one; one of no length came before.
    for event in sorted(events, key=lambda each: (each.ts, each.dur > 0, -each.dur)):
        thread = (event.pid, event.tid)
        if event.ts >= ends.get(thread, 0.0):
            ends[thread] = event.end
            yield event


def _checked(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_cost(value):
        raise CostError(f"{where}: seconds is {value!r}, expected {COST_EXPECTED}")
    return float(value)


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (", ..." if len(names) > _SHOWN else "")
