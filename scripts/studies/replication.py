"""What it would bring to run one stage on several chips that take inferences in turn (PipeDream).

  python scripts/studies/replication.py --json data/benchmarks/replication.json

A throw-away model, for one question: should the cost model have replicated stages? A stage is a
segment of the program order. On r chips its compute is 1/r for each inference, and each of them
holds its weights and boundary buffers. Links carry what they carry anyway. Live activations are
left out, which favours replication. No tensor is alive across two cuts, so the triangle rule holds.
A dynamic program gives the least bottleneck for at most 1, 2, and any number of chips a stage.

A row has these bottlenecks in seconds beside the mean load, and the best that is known without
replication in data/benchmarks/dataset.json. Takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pairs import pairs

from jaxpart import datasets
from jaxpart.arguments import file_path
from jaxpart.cost.host import BoolArray
from jaxpart.environment import environment
from jaxpart.files import write_whole
from jaxpart.problem.problem import FloatArray, Problem

_KNOWN = Path(__file__).parents[2] / "data" / "benchmarks" / "dataset.json"
_BETTER = 0.99  # of a bottleneck, below which another one is better
_STEPS = 40  # halvings of the interval of bottlenecks
_MODULES = ("mcm8", "mcm36")


class Segments(NamedTuple):
    """Segments [i, j) of the program order of N nodes, as arrays [N, N + 1] over i and j.

    Attributes:
      load_s: seconds of compute.
      fits: whether weights and boundary buffers fit on a chip, and no tensor is alive across both
        ends.
      cut_s: [N + 1] seconds that a link takes for the tensors alive at each position.
    """

    load_s: FloatArray
    fits: BoolArray
    cut_s: FloatArray


def main() -> int:
    """Prints a line for each pair, and how many pairs gain; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", nargs="*", metavar="GRAPH", help="default: all that ship")
    parser.add_argument("--mcm", nargs="+", default=_MODULES)
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args()
    known = {
        (row["graph"], row["mcm"]): row.get("bottleneck_s")
        for row in json.loads(_KNOWN.read_bytes())["rows"]
    }
    rows = []
    print(f"{'graph':<22} {'mcm':<6} {'mean us':>10}  T / mean load: known, at most 1, 2, any")
    for graph, mcm in pairs(arguments.graphs or datasets.names(), arguments.mcm):
        row = row_of(Problem.build(graph, mcm), known.get((graph.name, mcm.name)))
        rows.append(row)
        print(line(row), flush=True)
    if arguments.json is not None:
        document = {"environment": environment(), "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode() + b"\n")
    return 0


def row_of(problem: Problem, known_s: float | None) -> dict[str, Any]:
    """The bottlenecks of one pair in seconds; None where no such partition is valid."""
    segments = segments_of(problem)
    any_number = problem.num_chips
    return {
        "graph": problem.graph.name,
        "mcm": problem.mcm.name,
        "mean_load_s": problem.mean_load_s,
        "known_s": known_s,
        "copies_1_s": bottleneck_s(segments, problem.num_chips, 1),
        "copies_2_s": bottleneck_s(segments, problem.num_chips, 2),
        "copies_any_s": bottleneck_s(segments, problem.num_chips, any_number),
    }


def line(row: dict[str, Any]) -> str:
    """A row as text: bottlenecks over the mean load."""
    ratios = [
        f"{row[key] / row['mean_load_s']:8.3f}" if row[key] else f"{'-':>8}"
        for key in ("known_s", "copies_1_s", "copies_2_s", "copies_any_s")
    ]
    return f"{row['graph']:<22} {row['mcm']:<6} {row['mean_load_s'] * 1e6:10.2f} {' '.join(ratios)}"


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For each module: pairs, and geometric means of bottlenecks over the mean load.

    Only pairs with a partition of each kind count; the last figures are on how many of them two
    chips a stage, and any number, beat the best that is known by more than 1%.
    """
    keys = ("known_s", "copies_1_s", "copies_2_s", "copies_any_s")
    lines = []
    for mcm in dict.fromkeys(row["mcm"] for row in rows):
        mine = [row for row in rows if row["mcm"] == mcm and all(row[key] for key in keys)]
        means = [
            statistics.geometric_mean(row[key] / row["mean_load_s"] for row in mine) for key in keys
        ]
        better = [sum(row[key] < _BETTER * row["known_s"] for row in mine) for key in keys[2:]]
        lines.append([mcm, str(len(mine)), *(f"{mean:.3f}" for mean in means), *map(str, better)])
    return lines


def segments_of(problem: Problem) -> Segments:
    """The segments of a problem whose chips are alike, on its first chip."""
    count = problem.num_nodes
    node_s = problem.node_s[:, problem.chip_kind[0]]
    total_s = np.concatenate([[0.0], np.cumsum(node_s)])
    load_s = total_s[None, :] - total_s[:-1, None]
    used = problem.last_consumer > problem.tensor_producer
    first, last = problem.tensor_producer[used], problem.last_consumer[used]
    alive = np.zeros(count + 2)  # a tensor is alive at positions first + 1 to last
    np.add.at(alive, first + 1, problem.tensor_bytes[used])
    np.add.at(alive, last + 1, -problem.tensor_bytes[used])
    alive = np.cumsum(alive)[: count + 1]
    reach = np.zeros(count + 1, np.int64)  # the position behind all consumers of what is alive
    np.maximum.at(reach, first + 1, last + 1)
    reach = np.maximum.accumulate(reach)
    boundary = 2 * (alive[:-1, None] + alive[None, :])
    ends = np.arange(count + 1)
    fits = _weights(problem) + boundary <= problem.capacity_bytes[0]
    fits &= ends[None, :] >= np.maximum(reach[:-1], ends[:-1] + 1)[:, None]
    return Segments(load_s, fits, alive / problem.mcm.link_bandwidth)


def _weights(problem: Problem) -> FloatArray:
    """[N, N + 1] bytes of the weights that the nodes [i, j) use, each once."""
    count = problem.num_nodes
    order = np.lexsort((problem.use_node, problem.use_weight))
    weight, node = problem.use_weight[order], problem.use_node[order]
    previous = np.full(len(node), -1)
    same = weight[1:] == weight[:-1]
    previous[1:][same] = node[:-1][same]
    sizes = problem.weight_bytes[weight]
    result = np.zeros((count, count + 1))
    for i in range(count):
        new = (node >= i) & (previous < i)
        result[i, 1:] = np.cumsum(np.bincount(node[new], sizes[new], count))
    return result


def bottleneck_s(segments: Segments, chips: int, most: int) -> float | None:
    """The least bottleneck in seconds with at most `most` chips for each stage.

    Args:
      segments: of the problem.
      chips: C, the chips of the module.
      most: the most chips of one stage.

    Returns:
      The bottleneck, to one part in 2**40 of the interval; None if no partition fits.
    """
    high = float(max(segments.load_s[0, -1], segments.cut_s.max()))
    if _chips_needed(segments, high, most) > chips:
        return None
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _chips_needed(segments, middle, most) <= chips:
            high = middle
        else:
            low = middle
    return high


def _chips_needed(segments: Segments, limit_s: float, most: int) -> float:
    """The fewest chips for a bottleneck of at most `limit_s`; infinite where there are none."""
    count = len(segments.load_s)
    fewest = np.full(count + 1, math.inf)
    fewest[0] = 0
    cuttable = segments.cut_s[:-1] <= limit_s
    for j in range(1, count + 1):
        if j < count and not cuttable[j]:
            continue
        copies = np.maximum(np.ceil(segments.load_s[:j, j] / limit_s - 1e-9), 1)
        allowed = segments.fits[:j, j] & (copies <= most)
        if allowed.any():
            fewest[j] = np.min((fewest[:j] + copies)[allowed])
    return float(fewest[count])


if __name__ == "__main__":
    sys.exit(main())
