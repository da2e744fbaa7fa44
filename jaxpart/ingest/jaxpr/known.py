"""Small integer arrays whose values are known while tracing: loop counters and indices.

They are computed with NumPy, so that no device is started.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpart.ingest.jaxpr import costs, sizes

MAX_ELEMENTS = 65536  # of an array that is kept known

Arrays = Sequence[np.ndarray]


def known_value(value: Any) -> np.ndarray | None:
    """A captured value as an array; None if it is not a small array of integers or booleans."""
    dtype = getattr(value, "dtype", None) or np.result_type(value)
    count = math.prod(getattr(value, "shape", ()))
    if count > MAX_ELEMENTS or not _is_integer(dtype):
        return None
    return np.asarray(value)


def known_results(eqn: Any, operands: Sequence[np.ndarray | None]) -> list[np.ndarray] | None:
    """The results of an equation on known operands.

    Args:
      eqn: the equation.
      operands: its operands; None where one is not known.

    Returns:
      The results; None if they are not known, too large, or no integers.
    """
    arrays = [a for a in operands if a is not None]
    avals = [v.aval for v in eqn.outvars]
    rule = _RULES.get(eqn.primitive.name)
    if rule is None or len(arrays) != len(operands):
        return None
    for aval in avals:
        if sizes.elements(aval) > MAX_ELEMENTS or not _is_integer(getattr(aval, "dtype", None)):
            return None
    with np.errstate(all="ignore"):
        results = rule(eqn.params, arrays)
    if results is None:
        return None
    results = results if isinstance(results, list) else [results]
    shaped = zip(results, avals, strict=True)
    return [np.asarray(r).astype(a.dtype).reshape(a.shape) for r, a in shaped]


def known_outputs(closed: Any, operands: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    """The results of a closed jaxpr; None for each that is not known.

    Args:
      closed: the ClosedJaxpr.
      operands: its arguments; None where one is not known.
    """
    jaxpr = closed.jaxpr
    environment: dict[Any, np.ndarray | None] = dict(zip(jaxpr.invars, operands, strict=True))
    for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
        environment[variable] = known_value(constant)

    def read(atom: Any) -> np.ndarray | None:
        return known_value(atom.val) if hasattr(atom, "val") else environment.get(atom)

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        body = costs.inlined(eqn)
        results = known_outputs(body, inputs) if body is not None else known_results(eqn, inputs)
        if results is not None:
            environment.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_integer(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "iub"


def _elementwise(function: Callable[..., Any]) -> Callable[[Any, Arrays], Any]:
    return lambda params, ins: function(*ins)


def _same(params: Any, ins: Arrays) -> list[np.ndarray]:
    return list(ins)


def _div(params: Any, ins: Arrays) -> Any:
    top, bottom = ins
    if not np.all(bottom):
        return None
    quotient = np.abs(top) // np.abs(bottom)  # rounds towards zero, as JAX does
    return np.where((top < 0) != (bottom < 0), -quotient, quotient)


def _rem(params: Any, ins: Arrays) -> Any:
    return np.fmod(*ins) if np.all(ins[1]) else None


def _select(params: Any, ins: Arrays) -> Any:
    which, *cases = ins
    shape = np.broadcast_shapes(which.shape, cases[0].shape)
    which = np.broadcast_to(which, shape).astype(np.int64)
    return np.choose(which, cases) if len(cases) <= 16 else None


def _clamp(params: Any, ins: Arrays) -> Any:
    low, x, high = ins
    return np.minimum(np.maximum(x, low), high)


def _iota(params: Any, ins: Arrays) -> Any:
    shape, axis = params["shape"], params["dimension"]
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return np.broadcast_to(np.arange(shape[axis]).reshape(along), shape)


def _broadcast(params: Any, ins: Arrays) -> Any:
    (x,) = ins
    along = [1] * len(params["shape"])
    for extent, axis in zip(x.shape, params["broadcast_dimensions"], strict=True):
        along[axis] = extent
    return np.broadcast_to(x.reshape(along), params["shape"])


def _reshape(params: Any, ins: Arrays) -> Any:
    return ins[0].reshape(params["new_sizes"]) if params.get("dimensions") is None else None


def _slice(params: Any, ins: Arrays) -> Any:
    strides = params["strides"] or (1,) * ins[0].ndim
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return ins[0][tuple(slice(*span) for span in spans)]


def _dynamic_slice(params: Any, ins: Arrays) -> Any:
    x, *starts = ins
    spans = []
    for start, size, extent in zip(starts, params["slice_sizes"], x.shape, strict=True):
        first = min(max(int(start), 0), extent - size)
        spans.append(slice(first, first + size))
    return x[tuple(spans)]


def _gather(params: Any, ins: Arrays) -> Any:
    x, indices = ins
    numbers = params["dimension_numbers"]
    if x.ndim != 1 or numbers.collapsed_slice_dims != (0,) or numbers.operand_batching_dims:
        return None
    positions = indices[..., 0]
    return x[positions] if np.all((positions >= 0) & (positions < len(x))) else None


def _split(params: Any, ins: Arrays) -> Any:
    return np.split(ins[0], np.cumsum(params["sizes"])[:-1], params["axis"])


def _unstack(params: Any, ins: Arrays) -> Any:
    return list(np.moveaxis(ins[0], params["axis"], 0))


def _reduction(function: Callable[..., Any]) -> Callable[[Any, Arrays], Any]:
    return lambda params, ins: function(ins[0], axis=tuple(params["axes"]))


def _cumulative(function: Any) -> Callable[[Any, Arrays], Any]:
    def rule(params: Any, ins: Arrays) -> Any:
        x = np.flip(ins[0], params["axis"]) if params["reverse"] else ins[0]
        result = function.accumulate(x, axis=params["axis"])
        return np.flip(result, params["axis"]) if params["reverse"] else result

    return rule


_RULES: dict[str, Callable[[Any, Arrays], Any]] = {
    **{
        name: _elementwise(function)
        for name, function in {
            "abs": np.abs,
            "add": np.add,
            "add_any": np.add,
            "and": np.bitwise_and,
            "eq": np.equal,
            "ge": np.greater_equal,
            "gt": np.greater,
            "le": np.less_equal,
            "lt": np.less,
            "max": np.maximum,
            "min": np.minimum,
            "mul": np.multiply,
            "ne": np.not_equal,
            "neg": np.negative,
            "not": np.invert,
            "or": np.bitwise_or,
            "sign": np.sign,
            "square": np.square,
            "sub": np.subtract,
            "xor": np.bitwise_xor,
        }.items()
    },
    **dict.fromkeys(
        ("convert_element_type", "copy", "copy_p", "name", "optimization_barrier", "pvary"), _same
    ),
    **dict.fromkeys(("stop_gradient", "sharding_constraint", "device_put"), _same),
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": lambda params, ins: np.concatenate(ins, params["dimension"]),
    "cummax": _cumulative(np.maximum),
    "cummin": _cumulative(np.minimum),
    "cumprod": _cumulative(np.multiply),
    "cumsum": _cumulative(np.add),
    "div": _div,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": lambda params, ins: np.expand_dims(ins[0], params["dimensions"]),
    "gather": _gather,
    "integer_pow": lambda params, ins: ins[0] ** params["y"] if params["y"] >= 0 else None,
    "iota": _iota,
    "reduce_and": _reduction(np.all),
    "reduce_max": _reduction(np.max),
    "reduce_min": _reduction(np.min),
    "reduce_or": _reduction(np.any),
    "reduce_prod": _reduction(np.prod),
    "reduce_sum": _reduction(np.sum),
    "rem": _rem,
    "reshape": _reshape,
    "rev": lambda params, ins: np.flip(ins[0], params["dimensions"]),
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "squeeze": lambda params, ins: np.squeeze(ins[0], tuple(params["dimensions"])),
    "stack": lambda params, ins: np.stack(ins, params["axis"]),
    "transpose": lambda params, ins: np.transpose(ins[0], params["permutation"]),
    "unstack": _unstack,
}
