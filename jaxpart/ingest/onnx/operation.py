"""ONNX nodes: what they read, and the types and shapes around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto

from jaxpart.ingest.onnx.shapes import Array, array_of, attributes, constant_array

Arrays = Sequence[Array | None]  # None: an optional operand or result that is left out


def label(node: NodeProto) -> str:
    """What messages call a node, in one line."""
    return " ".join(f"{node.name or 'a node'} ({node.op_type})".split())


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The bodies that a node carries (If, Loop, Scan)."""
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def reads(node: NodeProto) -> list[str]:
    """Names of the values that a node reads, those that its bodies capture included, each once."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in subgraphs(node):
        made = {value.name for value in body.input}
        made.update(tensor.name for tensor in body.initializer)
        for inner in body.node:
            names.update(dict.fromkeys(name for name in reads(inner) if name not in made))
            made.update(inner.output)
        names.update(dict.fromkeys(o.name for o in body.output if o.name not in made))
    return list(names)


def body_constants(node: NodeProto) -> list[Array]:
    """Types and shapes of the tensors stored within a node's bodies."""
    found: list[Array] = []
    for body in subgraphs(node):
        found += [array_of(tensor) for tensor in body.initializer]
        for inner in body.node:
            array = constant_array(inner) if inner.op_type == "Constant" else None
            found += [array] if array is not None else body_constants(inner)
    return found


@dataclasses.dataclass(frozen=True)
class Operation:
    """A node with the types and shapes around it."""

    node: NodeProto
    inputs: Arrays
    outputs: Arrays
    values: Mapping[str, np.ndarray]  # contents of small constants
    outer: Mapping[str, Array]  # of the graph around, for bodies

    @property
    def out(self) -> int:
        """Elements of all results."""
        return sum(array.elements for array in self.outputs if array is not None)

    @property
    def folded_in(self) -> int:
        """Elements of the first operand beyond those of the first result."""
        return max(self.shape(0).elements - self.result.elements, 0)

    @property
    def result(self) -> Array:
        """The first result."""
        array = next((a for a in self.outputs if a is not None), None)
        return array if array is not None else Array(1, (0,))

    def shape(self, position: int) -> Array:
        """Operand `position`; empty where left out."""
        array = self.inputs[position] if position < len(self.inputs) else None
        return array if array is not None else Array(1, (0,))

    def has(self, position: int) -> bool:
        """Whether operand `position` is there."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def wholes(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of whole numbers."""
        given = attributes(self.node).get(name)
        return list(given.ints) if given is not None else list(default)

    def whole(self, name: str, default: int) -> int:
        """An attribute of one whole number."""
        given = attributes(self.node).get(name)
        return given.i if given is not None else default

    def text(self, name: str, default: str) -> str:
        """An attribute of text."""
        given = attributes(self.node).get(name)
        return given.s.decode() if given is not None else default
