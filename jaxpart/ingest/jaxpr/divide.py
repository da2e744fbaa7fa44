"""The ways to divide the nodes of a traced function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.jaxpr.boxes import Box
from jaxpart.ingest.jaxpr.cuts import ShapedCuts, equation_cuts
from jaxpart.ingest.jaxpr.values import Op, Source, Value, Values
from jaxpart.ingest.jaxpr.views import View, whole
from jaxpart.ingest.labels import Held, Work, divisions
from jaxpart.problem.division import Division

Parts = tuple[int, Sequence[View]]  # a parameter, and the parts of it that are a weight


def node_divisions(
    program: Values, ops: Sequence[Op], tensors: Mapping[int, int], weights: Sequence[Parts]
) -> list[tuple[Division, ...]]:
    """The ways to divide each node.

    Args:
      program: the program.
      ops: [N] the operations that are nodes.
      tensors: number of a value -> number of its tensor.
      weights: [W] what each weight of the graph is.
    """
    works, held = works_of(program, ops, weights)
    return divisions(works, tensors, held)


def works_of(
    program: Values, ops: Sequence[Op], weights: Sequence[Parts]
) -> tuple[list[Work], dict[int, tuple[Held, ...]]]:
    """What operations do, for `labels.divisions`; arguments are those of `node_divisions`.

    Returns:
      [N] what each operation does; and number of a value -> the weights that it is made of.
    """
    spans = [_common_spans(program.parameters[parameter], parts) for parameter, parts in weights]
    weight_of = {
        (parameter, part): w for w, (parameter, parts) in enumerate(weights) for part in parts
    }
    held: dict[int, tuple[Held, ...]] = {}
    shapes: dict[int, tuple[int, ...]] = {}  # of values
    for op in ops:
        for v in (*op.operands, *op.results):
            if v in shapes:
                continue
            value = program.values[v]
            shapes[v] = _shape(value)
            if value.folded or value.sources:
                held[v] = _held(program, value, weight_of, spans)
    known: dict[int, ShapedCuts] = {}  # id of an equation -> its cuts; steps of loops share them
    works = []
    for op in ops:
        shaped = op.cuts
        if op.eqn is not None:
            if id(op.eqn) not in known:
                known[id(op.eqn)] = equation_cuts(op.eqn)
            shaped = known[id(op.eqn)]
        works.append(Work(op.operands, op.results, _in_values(op, shaped, shapes)))
    return works, held


def _shape(value: Value) -> tuple[int, ...]:
    """The shape of a value; () where it is not known."""
    if value.views:
        return value.views[0][1].shape
    return value.shape or ()


def _in_values(op: Op, shaped: ShapedCuts, shapes: Mapping[int, tuple[int, ...]]) -> list[AxisCut]:
    """Cuts of which the dimensions are those of the values.

    The array that an operation reads may be a value in another shape (a row of a stack with an axis
    of extent 1 more), or a part of what the equation names (the layer of a stack).

    Args:
      op: the operation.
      shaped: its cuts.
      shapes: value -> its shape.
    """
    if not shaped.cuts:
        return []
    ins = list(map(_axes_between, shaped.operands, map(shapes.__getitem__, op.operands)))
    outs = list(map(_axes_between, shaped.results, map(shapes.__getitem__, op.results)))
    cuts = []
    for cut in shaped.cuts:
        operands = tuple(
            None if at is None else axes[at] for at, axes in zip(cut.operands, ins, strict=True)
        )
        results = tuple(
            None if at is None else axes[at] for at, axes in zip(cut.results, outs, strict=True)
        )
        is_sum = cut.results[0] is None
        if results == cut.results and not (is_sum and all(at is None for at in operands)):
            cuts.append(cut._replace(operands=operands))
    return cuts


def _axes_between(shape: Sequence[int], of_value: Sequence[int]) -> list[int | None]:
    """For each axis of an array, the axis of the value that is the array or a part of it.

    Args:
      shape: of the array.
      of_value: shape of the value. Axes of one position may be left out or added.
    """
    if tuple(shape) == tuple(of_value):
        return list(range(len(shape)))
    long = [a for a, n in enumerate(of_value) if n != 1]
    if [n for n in shape if n != 1] == [of_value[a] for a in long]:
        rest = iter(long)
        return [next(rest) if n != 1 else None for n in shape]
    if len(shape) == len(of_value):
        return [a if n == m else None for a, (n, m) in enumerate(zip(shape, of_value, strict=True))]
    return [None] * len(shape)


def _held(
    program: Values,
    value: Value,
    weight_of: Mapping[Source, int],
    spans: Sequence[Mapping[int, tuple[int, int]]],
) -> tuple[Held, ...]:
    """The weights that a value is made of.

    Args:
      program: the program.
      value: of it.
      weight_of: part of a parameter -> the weight that it belongs to.
      spans: of each weight, as by `_common_spans`.
    """
    found = []
    seen = set()
    for parameter, view in value.views or ():
        w = weight_of.get((parameter, view.region()))
        if w is None:
            continue
        seen.add(w)
        shape = program.parameters[parameter].shape
        found.append(Held(w, tuple(_axis_of(pairs, shape, spans[w]) for pairs in view.axes)))
    rank = len(_shape(value))
    others = {weight_of[source] for source in value.sources if source in weight_of} - seen
    return (*found, *(Held(w, (None,) * rank) for w in sorted(others)))


def _axis_of(
    pairs: Sequence[tuple[int, int]], shape: Sequence[int], spans: Mapping[int, tuple[int, int]]
) -> int | None:
    """The axis of a weight that is cut with an axis of a part of it; None if there is none.

    Args:
      pairs: extents and strides of the axis.
      shape: of the parameter.
      spans: of the weight, as by `_common_spans`.
    """
    (count, stride), *_ = pairs
    for axis, pair in enumerate(whole(shape).axes):
        first, stop = spans.get(axis, (0, 0))
        if stop - first > 1 and stride > 0 and count * stride == (stop - first) * pair[0][1]:
            return axis
    return None


def _common_spans(aval: Any, parts: Sequence[View]) -> dict[int, tuple[int, int]]:
    """The axes of a parameter on which parts of it have the same positions, and these.

    Args:
      aval: abstract value of the parameter.
      parts: regions of it (`View.region`).
    """
    boxes = [_region_box(aval.shape, part) for part in parts]
    return {
        axis: box[axis]
        for box in boxes[:1]
        if box is not None
        for axis in range(len(aval.shape))
        if all(other is not None and other[axis] == box[axis] for other in boxes)
    }


def _region_box(shape: Sequence[int], region: View) -> Box | None:
    """The box that a region of an array is; None if it is no box."""
    if 0 in shape:
        return None
    pairs, box = list(region.pairs), []
    starts = [int(i) for i in np.unravel_index(region.offset, tuple(shape))] if shape else []
    for first, ((extent, stride),) in zip(starts[::-1], whole(shape).axes[::-1], strict=True):
        count = 1
        if extent > 1 and pairs and pairs[-1][1] == stride:
            count, _ = pairs.pop()
            if count > extent - first:  # the region goes on along outer axes
                if first or count % extent:
                    return None
                pairs.append((count // extent, stride * extent))
                count = extent
        box.append((first, first + count))
    return None if pairs else tuple(box[::-1])
