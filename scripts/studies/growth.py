"""How `auto` grows: seconds and memory against the nodes of a deep decoder, and against chips.

The decoder is that of `dataset/models/growth.py`. Its chips are those of the presets; where so many
would not hold the weights twice over, their memory is larger.

  trace s   making the graph
  first s   from the call of `partition` until the first valid partition is evaluated
  1% s      from there as well, until within 1% of what the run ends with, compilation included
  all s     until `partition` returned
  peak GiB  most resident memory of the process; of its largest worker beside it, which for Linux
            includes what the process held when it started the worker
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
# Figures that have an exponent, with what makes a number of the table of them.
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
    """Measures what is not there yet: `nodes` on base[1] chips, base[0] nodes on `chips`."""
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
    """("nodes" or "chips", rows along it): the most that share the other one, two at least."""
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
    """Every size, and the exponents along each sweep."""
    lines = [_ROW.format(*_HEAD)]
    lines += [_line(row) for row in rows if row.get("part") == "growth"]
    for along, chosen in sweeps(rows):
        powers = {name: power(chosen, along, name) for name in FITTED}
        shown = ("-" if value is None else f"{value:.2f}" for value in powers.values())
        name = f"~{along}^"
        lines.append(_ROW.format(*((name, "") if along == "nodes" else ("", name)), *shown, "", ""))
    return lines


def power(rows: Sequence[Row], along: str, name: str) -> float | None:
    """The exponent of a figure along a sweep, of those rows that have it."""
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
