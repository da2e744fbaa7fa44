"""ONNX nodes: the values that they read, with their types and shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from jaxpart.ingest.onnx.shapes import Array, array_of, attributes, constant_array

STANDARD = ("", "ai.onnx")  # names of the domain of ONNX itself
Arrays = Sequence[Array | None]  # None: an optional operand or result is absent


def label(node: NodeProto) -> str:
    """Name and operator of a node for messages, in one line."""
    return " ".join(f"{node.name or 'a node'} ({node.op_type})".split())


def is_shape(node: NodeProto) -> bool:
    """Whether a node gives the shape of its operand, or its number of elements."""
    return node.op_type in ("Shape", "Size") and node.domain in STANDARD


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The bodies of a node (If, Loop, Scan)."""
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def attribute_tensors(node: NodeProto) -> list[TensorProto]:
    """The tensors in the attributes of a node."""
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            found.append(attribute.t)
        elif attribute.type == AttributeProto.TENSORS:
            found.extend(attribute.tensors)
        elif attribute.type == AttributeProto.SPARSE_TENSOR:
            found += [attribute.sparse_tensor.values, attribute.sparse_tensor.indices]
    return found


def reads(node: NodeProto) -> list[str]:
    """Names of the values that a node reads or its bodies capture, each once."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in subgraphs(node):
        made = {value.name for value in body.input}
        made.update(tensor.name for tensor in body.initializer)
        for inner in body.node:
            names.update(dict.fromkeys(name for name in reads(inner) if name not in made))
            made.update(inner.output)
        names.update(dict.fromkeys(o.name for o in body.output if o.name not in made))
    return list(names)


def live(outputs: Iterable[str], order: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes that an output depends on.

    Args:
      outputs: names of the outputs.
      order: nodes in a topological order.

    Returns:
      Those nodes, in the same order.
    """
    needed = set(outputs)
    kept = []
    for node in reversed(order):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            kept.append(node)
    return kept[::-1]


def body_constants(node: NodeProto) -> list[Array]:
    """Types and shapes of the tensors that are stored in the bodies of a node."""
    found: list[Array] = []
    for body in subgraphs(node):
        found += [array_of(tensor) for tensor in body.initializer]
        for inner in body.node:
            array = constant_array(inner) if inner.op_type == "Constant" else None
            found += [array] if array is not None else body_constants(inner)
    return found


@dataclasses.dataclass(frozen=True)
class Operation:
    """A node with the types and shapes of its values.

    Attributes:
      node: the node.
      inputs: type and shape of each operand, in order.
      outputs: type and shape of each result, in order.
      values: name of a small constant -> contents.
      outer: name of a value of the graph that holds the node -> type and shape. The bodies of the
        node may capture these values.
      opset: version of the standard operators; some changed their meaning.
      told: "RESULT:trips" -> number of trips of a Loop that the user tells.
    """

    node: NodeProto
    inputs: Arrays
    outputs: Arrays
    values: Mapping[str, np.ndarray]
    outer: Mapping[str, Array]
    opset: int = 99
    told: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def is_standard(self) -> bool:
        """Whether the operator is one of ONNX itself."""
        return self.node.domain in STANDARD

    @property
    def out(self) -> int:
        """Number of elements of all results together."""
        return sum(array.elements for array in self.outputs if array is not None)

    @property
    def folded_in(self) -> int:
        """Number of elements of the first operand minus that of the first result, at least 0."""
        return max(self.shape(0).elements - self.result.elements, 0)

    @property
    def result(self) -> Array:
        """Type and shape of the first result; no elements if there is none."""
        array = next((a for a in self.outputs if a is not None), None)
        return array if array is not None else Array(1, (0,))

    def shape(self, position: int) -> Array:
        """Type and shape of operand `position`; no elements if it is absent."""
        array = self.inputs[position] if position < len(self.inputs) else None
        return array if array is not None else Array(1, (0,))

    def has(self, position: int) -> bool:
        """Whether operand `position` is present."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def number(self, position: int, default: int) -> int:
        """Content of operand `position`, one integer; `default` if it is absent or not known."""
        name = self.node.input[position] if position < len(self.node.input) else ""
        content = self.values.get(name) if name else None
        return default if content is None or content.size != 1 else int(content.item())

    def wholes(self, name: str, default: Sequence[int]) -> list[int]:
        """Attribute `name`, a list of integers; `default` if it is absent."""
        given = attributes(self.node).get(name)
        return list(given.ints) if given is not None else list(default)

    def whole(self, name: str, default: int) -> int:
        """Attribute `name`, one integer; `default` if it is absent."""
        given = attributes(self.node).get(name)
        return given.i if given is not None else default

    def text(self, name: str, default: str) -> str:
        """Attribute `name`, a text; `default` if it is absent."""
        given = attributes(self.node).get(name)
        return given.s.decode() if given is not None else default
