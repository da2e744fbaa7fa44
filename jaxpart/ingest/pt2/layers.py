"""Operators of ATen that layers are made of: products, convolutions, norms, attention, cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpart.ingest.pt2.layout import taken
from jaxpart.ingest.pt2.retrace import Call, Rule


def _matmul(call: Call) -> Any:
    first = call.get("self", call.get("input", None))
    return jnp.matmul(first, call.get("other", call.get("mat2", call.get("vec2", None))))


def _mv(call: Call) -> Any:
    return jnp.matmul(call["self"], call.get("vec", call.get("tensor", None)))


def _plus(call: Call, product: Any, added: Any) -> Any:
    beta, alpha = call.get("beta", 1), call.get("alpha", 1)
    product = product if alpha == 1 else product * alpha
    return product + (added if beta == 1 else added * beta)


def _addmm(call: Call) -> Any:
    return _plus(call, jnp.matmul(call["mat1"], call["mat2"]), call["self"])


def _baddbmm(call: Call) -> Any:
    return _plus(call, jnp.matmul(call["batch1"], call["batch2"]), call["self"])


def _grouped_mm(call: Call) -> Any:
    """Each row times the matrix of its group; `offs` is where the groups end."""
    x, weights, ends = call["self"], call["mat2"], call["offs"]
    return lax.ragged_dot(x, weights, jnp.diff(ends, prepend=0))


def _linear(call: Call) -> Any:
    x, weight, bias = call["input"], call["weight"], call.get("bias", None)
    result = lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    return result if bias is None else result + bias


def _bilinear(call: Call) -> Any:
    bias = call.get("bias", None)
    result = jnp.einsum("...i,oij,...j->...o", call["input1"], call["weight"], call["input2"])
    return result if bias is None else result + bias


def _einsum(call: Call) -> Any:
    return jnp.einsum(call["equation"], *call["tensors"])


def _outer(call: Call) -> Any:
    return call["self"][:, None] * call.get("vec2", call.get("other", None))[None]


def _each(value: Any, count: int) -> list[int]:
    """A value for each spatial axis; one value is the same on all."""
    values = [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]
    return values * count if len(values) == 1 else values


def _convolution(call: Call) -> Any:
    x, weight, bias = call["input"], call["weight"], call.get("bias", None)
    spatial = weight.ndim - 2
    batched = x.ndim == weight.ndim
    x = x if batched else x[None]
    stride = _each(call.get("stride", 1), spatial)
    dilation = _each(call.get("dilation", 1), spatial)
    groups = int(call.get("groups", 1))
    padding = call.get("padding", 0)
    if call.get("transposed", False) or call.name.startswith("conv_transpose"):
        more = _each(call.get("output_padding", 0), spatial)
        result = _transposed(x, weight, stride, _each(padding, spatial), more, dilation, groups)
    else:
        pads: Any = (
            padding.upper()
            if isinstance(padding, str)
            else [(p, p) for p in _each(padding, spatial)]
        )
        result = lax.conv_general_dilated(
            x, weight, stride, pads, rhs_dilation=dilation, feature_group_count=groups
        )
    if bias is not None:
        result = result + bias.reshape(-1, *([1] * spatial))
    return result if batched else result[0]


def _transposed(
    x: Any,
    weight: Any,
    stride: list[int],
    padding: list[int],
    more: list[int],
    dilation: list[int],
    groups: int,
) -> Any:
    """A convolution over an input with holes; the weight is [features in, out per group, ...]."""
    ins, outs, *kernel = weight.shape
    grouped = weight.reshape(groups, ins // groups, outs, *kernel)
    grouped = jnp.moveaxis(grouped, 0, 1).reshape(ins // groups, groups * outs, *kernel)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    spatial = "DHW"[-len(kernel) :]
    return lax.conv_general_dilated(
        x,
        lax.rev(grouped, range(2, grouped.ndim)),
        [1] * len(kernel),
        [(r - p, r - p + m) for r, p, m in zip(reach, padding, more, strict=True)],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=(f"NC{spatial}", f"IO{spatial}", f"NC{spatial}"),
        feature_group_count=groups,
    )


def _window(call: Call, x: Any, spatial: int) -> tuple[Any, ...]:
    """Window, strides, padding and dilation of a pooling operator, for all axes of `x`."""
    kernel = _each(call["kernel_size"], spatial)
    stride = _each(call.get("stride", None) or kernel, spatial)
    padding = _each(call.get("padding", 0), spatial)
    dilation = _each(call.get("dilation", 1), spatial)
    before = x.ndim - spatial
    pads = [(0, 0)] * before
    for i in range(spatial):  # where the result is rounded up, the last window reaches out
        out = call.shape[before + i]
        reach = (out - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1
        high = max(padding[i], reach - x.shape[before + i] - padding[i])
        pads.append((padding[i], high))
    ones = (1,) * before
    return (*ones, *kernel), (*ones, *stride), pads, None, (*ones, *dilation)


def _max_pool(call: Call) -> Any:
    x = call["self"]
    spatial = int(call.name[8])
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
    pooled = lax.reduce_window(
        x, jnp.asarray(least, x.dtype)[()], lax.max, *_window(call, x, spatial)
    )
    if len(call.results) == 1:
        return pooled
    # The positions of the largest elements: only training reads them.
    return pooled, jnp.zeros(call.results[1].shape, call.results[1].dtype)


def _avg_pool(call: Call) -> Any:
    x = call["self"]
    window = _window(call, x, int(call.name[8]))
    total = lax.reduce_window(x, jnp.zeros((), x.dtype)[()], lax.add, *window)
    count = call.get("divisor_override", None)
    if count is None and (call.get("count_include_pad", True) or not any(map(any, window[2]))):
        count = math.prod(window[0])
    if count is None:
        ones = jnp.ones(x.shape, x.dtype)
        count = lax.reduce_window(ones, jnp.zeros((), x.dtype)[()], lax.add, *window)
    return total / count


def _adaptive_avg_pool(call: Call) -> Any:
    x = call["self"]
    spatial = int(call.name[-2])
    outs = call.shape[x.ndim - spatial :]
    for axis, out in zip(range(x.ndim - spatial, x.ndim), outs, strict=True):
        extent = x.shape[axis]
        if extent % out == 0:
            shape = (*x.shape[:axis], out, extent // out, *x.shape[axis + 1 :])
            x = jnp.mean(x.reshape(shape), axis + 1)
        else:
            spans = [(i * extent // out, -(-(i + 1) * extent // out)) for i in range(out)]
            parts = [lax.slice_in_dim(x, low, high, axis=axis) for low, high in spans]
            x = jnp.concatenate([jnp.mean(part, axis, keepdims=True) for part in parts], axis)
    return x


def _per_feature(v: Any, x: Any) -> Any:
    """A value for each feature, which is the second axis of `x`."""
    return v.reshape(-1, *([1] * (x.ndim - 2)))


def _batch_norm(call: Call) -> Any:
    x = call["input"]
    epsilon = call["eps"]
    mean, variance = call.get("running_mean", None), call.get("running_var", None)
    weight, bias = call.get("weight", None), call.get("bias", None)
    if call.get("training", False) or mean is None:
        axes = [a for a in range(x.ndim) if a != 1]
        mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
    # On parameters alone this is folded: a scale and an offset remain.
    scale = lax.rsqrt(variance + epsilon)
    scale = scale if weight is None else scale * weight
    offset = -mean * scale if bias is None else bias - mean * scale
    result = x * _per_feature(scale, x) + _per_feature(offset, x)
    return (result, *_left_out(call))


def _left_out(call: Call) -> list[Any]:
    """Results after the first, which evaluation does not read."""
    return [jnp.zeros(result.shape, result.dtype) for result in call.results[1:]]


def _normalised(x: Any, axes: Sequence[int], epsilon: float) -> tuple[Any, Any, Any]:
    mean = jnp.mean(x, axes, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(call: Call) -> Any:
    x = call["input"]
    axes = tuple(range(x.ndim - len(call["normalized_shape"]), x.ndim))
    result, mean, inverse = _normalised(x, axes, call.get("eps", 1e-5))
    result = _affine(result, call.get("weight", None), call.get("bias", None))
    return (result, mean, inverse) if len(call.results) == 3 else result


def _group_norm(call: Call) -> Any:
    x = call["input"]
    groups = int(call.get("num_groups", call.get("group", 1)))
    shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    axes = tuple(range(2, len(shape)))
    result, mean, inverse = _normalised(x.reshape(shape), axes, call.get("eps", 1e-5))
    weight, bias = (call.get(n, None) for n in ("weight", "bias"))
    weight, bias = (None if v is None else _per_feature(v, x) for v in (weight, bias))
    result = _affine(result.reshape(x.shape), weight, bias)
    more = [mean.reshape(x.shape[0], groups), inverse.reshape(x.shape[0], groups)]
    return (result, *more) if len(call.results) == 3 else result


def _instance_norm(call: Call) -> Any:
    x = call["input"]
    result, _, _ = _normalised(x, tuple(range(2, x.ndim)), call["eps"])
    weight, bias = (call.get(n, None) for n in ("weight", "bias"))
    return _affine(result, *(None if v is None else _per_feature(v, x) for v in (weight, bias)))


def _rms_norm(call: Call) -> Any:
    x = call["input"]
    axes = tuple(range(x.ndim - len(call["normalized_shape"]), x.ndim))
    epsilon = call.get("eps", None) or float(jnp.finfo(x.dtype).eps)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + epsilon)
    return _affine(x * inverse, call.get("weight", None), None)


def _softmax(call: Call) -> Any:
    return jax.nn.softmax(call["self"].astype(call.dtype), axis=int(call["dim"]))


def _log_softmax(call: Call) -> Any:
    return jax.nn.log_softmax(call["self"].astype(call.dtype), axis=int(call["dim"]))


def _attention(call: Call) -> Any:
    query, key, value = call["query"], call["key"], call["value"]
    scale = call.get("scale", None) or 1 / math.sqrt(query.shape[-1])
    if key.ndim == 4 and key.shape[-3] != query.shape[-3]:  # several queries share a key
        times = query.shape[-3] // key.shape[-3]
        key, value = jnp.repeat(key, times, -3), jnp.repeat(value, times, -3)
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2)) * scale
    mask = call.get("attn_mask", call.get("attn_bias", None))
    if call.get("is_causal", False):
        mask = jnp.tril(jnp.ones(scores.shape[-2:], jnp.bool_))
    if mask is not None and mask.dtype == jnp.bool_:
        scores = jnp.where(mask, scores, -jnp.inf)
    elif mask is not None:
        scores = scores + mask
    result = jnp.matmul(jax.nn.softmax(scores), value)
    return (result, *_left_out(call))


def _embedding(call: Call) -> Any:
    return taken(call["weight"], call["indices"], 0)


def _gates(x: Any, h: Any, parameters: Sequence[Any], first: int) -> tuple[Any, Any]:
    """The products of a cell with its input and its state."""
    from_input = jnp.matmul(x, parameters[first].T)
    from_state = jnp.matmul(h, parameters[first + 1].T)
    return from_input, from_state


def _lstm_cell(carry: Any, x: Any, parameters: Sequence[Any]) -> tuple[Any, Any]:
    h, c = carry
    sums = sum(_gates(x, h, parameters, 0))
    if len(parameters) > 2:
        sums = sums + parameters[2] + parameters[3]
    i, f, g, o = jnp.split(sums, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru_cell(carry: Any, x: Any, parameters: Sequence[Any]) -> tuple[Any, Any]:
    (h,) = carry
    from_input, from_state = _gates(x, h, parameters, 0)
    if len(parameters) > 2:
        from_input, from_state = from_input + parameters[2], from_state + parameters[3]
    (r, z, n), (hr, hz, hn) = (jnp.split(v, 3, axis=-1) for v in (from_input, from_state))
    z = jax.nn.sigmoid(z + hz)
    h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h
    return (h,), h


def _recurrent(call: Call) -> Any:
    """Layers of cells over a sequence, each a loop that the importer unrolls where it may."""
    cell = _lstm_cell if call.name == "lstm" else _gru_cell
    x, parameters = call["input"], call["params"]
    states = call["hx"] if call.name == "lstm" else [call["hx"]]
    first = bool(call["batch_first"])
    x = jnp.swapaxes(x, 0, 1) if first else x
    ways = 2 if call["bidirectional"] else 1
    per_cell = 4 if call["has_biases"] else 2
    if len(parameters) != per_cell * ways * int(call["num_layers"]):
        raise TypeError("a projection of the state")
    last: list[list[Any]] = [[] for _ in states]
    for layer in range(int(call["num_layers"])):
        outs = []
        for way in range(ways):
            at = layer * ways + way
            mine = parameters[at * per_cell : (at + 1) * per_cell]
            start = tuple(state[at] for state in states)
            carry, ys = lax.scan(
                lambda carry, row, mine=mine: cell(carry, row, mine), start, x, reverse=way == 1
            )
            outs.append(ys)
            for column, value in zip(last, carry, strict=True):
                column.append(value)
        x = outs[0] if ways == 1 else jnp.concatenate(outs, -1)
    x = jnp.swapaxes(x, 0, 1) if first else x
    return (x, *(jnp.stack(column) for column in last))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "dot", "vdot"), _matmul),
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution for n in (1, 2, 3)},
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    **{f"max_pool{n}d": _max_pool for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _max_pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _avg_pool for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive_avg_pool for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": _adaptive_avg_pool for n in (2, 3)},
    **dict.fromkeys(
        (
            "batch_norm",
            "_native_batch_norm_legit_no_training",
            "native_batch_norm",
            "_native_batch_norm_legit",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _log_softmax),
    **dict.fromkeys(
        (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_cudnn_attention",
        ),
        _attention,
    ),
    **dict.fromkeys(("lstm", "gru"), _recurrent),
    "_grouped_mm": _grouped_mm,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "bilinear": _bilinear,
    "einsum": _einsum,
    "embedding": _embedding,
    "instance_norm": _instance_norm,
    "linear": _linear,
    "mv": _mv,
    "outer": _outer,
    "rms_norm": _rms_norm,
}
