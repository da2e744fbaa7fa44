"""What fixed searches answer, bit for bit: tells whether a change to the code changes results.

  python scripts/studies/answers.py --json new.json                                 runs all
  python scripts/studies/answers.py --json new.json --against data/benchmarks/answers.json

40 pairs of all classes and modules; every method on the small ones. Seeds and samples are fixed and
there is no time limit, so on one device and one set of versions the same code gives the same
answers. Run it on one core (`taskset -c 0`); it takes about 15 minutes, and goes on where it was
stopped. `tests/test_answers.py` runs a few of the searches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxpart
from jaxpart import datasets
from jaxpart.arguments import file_path
from jaxpart.environment import environment, keep_compiled
from jaxpart.errors import InfeasibleError, NothingFoundError
from jaxpart.files import write_whole

MODULES = Path(__file__).parents[2] / "data" / "modules"
SAMPLES = {
    "auto": 1500,
    "greedy": 10,
    "slice": 400,
    "clusters": 4000,
    "ideals": 1000,
    "random": 512,
    "tempering": 200_000,
    "paper_annealing": 512,
    "policy": 256,
    "exact": 2000,
}
# Every method runs on these; the integer program only where it ends soon.
# fmt: off
SMALL = (
    ("pointnet", "mcm4"), ("squeezenet", "mcm4"), ("alexnet", "mcm8"), ("dla34", "mcm4"),
    ("pointer-network", "mcm8"), ("mobilenet-v3-large", "mesh6x6"), ("rnn-lm", "mcm8"),
    ("unet-plus-plus", "host4"),
)
NOT_EXACT = ("rnn-lm", "unet-plus-plus")
# Three methods run on each of these, in turn.
OTHERS = (
    ("alexnet-raw", "mcm36"), ("awd-lstm", "mcm8"), ("bilstm-crf", "mcm36"),
    ("clockwork-rnn", "mcm36"), ("convlstm", "mcm8"), ("convnext-tiny", "mcm64"),
    ("crnn", "mcm36"), ("darts", "mcm36"), ("dcrnn", "mixed16"), ("densenet121", "mcm36"),
    ("efficientdet-d0", "mcm8"), ("efficientnet-b0", "mcm64"), ("elmo", "mcm8"),
    ("ghostnet", "mcm36"), ("gru-lm-raw", "mcm36"), ("hourglass", "host8"),
    ("inception-v3", "mesh6x6"), ("lstnet", "mcm36"), ("mobilenet-v2", "mcm64"),
    ("nasnet-mobile", "mcm8"), ("randwire", "mixed16"), ("resnet50-raw", "mcm36"),
    ("rnnsearch", "mcm8"), ("sru", "mesh6x6"), ("swin-tiny", "mcm36"), ("tree-lstm", "mcm64"),
    ("tree-lstm-deps", "mixed16"), ("vgg16", "mcm4-128mib"), ("wavenet", "host8"),
    ("whisper-tiny", "mcm36"), ("yolo-v3", "mcm8"), ("bert-large", "mcm36"),
)
# fmt: on
_SEEDS = 5


def searches() -> Iterator[tuple[str, str, str, int]]:
    """Graph, module, method and seed of each search."""
    loose = [method for method in SAMPLES if method != "exact"]
    jobs = [
        (graph, module, method)
        for graph, module in SMALL
        for method in SAMPLES
        if method != "exact" or graph not in NOT_EXACT
    ]
    jobs += [
        (graph, module, loose[(i + 3 * j) % len(loose)])
        for i, (graph, module) in enumerate(OTHERS)
        for j in range(3)
    ]
    for number, job in enumerate(jobs):
        yield (*job, number % _SEEDS)


def answer(graph: str, module: str, method: str, seed: int) -> dict[str, Any]:
    """What one search answers; times in seconds as hexadecimal floats."""
    row: dict[str, Any] = {"graph": graph, "mcm": module, "method": method, "seed": seed}
    row["samples"] = SAMPLES[method]
    path = MODULES / f"{module}.toml"
    try:
        result = jaxpart.partition(
            datasets.load(graph),
            jaxpart.load_mcm(str(path) if path.exists() else module),
            method=method,
            time_limit_s=None,
            max_samples=SAMPLES[method],
            seed=seed,
        )
    except InfeasibleError:
        return {**row, "error": "infeasible"}
    except NothingFoundError:
        return {**row, "error": "nothing found"}
    return row | {
        "assignment": hashlib.sha256(result.assignment.astype(np.int64).tobytes()).hexdigest(),
        "bottleneck": result.bottleneck_s.hex(),
        "bound": float(result.lower_bound_s).hex(),
        "bound_method": result.bound_method,
        "baseline": None if result.baseline_s is None else result.baseline_s.hex(),
        "used": result.search.samples,
        "history": [[count, best_s.hex()] for count, _, best_s in result.search.history],
    }


def main() -> int:
    """Exit code 1 where an answer differs from the file that `--against` names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", type=file_path, required=True)
    parser.add_argument("--against", metavar="FILE", type=file_path)
    arguments = parser.parse_args()
    keep_compiled()
    rows: list[dict[str, Any]] = []
    if arguments.json.exists():
        rows = json.loads(arguments.json.read_bytes())["rows"]
    known = {}
    if arguments.against is not None:
        known = {key_of(row): row for row in json.loads(arguments.against.read_bytes())["rows"]}
    done = {key_of(row): row for row in rows}
    differ = 0
    for job in searches():
        start_s = time.perf_counter()
        row = done.get(job)
        if row is None:
            row = json.loads(json.dumps(answer(*job)))
            rows.append(row)
            document = {"environment": environment(), "rows": rows}
            write_whole(arguments.json, json.dumps(document, indent=0).encode() + b"\n")
        jax.clear_caches()  # a process may have 65,530 memory maps; programs take many
        verdict = "" if not known else "same" if known.get(job) == row else "DIFFERS"
        differ += verdict == "DIFFERS"
        seconds = f"{time.perf_counter() - start_s:7.1f} s"
        print(f"{job[0]:<20}{job[1]:<12}{job[2]:<16}{seconds}  {verdict}", flush=True)
    if known:
        print(f"{differ} of {len(known)} answers differ")
    return int(differ > 0)


def key_of(row: dict[str, Any]) -> tuple[str, str, str, int]:
    """What was searched in a row."""
    return row["graph"], row["mcm"], row["method"], row["seed"]


if __name__ == "__main__":
    sys.exit(main())
