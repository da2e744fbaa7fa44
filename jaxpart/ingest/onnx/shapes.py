"""Types and shapes of ONNX values, and the small constants that determine other shapes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from jaxpart.errors import FileFormatError

# Elements: contents of constants up to this size are read (shapes, axes, trip counts).
SMALL = 1024
# Elements: floats up to this size may be factors of sizes; larger ones are weights.
_MOST_FLOATS = 64

_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
# Floats of 16 bits and more. Narrower ones (FLOAT8, FLOAT4) are quantised values.
_FLOATS = frozenset(
    (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
        *(TensorProto.COMPLEX64, TensorProto.COMPLEX128),
    )
)
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
# Bits of one element, by the start of the name of its type.
_BITS = {"FLOAT4": 4, "FLOAT6": 6, "FLOAT8": 8, "INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4}
_STRING_BYTES = 8  # a reference to the string


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and shape of a value.

    Attributes:
      dtype: a `TensorProto.DataType`.
      shape: size of each axis.
    """

    dtype: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_proper(self) -> bool:
        """Whether the type exists in ONNX and no size is negative."""
        return self.dtype in _TYPES and all(extent >= 0 for extent in self.shape)

    @property
    def is_float(self) -> bool:
        """Whether elements are real or complex floating-point numbers of 16 bits or more.

        Narrower floats are quantised values: they keep their size, as integers do.
        """
        return self.dtype in _FLOATS

    @property
    def is_complex(self) -> bool:
        """Whether elements are complex."""
        return self.dtype in _COMPLEX

    @property
    def element_bytes(self) -> float:
        """Bytes of one element as the model stores it; a string counts as a reference (8 bytes)."""
        if self.dtype == TensorProto.STRING:
            return _STRING_BYTES
        name = TensorProto.DataType.Name(self.dtype)  # type: ignore[arg-type]
        for prefix, bits in _BITS.items():
            if name.startswith(prefix):
                return bits / 8
        return onnx.helper.tensor_dtype_to_np_dtype(self.dtype).itemsize

    @property
    def bytes(self) -> float:
        """Bytes of all elements as the model stores them, rounded up to whole bytes."""
        return math.ceil(self.elements * self.element_bytes)


def array_of(tensor: TensorProto) -> Array:
    """Type and shape of a stored tensor."""
    return Array(tensor.data_type, tuple(tensor.dims))


def known_arrays(graph: GraphProto) -> dict[str, Array]:
    """Type and shape, by name, of each value for which both are known; bodies are left out."""
    arrays = {tensor.name: array_of(tensor) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            continue
        if all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shape = tuple(dim.dim_value for dim in tensor.shape.dim)
            array = Array(tensor.elem_type, shape)
            if array.is_proper:
                arrays.setdefault(value.name, array)
    return arrays


def is_no_tensor(graph: GraphProto, name: str) -> bool:
    """Whether the graph declares value `name` as a sequence, an optional or a map."""
    return any(
        value.name == name
        and value.type.WhichOneof("value") not in (None, "tensor_type", "sparse_tensor_type")
        for value in (*graph.input, *graph.value_info, *graph.output)
    )


def attributes(node: NodeProto) -> dict[str, onnx.AttributeProto]:
    """The attributes of a node by name."""
    return {attribute.name: attribute for attribute in node.attribute}


def constant_array(node: NodeProto) -> Array | None:
    """Type and shape of the result of a Constant node; None if it is sparse or text."""
    for name, attribute in attributes(node).items():
        if name == "value":
            return array_of(attribute.t)
        if name in ("value_int", "value_ints"):
            return Array(TensorProto.INT64, (len(attribute.ints),) if name[-1] == "s" else ())
        if name in ("value_float", "value_floats"):
            return Array(TensorProto.FLOAT, (len(attribute.floats),) if name[-1] == "s" else ())
    return None


def small_values(graph: GraphProto, where: str) -> dict[str, np.ndarray]:
    """Contents of the small initializers and Constant nodes of a graph; bodies are left out.

    Args:
      graph: tensors of more than `SMALL` elements and those in other files are left out.
      where: name of the model, for messages.

    Returns:
      Name -> contents.

    Raises:
      FileFormatError: the contents of a tensor do not match its type and shape.
    """
    values = {
        tensor.name: _contents(tensor, where) for tensor in graph.initializer if _held(tensor)
    }
    for node in graph.node:
        array = constant_array(node) if node.op_type == "Constant" else None
        if array is None or array.elements > SMALL:
            continue
        attribute = node.attribute[0]
        if attribute.name == "value":
            if _held(attribute.t):
                values[node.output[0]] = _contents(attribute.t, where)
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(array.dtype)
            content = onnx.helper.get_attribute_value(attribute)
            values[node.output[0]] = np.asarray(content, dtype)
    return values


def followed(content: np.ndarray) -> bool:
    """Whether sizes may be computed from the contents of a small constant."""
    return content.dtype.kind in "biuSUO" or content.size <= _MOST_FLOATS


def is_external(tensor: TensorProto) -> bool:
    """Whether the contents of a stored tensor are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def _held(tensor: TensorProto) -> bool:
    """Whether the contents of a stored tensor are small and in the model itself."""
    return not is_external(tensor) and array_of(tensor).elements <= SMALL


def _contents(tensor: TensorProto, where: str) -> np.ndarray:
    """Contents of a stored tensor."""
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{where}: initializer {tensor.name!r} does not hold what its type and shape say "
            f"({error})"
        ) from error
