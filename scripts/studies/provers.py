"""Compares the time that SCIP and CP-SAT take to prove optimality, with one thread each.

  python scripts/studies/provers.py --split train --mcm mcm4 --json data/benchmarks/provers.json

Both get the same program, the same incumbent from a short search without solvers, and the same
bounds and reduction. Pairs whose incumbent is already proven optimal are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any, Literal

from pairs import add_arguments, names_in

from jaxpart import datasets
from jaxpart.arguments import file_path, non_negative, whole_number
from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.engine import partition
from jaxpart.environment import environment
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.files import write_whole
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.prove import prove
from jaxpart.solvers.scip import Status

_PROVERS: tuple[Literal["scip", "cpsat"], ...] = ("scip", "cpsat")
_GAP = 1e-4  # relative gap at which a pair is proven
_ROW = "{:<24} {:<8} {:>6} {:>10}  {:>14} {:>14}"


def main() -> int:
    """Measures every pair in turn; returns exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_arguments(parser, ["mcm4", "mcm8"])
    add(
        "--pairs",
        type=whole_number,
        default=1000,
        help="stop after so many not proven at once",
    )
    add("--search", type=non_negative, default=3.0, metavar="SECONDS", help="for the incumbent")
    add("--seconds", type=non_negative, default=30.0, help="for each prover")
    add("--seed", type=whole_number, default=0)
    add("--json", type=file_path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args()
    names = names_in(arguments, parser)
    rows: list[dict[str, Any]] = []
    print(_ROW.format("graph", "mcm", "nodes", "T us", "SCIP", "CP-SAT"))
    try:
        for name in names:
            for mcm in arguments.mcm:
                if len(rows) < arguments.pairs:
                    row = _pair(name, mcm, arguments)
                    rows += [] if row is None else [row]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(_summary(rows, arguments.seconds)))
    if arguments.json is not None:
        settings = {key: getattr(arguments, key) for key in ("search", "seconds", "seed")}
        document = {"environment": environment(), "settings": settings, "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode())
    return 0


def _pair(name: str, mcm: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Runs both provers on one pair and prints a line.

    Args:
      name: graph.
      mcm: module, for graphs without a machine of their own.
      arguments: of the command.

    Returns:
      The row; None where nothing was found, or the incumbent is proven optimal.
    """
    graph, machine = datasets.resolve(name)
    problem = Problem.build(graph, machine or load_mcm(mcm))
    try:
        found = partition(
            graph,
            problem.mcm,
            method="clusters",
            time_limit_s=arguments.search,
            seed=arguments.seed,
            count_compilation=False,
        )
    except (InfeasibleError, NothingFoundError):
        return None
    floor_s = combinatorial_bound(problem).seconds
    if found.bottleneck_s <= floor_s * (1 + _GAP):
        return None
    row: dict[str, Any] = {"graph": graph.name, "mcm": problem.mcm.name}
    row |= {"nodes": problem.num_contracted, "incumbent_s": found.bottleneck_s}
    for prover in _PROVERS:
        row[prover] = _outcome(problem, found.assignment, floor_s, prover, arguments)
    texts = [_text(row[prover]) for prover in _PROVERS]
    us = f"{1e6 * found.bottleneck_s:.2f}"
    print(_ROW.format(graph.name, problem.mcm.name, problem.num_contracted, us, *texts), flush=True)
    return row


def _outcome(
    problem: Problem,
    incumbent: IntArray,
    floor_s: float,
    prover: Literal["scip", "cpsat"],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Runs one prover: whether it proved the optimum, its time and best bottleneck, and the gap."""
    start_s = time.perf_counter()
    outcome = prove(
        problem,
        incumbent=incumbent,
        floor_s=floor_s,
        gap=_GAP,
        prover=prover,
        time_limit_s=arguments.seconds,
        seed=arguments.seed,
    )
    seconds = time.perf_counter() - start_s
    best_s = float("inf") if outcome.objective is None else outcome.objective
    gap = best_s / outcome.bound - 1
    is_proven = outcome.status is Status.OPTIMAL or gap <= _GAP
    return {"proven": is_proven, "seconds": seconds, "bottleneck_s": best_s, "gap": gap}


def _text(outcome: dict[str, Any]) -> str:
    if outcome["proven"]:
        return f"{outcome['seconds']:.1f} s"
    return f"gap {100 * outcome['gap']:.2f}%"


def _summary(rows: list[dict[str, Any]], limit_s: float) -> list[str]:
    """Lines with the pairs that each prover proved, and the ratio of their times.

    A run without a proof counts as the time limit.
    """
    if not rows:
        return ["nothing was left to prove"]
    proven = {prover: sum(row[prover]["proven"] for row in rows) for prover in _PROVERS}
    seconds = {
        prover: [row[prover]["seconds"] if row[prover]["proven"] else limit_s for row in rows]
        for prover in _PROVERS
    }
    ratio = statistics.geometric_mean(
        scip / cpsat for scip, cpsat in zip(seconds["scip"], seconds["cpsat"], strict=True)
    )
    return [
        "",
        f"{len(rows)} pairs; proven by SCIP {proven['scip']}, by CP-SAT {proven['cpsat']}",
        f"SCIP's time / CP-SAT's, geometric mean, {limit_s:g} s where not proven: {ratio:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
