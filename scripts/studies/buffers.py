"""How many buffers a pipeline needs: its pace with 1, 2, 4 and 8, as a share of 1/T.

  python scripts/studies/buffers.py --json data/benchmarks/buffers.json

A short search with a fixed budget of samples and a fixed seed makes a partition of each graph on
each module: clusters, which also find partitions whose chips form no path. `jaxpart simulate` then
runs it until it has settled. All is deterministic, so other work on the machine changes nothing. A
run that was stopped goes on where it was.

A row has T, the chips in use, and by the number of buffers: the share of 1/T that is reached in the
long run, and the number of inferences from which on fill and drain cost less than 5%.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rows import Row, Rows

import jaxpart
from jaxpart.arguments import count, file_path, whole_number
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM

BUFFERS = (1, 2, 4, 8)
_SPLITS = ("valid", "test")
_LINE = "{:<28} {:<6} {:>5} {:>6}  {}"


def main() -> int:
    """Prints a row for each graph and module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--graphs", nargs="+", metavar="NAME", help="(default: valid, test)")
    add("--mcm", nargs="+", default=["mcm8", "mcm36"], metavar="NAME")
    add("--method", default="clusters", help="of the search (default: %(default)s)")
    add("--samples", type=count, default=4000, help="budget of a search (default: 4000)")
    add("--seed", type=whole_number, default=0)
    add("--json", type=file_path, metavar="FILE", help="rows are kept here")
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("method", "samples", "seed")}
    try:
        names = arguments.graphs or [n for side in _SPLITS for n in jaxpart.datasets.split(side)]
        measure(Rows(arguments.json, settings), names, arguments.mcm)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(rows: Rows, graphs: list[str], modules: list[str]) -> None:
    """Adds the rows that are not there yet, and prints them.

    Args:
      rows: of the study; its settings are those of the search.
      graphs: names of shipped graphs.
      modules: names or files of modules.
    """
    print(_LINE.format("graph", "module", "nodes", "chips", "% of 1/T with 1, 2, 4, 8 buffers"))
    for name in graphs:
        for module in modules:
            key = {"graph": name, "mcm": Path(module).stem}
            row = rows.get(**key)
            if row is None:
                row = {**key, **simulated(jaxpart.datasets.load(name), module, rows.settings)}
                rows.add(row)
            shares = [f"{100 * row[f'share_{b}']:.1f}" for b in BUFFERS if f"share_{b}" in row]
            shown = " ".join(shares) or row["why"]
            print(_LINE.format(name, key["mcm"], row["nodes"], row.get("chips_used", "-"), shown))
            sys.stdout.flush()


def simulated(graph: Graph, module: str | MCM, settings: Row) -> Row:
    """What a row has beside its key; `why` in place of figures where nothing valid was found.

    Args:
      graph: of N nodes.
      module: its name or file, or the module.
      settings: of the search.
    """
    mcm = jaxpart.load_mcm(module) if isinstance(module, str) else module
    row: Row = {"nodes": len(graph.nodes)}
    try:
        found = jaxpart.partition(
            graph,
            mcm,
            method=settings["method"],
            max_samples=settings["samples"],
            seed=settings["seed"],
            time_limit_s=None,
        )
    except (InfeasibleError, NothingFoundError) as error:
        return {**row, "why": type(error).__name__}
    row |= {"bottleneck_s": found.bottleneck_s, "chips_used": found.chips_used}
    for buffers in BUFFERS:
        run = jaxpart.simulate(graph, mcm, found.assignment, count=1, buffers=buffers)
        row[f"share_{buffers}"] = 1 - run.lost_share
        row[f"near_{buffers}"] = run.inferences_to_near
    return row


if __name__ == "__main__":
    sys.exit(main())
