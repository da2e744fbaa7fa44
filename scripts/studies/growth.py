"""Measures time and memory of `auto` against the number of nodes and the number of chips.

The graph is the decoder of `dataset/models/growth.py`. The chips are those of the presets; if
together they cannot hold the weights twice, they get more memory.

  trace s     time to make the graph
  first s     from the call of `partition` until the first valid partition is evaluated
  1% s        from the call until a partition within 1% of the final one, compilation included
  compile s   compilation that the clock of the time limit leaves out
  all s       from the call until `partition` returns
  peak GiB    peak resident memory of the process
  worker GiB  peak resident memory of its largest worker; on Linux this includes the memory that the
              process had when it started the worker
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from child import measure
from quality_figures import exponent
from rows import Row, Rows

_ROW = "{:>7} {:>6} {:>8} {:>8} {:>8} {:>10} {:>8} {:>9} {:>11} {:>6} {:>7}"
_HEAD = (
    *("nodes", "chips", "trace s", "first s", "1% s", "compile s", "all s"),
    *("peak GiB", "worker GiB", "x", "gap %"),
)
# Figures whose exponent is fitted -> factor from the unit of the row to the unit of the table.
FITTED = {
    "trace_s": 1.0,
    "first_s": 1.0,
    "near_s": 1.0,
    "compile_s": 1.0,
    "partition_s": 1.0,
    "peak_bytes": 2.0**-30,
    "worker_peak_bytes": 2.0**-30,
}


def run(
    rows: Rows, nodes: Sequence[int], chips: Sequence[int], base: tuple[int, int], threads: int
) -> None:
    """Measures two sweeps: `nodes` on base[1] chips, and base[0] nodes on `chips`.

    Args:
      rows: sizes that have a row there are not measured again; new rows are added.
      nodes: least numbers of nodes of the first sweep.
      chips: numbers of chips of the second sweep.
      base: nodes of the second sweep, chips of the first.
      threads: cores of each run.
    """
    seconds = rows.settings["growth_seconds"]
    print(_ROW.format(*_HEAD))
    sizes = [*((n, base[1]) for n in nodes), *((base[0], c) for c in chips)]
    for count, c in dict.fromkeys(sizes):
        key = {"part": "growth", "nodes_asked": count, "chips": c}
        row = rows.get(**key)
        if row is None:
            arguments = {"nodes": count, "chips": c, "seconds": seconds, "began": time.time()}
            limit_s = 10 * seconds + 300
            answer = measure("runs", "by_size", arguments, threads=threads, limit_s=limit_s)
            row = {**key, **answer}
            rows.add(row)
        print(_line(row), flush=True)


def sweeps(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Finds the rows of each sweep.

    Args:
      rows: rows of all parts of the benchmark.

    Returns:
      ("nodes" or "chips", rows in ascending order of it). They share the value of the other one
      that most rows have. A sweep of fewer than two sizes is left out.
    """
    measured = [row for row in rows if row.get("part") == "growth" and row.get("first_s")]
    found = []
    for along, fixed in (("nodes", "chips"), ("chips", "nodes_asked")):
        shared = [row[fixed] for row in measured]
        most = max(shared, key=shared.count, default=None)
        chosen = sorted((row for row in measured if row[fixed] == most), key=lambda row: row[along])
        if len({row[along] for row in chosen}) > 1:
            found.append((along, chosen))
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """A table of every size, and of the exponents along each sweep."""
    lines = [_ROW.format(*_HEAD)]
    lines += [_line(row) for row in rows if row.get("part") == "growth"]
    for along, chosen in sweeps(rows):
        powers = {name: power(chosen, along, name) for name in FITTED}
        shown = ("-" if value is None else f"{value:.2f}" for value in powers.values())
        name = f"~{along}^"
        lines.append(_ROW.format(*((name, "") if along == "nodes" else ("", name)), *shown, "", ""))
    return lines


def power(rows: Sequence[Row], along: str, name: str) -> float | None:
    """The exponent of a figure along a sweep.

    Args:
      rows: a sweep; rows without the figure are ignored.
      along: "nodes" or "chips".
      name: the figure.

    Returns:
      The exponent; None for fewer than two sizes.
    """
    points = [(row[along], row[name]) for row in rows if row.get(name)]
    return exponent([size for size, _ in points], [value for _, value in points])


def _line(row: Row) -> str:
    start = (row.get("nodes", row["nodes_asked"]), row["chips"])
    why = next((f"{key}: {row[key]}" for key in ("died", "infeasible") if key in row), None)
    if why is not None:
        return f"{start[0]:>7} {start[1]:>6}  {why}"

    def number(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    figures = (number(row[name], scale, 2) for name, scale in FITTED.items())
    return _ROW.format(
        *start, *figures, number(row["improvement"], 1, 3), number(row["gap"], 100, 2)
    )
