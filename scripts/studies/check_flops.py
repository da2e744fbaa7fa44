"""Compares the FLOPs of `from_jax` with XLA's own analysis.

  python scripts/studies/check_flops.py

XLA analyses the program before optimisation (`jax.jit(f).lower(...).cost_analysis()`). Its FLOPs
and transcendentals are added. A ratio other than 1 is intended: see
`jaxpart/ingest/jaxpr/flops.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpart.ingest.jaxpr.importer import from_jax


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _conv(**settings: Any) -> Callable[..., Any]:
    settings = {"window_strides": (1, 1), "padding": "VALID", **settings}
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **settings)


def _cell(weights: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    def step(h: Any, x: Any) -> tuple[Any, Any]:
        h = jnp.tanh(h @ weights + x)
        return h, h

    return step


_IMAGE, _KERNEL = _array(2, 17, 17, 8), _array(3, 3, 8, 12)
_TABLE, _INDICES = _array(1000, 64), _array(20, 1, dtype=jnp.int32)
_ROWS = lax.GatherDimensionNumbers((1,), (0,), (0,))
_ROW_UPDATES = lax.ScatterDimensionNumbers((1,), (0,), (0,))

# Function, its arguments, and the factor for XLA's figure (the steps of a loop).
Case = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...], int]

EXACT: Mapping[str, Case] = {
    "dot_general": (jnp.matmul, (_array(30, 40), _array(40, 50)), 1),
    "dot_general, 2 batch dimensions": (
        lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b),
        (_array(2, 9, 4, 16), _array(2, 11, 4, 16)),
        1,
    ),
    "dot_general, 2 contracting": (
        lambda a, b: lax.dot_general(a, b, (((1, 2), (0, 1)), ((), ()))),
        (_array(7, 5, 6), _array(5, 6, 8)),
        1,
    ),
    "conv": (_conv(), (_IMAGE, _KERNEL), 1),
    "conv, strided": (_conv(window_strides=(2, 3)), (_IMAGE, _KERNEL), 1),
    "conv, dilated": (_conv(rhs_dilation=(2, 3)), (_IMAGE, _KERNEL), 1),
    "conv, grouped": (_conv(feature_group_count=4), (_IMAGE, _array(3, 3, 2, 12)), 1),
    "conv, depthwise": (_conv(feature_group_count=8), (_IMAGE, _array(3, 3, 1, 8)), 1),
    "conv, batch groups": (_conv(batch_group_count=2), (_IMAGE, _KERNEL), 1),
    "conv, transposed": (
        _conv(lhs_dilation=(2, 2), padding=((2, 2), (2, 1))),
        (_IMAGE, _KERNEL),
        1,
    ),
    "conv, padded borders": (_conv(padding="SAME"), (_IMAGE, _KERNEL), 1),
    "conv, padded and strided": (
        _conv(padding="SAME", window_strides=(2, 2)),
        (_IMAGE, _KERNEL),
        1,
    ),
    "reduce_sum": (lambda x: lax.reduce(x, 0.0, lax.add, (1,)), (_array(30, 70),), 1),
    "reduce_max, all axes": (lambda x: lax.reduce(x, 0.0, lax.max, (0, 1)), (_array(30, 70),), 1),
    "reduce_prod": (lambda x: lax.reduce(x, 1.0, lax.mul, (0,)), (_array(30, 70),), 1),
    "argmax": (lambda x: lax.argmax(x, 1, jnp.int32), (_array(30, 70),), 1),
    "reduce_window_max": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
        (_IMAGE,),
        1,
    ),
    "reduce_window_sum": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        (_IMAGE,),
        1,
    ),
    "gather": (lambda t, i: lax.gather(t, i, _ROWS, (1, 64)), (_TABLE, _INDICES), 1),
    "scatter-add": (
        lambda t, i, u: lax.scatter_add(t, i, u, _ROW_UPDATES),
        (_TABLE, _INDICES, _array(20, 64)),
        1,
    ),
    "scan body, 10 steps": (
        lambda w, h, xs: lax.scan(_cell(w), h, xs),
        (_array(32, 32), _array(4, 32), _array(10, 4, 32)),
        10,
    ),
    "add": (jnp.add, (_array(30, 70), _array(30, 70)), 1),
    "exp": (jnp.exp, (_array(30, 70),), 1),
    "compare": (jnp.greater, (_array(30, 70), _array(30, 70)), 1),
    "convert_element_type": (lambda x: x.astype(jnp.int32), (_array(30, 70),), 1),
    "integer_pow": (lambda x: x**5, (_array(30, 70),), 1),
}
BY_DESIGN: Mapping[str, Case] = {
    "logistic": (lax.logistic, (_array(30, 70),), 1),
    "erfc": (lax.erfc, (_array(30, 70),), 1),
    "cumsum": (lambda x: lax.cumsum(x, 1), (_array(30, 70),), 1),
    "sort": (lax.sort, (_array(30, 70),), 1),
    "fft": (lambda x: lax.fft(x, "FFT", (64,)), (_array(30, 64, dtype=jnp.complex64),), 1),
}


def flops_of_both(case: Case) -> tuple[float, float]:
    """FLOPs of a case by `from_jax` and by XLA."""
    fn, arguments, repeats = case
    with warnings.catch_warnings():  # loops are kept on purpose: XLA counts their bodies too
        warnings.filterwarnings("ignore", message=".*is kept as one node")
        ours = from_jax(fn, *arguments, unroll_limit=0, name="case").total_flops
    if repeats > 1:  # XLA counts the body of a loop once, and also the loop's counter
        weights, carry, rows = arguments
        row = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
        analysis = jax.jit(lambda w, h, x: _cell(w)(h, x)).lower(weights, carry, row)
    else:
        analysis = jax.jit(fn).lower(*arguments)
    costs: Any = analysis.cost_analysis()
    return ours, repeats * (costs.get("flops", 0.0) + costs.get("transcendentals", 0.0))


def main() -> None:
    """Prints a table of all cases."""
    print(f"{'operation':34} {'from_jax':>12} {'XLA':>12} {'ratio':>7}")
    for name, case in {**EXACT, **BY_DESIGN}.items():
        ours, xla = flops_of_both(case)
        ratio = ours / xla if xla else float(ours == 0) or float("inf")
        print(f"{name:34} {ours:12.0f} {xla:12.0f} {ratio:7.4f}")


if __name__ == "__main__":
    main()
