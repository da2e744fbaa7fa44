"""Constants of StableHLO as arrays."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.ingest.jaxpr.known import MAX_ELEMENTS
from jaxpart.ingest.jaxpr.sizes import array_bytes
from jaxpart.ingest.jaxpr.values import SMALL_CONSTANT_BYTES

_DENSE = re.compile(r"dense<(.*)> : tensor<", re.DOTALL)
# Floats that no decimal stands for are printed as their bits.
_SCALAR = re.compile(r"0x[0-9A-Fa-f]+|[-+]?\d[\d.]*(?:[eE][-+]?\d+)?|true|false")


def attribute_of(operation: Any, name: str) -> Any:
    """An attribute; None if jaxlib has no Python form of it (a constant of complex numbers)."""
    try:
        return operation.attributes[name]
    except TypeError:
        return None


def elements_that_matter(operation: Any, aval: jax.ShapeDtypeStruct) -> np.ndarray | None:
    """The elements of a constant that matter for a graph: few, all the same, or whole numbers.

    Args:
      operation: the constant.
      aval: its shape and type.

    Returns:
      An array of the shape. One element, in an array without axes, where all are the same. None
      where they are not at hand (a file that leaves large constants out), or do not matter.
    """
    attribute = attribute_of(operation, "value")
    if attribute is not None and not hasattr(attribute, "is_splat"):
        return None
    if attribute is not None and attribute.is_splat:
        value = attribute.get_splat_value()
        return np.array([getattr(value, "value", value)]).astype(aval.dtype).reshape(())
    few = array_bytes(aval) <= SMALL_CONSTANT_BYTES
    whole = not jnp.issubdtype(aval.dtype, jnp.inexact) and math.prod(aval.shape) <= MAX_ELEMENTS
    return all_elements(operation, aval) if few or whole else None


def all_elements(operation: Any, aval: jax.ShapeDtypeStruct) -> np.ndarray | None:
    """The elements of a constant; None where the file leaves them out.

    Args:
      operation: the constant.
      aval: its shape and type.
    """
    attribute = attribute_of(operation, "value")
    try:
        return np.array(attribute).astype(aval.dtype).reshape(aval.shape)
    except (TypeError, ValueError):  # elements that NumPy has no name for, or no Python form
        return _from_text(str(operation), aval)


def _from_text(text: str, aval: jax.ShapeDtypeStruct) -> np.ndarray | None:
    """The elements of a constant as MLIR prints it; many are printed as their bytes."""
    found = _DENSE.search(text)
    if found is None:
        return None
    written = found[1]
    if written.startswith('"0x'):
        array = np.frombuffer(bytes.fromhex(written[3:-1]), aval.dtype)
    else:
        part = np.dtype(aval.dtype)
        if part.kind == "c":  # two floats each
            part = np.dtype(f"f{part.itemsize // 2}")
        scalars = [_scalar(word, part) for word in _SCALAR.findall(written)]
        array = np.array(scalars, part).view(aval.dtype)
    if array.size == 1:
        return np.broadcast_to(array.reshape(()), aval.shape)
    return array.reshape(aval.shape) if array.size == math.prod(aval.shape) else None


def _scalar(word: str, dtype: np.dtype) -> Any:
    if word in ("true", "false"):
        return word == "true"
    if not word.startswith("0x"):
        return float(word) if jnp.issubdtype(dtype, jnp.inexact) else int(word)
    bits = np.array(int(word, 16), f"u{dtype.itemsize}")
    return bits.view(dtype)[()]
