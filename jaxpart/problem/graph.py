"""The graph of one inference step: what a user describes and jaxpart cuts.

Definitions: README, "What every figure means". All costs are per inference.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from jaxpart import errors
from jaxpart.files import read_bytes, write_whole
from jaxpart.problem.topological import find_cycle, topological_order


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation."""

    name: str
    op: str
    flops: float  # FLOP; a multiply-add is 2
    bytes_accessed: float  # operands + results, each once, weights included
    seconds: float | None = None  # profiled, on a chip of speed 1; replaces the roofline
    colocate: int | None = None  # nodes of one group share a chip
    pin: int | None = None  # the chip that the node must be on


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value: made once, sent once to every other chip that consumes it."""

    producer: int  # node number
    bytes: float
    consumers: tuple[int, ...]  # node numbers, ascending; empty: an output of the graph


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter: every chip with a consumer holds one copy."""

    bytes: float
    consumers: tuple[int, ...]  # node numbers, ascending


class _GraphFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["jaxpart-graph"]
    version: Literal[1]
    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[Weight, ...]
    name: str | None = None
    element_bytes: float | None = 4


@dataclasses.dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of operations, numbered in a topological order.

    Immutable, and checked when made. Consumers are sorted and named once each.

    Attributes:
      nodes: the operations; node v is `nodes[v]`, and every edge runs from a lower to a higher
        number.
      tensors: what nodes hand to each other.
      weights: parameters; never nodes.
      name: for tables and file names.
      element_bytes: what one element of a float tensor was counted as; None where the byte counts
        were measured and are never rescaled (the published formats).

    Raises:
      EmptyGraphError, DuplicateNameError, CostError, UnknownNodeError, CycleError, OrderError,
      PinError: each names the node (or the tensor or weight) and what was expected.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...] = ()
    weights: tuple[Weight, ...] = ()
    name: str = "graph"
    element_bytes: float | None = 4

    def __post_init__(self) -> None:
        nodes = tuple(self.nodes)
        object.__setattr__(self, "nodes", nodes)
        _check_nodes(nodes)
        _check_colocation(nodes)
        if self.element_bytes is not None and not 0 < self.element_bytes < math.inf:
            raise errors.CostError(
                f"element_bytes is {self.element_bytes}, expected a positive number"
            )
        object.__setattr__(self, "tensors", tuple(_checked_tensors(self.tensors, len(nodes))))
        object.__setattr__(self, "weights", tuple(_checked_weights(self.weights, len(nodes))))
        _check_order(nodes, self.tensors)

    def __repr__(self) -> str:
        return (
            f"Graph({self.name!r}, {len(self.nodes)} nodes, {len(self.tensors)} tensors, "
            f"{len(self.weights)} weights)"
        )

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of everything but the name: the same graph, the same hash."""
        return hashlib.sha256(_encode(self, with_name=False)).hexdigest()

    @property
    def total_flops(self) -> float:
        """FLOP of one inference."""
        return math.fsum(node.flops for node in self.nodes)

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, each once."""
        return math.fsum(weight.bytes for weight in self.weights)

    @property
    def num_edges(self) -> int:
        """Pairs of a tensor and one of its consumers."""
        return sum(len(tensor.consumers) for tensor in self.tensors)

    def rescaled(self, element_bytes: float) -> Graph:
        """This graph with every byte count in elements of another size (int8 for float32: 1 for 4).

        A graph whose bytes were measured (`element_bytes` None) comes back as it is.
        """
        if self.element_bytes is None or self.element_bytes == element_bytes:
            return self
        ratio = element_bytes / self.element_bytes
        replace = msgspec.structs.replace
        return dataclasses.replace(
            self,
            nodes=tuple(replace(v, bytes_accessed=v.bytes_accessed * ratio) for v in self.nodes),
            tensors=tuple(replace(k, bytes=k.bytes * ratio) for k in self.tensors),
            weights=tuple(replace(w, bytes=w.bytes * ratio) for w in self.weights),
            element_bytes=element_bytes,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the graph file, gzipped where the name ends in `.gz` (same graph, same bytes)."""
        content = _encode(self, with_name=True)
        if os.fspath(path).endswith(".gz"):
            content = _gzipped(content)
        write_whole(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Reads a graph file of jaxpart's own format, gzipped or not.

        Raises:
          FileFormatError: the file is empty, cut off, or breaks the schema.
          GraphError: the graph in it breaks a rule; the message begins with the file's name.
        """
        return decode(uncompressed(read_bytes(path), path), path)


def _gzipped(content: bytes) -> bytes:
    # `gzip.compress` writes headers that differ between releases of Python; this one does not.
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def uncompressed(content: bytes, path: str | os.PathLike[str]) -> bytes:
    """`content`, gunzipped where it is gzip.

    Raises:
      FileFormatError: a broken gzip file.
    """
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise errors.FileFormatError(f"{path}: broken gzip file ({error})") from error


def decode(content: bytes, path: str | os.PathLike[str]) -> Graph:
    """A graph from the bytes of a graph file; `path` is for messages and the default name."""
    if not content.strip():
        raise errors.FileFormatError(f"{path}: the file is empty, expected a graph")
    try:
        file = msgspec.json.decode(content, type=_GraphFile)
    except msgspec.DecodeError as error:
        raise errors.FileFormatError(f"{path}: {error}") from error
    name = file.name if file.name is not None else Path(path).name.split(".")[0]
    try:
        return Graph(file.nodes, file.tensors, file.weights, name, file.element_bytes)
    except errors.GraphError as error:
        raise type(error)(f"{path}: {error}") from error


def from_unordered(
    nodes: Sequence[Node],
    tensors: Iterable[Tensor],
    weights: Iterable[Weight],
    name: str,
    element_bytes: float | None,
) -> Graph:
    """A graph whose nodes come in any order: renumbered by Kahn, smallest position first.

    Raises:
      UnknownNodeError: a tensor or weight names a node that does not exist.
      CycleError: the edges close a cycle; the message names its nodes.
    """
    count = len(nodes)
    tensors = list(_checked_tensors(tensors, count))
    weights = list(_checked_weights(weights, count))
    successors: list[list[int]] = [[] for _ in nodes]
    for tensor in tensors:
        successors[tensor.producer].extend(tensor.consumers)
    order = topological_order(successors)
    if order is None:
        raise errors.CycleError(_cycle_message(nodes, successors))
    number = [0] * count
    for new, old in enumerate(order):
        number[old] = new

    def renumber(consumers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(number[q] for q in consumers)

    return Graph(
        tuple(nodes[old] for old in order),
        tuple(Tensor(number[k.producer], k.bytes, renumber(k.consumers)) for k in tensors),
        tuple(Weight(w.bytes, renumber(w.consumers)) for w in weights),
        name,
        element_bytes,
    )


def _check_nodes(nodes: tuple[Node, ...]) -> None:
    if not nodes:
        raise errors.EmptyGraphError("the graph has no nodes, expected at least one")
    seen: set[str] = set()
    for v, node in enumerate(nodes):
        if node.name in seen:
            raise errors.DuplicateNameError(
                f"node {v} ({node.name!r}): another node has this name, expected unique names"
            )
        seen.add(node.name)
        for field in ("flops", "bytes_accessed", "seconds"):
            value = getattr(node, field)
            if value is not None and not 0 <= value < math.inf:
                raise errors.CostError(
                    f"node {v} ({node.name!r}): {field} is {value}, "
                    "expected a finite number, 0 or more"
                )
        if node.pin is not None and node.pin < 0:
            raise errors.PinError(
                f"node {v} ({node.name!r}): pin is {node.pin}, expected a chip number, 0 or more"
            )


def _check_colocation(nodes: tuple[Node, ...]) -> None:
    pinned: dict[int, Node] = {}
    for v, node in enumerate(nodes):
        if node.colocate is None or node.pin is None:
            continue
        first = pinned.setdefault(node.colocate, node)
        if first.pin != node.pin:
            raise errors.PinError(
                f"node {v} ({node.name!r}): fixed to chip {node.pin}, but {first.name!r} of its "
                f"colocation group {node.colocate} is fixed to chip {first.pin}"
            )


def _checked_consumers(consumers: Iterable[int], count: int, where: str) -> tuple[int, ...]:
    distinct = tuple(sorted(set(consumers)))
    for q in distinct[:1] + distinct[-1:]:
        if not 0 <= q < count:
            raise errors.UnknownNodeError(
                f"{where}: consumer {q} is no node, expected 0 to {count - 1}"
            )
    return distinct


def _check_bytes(value: float, where: str) -> None:
    if not 0 <= value < math.inf:
        raise errors.CostError(f"{where}: bytes is {value}, expected a finite number, 0 or more")


def _checked_tensors(tensors: Iterable[Tensor], count: int) -> Iterable[Tensor]:
    for k, tensor in enumerate(tensors):
        where = f"tensor {k}"
        if not 0 <= tensor.producer < count:
            raise errors.UnknownNodeError(
                f"{where}: producer {tensor.producer} is no node, expected 0 to {count - 1}"
            )
        _check_bytes(tensor.bytes, where)
        consumers = _checked_consumers(tensor.consumers, count, where)
        yield Tensor(tensor.producer, tensor.bytes, consumers)


def _checked_weights(weights: Iterable[Weight], count: int) -> Iterable[Weight]:
    for w, weight in enumerate(weights):
        where = f"weight {w}"
        _check_bytes(weight.bytes, where)
        yield Weight(weight.bytes, _checked_consumers(weight.consumers, count, where))


def _check_order(nodes: tuple[Node, ...], tensors: tuple[Tensor, ...]) -> None:
    backward = next((k for k in tensors if k.consumers and k.consumers[0] <= k.producer), None)
    if backward is None:
        return
    successors: list[list[int]] = [[] for _ in nodes]
    for tensor in tensors:
        successors[tensor.producer].extend(tensor.consumers)
    if topological_order(successors) is None:
        raise errors.CycleError(_cycle_message(nodes, successors))
    u, v = backward.producer, backward.consumers[0]
    raise errors.OrderError(
        f"node {u} ({nodes[u].name!r}) feeds node {v} ({nodes[v].name!r}): expected nodes in a "
        "topological order, every edge from a lower to a higher number"
    )


def _cycle_message(nodes: Sequence[Node], successors: Sequence[Iterable[int]]) -> str:
    names = [repr(nodes[v].name) for v in find_cycle(successors)]
    shown = names if len(names) <= 6 else [*names[:3], "...", *names[-2:]]
    return f"the edges close a cycle: {' -> '.join([*shown, names[0]])}; expected an acyclic graph"


def _encode(graph: Graph, *, with_name: bool) -> bytes:
    number = _shortest_number
    file = {
        "format": "jaxpart-graph",
        "version": 1,
        **({"name": graph.name} if with_name else {}),
        "element_bytes": number(graph.element_bytes),
        "nodes": [_without_defaults(node, number) for node in graph.nodes],
        "tensors": [
            {"producer": k.producer, "bytes": number(k.bytes), "consumers": k.consumers}
            for k in graph.tensors
        ],
        "weights": [{"bytes": number(w.bytes), "consumers": w.consumers} for w in graph.weights],
    }
    return json.dumps(file, separators=(",", ":"), allow_nan=False).encode()


def _without_defaults(
    node: Node, number: Callable[[float | None], float | None]
) -> dict[str, object]:
    fields: dict[str, object] = {
        "name": node.name,
        "op": node.op,
        "flops": number(node.flops),
        "bytes_accessed": number(node.bytes_accessed),
    }
    if node.seconds is not None:
        fields["seconds"] = number(node.seconds)
    if node.colocate is not None:
        fields["colocate"] = node.colocate
    if node.pin is not None:
        fields["pin"] = node.pin
    return fields


def _shortest_number(value: float | None) -> float | None:
    """Whole numbers without a fraction: files stay short, and int or float hash alike."""
    return int(value) if value is not None and float(value).is_integer() else value
