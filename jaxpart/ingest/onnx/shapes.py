"""Types and shapes of ONNX values, and the small constants that other shapes are computed from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator

from jaxpart.errors import FileFormatError

# Contents of constants up to this many elements are read: shapes, axes, trip counts.
SMALL = 1024

_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_FLOATS = frozenset(
    value
    for name, value in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "DOUBLE", "BFLOAT", "COMPLEX"))
)
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_BITS = {"FLOAT4": 4, "FLOAT6": 6, "FLOAT8": 8, "INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4}
_STRING_BYTES = 8  # a reference to it

# What exporters compute shapes with. Each gives no more elements than its inputs have together,
# broadcasting aside, unless it is one of `_GROWING`, which are measured first.
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
_GROWING = frozenset(("ConstantOfShape", "Expand", "Range"))


@dataclasses.dataclass(frozen=True)
class Array:
    """Type (a `TensorProto.DataType`) and shape of a value."""

    dtype: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_proper(self) -> bool:
        """Whether it is a type of ONNX, and no size is negative."""
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
        """Bytes of one element as the model stores it; a string counts as a reference, 8."""
        if self.dtype == TensorProto.STRING:
            return _STRING_BYTES
        name = TensorProto.DataType.Name(self.dtype)  # type: ignore[arg-type]
        for prefix, bits in _BITS.items():
            if name.startswith(prefix):
                return bits / 8
        return onnx.helper.tensor_dtype_to_np_dtype(self.dtype).itemsize

    @property
    def bytes(self) -> float:
        """Bytes as the model stores it."""
        return self.elements * self.element_bytes


def array_of(tensor: TensorProto) -> Array:
    """Type and shape of a stored tensor."""
    return Array(tensor.data_type, tuple(tensor.dims))


def known_arrays(graph: GraphProto) -> dict[str, Array]:
    """Type and shape of each value of the graph, its bodies aside, where both are known."""
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
    """Whether the graph says that a value is a sequence, an optional or a map."""
    return any(
        value.name == name
        and value.type.WhichOneof("value") not in (None, "tensor_type", "sparse_tensor_type")
        for value in (*graph.input, *graph.value_info, *graph.output)
    )


def attributes(node: NodeProto) -> dict[str, onnx.AttributeProto]:
    """A node's attributes by name."""
    return {attribute.name: attribute for attribute in node.attribute}


def constant_array(node: NodeProto) -> Array | None:
    """Type and shape of what a Constant node gives; None where sparse or text."""
    for name, attribute in attributes(node).items():
        if name == "value":
            return array_of(attribute.t)
        if name in ("value_int", "value_ints"):
            return Array(TensorProto.INT64, (len(attribute.ints),) if name[-1] == "s" else ())
        if name in ("value_float", "value_floats"):
            return Array(TensorProto.FLOAT, (len(attribute.floats),) if name[-1] == "s" else ())
    return None


def small_values(graph: GraphProto, where: str) -> dict[str, np.ndarray]:
    """Contents of the graph's small stored tensors and Constant nodes.

    Raises:
      FileFormatError: a tensor holds other than its type and shape say.
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
    """Contents of what the model computes from shapes and small constants alone.

    Args:
      model: nodes in a topological order.
      arrays: types and shapes known so far.
      where: for messages.

    Returns:
      The outputs of every node that could be computed, all outputs of a node or none.

    Raises:
      FileFormatError: such a computation fails.
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
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{where}: initializer {tensor.name!r} does not hold what its type and shape say "
            f"({error})"
        ) from error


def _shape_of(node: NodeProto, array: Array) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(array.elements, np.int64)
    given = attributes(node)
    start = given["start"].i if "start" in given else 0
    stop = given["end"].i if "end" in given else None
    return np.array(array.shape[start:stop], np.int64)


def _evaluated(
    node: NodeProto, model: ModelProto, known: Mapping[str, np.ndarray], where: str
) -> list[np.ndarray] | None:
    """A node's results by the reference of the onnx package; None where they may be large."""
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
    except Exception as error:  # whatever the reference of an operator raises
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(
            f"{where}: node {node.name or node.output[0]!r} ({node.op_type}) fails on its "
            f"constants: {reason}"
        ) from error
    arrays = [np.asarray(result) for result in results]  # type: ignore[arg-type]
    return arrays if all(array.size <= SMALL for array in arrays) else None


def _growth(node: NodeProto, known: Mapping[str, np.ndarray]) -> float:
    """Elements that ConstantOfShape, Expand or Range will make."""
    if node.op_type == "Range":
        start, limit, delta = (float(known[name]) for name in node.input)
        return (limit - start) / delta
    return float(np.prod(known[node.input[-1]], dtype=np.float64))
