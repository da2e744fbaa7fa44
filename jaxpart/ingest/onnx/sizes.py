"""Bytes of values, with the part of them that no element size scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from jaxpart.ingest.onnx.shapes import Array


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A number of bytes.

    Attributes:
      total: all bytes.
      fixed: the part that belongs to integers and quantised values: no element size scales it.
    """

    total: float = 0.0
    fixed: float = 0.0

    def __add__(self, other: Bytes) -> Bytes:
        """The bytes of both."""
        return Bytes(self.total + other.total, self.fixed + other.fixed)

    def times(self, factor: float) -> Bytes:
        """The bytes of `factor` times as many elements."""
        return Bytes(self.total * factor, self.fixed * factor)


Size = Callable[[Array], Bytes]


def counter(element_bytes: float | None) -> Size:
    """The function that counts the bytes of a value.

    Args:
      element_bytes: bytes to count per element of a float; None: as the model stores it. A complex
        element counts twice that. Integers and quantised values keep the bits of their own type.
    """

    def size(array: Array) -> Bytes:
        if not array.is_float:
            return Bytes(array.bytes, array.bytes)
        if element_bytes is None:
            return Bytes(array.bytes)
        return Bytes(array.elements * element_bytes * (2 if array.is_complex else 1))

    return size


def total(parts: Iterable[Bytes]) -> Bytes:
    """The sum of all parts."""
    result = Bytes()
    for part in parts:
        result += part
    return result
