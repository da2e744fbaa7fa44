"""Seconds of each node of a model, measured on the device at hand."""

from __future__ import annotations

import collections
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from jaxpart.errors import InputError, SharedDrawError
from jaxpart.export.checked import checked_result
from jaxpart.export.jax.from_file import is_for_jax, trace_file
from jaxpart.export.measuring.context import piece_cuts, segments_of, shared_out
from jaxpart.export.measuring.timing import Walk, in_rounds, walk_of
from jaxpart.export.measuring.unfinished import key_of, read_unfinished, write_unfinished
from jaxpart.export.onnx.data import with_shared_data
from jaxpart.export.running.runtimes import onnx_program, onnx_session, runtime_name
from jaxpart.export.running.tensors import Feed, feed_of, random_feed
from jaxpart.export.targets import read_model, write_onnx_stages
from jaxpart.ingest.load import refuse_options
from jaxpart.ingest.onnx.importer import ImportedModel
from jaxpart.ingest.seconds import profiler_runs, with_seconds, write_seconds
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM, Chip, Constraints
from jaxpart.text import name_of

if TYPE_CHECKING:
    from jaxpart.export.jax.stages import Trace

_RUNS = 20
_MAX_EVENTS = 150_000  # of nodes, in all runs: the profiler's file has 600 bytes for each
_FEWEST_RUNS = 3
_BLOCK_S = 30.0  # after so many seconds a session ends, and its times are written
_FEWEST_WAYS = 2  # to cut a model, below which nothing is learnt of its nodes
_ASIDE = 0.01  # of the nodes' time: what stands for no node may take it, in some stages or in all
_APART = "nodes were measured one by one, not in stages"
_SHOWN = 12  # operators in a table

# One chip that holds any model.
_WHOLE = MCM("whole", "chain", (Chip(1.0, 1.0, 1e24),), 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """What `profile` has measured.

    Attributes:
      graph: of the model, with the measured seconds.
      device: where it ran, in words.
      runs: how often each node was timed.
      resumed: how many of these runs an earlier call made, which was stopped.
      start_s: seconds that starting a program of several nodes takes beside them; 0 where it was
        not measured.
      notes: sentences on what was not measured, and why.
    """

    graph: Graph
    device: str
    runs: int
    resumed: int = 0
    start_s: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by the node's name."""
        return {v.name: v.seconds for v in self.graph.nodes if v.seconds is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the seconds as CSV, as `with_seconds` reads it.

        Raises:
          InputError: the folder does not exist or cannot be written.
        """
        write_seconds(path, self.seconds)

    def summary(self) -> str:
        """A table of the operators that take longest."""
        total = sum(self.seconds.values())
        taken: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
        for node in self.graph.nodes:
            taken[node.op].append(node.seconds or 0.0)
        rows = sorted(taken.items(), key=lambda row: -sum(row[1]))
        width = max(len(name_of(op)) for op, _ in rows[:_SHOWN])
        lines = [
            f"{name_of(self.graph.name)}: {len(self.graph.nodes):,} nodes, {total * 1e6:,.1f} us "
            f"one after the other, {self.runs} runs"
            + (f", {self.resumed} of them from before" if self.resumed else ""),
            f"on {self.device}",
            *([f"starting a program takes {self.start_s * 1e6:,.1f} us"] if self.start_s else []),
            *(f"note: {note}" for note in self.notes),
            "",
            f"{'operator':{max(width, 8)}}  nodes            us      %",
        ]
        lines += [
            f"{name_of(op):{max(width, 8)}} {len(each):6,} {sum(each) * 1e6:13,.1f} "
            f"{100 * sum(each) / (total or 1):6.1f}"
            for op, each in rows[:_SHOWN]
        ]
        if len(rows) > _SHOWN:
            lines.append(f"and {len(rows) - _SHOWN} more operators")
        return "\n".join(lines)


def profile(
    model: str | os.PathLike[str] | Trace,
    *,
    count: int = _RUNS,
    dims: Mapping[str, int] | None = None,
    param_argnums: int | Sequence[int] = (),
    inputs: str | os.PathLike[str] | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    callback: Callable[[int], None] = lambda done: None,
) -> Profile:
    """Measures the seconds of each node of a model on the device at hand.

    An ONNX file runs as a whole in ONNX Runtime, on one core and without graph optimisations, so
    that its nodes are those of the graph; the runtime's profiler times them, in whole microseconds.
    What counts is the mean of the fastest quarter of the runs of a node. Then the model runs in
    stages of many nodes, and the times of nodes are those that explain best what stages take; not
    where it is small or cannot be cut, or where operations that are no nodes take much.
    A trace of JAX runs on JAX's default device, in stages that are compiled: of one node each, and
    of many nodes, where XLA fuses nodes and operands may be in a cache. So does a file that
    `jaxpart.trace_file` makes a trace of: StableHLO, what `jax.export` serializes, a `.pt2`.

    Args:
      model: the path of an ONNX or other file, or what `jaxpart.trace` or `trace_file` gives.
      count: how often each node is timed; less often for large models.
      dims: sizes of free dimensions of an ONNX model or `.pt2`, as for `from_onnx`.
      param_argnums: which arguments of StableHLO are parameters, as for `trace_file`.
      inputs: an .npz file with an array for each input of the ONNX model. None: random values, or
        for a trace, its example arguments where they are arrays.
      seed: of random values.
      out: of an ONNX model: a file of seconds that is written every half minute while runs go on.
        If a call for the same model, inputs and runtime was stopped, its runs in the file count.
        `Profile.save` writes the file of a finished measurement. None: nothing is written.
      callback: called with the number of runs (ONNX) or programs (JAX) that are done.

    Raises:
      InputError: the model cannot be read or run, or `count` is below 1.
    """
    if count < 1:
        raise InputError(f"count is {count}, expected 1 or more")
    if isinstance(model, (str, os.PathLike)) and not is_for_jax(model):
        refuse_options(model, None, param_argnums)
        return _profile_onnx(os.fspath(model), count, dims, inputs, seed, out, callback)
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model.graph.name
    if inputs is not None or out is not None:
        raise InputError(f"{name}: runs on JAX, expected inputs and out of an ONNX file alone")
    if isinstance(model, (str, os.PathLike)):
        model = trace_file(model, dims=dims, param_argnums=param_argnums)
    elif dims or param_argnums or param_argnums == 0:
        raise InputError(
            f"{name}: a trace has sizes and parameters, expected dims and "
            "param_argnums of a file alone"
        )
    from jaxpart.export.measuring.profile_jax import profile_trace

    seconds, start_s, device = profile_trace(model, count, seed, callback)
    return Profile(with_seconds(model.graph, seconds), device, count, start_s=start_s)


def _profile_onnx(
    path: str,
    count: int,
    dims: Mapping[str, int] | None,
    inputs: str | os.PathLike[str] | None,
    seed: int,
    out: str | os.PathLike[str] | None,
    callback: Callable[[int], None],
) -> Profile:
    imported = read_model(path, dims)
    graph = imported.graph
    count = min(count, max(_FEWEST_RUNS, _MAX_EVENTS // len(imported.model.nodes)))
    whole = checked_result(graph, np.zeros(len(graph.nodes), np.int64), _WHOLE, path)
    with tempfile.TemporaryDirectory(prefix="jaxpart.") as name:
        folder = Path(name)
        # The model's weights take their room here once, however often it is cut.
        source = with_shared_data(imported.source, path, folder)
        imported = dataclasses.replace(imported, source=source)
        manifest = write_onnx_stages(imported, whole, path, folder / "stages")
        file = folder / "stages" / manifest.stages[0].file
        _name_all(file)
        feed = (
            random_feed(manifest.inputs, seed)
            if inputs is None
            else feed_of(inputs, manifest.inputs)
        )
        given = {tensor.name for tensor in manifest.stages[0].inputs}
        key = key_of(path, inputs, dict(dims or {}), seed, runtime_name())
        runs = read_unfinished(out, key)
        done = resumed = min(count, max(map(len, runs.values()), default=0))
        while done < count:
            session = onnx_session(file, folder / "profile")
            program = onnx_program(session, file)
            began_s = time.monotonic()
            first = done
            for k in range(first, count + 1):  # the first one of a session is not counted
                program({key: value for key, value in feed(k).items() if key in given})
                done = k
                callback(min(k + 1, count))
                if out is not None and done > first and time.monotonic() - began_s > _BLOCK_S:
                    break
            for node, taken in profiler_runs(session.end_profiling()).items():
                runs.setdefault(node, []).extend(taken)
            del program, session  # the weights that they hold
            if out is not None:
                write_unfinished(out, runs, key)
        alone = {node.name: _quiet(runs[node.name]) for node in graph.nodes if node.name in runs}
        aside_s = sum(_quiet(taken) for node, taken in runs.items() if node not in alone)
        if aside_s > _ASIDE * sum(alone.values()):
            seconds, start_s = alone, 0.0
            notes = (
                f"{_APART}: operations that are no nodes take {aside_s * 1e6:,.1f} us, over "
                f"{_ASIDE:.0%} of what nodes take",
            )
        else:
            cut = folder / "cut"
            cut.mkdir()
            seconds, start_s, notes = _in_context(imported, path, cut, alone, feed, count)
    return Profile(with_seconds(graph, seconds), runtime_name(), count, resumed, start_s, notes)


def _in_context(
    imported: ImportedModel,
    path: str,
    cut: Path,
    alone: Mapping[str, float],
    feed: Feed,
    count: int,
) -> tuple[dict[str, float], float, tuple[str, ...]]:
    """The seconds of nodes in stages of many, those of starting one (see `shared_out`), and notes.

    Where the model is too small, or cannot be cut (both sides would draw the same random numbers),
    the profiler's seconds stay, and a note says so.

    Args:
      imported: the model.
      path: where it is.
      cut: an empty folder for its stages.
      alone: what the profiler says of each node, by name.
      feed: gives the inputs.
      count: how often each stage is timed.
    """
    nodes = imported.graph.nodes
    kept = [v for v, node in enumerate(nodes) if node.name in alone]
    ways = piece_cuts(len(nodes))[::2]  # all of them may be in memory at a time
    if len(ways) < _FEWEST_WAYS:
        return dict(alone), 0.0, (f"{_APART}: the model has {len(nodes)} nodes, too few to cut",)
    walks: list[Walk] = []
    segments: list[tuple[int, int]] = []
    refused: list[str] = []
    for cuts in ways:
        folder = cut / str(len(walks))
        chips = np.searchsorted(cuts, np.arange(len(nodes)), "right")
        result = checked_result(imported.graph, chips, _pieces(len(cuts) + 1), path)
        try:
            write_onnx_stages(imported, result, path, folder)
        except SharedDrawError as error:
            refused.append(str(error))
            continue
        walks.append(walk_of(folder, feed=feed, beside=len(ways)))
        segments += segments_of(cuts, kept, len(nodes))
    notes = [f"{len(refused)} of {len(ways)} ways to cut it left out: {why}" for why in refused[:1]]
    if len(walks) < _FEWEST_WAYS:
        return dict(alone), 0.0, tuple(f"{_APART}: {note}" for note in notes)
    taken = [s for found in in_rounds(walks, count) for s in found.min(axis=0).tolist()]
    found, start_s = shared_out(
        segments,
        taken,
        [alone[nodes[v].name] for v in kept],
        [nodes[v].op for v in kept],
    )
    return (
        dict(zip((nodes[v].name for v in kept), found.tolist(), strict=True)),
        start_s,
        tuple(notes),
    )


def _pieces(count: int) -> MCM:
    """As many chips, of which each holds any model; data may flow to any later one."""
    free = Constraints(no_skip=False, triangle=False)
    chips = _WHOLE.chips * count
    return MCM("pieces", "host", chips, 1.0, memory_model="weights", constraints=free)


def _quiet(taken: Sequence[float]) -> float:
    """The mean of the fastest quarter: it knows parts of the profiler's whole microseconds."""
    return statistics.fmean(sorted(taken)[: -(-len(taken) // 4)])


def _name_all(file: Path) -> None:
    """Names the nodes that stand for none of the graph: the runtime's own names could be taken."""
    model = onnx.load(file, load_external_data=False)
    taken = {node.name for node in model.graph.node}
    number = 0
    for node in model.graph.node:
        while not node.name:
            name, number = f"aside {number}", number + 1
            node.name = "" if name in taken else name
    file.write_bytes(model.SerializeToString(deterministic=True))
