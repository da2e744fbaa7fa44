"""How elementwise operators can be divided, and those that work along some axes alone."""

from __future__ import annotations

from collections.abc import Collection

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.onnx.divisions.labels import WHOLE, Axes, Rule, cuts, spread
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import Array, attributes


def apart_from(
    operation: Operation, axes: Collection[int], count: int | None = None
) -> list[AxisCut]:
    """Cuts of an operator that works along some axes, and treats all others alike.

    Args:
      operation: its operands are broadcast to the first result.
      axes: the axes of the first result that stay whole.
      count: number of operands that are broadcast, from the first one on; all others are parameters
        that every part reads. None: all are broadcast.
    """
    rank = len(operation.result.shape)
    whole = {axis % rank - rank for axis in axes} if rank else set()
    operands = [spread(array, whole) for array in operation.inputs[:count]]
    return cuts(operation, operands, [spread(array, whole) for array in operation.outputs])


def broadcast(operation: Operation) -> list[AxisCut]:
    """All axes; operands are broadcast."""
    given = attributes(operation.node)
    if operation.opset >= 7 or not operation.whole("broadcast", 0) or "axis" not in given:
        return apart_from(operation, ())
    # Before opset 7 the second operand could start at an axis of the first.
    second = operation.shape(1)
    first = spread(operation.shape(0))
    start = given["axis"].i
    operands = [first, first[start : start + len(second.shape)]]
    return cuts(operation, operands, [spread(operation.result)])


def of_first(operation: Operation) -> list[AxisCut]:
    """All axes of the first operand; the others are parameters."""
    return apart_from(operation, (), 1)


def prelu(operation: Operation) -> list[AxisCut]:
    """All axes; before opset 7 the slopes were those of the channels."""
    data, slope = operation.shape(0), operation.shape(1)
    if operation.opset >= 7 or len(slope.shape) != 1:
        return apart_from(operation, ())
    axes = spread(data)
    return cuts(operation, [axes, (axes[1],) if len(axes) > 1 else (WHOLE,)], [axes])


def dropout(operation: Operation) -> list[AxisCut]:
    """All axes in inference mode; what training draws at random belongs to the whole."""
    training = operation.node.input[2] if operation.has(2) else ""
    if training and operation.values.get(training, True):
        return []
    return of_first(operation)


def quantise(operation: Operation) -> list[AxisCut]:
    """QuantizeLinear and DequantizeLinear: all axes; scales of an axis, or of blocks of it."""
    data, scale = operation.shape(0), operation.shape(1)
    rank, block = len(data.shape), operation.whole("block_size", 0)
    axes = spread(data)
    if not rank or scale.elements == 1:
        return cuts(operation, [axes], [axes])
    axis = operation.whole("axis", 1) % rank
    if block:
        if scale.shape[axis] * block != data.shape[axis]:
            axes = spread(data, {axis - rank})
        ways = {axis - rank: scale.shape[axis]}
        return cuts(operation, [axes, axes, axes], [axes], ways=ways)
    of_axis = (axes[axis],)
    return cuts(operation, [axes, of_axis, of_axis], [axes])


def softmax(operation: Operation) -> list[AxisCut]:
    """All axes but one; before opset 13 all from one on were flattened."""
    rank = len(operation.shape(0).shape)
    axis = operation.whole("axis", -1 if operation.opset >= 13 else 1)
    if not rank:
        return []
    axis = axis if axis == rank else axis % rank
    return apart_from(operation, [axis] if operation.opset >= 13 else range(axis, rank))


def normalised(operation: Operation) -> list[AxisCut]:
    """LayerNormalization, RMSNormalization and their kin: the axes before the first one."""
    rank = len(operation.shape(0).shape)
    axis = operation.whole("axis", -1) % max(rank, 1)
    return apart_from(operation, range(axis, rank))


def along(default: int | None = None) -> Rule:
    """All axes of the first operand but `axis`; None: without that attribute nothing is cut."""

    def rule(operation: Operation) -> list[AxisCut]:
        if default is None and "axis" not in attributes(operation.node):
            return []
        return apart_from(operation, [operation.whole("axis", default or 0)], 1)

    return rule


def mean_variance(operation: Operation) -> list[AxisCut]:
    """MeanVarianceNormalization: all axes over which it takes no mean."""
    return apart_from(operation, operation.wholes("axes", (0, 2, 3)))


def cumulative(operation: Operation) -> list[AxisCut]:
    """CumSum and CumProd: all axes but one, which is an operand."""
    axis = operation.values.get(operation.node.input[1])
    return [] if axis is None else apart_from(operation, [int(axis.reshape(-1)[0])], 1)


def but(*axes: int) -> Rule:
    """All axes but these."""
    return lambda operation: apart_from(operation, axes, 1)


def instances(operation: Operation) -> list[AxisCut]:
    """InstanceNormalization: batch and channels."""
    axes = _channelled(operation.shape(0))
    return cuts(operation, [axes, "c", "c"], [axes])


def groups(operation: Operation) -> list[AxisCut]:
    """GroupNormalization: batch and groups; scales of groups (opset 18) or of channels."""
    axes = _channelled(operation.shape(0))
    count = operation.whole("num_groups", 1)
    return cuts(operation, [axes, "c", "c"], [axes], ways={"c": count})


def batch_normalisation(operation: Operation) -> list[AxisCut]:
    """All axes; in training the channels alone, because statistics are those of the others."""
    data = operation.shape(0)
    if len(data.shape) < 2 or any(len(operation.shape(p).shape) != 1 for p in range(1, 5)):
        return []
    written = [name for name in operation.node.output if name]
    training = operation.whole("training_mode", 0) or (operation.opset < 14 and len(written) > 1)
    rest = (WHOLE,) * (len(data.shape) - 2)
    axes: Axes = (WHOLE, "c", *rest) if training else ("n", "c", *spread(data)[2:])
    return cuts(operation, [axes, *"cccc"], [axes, *"cccc"])


def _channelled(array: Array) -> Axes:
    """Labels of batch and channels; all other dimensions stay whole."""
    return ("n", "c", *(WHOLE,) * (len(array.shape) - 2))
