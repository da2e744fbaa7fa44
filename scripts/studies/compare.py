"""Partitions graphs on modules; prints the bottleneck, bound, gap and binding resource of each.

  python scripts/studies/compare.py bert-large --mcm mcm36 mcm64
  python scripts/studies/compare.py --split test valid --mcm mcm4 mcm8 mcm36 --json out.json
  python scripts/studies/compare.py profiles/*.txt --mcm data/modules/host4.toml --time-limit 10

Max-load inputs bring their own machine; `--mcm` applies to the other graphs. With `--json`, each
row is written when it is measured, and a run that was stopped resumes. The time limit leaves
compilation out, since a study compiles for many pairs at once.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    from jaxpart.results.result import Result

_LAYOUT = "{:<22} {:<9} {:<6} {:>10} {:>10} {:>6} {:>10} {:>7} {:>8} {:<14} {:<9} {:>6}"
_HEADER = (
    *("graph", "mcm", "class", "baseline us", "T us", "x", "bound us", "gap %", "headroom"),
    *("bound", "binds", "s"),
)


def main() -> int:
    """Measures every pair in turn.

    Returns:
      Exit code 1 if nothing valid was found for some pair, else 0.

    Raises:
      InputError: a graph, module or method does not exist or is damaged, or the file of `--json`
        was made with other settings.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_arguments(parser, ["mcm36"])
    add("--method", default="auto")
    add("--time-limit", type=non_negative, default=20.0, metavar="SECONDS")
    add("--seed", type=whole_number, default=0)
    add("--json", metavar="FILE", type=file_path, help="keep the rows here, and go on from them")
    add("--results", metavar="FOLDER", type=file_path, help="keep what was found, a file a pair")
    arguments = parser.parse_args()
    keep_compiled()
    names = names_in(arguments, parser)
    settings = {key: getattr(arguments, key) for key in ("method", "time_limit", "seed")}
    rows = Rows(arguments.json, settings)
    print(_LAYOUT.format(*_HEADER))
    shown = []
    for graph, mcm in pairs(names, arguments.mcm):
        row = rows.get(graph, mcm)
        if row is None:
            row, result = run(graph, mcm, settings)
            if arguments.results is not None and result is not None:
                arguments.results.mkdir(parents=True, exist_ok=True)
                result.save(arguments.results / f"{graph.name}-{mcm.name}.result.json")
            rows.add(row)
        shown.append(row)
        print(_line(row), flush=True)
    print("\n".join(_summary(shown)))
    return int(any(row["status"] == "nothing found" for row in shown))


def run(graph: Graph, mcm: MCM, settings: dict[str, Any]) -> tuple[Row, Result | None]:
    """Measures one pair: `partition`, and the program order cut optimally.

    Args:
      graph: to partition.
      mcm: the module.
      settings: "method", "time_limit" (seconds) and "seed" of `partition`.

    Returns:
      The row, and the result; None where no valid partition exists or was found.
    """
    from jaxpart.bounds.ideals.pairs import program_order_s
    from jaxpart.engine import partition
    from jaxpart.problem.problem import Problem
    from jaxpart.results.report import binding_kind

    problem = Problem.build(graph, mcm)
    row = identity(problem)
    start_s = time.perf_counter()
    try:
        result = partition(
            graph,
            mcm,
            method=settings["method"],
            time_limit_s=settings["time_limit"],
            seed=settings["seed"],
            count_compilation=False,
        )
    except InfeasibleError as error:
        return {**row, "status": "infeasible", "why": str(error)}, None
    except NothingFoundError as error:
        return {**row, "status": "nothing found", "why": str(error)}, None
    row |= {
        "status": "proven" if result.gap is not None and result.gap <= 1e-4 else "valid",
        "baseline_s": result.baseline_s,
        "bottleneck_s": result.bottleneck_s,
        "improvement": result.improvement,
        "lower_bound_s": result.lower_bound_s,
        "gap": result.gap,
        "bound_method": result.bound_method,
        "binds": binding_kind(problem, result.costs),
        "samples": result.search.samples,
        "seconds": time.perf_counter() - start_s,
    }
    order_s = program_order_s(problem, result.baseline_s)
    row["program_order_s"] = order_s
    row["headroom"] = order_s / result.lower_bound_s if order_s and result.lower_bound_s else None
    return row, result


def _line(row: Row) -> str:
    def number(key: str, scale: float, digits: int) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value * scale:.{digits}f}"

    start = (row["graph"][:22], row["mcm"], row["class"])
    if "why" in row:
        return "{:<22} {:<9} {:<6} {}".format(*start, row["why"])
    return _LAYOUT.format(
        *start,
        number("baseline_s", 1e6, 2),
        number("bottleneck_s", 1e6, 2),
        number("improvement", 1, 3),
        number("lower_bound_s", 1e6, 2),
        number("gap", 100, 2),
        number("headroom", 1, 3),
        row["bound_method"][:14],
        row["binds"],
        number("seconds", 1, 1),
    )


def _summary(rows: Sequence[Row]) -> list[str]:
    """A table of all figures by module and class."""
    layout = "{:<9} {:<6} {:>6} {:>10} {:>7} {:>6} {:>8} {:>8} {:>6} {:>9}  {}"
    header = ("mcm", "class", "pairs", "infeasible", "nothing", "proven", "gap %", "worst %", "x")
    lines = ["", layout.format(*header, "headroom", "binds")]
    for module, kind, chosen in by_module_and_class(rows):
        lines.append(layout.format(module, kind, *_figures(chosen)))
    return lines


def _figures(rows: Sequence[Row]) -> tuple[object, ...]:
    solved = [row for row in rows if "bottleneck_s" in row]
    gaps = [1 + row["gap"] for row in solved if row["gap"] is not None]
    better = [row["improvement"] for row in solved if row["improvement"]]
    room = [row["headroom"] for row in solved if row["headroom"]]
    status = collections.Counter(row["status"] for row in rows)
    what = collections.Counter(row["binds"] for row in solved)
    return (
        len(rows),
        status["infeasible"],
        status["nothing found"],
        status["proven"],
        f"{100 * (_mean(gaps) - 1):.2f}",
        f"{100 * (max(gaps, default=1.0) - 1):.1f}",
        f"{_mean(better):.3f}",
        f"{_mean(room):.3f}",
        ", ".join(f"{name} {count}" for name, count in what.most_common()),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values or [1.0])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
