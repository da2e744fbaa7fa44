"""Operators of ATen that lay tensors out in another way, take parts of them, or join them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpart.ingest.pt2.retrace import Call, Rule


def _reshape(call: Call) -> Any:
    """Views: the result has the same elements in the same order."""
    return jnp.reshape(call["self"], call.shape)


def _axis(call: Call, name: str = "dim", default: int = 0) -> int:
    return int(call.get(name, default)) % max(call.get("self").ndim, 1)


def _permute(call: Call) -> Any:
    return jnp.transpose(call["self"], [int(d) for d in call["dims"]])


def _transpose(call: Call) -> Any:
    first, second = (call.get(f"dim{i}", call.get(f"axis{i}", None)) for i in (0, 1))
    return jnp.swapaxes(call["self"], int(first), int(second))


def _t(call: Call) -> Any:
    return jnp.transpose(call["self"])


def _move(call: Call) -> Any:
    return jnp.moveaxis(call["self"], call["source"], call["destination"])


def _expand(call: Call) -> Any:
    return jnp.broadcast_to(call["self"], call.shape)


def _repeat(call: Call) -> Any:
    return jnp.tile(call["self"], [int(n) for n in call.get("repeats", call.get("dims", ()))])


def _repeat_interleave(call: Call) -> Any:
    x, count = call["self"], int(call["repeats"])
    axis = call.get("dim", None)
    if axis is None:
        x, axis = jnp.reshape(x, (-1,)), 0
    axis = int(axis) % x.ndim
    shape = (*x.shape[: axis + 1], count, *x.shape[axis + 1 :])
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape)
    return jnp.reshape(wide, (*x.shape[:axis], x.shape[axis] * count, *x.shape[axis + 1 :]))


def _concatenate(call: Call) -> Any:
    # An empty vector joins with anything: an old custom of torch.
    tensors = [t.astype(call.dtype) for t in call["tensors"] if t.shape != (0,)]
    return lax.concatenate(tensors, int(call.get("dim", 0)) % tensors[0].ndim)


def _stack(call: Call) -> Any:
    return jnp.stack(call["tensors"], int(call.get("dim", 0)))


def _split(call: Call) -> Any:
    """In parts of the sizes in the file."""
    axis, x = _axis(call), call["self"]
    parts, start = [], 0
    for result in call.results:
        stop = start + result.shape[axis]
        parts.append(lax.slice_in_dim(x, start, stop, axis=axis))
        start = stop
    return parts


def _unbind(call: Call) -> Any:
    axis, x = _axis(call), call["self"]
    return [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]


def _span(call: Call, x: Any, axis: int) -> tuple[int, int, int]:
    """Start, stop and step of a slice, inside the axis."""
    extent, step = x.shape[axis], int(call.get("step", 1))
    start, stop, _ = slice(call.get("start", None), call.get("end", None)).indices(extent)
    return start, max(stop, start), step


def _slice(call: Call) -> Any:
    axis, x = _axis(call), call["self"]
    start, stop, step = _span(call, x, axis)
    return lax.slice_in_dim(x, start, stop, step, axis)


def _slice_scatter(call: Call) -> Any:
    axis, x = _axis(call), call["self"]
    start, stop, step = _span(call, x, axis)
    places = tuple(slice(None) for _ in range(axis))
    return x.at[(*places, slice(start, stop, step))].set(call["src"])


def _select(call: Call) -> Any:
    axis, x = _axis(call), call["self"]
    index = call["index"]
    if isinstance(index, jax.Array):
        return lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
    return lax.index_in_dim(x, int(index), axis, keepdims=False)


def written_back(view: Call, base: Any, part: Any) -> Any | None:
    """What a tensor is after a view of it was written.

    Args:
      view: the operator that made the view.
      base: the tensor before.
      part: the view after it was written.

    Returns:
      The tensor after; None if the view is of another kind than these: a slice, a place on an axis,
      or another shape of the same elements.
    """
    if view.name in _VIEWS:
        return jnp.reshape(part, base.shape)
    scatter = {"slice": _slice_scatter, "select": _select_scatter}.get(view.name)
    if scatter is None or isinstance(view.get("index", None), jax.Array):
        return None
    return scatter(
        dataclasses.replace(view, arguments={**view.arguments, "self": base, "src": part})
    )


def _select_scatter(call: Call) -> Any:
    places = tuple(slice(None) for _ in range(_axis(call)))
    return call["self"].at[(*places, int(call["index"]))].set(call["src"])


def _narrow(call: Call) -> Any:
    start = int(call["start"])
    return lax.slice_in_dim(call["self"], start, start + int(call["length"]), axis=_axis(call))


def taken(x: Any, indices: Any, axis: int) -> Any:
    """The slices of an array at some positions of an axis; none lies outside."""
    places = (*(slice(None) for _ in range(axis)), indices)
    return x.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _index_select(call: Call) -> Any:
    return taken(call["self"], call["index"], _axis(call))


def _gather(call: Call) -> Any:
    return jnp.take_along_axis(call["self"], call["index"], _axis(call), mode="promise_in_bounds")


def _places(indices: Sequence[Any]) -> tuple[Any, ...]:
    """Indices, some of them left out, as JAX writes them.

    Raises:
      TypeError: an index is a mask: the shape of the result depends on its values.
    """
    for index in indices:
        if index is not None and index.dtype in (jnp.bool_, jnp.uint8):
            raise TypeError("indices by a mask, whose number is known at run time only")
    return tuple(slice(None) if index is None else index for index in indices)


def _index(call: Call) -> Any:
    return (
        call["self"]
        .at[_places(call["indices"])]
        .get(mode="promise_in_bounds", wrap_negative_indices=False)
    )


def _index_put(call: Call) -> Any:
    where = call["self"].at[_places(call["indices"])]
    values = call["values"].astype(call.dtype)
    return where.add(values) if call.get("accumulate", False) else where.set(values)


def _scatter(call: Call) -> Any:
    x, axis = call["self"], _axis(call)
    index, source = call["index"], call.get("src", call.get("value", None))
    source = jnp.broadcast_to(jnp.asarray(source, x.dtype), index.shape)
    places = list(jnp.indices(index.shape, sparse=True))
    places[axis] = index
    where = x.at[tuple(places)]
    adds = call.name == "scatter_add" or call.get("reduce", None) in ("add", "sum")
    return where.add(source) if adds else where.set(source)


def _flip(call: Call) -> Any:
    return jnp.flip(call["self"], [int(d) for d in call["dims"]])


def _roll(call: Call) -> Any:
    dims = [int(d) for d in call.get("dims", ())] or None
    shifts = [int(s) for s in call["shifts"]]
    return jnp.roll(call["self"], shifts if dims else shifts[0], dims)


def _pad(call: Call) -> Any:
    x, pads = call["self"], [int(n) for n in call.get("pad", call.get("padding", ()))]
    widths = [(0, 0)] * x.ndim
    for i in range(len(pads) // 2):  # from the last axis on
        widths[-1 - i] = (pads[2 * i], pads[2 * i + 1])
    mode = {"reflection": "reflect", "replication": "edge"}.get(call.name.partition("_")[0])
    mode = mode or {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}.get(
        call.get("mode", "constant")
    )
    if mode is not None:
        return jnp.pad(x, widths, mode)
    value = jnp.asarray(call.get("value", None) or 0, x.dtype)
    return lax.pad(x, value, [(low, high, 0) for low, high in widths])


def _tri(call: Call) -> Any:
    function = jnp.tril if call.name == "tril" else jnp.triu
    return function(call["self"], int(call.get("diagonal", 0)))


def _diagonal(call: Call) -> Any:
    return jnp.diagonal(
        call["self"], int(call.get("offset", 0)), call.get("dim1", 0), call.get("dim2", 1)
    )


def _pixel_shuffle(call: Call) -> Any:
    x, r = call["self"], int(call["upscale_factor"])
    *batch, channels, height, width = x.shape
    x = x.reshape(*batch, channels // (r * r), r, r, height, width)
    order = [*range(len(batch) + 1), *(len(batch) + d for d in (3, 1, 4, 2))]
    return jnp.transpose(x, order).reshape(call.shape)


def _pixel_unshuffle(call: Call) -> Any:
    x, r = call["self"], int(call["downscale_factor"])
    *batch, channels, height, width = x.shape
    x = x.reshape(*batch, channels, height // r, r, width // r, r)
    order = [*range(len(batch) + 1), *(len(batch) + d for d in (2, 4, 1, 3))]
    return jnp.transpose(x, order).reshape(call.shape)


def _channel_shuffle(call: Call) -> Any:
    x, groups = call["self"], int(call["groups"])
    batch, channels, *rest = x.shape
    return jnp.swapaxes(x.reshape(batch, groups, channels // groups, *rest), 1, 2).reshape(x.shape)


def _image(call: Call) -> Any:
    return call.get("self", call.get("input", None))


def _nearest(call: Call) -> Any:
    x = _image(call)
    for axis in range(2, x.ndim):
        extent, out = x.shape[axis], call.shape[axis]
        if extent != out:
            x = taken(x, np.arange(out) * extent // out, axis)
    return x


def _linear(call: Call) -> Any:
    x, aligned = _image(call), bool(call.get("align_corners", False))
    for axis in range(2, x.ndim):
        x = _linear_on(x, axis, call.shape[axis], aligned)
    return x


def _linear_on(x: Any, axis: int, out: int, aligned: bool) -> Any:
    """Between two neighbours on one axis."""
    extent = x.shape[axis]
    if extent == out:
        return x
    if aligned:
        at = np.arange(out) * (extent - 1) / max(out - 1, 1)
    else:
        at = np.maximum((np.arange(out) + 0.5) * extent / out - 0.5, 0)
    low = np.minimum(at.astype(np.int64), extent - 1)
    shape = [1] * x.ndim
    shape[axis] = out
    share = (at - low).astype(x.dtype).reshape(shape)
    below, above = taken(x, low, axis), taken(x, np.minimum(low + 1, extent - 1), axis)
    return below + (above - below) * share


def _im2col(call: Call) -> Any:
    x = call["self"]
    kernel, dilation, padding, stride = (
        call.get(name, default)
        for name, default in (
            *(("kernel_size", None), ("dilation", (1, 1)), ("padding", (0, 0))),
            ("stride", (1, 1)),
        )
    )
    patches = lax.conv_general_dilated_patches(
        x, kernel, stride, [(p, p) for p in padding], rhs_dilation=dilation
    )
    return patches.reshape(call.shape)


def _unfold(call: Call) -> Any:
    x, axis = call["self"], _axis(call, "dimension")
    size, step = int(call["size"]), int(call["step"])
    count = (x.shape[axis] - size) // step + 1
    places = np.arange(count)[:, None] * step + np.arange(size)[None]
    return jnp.moveaxis(taken(x, places, axis), axis + 1, -1)


_VIEWS = (
    *("_reshape_alias", "_unsafe_view", "flatten", "reshape", "reshape_as", "squeeze"),
    *("squeeze_copy", "unflatten", "unsqueeze", "unsqueeze_copy", "view", "view_as", "view_copy"),
    "ravel",
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_VIEWS, _reshape),
    **dict.fromkeys(("permute", "permute_copy"), _permute),
    **dict.fromkeys(("transpose", "transpose_copy", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "t_copy", "numpy_T"), _t),
    **dict.fromkeys(("expand", "expand_as", "expand_copy", "broadcast_to"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(
        ("split", "split_with_sizes", "split_with_sizes_copy", "chunk", "tensor_split"), _split
    ),
    **dict.fromkeys(("unbind", "unbind_copy"), _unbind),
    **dict.fromkeys(("slice", "slice_copy"), _slice),
    **dict.fromkeys(("select", "select_copy"), _select),
    **dict.fromkeys(("movedim", "moveaxis"), _move),
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _index_put),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scatter),
    **dict.fromkeys(("tril", "triu"), _tri),
    **dict.fromkeys(
        [
            *("pad", "constant_pad_nd"),
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        ],
        _pad,
    ),
    **{f"upsample_nearest{n}d": _nearest for n in (1, 2, 3)},
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _linear),
    "channel_shuffle": _channel_shuffle,
    "diagonal": _diagonal,
    "flip": _flip,
    "gather": _gather,
    "im2col": _im2col,
    "index_select": _index_select,
    "narrow": _narrow,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "repeat_interleave": _repeat_interleave,
    "roll": _roll,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    "stack": _stack,
    "unfold": _unfold,
}
