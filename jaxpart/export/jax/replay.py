"""Runs planned steps of a function, under `jit` or operation by operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxpart.export.jax.plan import PlannedStep, StagePlan
from jaxpart.ingest.jaxpr.steps import Steps


def read_ahead(steps: Steps, part: StagePlan) -> set[int]:
    """The arrays that are read before the weights of a stage are placed."""
    return {array for taken in part.ahead for array in steps.steps[taken.step].operands}


def replay(
    steps: Steps, planned: Iterable[PlannedStep], wanted: Iterable[int], known: Mapping[int, Any]
) -> list[Any]:
    """Runs some steps.

    Args:
      steps: all steps of the function.
      planned: those to run, in order.
      wanted: the arrays to return.
      known: array -> what it holds, for all that these steps do not compute but constants.
    """
    environment = dict(known)

    def read(array: int) -> Any:
        if array not in environment:
            environment[array] = jnp.asarray(steps.constants[array], steps.avals[array].dtype)
        return environment[array]

    for taken in planned:
        step = steps.steps[taken.step]
        operands = [
            read(array) if is_used else _zeros(steps.avals[array])
            for array, is_used in zip(step.operands, taken.used, strict=True)
        ]
        environment.update(zip(step.results, step.run(*operands), strict=True))
    return [read(array) for array in wanted]


def _zeros(aval: Any) -> Any:
    return lax.full(aval.shape, 0, aval.dtype)
