"""Operations of other formats that JAX has no function for, in a function that JAX traces."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive


def by_shape(name: str, operands: Sequence[Any], results: Sequence[Any], **params: Any) -> list:
    """Adds an operation of which the shapes are known, and nothing that JAX could run.

    Args:
      name: of the operation. With the name of a primitive of JAX it has that primitive's cost rule;
        any other is counted by its shapes, with a warning.
      operands: arrays.
      results: shape and type of each result, as `jax.ShapeDtypeStruct`.
      params: what the cost rule of the name looks at.

    Returns:
      The results, as values of the trace.
    """
    shapes = tuple((tuple(result.shape), jnp.dtype(result.dtype)) for result in results)
    return _primitive(name).bind(*operands, results=shapes, **params)


def only_shapes(eqn: Any) -> Iterator[str]:
    """Names of the operations in an equation, and in its bodies, that JAX cannot run."""
    if isinstance(eqn.primitive, _ByShape):
        yield eqn.primitive.name
    for given in eqn.params.values():
        for body in given if isinstance(given, list | tuple) else (given,):
            for inner in getattr(getattr(body, "jaxpr", body), "eqns", ()):
                yield from only_shapes(inner)


class _ByShape(Primitive):
    """A primitive of which nothing is known but shapes."""


@functools.cache
def _primitive(name: str) -> Any:
    primitive = _ByShape(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(_results)
    return primitive


def _results(*operands: Any, results: Any, **params: Any) -> list[Any]:
    del operands, params
    return [ShapedArray(shape, dtype) for shape, dtype in results]
