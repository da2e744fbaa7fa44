"""Traces a flax module as a graph of the data set."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.problem.graph import Graph


@dataclasses.dataclass(frozen=True)
class Call:
    """What was traced: `function(variables, *inputs)`, all arguments as shapes and types."""

    function: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]


_CALLS: contextvars.ContextVar[list[Call] | None] = contextvars.ContextVar("calls", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls that `trace` traces while the context is open, for who wants to run them."""
    calls: list[Call] = []
    token = _CALLS.set(calls)
    try:
        yield calls
    finally:
        _CALLS.reset(token)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """A float32 input of this shape."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def trace(name: str, module: nn.Module, *inputs: Any) -> Graph:
    """Traces one call of a module; no weight is allocated.

    Args:
      name: of the graph.
      module: the model.
      inputs: of the call, arrays or their shapes and types.

    Returns:
      The graph, with float tensors counted as int8.
    """
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    calls = _CALLS.get()
    if calls is not None:
        calls.append(Call(module.apply, variables, inputs))
    return from_jax(module.apply, variables, *inputs, param_argnums=0, name=name, element_bytes=1)
