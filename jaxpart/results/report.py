"""The text report on a partition: costs, a table of the chips, and the binding resources.

A resource is binding if it takes as long as the bottleneck. Times are in us, sizes in MiB. The text
is plain, with at most about 100 columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxpart.bounds.hints import graph_hints, triangle_hint
from jaxpart.cost.verdicts import verdicts
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.text import name_of, one_line

if TYPE_CHECKING:
    from jaxpart.cost.evaluate import Costs
    from jaxpart.results.scored import ScoredPartition

_MIB = 2**20
PROVEN_GAP = 1e-4  # largest gap that the report calls "proven optimal"
_BINDING_SHARE = 1 - 1e-9  # of the bottleneck; from here on, a resource is binding
_FULL_SHARE = 0.95  # of a chip's capacity; from here on, the table says "memory full"
_MEMORY_BINDS = 0.98  # of a chip's capacity; above it, `binding_kind` says "+mem"
_LINKS_SHOWN = 6  # most links in one line


def summary(scored: ScoredPartition, search: str, split: Sequence[str] = ()) -> str:
    """The report on a result.

    Args:
      scored: the result.
      search: how it was found, in words.
      split: how operations were split, in sentences; none: they were not.
    """
    problem = scored.problem
    time = time_format(scored.bottleneck_s)
    rows = [
        *_rows_of(scored),
        ("improvement", _improvement(scored, time)),
        *(("" if i else "split", sentence) for i, sentence in enumerate(split)),
        ("lower bound", _bound(scored, time, is_split=bool(split))),
        ("search", search),
        *(("note", note) for note in (*scored.notes, *_hints(scored))),
    ]
    return "\n".join([headline(problem), "", *aligned(rows), "", *_tables(scored)])


def evaluation(scored: ScoredPartition) -> str:
    """The report on any partition, valid or not, with the verdict of every rule."""
    problem = scored.problem
    time = time_format(scored.bottleneck_s)
    rows = [("verdict", "valid" if scored.valid else "NOT VALID"), *_rows_of(scored)]
    if scored.valid:
        rows.append(("improvement", _improvement(scored, time)))
    rows.append(("lower bound", f"{time(scored.lower_bound_s)} us ({scored.bound_method})"))
    rows += [("note", note) for note in (*scored.notes, *_hints(scored))]
    rules = [
        (v.rule, "ok" if v.holds else "BROKEN" if v.is_on else "off, does not hold", v.detail)
        for v in verdicts(problem, scored.assignment, scored.costs)
    ]
    parts = [headline(problem), "", *aligned(rows), "", *aligned(rules), ""]
    return "\n".join([*parts, *_tables(scored)])


def headline(problem: Problem) -> str:
    """Two lines: the graph, and the module."""
    graph = problem.graph
    what = (
        f"{name_of(graph.name)}: {len(graph.nodes):,} nodes, {graph.num_edges:,} edges, "
        f"{_significant(graph.total_flops / 1e9)} GFLOP, "
        f"weights {_significant(graph.weight_bytes / _MIB)} MiB"
    )
    if graph.element_bytes is not None:
        what += f", {graph.element_bytes:g}-byte elements"
    return f"{what}\n{module_line(problem.mcm)}"


def module_line(mcm: MCM) -> str:
    """One line on a module."""
    shape = f"{mcm.rows}x{mcm.cols} mesh" if mcm.topology == "mesh" else mcm.topology
    sizes = _range([chip.sram_bytes / _MIB for chip in mcm.chips])
    peaks = _range([chip.peak_flops * chip.speed / 1e12 for chip in mcm.chips])
    return (
        f"{name_of(mcm.name)}: {mcm.num_chips} chips ({shape}), {peaks} TFLOP/s and {sizes} "
        f"MiB each, links {_significant(mcm.link_bandwidth / 1e9)} GB/s, "
        f"{'overlapped' if mcm.overlap else 'serial'} transfers"
    )


def binding(problem: Problem, costs: Costs) -> str:
    """The first binding resource, and how many others are binding."""
    limit = float(costs.bottleneck_s) * _BINDING_SHARE
    if limit == 0:
        return "nothing (all costs are zero)"
    busy = []
    for c in range(problem.num_chips):
        busy += [f"{part} of chip {c}" for part in _binding_parts(problem.mcm, costs, c)]
    busy += [
        f"link {a} -> {b}"
        for (a, b), seconds in zip(problem.mcm.links, costs.link_s, strict=True)
        if seconds >= limit
    ]
    return busy[0] + (f" (and {len(busy) - 1} more as busy)" if len(busy) > 1 else "")


def binding_kind(problem: Problem, costs: Costs) -> str:
    """What sets the bottleneck: "compute" or "links"; "+mem" if the memory of a chip is full."""
    limit_s = float(costs.bottleneck_s) * _BINDING_SHARE
    kind = "compute" if float(np.max(costs.compute_s)) >= limit_s else "links"
    full = np.asarray(costs.memory_bytes) / problem.capacity_bytes
    return f"{kind}+mem" if problem.mcm.constraints.memory and full.max() > _MEMORY_BINDS else kind


def chip_table(problem: Problem, assignment: IntArray, costs: Costs) -> str:
    """A table with one row per chip in use: nodes, times, memory, and what binds.

    On a chain, the column `link` is the link to the next chip. `load` is the time of the stage, or
    of that link if it is longer, as a share of the bottleneck. `full` is memory as a share of the
    capacity.

    Args:
      problem: of N nodes and C chips.
      assignment: [N] chip of each node.
      costs: of this one candidate.
    """
    bottleneck_s = float(costs.bottleneck_s)
    time = time_format(bottleneck_s)
    is_chain = problem.mcm.topology == "chain"
    header = ["chip", "nodes", "compute", "in", "out", *(["link"] if is_chain else []), "stage"]
    header += ["load", "memory", "full", "binds"]
    units = ["", "", "us", "us", "us", *(["us"] if is_chain else []), "us", "%", "MiB", "%", ""]
    counts = np.bincount(assignment, minlength=problem.num_chips)
    rows = []
    for c in np.flatnonzero(counts).tolist():
        link = [float(costs.link_s[c])] if is_chain and c < problem.num_chips - 1 else []
        load = max(float(costs.stage_s[c]), *link, 0.0) / bottleneck_s if bottleneck_s else 0.0
        full = float(costs.memory_bytes[c]) / problem.capacity_bytes[c]
        marks = _binding_parts(problem.mcm, costs, c)
        if link and bottleneck_s and link[0] >= bottleneck_s * _BINDING_SHARE:
            marks.append("link")
        if full > 1:
            marks.append("memory over")
        elif full >= _FULL_SHARE:
            marks.append("memory full")
        rows.append(
            [
                str(c),
                str(counts[c]),
                *(time(float(x[c])) for x in (costs.compute_s, costs.in_s, costs.out_s)),
                *([time(link[0]) if link else ""] if is_chain else []),
                time(float(costs.stage_s[c])),
                f"{100 * load:.1f}",
                f"{costs.memory_bytes[c] / _MIB:.2f}",
                f"{100 * full:.1f}",
                "<- " + ", ".join(marks) if marks else "",
            ]
        )
    unused = np.flatnonzero(counts == 0)
    tail = [f"no nodes on chip{'s' * (len(unused) > 1)} {_spans(unused)}"] if len(unused) else []
    return "\n".join([*columns([header, units, *rows]), *tail])


def link_lines(problem: Problem, costs: Costs) -> list[str]:
    """Lines on the busiest links of a mesh; none for other topologies.

    On a chain, `chip_table` has the links; a host has none.
    """
    if problem.mcm.topology != "mesh" or not problem.mcm.links:
        return []
    bottleneck_s = float(costs.bottleneck_s)
    time = time_format(bottleneck_s)
    busiest = [k for k in np.argsort(-costs.link_s, kind="stable") if costs.link_s[k] > 0]
    shown = ", ".join(
        f"{problem.mcm.links[k][0]}>{problem.mcm.links[k][1]} {time(float(costs.link_s[k]))}"
        for k in busiest[:_LINKS_SHOWN]
    )
    used = f"links: {len(busiest)} of {len(problem.mcm.links)} in use"
    return ["", f"{used}; busiest, us: {shown}" if shown else used]


def _hints(scored: ScoredPartition) -> list[str]:
    """What may hold the partition back, and what a user can do about it."""
    binding = triangle_hint(scored.problem, scored.bottleneck_s) if scored.valid else None
    return [*graph_hints(scored.problem), *([binding] if binding else [])]


def _tables(scored: ScoredPartition) -> list[str]:
    table = chip_table(scored.problem, scored.assignment, scored.costs)
    return [table, *link_lines(scored.problem, scored.costs)]


def _rows_of(scored: ScoredPartition) -> list[tuple[str, str]]:
    problem, costs, bottleneck_s = scored.problem, scored.costs, scored.bottleneck_s
    speed = f", {1 / bottleneck_s:,.6g} inferences/s" if bottleneck_s else ""
    used = f"{scored.chips_used} of {problem.num_chips}"
    return [
        ("bottleneck", f"{time_format(bottleneck_s)(bottleneck_s)} us{speed}"),
        ("bound by", binding(problem, costs)),
        ("chips used", f"{used}, {_significant(float(costs.sent_bytes) / _MIB)} MiB sent"),
    ]


def _improvement(scored: ScoredPartition, time: Callable[[float], str]) -> str:
    ratio, baseline_s = scored.improvement, scored.baseline_s
    if baseline_s is None:
        return "none to state: the greedy heuristic finds nothing valid here"
    if ratio is None:
        return "none to state: the bottleneck is zero"
    return f"{ratio:.3f}x over greedy ({time(baseline_s)} us), {100 * (ratio - 1):+.1f}% throughput"


def _bound(scored: ScoredPartition, time: Callable[[float], str], *, is_split: bool) -> str:
    text = f"{time(scored.lower_bound_s)} us ({scored.bound_method})"
    if scored.gap is None:
        return text
    if scored.gap <= PROVEN_GAP:
        verdict = "optimal for these parts and copies" if is_split else "proven optimal"
        return f"{text}, gap {100 * scored.gap:.3f}%: {verdict}"
    return f"{text}, gap {100 * scored.gap:.2f}%"


def _binding_parts(mcm: MCM, costs: Costs, c: int) -> list[str]:
    """The binding parts of the stage of chip c: compute, in, out."""
    bottleneck_s = float(costs.bottleneck_s)
    limit = bottleneck_s * _BINDING_SHARE
    parts = [("compute", costs.compute_s[c]), ("in", costs.in_s[c]), ("out", costs.out_s[c])]
    if bottleneck_s == 0 or costs.stage_s[c] < limit:
        return []
    if not mcm.overlap:
        return [" + ".join(name for name, seconds in parts if seconds > 0)]
    return [name for name, seconds in parts if seconds >= limit]


def time_format(bottleneck_s: float) -> Callable[[float], str]:
    """A function from seconds to text in us; it shows about five digits of the bottleneck."""
    whole = math.floor(math.log10(bottleneck_s * 1e6)) if bottleneck_s > 0 else 4
    decimals = min(max(4 - whole, 0), 6)
    return lambda seconds: f"{seconds * 1e6:.{decimals}f}"


def _significant(value: float) -> str:
    return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return _significant(low) if low == high else f"{_significant(low)} to {_significant(high)}"


def _spans(numbers: IntArray) -> str:
    """Ascending numbers as text; a run is shortened: 3-5, 9."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with left-aligned columns; the last one is not padded."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with right-aligned columns; the last one is left-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.rjust, row, widths), row[-1]]).rstrip() for row in rows]
