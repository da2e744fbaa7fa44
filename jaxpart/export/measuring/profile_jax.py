"""Seconds of the stages of a JAX function, and of its nodes, each compiled and timed alone."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.errors import InputError
from jaxpart.export.jax.stages import Stages, Trace
from jaxpart.export.measuring.timing import median_seconds


def profile_trace(
    trace: Trace, count: int, seed: int, callback: Callable[[int], None]
) -> tuple[dict[str, float], str]:
    """Seconds of each node by its name, and the device in words.

    Each node is a stage of its own. One whose results nobody needs takes no time.

    Args:
      trace: of N nodes.
      count: how often each program is timed.
      seed: of the values that stand for shapes among the example arguments.
      callback: called with the number of nodes that are done.

    Raises:
      InputError: the function cannot be cut into stages, or cannot run on random values.
    """
    nodes = trace.graph.nodes
    device = jax.devices()[0]
    stages = trace.stages(range(len(nodes)), [device])
    known = prepared(stages, seed)
    found = jax_stage_seconds(stages, known, count, callback)
    empty_s = _empty_call_s(device, count)
    seconds = dict.fromkeys((node.name for node in nodes), 0.0)
    for part, taken in zip(stages.plans, found, strict=True):
        seconds[nodes[part.chip].name] = max(0.0, taken - empty_s)
    return seconds, f"jax {jax.__version__}, {device.device_kind}"


def prepared(stages: Stages, seed: int = 0) -> dict[int, Any]:
    """Places parameters, and gives the values of the inputs by the arrays that they are.

    Example arguments that are shapes get random values: floats of a normal distribution, integers
    0 or 1.

    Args:
      stages: of a traced function.
      seed: of the random values.
    """
    trace = stages.trace
    rng = np.random.default_rng(seed)
    args = [jax.tree.map(lambda leaf: _value(leaf, rng), arg) for arg in trace.args]
    params = trace.imported.params
    stages.place(*(args[i] for i in sorted(params)))
    return trace.leaves({i: arg for i, arg in enumerate(args) if i not in params})


def jax_stage_seconds(
    stages: Stages,
    inputs: Mapping[int, Any],
    count: int,
    callback: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Runs the stages one after the other, and times each alone on its device.

    Stages that are the same program on the same device are compiled and timed once.

    Args:
      stages: with their weights placed.
      inputs: what `prepared` gives.
      count: how often each program is timed.
      callback: called with the number of stages that are done.

    Returns:
      Seconds of each stage, without transfers.

    Raises:
      InputError: no parameters are placed.
    """
    if stages.weights is None:
        raise InputError(f"{stages.trace.graph.name}: no parameters are placed, expected some")
    uses = collections.Counter(array for part in stages.plans for array in part.given)
    known = dict(inputs)
    programs: dict[tuple[str, Any], Any] = {}
    timed: dict[tuple[str, Any], float] = {}
    found = []
    parts = zip(stages.plans, stages.devices, stages.weights, strict=True)
    for i, (part, device, weights) in enumerate(parts):
        given = [jax.device_put(known[array], device) for array in part.given]
        operands = (*weights, *given)
        with jax.default_device(device):
            function = _flat(stages.function(i), len(weights))
            lowered = jax.jit(function, keep_unused=True).lower(*operands)
            key = lowered.as_text(), device
            if key not in programs:
                programs[key] = lowered.compile()
            program = programs[key]
            results = program(*operands)
            if key not in timed:
                timed[key] = median_seconds(
                    lambda p=program, x=operands: jax.block_until_ready(p(*x)), count
                )
        found.append(timed[key])
        for array in part.given:  # what no later stage reads is freed
            uses[array] -= 1
            if not uses[array]:
                del known[array]
        known.update(
            (array, x) for array, x in zip(part.results, results, strict=True) if uses[array]
        )
        callback(i + 1)
    return found


def _flat(
    function: Callable[[Sequence[Any], Sequence[Any]], list[Any]], weights: int
) -> Callable[..., list[Any]]:
    """A stage as a function of its weights and inputs in one list: equal ones have equal texts."""

    def stage(*operands: Any) -> list[Any]:
        return function(operands[:weights], operands[weights:])

    return stage


def _empty_call_s(device: Any, count: int) -> float:
    """Seconds of a call that computes next to nothing."""
    x = jax.device_put(jnp.int32(0), device)
    program = jax.jit(lambda operand: [operand + 1]).lower(x).compile()
    return median_seconds(lambda: jax.block_until_ready(program(x)), count)


def _value(leaf: Any, rng: np.random.Generator) -> Any:
    """A leaf of an argument; values where it is a shape."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), max(1, int(np.prod(leaf.shape))))
        return keys[: int(np.prod(leaf.shape))].reshape(leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)
    return jnp.asarray(rng.integers(2, size=leaf.shape)).astype(leaf.dtype)
