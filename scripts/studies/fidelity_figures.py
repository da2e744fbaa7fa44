"""What the rows of the study of fidelity say: predictions, their errors and correlations."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from rows import Row
from scipy import stats

from jaxpart.export.measuring.calibrate import Device, calibrated
from jaxpart.export.measuring.context import segments_of, shared_out
from jaxpart.files import write_whole
from jaxpart.problem.graph import Graph, Node
from jaxpart.problem.mcm import load_mcm

# Name of a prediction -> what it is.
PREDICTIONS = {
    "uncalibrated": "a chip of the presets",
    "calibrated": "rates fitted to other models",
    "launch": "and the time of starting a node",
    "profiled": "the sum of measured nodes",
}
_FAILED = ("launch", "profiled")  # the predictions whose failures are told
_KEPT = 12  # failures of a model
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How well a prediction of bottlenecks agrees with what was measured.

    Attributes:
      pearson: correlation of the values; nan of fewer than three, or of equal ones.
      spearman: of the ranks, likewise.
      error: mean of |predicted / measured - 1|.
      scaled: likewise, with the predictions multiplied by one number (the median of measured /
        predicted): what counts for the choice of a partition. nan of fewer than three.
      count: number of partitions.
    """

    pearson: float
    spearman: float
    error: float
    scaled: float
    count: int


@dataclasses.dataclass(frozen=True)
class Failure:
    """What an operator takes in the stages of a model, and what was predicted.

    Attributes:
      prediction: its name.
      operator: of the nodes.
      nodes: how many there are.
      predicted_s: of all of them.
      found_s: those seconds that explain best what the stages took.
      share: the difference, as a share of what the model takes.
    """

    prediction: str
    operator: str
    nodes: int
    predicted_s: float
    found_s: float
    share: float


@dataclasses.dataclass(frozen=True)
class Judged:
    """The partitions of one model, measured and predicted.

    Attributes:
      model: its name.
      runtime: "onnx" or "jax".
      nodes: how many it has.
      measured_s: [partitions] bottleneck.
      predicted_s: name of the prediction -> [partitions].
      ceiling: two measurements of the same partitions compared: no prediction can agree better.
      failures: of "launch" and "profiled", by operator, the largest first.
    """

    model: str
    runtime: str
    nodes: int
    measured_s: Floats
    predicted_s: dict[str, Floats]
    ceiling: Fidelity
    failures: tuple[Failure, ...]

    def row(self) -> Row:
        """As a row of the study."""
        found = dataclasses.asdict(self)
        predicted = {name: values.tolist() for name, values in self.predicted_s.items()}
        found |= {"measured_s": self.measured_s.tolist(), "predicted_s": predicted}
        return {"part": "judged", "graph": found.pop("model"), **found}

    @classmethod
    def of(cls, row: Row) -> Judged:
        """What `row` has made a row of."""
        return cls(
            row["graph"],
            row["runtime"],
            row["nodes"],
            np.array(row["measured_s"]),
            {name: np.array(values) for name, values in row["predicted_s"].items()},
            Fidelity(**row["ceiling"]),
            tuple(Failure(**one) for one in row["failures"]),
        )


def fidelity(predicted: Floats, measured: Floats) -> Fidelity:
    """Compares predictions with what was measured, both positive and of one length."""
    pearson = spearman = scaled = math.nan
    ratio = predicted / measured
    if len(measured) > 2:
        scaled = float(np.abs(ratio / np.median(ratio) - 1).mean())
    if len(measured) > 2 and np.ptp(predicted) > 0 and np.ptp(measured) > 0:
        pearson = float(np.corrcoef(predicted, measured)[0, 1])
        ranks = stats.rankdata(predicted), stats.rankdata(measured)
        spearman = float(np.corrcoef(*ranks)[0, 1])
    error = float(np.abs(ratio - 1).mean())
    return Fidelity(pearson, spearman, error, scaled, len(measured))


def judge(rows: Sequence[Row]) -> list[Judged]:
    """Predicts every measured partition; models without one are left out.

    The fitted device of a model is one of the other models of its runtime, so that nothing is
    tested on what it was fitted to.
    """
    nodes = {row["graph"]: row for row in rows if row["part"] == "nodes"}
    found = []
    for name, row in nodes.items():
        partitions = [r for r in rows if r["part"] == "partition" and r["graph"] == name]
        others = _others(nodes, row)
        if not partitions or not others:
            continue
        seconds = node_seconds(graph_of(row), others)
        predicted = {
            prediction: np.array([_bottleneck(taken, r["cuts"]) for r in partitions])
            for prediction, taken in seconds.items()
        }
        measured = np.array([max(r["measured_s"]) for r in partitions])
        halves = np.array([[max(stages) for stages in r["halves_s"]] for r in partitions])
        ceiling = fidelity(halves[:, 0], halves[:, -1])
        failed = [f for one in _FAILED for f in failures(row, partitions, seconds[one], one)]
        found.append(
            Judged(
                *(name, row["runtime"], len(row["flops"]), measured, predicted, ceiling),
                tuple(sorted(failed, key=lambda one: -one.share)[:_KEPT]),
            )
        )
    return found


def failures(
    row: Row, partitions: Sequence[Row], predicted: Floats, prediction: str
) -> list[Failure]:
    """What each operator of a model takes in the stages that were measured, and was predicted.

    The first is found as `jaxpart profile` does it, from the prediction in place of what nodes take
    alone.

    Args:
      row: of the model's nodes.
      partitions: the rows of its partitions.
      predicted: [N] seconds of the nodes.
      prediction: its name.
    """
    segments, taken = [], []
    for one in partitions:
        stages = segments_of(one["cuts"], range(len(predicted)), len(predicted))
        for segment, seconds in zip(stages, one["measured_s"], strict=True):
            if seconds > 0:  # a stage whose results nobody needs does not run
                segments.append(segment)
                taken.append(seconds)
    inside, _ = shared_out(segments, taken, predicted.tolist(), row["ops"])
    operators = np.array(row["ops"])
    found = []
    for operator in np.unique(operators):
        own = operators == operator
        pair = float(predicted[own].sum()), float(inside[own].sum())
        share = abs(pair[0] - pair[1]) / float(inside.sum())
        found.append(Failure(prediction, str(operator), int(own.sum()), *pair, share))
    return found


def _others(nodes: dict[str, Row], row: Row) -> list[Graph]:
    """The graphs of the other models of the runtime: those that a device may be fitted to."""
    return [
        graph_of(other)
        for other in nodes.values()
        if other["graph"] != row["graph"] and other["runtime"] == row["runtime"]
    ]


def graph_of(row: Row) -> Graph:
    """The nodes of a row with their measured seconds, as a graph without edges."""
    columns = zip(row["ops"], row["flops"], row["bytes"], row["seconds"], strict=True)
    return Graph(
        tuple(Node(f"n{v}", op, f, b, seconds=s) for v, (op, f, b, s) in enumerate(columns)),
        name=row["graph"],
    )


def node_seconds(graph: Graph, others: Sequence[Graph]) -> dict[str, Floats]:
    """[N] the seconds of the nodes by each prediction; devices are fitted to the others."""
    device = calibrated(others)
    chip = load_mcm("mcm4").chips[0]
    preset = Device(chip.peak_flops, chip.sram_bandwidth, 0.0, 0.0, 0)
    return {
        "uncalibrated": _values(preset.seconds(graph)),
        "calibrated": _values(device.seconds(graph, launch=False)),
        "launch": _values(device.seconds(graph)),
        "profiled": np.array([v.seconds for v in graph.nodes], np.float64),
    }


def _values(seconds: dict[str, float]) -> Floats:
    return np.array(list(seconds.values()), np.float64)


def _bottleneck(seconds: Floats, cuts: Sequence[int]) -> float:
    """The longest segment of nodes between cuts."""
    return float(max(part.sum() for part in np.split(seconds, list(cuts))))


def overall(judged: Sequence[Judged], prediction: str) -> Fidelity:
    """Correlations over all partitions of all models, and means of the models' errors.

    For the correlations the times of each model are relative to their mean. Otherwise models of
    unlike size would make any prediction look good.

    Args:
      judged: the models, at least one.
      prediction: its name.
    """
    parts = [(m.predicted_s[prediction], m.measured_s) for m in judged]
    together = fidelity(
        np.concatenate([predicted / predicted.mean() for predicted, _ in parts]),
        np.concatenate([measured / measured.mean() for _, measured in parts]),
    )
    each = [fidelity(*part) for part in parts]
    return dataclasses.replace(
        together,
        error=float(np.mean([one.error for one in each])),
        scaled=float(np.mean([one.scaled for one in each])),
    )


def draw(judged: Sequence[Judged], path: Path) -> None:
    """Draws measured against predicted bottlenecks, a panel for each prediction.

    Args:
      judged: the models, at least one.
      path: of the PNG.
    """
    figure = Figure(figsize=(3.4 * len(PREDICTIONS), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(PREDICTIONS), sharey=True))
    for axes, (prediction, what) in zip(panels, PREDICTIONS.items(), strict=True):
        for i, model in enumerate(judged):
            axes.loglog(
                model.predicted_s[prediction] * 1e3,
                model.measured_s * 1e3,
                ".",
                color=f"C{i % 10}",
                label=model.model,
                markersize=4,
            )
        ends = (*axes.get_xlim(), *axes.get_ylim())
        axes.autoscale(False)
        line = [min(ends), max(ends)]
        axes.plot(line, line, color="0.7", linewidth=0.8, zorder=0)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{prediction}: {what}", fontsize=8)
        axes.set_xlabel("predicted bottleneck, ms")
    panels[0].set_ylabel("measured bottleneck, ms")
    panels[0].legend(fontsize=6)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_whole(path, content.getvalue())
