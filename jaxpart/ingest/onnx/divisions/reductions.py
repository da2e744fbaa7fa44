"""How reductions can be divided, and what picks or orders elements along an axis."""

from __future__ import annotations

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.onnx.divisions.labels import WHOLE, Axes, Rule, cuts, spread
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import attributes

# The sum of what parts make is what the whole makes.
_SUMS = frozenset(("ReduceL1", "ReduceSum", "ReduceSumSquare"))


def reduction(operation: Operation) -> list[AxisCut]:
    """The axes that are kept; those that a sum folds, with a sum."""
    rank = len(operation.shape(0).shape)
    given = attributes(operation.node)
    axes: list[int] | None = operation.wholes("axes", ())
    if "axes" not in given and operation.has(1):
        content = operation.values.get(operation.node.input[1])
        axes = None if content is None else [int(axis) for axis in content.reshape(-1)]
    if axes is None:
        return []
    if not axes and not operation.whole("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return _folded(operation, axes)


def position(operation: Operation) -> list[AxisCut]:
    """ArgMax and ArgMin: all axes but one."""
    return _folded(operation, [operation.whole("axis", 0)])


def _folded(operation: Operation, axes: list[int]) -> list[AxisCut]:
    """Cuts of an operator that folds some axes."""
    labels = spread(operation.shape(0))
    folded = {axis % len(labels) - len(labels) for axis in axes} if labels else set()
    keep = operation.whole("keepdims", 1)
    result = [WHOLE if k in folded else k for k in labels if keep or k not in folded]
    summed = sorted(folded) if operation.node.op_type in _SUMS else []
    return cuts(operation, [labels], [result], summed=summed)


def gather(operation: Operation) -> list[AxisCut]:
    """Axes of the indices and of what a row has; rows with a sum of what each part has found."""
    data, indices = operation.shape(0), operation.shape(1)
    if not data.shape:
        return []
    axis = operation.whole("axis", 0) % len(data.shape)
    table: list[object] = [("table", i) for i in range(len(data.shape))]
    at = [("index", i) for i in range(len(indices.shape))]
    # A part looks up the indices within its rows, and takes zero for all others.
    summed = [table[axis]] if data.is_float else []
    result = [*table[:axis], *at, *table[axis + 1 :]]
    return cuts(operation, [table, at], [result], summed=summed)


def gather_block_quantised(operation: Operation) -> list[AxisCut]:
    """GatherBlockQuantized: the axes of the indices."""
    at = [("index", i) for i in range(len(operation.shape(1).shape))]
    rank = len(operation.shape(0).shape)
    axis = operation.whole("gather_axis", 0) % rank
    result = [*(WHOLE,) * axis, *at, *(WHOLE,) * (rank - axis - 1)]
    return cuts(operation, ["", at], [result])


def gather_nd(operation: Operation) -> list[AxisCut]:
    """The axes of the batch, of the indices, and of what one index finds."""
    data, indices = operation.shape(0).shape, operation.shape(1).shape
    batch, depth = operation.whole("batch_dims", 0), indices[-1] if indices else 0
    shared = [("batch", i) for i in range(batch)]
    at = [("index", i) for i in range(len(indices) - 1 - batch)]
    found = [("found", i) for i in range(len(data) - batch - depth)]
    operands = [[*shared, *(WHOLE,) * depth, *found], [*shared, *at, WHOLE]]
    return cuts(operation, operands, [[*shared, *at, *found]])


def gather_elements(operation: Operation) -> list[AxisCut]:
    """All axes; those of the indices alone where they reach fewer elements."""
    data, indices = operation.shape(0).shape, operation.shape(1).shape
    if not data or len(data) != len(indices):
        return []
    axis = operation.whole("axis", 0) % len(data)
    labels = list(range(len(data)))
    short = [i for i in labels if i != axis and data[i] != indices[i]]  # a prefix of the data
    at = [WHOLE if i in short else i for i in labels]
    table = [WHOLE if i in short or i == axis else i for i in labels]
    return cuts(operation, [table, at], [at])


def scatter_elements(operation: Operation) -> list[AxisCut]:
    """All axes but the one along which it writes, where the updates reach all positions."""
    data, indices = operation.shape(0).shape, operation.shape(1).shape
    if not data or len(data) != len(indices):
        return []
    axis = operation.whole("axis", 0) % len(data)
    labels = [WHOLE if i == axis or data[i] != indices[i] else i for i in range(len(data))]
    return cuts(operation, [labels, labels, labels], [labels])


def scatter_nd(operation: Operation) -> list[AxisCut]:
    """The axes of what one index writes."""
    data, indices = operation.shape(0).shape, operation.shape(1).shape
    depth = indices[-1] if indices else 0
    written = list(range(len(data) - depth))
    table = [*(WHOLE,) * depth, *written]
    updates = [*(WHOLE,) * (len(indices) - 1), *written]
    return cuts(operation, [table, "", updates], [table])


def tensor_scatter(operation: Operation) -> list[AxisCut]:
    """TensorScatter: all axes but the one along which it writes."""
    rank = len(operation.shape(0).shape)
    axis = operation.whole("axis", -2) % max(rank, 1)
    labels: Axes = [WHOLE if i == axis else i for i in range(rank)]
    return cuts(operation, [labels, labels, labels[:1]], [labels])


def one_hot(operation: Operation) -> list[AxisCut]:
    """The axes of the indices."""
    rank = len(operation.shape(0).shape)
    axis = operation.whole("axis", -1) % (rank + 1)
    labels = list(range(rank))
    return cuts(operation, [labels], [[*labels[:axis], WHOLE, *labels[axis:]]])


def reverse_sequence(operation: Operation) -> list[AxisCut]:
    """All axes but time; the lengths are those of the batch."""
    batch, time = operation.whole("batch_axis", 1), operation.whole("time_axis", 0)
    rank = len(operation.shape(0).shape)
    labels = [WHOLE if i == time % rank else i for i in range(rank)]
    return cuts(operation, [labels, [batch % rank]], [labels])


def fourier(operation: Operation) -> list[AxisCut]:
    """DFT: all axes but that of the transform and that of the complex numbers."""
    rank = len(operation.shape(0).shape)
    axis = operation.whole("axis", 1)
    if operation.opset >= 20:  # the axis is an operand
        content = operation.values.get(operation.node.input[2]) if operation.has(2) else None
        if content is None and operation.has(2):
            return []
        axis = -2 if content is None else int(content.reshape(-1)[0])
    labels = [WHOLE if i in (axis % rank, rank - 1) else i for i in range(rank)]
    return cuts(operation, [labels], [labels])


def determinant(operation: Operation) -> list[AxisCut]:
    """Det: the axes of the matrices' batch."""
    labels = spread(operation.shape(0), {-1, -2})
    return cuts(operation, [labels], [labels[:-2]])


def named(*operands: str, out: str | tuple[str, ...]) -> Rule:
    """A rule that always has the same labels.

    Args:
      *operands: labels of each operand.
      out: labels of the result, or of each.
    """
    results = (out,) if isinstance(out, str) else out
    return lambda operation: cuts(operation, operands, results)
