"""The axes along which windows pass over an array: convolutions, pooling, padding and slices.

Arguments are the parameters of an equation, and the shapes of its operands and results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxpart.ingest.axes import AxisCut, Window, window_ways

Shape = tuple[int, ...]
Cuts = tuple[AxisCut, ...]


def conv_cuts(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts by batch, output features, input features (a sum), and positions with their halo.

    The features of a grouped convolution are cut by whole groups.
    """
    if params["batch_group_count"] != 1:
        return ()
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    left, right, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    cuts = []

    def add(ways: int, result: int | None, lhs: int | None, rhs: int | None, halo: float) -> None:
        if ways > 1:
            cuts.append(AxisCut(ways, (result,), (lhs, rhs), halo))

    add(ins[0][left[0]], out[0], left[0], None, 0)
    if groups == 1:
        add(ins[1][right[0]], out[1], None, right[0], 0)
    else:
        add(groups, out[1], left[1], right[0], 0)
    for i in range(len(left) - 2):
        window = Window(
            ins[0][left[2 + i]],
            outs[0][out[2 + i]],
            ins[1][right[2 + i]],
            params["window_strides"][i],
            params["padding"][i][0],
            params["rhs_dilation"][i],
            params["lhs_dilation"][i],
        )
        add(window_ways(window), out[2 + i], left[2 + i], None, window.halo)
    if groups == 1:
        add(ins[0][left[1]], None, left[1], right[1], 0)
    return tuple(cuts)


def reduce_window_cuts(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along all axes, with the halo of windows of several positions."""
    windows = [
        Window(
            n,
            outs[0][a],
            params["window_dimensions"][a],
            params["window_strides"][a],
            params["padding"][a][0],
            params["window_dilation"][a],
            params["base_dilation"][a],
        )
        for a, n in enumerate(ins[0])
    ]
    return _windows_cuts(windows, ins, len(outs))


def pad_cuts(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along all axes; padding moves what a part reads, which is a halo."""
    windows = [
        Window(n, m, low=low, holes=interior + 1)
        for n, m, (low, _, interior) in zip(ins[0], outs[0], params["padding_config"], strict=True)
    ]
    return _windows_cuts(windows, ins, 1)


def slice_cuts(params: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> Cuts:
    """Cuts along axes of which most is taken; what is left out moves what a part reads."""
    strides = params["strides"] or (1,) * len(ins[0])
    windows = [
        Window(n, m, stride=stride, low=-start)
        for n, m, start, stride in zip(
            ins[0], outs[0], params["start_indices"], strides, strict=True
        )
    ]
    return _windows_cuts(windows, ins, 1)


def _windows_cuts(windows: Sequence[Window], operands: Sequence[Shape], results: int) -> Cuts:
    """Cuts of an operation of which all axes are passed over by windows.

    Args:
      windows: for each axis.
      operands: the shapes; one of another rank (a scalar) is read whole.
      results: the number of results.
    """
    cuts = []
    for axis, window in enumerate(windows):
        ways = window_ways(window)
        if ways:
            taken = tuple(axis if len(shape) == len(windows) else None for shape in operands)
            cuts.append(AxisCut(ways, (axis,) * results, taken, window.halo))
    return tuple(cuts)
