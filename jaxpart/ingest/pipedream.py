"""PipeDream profiles (SOSP 2019, `graph.txt`): layers with measured times and sizes.

- A line is a node, `node4 -- Embedding(...) -- forward_compute_time=0.073, ...`, or an indented
  edge, `node4 -- node5`. Nodes are named by their id. Input nodes stay nodes.
- forward_compute_time (ms) gives the profiled seconds of the node.
- activation_size (bytes; the sum if it is a list, `[8.0; 4.0]`) gives the one tensor that the node
  produces.
- parameter_size (bytes) gives one weight.
- Other fields are ignored.
- Numbers are decimal, in ASCII.
"""

from __future__ import annotations

import os
import re

from jaxpart import errors
from jaxpart.files import MIB, stem_of
from jaxpart.problem.graph import Graph, Node, Tensor, Weight, from_unordered
from jaxpart.problem.limits import COST_EXPECTED, is_cost
from jaxpart.text import decimal

_NODE = re.compile(r"^(?P<id>\S+) -- (?P<op>.*) -- (?P<fields>[^-].*)$")
_EDGE = re.compile(r"^\s+(?P<source>\S+) -- (?P<target>\S+)\s*$")
# What the numbers of a field are divided by, and the unit after that.
_UNITS = {
    "forward_compute_time": (1000, "s"),
    "activation_size": (1, "bytes"),
    "parameter_size": (1, "bytes"),
}
_MAX_BYTES = 16 * MIB  # profiles have some hundred lines
_HEAD_BYTES = 10_000  # what is looked at to recognise a profile


def is_profile(content: bytes) -> bool:
    """Whether the first line is a node or an edge of a profile."""
    first = content[:_HEAD_BYTES].lstrip(b"\r\n").split(b"\n", 1)[0].decode("utf-8", "replace")
    return bool(_NODE.match(first) or _EDGE.match(first))


def decode(content: bytes, path: str | os.PathLike[str]) -> Graph:
    """Decodes the graph of a profile.

    Args:
      content: the bytes of the file.
      path: for messages, and for the name of the graph.

    Raises:
      FileFormatError: the file is not UTF-8 text, a line is neither a node nor an edge, a number is
        missing, given twice or wrong, or an edge names an unknown node.
      CostError: a number is out of range.
      DuplicateNameError: two nodes have the same id.
      GraphError: as for `Graph`; the message begins with the path.
    """
    nodes: list[Node] = []
    sizes: list[float] = []
    weights: list[Weight] = []
    number: dict[str, int] = {}
    edges: list[tuple[int, str, str]] = []
    for row, line in enumerate(_text(content, path).splitlines(), 1):
        where = f"{path}: line {row}"
        if not line.strip():
            continue
        if edge := _EDGE.match(line):
            edges.append((row, edge["source"], edge["target"]))
            continue
        node = _NODE.match(line)
        if node is None:
            raise errors.FileFormatError(
                f"{where}: expected 'ID -- layer -- name=value, ...' or an indented 'ID -- ID'"
            )
        fields = _fields(node["fields"], where)
        if node["id"] in number:
            raise errors.DuplicateNameError(
                f"{where}: {node['id']} is there twice, expected unique ids"
            )
        number[node["id"]] = len(nodes)
        op = re.split(r"\W", node["op"].strip(), maxsplit=1)[0] or "layer"
        seconds = _figure(fields, "forward_compute_time", where)
        weights.append(Weight(_figure(fields, "parameter_size", where), (len(nodes),)))
        sizes.append(_figure(fields, "activation_size", where))
        nodes.append(Node(node["id"], op, 0, 0, seconds=seconds))
    consumers: list[list[int]] = [[] for _ in nodes]
    for row, source, target in edges:
        for end in (source, target):
            if end not in number:
                raise errors.FileFormatError(
                    f"{path}: line {row}: {end} is no node of the file, expected one"
                )
        consumers[number[source]].append(number[target])
    tensors = [Tensor(v, size, tuple(consumers[v])) for v, size in enumerate(sizes)]
    try:
        return from_unordered(nodes, tensors, weights, stem_of(path), None)
    except errors.GraphError as error:
        raise type(error)(f"{path}: {error}") from error


def _text(content: bytes, path: str | os.PathLike[str]) -> str:
    if len(content) > _MAX_BYTES:
        raise errors.FileFormatError(
            f"{path}: is larger than {_MAX_BYTES // MIB} MiB, the limit for a PipeDream profile"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise errors.FileFormatError(f"{path}: byte {error.start} is no UTF-8 text") from error


def _fields(text: str, where: str) -> dict[str, str]:
    """The fields of a node, `name=value` between commas; what has no `=` is ignored."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip()
        if equals and key in fields:
            raise errors.FileFormatError(f"{where}: {key} is there twice, expected it once")
        if equals:
            fields[key] = value.strip(" \t\r")
    return fields


def _figure(fields: dict[str, str], key: str, where: str) -> float:
    """The value of a field in seconds or bytes: a number, or the sum of a list of numbers."""
    if key not in fields:
        raise errors.FileFormatError(f"{where}: {key} is missing")
    text = fields[key]
    is_list = text.startswith("[") and text.endswith("]")
    parts = text[1:-1].split(";") if is_list else [text]
    numbers = [number for part in parts if (number := decimal(part.strip(" "))) is not None]
    if len(numbers) < len(parts):
        raise errors.FileFormatError(
            f"{where}: {key} is {text!r}, expected a number or a list such as [8.0; 4.0]"
        )
    per_unit, unit = _UNITS[key]
    total = sum(numbers) / per_unit
    # Each is checked: a negative part must not hide in the sum.
    each = [number / per_unit for number in numbers]
    wrong = next((value for value in (*each, total) if not is_cost(value)), None)
    if wrong is not None:
        raise errors.CostError(
            f"{where}: {key} is {text}: {wrong:g} {unit}, expected {COST_EXPECTED}"
        )
    return total
