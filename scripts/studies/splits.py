"""What splitting large operations brings: bottlenecks with and without, beside what is possible.

  python scripts/studies/splits.py --split train valid test extra --mcm mcm8 mcm36 --json out.json
  python scripts/studies/splits.py alexnet bert-large --mcm mcm36 --time-limit 60

A row has the bottleneck of `partition(split="auto")`, that of the graph as it is within the same
search (a fifth of the time), the best that data/benchmarks/dataset.json knows of the graph as it
is, the mean load of the graph as it is, and a lower bound for the finest split: the mean load, or
the shortest slice of some operation, whichever is longer. Each row is written when it is measured,
and a study that was stopped resumes. The time limit includes compilation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from pairs import Row, Rows, add_arguments, by_module_and_class, identity, names_in, pairs

from jaxpart.arguments import file_path, non_negative, whole_number
from jaxpart.environment import keep_compiled
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.ingest.rewrite.cuts import Cut
from jaxpart.ingest.rewrite.parts import accesses, part_node
from jaxpart.ingest.rewrite.uses import Uses

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph, Node
    from jaxpart.problem.mcm import MCM
    from jaxpart.problem.problem import Problem

_KNOWN = Path(__file__).parents[2] / "data" / "benchmarks" / "dataset.json"
_LAYOUT = "{:<22} {:<7} {:<7} {:>10} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6}  {}"
_HEADER = (
    *("graph", "mcm", "class", "mean us", "known", "whole", "split", "finest", "nodes", "s"),
    "status",
)


def main() -> int:
    """Measures every pair in turn; returns exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, ["mcm36"])
    add = parser.add_argument
    add("--time-limit", type=non_negative, default=20.0, metavar="SECONDS", help="for each pair")
    add("--seed", type=whole_number, default=0, metavar="N")
    add("--json", type=file_path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args()
    keep_compiled()
    settings = {"time_limit_s": arguments.time_limit, "seed": arguments.seed}
    try:
        rows = Rows(arguments.json, settings)
        measured = study(names_in(arguments, parser), arguments.mcm, rows, **settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print()
    for module, kind, group in by_module_and_class(measured):
        print(summary(module, kind, group))
    return 0


def study(
    names: Sequence[str], modules: Sequence[str], rows: Rows, *, time_limit_s: float, seed: int
) -> list[Row]:
    """The rows of all pairs; those that `rows` has are not measured again."""
    known = {
        (row["graph"], row["mcm"]): row.get("bottleneck_s")
        for row in json.loads(_KNOWN.read_bytes())["rows"]
    }
    print(_LAYOUT.format(*_HEADER), flush=True)
    found = []
    for graph, mcm in pairs(names, modules):
        row = rows.get(graph, mcm)
        if row is None:
            row = row_of(graph, mcm, time_limit_s, seed)
            row["known_s"] = known.get((graph.name, mcm.name))
            rows.add(row)
        found.append(row)
        print(line(row), flush=True)
    return found


def row_of(graph: Graph, mcm: MCM, time_limit_s: float, seed: int) -> Row:
    """Partitions one pair with splitting, without a policy."""
    from jaxpart.engine import partition
    from jaxpart.problem.problem import Problem

    problem = Problem.build(graph, mcm)
    row: dict[str, Any] = identity(problem) | {
        "mean_load_s": problem.mean_load_s,
        "finest_s": finest_s(problem),
    }
    began_s = time.perf_counter()
    try:
        result = partition(graph, mcm, time_limit_s=time_limit_s, seed=seed, split="auto")
    except (InfeasibleError, NothingFoundError) as error:
        return row | {"status": str(error), "seconds": time.perf_counter() - began_s}
    split = result.split
    whole_s = result.bottleneck_s if split is None else split.whole_s
    return row | {
        "status": "whole" if split is None else "split",
        "bottleneck_s": result.bottleneck_s,
        "whole_s": whole_s,
        "lower_bound_s": result.lower_bound_s,
        "bound_method": result.bound_method,
        "nodes_after": len(result.problem.graph.nodes),
        "operations": split.operations if split else 0,
        "parts": split.parts if split else 0,
        "copies": split.copies if split else 0,
        "compute_ratio": split.compute_ratio if split else 1.0,
        "seconds": time.perf_counter() - began_s,
    }


def finest_s(problem: Problem) -> float:
    """A lower bound on the bottleneck of every split of the graph, in seconds.

    Parts take no less than the whole together, so the mean load is one. Some chip runs a slice of
    every operation, and that of its finest division is another.
    """
    from jaxpart.problem.problem import Problem

    graph, uses = problem.graph, Uses.of(problem.graph)
    slices: list[Node] = []
    owners: list[int] = []
    for v, node in enumerate(graph.nodes):
        slices.append(node)
        owners.append(v)
        for division in node.divide:
            cut = Cut(division, (0, 1, division.ways))
            found = accesses(graph, uses, v, division)
            slices.append(part_node(node, found, cut, 0, "slice", ()))
            owners.append(v)
    named = tuple(
        msgspec.structs.replace(node, name=str(i), divide=(), pin=None, colocate=None)
        for i, node in enumerate(slices)
    )
    alone = Problem.build(
        dataclasses.replace(graph, nodes=named, tensors=(), weights=()), problem.mcm
    )
    shortest = np.full(len(graph.nodes), np.inf)
    np.minimum.at(shortest, owners, alone.node_s.min(axis=1))
    return max(problem.mean_load_s, float(shortest.max()))


def line(row: Row) -> str:
    """A row as text; bottlenecks are over the mean load."""
    mean_s = row["mean_load_s"]
    ratios = [
        f"{row[key] / mean_s:.3f}" if row.get(key) else "-"
        for key in ("known_s", "whole_s", "bottleneck_s", "finest_s")
    ]
    return _LAYOUT.format(
        *(row["graph"], row["mcm"], row["class"], f"{mean_s * 1e6:.2f}", *ratios),
        *(row.get("nodes_after", "-"), f"{row['seconds']:.0f}", row["status"][:60]),
    )


def summary(module: str, kind: str, rows: Sequence[Row]) -> str:
    """A line on a group of pairs: geometric means over those with a partition each way."""
    both = [row for row in rows if row.get("bottleneck_s") and row.get("known_s")]
    found = [row for row in rows if row.get("bottleneck_s")]
    if not both:
        return f"{module} {kind}: {len(rows)} pairs, none known without splitting"
    means = {
        key: statistics.geometric_mean(row[key] / row["mean_load_s"] for row in both)
        for key in ("known_s", "bottleneck_s", "finest_s")
    }
    return (
        f"{module:<6} {kind:<7} {len(rows):>3} pairs, {len(found):>3} valid, {len(both):>3} valid "
        f"without; T / mean load {means['known_s']:.3f} -> {means['bottleneck_s']:.3f}, finest "
        f"{means['finest_s']:.3f}; worse than known: "
        f"{sum(row['bottleneck_s'] > row['known_s'] * 1.001 for row in both)}"
    )


if __name__ == "__main__":
    sys.exit(main())
