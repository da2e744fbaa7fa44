"""The best of a few good partitions of an ONNX model by measurement, not by the cost model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxpart.export.checked import checked_result
from jaxpart.export.measuring.timing import stage_seconds
from jaxpart.export.running.runtimes import runtime_name
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
    """

    scored: ScoredPartition
    stage_s: tuple[float, ...]

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
    imported: ImportedModel,
    path: str,
    result: Result,
    *,
    count: int = 20,
    callback: Callable[[int], None] = lambda done: None,
) -> list[Measured]:
    """Exports a result and its alternatives, and times their stages one at a time on this machine.

    Args:
      imported: the model.
      path: where it is; its external data is beside it.
      result: of the model's graph, with or without measured seconds.
      count: how often each stage is timed.
      callback: called with the number of partitions that are done.

    Returns:
      The result, then its alternatives, in their order.

    Raises:
      InputError: a partition cannot be exported, or its stages cannot run.
    """
    found = []
    for one in (result, *result.alternatives):
        with tempfile.TemporaryDirectory(prefix="jaxpart.") as name:
            folder = Path(name) / "stages"
            # On the model's own graph: that of the result may have measured seconds.
            whole = checked_result(imported.graph, one.assignment, result.problem.mcm, path)
            write_onnx_stages(imported, whole, path, folder)
            found.append(Measured(one, tuple(stage_seconds(folder, count=count))))
        callback(len(found))
    return found


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
        f"measured    {len(found)} distinct partitions, each stage alone on {runtime_name()}",
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
