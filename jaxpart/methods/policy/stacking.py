"""Inputs of one bucket as one pytree, so that one call of a program serves several graphs.

A GPU or TPU waits for each call, and a step of training has a call for each graph. A CPU computes
one graph after the other in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def alike(trees: Sequence[Any]) -> list[list[int]]:
    """Numbers of the pytrees that have the same structure and shapes, in order of appearance."""
    found: dict[Any, list[int]] = {}
    for number, tree in enumerate(trees):
        leaves, structure = jax.tree.flatten(tree)
        found.setdefault((structure, *map(jnp.shape, leaves)), []).append(number)
    return list(found.values())


def together(trees: Sequence[Any]) -> Any:
    """Pytrees of one structure and one set of shapes as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
