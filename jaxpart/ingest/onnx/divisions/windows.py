"""How convolutions, pools and other operators on images can be divided."""

from __future__ import annotations

from collections.abc import Hashable

from jaxpart.ingest.axes import AxisCut, Window, window_ways
from jaxpart.ingest.onnx.divisions.labels import WHOLE, Axes, cuts, spread
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.rules import pads_of


def _rows(operation: Operation, kernel: list[int]) -> float | None:
    """Halo of a cut along the first spatial axis; None if it is not cut.

    Rows next to the padding are counted as the others, although they read less.
    """
    data, out = list(operation.shape(0).shape[2:]), list(operation.result.shape[2:])
    if not out:
        return None
    stride = operation.wholes("strides", [1] * len(kernel))
    dilation = operation.wholes("dilations", [1] * len(kernel))
    pads = pads_of(operation, (data, out, kernel, stride, dilation))
    window = Window(data[0], out[0], kernel[0], stride[0], pads[0], dilation[0])
    return window.halo if window_ways(window) else None


def _halos(rows: float | None) -> dict[Hashable, float]:
    return {} if rows is None else {"h": rows}


def _spatial(rank: int, rows: float | None) -> Axes:
    """Labels of the spatial axes: the first one is cut, if it can be."""
    rest = (WHOLE,) * (rank - 2)
    return rest if rows is None else ("h", *rest[1:])


# Position of the kernel, and of what has a number for each output channel.
_KERNEL = {"QLinearConv": 3}
_OF_CHANNELS = {"QLinearConv": (4, 5, 8), "ConvInteger": (3,)}


def convolution(operation: Operation) -> list[AxisCut]:
    """Output channels or groups, batch, rows; input channels with a sum."""
    name = operation.node.op_type
    at = _KERNEL.get(name, 1)
    kernel = operation.shape(at).shape
    groups = operation.whole("group", 1)
    rows = _rows(operation, list(kernel[2:]))
    spatial = _spatial(len(kernel), rows)
    result: Axes = ("n", "o", *spatial)
    operands: list[Axes] = [()] * len(operation.inputs)
    operands[0] = ("n", "c" if groups == 1 else "o", *spatial)
    operands[at] = ("o", "c" if groups == 1 else WHOLE, *(WHOLE,) * len(kernel[2:]))
    for position in _OF_CHANNELS.get(name, (2,)):
        if operation.has(position):
            operands[position] = ("o",) * len(operation.shape(position).shape)
    if name == "FusedConv" and operation.has(3):  # added to the result
        operands[3] = result
    # Each part would add the bias.
    linear = name == "ConvInteger" or (name == "Conv" and not operation.has(2))
    return cuts(
        operation,
        operands,
        [result],
        ways={} if groups == 1 else {"o": groups},
        halos=_halos(rows),
        summed="c" if linear and groups == 1 else "",
    )


def transposed_convolution(operation: Operation) -> list[AxisCut]:
    """Output channels or groups, and batch; input channels with a sum."""
    rest = (WHOLE,) * (len(operation.shape(0).shape) - 2)
    groups = operation.whole("group", 1)
    if groups > 1:
        operands: list[Axes] = [("n", "o", *rest), ("o", WHOLE, *rest), "o"]
        return cuts(operation, operands, [("n", "o", *rest)], ways={"o": groups})
    operands = [("n", "c", *rest), ("c", "o", *rest), "o"]
    summed = "" if operation.has(2) else "c"
    return cuts(operation, operands, [("n", "o", *rest)], summed=summed)


def pool(operation: Operation) -> list[AxisCut]:
    """Batch, channels, rows."""
    rows = _rows(operation, operation.wholes("kernel_shape", ()))
    axes = ("n", "c", *_spatial(len(operation.shape(0).shape), rows))
    # Indices of a MaxPool count from the first element of the whole.
    return cuts(operation, [axes], [axes], halos=_halos(rows))


def whole_pool(operation: Operation) -> list[AxisCut]:
    """GlobalAveragePool and its kin: batch and channels."""
    axes = ("n", "c", *(WHOLE,) * (len(operation.shape(0).shape) - 2))
    return cuts(operation, [axes], [axes])


def sampled(operation: Operation) -> list[AxisCut]:
    """GridSample: batch, channels, positions of the grid."""
    rest = (WHOLE,) * (len(operation.shape(0).shape) - 2)
    at = spread(operation.shape(1))[1:-1]
    return cuts(operation, [("n", "c", *rest), ("n", *at, WHOLE)], [("n", "c", *at)])


def grid(operation: Operation) -> list[AxisCut]:
    """AffineGrid: batch."""
    rest = (WHOLE,) * (len(operation.result.shape) - 1)
    return cuts(operation, ["n.."], [("n", *rest)])
