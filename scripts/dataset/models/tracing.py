"""Traces a flax module as a graph of the data set."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.problem.graph import Graph


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
    return from_jax(module.apply, variables, *inputs, param_argnums=0, name=name, element_bytes=1)
