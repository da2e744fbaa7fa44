"""Compares lower bounds, as shares of the best bottleneck known.

  python scripts/studies/bounds.py bert-large --mcm mcm36 mcm64
  python scripts/studies/bounds.py --split test valid --mcm mcm4 mcm8 mcm36 --json out.json
  python scripts/studies/bounds.py --split test valid --mcm mcm36 --results out-of-compare.json

Each bound has its own time limit and starts from the combinatorial bound. It is compared with a
bottleneck, and stops when it reaches it. This is the bottleneck of a short search, or, where that
is lower, the one in the file that `compare.py --json` wrote.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairs import add_arguments, names_in

from jaxpart import datasets
from jaxpart.arguments import file_path, non_negative
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.files import write_whole

if TYPE_CHECKING:
    from jaxpart.problem.problem import Problem

_METHODS = ("combinatorial", "reduction", "ideals", "superblocks", "best_bound")
_LAYOUT = "{:<22} {:<8} {:>10}" + " {:>16}" * len(_METHODS) + "  {}"


def main() -> int:
    """Measures every pair in turn; returns exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_arguments(parser, ["mcm36"])
    add("--time-limit", type=non_negative, default=20.0, metavar="SECONDS", help="for each bound")
    add("--search", type=non_negative, default=4.0, metavar="SECONDS", help="for the partition")
    add("--results", type=file_path, metavar="FILE", help="rows of compare.py")
    add("--json", type=file_path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args()
    names = names_in(arguments, parser)
    known = {} if arguments.results is None else _known(arguments.results)
    rows: list[dict[str, Any]] = []
    print(_LAYOUT.format("graph", "mcm", "T us", *(f"{m} s" for m in _METHODS), "best"), flush=True)
    try:
        for mcm in arguments.mcm:
            for name in names:
                best_s = known.get((name, mcm))
                row = _row(name, mcm, best_s, arguments.search, arguments.time_limit)
                if row is not None:
                    rows.append(row)
                    print(_line(row), flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rows:
        _summary(rows)
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(rows, indent=1).encode() + b"\n")
    return 0


def _known(path: Path) -> dict[tuple[str, str], float]:
    """Bottleneck in seconds by (graph, module), from a file of `compare.py --json`."""
    rows = json.loads(path.read_text())["rows"]
    return {
        (row["graph"], row["mcm"]): row["bottleneck_s"] for row in rows if row.get("bottleneck_s")
    }


def _row(
    name: str, mcm_name: str, best_s: float | None, search_s: float, limit_s: float
) -> dict[str, Any] | None:
    """Measures all bounds of one pair.

    Args:
      name: graph.
      mcm_name: module, for graphs without a machine of their own.
      best_s: the best bottleneck known, in seconds; None: unknown.
      search_s: time limit of the search for a better one.
      limit_s: time limit of each bound.

    Returns:
      The row; None where no bottleneck is known.
    """
    from jaxpart.engine import partition
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem

    graph, own = datasets.resolve(name)
    mcm = load_mcm(mcm_name) if own is None else own
    try:
        found_s = partition(
            graph, mcm, method="clusters", time_limit_s=search_s, count_compilation=False
        ).bottleneck_s
    except (InfeasibleError, NothingFoundError) as error:
        if best_s is None:
            print(f"{name} on {mcm.name}: {error}", flush=True)
            return None
        found_s = best_s
    best_s = found_s if best_s is None else min(found_s, best_s)
    bounds = _bounds(Problem.build(graph, mcm), best_s, limit_s)
    return {"graph": name, "mcm": mcm.name, "bottleneck_s": best_s, "bounds": bounds}


def _bounds(problem: Problem, best_s: float, limit_s: float) -> dict[str, dict[str, Any]]:
    """For each method: the bound and the time it took, in seconds, and the proof behind it."""
    from jaxpart.bounds.best import best_bound, ideals_bound
    from jaxpart.bounds.combinatorial import Bound, combinatorial_bound
    from jaxpart.bounds.reduction import destructive_bound
    from jaxpart.bounds.superblocks import superblock_bound

    first = combinatorial_bound(problem)

    def alone(method: str, bound: Callable[..., float]) -> Bound:
        until = time.monotonic() + limit_s
        seconds = bound(problem, first.seconds, best_s, give_up=lambda: time.monotonic() > until)
        return Bound(seconds, method) if seconds > first.seconds else first

    runs: dict[str, Callable[[], Bound]] = {
        "combinatorial": lambda: combinatorial_bound(problem),
        "reduction": lambda: alone("reduction", destructive_bound),
        "ideals": lambda: alone("ideals", ideals_bound),
        "superblocks": lambda: alone("superblocks", superblock_bound),
        "best_bound": lambda: best_bound(problem, limit_s, best_s),
    }
    found: dict[str, dict[str, Any]] = {}
    for method in _METHODS:
        began = time.monotonic()
        bound = runs[method]()
        took_s = time.monotonic() - began
        seconds = min(bound.seconds, best_s)
        found[method] = {"seconds": seconds, "method": bound.method, "took_s": took_s}
    return found


def _line(row: dict[str, Any]) -> str:
    shares = [
        f"{found['seconds'] / row['bottleneck_s']:.4f} {found['took_s']:6.1f} s"
        for found in (row["bounds"][method] for method in _METHODS)
    ]
    best = row["bounds"]["best_bound"]["method"]
    return _LAYOUT.format(
        row["graph"], row["mcm"], f"{row['bottleneck_s'] * 1e6:.2f}", *shares, best
    )


def _summary(rows: list[dict[str, Any]]) -> None:
    print(f"\n{len(rows)} pairs; bound / T: geometric mean, least; pairs within 1%")
    for method in _METHODS:
        shares = [row["bounds"][method]["seconds"] / row["bottleneck_s"] for row in rows]
        near = sum(share >= 1 / 1.01 for share in shares)
        mean = statistics.geometric_mean(shares)
        print(f"  {method:<14} {mean:.4f}  {min(shares):.4f}  {near}")


if __name__ == "__main__":
    sys.exit(main())
