"""Elements and bytes of the arrays that a jaxpr computes, in the types that were traced."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

# Bits of the narrowest float that is no quantised value.
_LEAST_FLOAT_BITS = 16


def is_float(aval: Any) -> bool:
    """Whether elements are real or complex floats of 16 bits or more; narrower are quantised."""
    if not hasattr(aval, "dtype") or not jnp.issubdtype(aval.dtype, np.inexact):
        return False
    return element_bits(aval) >= _LEAST_FLOAT_BITS


def element_bits(aval: Any) -> int:
    """Bits of one element of `aval`, in the type that was traced: 4 for int4."""
    dtype = aval.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        return int(jnp.iinfo(dtype).bits)
    if jnp.issubdtype(dtype, jnp.floating):
        return int(jnp.finfo(dtype).bits)
    return 8 * int(dtype.itemsize)


def array_bytes(aval: Any) -> int:
    """Bytes of an array in the type that was traced, rounded up to whole bytes."""
    count = elements(aval)
    return -(-count * element_bits(aval) // 8) if count else 0


def elements(aval: Any) -> int:
    """Number of elements of `aval`; 0 if it is not an array (a token)."""
    return math.prod(getattr(aval, "shape", (0,)))
