"""Candidates per second of full evaluation: every figure and verdict, links and peak included.

  python scripts/benchmark_evaluate.py --json data/benchmarks/evaluate.json

Labels are uniformly random, or the greedy baseline with 1% of its labels randomised and projected.
Compilation is timed apart; each figure is the median of several calls that end with
`block_until_ready`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import jax
import numpy as np

from jaxpart.cost import evaluate
from jaxpart.dataset import resolve
from jaxpart.device import lower, pad_assignments
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.greedy import baseline
from jaxpart.mcm import load_mcm
from jaxpart.problem import Problem
from jaxpart.projection import project

_CALLS = 5


def main() -> int:
    """Prints one row per kind of labels and batch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", default="bert-large")
    parser.add_argument("--mcm", default="mcm36")
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()

    graph, machine = resolve(arguments.graph)
    problem = Problem.build(graph, machine or load_mcm(arguments.mcm))
    start = baseline(problem)
    if start is None:
        raise InputError(f"{arguments.graph}: greedy finds nothing valid to start from")
    device = lower(problem)
    rng = np.random.default_rng(arguments.seed)
    rows = []
    print(f"{'labels':<12} {'batch':>6} {'compile s':>10} {'ms':>8} {'candidates/s':>13}")
    for batch in arguments.batch:
        uniform = rng.integers(0, problem.num_chips, (problem.num_nodes, batch))
        noisy = np.where(rng.random(uniform.shape) < 0.01, uniform, start[:, None])
        kinds = {
            "uniform": jax.device_put(pad_assignments(device, uniform)),
            "near-valid": project(device, jax.device_put(pad_assignments(device, noisy)))[0],
        }
        compile_s = None
        for kind, labels in kinds.items():
            first_s = _seconds(device, labels)
            run_s = statistics.median(_seconds(device, labels) for _ in range(_CALLS))
            compile_s = first_s - run_s if compile_s is None else compile_s
            row = {"labels": kind, "batch": batch, "compile_s": compile_s, "run_s": run_s}
            row["candidates_per_s"] = batch / run_s
            rows.append(row)
            print(
                f"{kind:<12} {batch:>6} {compile_s:>10.2f} {run_s * 1e3:>8.1f} "
                f"{batch / run_s:>13,.0f}",
                flush=True,
            )
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("graph", "mcm", "seed")}
        document = {"environment": environment(), "settings": settings, "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode())
    return 0


def _seconds(device, labels) -> float:
    start_s = time.perf_counter()
    jax.block_until_ready(evaluate(device, labels))
    return time.perf_counter() - start_s


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
