"""How throughput depends on the module: on the number of chips, and on each of its resources.

A partition for n chips is one for n + 1, and two neighbours of it merged are a start for n - 1. So
counts of chips are searched from the most to the fewest, each from what the last one found.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxpart.cost.host import bottleneck_s, memory_bytes
from jaxpart.engine import partition
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results import report
from jaxpart.results.ratios import gap_of, throughput_of
from jaxpart.results.result import Result
from jaxpart.text import one_line

if TYPE_CHECKING:
    import os

    from jaxpart.methods.policy.checkpoint import Policy

_SECONDS_A_COUNT = 5.0  # of the default time limit
# Shares of the time for the first count and for the doubled resources.
_FIRST_SHARE, _DOUBLED_SHARE = 0.2, 0.2
_LEAST_S = 0.5  # that a search is worth


@dataclasses.dataclass(frozen=True)
class ChipsRow:
    """The best partition found on the first chips of a module.

    Attributes:
      chips: how many chips the partition may use.
      bottleneck_s: T; None: nothing valid was found.
      lower_bound_s: no valid partition on so many chips has a smaller bottleneck; 0: none is known;
        inf: no partition is valid.
      chips_used: how many of them it uses.
      binds: "compute" or "links", with "+mem" where the memory of a chip is full.
      assignment: [N] chip of each node.
      why: why there is no partition; empty where there is one.
    """

    chips: int
    bottleneck_s: float | None
    lower_bound_s: float
    chips_used: int = 0
    binds: str = ""
    assignment: IntArray | None = None
    why: str = ""

    @property
    def is_infeasible(self) -> bool:
        """Whether no partition on so many chips is valid."""
        return math.isinf(self.lower_bound_s)

    @property
    def gap(self) -> float | None:
        """T / lower bound - 1; None if there is no partition or no bound."""
        return None if self.bottleneck_s is None else gap_of(self.bottleneck_s, self.lower_bound_s)


@dataclasses.dataclass(frozen=True)
class DoubledRow:
    """What twice as much of one resource of every chip or link brings.

    Attributes:
      resource: its name.
      same_s: T of the partition that was the best without it.
      searched_s: T of the best found with it, from that partition on.
    """

    resource: str
    same_s: float
    searched_s: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Throughput by number of chips, and by resource.

    Attributes:
      problem: the graph on the whole module.
      rows: a row for each number of chips, ascending. T never rises and bounds never fall with it.
      doubled: a row for each resource, on the most chips; none where nothing was found there.
      wall_s: how long it took.
      interrupted: whether the user ended it; some rows then lack a search of their own.
    """

    problem: Problem
    rows: tuple[ChipsRow, ...]
    doubled: tuple[DoubledRow, ...]
    wall_s: float
    interrupted: bool = False

    def fewest(self, rate_per_s: float) -> ChipsRow | None:
        """The row with the fewest chips whose partition reaches a rate; None: none reaches it.

        Args:
          rate_per_s: wanted inferences/s.
        """
        return next((row for row in self.rows if _reaches(row, rate_per_s)), None)

    def summary(self, rate_per_s: float | None = None) -> str:
        """A page of text: a table of chips, one of resources, and the answer for a wanted rate.

        Args:
          rate_per_s: wanted inferences/s; None: no answer.
        """
        parts = [report.headline(self.problem), "", *_chips_table(self.rows)]
        if self.doubled:
            parts += ["", *_doubled_table(self.rows[-1], self.doubled)]
        if self.interrupted:
            parts += ["", "interrupted: some numbers of chips have no search of their own"]
        if rate_per_s is not None:
            parts += ["", _answer(self, rate_per_s)]
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The tables as plain data, for JSON."""
        return {
            "graph": self.problem.graph.name,
            "graph_sha256": self.problem.graph.sha256,
            "mcm": self.problem.mcm.description(),
            "chips": [
                {
                    "chips": row.chips,
                    "bottleneck_s": row.bottleneck_s,
                    "throughput_per_s": None
                    if row.bottleneck_s is None
                    else throughput_of(row.bottleneck_s),
                    "lower_bound_s": None if row.is_infeasible else row.lower_bound_s,
                    "infeasible": row.is_infeasible,
                    "chips_used": row.chips_used,
                    "binds": row.binds,
                }
                for row in self.rows
            ],
            "doubled": [dataclasses.asdict(row) for row in self.doubled],
            "wall_s": self.wall_s,
        }


def sweep(
    graph: Graph,
    mcm: MCM,
    chips: Sequence[int] | None = None,
    *,
    time_limit_s: float | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    method: str = "auto",
    policy: str | os.PathLike[str] | Policy | None = None,
    callback: Callable[[int], None] | None = None,
) -> Sweep:
    """The best throughput on the first n chips of a module, for several n, and what binds it.

    Args:
      graph: of N nodes.
      mcm: a module of C chips, chain or host.
      chips: numbers of chips, 1 to C. None: all of them.
      time_limit_s: for all searches together. None: 5 seconds for each number of chips, or no limit
        where `max_samples` is given.
      max_samples: of each search: same seed, same answer. None: no limit.
      seed: of the searches.
      method: as in `partition`.
      policy: as in `partition`.
      callback: called with the number of searches that have ended.

    Raises:
      InputError: bad arguments, or the module is a mesh.
      KeyboardInterrupt: interrupted.
    """
    counts = _checked(mcm, chips)
    began_s = time.monotonic()
    if time_limit_s is None and max_samples is None:
        time_limit_s = _SECONDS_A_COUNT * len(counts)
    ends_s = math.inf if time_limit_s is None else began_s + time_limit_s
    run = functools.partial(
        partition, graph, method=method, max_samples=max_samples, seed=seed, policy=policy
    )
    searches = _Searches(run, is_timed=time_limit_s is not None, callback=callback)
    doubled_s = _DOUBLED_SHARE * time_limit_s if time_limit_s is not None else 0.0
    found: dict[int, ChipsRow] = {}
    start: IntArray | None = None
    for left, n in zip(range(len(counts), 0, -1), reversed(counts), strict=True):
        if searches.interrupted:
            found[n] = ChipsRow(n, None, 0.0, why="interrupted")
            continue
        share = max(1 / left, _FIRST_SHARE if n == counts[-1] else 0.0)
        module = first_chips(mcm, n)
        start = _merged(Problem.build(graph, module), start)
        try:
            spare_s = ends_s - doubled_s - time.monotonic()
            found[n] = _row(searches.best(module, start, share * spare_s), n)
            start = found[n].assignment
        except NothingFoundError:
            found[n] = ChipsRow(n, None, 0.0, why="nothing found in time")
            start = None
        except InfeasibleError as error:
            # What so many chips cannot do, fewer cannot either.
            found |= {m: ChipsRow(m, None, math.inf, why=str(error)) for m in counts if m <= n}
            break
    rows = _closed([found[n] for n in counts])
    doubled = _doubled(graph, first_chips(mcm, counts[-1]), rows[-1], searches, ends_s)
    return Sweep(
        Problem.build(graph, mcm), rows, doubled, time.monotonic() - began_s, searches.interrupted
    )


class _Searches:
    """Searches on modules of one graph, one after the other.

    Attributes:
      interrupted: whether the user interrupted one of them.
    """

    def __init__(
        self,
        run: Callable[..., Result],
        *,
        is_timed: bool,
        callback: Callable[[int], None] | None,
    ) -> None:
        self.interrupted = False
        self._run, self._is_timed, self._callback = run, is_timed, callback
        self._done = 0

    def best(self, mcm: MCM, start: IntArray | None, seconds: float) -> Result:
        """The best partition on a module, from a start [N] on; errors are those of `partition`."""
        limit_s = max(seconds, _LEAST_S) if self._is_timed else None
        try:
            result = self._run(mcm, time_limit_s=limit_s, initial_assignment=start)
        finally:
            self._done += 1
            if self._callback is not None:
                self._callback(self._done)
        self.interrupted |= result.search.interrupted
        return result


def first_chips(mcm: MCM, count: int) -> MCM:
    """The module of the first chips of a chain or host."""
    return dataclasses.replace(mcm, chips=mcm.chips[:count])


def _checked(mcm: MCM, chips: Sequence[int] | None) -> list[int]:
    """The numbers of chips, ascending, each once."""
    if mcm.topology == "mesh":
        raise InputError(f"{mcm.name} is a mesh, expected a chain or a host")
    counts = sorted(set(range(1, mcm.num_chips + 1) if chips is None else chips))
    if not counts:
        raise InputError("chips is empty, expected numbers of chips")
    for n in (counts[0], counts[-1]):
        if not 1 <= n <= mcm.num_chips:
            raise InputError(f"chips has {n}, expected 1 to {mcm.num_chips}, those of {mcm.name}")
    return counts


def _row(result: Result, chips: int) -> ChipsRow:
    kind = report.binding_kind(result.problem, result.costs)
    return ChipsRow(
        chips,
        result.bottleneck_s,
        result.lower_bound_s,
        result.chips_used,
        kind,
        result.assignment,
    )


def _merged(problem: Problem, assignment: IntArray | None) -> IntArray | None:
    """A start for the problem's C chips, from a partition on more: neighbours become one chip.

    Each time, of the merges of two chips that follow each other, the one with the least bottleneck
    whose memory fits is made; where none fits, the one with the least memory.

    Args:
      problem: of C chips.
      assignment: [N] chips 0 to more than C - 1; None: there is none.

    Returns:
      [N] chips 0 to C - 1.
    """
    if assignment is None:
        return None
    while (most := int(assignment.max()) + 1) > problem.num_chips:
        module = dataclasses.replace(
            problem.mcm, chips=(problem.mcm.chips * most)[: max(most - 1, problem.num_chips)]
        )
        wider = Problem.build(problem.graph, module)
        merges = [assignment - (assignment > c) for c in range(most - 1)]
        over = [float((memory_bytes(wider, f) / wider.capacity_bytes).max()) for f in merges]
        ranks = [(max(o, 1.0), bottleneck_s(wider, f)) for o, f in zip(over, merges, strict=True)]
        assignment = merges[ranks.index(min(ranks))]
    return assignment


def _closed(rows: Sequence[ChipsRow]) -> tuple[ChipsRow, ...]:
    """Rows in ascending order; a partition for fewer chips, or a bound for more, holds here too."""
    closed: list[ChipsRow] = []
    for row in rows:
        before = closed[-1] if closed else None
        if (
            before is not None
            and before.bottleneck_s is not None
            and before.bottleneck_s <= (math.inf if row.bottleneck_s is None else row.bottleneck_s)
        ):
            row = dataclasses.replace(
                before, chips=row.chips, lower_bound_s=row.lower_bound_s, why=""
            )
        closed.append(row)
    for i in range(len(closed) - 2, -1, -1):
        bound_s = max(closed[i].lower_bound_s, closed[i + 1].lower_bound_s)
        closed[i] = dataclasses.replace(closed[i], lower_bound_s=bound_s)
    return tuple(closed)


# What is doubled, by its name: from a module to that with twice as much of it.
RESOURCES: dict[str, Callable[[MCM], MCM]] = {
    "FLOP/s": lambda mcm: _chips_with(mcm, "peak_flops"),
    "SRAM bandwidth": lambda mcm: _chips_with(mcm, "sram_bandwidth"),
    "SRAM size": lambda mcm: _chips_with(mcm, "sram_bytes"),
    "link bandwidth": lambda mcm: dataclasses.replace(mcm, link_bandwidth=2 * mcm.link_bandwidth),
}


def _chips_with(mcm: MCM, field: str) -> MCM:
    """The module with twice as much of one field of every chip."""
    chips = tuple(
        dataclasses.replace(chip, **{field: 2 * getattr(chip, field)}) for chip in mcm.chips
    )
    return dataclasses.replace(mcm, chips=chips)


def _doubled(
    graph: Graph,
    mcm: MCM,
    row: ChipsRow,
    searches: _Searches,
    ends_s: float,
) -> tuple[DoubledRow, ...]:
    if row.assignment is None:
        return ()
    rows = []
    for left, (name, double) in zip(range(len(RESOURCES), 0, -1), RESOURCES.items(), strict=True):
        module = double(mcm)
        same_s = bottleneck_s(Problem.build(graph, module), row.assignment)
        if searches.interrupted:
            break
        result = searches.best(module, row.assignment, (ends_s - time.monotonic()) / left)
        rows.append(DoubledRow(name, same_s, result.bottleneck_s))
    return tuple(rows)


def _reaches(row: ChipsRow, rate_per_s: float) -> bool:
    return row.bottleneck_s is not None and row.bottleneck_s * rate_per_s <= 1


def _chips_table(rows: Sequence[ChipsRow]) -> list[str]:
    most_s = max((row.bottleneck_s or 0.0 for row in rows), default=0.0)
    time_of = report.time_format(most_s)
    best_s = min((row.bottleneck_s for row in rows if row.bottleneck_s is not None), default=0.0)
    lines = [
        ["chips", "used", "bottleneck", "throughput", "of best", "bound", "gap", "binds"],
        ["", "", "us", "inferences/s", "%", "us", "%", ""],
    ]
    for row in rows:
        bound = time_of(row.lower_bound_s) if 0 < row.lower_bound_s < math.inf else ""
        if row.bottleneck_s is None:
            lines.append([str(row.chips), "", "-", "-", "", bound, "", one_line(row.why)])
            continue
        gap = "" if row.gap is None else f"{100 * row.gap:.2f}"
        rate = "" if row.bottleneck_s == 0 else f"{1 / row.bottleneck_s:,.6g}"
        share = "" if row.bottleneck_s == 0 else f"{100 * best_s / row.bottleneck_s:.1f}"
        lines.append(
            [
                *(str(row.chips), str(row.chips_used), time_of(row.bottleneck_s), rate, share),
                *(bound, gap, row.binds),
            ]
        )
    return report.columns(lines)


def _doubled_table(row: ChipsRow, doubled: Sequence[DoubledRow]) -> list[str]:
    base_s = row.bottleneck_s or 0.0
    time_of = report.time_format(base_s)

    def gain(seconds: float) -> str:
        return f"{100 * (base_s / seconds - 1):+.1f}" if seconds else ""

    lines = [
        [f"twice, {row.chips} chips", "same partition", "", "searched again", "", ""],
        ["", "us", "%", "us", "%", ""],
    ]
    for one in doubled:
        lines.append(
            [
                *(one.resource, time_of(one.same_s), gain(one.same_s)),
                *(time_of(one.searched_s), gain(one.searched_s), ""),
            ]
        )
    return report.columns(lines)


def _answer(found: Sweep, rate_per_s: float) -> str:
    """One sentence: the fewest chips for a rate, and what is known of fewer."""
    wanted = f"{rate_per_s:,.6g} inferences/s"
    row = found.fewest(rate_per_s)
    limit_s = 1 / rate_per_s
    possible = [r for r in found.rows if r.lower_bound_s <= limit_s]
    if row is None:
        if not possible:
            return f"{wanted}: proven to be out of reach of these numbers of chips"
        return f"{wanted}: not reached; {possible[0].chips} chips and more are not excluded"
    fewer = [r.chips for r in possible if r.chips < row.chips]
    proof = f"not excluded from {fewer[0]} on" if fewer else "proven to be the fewest of these"
    return f"{wanted}: {row.chips} chips, {proof}"
