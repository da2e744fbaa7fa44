"""Values of a model that depend on no input: what they are made of, and what is read for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from onnx import TensorProto

from jaxpart.ingest.onnx.constants import is_index_type
from jaxpart.ingest.onnx.model import Model
from jaxpart.ingest.onnx.operation import is_shape, reads
from jaxpart.ingest.onnx.shapes import Array
from jaxpart.ingest.onnx.sizes import Bytes, Size, total

# Bytes: index types and booleans up to this size are shapes, axes and indices, not weights.
_SMALL_CONSTANT_BYTES = 1024
# Operators with operands and random results: never folded, even if the operands are constants.
_RANDOM_LIKE = frozenset(("Bernoulli", "RandomNormalLike", "RandomUniformLike", "Multinomial"))


@dataclasses.dataclass(frozen=True)
class ConstantValue:
    """A value that depends on no input.

    Attributes:
      sources: names of the weights that it is made of.
      reads: bytes that a consumer must read for it, counted in the types of the weights.
      stored: as `reads`, as the model stores them.
      elements: number of elements that it is made of; fewer than it has if it is broadcast.
    """

    sources: frozenset[str]
    reads: Bytes
    stored: float
    elements: int

    def touched(self, array: Array, size: Size, times: float) -> Bytes:
        """Bytes that are read if a consumer reads all elements `times` times.

        Args:
          array: type and shape of the value.
          size: counts the bytes of a value.
          times: below 1 if the consumer reads a part.
        """
        broadcast = self.elements < array.elements
        if times < 1 and broadcast:  # the part may be larger than what the whole is made of
            return size(array).times(times) if array.bytes * times < self.stored else self.reads
        return self.reads.times(times)


def _derived(array: Array, operands: Sequence[ConstantValue], size: Size) -> ConstantValue:
    """A value that is computed from constants: a consumer reads it, or what it is made of."""
    sources = frozenset().union(*(operand.sources for operand in operands))
    elements = min(sum(operand.elements for operand in operands), array.elements)
    stored = sum(operand.stored for operand in operands)
    if stored <= array.bytes:  # as stored: the types of the weights decide, not how they count
        return ConstantValue(sources, total(o.reads for o in operands), stored, elements)
    return ConstantValue(sources, size(array), array.bytes, elements)


def is_small(array: Array) -> bool:
    """Whether a constant is part of the program and not a weight."""
    return array.elements <= 1 or (is_index_type(array) and array.bytes <= _SMALL_CONSTANT_BYTES)


def constant_values(
    model: Model,
    alias: Mapping[str, str],
    size: Size,
    stored: dict[str, tuple[Array, Bytes]],
) -> dict[str, ConstantValue]:
    """The values that depend on no input, by name.

    Args:
      model: the model.
      alias: the result of each node that does nothing -> the value that the node passes on.
      size: counts the bytes of a value.
      stored: the values that are weights are added to it, with their type, shape and bytes.
    """
    constants: dict[str, ConstantValue] = {}

    def add_weight(name: str, array: Array, read: Bytes, held: float) -> None:
        if not is_small(array):
            stored[name] = (array, read)
        sources = frozenset(() if is_small(array) else (name,))
        constants[name] = ConstantValue(sources, read, held, array.elements)

    for name, held in model.initializers.items():
        array = model.arrays[name]
        # A sparse tensor keeps the size of what it stores: part of it is indices.
        add_weight(name, array, size(array) if held == array.bytes else Bytes(held, held), held)
    for node in model.nodes:
        results = [result for result in node.output if result]
        operands = [alias.get(operand, operand) for operand in reads(node)]
        if is_shape(node):
            array = model.arrays[results[0]]
            made = ConstantValue(frozenset(), size(array), array.bytes, array.elements)
            constants[results[0]] = made
            continue
        if node.op_type in _RANDOM_LIKE or not all(operand in constants for operand in operands):
            continue
        made_of = [constants[operand] for operand in operands]
        for result in results:
            # No node reads a result without a shape.
            array = model.arrays.get(result, Array(TensorProto.FLOAT, ()))
            derived = _derived(array, made_of, size)
            if derived.sources or node.op_type == "Expand":
                constants[result] = derived
            elif derived.elements < array.elements:  # made of nothing: ConstantOfShape
                add_weight(result, array, size(array), array.bytes)
            else:  # made element by element: a bias of int32
                add_weight(result, array, derived.reads, derived.stored)
    return constants
