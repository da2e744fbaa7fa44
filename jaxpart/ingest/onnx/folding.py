"""Computes values that are known before the model runs: shapes, axes, sizes, trip counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.operation import STANDARD, label
from jaxpart.ingest.onnx.shapes import SMALL, Array, attributes, small_values

Values = Mapping[str, np.ndarray]

_MOST_EVALUATED = 2**20  # elements of a result that is computed, even if it is not kept

# Operators with which exporters compute sizes. `_elements` bounds the result of each.
# fmt: off
_FOLDED = frozenset(
    [
        "Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot",
        "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat",
        "Constant", "ConstantOfShape", "CumProd", "CumSum", "Div", "Equal", "Erf", "Exp", "Expand",
        "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater",
        "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "MatMul",
        "Max", "Mean", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow",
        "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round", "Scatter",
        "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Slice", "Split", "Sqrt", "Squeeze",
        "Sub", "Sum", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze", "Where",
        "Xor",
    ]
)
# fmt: on
# Operators whose operands are broadcast against each other.
# fmt: off
_BROADCAST = frozenset(
    [
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal",
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul",
        "Or", "Pow", "Sub", "Sum", "Where", "Xor",
    ]
)
# fmt: on


# Operators whose operand 1 has indices into operand 0.
_INDEXING = frozenset(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"))
# Elements: floats up to this size may be factors of sizes; larger ones are weights.
_MOST_FLOATS = 64


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
    known = {
        name: content
        for name, content in small_values(model.graph, where).items()
        if content.dtype.kind in "biuSUO" or content.size <= _MOST_FLOATS
    }
    folded: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        results: Sequence[np.ndarray] | None = None
        if node.domain not in STANDARD:
            continue
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


def _shape_of(node: NodeProto, array: Array) -> np.ndarray:
    """Result of a Shape or Size node whose operand is `array`."""
    if node.op_type == "Size":
        return np.array(array.elements, np.int64)
    given = attributes(node)
    start = given["start"].i if "start" in given else 0
    stop = given["end"].i if "end" in given else None
    return np.array(array.shape[start:stop], np.int64)


def _evaluated(
    node: NodeProto, model: ModelProto, known: Values, where: str
) -> list[np.ndarray] | None:
    """Results of a node, computed by the reference implementation of the onnx package.

    Returns:
      The results; None if they may be large, or if the operator is not one for shapes.
    """
    if node.op_type not in _FOLDED:
        return None
    operands = {name: known[name] for name in node.input if name}
    blank = onnx.helper.make_empty_tensor_value_info
    names = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node], "one", [blank(name) for name in operands], [blank(name) for name in names]
    )
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        if not _elements(node, known) <= _MOST_EVALUATED:  # also if it is no number
            return None
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(single).run(None, operands)
    except NotImplementedError:
        return None
    except Exception as error:  # the reference can raise any exception
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(f"{where}: {label(node)} fails on its constants: {reason}") from error
    arrays = [np.asarray(result) for result in results]  # type: ignore[arg-type]
    if any(array.size > SMALL or array.dtype == object for array in arrays):
        return None
    made = dict(zip(names, arrays, strict=True))
    return [made.get(name, np.empty(0)) for name in node.output]


def _elements(node: NodeProto, known: Values) -> float:
    """Bound on the number of elements of the results of a node."""
    operands = [known[name] if name else np.empty(0) for name in node.input]
    if node.op_type in _INDEXING and np.any(np.abs(operands[1].astype(float)) > operands[0].size):
        raise ValueError("an index is out of range")
    if node.op_type in _BOUNDS:
        return _BOUNDS[node.op_type](operands)
    if node.op_type in _BROADCAST:
        return float(math.prod(_broadcast([operand.shape for operand in operands])))
    if node.op_type == "Gather":
        axes = operands[0].shape or (1,)
        return float(operands[0].size // max(min(axes), 1) * operands[1].size)
    return float(sum(operand.size for operand in operands))


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Size of each axis after broadcasting; the operands may not fit."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return [max(sizes) for sizes in zip(*padded, strict=True)]


def _range(operands: Sequence[np.ndarray]) -> float:
    start, limit, delta = (float(operand.reshape(-1)[0]) for operand in operands)
    return max((limit - start) / delta, 0.0) if delta else math.inf


def _product(sizes: np.ndarray) -> float:
    return float(np.prod(np.abs(sizes.astype(np.float64))))


def _expanded(operands: Sequence[np.ndarray]) -> float:
    # An axis of the result has the size of the shape, or that of the data where it is 1.
    return _product(operands[1]) * operands[0].size


def _padded(operands: Sequence[np.ndarray]) -> float:
    if len(operands) < 2:
        return math.inf  # opset 2 has the pads among the attributes
    rank = max(operands[0].ndim, 1)
    extents = [*operands[0].shape] or [1]
    pads = np.abs(operands[1].astype(np.float64)).max(initial=0.0)
    return math.prod(extent + 2 * pads for extent in extents) if rank else 1.0


def _one_hot(operands: Sequence[np.ndarray]) -> float:
    return operands[0].size * abs(float(operands[1].reshape(-1)[0]))


def _matmul(operands: Sequence[np.ndarray]) -> float:
    return float(operands[0].size * operands[1].size)


# Operators whose results can have more elements than their operands -> the bound.
_BOUNDS: dict[str, Callable[[Sequence[np.ndarray]], float]] = {
    "ConstantOfShape": lambda operands: _product(operands[0]),
    "Expand": _expanded,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pad": _padded,
    "Range": _range,
    "Tile": lambda operands: operands[0].size * _product(operands[1]),
    "NonZero": lambda operands: float(operands[0].size * max(operands[0].ndim, 1)),
    # Its results: values, and three lists of indices.
    "Unique": lambda operands: float(operands[0].size),
    "GatherND": lambda operands: float(operands[0].size * max(operands[1].size, 1)),
}
