"""Measures whether the cost model is true: bottlenecks of stages, predicted and measured.

  python scripts/studies/fidelity.py --json data/benchmarks/fidelity.json \
      --picture data/pictures/fidelity.png

Every node of each model is measured first (`jaxpart profile`). Then partitions: nodes in program
order, cut at random places (*random*) or where stages have about equal FLOPs (*even*), on 2 to 8
chips. The stages of each run one after the other, alone and warm, and each is timed on one device:
ONNX Runtime on one core, or JAX. What is compared is the longest stage, without transfers:

- uncalibrated: the roofline of a chip of the presets (4 TFLOP/s, 200 GB/s),
- calibrated: with rates fitted to the nodes of the other models of the runtime,
- launch: likewise, with the time that starting a node takes,
- profiled: the sum of the measured seconds of the nodes.

Nothing else should run meanwhile. A run that was stopped goes on where it was: rows are written as
they are measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fidelity_figures
import numpy as np
from fidelity_models import NAMES, Subject, subject
from rows import Row, Rows

from jaxpart.arguments import count, file_path, whole_number
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph

_CHIPS = (2, 3, 4, 6, 8)
_HEADER = ("model", "prediction", "partitions", "Pearson", "Spearman", "error", "scaled")
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
    runs, seed = rows.settings["count"], rows.settings["seed"]
    for name in names:
        one: Subject | None = None
        if rows.get(part="nodes", graph=name) is None:
            one = subject(name, folder)
            rows.add(_nodes(one, runs))
            print(f"{name}: {len(one.graph.nodes)} nodes measured", flush=True)
        for number in range(partitions):
            chips, kind = _CHIPS[number % len(_CHIPS)], ("random", "even")[number // 5 % 2]
            key = {"part": "partition", "graph": name, "method": kind, "chips": chips}
            key["seed"] = number
            if rows.get(**key) is not None:
                continue
            one = one or subject(name, folder)
            rng = np.random.default_rng([seed, number])
            cuts = cuts_of(one.graph, chips, kind, rng)
            taken = one.stages(chips_of(cuts, len(one.graph.nodes)), runs)
            measured = [taken[chip] for chip in range(chips)]
            rows.add({**key, "cuts": cuts, "measured_s": measured})
            print(f"{name}: {number + 1} of {partitions} partitions", flush=True)


def _nodes(one: Subject, runs: int) -> Row:
    found = one.profiled(runs)
    nodes = found.graph.nodes
    return {
        "part": "nodes",
        "graph": one.name,
        "runtime": one.runtime,
        "device": found.device,
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


def _line(layout: str, model: str, prediction: str, found: fidelity_figures.Fidelity) -> str:
    figures = (f"{found.pearson:.3f}", f"{found.spearman:.3f}")
    errors = (f"{100 * found.error:.1f}%", f"{100 * found.scaled:.1f}%")
    return layout.format(model, prediction, found.count, *figures, *errors)


if __name__ == "__main__":
    sys.exit(main())
