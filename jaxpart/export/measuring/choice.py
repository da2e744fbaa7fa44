"""The best of a few good partitions of a model by measurement, not by the cost model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from jaxpart.export.checked import checked_result
from jaxpart.export.jax.stages import Trace
from jaxpart.export.measuring.profile_jax import (
    TimedStages,
    device_name,
    empty_call_s,
    prepared,
    wide_types,
)
from jaxpart.export.measuring.timing import Walk, clock_of, in_rounds, median_seconds, walk_of
from jaxpart.export.onnx.data import with_shared_data
from jaxpart.export.running.runtimes import load_onnx, runtime_name
from jaxpart.export.targets import write_onnx_stages
from jaxpart.ingest.onnx.importer import ImportedModel
from jaxpart.results.result import Result
from jaxpart.results.scored import ScoredPartition


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A partition whose stages were timed.

    Attributes:
      scored: the partition.
      stage_s: seconds of the stage of each chip in use, in chip order, without transfers.
      call_s: seconds of a call that computes next to nothing: each stage's time has them in it.
      device: where the stages ran, in words.
    """

    scored: ScoredPartition
    stage_s: tuple[float, ...]
    call_s: float = 0.0
    device: str = ""

    @property
    def bottleneck_s(self) -> float:
        """The longest stage."""
        return max(self.stage_s)

    @property
    def binds(self) -> int:
        """The chip of the longest stage."""
        chips = np.unique(self.scored.assignment)
        return int(chips[int(np.argmax(self.stage_s))])


def measured(
    model: ImportedModel | Trace,
    path: str,
    result: Result,
    *,
    count: int = 20,
    callback: Callable[[int], None] = lambda done: None,
) -> list[Measured]:
    """Times the stages of a result and of its alternatives, one at a time on this machine.

    The partitions take turns (`in_rounds`), so that what else the machine does meets all of them.

    Args:
      model: an ONNX model, or a trace.
      path: where the model is; the external data of an ONNX model is beside it.
      result: of the model's graph, with or without measured seconds.
      count: how often each stage is timed.
      callback: called with the number of partitions whose first round is done.

    Returns:
      The result, then its alternatives, in their order.

    Raises:
      InputError: a partition cannot be exported, or its stages cannot run.
    """
    found = (result, *result.alternatives)
    if isinstance(model, Trace):
        return _measured_jax(model, found, count, callback)
    return _measured_onnx(model, path, found, count, callback)


def _measured_onnx(
    imported: ImportedModel,
    path: str,
    partitions: Sequence[ScoredPartition],
    count: int,
    callback: Callable[[int], None],
) -> list[Measured]:
    with tempfile.TemporaryDirectory(prefix="jaxpart.") as name:
        folder = Path(name)
        source = with_shared_data(imported.source, path, folder)
        shared = dataclasses.replace(imported, source=source)
        walks = []
        for i, one in enumerate(partitions):
            # On the model's own graph: that of the result may have measured seconds.
            whole = checked_result(imported.graph, one.assignment, one.problem.mcm, path)
            write_onnx_stages(shared, whole, path, folder / str(i))
            walks.append(walk_of(folder / str(i), beside=len(partitions)))
        call_s = _empty_onnx_s(folder / "empty.onnx", count)
        return _in_turn(partitions, walks, count, callback, call_s, runtime_name())


def _measured_jax(
    trace: Trace,
    partitions: Sequence[ScoredPartition],
    count: int,
    callback: Callable[[int], None],
) -> list[Measured]:
    import jax

    device = jax.devices()[0]
    programs = {}
    with wide_types(trace):
        walks = []
        for one in partitions:
            stages = trace.stages(one.assignment.tolist(), [device])
            walks.append(TimedStages(stages, prepared(stages), programs).seconds)
        call_s = empty_call_s(device, count)
        return _in_turn(partitions, walks, count, callback, call_s, device_name())


def _in_turn(
    partitions: Sequence[ScoredPartition],
    walks: Sequence[Walk],
    count: int,
    callback: Callable[[int], None],
    call_s: float,
    device: str,
) -> list[Measured]:
    """Times what walks give; `callback` is told of each one's first round."""
    begun: set[int] = set()

    def told(i: int, walk: Walk) -> Walk:
        def timed(count: int) -> Sequence[float]:
            seconds = walk(count)
            if i not in begun:
                begun.add(i)
                callback(len(begun))
            return seconds

        return timed

    rounds = in_rounds([told(i, walk) for i, walk in enumerate(walks)], count)
    return [
        Measured(one, tuple(found.min(axis=0).tolist()), call_s, device)
        for one, found in zip(partitions, rounds, strict=True)
    ]


def _empty_onnx_s(path: Path, count: int) -> float:
    """Seconds of a call of ONNX Runtime that passes one number on."""
    number = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    passes = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([passes], "empty", number[:1], number[1:])
    opset = onnx.helper.make_opsetid("", 13)
    path.write_bytes(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    )
    program, given = load_onnx(path), {"x": np.zeros(1, np.float32)}
    return median_seconds(lambda: program(given), count, clock_of("cpu"))


def chosen(result: Result, found: Sequence[Measured]) -> Result:
    """The result with the partition that is fastest by measurement.

    The bound and the search stay; a note says what was chosen from.

    Args:
      result: of a search.
      found: what `measured` gives for it, one or more.
    """
    best = min(found, key=lambda one: one.bottleneck_s)
    if best.scored is result or len(found) == 1:
        what = f"the fastest of {len(found)} by measurement, too" if len(found) > 1 else "measured"
        return dataclasses.replace(result, notes=(*result.notes, what))
    note = (
        f"the fastest of {len(found)} by measurement; by the cost model another one is faster, "
        f"{result.bottleneck_s * 1e6:,.6g} us"
    )
    return dataclasses.replace(
        result,
        assignment=best.scored.assignment,
        costs=best.scored.costs,
        notes=(*result.notes, note),
    )


def table(found: Sequence[Measured]) -> str:
    """A line for each partition: what was predicted and what was measured."""
    best = min(found, key=lambda one: one.bottleneck_s)
    lines = [
        f"measured    {len(found)} distinct partitions, each stage alone on {best.device}",
        f"            {best.call_s * 1e6:,.1f} us of each stage start it",
        "",
        "partition    predicted     measured   stages  longest",
        "                    us           us             chip",
    ]
    for i, one in enumerate(found, 1):
        row = (
            f"{i:9} {one.scored.bottleneck_s * 1e6:12,.1f} {one.bottleneck_s * 1e6:12,.1f} "
            f"{len(one.stage_s):8} {one.binds:8}"
        )
        lines.append(row + ("  <- chosen" if one is best else ""))
    return "\n".join(lines)
