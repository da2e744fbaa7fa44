"""The least bottleneck over chains of ideals, by a dynamic program over the last chip's load.

`bounds/ideals/pairs.py` examines every pair of ideals, because memory and traffic of a segment
depend on both its ends. Two terms of the cost are simpler. Compute is a sum over contracted nodes.
On a chain of chips, the traffic of a cut depends on that cut alone. So for a given T, one number
per ideal and chip is enough: the least compute load of the last chip. That takes I x width x C
steps (the width is the number of contracted nodes that can join an ideal) instead of I x I x C, and
works for millions of ideals.

The program leaves out memory, the triangle rule, and the traffic of other topologies. Each of them
can only make a partition infeasible or slower. Therefore:

1. If T is infeasible here, every valid bottleneck is above T: T is a lower bound.
2. If the chain found here turns out valid when it is evaluated, and its bottleneck is not above T,
   it is optimal up to the gap at which the bisection ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxpart.bounds.ideals.lattice import Lattice
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Relative rounding error allowed for: well above that of a sum of a few thousand float64 values.
_SLACK = 1e-11
# Most entries of the table of ideals and chips: 0.8 GB.
_MOST_ENTRIES = 100_000_000


@dataclasses.dataclass(frozen=True)
class LoadSolution:
    """The outcome of a bisection over T."""

    lower_s: float  # seconds; no valid partition has a smaller bottleneck
    assignment: IntArray | None  # [N] chips of the best chain found; it may break the other rules


class Stages:
    """Tests whether limits on the bottleneck are feasible, for one problem."""

    def __init__(self, problem: Problem, lattice: Lattice) -> None:
        """Computes the load and the cut of each ideal.

        Args:
          problem: of N nodes and C chips.
          lattice: all ideals of its contracted nodes, or those of one order.
        """
        contracted = problem.contracted
        self.problem = problem
        self.lattice = lattice
        self.node_s = np.where(np.isfinite(contracted.node_s), contracted.node_s, np.inf)
        fastest = self.node_s.min(axis=1)
        self.load_s = lattice.sums(fastest)
        # On a chain, everything that crosses a cut uses one link. Other traffic is left out.
        is_chain = problem.mcm.topology == "chain"
        scale = problem.mcm.link_bandwidth if is_chain else math.inf
        self.cut_s = lattice.cut_bytes / scale
        # Covers sorted by their larger ideal; those of ideal i begin at into[i].
        order = np.argsort(lattice.above, kind="stable")
        self.below, self.added = lattice.below[order], lattice.added[order]
        self.above = lattice.above[order]
        self.into = np.searchsorted(self.above, np.arange(len(lattice) + 1))

    def chain(
        self, limit_s: float, give_up: Callable[[], bool] = lambda: False
    ) -> tuple[bool, IntArray | None]:
        """A chain of ideals whose bottleneck is at most a limit.

        Args:
          limit_s: the limit, in seconds.
          give_up: called from time to time; if it returns True, the test stops.

        Returns:
          Whether the answer is known: False if `give_up` stopped the test or the table would be too
          large; and the chain as chips [N], or None if there is none.
        """
        table = self._table(limit_s * (1 + _SLACK), give_up)
        if table is None:
            return False, None
        return True, table.traced()

    def _table(self, limit_s: float, give_up: Callable[[], bool]) -> _Table | None:
        """The filled table of the dynamic program; None if it is too large or was stopped."""
        chips, load = self.problem.num_chips, self.load_s
        # Range of the last chip of each ideal: the load inside needs the chips 0 to `low`, the load
        # outside needs the chips from `high` on.
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
    """The dynamic program's table for one limit.

    Entry [i, j] is the least compute load, in seconds, of chip low[i] + j over all chains within
    the limit that end in ideal i with that chip as the last; inf if there is none.
    """

    stages: Stages
    limit_s: float
    low: IntArray  # [I] chip of column 0
    least: FloatArray  # [I, width]

    def through(self, covers: slice) -> FloatArray:
        """[covers, width] entries of the larger ideals if they grow by each of these covers."""
        stages, width = self.stages, self.least.shape[1]
        problem = stages.problem
        below, above = stages.below[covers], stages.above[covers]
        added = stages.added[covers]
        padded = np.full((len(below), width + 2), np.inf)
        padded[:, 1:-1] = self.least[below]
        is_next = self.low[above] > self.low[below]
        # Entries of the smaller ideals; column j is chip low[above] + j - 1.
        rows = np.where(is_next[:, None], padded[:, 1:], padded[:, :-1])
        chip = np.minimum(self.low[above][:, None] + np.arange(width), problem.num_chips - 1)
        node_s = stages.node_s[added][np.arange(len(added))[:, None], problem.chip_kind[chip]]
        fixed = problem.contracted.fixed_chip[added][:, None]
        node_s = np.where((fixed >= 0) & (fixed != chip), np.inf, node_s)
        same = rows[:, 1:] + node_s
        if problem.mcm.constraints.no_skip:
            is_open = np.isfinite(rows[:, :-1]) & (below > 0)[:, None]
        else:
            # Chips may be idle in between, so the chip before may be any earlier one. The table
            # misses none: a chip before an ideal's first column cannot be its last chip.
            is_open = np.logical_or.accumulate(np.isfinite(rows[:, :-1]), axis=1)
        can_close = stages.cut_s[below] <= self.limit_s
        fresh = np.where(is_open & can_close[:, None], node_s, np.inf)
        values = np.minimum(same, fresh)
        values[values > self.limit_s] = np.inf
        return values

    def traced(self) -> IntArray | None:
        """[N] chips of a chain within the limit, traced back from its end; None if none."""
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
        """The last chip of ideal `below`, from which `node` joined `chip` to give `ideal`."""
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
    """Bisects T between a lower bound and an attained bottleneck until they are within `gap`.

    The first test is just below `upper_s`. If that fails, `upper_s` is proven optimal up to `gap`
    and the bisection ends.

    Args:
      problem: of N nodes and C chips, with acyclic dataflow.
      lattice: all ideals of its contracted nodes.
      lower_s: a lower bound on every valid bottleneck, in seconds.
      upper_s: the bottleneck of a valid partition, or a value above which bounds are not wanted, in
        seconds.
      gap: relative distance of the two at which the bisection ends.
      give_up: called from time to time; if it returns True, the bisection ends with what is proven.
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
