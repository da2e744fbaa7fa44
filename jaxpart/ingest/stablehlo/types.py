"""Types of StableHLO as shapes and types of JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxlib.mlir import ir

from jaxpart.errors import FileFormatError

_FLOATS = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    **{
        f"f{name}": f"float{name[0]}_{name[1:].lower()}"
        for name in (
            *("8E3M4", "8E4M3", "8E4M3FN", "8E4M3FNUZ", "8E4M3B11FNUZ"),
            *("8E5M2", "8E5M2FNUZ", "8E8M0FNU", "4E2M1FN"),
        )
    },
}
_COMPLEX = {"complex<f32>": "complex64", "complex<f64>": "complex128"}
_INTEGERS = {
    "i1": "bool",
    **{f"i{bits}": f"int{bits}" for bits in (2, 4, 8, 16, 32, 64)},
    **{f"ui{bits}": f"uint{bits}" for bits in (2, 4, 8, 16, 32, 64)},
}
_DTYPES = {**_FLOATS, **_COMPLEX, **_INTEGERS}


def aval_of(kind: Any, where: str) -> jax.ShapeDtypeStruct:
    """Shape and type of a value; a token is an empty array.

    Args:
      kind: an `ir.Type`.
      where: for the message.

    Raises:
      FileFormatError: it is no array of known shape, or of elements that JAX does not have.
    """
    if str(kind) == "!stablehlo.token":
        return jax.ShapeDtypeStruct((0,), jnp.bool_)
    if not isinstance(kind, ir.RankedTensorType):
        raise FileFormatError(f"{where}: a value of type {kind}, expected an array")
    if not kind.has_static_shape:
        raise FileFormatError(
            f"{where}: a value of type {kind}, expected a shape of whole numbers (export or lower "
            "the function for fixed shapes)"
        )
    name = _DTYPES.get(str(kind.element_type))
    if name is None:
        raise FileFormatError(f"{where}: elements of type {kind.element_type}, expected JAX's")
    return jax.ShapeDtypeStruct(tuple(kind.shape), jnp.dtype(name))
