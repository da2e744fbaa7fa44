"""Equations that take parts of their first operand, or give it another order or shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxpart.ingest.jaxpr.views import Change, NotStridedError, View

# Equations that hand on their only operand.
IDENTITIES = frozenset(
    [
        *("convert_element_type", "copy", "copy_p", "device_put", "layout_constraint", "name"),
        *("pvary", "reduce_precision", "sharding_constraint", "stop_gradient"),
    ]
)


def changes(eqn: Any, known: Sequence[np.ndarray | None]) -> list[Change] | None:
    """How each result of an equation is a part of its first operand.

    Args:
      eqn: the equation.
      known: its operands; None for each whose value is not known while tracing.

    Returns:
      For each result, the change from the operand's view to that of the result. None if the
      equation does anything else.
    """
    name, params = eqn.primitive.name, eqn.params
    shape = getattr(eqn.outvars[0].aval, "shape", ()) if eqn.outvars else ()
    if name in IDENTITIES and len(eqn.invars) == 1:
        return [lambda view: view]
    match name:
        case "squeeze":
            return [lambda view: view.squeezed(params["dimensions"])]
        case "transpose":
            return [lambda view: view.transposed(params["permutation"])]
        case "rev":
            return [lambda view: view.reversed(params["dimensions"])]
        case "reshape" if params.get("dimensions") is None:
            return [lambda view: view.reshaped(shape)]
        case "broadcast_in_dim" if len(eqn.invars) == 1:
            return [lambda view: view.broadcast(shape, params["broadcast_dimensions"])]
        case "expand_dims":
            return [lambda view: view.reshaped(shape)]
        case "slice":
            return [lambda view: _sliced(view, params)]
        case "split":
            return _split(params)
        case "unstack":
            axis, shape = params["axis"], eqn.invars[0].aval.shape
            return [_at(axis, i) for i in range(shape[axis])]
        case "dynamic_slice":
            starts = known[1:]
            if any(start is None for start in starts):
                return None
            return [lambda view: _windowed(view, [int(s) for s in starts if s is not None], params)]
        case "gather" if known[1] is not None:
            gathered = _gathered(eqn, known[1])
            return None if gathered is None else [gathered]
    return None


def gathered_rows(eqn: Any, known: Sequence[np.ndarray | None]) -> list[int] | None:
    """The rows that a gather takes of its operand, in order, if that is all that it does.

    Args:
      eqn: the equation.
      known: its operands; None for each whose value is not known while tracing.

    Returns:
      Positions on the first axis of the operand, one for each position on the first axis of the
      result. None if the equation does anything else.
    """
    if not looks_up_rows(eqn) or known[1] is None or known[1].ndim != 2:
        return None
    rows = _inside(eqn.params["mode"], known[1][:, 0], eqn.invars[0].aval.shape[0] - 1)
    return None if rows is None else [int(i) for i in rows]


def looks_up_rows(eqn: Any) -> bool:
    """Whether an equation takes whole rows of its first operand, at the positions of its second."""
    if eqn.primitive.name != "gather":
        return False
    numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    batch = len(eqn.invars[1].aval.shape) - 1
    return (
        tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and not numbers.operand_batching_dims
        and tuple(eqn.params["slice_sizes"]) == (1, *shape[1:])
        and tuple(numbers.offset_dims) == tuple(range(batch, batch + len(shape) - 1))
    )


def _sliced(view: View, params: Any) -> View:
    strides = params["strides"] or (1,) * len(view.shape)
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for axis, (start, stop, step) in enumerate(spans):
        view = view.sliced(axis, start, stop, step)
    return view


def _split(params: Any) -> list[Change]:
    axis, start, results = params["axis"], 0, []
    for extent in params["sizes"]:
        results.append(_span(axis, start, start + extent))
        start += extent
    return results


def _span(axis: int, start: int, stop: int) -> Change:
    return lambda view: view.sliced(axis, start, stop)


def _at(axis: int, index: int) -> Change:
    return lambda view: view.sliced(axis, index, index + 1).squeezed((axis,))


def _windowed(view: View, starts: Sequence[int], params: Any) -> View:
    """The window of `slice_sizes` at `starts`, moved inside the array as JAX does."""
    for axis, (start, size) in enumerate(zip(starts, params["slice_sizes"], strict=True)):
        first = min(max(start, 0), view.shape[axis] - size)
        view = view.sliced(axis, first, first + size)
    return view


def _inside(mode: Any, positions: np.ndarray, last: int) -> np.ndarray | None:
    """Positions inside 0..last; None if a gather would fill in values for some of them."""
    if mode == GatherScatterMode.CLIP:
        return np.clip(positions, 0, last)
    return positions if np.all((positions >= 0) & (positions <= last)) else None


def _gathered(eqn: Any, indices: np.ndarray) -> Change | None:
    """The change of a gather of one window, or of positions in equal steps on one axis."""
    params, shape = eqn.params, eqn.invars[0].aval.shape
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if numbers.operand_batching_dims or not indices.size:
        return None
    axes = numbers.start_index_map
    starts = indices.reshape(-1, indices.shape[-1]).astype(np.int64)
    inside = []
    for column, axis in zip(starts.T, axes, strict=True):
        positions = _inside(params["mode"], column, shape[axis] - sizes[axis])
        if positions is None:
            return None
        inside.append(positions)
    result = eqn.outvars[0].aval.shape
    if len(starts) == 1:
        first = {axis: int(p[0]) for axis, p in zip(axes, inside, strict=True)}

        def window(view: View) -> View:
            for axis, size in enumerate(sizes):
                start = first.get(axis, 0)
                view = view.sliced(axis, start, start + size)
            return view.squeezed(numbers.collapsed_slice_dims).reshaped(result)

        return window
    if len(axes) != 1 or tuple(numbers.collapsed_slice_dims) != tuple(axes):
        return None
    (axis,), (positions,) = axes, inside
    steps = np.diff(positions)
    if np.any(steps != steps[0]):
        return None
    start, step, count = int(positions[0]), int(steps[0]), len(positions)

    def stepped(view: View) -> View:
        for other, size in enumerate(sizes):
            if other != axis:
                view = view.sliced(other, 0, size)
        view = view.stepped(axis, start, count, step)
        # The batch axes of the indices come in place of the gathered axis: where the others go.
        batch = [d for d in range(len(result)) if d not in numbers.offset_dims]
        if batch != list(range(batch[0], batch[0] + len(batch))):
            raise NotStridedError
        kept = [a for a in range(len(sizes)) if a != axis]
        view = view.transposed([*kept[: batch[0]], axis, *kept[batch[0] :]])
        return view.reshaped(result)

    return stepped
