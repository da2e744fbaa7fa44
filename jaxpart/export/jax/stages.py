"""A partition of a JAX function as functions: one for each chip, with its weights on its device."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec

from jaxpart.errors import InputError
from jaxpart.export.checked import as_result
from jaxpart.export.chips import Partition, chips_of
from jaxpart.export.jax.files import StageProgram, check_installed, stage_files, tensor_info
from jaxpart.export.jax.names import Names
from jaxpart.export.jax.plan import StagePlan, plan
from jaxpart.export.jax.replay import read_ahead, replay
from jaxpart.export.jax.shardy import Fragment, mpmd_module
from jaxpart.export.manifest import RESULT, Manifest, check_folder, write_stages
from jaxpart.ingest.jaxpr.importer import Imported, Options, import_function
from jaxpart.ingest.jaxpr.steps import Steps
from jaxpart.problem.graph import Graph
from jaxpart.results.scored import ScoredPartition


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """One call of a function: its graph, and what the nodes stand for.

    Attributes:
      graph: of N nodes, as `from_jax` gives it.
      equations: [N] the JAX equations that each node stands for. What an unrolled loop brings
        (a row of a scanned array, a stack of results) is no equation.
      args: the example arguments.
      names: of the leaves of the arguments.
    """

    graph: Graph
    equations: tuple[tuple[Any, ...], ...] = dataclasses.field(repr=False)
    args: tuple[Any, ...] = dataclasses.field(repr=False)
    names: tuple[str, ...] = dataclasses.field(repr=False)
    imported: Imported = dataclasses.field(repr=False)
    steps: Steps = dataclasses.field(repr=False)

    def stages(self, partition: Partition, devices: Sequence[Any] | None = None) -> Stages:
        """The function as one jitted function for each chip in use.

        Parameters that were given as arrays, not as shapes, are placed at once.

        Args:
          partition: a result or evaluation of this graph, the chip of each node by name, or [N] the
            chip of each node.
          devices: where the stages run, in turn; a device runs several where there are fewer. By
            default `jax.devices()`.

        Raises:
          InputError: the partition is invalid or one of another graph; data flows to a lower chip;
            or the function holds a `shard_map`, which runs on all its devices at once.
        """
        chips = chips_of(self.graph, partition)
        if self.steps.opaque:
            raise InputError(
                f"{self.graph.name}: holds {', '.join(sorted(self.steps.opaque))}, which cannot be "
                "cut into stages; expected a function of one device"
            )
        found = list(jax.devices() if devices is None else devices)
        if not found:
            raise InputError(f"{self.graph.name}: devices is empty, expected one or more")
        scored = partition if isinstance(partition, ScoredPartition) else None
        stages = Stages(self, plan(self.imported, self.steps, chips), found, scored)
        params = [self.args[i] for i in sorted(self.imported.params)]
        if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            stages.place(*params)
        return stages

    def leaves(self, arguments: Mapping[int, Any]) -> dict[int, Any]:
        """The leaves of some arguments, by the arrays of `steps` that they are.

        Args:
          arguments: position -> argument.

        Raises:
          InputError: an argument is not as the function was traced with.
        """
        arrays, names = iter(self.steps.arguments), iter(self.names)
        found = {}
        for i, example in enumerate(self.args):
            expected = jax.tree.structure(example)
            own = list(itertools.islice(arrays, expected.num_leaves))
            own_names = list(itertools.islice(names, expected.num_leaves))
            if i not in arguments:
                continue
            leaves, structure = jax.tree.flatten(arguments[i])
            if structure != expected:
                raise InputError(
                    f"{self.graph.name}: argument {i} is {structure}, expected {expected}, as "
                    "traced"
                )
            for array, leaf, name in zip(own, leaves, own_names, strict=True):
                self._check(leaf, array, name)
                found[array] = leaf
        return found

    def _check(self, leaf: Any, array: int, name: str) -> None:
        """Refuses a leaf that is not an array of the shape and type that were traced."""
        expected = self.steps.avals[array]
        place = f"{self.graph.name}: the argument {name}"
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise InputError(f"{place} is a shape alone, expected an array")
        try:
            given = jax.typeof(leaf)
        except TypeError as error:
            raise InputError(f"{place} is a {type(leaf).__name__}, expected an array") from error
        if (given.shape, given.dtype) != (expected.shape, expected.dtype):
            raise InputError(
                f"{place} is {given.dtype}{list(given.shape)}, expected "
                f"{expected.dtype}{list(expected.shape)}, as traced"
            )


def trace(
    fn: Callable[..., Any],
    *args: Any,
    param_argnums: int | Sequence[int] = (),
    state_argnums: int | Sequence[int] = (),
    name: str | None = None,
    element_bytes: float | None = None,
    unroll_limit: int | None = None,
    fuse: bool = False,
) -> Trace:
    """The graph of one call `fn(*args)`, and what it takes to run a partition of it.

    Arguments, errors, warnings and the graph are those of `from_jax`.
    """
    options = Options(param_argnums, state_argnums, name, element_bytes, unroll_limit, fuse)
    imported = import_function(fn, args, options, record=True)
    return trace_of(imported, args, _leaf_names(fn, args))


def trace_of(imported: Imported, args: Sequence[Any], names: Sequence[str]) -> Trace:
    """The trace of a function that was imported and recorded.

    Args:
      imported: the function.
      args: its example arguments.
      names: of the leaves of the arguments.
    """
    assert imported.expansion is not None
    steps = Steps(imported.program, imported.expansion)
    equations = _equations(imported, steps)
    return Trace(imported.graph, equations, tuple(args), tuple(names), imported, steps)


class Stages:
    """A function cut into stages. Called with its arguments, it returns what the function returns.

    Attributes:
      trace: the function.
      plans: what each stage runs, in chip order.
      devices: the device of each stage.
      weights: the arrays that each stage holds; None before parameters are placed.
    """

    def __init__(
        self,
        trace: Trace,
        plans: Sequence[StagePlan],
        devices: Sequence[Any],
        scored: ScoredPartition | None,
    ) -> None:
        """Prepares the functions; nothing is compiled before the first call.

        Args:
          trace: the function.
          plans: what each stage runs, in chip order.
          devices: where the stages run, in turn.
          scored: the partition with its costs, where they are known.
        """
        self.trace = trace
        self._scored = scored
        self.plans = tuple(plans)
        self.devices = tuple(devices[i % len(devices)] for i in range(len(plans)))
        self.weights: tuple[tuple[Any, ...], ...] | None = None
        self._placed: list[Any] = []  # the leaves of the parameters
        self._functions = tuple(jax.jit(self.function(i)) for i in range(len(plans)))

    def function(self, stage: int) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
        """A stage as a function that JAX can trace.

        Args:
          stage: its position.

        Returns:
          A function of the weights of the stage and of its inputs, in the order of
          `StagePlan.given`, to its results, in the order of `StagePlan.results`.
        """
        steps, part = self.trace.steps, self.plans[stage]

        def run(weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
            arrays = (*part.weights, *part.given)
            known = dict(zip(arrays, (*weights, *inputs), strict=True))
            return replay(steps, part.steps, part.results, known)

        run.__name__ = f"stage_{part.chip}"
        return run

    def place(self, *params: Any) -> None:
        """Puts the weights of each stage on its device.

        A part of a parameter that is smaller (a layer of a stack, a cast to fewer bits) is computed
        first, and only it is placed.

        Args:
          params: the arguments at `param_argnums`, by position.

        Raises:
          InputError: they are not as the function was traced with.
        """
        positions = sorted(self.trace.imported.params)
        if len(params) != len(positions):
            raise InputError(
                f"{self.trace.graph.name}: {len(params)} parameters are given, expected "
                f"{len(positions)}: the arguments {positions}"
            )
        given = self.trace.leaves(dict(zip(positions, params, strict=True)))
        steps = self.trace.steps
        known = {**steps.constants, **given}
        for array in {a for part in self.plans for a in read_ahead(steps, part) if a in known}:
            known[array] = jnp.asarray(known[array], steps.avals[array].dtype)  # moved once
        weights = []
        for part, device in zip(self.plans, self.devices, strict=True):
            made = [array for array in part.weights if array not in known]
            held = known | dict(zip(made, replay(steps, part.ahead, made, known), strict=True))
            weights.append(tuple(jax.device_put(held[a], device) for a in part.weights))
        self.weights = tuple(weights)
        self._placed = jax.tree.leaves(params)

    def __call__(self, *args: Any) -> Any:
        """Runs the stages one after the other.

        Args:
          args: all arguments of the function, or those that are no parameters. Parameters other
            than the placed ones are placed first.

        Returns:
          What the function returns. Each array is on the device of the stage that computed it.

        Raises:
          InputError: an argument is not as the function was traced with, or no parameters are
            placed.
        """
        inputs = self._inputs(args)
        if self.weights is None:
            raise InputError(
                f"{self.trace.graph.name}: was traced with shapes of parameters, and none are "
                "placed; expected all arguments, or `place` before"
            )
        known = dict(inputs)
        parts = zip(self.plans, self._functions, self.devices, self.weights, strict=True)
        for part, function, device, weights in parts:
            moved = [jax.device_put(known[array], device) for array in part.given]
            with jax.default_device(device):
                known.update(zip(part.results, function(weights, moved), strict=True))
        imported = self.trace.imported
        outputs = [jnp.asarray(known[array]) for array in self.trace.steps.outputs]
        return jax.tree.unflatten(jax.tree.structure(imported.results), outputs)

    def save(self, folder: str | os.PathLike[str], platforms: Sequence[str] | None = None) -> None:
        """Writes a folder of stages that can be loaded and run without the function.

        Each stage is a `.jaxexport`, a `.mlirbc` and, for its weights, a `.npz` (`files.py`). A
        partition with costs is written beside them, as `result.json`.
        The inputs are named by the arguments of the function and the paths of their leaves, the
        outputs `output`, `output[0]`, ... likewise.

        Args:
          folder: where to; a folder of stages that is there is replaced.
          platforms: what the stages can run on, as JAX names them ("cpu", "cuda", "rocm", "tpu");
            by default the platform of today alone.

        Raises:
          InputError: no parameters are placed, `flatbuffers` is not installed, JAX cannot export a
            stage, or the folder cannot be written.
        """
        graph = self.trace.graph
        if self.weights is None:
            raise InputError(f"{graph.name}: no parameters are placed, expected `place` before")
        check_installed()
        check_folder(folder)
        names = self._names()
        entries, files = [], {}
        for i, (part, weights) in enumerate(zip(self.plans, self.weights, strict=True)):
            program = StageProgram(
                part.chip, self.function(i), weights, names.inputs(part), names.outputs(part)
            )
            entry, own = stage_files(program, platforms, f"{graph.name}: chip {part.chip}")
            entries.append(entry)
            files.update(own)
        result = None if self._scored is None else as_result(self._scored, graph.name)
        if result is not None:
            files[RESULT] = result.encoded()
            entries = [
                msgspec.structs.replace(entry, sha256={**entry.sha256, RESULT: ""})
                for entry in entries
            ]
        manifest = Manifest(
            "jax",
            graph.name,
            graph.sha256 if result is None else result.problem.graph.sha256,
            "" if result is None else result.problem.mcm.name,
            tuple(tensor_info(*named) for named in names.model_inputs()),
            tuple(tensor_info(*named) for named in names.model_outputs()),
            tuple(entries),
        )
        write_stages(folder, manifest, files)

    def to_mpmd(self) -> str:
        """The stages as a module of Shardy's MPMD dialect, verified: a fragment for each chip.

        Outputs that are inputs of the function are left out. No parameters need be placed. The
        text can be parsed with jaxlib; jaxpart comes with nothing that runs it.
        """
        steps, names = self.trace.steps, self._names()
        fragments = []
        for i, part in enumerate(self.plans):
            shapes = [
                [jax.ShapeDtypeStruct(steps.avals[a].shape, steps.avals[a].dtype) for a in arrays]
                for arrays in (part.weights, part.given)
            ]
            text = jax.jit(self.function(i), keep_unused=True).lower(*shapes).as_text()
            given = [name for name, *_ in names.inputs(part)]
            results = [names.between(array) for array in part.results]
            fragments.append(Fragment(part.chip, text, len(part.weights), given, results))
        made = {array for part in self.plans for array in part.returned}
        outputs = [names.between(array) for array in steps.outputs if array in made]
        return mpmd_module(self.trace.graph.name, fragments, outputs)

    def _names(self) -> Names:
        trace = self.trace
        return Names(trace.names, trace.imported, trace.steps, self.plans)

    def _inputs(self, args: Sequence[Any]) -> dict[int, Any]:
        """The leaves of the arguments that are no parameters; places the parameters if need be."""
        trace, params = self.trace, sorted(self.trace.imported.params)
        inputs = [i for i in range(len(trace.args)) if i not in params]
        if len(args) not in (len(trace.args), len(inputs)):
            raise InputError(
                f"{trace.graph.name}: {len(args)} arguments are given, expected {len(trace.args)}, "
                f"or the {len(inputs)} that are no parameters"
            )
        if len(args) == len(trace.args):
            given = [args[i] for i in params]
            leaves = jax.tree.leaves(given)
            placed = self.weights is not None and len(leaves) == len(self._placed)
            if not placed or any(a is not b for a, b in zip(leaves, self._placed, strict=True)):
                self.place(*given)
            args = [args[i] for i in inputs]
        return trace.leaves(dict(zip(inputs, args, strict=True)))


def _equations(imported: Imported, steps: Steps) -> tuple[tuple[Any, ...], ...]:
    """[N] the equations that each node stands for."""
    found: list[dict[int, Any]] = [{} for _ in imported.graph.nodes]
    for position, step in enumerate(steps.steps):
        if step.eqn is None:
            continue
        values = [*(steps.value_of(array) for array in step.results), *step.pieces]
        for value in values:
            node = None if value is None else imported.node_of.get(value)
            if node is not None:
                found[node][position] = step.eqn
    return tuple(tuple(equations.values()) for equations in found)


def _leaf_names(fn: Callable[..., Any], args: Sequence[Any]) -> tuple[str, ...]:
    """A name for each leaf of the arguments: that of the argument, and the path to the leaf."""
    try:
        names = list(inspect.signature(fn).bind(*args).arguments)
    except (TypeError, ValueError):  # functions of C have no signature
        names = []
    if len(names) != len(args):  # *args is one name for several
        names = [f"arg{i}" for i in range(len(args))]
    return tuple(
        name + jax.tree_util.keystr(path)
        for name, arg in zip(names, args, strict=True)
        for path, _ in jax.tree_util.tree_leaves_with_path(arg)
    )
