"""The graph of one inference step: operations, tensors and weights.

All costs are per inference. Definitions: `jaxpart/README.md`.
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
from typing import Literal

import msgspec

from jaxpart import errors
from jaxpart.files import (
    decode_json,
    read_bytes,
    stem_of,
    uncompressed,
    without_mark,
    write_whole,
)
from jaxpart.problem.division import Division, Part, check_division, check_part
from jaxpart.problem.limits import COST_EXPECTED, ELEMENT_RANGE, is_cost
from jaxpart.problem.topological import find_cycle, topological_order

_COSTS = ("flops", "bytes_accessed", "seconds", "fixed_bytes")  # of a node
_EXACT = 2**53  # float64 has every whole number up to here


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation."""

    name: str
    op: str
    flops: float  # FLOP; a multiply-add counts 2
    bytes_accessed: float  # operands and results, each once, weights included
    seconds: float | None = None  # profiled time on a chip of speed 1; replaces the roofline
    colocate: int | None = None  # colocation group; all nodes of a group share a chip
    pin: int | None = None  # fixed chip: the only chip that may run the node
    fixed_bytes: float = 0.0  # the part of bytes_accessed that no element size scales
    divide: tuple[Division, ...] = ()  # the ways to split it
    part: Part | None = None  # which part of a split operation it is


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value. One node produces it; it is sent once to each other chip that consumes it."""

    producer: int  # node number
    bytes: float
    consumers: tuple[int, ...]  # node numbers, ascending; empty for an output of the graph
    fixed: bool = False  # whether no element size scales the bytes (integers, quantised values)


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter. Every chip with a consumer holds one copy."""

    bytes: float
    consumers: tuple[int, ...]  # node numbers, ascending
    fixed: bool = False  # whether no element size scales the bytes (integers, quantised values)


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

    A graph is immutable. The constructor checks it, sorts consumers and removes repeated ones.

    Attributes:
      nodes: the N operations. Node v is `nodes[v]`; every edge runs from a lower to a higher
        number.
      tensors: the K values that nodes pass to each other.
      weights: the W parameters. A parameter is never a node.
      name: for tables and file names.
      element_bytes: bytes that one element of a float tensor was counted as. None: the byte counts
        were measured (the published formats) and are never rescaled.

    Raises:
      EmptyGraphError: the graph has no nodes.
      DuplicateNameError: two nodes have the same name.
      CostError: a cost is not 0 and not within `COST_RANGE`, or `element_bytes` is not within
        `ELEMENT_RANGE` (`problem/limits.py`).
      GraphError: a name is not valid text (it contains a lone surrogate).
      UnknownNodeError: a tensor or weight names a node that does not exist.
      CycleError: the edges close a cycle.
      OrderError: an edge runs from a higher to a lower number.
      PinError: a fixed chip is negative, or one colocation group has two different fixed chips.
      DivisionError: a way to divide a node contradicts the graph.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...] = ()
    weights: tuple[Weight, ...] = ()
    name: str = "graph"
    element_bytes: float | None = 4

    def __post_init__(self) -> None:
        nodes = tuple(self.nodes)
        _check_nodes(nodes)
        nodes = tuple(map(_in_floats, nodes))
        object.__setattr__(self, "nodes", nodes)
        _check_colocation(nodes)
        _check_text(self.name, "the name of the graph")
        low, high = ELEMENT_RANGE
        if self.element_bytes is not None and not low <= self.element_bytes <= high:
            raise errors.CostError(
                f"element_bytes is {self.element_bytes}, expected a positive number, {low:g} to "
                f"{high:g}"
            )
        object.__setattr__(self, "tensors", tuple(_checked_tensors(self.tensors, len(nodes))))
        object.__setattr__(self, "weights", tuple(_checked_weights(self.weights, len(nodes))))
        _check_order(nodes, self.tensors)
        _check_divisions(nodes, self.tensors, self.weights)

    def __repr__(self) -> str:
        return (
            f"Graph({self.name!r}, {len(self.nodes)} nodes, {len(self.tensors)} tensors, "
            f"{len(self.weights)} weights)"
        )

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of what partitions of the graph cost. Equal graphs have equal hashes.

        The name, and ways to divide nodes, are not part of it.
        """
        nodes = tuple(msgspec.structs.replace(v, divide=()) if v.divide else v for v in self.nodes)
        content = _encode(dataclasses.replace(self, nodes=nodes), with_name=False)
        return hashlib.sha256(content).hexdigest()

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
        """E: the number of edges. An edge is a pair of a tensor and one of its consumers."""
        return sum(len(tensor.consumers) for tensor in self.tensors)

    def rescaled(self, element_bytes: float) -> Graph:
        """The graph with the bytes of its floats scaled to another element size.

        Fixed bytes (`Node.fixed_bytes`, `Tensor.fixed`, `Weight.fixed`) stay: integers and
        quantised values keep the size of their own type. A graph with measured bytes
        (`element_bytes` None) is returned unchanged.

        Args:
          element_bytes: the new size of one float element, in bytes. Example: 1 for an int8
            deployment.
        """
        if self.element_bytes is None or self.element_bytes == element_bytes:
            return self
        ratio = element_bytes / self.element_bytes
        replace = msgspec.structs.replace
        return dataclasses.replace(
            self,
            nodes=tuple(
                replace(
                    v, bytes_accessed=(v.bytes_accessed - v.fixed_bytes) * ratio + v.fixed_bytes
                )
                for v in self.nodes
            ),
            tensors=tuple(
                k if k.fixed else replace(k, bytes=k.bytes * ratio) for k in self.tensors
            ),
            weights=tuple(
                w if w.fixed else replace(w, bytes=w.bytes * ratio) for w in self.weights
            ),
            element_bytes=element_bytes,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the graph file. Equal graphs give equal bytes.

        The file is gzipped if the name ends in `.gz`.

        Raises:
          InputError: the folder does not exist or cannot be written.
        """
        content = _encode(self, with_name=True)
        if os.fspath(path).endswith(".gz"):
            content = _gzipped(content)
        write_whole(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Reads a graph file of jaxpart's own format, gzipped or not.

        Raises:
          InputError: the file cannot be read.
          FileFormatError: the file is empty, truncated, or breaks the schema.
          GraphError: the graph breaks a rule (see `Graph`); the message begins with the path.
        """
        return decode(uncompressed(read_bytes(path), path), path)


def _gzipped(content: bytes) -> bytes:
    # Not `gzip.compress`: its header differs between Python releases, and so would the bytes.
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def decode(content: bytes, path: str | os.PathLike[str]) -> Graph:
    """Decodes the graph in a file of jaxpart's own format.

    Args:
      content: the bytes of the file, uncompressed.
      path: for messages, and for the graph's name where the file has none.

    Raises:
      FileFormatError: the file is empty or breaks the schema.
      GraphError: the graph breaks a rule (see `Graph`); the message begins with the path.
    """
    if not without_mark(content).strip():
        raise errors.FileFormatError(f"{path}: the file is empty, expected a graph")
    file = decode_json(content, _GraphFile, path)
    name = file.name if file.name is not None else stem_of(path)
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
    """Builds a graph from nodes in any order; `topological_order` renumbers them.

    Args:
      nodes: [N] in any order.
      tensors: producers and consumers are positions in `nodes`.
      weights: consumers are positions in `nodes`.
      name: as in `Graph`.
      element_bytes: as in `Graph`.

    Raises:
      UnknownNodeError: a tensor or weight names a node that does not exist.
      CycleError: the edges close a cycle; the message names its nodes.
      GraphError: the graph breaks another rule (see `Graph`).
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
        tuple(Tensor(number[k.producer], k.bytes, renumber(k.consumers), k.fixed) for k in tensors),
        tuple(Weight(w.bytes, renumber(w.consumers), w.fixed) for w in weights),
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
        _check_text(node.name, f"node {v}: the name")
        _check_text(node.op, f"node {v}: the op")
        for field in _COSTS:
            value = getattr(node, field)
            if value is not None and not is_cost(value):
                raise errors.CostError(
                    f"node {v} ({node.name!r}): {field} is {value}, expected {COST_EXPECTED}"
                )
        # Rounding of sums may leave the part a little larger than the whole.
        if not 0 <= node.fixed_bytes <= node.bytes_accessed * (1 + 1e-9):
            raise errors.CostError(
                f"node {v} ({node.name!r}): fixed_bytes is {node.fixed_bytes}, expected 0 to "
                f"bytes_accessed, {node.bytes_accessed}"
            )
        if node.pin is not None and node.pin < 0:
            raise errors.PinError(
                f"node {v} ({node.name!r}): pin is {node.pin}, expected a chip number, 0 or more"
            )


def _check_colocation(nodes: tuple[Node, ...]) -> None:
    first_fixed: dict[int, Node] = {}  # by colocation group
    for v, node in enumerate(nodes):
        if node.colocate is None or node.pin is None:
            continue
        first = first_fixed.setdefault(node.colocate, node)
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


def _in_float(value: float) -> float:
    """A whole number that float64 does not have becomes the nearest one: files are read in it."""
    return float(value) if isinstance(value, int) and value > _EXACT else value


def _in_floats(node: Node) -> Node:
    """The node with `_in_float` applied to its costs."""
    if max(node.flops, node.bytes_accessed, node.fixed_bytes, node.seconds or 0) <= _EXACT:
        return node
    changes = {field: _in_float(getattr(node, field)) for field in _COSTS}
    return msgspec.structs.replace(node, **changes)


def _check_bytes(value: float, where: str) -> None:
    if not is_cost(value):
        raise errors.CostError(f"{where}: bytes is {value}, expected {COST_EXPECTED}")


def _check_text(name: str, what: str) -> None:
    """Refuses a name that no file can hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise errors.GraphError(f"{what} is {name!r}, expected valid text") from error


def _checked_tensors(tensors: Iterable[Tensor], count: int) -> Iterable[Tensor]:
    for k, tensor in enumerate(tensors):
        where = f"tensor {k}"
        if not 0 <= tensor.producer < count:
            raise errors.UnknownNodeError(
                f"{where}: producer {tensor.producer} is no node, expected 0 to {count - 1}"
            )
        _check_bytes(tensor.bytes, where)
        consumers = _checked_consumers(tensor.consumers, count, where)
        yield Tensor(tensor.producer, _in_float(tensor.bytes), consumers, tensor.fixed)


def _checked_weights(weights: Iterable[Weight], count: int) -> Iterable[Weight]:
    for w, weight in enumerate(weights):
        where = f"weight {w}"
        _check_bytes(weight.bytes, where)
        consumers = _checked_consumers(weight.consumers, count, where)
        yield Weight(_in_float(weight.bytes), consumers, weight.fixed)


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


def _check_divisions(
    nodes: tuple[Node, ...], tensors: tuple[Tensor, ...], weights: tuple[Weight, ...]
) -> None:
    if not any(node.divide or node.part for node in nodes):
        return
    read: list[set[int]] = [set() for _ in nodes]
    held: list[set[int]] = [set() for _ in nodes]
    for k, tensor in enumerate(tensors):
        for q in tensor.consumers:
            read[q].add(k)
    for w, weight in enumerate(weights):
        for q in weight.consumers:
            held[q].add(w)
    for v, node in enumerate(nodes):
        where = f"node {v} ({node.name!r})"
        for i, division in enumerate(node.divide):
            check_division(division, f"{where}: divide[{i}]", read[v], held[v])
        if node.part is not None:
            check_part(node.part, f"{where}: part")


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
            | ({"fixed": True} if k.fixed else {})
            for k in graph.tensors
        ],
        "weights": [
            {"bytes": number(w.bytes), "consumers": w.consumers}
            | ({"fixed": True} if w.fixed else {})
            for w in graph.weights
        ],
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
    if node.fixed_bytes:
        fields["fixed_bytes"] = number(node.fixed_bytes)
    if node.divide:
        fields["divide"] = [msgspec.to_builtins(division) for division in node.divide]
    if node.part is not None:
        fields["part"] = msgspec.to_builtins(node.part)
    return fields


def _shortest_number(value: float | None) -> float | None:
    """Turns a whole number into an int: files stay short, and 2 and 2.0 hash alike."""
    return int(value) if value is not None and float(value).is_integer() else value
