"""Measures how many pairs of a graph and a module are proven optimal within a time limit.

  python scripts/studies/certify.py --split valid test --mcm mcm4 mcm8 mcm36 --seconds 60
  python scripts/studies/certify.py bert-large --mcm mcm36 --method exact

Each row is written when it is measured; a run that was stopped resumes. A pair is proven at a gap
of at most 0.01%. A pair that is proven to have no valid partition counts as proven too. Max-load
inputs bring their own machine. The time limit leaves compilation out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pairs import (
    Row,
    Rows,
    add_arguments,
    by_module_and_class,
    identity,
    names_in,
    pairs,
)

from jaxpart.arguments import file_path, non_negative, whole_number
from jaxpart.environment import keep_compiled
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph
    from jaxpart.problem.mcm import MCM

_OUT = Path("data/benchmarks/certify.json")
_GAP = 1e-4
_ROW = "{:<20} {:<9} {:<6} {:<10} {:>11} {:>11} {:>9} {:>6}  {}"
_FIGURES = "{:<9} {:<6} {:>5} {:>11} {:>9} {:>7} {:>8} {:>8} {:>9}"


def main() -> int:
    """Measures every pair in turn.

    Returns:
      Exit code 1 if nothing valid was found for some pair, 2 on bad input.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_arguments(parser, ["mcm4", "mcm8", "mcm36"])
    add("--method", default="auto", choices=("auto", "exact", "ideals"))
    add("--seconds", type=non_negative, default=60.0)
    add("--seed", type=whole_number, default=0)
    add("--out", type=file_path, default=_OUT, metavar="FILE")
    arguments = parser.parse_args()
    keep_compiled()
    try:
        return _certify(names_in(arguments, parser), arguments.mcm, arguments)
    except InputError as error:
        print(f"certify: {error}", file=sys.stderr)
        return 2


def _certify(names: Sequence[str], modules: Sequence[str], arguments: argparse.Namespace) -> int:
    settings = {key: getattr(arguments, key) for key in ("method", "seconds", "seed")}
    rows = Rows(arguments.out, settings)
    head = ("graph", "mcm", "class", "status", "T us", "bound us", "gap %", "s", "proof")
    print(_ROW.format(*head))
    shown = []
    for graph, mcm in pairs(names, modules):
        row = rows.get(graph, mcm)
        if row is None:
            row = certify(graph, mcm, **settings)
            rows.add(row)
        shown.append(row)
        print(_line(row), flush=True)
    print("\n".join(_summary(shown)))
    return int(any(row["status"] == "nothing" for row in shown))


def certify(graph: Graph, mcm: MCM, *, method: str, seconds: float, seed: int) -> Row:
    """Measures one pair: the bottleneck, the bound, and the proof behind the bound.

    Args:
      graph: to partition.
      mcm: the module.
      method: of `partition`.
      seconds: time limit.
      seed: of the search.
    """
    from jaxpart.bounds.combinatorial import combinatorial_bound
    from jaxpart.engine import partition
    from jaxpart.problem.problem import Problem

    problem = Problem.build(graph, mcm)
    row = identity(problem)
    start_s = time.perf_counter()
    try:
        result = partition(
            graph,
            mcm,
            method=method,
            time_limit_s=seconds,
            seed=seed,
            relative_gap=_GAP,
            count_compilation=False,
        )
    except InfeasibleError as error:
        took_s = time.perf_counter() - start_s
        return {**row, "status": "infeasible", "proof": str(error), "seconds": took_s}
    except NothingFoundError as error:
        took_s = time.perf_counter() - start_s
        bound_s = combinatorial_bound(problem).seconds  # of partitions that the search missed
        row |= {"lower_bound_s": bound_s, "proof": str(error)}
        return {**row, "status": "nothing", "seconds": took_s}
    is_proven = result.gap is not None and result.gap <= _GAP
    return row | {
        "status": "proven" if is_proven else "open",
        "bottleneck_s": result.bottleneck_s,
        "lower_bound_s": result.lower_bound_s,
        "gap": result.gap,
        "proof": result.bound_method,
        "seconds": time.perf_counter() - start_s,
    }


def _line(row: Row) -> str:
    start = (row["graph"][:20], row["mcm"], row["class"], row["status"])
    seconds = f"{row['seconds']:.1f}"
    gap = "-" if row.get("gap") is None else f"{100 * row['gap']:.4f}"
    times = (
        f"{1e6 * row[key]:.2f}" if key in row else "-" for key in ("bottleneck_s", "lower_bound_s")
    )
    return _ROW.format(*start, *times, gap, seconds, row["proof"])


def _summary(rows: Sequence[Row]) -> list[str]:
    """A table of the share of proven pairs and the gaps, by module and class."""
    head = ("mcm", "class", "pairs", "infeasible", "nothing", "proven", "share %", "gap %")
    lines = ["", _FIGURES.format(*head, "worst %")]
    for module, kind, chosen in by_module_and_class(rows):
        lines.append(_FIGURES.format(module, kind, *_figures(chosen)))
    return lines


def _figures(rows: Sequence[Row]) -> tuple[object, ...]:
    count = {
        status: sum(row["status"] == status for row in rows)
        for status in ("infeasible", "nothing", "proven")
    }
    gaps = [1 + row["gap"] for row in rows if row.get("gap") is not None]
    mean = statistics.geometric_mean(gaps) if gaps else 1.0
    share = (count["proven"] + count["infeasible"]) / len(rows)
    return (
        len(rows),
        *count.values(),
        f"{100 * share:.0f}",
        f"{100 * (mean - 1):.3f}",
        f"{100 * (max(gaps, default=1.0) - 1):.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
