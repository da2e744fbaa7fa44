"""Types and shapes of ONNX values, and the small constants that determine other shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator

from jaxpart.errors import FileFormatError

# Elements: contents of constants up to this size are read (shapes, axes, trip counts).
SMALL = 1024

_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_FLOATS = frozenset(
    value
    for name, value in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "DOUBLE", "BFLOAT", "COMPLEX"))
)
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
# Bits of one element, by the start of the name of its type.
_BITS = {"FLOAT4": 4, "FLOAT6": 6, "FLOAT8": 8, "INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4}
_STRING_BYTES = 8  # a reference to the string

# Operators with which exporters compute shapes. Apart from broadcasting, the result of each has no
# more elements than its operands have together.
# fmt: off
_SHAPE_OPS = frozenset(
    [
        "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater",
        "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg",
        "Not", "Or", "Pow", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape",
        "Round", "ScatterElements", "ScatterND", "Slice", "Split", "Sqrt", "Squeeze", "Sub",
        "Transpose", "Unsqueeze", "Where", "Constant",
    ]
)
# fmt: on
# Operators with which exporters compute shapes, but whose results can be large: `_growth`.
_GROWING = frozenset(("ConstantOfShape", "Expand", "Range"))


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
        """Whether elements are real or complex floating-point numbers."""
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
        """Bytes of all elements as the model stores them."""
        return self.elements * self.element_bytes


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
    """Contents of the initializers and small Constant nodes of a graph.

    Args:
      graph: all its initializers are read, and Constant nodes of at most `SMALL` elements.
      where: name of the model, for messages.

    Returns:
      Name -> contents.

    Raises:
      FileFormatError: the contents of a tensor do not match its type and shape.
    """
    values = {tensor.name: _contents(tensor, where) for tensor in graph.initializer}
    for node in graph.node:
        array = constant_array(node) if node.op_type == "Constant" else None
        if array is None or array.elements > SMALL:
            continue
        attribute = node.attribute[0]
        if attribute.name == "value":
            values[node.output[0]] = _contents(attribute.t, where)
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(array.dtype)
            content = onnx.helper.get_attribute_value(attribute)
            values[node.output[0]] = np.asarray(content, dtype)
    return values


def fold_shapes(
    model: ModelProto, arrays: Mapping[str, Array], where: str
) -> dict[str, np.ndarray]:
    """Computes the values that depend on shapes and small constants alone.

    Args:
      model: its nodes are in a topological order.
      arrays: types and shapes that are known so far, by name.
      where: name of the model, for messages.

    Returns:
      Name -> contents, for all outputs of each node that could be computed.

    Raises:
      FileFormatError: a computation fails.
    """
    known = small_values(model.graph, where)
    folded: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        results: list[np.ndarray] | None = None
        if node.op_type == "Constant":
            results = [known[node.output[0]]] if node.output[0] in known else None
        elif node.op_type in ("Shape", "Size"):
            array = arrays.get(node.input[0])
            results = None if array is None else [_shape_of(node, array)]
        elif all(name in known for name in node.input if name):
            results = _evaluated(node, model, known, where)
        if results is not None:
            folded.update(zip(node.output, results, strict=False))
            known.update(zip(node.output, results, strict=False))
    return folded


def _contents(tensor: TensorProto, where: str) -> np.ndarray:
    """Contents of a stored tensor."""
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{where}: initializer {tensor.name!r} does not hold what its type and shape say "
            f"({error})"
        ) from error


def _shape_of(node: NodeProto, array: Array) -> np.ndarray:
    """Result of a Shape or Size node whose operand is `array`."""
    if node.op_type == "Size":
        return np.array(array.elements, np.int64)
    given = attributes(node)
    start = given["start"].i if "start" in given else 0
    stop = given["end"].i if "end" in given else None
    return np.array(array.shape[start:stop], np.int64)


def _evaluated(
    node: NodeProto, model: ModelProto, known: Mapping[str, np.ndarray], where: str
) -> list[np.ndarray] | None:
    """Results of a node, computed by the reference implementation of the onnx package.

    Returns:
      The results; None if they may be large, or if the operator is not one for shapes.
    """
    operands = {name: known[name] for name in node.input if name}
    if node.domain not in ("", "ai.onnx") or node.op_type not in _SHAPE_OPS | _GROWING:
        return None
    blank = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "one", [blank(name) for name in operands], [blank(name) for name in node.output]
    )
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        if node.op_type in _GROWING and _growth(node, known) > SMALL:
            return None
        results = ReferenceEvaluator(single).run(None, operands)
    except Exception as error:  # the reference can raise any exception
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(
            f"{where}: node {node.name or node.output[0]!r} ({node.op_type}) fails on its "
            f"constants: {reason}"
        ) from error
    arrays = [np.asarray(result) for result in results]  # type: ignore[arg-type]
    return arrays if all(array.size <= SMALL for array in arrays) else None


def _growth(node: NodeProto, known: Mapping[str, np.ndarray]) -> float:
    """Number of elements of the result of a ConstantOfShape, Expand or Range node."""
    if node.op_type == "Range":
        start, limit, delta = (float(known[name]) for name in node.input)
        return (limit - start) / delta
    return float(np.prod(known[node.input[-1]], dtype=np.float64))
