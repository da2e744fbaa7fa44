"""Partitions several graphs on several modules: what each got, how sure, and what holds it back.

  python scripts/compare.py bert-large --mcm mcm36 mcm64
  python scripts/compare.py --split test valid --mcm mcm4 mcm8 mcm36 --json out.json
  python scripts/compare.py profiles/*.txt --mcm data/modules/host4.toml --time-limit 10

Max-load inputs bring their own machine; the modules named are for the others. With `--json` the
rows are kept as they come, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpart import dataset
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.files import write_whole

if TYPE_CHECKING:
    from jaxpart.graph import Graph
    from jaxpart.mcm import MCM
    from jaxpart.problem import Problem
    from jaxpart.result import Result

_LAYOUT = "{:<22} {:<9} {:<6} {:>10} {:>10} {:>6} {:>10} {:>7} {:>8} {:<14} {:<9} {:>6}"
_HEADER = (
    *("graph", "mcm", "class", "baseline us", "T us", "x", "bound us", "gap %", "headroom"),
    *("bound", "binds", "s"),
)
# Ideals a node up to which a graph is a chain, and narrow; beyond it is wide.
_CHAIN, _NARROW = 1.5, 10.0
_IDEALS_LIMIT = 20_000


def main() -> int:
    """Runs every pair in turn; exit code 1 where for some nothing valid was found, 2: bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("graphs", nargs="*", metavar="GRAPH")
    add("--split", nargs="+", choices=dataset.SPLITS, default=[], help="all graphs of these sides")
    add("--mcm", nargs="+", default=["mcm36"], metavar="NAME_OR_TOML")
    add("--method", default="auto")
    add("--time-limit", type=float, default=20.0, metavar="SECONDS")
    add("--seed", type=int, default=0)
    add("--json", metavar="FILE", type=Path, help="keep the rows here, and go on from them")
    arguments = parser.parse_args()
    names = [*arguments.graphs, *(n for side in arguments.split for n in dataset.split(side))]
    if not names:
        parser.error("expected a GRAPH or --split")
    settings = {key: getattr(arguments, key) for key in ("method", "time_limit", "seed")}
    rows = _read(arguments.json, settings)
    done = {(row["graph"], row["mcm"]): row for row in rows}
    print(_LAYOUT.format(*_HEADER))
    shown = []
    for graph, mcm in _pairs(names, arguments.mcm):
        row = done.get((graph.name, mcm.name))
        if row is None:
            row = run(graph, mcm, settings)
            rows.append(row)
            _write(arguments.json, settings, rows)
        shown.append(row)
        print(_line(row), flush=True)
    print("\n".join(_summary(shown)))
    return int(any(row["status"] == "nothing found" for row in shown))


def _pairs(names: Sequence[str], modules: Sequence[str]) -> Iterator[tuple[Graph, MCM]]:
    from jaxpart.mcm import load_mcm

    loaded = [load_mcm(name) for name in modules]
    for name in names:
        graph, machine = dataset.resolve(name)
        for mcm in [machine] if machine else loaded:
            yield graph, mcm


def run(graph: Graph, mcm: MCM, settings: dict[str, Any]) -> dict[str, Any]:
    """One pair: what `partition` gives, and what the program order cut optimally gives."""
    from jaxpart.problem import Problem
    from jaxpart.search.engine import partition

    problem = Problem.build(graph, mcm)
    row: dict[str, Any] = {
        "graph": graph.name,
        "mcm": mcm.name,
        "nodes": len(graph.nodes),
        "class": class_of(problem),
    }
    start_s = time.perf_counter()
    try:
        result = partition(
            graph,
            mcm,
            method=settings["method"],
            time_limit_s=settings["time_limit"],
            seed=settings["seed"],
        )
    except InfeasibleError as error:
        return {**row, "status": "infeasible", "why": str(error)}
    except NothingFoundError as error:
        return {**row, "status": "nothing found", "why": str(error)}
    row |= {
        "status": "proven" if result.gap is not None and result.gap <= 1e-4 else "valid",
        "baseline_s": result.baseline_s,
        "bottleneck_s": result.bottleneck_s,
        "improvement": result.improvement,
        "lower_bound_s": result.lower_bound_s,
        "gap": result.gap,
        "bound_method": result.bound_method,
        "binds": binds(result),
        "samples": result.search.samples,
        "seconds": time.perf_counter() - start_s,
    }
    order_s = program_order_s(problem, result.baseline_s)
    row["program_order_s"] = order_s
    row["headroom"] = order_s / result.lower_bound_s if order_s and result.lower_bound_s else None
    return row


def class_of(problem: Problem) -> str:
    """chain, narrow or wide: by how many ideals the graph has for each of its nodes."""
    from jaxpart.ideals import count_ideals

    limit = min(_IDEALS_LIMIT, int(_NARROW * problem.num_blocks) + 1)
    ideals = count_ideals(problem, limit)
    if ideals is None or ideals > _NARROW * problem.num_blocks:
        return "wide"
    return "chain" if ideals <= _CHAIN * problem.num_blocks else "narrow"


def program_order_s(problem: Problem, baseline_s: float | None) -> float | None:
    """Bottleneck of the program order cut optimally; None where every such cut is invalid."""
    from jaxpart.ideals import list_prefixes, solve

    cutoff_s = float("inf") if baseline_s is None else baseline_s
    outcome = solve(problem, list_prefixes(problem), cutoff_s, span=True)
    found = outcome is not None and outcome.assignment is not None
    return outcome.bottleneck_s if outcome is not None and found else None


def binds(result: Result) -> str:
    """What sets the bottleneck: compute or transfers; + memory where a chip is all but full."""
    import numpy as np

    costs, problem = result.costs, result.problem
    limit_s = float(costs.bottleneck_s) * (1 - 1e-9)
    name = "compute" if float(np.max(costs.compute_s)) >= limit_s else "links"
    full = np.asarray(costs.memory_bytes) / problem.capacity_bytes
    return f"{name}+mem" if problem.mcm.constraints.memory and full.max() > 0.98 else name


def _read(path: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    document = json.loads(path.read_bytes())
    if document.get("settings") != settings:
        raise InputError(f"{path}: made with {document.get('settings')}, expected {settings}")
    return document["rows"]


def _write(path: Path | None, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from jaxpart.environment import environment

    if path is not None:
        document = {"environment": environment(), "settings": settings, "rows": rows}
        write_whole(path, json.dumps(document, indent=1).encode() + b"\n")


def _line(row: dict[str, Any]) -> str:
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


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures by module and by class."""
    layout = "{:<9} {:<6} {:>6} {:>10} {:>7} {:>6} {:>8} {:>8} {:>6} {:>9}  {}"
    header = ("mcm", "class", "pairs", "infeasible", "nothing", "proven", "gap %", "worst %", "x")
    lines = ["", layout.format(*header, "headroom", "binds")]
    modules = list(dict.fromkeys(row["mcm"] for row in rows))
    for module in (*modules, "all") if len(modules) > 1 else modules:
        for kind in ("chain", "narrow", "wide", "all"):
            chosen = [
                row
                for row in rows
                if module in (row["mcm"], "all") and kind in (row["class"], "all")
            ]
            if chosen:
                lines.append(layout.format(module, kind, *_figures(chosen)))
    return lines


def _figures(rows: Sequence[dict[str, Any]]) -> tuple[object, ...]:
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
