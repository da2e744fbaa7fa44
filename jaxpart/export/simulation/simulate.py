"""Runs a partition as a pipeline: throughput, latency and busy time of finitely many inferences.

`export/simulation/pipeline.py` says what is simulated, and why it reaches 1/T with enough buffers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxpart.cost.evaluate import Costs, score
from jaxpart.cost.verdicts import require_valid
from jaxpart.errors import InputError
from jaxpart.export.simulation import timeline
from jaxpart.export.simulation.pipeline import (
    COMPUTE,
    IN,
    MAX_KEPT,
    OUT,
    Pipeline,
    binding_slots,
    pipeline_of,
    simulated,
)
from jaxpart.files import write_whole
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.results import report
from jaxpart.results.evaluation import rescaling_notes
from jaxpart.results.file import in_node_order

MAX_COUNT = 1_000_000  # inferences
NEAR = 0.05  # of 1/T: how near is near, in `inferences_to_near`
FULL_RATE = 0.999  # of 1/T; from here on, buffers cost no throughput
_SEARCHED_JOBS = 200_000_000  # most jobs that are run to find `inferences_to_near`
_TRACED = 64  # inferences, times the buffers, in which `binding_slots` looks
_TRACED_JOBS = 2**23  # most jobs that are kept for it
_TO = {COMPUTE: "compute", IN: "receive", OUT: "send"}  # what a job that waits is to do
_MIB = 2**20
_STALLS_SHOWN = 3
_LINKS_SHOWN = 6


class Stall(NamedTuple):
    """Full slots that hold the pipeline up."""

    chip: int  # waits for a slot
    to: str  # "compute" or "receive" into its own slots, or "send" into those of a receiver
    receiver: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
    """K inferences through the pipeline of one partition on C chips and L links.

    Shares are of the time of the whole run, fill and drain included.
    """

    problem: Problem
    assignment: IntArray  # [N] chip of each node
    costs: Costs  # of this partition: [C], [L] and scalars
    buffers: int | None  # slots for what a chip sends, and for what it gets from each sender
    start_s: FloatArray  # [K] when the first chip begins each inference
    finish_s: FloatArray  # [K] when the last chip ends it
    compute_share: FloatArray  # [C] of the time in which each chip computes
    in_share: FloatArray  # [C] receives
    out_share: FloatArray  # [C] sends
    link_share: FloatArray  # [L] busy, in the order of `MCM.links`
    compute_stall_share: FloatArray  # [C] could compute, but the slots of what it sends are full
    in_stall_share: FloatArray  # [C] could fetch from a host, but its slots are full
    out_stall_share: FloatArray  # [C] could send, but the slots of a receiver are full
    # The rest is of a run that is long enough to settle, where K is not. The least n such that n
    # inferences, and all larger numbers tried, reach 95% of 1/T with fill and drain; None: no
    # number does, or T is 0.
    inferences_to_near: int | None
    lost_share: float  # of 1/T, by which the pace stays below it
    stalls: tuple[Stall, ...]  # what holds the pace below 1/T, the most frequent first
    notes: tuple[str, ...]  # sentences for the user
    pipeline: Pipeline  # the jobs of one inference

    @property
    def bottleneck_s(self) -> float:
        """T of the cost model, in seconds."""
        return float(self.costs.bottleneck_s)

    @property
    def latency_s(self) -> FloatArray:
        """[K] seconds from start to finish of each inference; it grows while buffers fill."""
        return self.finish_s - self.start_s

    @property
    def throughput_per_s(self) -> float | None:
        """Inferences/s, fill and drain included; None if all costs are zero."""
        total_s = float(self.finish_s[-1])
        return len(self.finish_s) / total_s if total_s else None

    @property
    def steady_per_s(self) -> float | None:
        """Inferences/s over the last half; None for one inference, or if all costs are zero."""
        return _pace_per_s(self.finish_s)

    def summary(self) -> str:
        """A page of text: throughput, latency, stalls, and how busy each chip is."""
        rows = [
            *_rate_rows(self),
            ("latency", _latency(self)),
            *_memory_rows(self),
            ("stalls", _stalls(self)),
            *(("note", note) for note in self.notes),
        ]
        lines = [report.headline(self.problem), "", *report.aligned(rows), "", *_table(self)]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a picture of who is busy when, during the first inferences.

        The ending of `path` decides the kind: .png, .svg or .pdf.

        Raises:
          InputError: `path` has another ending, or its folder cannot be written.
        """
        first = min(len(self.finish_s), timeline.INFERENCES, MAX_KEPT // len(self.pipeline.kind))
        run = simulated(self.pipeline, first, self.buffers or 0, rows=first)
        what = f"the first {_counted(first, 'inference')}, {_slots(self.buffers)}"
        write_whole(path, timeline.draw(self.problem, self.pipeline, run.start_s, what, path))


def simulate(
    graph: Graph,
    mcm: MCM,
    assignment: Sequence[int] | IntArray | Mapping[str, int],
    *,
    count: int = 1000,
    buffers: int | None = 2,
) -> Simulation:
    """Simulates `count` inferences through the pipeline that a valid partition makes.

    All inferences wait at the entrance from the start. The model is that of `pipeline.py`: finite
    buffers, fill, drain and contention for links, in exact event times.

    Args:
      graph: of N nodes.
      mcm: of C chips.
      assignment: [N] chip of each node, or the chip of each node by the node's name.
      count: inferences, 1 to 1,000,000.
      buffers: 1 or more: slots of each chip for what it sends, and for what it receives from each
        sender. The cost model's memory has 2. None: no limit.

    Raises:
      InputError: the partition does not give a chip of the module for each node, is not valid, or
        its chips feed each other in a circle; `count` or `buffers` is out of range.
    """
    problem = Problem.build(graph, mcm)
    if isinstance(assignment, Mapping):
        chips = in_node_order(dict(assignment), graph, mcm, graph.name)
    else:
        chips = problem.assignment_of(assignment)
    costs = score(problem, chips)
    require_valid(problem, chips, costs, graph.name)
    return simulation_of(problem, chips, costs, count, buffers, rescaling_notes(graph, problem))


def simulation_of(
    problem: Problem,
    assignment: IntArray,
    costs: Costs,
    count: int,
    buffers: int | None,
    notes: Sequence[str] = (),
) -> Simulation:
    """Simulates one valid partition of a problem.

    Args:
      problem: of N nodes.
      assignment: [N] chip of each node.
      costs: of this assignment, from `score` in `cost/evaluate.py`.
      count: as for `simulate`.
      buffers: as for `simulate`.
      notes: sentences for the user.

    Raises:
      InputError: chips feed each other in a circle, or `count` or `buffers` is out of range.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"count is {count}, expected 1 to {MAX_COUNT:,} inferences")
    if buffers is not None and buffers < 1:
        raise InputError(f"buffers is {buffers}, expected 1 or more")
    pipeline = pipeline_of(problem, assignment)
    run = simulated(pipeline, count, buffers or 0)
    total_s = float(run.end_s[-1]) or 1.0
    waits = [_on_chips(problem, pipeline, run.wait_s, kind) / total_s for kind in _TO]
    work = (costs.compute_s, costs.in_s, costs.out_s, costs.link_s)
    busy = [np.asarray(seconds) * (count / total_s) for seconds in work]
    return Simulation(
        problem=problem,
        assignment=assignment,
        costs=costs,
        buffers=buffers,
        start_s=run.begin_s,
        finish_s=run.end_s,
        compute_share=busy[0],
        in_share=busy[1],
        out_share=busy[2],
        link_share=busy[3],
        compute_stall_share=waits[0],
        in_stall_share=waits[1],
        out_stall_share=waits[2],
        **_long_run(pipeline, count, buffers or 0, costs)._asdict(),
        notes=tuple(notes),
        pipeline=pipeline,
    )


def _stall(pipeline: Pipeline, waits: int, frees: int) -> Stall:
    """What it means that one job waits for the slot that another one frees."""
    kind, chip = int(pipeline.kind[waits]), int(pipeline.place[waits])
    return Stall(chip, _TO[kind], int(pipeline.place[frees]) if kind == OUT else None)


def _on_chips(problem: Problem, pipeline: Pipeline, per_job: FloatArray, kind: int) -> FloatArray:
    """[C] the sums over the jobs of one kind on each chip."""
    chosen = pipeline.kind == kind
    sums = np.bincount(pipeline.place[chosen], per_job[chosen], problem.num_chips)
    return sums.astype(np.float64)


class _LongRun(NamedTuple):
    """What only a run says that is long enough, whatever the number of inferences asked for."""

    inferences_to_near: int | None
    lost_share: float
    stalls: tuple[Stall, ...]


def _long_run(pipeline: Pipeline, count: int, buffers: int, costs: Costs) -> _LongRun:
    """The fields of `Simulation` of these names.

    Without limits on buffers, n inferences take at most (n - 1) T and the longest path through the
    resources, each of at most T. So 1 / `NEAR` inferences for each resource are enough.
    """
    bottleneck_s = float(costs.bottleneck_s)
    if not bottleneck_s:
        return _LongRun(None, 0.0, ())
    jobs = len(pipeline.kind)
    enough = round(int(pipeline.resource.max() + 1) / NEAR)
    tried = max(count, min(enough, _SEARCHED_JOBS // jobs))
    traced = min(_TRACED * max(buffers, 1), _TRACED_JOBS // jobs)
    run = simulated(pipeline, tried, buffers, rows=traced)
    # Rounding must not tell 1/T from itself.
    late = run.end_s * (1 - NEAR) > np.arange(1, tried + 1) * bottleneck_s * (1 + 1e-9)
    after = int(np.flatnonzero(late)[-1]) + 1 if late.any() else 0
    near = after + 1 if after < tried else None
    lost = max(1 - (_pace_per_s(run.end_s) or 0.0) * bottleneck_s, 0.0)
    if lost <= 1 - FULL_RATE:
        return _LongRun(near, lost, ())
    stalls = [_stall(pipeline, *pair) for pair in binding_slots(pipeline, run)]
    return _LongRun(near, lost, tuple(dict.fromkeys(stalls)))


def _pace_per_s(finish_s: FloatArray) -> float | None:
    """Inferences/s over the last half; None for one inference, or if no time passes."""
    half = len(finish_s) // 2
    last_s = float(finish_s[-1] - finish_s[half - 1]) if half else 0.0
    return (len(finish_s) - half) / last_s if last_s else None


def _rate_rows(simulation: Simulation) -> list[tuple[str, str]]:
    count, buffers = len(simulation.finish_s), simulation.buffers
    rows = [("simulated", f"{_counted(count, 'inference')}, {_slots(buffers)}")]
    bottleneck_s = simulation.bottleneck_s
    overall, steady = simulation.throughput_per_s, simulation.steady_per_s
    if not bottleneck_s or overall is None:
        return [*rows, ("throughput", "none to state: all costs are zero")]
    said = f"{overall:,.6g} inferences/s with fill and drain"
    if steady is not None:
        said += f", {steady:,.6g} in the last half ({100 * steady * bottleneck_s:.2f}% of 1/T)"
    time = report.time_format(bottleneck_s)(bottleneck_s)
    near = simulation.inferences_to_near
    reached = f"from {_counted(near, 'inference')} on" if near else "with no number that was tried"
    return [
        *rows,
        ("throughput", said),
        ("1/T", f"{1 / bottleneck_s:,.6g} inferences/s (bottleneck {time} us)"),
        ("bound by", report.binding(simulation.problem, simulation.costs)),
        ("within 5%", f"of 1/T {reached}, fill and drain included"),
    ]


def _slots(buffers: int | None) -> str:
    return "buffers without limit" if buffers is None else _counted(buffers, "buffer")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _latency(simulation: Simulation) -> str:
    latency_s = simulation.latency_s
    time = report.time_format(simulation.bottleneck_s)
    first, middle, last = float(latency_s[0]), float(np.median(latency_s)), float(latency_s[-1])
    return f"{time(first)} us first, {time(middle)} us median, {time(last)} us last"


def _memory_rows(simulation: Simulation) -> list[tuple[str, str]]:
    """Whether more buffers than the cost model's two fit; nothing where that is no question."""
    problem, costs, buffers = simulation.problem, simulation.costs, simulation.buffers
    mcm = problem.mcm
    if buffers is None or buffers <= 2 or not mcm.constraints.memory or mcm.memory_model != "full":
        return []
    more = (buffers - 2) * (costs.in_s + costs.out_s) * mcm.link_bandwidth
    held = costs.memory_bytes + more
    over = np.flatnonzero(held > problem.capacity_bytes)
    c = int(np.argmax(held / problem.capacity_bytes))
    figures = f"chip {c} needs {held[c] / _MIB:.2f} of {problem.capacity_bytes[c] / _MIB:.2f} MiB"
    if not len(over):
        return [("memory", f"so many buffers fit, fullest: {figures}")]
    chips = _counted(len(over), "chip")
    return [("memory", f"so many buffers do not fit on {chips}, most of all {figures}")]


def _stalls(simulation: Simulation) -> str:
    lost = 100 * simulation.lost_share
    if lost <= 100 * (1 - FULL_RATE):
        return "none that cost throughput"
    if not simulation.stalls:
        return f"no slot, but links that inferences cross twice: {lost:.2f}% below 1/T"
    shown = [
        f"chip {stall.chip} to {stall.to}"
        + ("" if stall.receiver is None else f" to chip {stall.receiver}")
        for stall in simulation.stalls[:_STALLS_SHOWN]
    ]
    more = len(simulation.stalls) - len(shown)
    tail = f" (and {more} more)" if more else ""
    return f"full buffers cost {lost:.2f}% of 1/T; waiting: {', '.join(shown)}{tail}"


def _table(simulation: Simulation) -> list[str]:
    """How busy each chip in use is, and how long it waits for slots, in % of the time."""
    mcm = simulation.problem.mcm
    is_chain = mcm.topology == "chain"
    columns = [simulation.compute_share, simulation.in_share, simulation.out_share]
    columns += [np.append(simulation.link_share, np.nan)] if is_chain else []
    columns += [simulation.compute_stall_share]
    columns += [simulation.in_stall_share] if mcm.topology == "host" else []
    columns += [simulation.out_stall_share]
    names = ["compute", "in", "out", *(["link"] if is_chain else []), "compute waits"]
    names += ["in waits", "out waits"] if mcm.topology == "host" else ["out waits"]
    rows = [["chip", *names, ""], ["", *["%"] * len(names), ""]]
    for c in np.unique(simulation.assignment).tolist():
        shares = [float(column[c]) for column in columns]
        cells = ["" if np.isnan(share) else f"{100 * share:.1f}" for share in shares]
        rows.append([str(c), *cells, ""])
    lines = report.columns(rows)
    if simulation.buffers is not None:
        lines.append("waits: for a free slot; before the bottleneck they cost nothing")
    if mcm.topology == "mesh" and len(mcm.links):
        order = np.argsort(-simulation.link_share, kind="stable")[:_LINKS_SHOWN]
        busiest = [
            f"{mcm.links[i][0]}>{mcm.links[i][1]} {100 * simulation.link_share[i]:.1f}"
            for i in order
            if simulation.link_share[i] > 0
        ]
        lines += ["", f"busiest links, %: {', '.join(busiest) or 'none'}"]
    return lines
