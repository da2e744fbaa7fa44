"""Measures whether the cost model is true: bottlenecks of stages, predicted and measured.

  python scripts/studies/fidelity.py --json data/benchmarks/fidelity.json \
      --picture data/pictures/fidelity.png

Every node of each model is measured first (`jaxpart profile`). Then partitions: nodes in program
order, cut at random places (*random*) or where stages have about equal FLOPs (*even*), on 2 to 8
chips. The stages of each run one after the other, alone and warm, and each is timed on one device:
a core, on which ONNX Runtime or JAX runs. Time in which other processes have it is not counted.
All partitions of a model are measured in turn, several times over, and the least counts; two halves
of the rounds are two measurements, and how well they agree is what a prediction can reach at best.
The profile, which cuts into equal numbers of nodes, knows nothing of these partitions.
What is compared is the longest stage, without transfers:

- uncalibrated: the roofline of a chip of the presets (4 TFLOP/s, 200 GB/s),
- calibrated: with rates fitted to the nodes of the other models of the runtime,
- launch: likewise, with the time that starting a node takes,
- profiled: the sum of the measured seconds of the nodes.

Where it fails is told by operator: what its nodes take in the stages of these partitions, beside
what was predicted. Nothing else should run meanwhile. A run that was stopped goes on with the model
where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fidelity_figures
import numpy as np
from fidelity_models import NAMES, Subject, subject
from rows import Row, Rows

from jaxpart.arguments import count, file_path, whole_number
from jaxpart.errors import InputError
from jaxpart.export.measuring.timing import in_rounds
from jaxpart.problem.graph import Graph

_CHIPS = (2, 3, 4, 6, 8)
_HEADER = ("model", "prediction", "partitions", "Pearson", "Spearman", "error", "scaled")
_PROFILED = {"onnx": 3}  # times as many runs as of a stage: the profiler counts microseconds
_SHOWN = 3  # failures of a model
_JITTER = 0.3  # of a stage: how far cuts are from those of equal FLOPs


def main() -> int:
    """Measures, and prints what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", default=list(NAMES), metavar="NAME", help=f"of {', '.join(NAMES)}")
    add("--partitions", type=count, default=30, help="of each model (default: 30)")
    add("--count", type=count, default=15, help="runs of each stage (default: 15)")
    add("--seed", type=whole_number, default=0)
    add("--json", type=file_path, metavar="FILE", help="rows are kept here")
    add("--picture", type=file_path, metavar="FILE.png")
    add("--folder", type=file_path, metavar="DIR", help="keeps models here (default: nowhere)")
    arguments = parser.parse_args()
    try:
        rows = Rows(arguments.json, {"count": arguments.count, "seed": arguments.seed})
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder or Path(temporary)
            measure(rows, arguments.models, arguments.partitions, folder)
        judged = fidelity_figures.judge(rows.rows)
        rows.rows = [row for row in rows.rows if row["part"] != "judged"]
        for model in judged:
            rows.add(model.row())
        print(report(judged))
        if arguments.picture is not None and judged:
            fidelity_figures.draw(judged, arguments.picture)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(rows: Rows, names: list[str], partitions: int, folder: Path) -> None:
    """Adds the rows that are not there yet.

    Args:
      rows: of the study; its settings are `count` and `seed`.
      names: of the models.
      partitions: of each model.
      folder: for files of models.
    """
    runs = rows.settings["count"]
    for name in names:
        keys = [
            {
                "part": "partition",
                "graph": name,
                "method": ("random", "even")[number // len(_CHIPS) % 2],
                "chips": _CHIPS[number % len(_CHIPS)],
                "seed": number,
            }
            for number in range(partitions)
        ]
        missing = [key for key in keys if rows.get(**key) is None]
        is_profiled = rows.get(part="nodes", graph=name) is not None
        if is_profiled and not missing:
            continue
        one = subject(name, folder)
        if not is_profiled:
            began_s = time.perf_counter()
            rows.add(_nodes(one, runs * _PROFILED.get(one.runtime, 1)))
            _told(f"{name}: {len(one.graph.nodes)} nodes measured", began_s)
        _add_partitions(rows, one, missing)


def _add_partitions(rows: Rows, one: Subject, keys: list[Row]) -> None:
    """Measures partitions of a model in turn, and adds their rows."""
    began_s = time.perf_counter()
    cuts, walks = [], []
    for key in keys:
        rng = np.random.default_rng([rows.settings["seed"], key["seed"]])
        cuts.append(cuts_of(one.graph, key["chips"], key["method"], rng))
        walks.append(one.walk(chips_of(cuts[-1], len(one.graph.nodes))))
    _told(f"{one.name}: {len(keys)} partitions loaded", began_s)
    found = in_rounds(walks, rows.settings["count"], np.inf)
    for key, own, rounds in zip(keys, cuts, found, strict=True):
        halves = [half.min(axis=0).tolist() for half in (rounds[::2], rounds[1::2]) if len(half)]
        rows.add(
            {**key, "cuts": own, "measured_s": rounds.min(axis=0).tolist(), "halves_s": halves}
        )
    _told(f"{one.name}: {len(keys)} partitions measured", began_s)


def _told(what: str, began_s: float) -> None:
    print(f"{what}, {time.perf_counter() - began_s:.0f} s", flush=True)


def _nodes(one: Subject, runs: int) -> Row:
    found = one.profiled(runs)
    nodes = found.graph.nodes
    return {
        "part": "nodes",
        "graph": one.name,
        "runtime": one.runtime,
        "device": found.device,
        "start_s": found.start_s,
        "ops": [v.op for v in nodes],
        "flops": [v.flops for v in nodes],
        "bytes": [v.bytes_accessed for v in nodes],
        "seconds": [v.seconds for v in nodes],
    }


def cuts_of(graph: Graph, chips: int, kind: str, rng: np.random.Generator) -> list[int]:
    """Ascending places, one fewer than chips, at which the nodes in program order are cut.

    Args:
      graph: of N nodes, at least as many as chips.
      chips: how many stages, none of them empty.
      kind: "random", or "even": about equal FLOPs in each.
      rng: of random numbers.

    Raises:
      InputError: there are fewer nodes than chips.
    """
    count = len(graph.nodes)
    if count < chips:
        raise InputError(f"{graph.name}: has {count} nodes, expected {chips} or more")
    if kind == "random":
        places = rng.choice(np.arange(1, count), chips - 1, replace=False)
        return sorted(places.tolist())
    done = np.cumsum([v.flops for v in graph.nodes])
    wanted = np.arange(1, chips) + rng.uniform(-_JITTER, _JITTER, chips - 1)
    places = np.searchsorted(done, wanted / chips * done[-1]) + 1
    # Distinct, and with room for the others on both sides.
    for i in range(chips - 1):
        low = places[i - 1] + 1 if i else 1
        places[i] = min(max(places[i], low), count - (chips - 1 - i))
    return places.tolist()


def chips_of(cuts: list[int], count: int) -> list[int]:
    """The chip of each of `count` nodes."""
    return np.searchsorted(cuts, np.arange(count), side="right").tolist()


def report(judged: list[fidelity_figures.Judged]) -> str:
    """A line for each model and prediction, and for all models."""
    return "\n".join(_lines(judged))


def _lines(judged: list[fidelity_figures.Judged]) -> Iterator[str]:
    layout = "{:16} {:13} {:>10} {:>8} {:>9} {:>8} {:>8}"
    yield layout.format(
        "model", "prediction", "partitions", "Pearson", "Spearman", "error", "scaled"
    )
    for prediction in fidelity_figures.PREDICTIONS:
        for model in judged:
            found = fidelity_figures.fidelity(model.predicted_s[prediction], model.measured_s)
            yield _line(layout, model.model, prediction, found)
        if judged:
            yield _line(layout, "all", prediction, fidelity_figures.overall(judged, prediction))
    for model in judged:
        yield _line(layout, model.model, "itself", model.ceiling)
    yield ""
    for model in judged:
        for one in model.failures[:_SHOWN]:
            yield (
                f"{model.model:16} {one.prediction:13} {one.operator:20} {one.nodes:5} nodes "
                f"{one.predicted_s * 1e6:10,.1f} us predicted, {one.found_s * 1e6:10,.1f} us found"
            )


def _line(layout: str, model: str, prediction: str, found: fidelity_figures.Fidelity) -> str:
    figures = (f"{found.pearson:.3f}", f"{found.spearman:.3f}")
    errors = (f"{100 * found.error:.1f}%", f"{100 * found.scaled:.1f}%")
    return layout.format(model, prediction, found.count, *figures, *errors)


if __name__ == "__main__":
    # A device is one core, for both runtimes: JAX takes as many threads as it finds cores.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sys.exit(main())
