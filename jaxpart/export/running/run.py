"""Runs a folder of stages as a pipeline, and sets the times found beside the predicted ones."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpart.errors import InputError
from jaxpart.export.manifest import RESULT, Manifest, read_stages
from jaxpart.export.running.runtimes import as_numpy, load_model, load_stages
from jaxpart.export.running.tensors import difference, feed_of, random_feed
from jaxpart.export.running.workers import run_pipeline
from jaxpart.results.file import ResultFile, read_result

_TOLERANCE = 1e-5  # largest difference to the whole model, as a share of its largest output
_ROUNDINGS = 4  # so many roundings are allowed in a narrow float: a tensor that is sent is rounded
_FAR = 10.0  # ratio of measured and predicted times from which on the module is another device
_COMPARED = 8  # inferences that are compared with the whole model


@dataclasses.dataclass(frozen=True)
class StageTime:
    """The time of one stage for one inference.

    Attributes:
      chip: the chip.
      predicted_s: by the cost model, transfers included; None: the folder has no costs.
      measured_s: median over the inferences, without transfers.
      binds: which of its times is the longest by the cost model: "compute", "in" or "out"; None:
        the folder has no costs.
    """

    chip: int
    predicted_s: float | None
    measured_s: float
    binds: str | None = None


@dataclasses.dataclass(frozen=True)
class RunReport:
    """What a run of a folder of stages has shown.

    Attributes:
      graph: name of the graph.
      mcm: name of the module.
      stages: the times of each stage.
      predicted_per_s: inferences/s by the cost model; None: no time, or no costs in the folder.
      inferences: how many ran.
      wall_s: from the first input to the last output.
      latency_s: median, from an inference's input to its output.
      compared: how many inferences were compared with the whole model.
      difference: the largest difference, as a share of the largest output; None: none compared.
      tolerance: the largest difference that rounding explains.
      link: the link that takes longer than every stage by the cost model, in words; None: no link
        does.
    """

    graph: str
    mcm: str
    stages: tuple[StageTime, ...]
    predicted_per_s: float | None
    inferences: int
    wall_s: float
    latency_s: float
    compared: int
    difference: float | None
    tolerance: float = _TOLERANCE
    link: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the outputs are those of the whole model, where they were compared."""
        return self.difference is None or self.difference <= self.tolerance

    def summary(self) -> str:
        """A table of the stages, and what binds."""
        known = [stage for stage in self.stages if stage.predicted_s is not None]
        predicted = max(known, key=lambda stage: stage.predicted_s or 0.0, default=None)
        measured = max(self.stages, key=lambda stage: stage.measured_s)
        lines = [
            f"{self.graph}: {len(self.stages)} stages of {self.mcm}, {self.inferences} inferences",
            "",
            "chip    predicted      %     measured      %  binds",
            "               us                  us",
        ]
        for stage in self.stages:
            marks = [
                word
                for word, binding in (
                    (f"predicted ({stage.binds})" if stage.binds else "predicted", predicted),
                    ("measured", measured),
                )
                if stage is binding
            ]
            row = (
                f"{stage.chip:4} {_figures(stage.predicted_s, predicted and predicted.predicted_s)}"
                f" {_figures(stage.measured_s, measured.measured_s)}"
            )
            lines.append(row + (f"  <- {' and '.join(marks)}" if marks else ""))
        rate = "none" if self.predicted_per_s is None else f"{self.predicted_per_s:,.6g}"
        lines += [
            "",
            f"throughput  {self.inferences / self.wall_s:,.6g} inferences/s, predicted {rate}",
            f"latency     {self.latency_s * 1e6:,.1f} us (median, of a full pipeline)",
        ]
        if self.link is not None:
            lines.append(f"predicted   {self.link}")
        if self.difference is not None:
            verdict = "equal" if self.difference == 0 else f"{self.difference:.2g} of the largest"
            wrong = "" if self.agrees else f", expected at most {self.tolerance:g}: NOT THE SAME"
            lines.append(
                f"compared    {self.compared} inferences with the whole model: outputs {verdict}"
                f"{wrong}"
            )
        if predicted is not None and self._is_far(predicted.predicted_s, measured.measured_s):
            lines.append(
                f"note        {self.mcm} is another device than this one: scripts/calibrate.py "
                "describes this one as a module, --seconds takes measured times of nodes"
            )
        return "\n".join(lines)

    @staticmethod
    def _is_far(predicted_s: float | None, measured_s: float) -> bool:
        """Whether the times are of different devices; nothing is said of no time."""
        if not predicted_s or not measured_s:
            return False
        return not 1 / _FAR <= measured_s / predicted_s <= _FAR


def run_stages(
    folder: str | os.PathLike[str],
    *,
    inputs: str | os.PathLike[str] | None = None,
    count: int = 64,
    seed: int = 0,
    model: str | os.PathLike[str] | None = None,
    dims: Mapping[str, int] | None = None,
    callback: Callable[[int], None] = lambda done: None,
) -> RunReport:
    """Runs a folder of stages.

    Args:
      folder: that `export` wrote.
      inputs: an .npz file with an array for each input of the model; None: random inputs.
      count: number of inferences.
      seed: of the random inputs.
      model: the whole model, to compare the outputs of the first inferences with; None: no
        comparison.
      dims: sizes of the free dimensions of a whole model that is a `.pt2`, as of the partition; an
        ONNX model takes those of its inputs.
      callback: called with the number of inferences that are done, each time one is.

    Raises:
      InputError: the folder, a stage, the inputs or the model cannot be read or run.
    """
    manifest = read_stages(folder)
    file = _result_of(Path(folder), manifest)
    stages = manifest.stages
    feed = (
        random_feed(manifest.inputs, seed) if inputs is None else feed_of(inputs, manifest.inputs)
    )
    expected = []
    if model is not None:
        whole = load_model(Path(model), manifest.kind, dims)
        expected = [whole(feed(k)) for k in range(min(count, _COMPARED))]
    programs = load_stages(Path(folder), manifest)
    run_pipeline(manifest, programs, feed, 1)  # the first run of a program is slow
    done = run_pipeline(manifest, programs, feed, count, keep=len(expected), callback=callback)
    gaps = [
        _largest_difference(found, wanted, os.fspath(model or ""))
        for found, wanted in zip(done.outputs, expected, strict=True)
    ]
    predicted = {} if file is None else _predicted_s(file)
    binds = {} if file is None else _binds(file)
    return RunReport(
        manifest.graph,
        manifest.mcm,
        tuple(
            StageTime(
                stage.chip,
                predicted.get(stage.chip),
                statistics.median(seconds),
                binds.get(stage.chip),
            )
            for stage, seconds in zip(stages, done.stage_s, strict=True)
        ),
        None if file is None else file.throughput_per_s,
        count,
        done.wall_s,
        statistics.median(done.latency_s),
        len(gaps),
        max(gaps) if gaps else None,
        _tolerance(manifest),
        None if file is None else _slowest_link(file, max(predicted.values())),
    )


def _figures(seconds: float | None, most_s: float | None) -> str:
    """A time and its share of the longest, as two columns."""
    if seconds is None:
        return f"{'-':>12} {'-':>6}"
    return f"{seconds * 1e6:12,.1f} {100 * seconds / (most_s or 1):6.1f}"


def _result_of(folder: Path, manifest: Manifest) -> ResultFile | None:
    """The result that the stages were made of; None: of chips alone, whose costs nobody knew."""
    if not any(RESULT in stage.sha256 for stage in manifest.stages):
        return None
    file = read_result(folder / RESULT).file
    missing = {stage.chip for stage in manifest.stages} - {stage.chip for stage in file.stages}
    if file.graph_sha256 != manifest.graph_sha256 or missing:
        raise InputError(
            f"{folder / RESULT}: is of another graph or module than the stages, expected the one "
            "that they were exported with"
        )
    return file


def _predicted_s(file: ResultFile) -> dict[int, float]:
    """Seconds of each chip by the cost model."""
    join = max if file.mcm.overlap else math.fsum
    return {each.chip: join((each.compute_s, each.in_s, each.out_s)) for each in file.stages}


def _binds(file: ResultFile) -> dict[int, str]:
    """Which time of each chip is the longest by the cost model."""
    names = ("compute", "in", "out")
    times = {each.chip: (each.compute_s, each.in_s, each.out_s) for each in file.stages}
    return {chip: names[found.index(max(found))] for chip, found in times.items()}


def _slowest_link(file: ResultFile, longest_s: float) -> str | None:
    """The busiest link in words, if it takes longer than every stage."""
    busiest = max(file.links, key=lambda link: link.busy_s, default=None)
    if busiest is None or busiest.busy_s <= longest_s:
        return None
    return (
        f"the link from {busiest.source} to {busiest.target} binds, "
        f"{busiest.busy_s * 1e6:,.1f} us an inference"
    )


def _tolerance(manifest: Manifest) -> float:
    """The largest difference that rounding explains.

    Within a program a runtime may keep float16 as float32; what stages send each other it cannot.
    """
    tensors = [t for stage in manifest.stages for t in (*stage.inputs, *stage.outputs)]
    narrow = {t.dtype for t in tensors} & {"float16", "bfloat16"}
    widest = max((float(ml_dtypes.finfo(name).eps) for name in narrow), default=0.0)
    return max(_TOLERANCE, _ROUNDINGS * widest)


def _largest_difference(
    found: Mapping[str, np.ndarray], expected: Mapping[str, Any], where: str
) -> float:
    """The largest difference between the outputs of the stages and those of the whole model."""
    if missing := sorted(found.keys() - expected.keys()):
        raise InputError(f"{where}: has no output {missing[0]!r}, expected the model of the stages")
    return max(difference(value, as_numpy(expected[name])) for name, value in found.items())
