"""Seconds of the stages of a JAX function, each compiled and timed alone, and of its nodes."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.errors import InputError
from jaxpart.export.jax.stages import Stages, Trace
from jaxpart.export.measuring.context import piece_cuts, segments_of, shared_out
from jaxpart.export.measuring.timing import clock_of, in_rounds, median_seconds

Programs = dict[tuple[str, Any], Any]  # compiled; by their text and device


def profile_trace(
    trace: Trace, count: int, seed: int, callback: Callable[[int], None]
) -> tuple[dict[str, float], float, str]:
    """Seconds of each node by its name, those of starting a program, and the device in words.

    Each node is measured as a stage of its own, and then in stages of many nodes, which are cut in
    several ways: `shared_out` says what each node takes there. One whose results nobody needs takes
    no time.

    Args:
      trace: of N nodes.
      count: how often each program is timed.
      seed: of the values that stand for shapes among the example arguments.
      callback: called with the number of nodes, then of nodes and other programs, that are done.

    Raises:
      InputError: the function cannot be cut into stages, or cannot run on random values.
    """
    with wide_types(trace):
        return _profiled(trace, count, seed, callback)


def programs_of(trace: Trace) -> int:
    """How many programs `profile_trace` times."""
    count = len(trace.graph.nodes)
    return count + sum(len(cuts) + 1 for cuts in piece_cuts(count))


def wide_types(trace: Trace) -> contextlib.AbstractContextManager[Any]:
    """Lets JAX have types of 64 bits where a trace has some, as those of files do."""
    types = {aval.dtype for aval in trace.steps.avals}
    is_wide = any(jax.dtypes.canonicalize_dtype(t, allow_extended_dtype=True) != t for t in types)
    return jax.enable_x64(True) if is_wide else contextlib.nullcontext()


def _profiled(
    trace: Trace, count: int, seed: int, callback: Callable[[int], None]
) -> tuple[dict[str, float], float, str]:
    """`profile_trace`, where types of 64 bits are as the trace wants them."""
    nodes, device = trace.graph.nodes, jax.devices()[0]
    programs: Programs = {}

    def timed(chips: Sequence[int]) -> TimedStages:
        stages = trace.stages(chips, [device])
        return TimedStages(stages, prepared(stages, seed), programs)

    single = timed(range(len(nodes)))
    empty_s = empty_call_s(device, count)
    alone = [max(0.0, taken - empty_s) for taken in single.seconds(count, callback)]
    needed = [part.chip for part in single.stages.plans]
    pieces, done = [], len(nodes)
    for cuts in piece_cuts(len(nodes)):
        pieces.append(timed(np.searchsorted(cuts, np.arange(len(nodes)), "right").tolist()))
        pieces[-1].seconds(1)  # compiled before the rounds
        done += len(cuts) + 1
        callback(done)
    segments, taken = [], []
    rounds = in_rounds([piece.seconds for piece in pieces], count)
    for cuts, piece, found in zip(piece_cuts(len(nodes)), pieces, rounds, strict=True):
        programs_of = segments_of(cuts, needed, len(nodes))
        segments += [programs_of[part.chip] for part in piece.stages.plans]
        taken += found.min(axis=0).tolist()
    seconds = dict.fromkeys((node.name for node in nodes), 0.0)
    start_s = 0.0
    if segments:
        found, start_s = shared_out(segments, taken, alone, [nodes[v].op for v in needed])
        seconds.update(zip((nodes[v].name for v in needed), found.tolist(), strict=True))
    return seconds, start_s, device_name()


def device_name() -> str:
    """JAX and its default device, in words."""
    return f"jax {jax.__version__}, {jax.devices()[0].device_kind}"


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


class TimedStages:
    """The stages of a function, each compiled alone, that are run one after the other and timed.

    Attributes:
      stages: with their weights placed.
    """

    def __init__(self, stages: Stages, inputs: Mapping[int, Any], programs: Programs) -> None:
        """Compiles nothing yet.

        Args:
          stages: with their weights placed.
          inputs: what `prepared` gives.
          programs: what was compiled, to which the stages' own are added; equal ones are compiled
            once.

        Raises:
          InputError: no parameters are placed.
        """
        if stages.weights is None:
            raise InputError(f"{stages.trace.graph.name}: no parameters are placed, expected some")
        self.stages, self._inputs, self._programs = stages, inputs, programs
        self._keys: list[tuple[str, Any]] = []  # of the stages that were compiled

    def seconds(
        self, count: int, callback: Callable[[int], None] = lambda done: None
    ) -> list[float]:
        """The median seconds of each stage on its device, without transfers.

        Stages that are the same program on the same device are timed once.

        Args:
          count: how often each is timed.
          callback: called with the number of stages that are done.
        """
        plans, weights = self.stages.plans, self.stages.weights or ()
        uses = collections.Counter(array for part in plans for array in part.given)
        known = dict(self._inputs)
        timed: dict[tuple[str, Any], float] = {}
        for i, (part, device) in enumerate(zip(plans, self.stages.devices, strict=True)):
            operands = (*weights[i], *(jax.device_put(known[a], device) for a in part.given))
            if i == len(self._keys):
                self._keys.append(self._compiled(i, operands))
            key = self._keys[i]
            program = self._programs[key]
            results = program(*operands)
            if key not in timed:
                timed[key] = median_seconds(
                    lambda p=program, x=operands: jax.block_until_ready(p(*x)),
                    count,
                    clock_of(device.platform),
                )
            for array in part.given:  # what no later stage reads is freed
                uses[array] -= 1
                if not uses[array]:
                    del known[array]
            made = zip(part.results, results, strict=True)
            known.update((array, x) for array, x in made if uses[array])
            callback(i + 1)
        return [timed[key] for key in self._keys]

    def _compiled(self, stage: int, operands: Sequence[Any]) -> tuple[str, Any]:
        """The key of a stage's program, which is compiled where none is equal."""
        device = self.stages.devices[stage]
        function = _flat(self.stages.function(stage), len((self.stages.weights or ())[stage]))
        with jax.default_device(device):
            lowered = jax.jit(function, keep_unused=True).lower(*operands)
            key = lowered.as_text(), device
            if key not in self._programs:
                self._programs[key] = lowered.compile()
        return key


def _flat(
    function: Callable[[Sequence[Any], Sequence[Any]], list[Any]], weights: int
) -> Callable[..., list[Any]]:
    """A stage as a function of its weights and inputs in one list: equal ones have equal texts."""

    def stage(*operands: Any) -> list[Any]:
        return function(operands[:weights], operands[weights:])

    return stage


def empty_call_s(device: Any, count: int) -> float:
    """Seconds of a call that computes next to nothing."""
    x = jax.device_put(jnp.int32(0), device)
    program = jax.jit(lambda operand: [operand + 1]).lower(x).compile()
    run = lambda: jax.block_until_ready(program(x))  # noqa: E731
    return median_seconds(run, count, clock_of(device.platform))


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
