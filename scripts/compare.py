"""Partitions several graphs on several modules and prints one table: what each got, and how sure.

  python scripts/compare.py bert-large --mcm mcm36 mcm64
  python scripts/compare.py profiles/*.txt --mcm data/modules/host4.toml --time-limit 10

Max-load inputs bring their own machine; the modules named are for the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from jaxpart.errors import InputError, JaxpartError


def main() -> int:
    """Runs every pair in turn; exit code 1 where any has no valid result, 2 for bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", nargs="+", metavar="GRAPH")
    parser.add_argument("--mcm", nargs="+", default=["mcm36"], metavar="NAME_OR_TOML")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--time-limit", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    arguments = parser.parse_args()

    from jaxpart.dataset import resolve
    from jaxpart.environment import environment
    from jaxpart.files import write_whole
    from jaxpart.mcm import load_mcm
    from jaxpart.search.engine import partition

    header = ("graph", "mcm", "nodes", "baseline us", "T us", "x", "bound us", "gap %", "by", "s")
    layout = "{:<24} {:<9} {:>6} {:>13} {:>13} {:>6} {:>13} {:>7} {:<12} {:>6}"
    print(layout.format(*header))
    rows, failed = [], False
    for name in arguments.graphs:
        graph, machine = resolve(name)
        for mcm in [machine] if machine else [load_mcm(m) for m in arguments.mcm]:
            start_s = time.perf_counter()
            row = {"graph": graph.name, "mcm": mcm.name, "nodes": len(graph.nodes)}
            try:
                result = partition(
                    graph,
                    mcm,
                    method=arguments.method,
                    time_limit_s=arguments.time_limit,
                    seed=arguments.seed,
                )
            except InputError:
                raise
            except JaxpartError as error:
                failed = True
                rows.append({**row, "error": str(error)})
                print(f"{graph.name:<24.24} {mcm.name:<9} {len(graph.nodes):>6} {error}")
                continue
            row |= {
                "baseline_s": result.baseline_s,
                "bottleneck_s": result.bottleneck_s,
                "improvement": result.improvement,
                "lower_bound_s": result.lower_bound_s,
                "gap": result.gap,
                "bound_method": result.bound_method,
                "seconds": time.perf_counter() - start_s,
            }
            rows.append(row)
            print(_line(layout, row), flush=True)
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("method", "time_limit", "seed")}
        document = {"environment": environment(), "settings": settings, "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode())
    return int(failed)


def _line(layout: str, row: dict) -> str:
    def number(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    return layout.format(
        row["graph"][:24],
        row["mcm"],
        row["nodes"],
        number(row["baseline_s"], 1e6, 2),
        number(row["bottleneck_s"], 1e6, 2),
        number(row["improvement"], 1, 3),
        number(row["lower_bound_s"], 1e6, 2),
        number(row["gap"], 100, 3),
        row["bound_method"],
        f"{row['seconds']:.1f}",
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
