"""Runs two-stage pipelines of two processes, and sets `jaxpart simulate` beside them.

  python scripts/studies/real_pipeline.py --json data/benchmarks/real-pipeline.json

Each model is cut once, where both stages have about equal FLOPs, and exported to ONNX. Each stage
is first timed alone. Then each runs in a process of its own, in ONNX Runtime on one core, and
inferences pass through both, tensors by a queue of two (`real_stages.py`). The simulation has the
seconds of the stages alone and two buffers; its transfers take no time. Measured with fewer than
two idle cores, the figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fidelity
import numpy as np
from fidelity_models import subject
from real_stages import BUFFERS, run
from rows import Row, Rows

import jaxpart
from jaxpart.arguments import count, file_path, whole_number
from jaxpart.errors import InputError
from jaxpart.export.measuring.timing import stage_seconds
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import MCM, Chip, Constraints

MODELS = ("resnet50", "squeezenet", "densenet121")
_STAGES = 2
_CHIP = Chip(1e12, 1e12, 1e12)
_ANY = MCM("two", "chain", (_CHIP,) * _STAGES, 1e12, constraints=Constraints(triangle=False))
_LINE = "{:<14} {:>12} {:>12} {:>12} {:>12} {:>8}"


def main() -> int:
    """Measures, and prints a line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), metavar="NAME")
    add("--count", type=count, default=200, help="inferences (default: 200)")
    add("--seed", type=whole_number, default=0)
    add("--json", type=file_path, metavar="FILE", help="rows are kept here")
    arguments = parser.parse_args()
    try:
        rows = Rows(arguments.json, {"count": arguments.count, "seed": arguments.seed})
        columns = ("model", "stage 0, ms", "stage 1, ms", "real /s", "simulated /s", "ratio")
        print(_LINE.format(*columns))
        with tempfile.TemporaryDirectory() as folder:
            for name in arguments.models:
                row = rows.get(graph=name)
                if row is None:
                    row = {"graph": name, **measured(name, Path(folder), rows.settings)}
                    rows.add(row)
                alone = [f"{1e3 * seconds:.2f}" for seconds in row["alone_s"]]
                rates = row["real_per_s"], row["simulated_per_s"]
                ratio = f"{rates[0] / rates[1]:.3f}"
                print(_LINE.format(name, *alone, *(f"{rate:.2f}" for rate in rates), ratio))
                sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measured(name: str, folder: Path, settings: Row) -> Row:
    """What a row has beside its key.

    Args:
      name: of a model, as `fidelity_models.subject` takes it.
      folder: for files.
      settings: `count` inferences, `seed` of the cut and the inputs.
    """
    one: Any = subject(name, folder)
    rng = np.random.default_rng(settings["seed"])
    cuts = fidelity.cuts_of(one.graph, _STAGES, "even", rng)
    stages = folder / f"{name}.stages"
    chips = fidelity.chips_of(cuts, len(one.graph.nodes))
    jaxpart.export(one.path, chips, to="onnx", out=stages, mcm=_ANY)
    alone_s = stage_seconds(stages, seed=settings["seed"])
    found = run(stages, settings["count"], settings["seed"])
    return {"alone_s": alone_s, **found, "simulated_per_s": simulated(alone_s, settings["count"])}


def simulated(alone_s: Sequence[float], inferences: int) -> float:
    """Inferences/s of a pipeline of these stages, fill and drain included."""
    nodes = tuple(Node(f"stage_{i}", "stage", 1, 1, seconds=s) for i, s in enumerate(alone_s))
    tensors = tuple(Tensor(i, 0, (i + 1,)) for i in range(len(alone_s) - 1))
    graph = Graph(nodes, tensors, (), "pipeline", 4)
    mcm = MCM("pipeline", "chain", (_CHIP,) * len(alone_s), 1e12)
    done = jaxpart.simulate(
        graph, mcm, list(range(len(alone_s))), count=inferences, buffers=BUFFERS
    )
    return done.throughput_per_s or 0.0


if __name__ == "__main__":
    sys.exit(main())
