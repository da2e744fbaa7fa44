"""The least bottleneck over chains of ideals, one contracted node at a time.

`ideals.solve` weighs every pair of ideals, as memory and traffic of a piece need both its ends.
Compute alone adds up contracted node by contracted node, and on a chain the traffic of a cut
depends on that cut alone. So for a given T it is enough to know, for each ideal and number of
chips, the least load that the last chip can have: I x width x chips steps instead of I x I x chips,
for millions of ideals.

What is left out (memory, triangle rule, traffic of other topologies) makes T infeasible more often,
so a T that is infeasible here is below every valid bottleneck, and a chain that turns out valid
when it is evaluated is optimal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxpart.bounds.ideals.lattice import Lattice
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Relative: what sums of a few thousand float64 can be off by, many times over.
_SLACK = 1e-11
# Entries of the table of ideals and chips: 0.8 GB.
_MOST_ENTRIES = 100_000_000


@dataclasses.dataclass(frozen=True)
class LoadSolution:
    """What a search over T gives. No valid partition is faster than `lower_s`."""

    lower_s: float
    assignment: IntArray | None  # [N] that attains it or nearly, valid in what is counted here


class Stages:
    """Tests of bottlenecks on one problem."""

    def __init__(self, problem: Problem, lattice: Lattice) -> None:
        contracted = problem.contracted
        self.problem = problem
        self.lattice = lattice
        self.node_s = np.where(np.isfinite(contracted.node_s), contracted.node_s, np.inf)
        fastest = self.node_s.min(axis=1)
        self.load_s = lattice.sums(fastest)
        # On a chain, all that crosses a cut crosses one link.
        is_chain = problem.mcm.topology == "chain"
        scale = problem.mcm.link_bandwidth if is_chain else math.inf
        self.cut_s = lattice.cut_bytes / scale
        # Covers by the ideal that they lead to.
        order = np.argsort(lattice.above, kind="stable")
        self.below, self.added = lattice.below[order], lattice.added[order]
        self.above = lattice.above[order]
        self.into = np.searchsorted(self.above, np.arange(len(lattice) + 1))

    def chain(
        self, limit_s: float, give_up: Callable[[], bool] = lambda: False
    ) -> tuple[bool, IntArray | None]:
        """Whether the answer is known, and a chain of ideals, as chips [N], of bottleneck at most
        `limit_s`; None where there is none."""
        table = self._table(limit_s * (1 + _SLACK), give_up)
        if table is None:
            return False, None
        return True, table.traced()

    def _table(self, limit_s: float, give_up: Callable[[], bool]) -> _Table | None:
        chips, load = self.problem.num_chips, self.load_s
        # An ideal of this load needs so many chips, and leaves so many to the rest.
        low = np.maximum(np.ceil(load / limit_s * (1 - _SLACK)) - 1, 0).astype(np.int64)
        rest = (load[-1] - load) / limit_s * (1 - _SLACK)
        high = np.minimum(chips - 1, np.floor(chips - rest)).astype(np.int64)
        width = int((high - low).max()) + 1
        if high[0] < 0 or low[-1] >= chips or width < 1:
            return _Table(self, limit_s, low, np.full((len(load), 1), np.inf))
        if len(load) * width > _MOST_ENTRIES:
            return None
        least = np.full((len(load), width), np.inf)
        least[0, : 1 if self.problem.mcm.constraints.no_skip else max(int(high[0]), 0) + 1] = 0.0
        table = _Table(self, limit_s, low, least)
        starts = self.lattice.layer_start
        for layer in range(1, len(starts) - 1):
            if layer % 16 == 0 and give_up():
                return None
            ideals = np.arange(starts[layer], starts[layer + 1])
            covers = slice(self.into[ideals[0]], self.into[ideals[-1] + 1])
            values = table.through(covers)
            first = self.into[ideals] - covers.start
            best = np.minimum.reduceat(values, first, axis=0)
            chip = low[ideals][:, None] + np.arange(width)
            best[chip > high[ideals][:, None]] = np.inf
            least[ideals] = best
        return table


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """Least seconds [I, width] of the last chip, where that is chip `low` + column."""

    stages: Stages
    limit_s: float
    low: IntArray  # [I]
    least: FloatArray

    def through(self, covers: slice) -> FloatArray:
        """[covers, width] the same by way of each of these covers."""
        stages, width = self.stages, self.least.shape[1]
        problem = stages.problem
        below, above = stages.below[covers], stages.above[covers]
        added = stages.added[covers]
        padded = np.full((len(below), width + 2), np.inf)
        padded[:, 1:-1] = self.least[below]
        is_next = self.low[above] > self.low[below]
        # Column j is chip low[above] + j - 1.
        rows = np.where(is_next[:, None], padded[:, 1:], padded[:, :-1])
        chip = np.minimum(self.low[above][:, None] + np.arange(width), problem.num_chips - 1)
        node_s = stages.node_s[added][np.arange(len(added))[:, None], problem.chip_kind[chip]]
        pin = problem.contracted.fixed_chip[added][:, None]
        node_s = np.where((pin >= 0) & (pin != chip), np.inf, node_s)
        same = rows[:, 1:] + node_s
        if problem.mcm.constraints.no_skip:
            is_open = np.isfinite(rows[:, :-1]) & (below > 0)[:, None]
        else:
            # Some chips may be idle between: any earlier one will do. Those below the window of
            # the larger ideal have no room for it.
            is_open = np.logical_or.accumulate(np.isfinite(rows[:, :-1]), axis=1)
        can_close = stages.cut_s[below] <= self.limit_s
        fresh = np.where(is_open & can_close[:, None], node_s, np.inf)
        values = np.minimum(same, fresh)
        values[values > self.limit_s] = np.inf
        return values

    def traced(self) -> IntArray | None:
        """The chip of each node along one chain that the table stands for."""
        stages = self.stages
        column = int(np.isfinite(self.least[-1]).argmax())
        if not np.isfinite(self.least[-1, column]):
            return None
        chips = np.zeros(stages.problem.num_contracted, np.int64)
        ideal, chip = len(self.least) - 1, int(self.low[-1]) + column
        while ideal > 0:
            covers = slice(stages.into[ideal], stages.into[ideal + 1])
            column = chip - int(self.low[ideal])
            values = self.through(covers)[:, column]
            cover = covers.start + int(values.argmin())
            node, below = int(stages.added[cover]), int(stages.below[cover])
            chips[node] = chip
            chip = self._chip_before(ideal, below, node, chip)
            ideal = below
        return chips[stages.problem.contraction]

    def _chip_before(self, ideal: int, below: int, node: int, chip: int) -> int:
        """The chip that was last before `block` joined, on `chip`."""
        if below == 0:
            return chip
        stages, wanted = self.stages, self.least[ideal, chip - int(self.low[ideal])]
        node_s = stages.node_s[node, stages.problem.chip_kind[chip]]
        column = chip - int(self.low[below])
        row = self.least[below]
        if 0 <= column < len(row) and row[column] + node_s == wanted:
            return chip
        earlier = np.flatnonzero(np.isfinite(row[: max(column, 0)]))
        return int(self.low[below]) + int(earlier[-1])


def least_bottleneck(
    problem: Problem,
    lattice: Lattice,
    lower_s: float,
    upper_s: float,
    *,
    gap: float,
    give_up: Callable[[], bool] = lambda: False,
) -> LoadSolution:
    """Bisects T between a bound and a bottleneck that is attained, until they are within `gap`.

    The first test is just below `upper_s`: where that fails, it is proven and nothing else is to be
    done. Where time runs out the outcome is what was proven by then.
    """
    stages = Stages(problem, lattice)
    found: IntArray | None = None
    limit_s = upper_s / (1 + gap)
    while upper_s > lower_s * (1 + gap):
        is_known, chain = stages.chain(limit_s, give_up)
        if not is_known:
            break
        if chain is None:
            lower_s = max(lower_s, limit_s)
        else:
            found, upper_s = chain, limit_s
        limit_s = min((lower_s + upper_s) / 2, upper_s / (1 + gap))
    return LoadSolution(lower_s, found)
