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

from jaxpart.errors import InputError
from jaxpart.export.checked import checked_result
from jaxpart.export.measuring.context import piece_cuts, segments_of, shared_out
from jaxpart.export.measuring.timing import in_rounds, walk_of
from jaxpart.export.measuring.unfinished import key_of, read_unfinished, write_unfinished
from jaxpart.export.running.runtimes import onnx_program, onnx_session, runtime_name
from jaxpart.export.running.tensors import Feed, feed_of, random_feed
from jaxpart.export.targets import read_model, write_onnx_stages
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
    """

    graph: Graph
    device: str
    runs: int
    resumed: int = 0
    start_s: float = 0.0

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
    of many nodes, where XLA fuses nodes and operands may be in a cache.

    Args:
      model: the path of an ONNX file, or what `jaxpart.trace` gives.
      count: how often each node is timed; less often for large models.
      dims: sizes of free dimensions of an ONNX model, as for `from_onnx`.
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
    if not isinstance(model, (str, os.PathLike)):
        if dims or inputs is not None or out is not None:
            raise InputError(
                f"{model.graph.name}: a trace has sizes and arguments, expected dims, inputs and "
                "out of an ONNX file alone"
            )
        from jaxpart.export.measuring.profile_jax import profile_trace

        seconds, start_s, device = profile_trace(model, count, seed, callback)
        return Profile(with_seconds(model.graph, seconds), device, count, start_s=start_s)
    return _profile_onnx(os.fspath(model), count, dims, inputs, seed, out, callback)


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
            if out is not None:
                write_unfinished(out, runs, key)
    alone = {node.name: _quiet(runs[node.name]) for node in graph.nodes if node.name in runs}
    aside_s = sum(_quiet(taken) for name, taken in runs.items() if name not in alone)
    seconds, start_s = alone, 0.0
    if aside_s <= _ASIDE * sum(alone.values()):
        seconds, start_s = _in_context(imported, path, alone, feed, count)
    return Profile(with_seconds(graph, seconds), runtime_name(), count, resumed, start_s)


def _in_context(
    imported: ImportedModel, path: str, alone: Mapping[str, float], feed: Feed, count: int
) -> tuple[dict[str, float], float]:
    """The seconds of nodes in stages of many, and those of starting one: see `shared_out`.

    Where the model is too small, or cannot be cut (both sides would draw the same random numbers),
    the profiler's seconds stay.

    Args:
      imported: the model.
      path: where it is.
      alone: what the profiler says of each node, by name.
      feed: gives the inputs.
      count: how often each stage is timed.
    """
    nodes = imported.graph.nodes
    kept = [v for v, node in enumerate(nodes) if node.name in alone]
    walks, segments = [], []
    with tempfile.TemporaryDirectory(prefix="jaxpart.") as name:
        for cuts in piece_cuts(len(nodes))[::2]:  # each way to cut takes as much room as the model
            folder = Path(name) / str(len(walks))
            chips = np.searchsorted(cuts, np.arange(len(nodes)), "right")
            try:
                result = checked_result(imported.graph, chips, _pieces(len(cuts) + 1), path)
                write_onnx_stages(imported, result, path, folder)
            except InputError:
                continue
            walks.append(lambda count, of=folder: walk_of(of, feed=feed)(count))
            segments += segments_of(cuts, kept, len(nodes))
        if len(walks) < _FEWEST_WAYS:
            return dict(alone), 0.0
        taken = [s for found in in_rounds(walks, count) for s in found.min(axis=0).tolist()]
    found, start_s = shared_out(
        segments,
        taken,
        [alone[nodes[v].name] for v in kept],
        [nodes[v].op for v in kept],
    )
    return dict(zip((nodes[v].name for v in kept), found.tolist(), strict=True)), start_s


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
