"""How operators can be divided that arrange elements: which axes stay what they are."""

from __future__ import annotations

import math
from collections.abc import Iterable

from jaxpart.ingest.axes import AxisCut, reshape_cuts
from jaxpart.ingest.onnx.divisions.elementwise import apart_from
from jaxpart.ingest.onnx.divisions.labels import WHOLE, Axes, cuts, spread
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import attributes


def reshape(operation: Operation) -> list[AxisCut]:
    """Reshape, Flatten, Squeeze, Unsqueeze: the outermost factor of what is merged or divided."""
    parameters = sum(array is not None for array in operation.inputs[1:])
    return [
        cut._replace(operands=(*cut.operands, *(None,) * parameters))
        for cut in reshape_cuts(operation.shape(0).shape, operation.result.shape)
    ]


def transpose(operation: Operation) -> list[AxisCut]:
    """All axes, in their new order."""
    labels = range(len(operation.shape(0).shape))
    order = operation.wholes("perm", labels[::-1])
    return cuts(operation, [labels], [order])


def expand(operation: Operation) -> list[AxisCut]:
    """Expand: all axes; the operand is broadcast."""
    return apart_from(operation, (), 1)


def tile(operation: Operation) -> list[AxisCut]:
    """Tile: an axis that is not repeated, or else its repetitions."""
    before, after = operation.shape(0).shape, operation.result.shape
    if len(before) != len(after) or not math.prod(after):
        return []
    labels = range(len(before))
    data = [i if before[i] == after[i] else WHOLE for i in labels]
    ways = {i: after[i] // before[i] for i in labels if before[i] != after[i]}
    return cuts(operation, [data], [labels], ways=ways)


def concat(operation: Operation) -> list[AxisCut]:
    """All axes but one; before opset 4 that was 1 by default."""
    axis = operation.whole("axis", 1 if operation.opset < 4 else 0)
    return apart_from(operation, [axis])


def split(operation: Operation) -> list[AxisCut]:
    """All axes but one."""
    return apart_from(operation, [operation.whole("axis", 0)], 1)


def cut_out(operation: Operation) -> list[AxisCut]:
    """Slice: the axes of which it takes all, in their order."""
    if not operation.has(4):
        return _kept(operation, ())
    rank = len(operation.shape(0).shape)
    steps = _content(operation, 4)
    axes = _content(operation, 3) if operation.has(3) else list(range(rank))
    if steps is None or axes is None:
        return []
    backward = [axis % rank for axis, step in zip(axes, steps, strict=False) if step < 0]
    return _kept(operation, backward)


def crop(operation: Operation) -> list[AxisCut]:
    """CenterCropPad: the axes whose size it keeps."""
    return _kept(operation, ())


def _kept(operation: Operation, moved: Iterable[int]) -> list[AxisCut]:
    """Cuts along the axes of equal size, but for those of which something is `moved`."""
    before, after = operation.shape(0).shape, operation.result.shape
    if len(before) != len(after):
        return []
    moved = set(moved)
    changed = [i for i in range(len(after)) if i in moved or before[i] != after[i]]
    return apart_from(operation, changed, 1)


def pad(operation: Operation) -> list[AxisCut]:
    """The axes to which it adds nothing."""
    rank = len(operation.shape(0).shape)
    given = attributes(operation.node)
    pads = operation.wholes("pads", operation.wholes("paddings", ()))
    axes: list[int] | None = list(range(rank))
    if not {"pads", "paddings"} & given.keys():
        pads = _content(operation, 1)
        axes = _content(operation, 3) if operation.has(3) else axes
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return []
    count = len(axes)
    padded = [axis % rank for i, axis in enumerate(axes) if pads[i] or pads[i + count]]
    return _kept(operation, padded)


def resize(operation: Operation) -> list[AxisCut]:
    """Resize and Upsample: the axes whose positions stay where they are."""
    if operation.text("coordinate_transformation_mode", "") in (
        "tf_crop_and_resize",
        "tf_half_pixel_for_nn",  # moves positions by a half
    ):
        return []
    rank = len(operation.shape(0).shape)
    axes = operation.wholes("axes", range(rank))
    given = attributes(operation.node)
    at = 1 if operation.node.op_type == "Upsample" or operation.opset < 11 else 2
    scales: list[float] | None = None
    if "scales" in given:  # Upsample, opset 7
        scales = list(given["scales"].floats)
    elif operation.has(at) and operation.shape(at).elements:
        content = operation.values.get(operation.node.input[at])
        if content is None:
            return []
        scales = content.reshape(-1).tolist()
    elif operation.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return []  # one scale for all axes, which sizes alone do not tell
    if scales is None:  # sizes: an axis that keeps its size has the scale 1
        return _kept(operation, ())
    if len(scales) != len(axes):
        return []
    scaled = [axis % rank for axis, scale in zip(axes, scales, strict=True) if scale != 1]
    return _kept(operation, scaled)


def depth_to_space(operation: Operation) -> list[AxisCut]:
    """Batch, rows and columns of blocks; channels where a block is the inner part of them."""
    _, _, rows, columns = operation.shape(0).shape
    by_blocks = operation.text("mode", "DCR") == "DCR"
    axes: Axes = ("n", WHOLE if by_blocks else "c", "h", "w")
    channels = operation.result.shape[1]
    return cuts(operation, [axes], [axes], ways={"h": rows, "w": columns, "c": channels})


def space_to_depth(operation: Operation) -> list[AxisCut]:
    """Batch, rows and columns of blocks."""
    _, _, rows, columns = operation.result.shape
    return cuts(operation, ["n.hw"], ["n.hw"], ways={"h": rows, "w": columns})


def image(operation: Operation) -> list[AxisCut]:
    """Col2Im: batch and channels."""
    rest = (WHOLE,) * (len(operation.result.shape) - 2)
    ways = {"c": operation.result.shape[1]}
    return cuts(operation, ["nc."], [("n", "c", *rest)], ways=ways)


def triangle(operation: Operation) -> list[AxisCut]:
    """Trilu: all axes but the last two."""
    axes = spread(operation.shape(0), {-1, -2})
    return cuts(operation, [axes], [axes])


def _content(operation: Operation, position: int) -> list[int] | None:
    """Content of an operand; None if it is absent or not known."""
    if not operation.has(position):
        return None
    content = operation.values.get(operation.node.input[position])
    return None if content is None else [int(k) for k in content.reshape(-1)]
