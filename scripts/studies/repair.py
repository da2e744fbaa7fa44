"""Measures speed, success and distance of repair, against OR-Tools CP-SAT on the same candidates.

  python scripts/studies/repair.py --out data/benchmarks/repair.json
  python scripts/studies/repair.py --kill --out data/benchmarks/repair-kill.json

A candidate is a valid partition in which a share of the labels is replaced by uniformly random
chips. The partition is the greedy baseline. If the baseline overfills a chip of the tighter module,
its repair is used instead.

The modules are `mcm36` without the memory rule, and `mcm36` with less memory: the capacity is the
mean memory of the baseline's chips plus a given share of it ("room"). The largest weight (the word
embedding of BERT, 29.8 MiB) would not fit; so the chip on which the baseline has it keeps its
capacity, and is left out of the mean.

"x least" is the distance over a proven lower bound on the distance of every valid partition: that
of the nearest partition under dataflow alone, by a minimum cut. "x exact" takes the bound of SCIP
instead, for the first `--exact` candidates, if it is higher.

Repair runs in two worker processes, and after it CP-SAT with two threads. Both get all candidates,
unless `--rival` gives CP-SAT fewer. `--kill` repairs 10,000 candidates while workers are killed or
stopped at random.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import sys
import time

import jax
import numpy as np
import repair_cpsat
import repair_kill

from jaxpart.arguments import non_negative, whole_number
from jaxpart.cost import host
from jaxpart.cost.evaluate import verify
from jaxpart.cost.greedy import baseline
from jaxpart.datasets.shipped import resolve
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM, load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.repair_batch import RepairStatus
from jaxpart.solvers.minimum_cut import nearest
from jaxpart.solvers.repair import repair

WORKERS = 2
ROOMS = (None, 0.5, 0.2, 0.1)  # capacity above the mean, as a share of it; None: no memory rule
SHARES = (0.01, 0.1, 0.5, 1.0)  # shares of labels that are randomised
QUICK_ROOMS, QUICK_SHARES = (None, 0.2), (0.01, 0.5)


@dataclasses.dataclass(frozen=True)
class Row:
    """One solver on one kind of candidates.

    Attributes:
      room: capacity above the mean, as a share of it; None: no memory rule.
      share: of labels randomised.
      solver: name.
      candidates: number of candidates.
      valid: share of the candidates with a valid answer, by `verify`.
      statuses: number of answers of each status.
      per_second: repairs per second of wall time.
      median_s: median time of one repair, in a worker.
      slowest_s: longest time of one repair.
      to_least: mean over valid answers of distance / lower bound (a minimum cut).
      to_least_worst: the largest of these ratios.
      to_exact: mean of distance / the higher of that bound and SCIP's, over the first `--exact`
        candidates.
    """

    room: float | None
    share: float
    solver: str
    candidates: int
    valid: float
    statuses: dict[str, int]
    per_second: float
    median_s: float
    slowest_s: float
    to_least: float | None
    to_least_worst: float | None
    to_exact: float | None


def main() -> None:
    """Runs the study, prints its table and writes the rows.

    Raises:
      InputError: the graph or module does not exist, or there is no partition to randomise.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", nargs="?", default="bert-large", metavar="GRAPH")
    parser.add_argument("--mcm", default="mcm36", metavar="NAME_OR_TOML")
    parser.add_argument("--candidates", type=whole_number, default=200, help="of each kind")
    parser.add_argument("--rival", type=whole_number, metavar="COUNT", help="candidates for CP-SAT")
    parser.add_argument("--limit", type=non_negative, default=1.0, metavar="SECONDS")
    parser.add_argument("--rival-limit", type=non_negative, default=10.0, metavar="SECONDS")
    parser.add_argument("--exact", type=whole_number, default=0, metavar="COUNT")
    parser.add_argument("--exact-limit", type=non_negative, default=300.0, metavar="SECONDS")
    parser.add_argument("--quick", action="store_true", help="4 kinds, 20 candidates, 2 for CP-SAT")
    parser.add_argument("--kill", action="store_true", help="with workers killed at random")
    parser.add_argument("--repairs", type=whole_number, default=10_000, help="with --kill")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--out", metavar="FILE.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.candidates, arguments.rival, arguments.repairs = 20, 2, 1000

    graph, _ = resolve(arguments.graph)
    mcm = load_mcm(arguments.mcm)
    document: dict[str, object] = {"environment": environment(), "arguments": vars(arguments)}
    if arguments.kill:
        problem = Problem.build(graph, module(graph, mcm, 0.2))
        candidates = functools.partial(_candidates, problem, start_of(graph, mcm, problem), 0.01)
        document["kill"] = repair_kill.run(
            problem, candidates, arguments.repairs, workers=WORKERS, seed=arguments.seed
        )
    else:
        document["rows"] = [dataclasses.asdict(row) for row in _rows(arguments, graph, mcm)]
    if arguments.out:
        write_whole(arguments.out, json.dumps(document, indent=1).encode() + b"\n")


def module(graph: Graph, mcm: MCM, room: float | None) -> MCM:
    """The module with tighter memory.

    Args:
      graph: to partition.
      mcm: the module.
      room: capacity above the mean memory of the baseline's chips, as a share of it; None: no
        memory rule.

    Raises:
      InputError: there is no baseline.
    """
    if room is None:
        rules = dataclasses.replace(mcm.constraints, memory=False)
        return dataclasses.replace(mcm, name=f"{mcm.name} without memory", constraints=rules)
    problem = Problem.build(graph, mcm)
    f = _baseline(problem)
    held = host.memory_bytes(problem, f)
    largest = np.zeros(mcm.num_chips, bool)
    is_largest = problem.use_weight == problem.weight_bytes.argmax()
    largest[f[problem.use_node[is_largest]]] = True
    used = np.arange(mcm.num_chips) <= f.max()
    capacity = (1 + room) * float(held[used & ~largest].mean())
    chips = tuple(
        chip if keeps else dataclasses.replace(chip, sram_bytes=capacity)
        for chip, keeps in zip(mcm.chips, largest.tolist(), strict=True)
    )
    return dataclasses.replace(mcm, name=f"{mcm.name} +{room:.0%}", chips=chips)


def start_of(graph: Graph, mcm: MCM, problem: Problem) -> np.ndarray:
    """The valid partition that is randomised.

    Args:
      graph: to partition.
      mcm: the module of the baseline.
      problem: of the same graph on the tighter module.

    Returns:
      [N] chips.

    Raises:
      InputError: there is no baseline, or its repair failed.
    """
    f = _baseline(Problem.build(graph, mcm))
    repaired = repair(problem, f, time_limit_s=60.0).assignment
    if repaired is None:
        raise InputError(f"{graph.name} has no valid partition on {problem.mcm.name} to randomise")
    return repaired


def _baseline(problem: Problem) -> np.ndarray:
    """[N] the baseline; raises InputError if there is none."""
    f = baseline(problem)
    if f is None:
        raise InputError(f"{problem.graph.name} has no baseline on {problem.mcm.name}")
    return f


def _candidates(
    problem: Problem, start: np.ndarray, share: float, rng: np.random.Generator, count: int
) -> np.ndarray:
    """[count, N] copies of `start` [N], with a share of their labels randomised."""
    anew = rng.integers(0, problem.num_chips, (count, problem.num_nodes))
    return np.where(rng.random(anew.shape) < share, anew, start)


def _rows(arguments: argparse.Namespace, graph: Graph, mcm: MCM) -> list[Row]:
    """Measures both solvers on every kind of candidates, and prints a line for each."""
    layout = "{:>7} {:>6} {:<7} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  {}"
    print(
        layout.format(
            *("room", "noise", "solver", "count", "valid %", "per s", "ms", "worst ms"),
            *("x least", "worst", "x exact", "how"),
        )
    )
    rows: list[Row] = []
    for room in QUICK_ROOMS if arguments.quick else ROOMS:
        problem = Problem.build(graph, module(graph, mcm, room))
        start = start_of(graph, mcm, problem)
        rival = None
        for share in QUICK_SHARES if arguments.quick else SHARES:
            rng = np.random.default_rng(arguments.seed)
            y = _candidates(problem, start, share, rng, arguments.candidates)
            count = len(y) if arguments.rival is None else min(arguments.rival, len(y))
            least = np.array([_least(problem, candidate) for candidate in y])
            made = [_ours(arguments, problem, room, share, y, least)]
            if count:
                rival = rival or repair_cpsat.Rival(
                    problem, WORKERS, arguments.rival_limit, arguments.seed
                )
                made.append(_theirs(rival, problem, room, share, y[:count], least))
            for row in made:
                rows.append(row)
                print(_line(layout, row), flush=True)
    return rows


def _least(problem: Problem, y: np.ndarray) -> float:
    """A lower bound on the distance of every valid partition from y [N]."""
    rule = "acyclic" if problem.mcm.constraints.acyclic else "none"
    f = nearest(problem, y, rule=rule)
    return 0.0 if f is None else float(np.abs(f - y).sum())


def _ours(
    arguments: argparse.Namespace,
    problem: Problem,
    room: float | None,
    share: float,
    y: np.ndarray,
    least: np.ndarray,
) -> Row:
    """Measures repair in worker processes.

    Args:
      arguments: of the command.
      problem: of N nodes.
      room: of the module.
      share: of labels randomised.
      y: [B, N] candidates.
      least: [B] lower bounds on their distances.
    """
    with SolverPool(problem, WORKERS) as pool:
        pool.repair_batch(y[: 4 * WORKERS], time_limit_s=arguments.limit).result()  # warm up
        began = time.perf_counter()
        repairs = pool.repair_batch(y, time_limit_s=arguments.limit, seed=arguments.seed).result()
        wall_s = time.perf_counter() - began
    ratios = []
    for k in range(min(arguments.exact, len(y))):
        outcome = repair(problem, y[k], window=None, gap=0.0, time_limit_s=arguments.exact_limit)
        bound = max(outcome.bound, float(least[k]))
        ratios.append(float(repairs.distance[k]) / bound if bound else 1.0)
    return _row(
        problem,
        (room, share, "jaxpart"),
        list(repairs.assignments.astype(np.int64)),
        y,
        least,
        collections.Counter(RepairStatus(s).name.lower() for s in repairs.status.tolist()),
        repairs.seconds,
        wall_s,
        float(np.mean(ratios)) if ratios else None,
    )


def _theirs(
    rival: repair_cpsat.Rival,
    problem: Problem,
    room: float | None,
    share: float,
    y: np.ndarray,
    least: np.ndarray,
) -> Row:
    """Measures CP-SAT. The arguments are those of `_ours`, with the first candidates only."""
    began = time.perf_counter()
    answers = [rival.repair(candidate) for candidate in y]
    wall_s = time.perf_counter() - began
    none = np.full(problem.num_nodes, -1)
    words = [
        "none in time" if a.assignment is None else "optimal" if a.is_optimal else "feasible"
        for a in answers
    ]
    return _row(
        problem,
        (room, share, "CP-SAT"),
        [none if a.assignment is None else a.assignment for a in answers],
        y,
        least,
        collections.Counter(words),
        np.array([a.seconds for a in answers]),
        wall_s,
        None,
    )


def _row(
    problem: Problem,
    kind: tuple[float | None, float, str],
    f: list[np.ndarray],
    y: np.ndarray,
    least: np.ndarray,
    statuses: collections.Counter[str],
    seconds: np.ndarray,
    wall_s: float,
    to_exact: float | None,
) -> Row:
    """Computes the row of one solver.

    Args:
      problem: of N nodes.
      kind: room, share and solver.
      f: [N] answers; -1: none.
      y: [B, N] candidates.
      least: [B] lower bounds on their distances; there may be more of them than answers.
      statuses: number of answers of each status.
      seconds: of each repair.
      wall_s: of all repairs.
      to_exact: see `Row`.
    """
    valid = verified(problem, np.stack(f))
    moved = np.abs(np.stack(f) - y).sum(axis=1)
    ratio = (moved / np.maximum(least[: len(f)], 1.0))[valid]
    return Row(
        *kind,
        len(f),
        float(valid.mean()),
        dict(statuses),
        len(f) / wall_s,
        float(np.median(seconds)),
        float(seconds.max()),
        float(ratio.mean()) if len(ratio) else None,
        float(ratio.max()) if len(ratio) else None,
        to_exact,
    )


def verified(problem: Problem, f: np.ndarray) -> np.ndarray:
    """Checks answers.

    Args:
      problem: of N nodes.
      f: [B, N] chips; rows of -1 are no answer.

    Returns:
      [B] whether `verify` finds each valid.
    """
    valid = f[:, 0] >= 0
    if valid.any():
        costs = jax.tree.map(np.asarray, verify(problem, f[valid].T))
        valid[valid] = costs.valid
    return valid


def _line(layout: str, row: Row) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return layout.format(
        "no rule" if row.room is None else f"+{row.room:.0%}",
        f"{row.share:.0%}",
        row.solver,
        row.candidates,
        f"{row.valid:.1%}"[:-1],
        f"{row.per_second:.1f}",
        f"{row.median_s * 1e3:.1f}",
        f"{row.slowest_s * 1e3:.0f}",
        number(row.to_least),
        number(row.to_least_worst),
        number(row.to_exact),
        ", ".join(f"{count} {name}" for name, count in sorted(row.statuses.items())),
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
