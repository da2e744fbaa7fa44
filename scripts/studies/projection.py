"""Compares projection, the minimum cut and SCIP at making labels valid: success, distance, time.

  python scripts/studies/projection.py --out data/benchmarks/projection.json

Candidates are uniformly random labels, and the greedy baseline with a share of its labels
randomised. Projection treats all candidates in batches. The cut and SCIP treat the first few of
them, one by one on one thread. Distance is the sum of |f(v) - y(v)| over the nodes; "x cut" divides
it by the least distance under the dataflow and span rules alone, for the candidates that the cut
was given. "T us" is the median over candidates that keep all rules except memory, "valid us" over
candidates that keep all rules. Compilation is timed separately.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from pairs import greedy_start

from jaxpart.arguments import non_negative, whole_number
from jaxpart.cost.device import lower, pad_assignments
from jaxpart.cost.evaluate import verify
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.methods.labels.projection import project
from jaxpart.problem.problem import Problem
from jaxpart.solvers.minimum_cut import nearest_span, squeeze
from jaxpart.solvers.repair import repair

BATCH = 512  # candidates per call of the projection, and of `verify`
SHARES = (None, 0.001, 0.01, 0.1)  # share of labels that are randomised; None: all labels


@dataclasses.dataclass(frozen=True)
class Row:
    """One step on one kind of candidates.

    Attributes:
      labels: kind of the candidates.
      step: what made them valid.
      candidates: that the step was given.
      answered: candidates for which the step found an answer.
      valid: share of the candidates with a valid answer.
      valid_but_for_memory: share with an answer that keeps all rules except memory.
      distance: mean over the answers of the sum over nodes of |f(v) - y(v)|.
      distance_to_cut: that sum over the cut's, on the candidates that the cut was given.
      moved_nodes: mean share of nodes with another chip than the candidate's.
      bottleneck_s: median over answers that keep all rules except memory.
      valid_bottleneck_s: median over valid answers.
      seconds_per_candidate: without compilation.
    """

    labels: str
    step: str
    candidates: int
    answered: int
    valid: float
    valid_but_for_memory: float
    distance: float
    distance_to_cut: float | None
    moved_nodes: float
    bottleneck_s: float | None
    valid_bottleneck_s: float | None
    seconds_per_candidate: float


def main() -> None:
    """Runs the study, prints its table and writes the rows.

    Raises:
      InputError: the graph or module does not exist, or there is no baseline.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", nargs="?", default="bert-large", metavar="GRAPH")
    parser.add_argument("--mcm", default="mcm36", metavar="NAME_OR_TOML")
    parser.add_argument("--candidates", type=whole_number, default=4096)
    parser.add_argument("--cut", type=whole_number, default=256, help="candidates for the cut")
    parser.add_argument("--scip", type=whole_number, default=16, help="candidates for SCIP")
    parser.add_argument("--scip-limit", type=non_negative, default=5.0, metavar="SECONDS")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--out", metavar="FILE.json")
    arguments = parser.parse_args()

    problem, good = greedy_start(arguments.graph, arguments.mcm)
    lowered = lower(problem)

    def projected(y: np.ndarray) -> np.ndarray:
        return np.asarray(project(lowered, pad_assignments(lowered, y))[0])[: len(good)]

    def cut(y: np.ndarray) -> np.ndarray | None:
        return nearest_span(problem, y)

    def repaired(y: np.ndarray) -> np.ndarray | None:
        return repair(problem, y, time_limit_s=arguments.scip_limit, seed=arguments.seed).assignment

    start = time.perf_counter()
    projected(np.repeat(good[:, None], BATCH, axis=1))
    compile_s = time.perf_counter() - start

    rows: list[Row] = []
    layout = "{:<9} {:<11} {:>6} {:>8} {:>8} {:>9} {:>9} {:>7} {:>8} {:>9} {:>9} {:>9}"
    header = ("labels", "step", "count", "answered", "valid %", "-memory %", "distance", "x cut")
    print(layout.format(*header, "moved %", "T us", "valid us", "ms each"))

    def report(row: Row) -> None:
        rows.append(row)
        print(_line(layout, row), flush=True)

    rng = np.random.default_rng(arguments.seed)
    for share in SHARES:
        y = _labels(rng, problem, good, share, arguments.candidates)
        name = "uniform" if share is None else f"{share:.1%}"
        report(_row(problem, name, "as given", y, y, None, 0.0))

        few = y[:, : arguments.cut]
        exact, exact_s = _one_by_one(cut, few)
        least = np.abs(exact - few).sum(axis=0)
        f, seconds = _in_batches(projected, y)
        report(_row(problem, name, "projection", y, f, least, seconds))
        squeezed = [squeeze(problem, column) for column in exact.T]
        kept = [a if b is None else b for a, b in zip(exact.T, squeezed, strict=True)]
        report(_row(problem, name, "cut", few, np.stack(kept, axis=1), least, exact_s))
        fewer = y[:, : arguments.scip]
        f, seconds = _one_by_one(repaired, fewer)
        report(_row(problem, name, "cut + SCIP", fewer, f, least, seconds))

    print(f"compilation of the projection (batches of {BATCH}): {compile_s:.1f} s")
    if arguments.out:
        document = {
            "environment": environment(),
            "arguments": vars(arguments),
            "nodes": problem.num_nodes,
            "baseline_s": float(verify(problem, good[:, None]).bottleneck_s[0]),
            "compile_s": compile_s,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_whole(arguments.out, json.dumps(document, indent=1).encode() + b"\n")


def _labels(
    rng: np.random.Generator, problem: Problem, good: np.ndarray, share: float | None, count: int
) -> np.ndarray:
    """[N, count] candidates.

    Args:
      rng: of the random labels.
      problem: of N nodes.
      good: [N] the partition whose labels are randomised.
      share: of labels randomised; None: all.
      count: candidates.
    """
    uniform = rng.integers(0, problem.num_chips, (problem.num_nodes, count))
    if share is None:
        return uniform
    return np.where(rng.random(uniform.shape) < share, uniform, good[:, None])


def _in_batches(
    step: Callable[[np.ndarray], np.ndarray], y: np.ndarray
) -> tuple[np.ndarray, float]:
    """Applies a step to batches of candidates.

    Args:
      step: [N, `BATCH`] to the same shape.
      y: [N, B] candidates.

    Returns:
      [N, B] answers, and seconds per candidate.
    """
    size = y.shape[1]
    padded = np.concatenate([y, np.repeat(y[:, -1:], -size % BATCH, axis=1)], axis=1)
    parts = np.split(padded, padded.shape[1] // BATCH, axis=1)
    start = time.perf_counter()
    done = [step(part) for part in parts]
    seconds = (time.perf_counter() - start) / padded.shape[1]
    return np.concatenate(done, axis=1)[:, :size].astype(np.int64), seconds


def _one_by_one(
    step: Callable[[np.ndarray], np.ndarray | None], y: np.ndarray
) -> tuple[np.ndarray, float]:
    """Like `_in_batches` for a step on one candidate [N]; a column of -1 where it has no answer."""
    start = time.perf_counter()
    done = [step(column) for column in y.T]
    seconds = (time.perf_counter() - start) / y.shape[1]
    none = np.full(len(y), -1)
    return np.stack([none if f is None else f for f in done], axis=1), seconds


def _row(
    problem: Problem,
    labels: str,
    step: str,
    y: np.ndarray,
    f: np.ndarray,
    least: np.ndarray | None,
    seconds: float,
) -> Row:
    """Computes the row of one step.

    Args:
      problem: of N nodes.
      labels: kind of the candidates.
      step: name of the step.
      y: [N, B] candidates.
      f: [N, B] answers; -1: none.
      least: [B'] distance of the cut on the first candidates; None: not known.
      seconds: per candidate.
    """
    answered = f[0] >= 0
    f, given = f[:, answered], y[:, answered]
    moved = np.abs(f - given).sum(axis=0)
    keeps, valid, bottleneck = _verdicts(problem, f)
    ratio = None
    if least is not None and answered[: len(least)].any():
        both = np.flatnonzero(answered)[: len(least)]
        both = both[both < len(least)]
        ratio = float(moved[: len(both)].sum() / max(least[both].sum(), 1))
    return Row(
        labels,
        step,
        y.shape[1],
        int(answered.sum()),
        float(valid.sum() / y.shape[1]),
        float(keeps.sum() / y.shape[1]),
        float(moved.mean()) if len(moved) else 0.0,
        ratio,
        float((f != given).mean()) if len(moved) else 0.0,
        float(np.median(bottleneck[keeps])) if keeps.any() else None,
        float(np.median(bottleneck[valid])) if valid.any() else None,
        seconds,
    )


def _verdicts(problem: Problem, f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[B], [B], [B] whether f [N, B] keeps all rules except memory; is valid; bottleneck in s."""
    rules = problem.mcm.constraints
    parts = []
    for start in range(0, f.shape[1], BATCH):
        costs = jax.tree.map(np.asarray, verify(problem, f[:, start : start + BATCH]))
        keeps = costs.fixed_chips & costs.colocation
        for rule in ("acyclic", "no_skip", "triangle"):
            keeps &= getattr(costs, rule) | (not getattr(rules, rule))
        parts.append((keeps, costs.valid, costs.bottleneck_s))
    if not parts:
        return np.zeros(0, bool), np.zeros(0, bool), np.zeros(0)
    keeps, valid, bottleneck = (np.concatenate(column) for column in zip(*parts, strict=True))
    return keeps, valid, bottleneck


def _line(layout: str, row: Row) -> str:
    def number(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    return layout.format(
        row.labels,
        row.step,
        row.candidates,
        row.answered,
        f"{row.valid:.1%}"[:-1],
        f"{row.valid_but_for_memory:.1%}"[:-1],
        f"{row.distance:.1f}",
        number(row.distance_to_cut, 1, 3),
        f"{row.moved_nodes:.2%}"[:-1],
        number(row.bottleneck_s, 1e6, 0),
        number(row.valid_bottleneck_s, 1e6, 0),
        f"{row.seconds_per_candidate * 1e3:.3f}",
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
