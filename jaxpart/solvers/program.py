"""An integer program over the chips of contracted nodes, and functions to state its rows.

The chip of a contracted node is in prefix form, z[b, c] = [f(b) >= c]. All other columns are
continuous and bounded from below only, by rows that are exact where the bits are integers. So
`Program.point` completes a partition to a point of the program without a solver, by the least value
of each column. These rows exclude no partition.

The program is plain data, so any solver can take it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from jaxpart.problem.problem import FloatArray, IntArray

Terms = list[tuple[int, float]]  # (column, coefficient)

ONE = 0  # the column with the value 1
ZERO = -1  # stands for the value 0; it has no column


class Program:
    """Columns and rows (sum of terms <= upper) for contracted nodes with low <= f <= high.

    Attributes:
      low, high: [M] the least and greatest chip of each contracted node.
      lower, upper, integer: bounds and kind of each column. Column 0 is the constant one; the bits
        follow.
      rows, row_upper: terms and right-hand side of each row.
      objective: column -> coefficient, to be minimised.
      objective_constant: added to the objective.
      is_infeasible: whether a row without columns is broken, or some low > high.
    """

    def __init__(self, low: IntArray, high: IntArray) -> None:
        """States only bits that are monotone in c.

        Args:
          low: [M] lowest chip of each contracted node.
          high: [M] highest chip of each contracted node.
        """
        self.low, self.high = low, high
        self.lower, self.upper, self.integer = [1.0], [1.0], [False]
        self.rows: list[Terms] = []
        self.row_upper: list[float] = []
        self.objective: dict[int, float] = {}
        self.objective_constant = 0.0
        self.is_infeasible = bool((low > high).any())
        self._lower_terms: dict[int, list[Terms]] = {}  # the column is at least each of these
        self._low, self._high = low.tolist(), high.tolist()
        levels = np.maximum(high - low, 0)
        start = np.cumsum(levels) - levels
        self._bit_contracted = np.repeat(np.arange(len(levels)), levels)
        self._bit_level = np.arange(levels.sum()) + np.repeat(low + 1 - start, levels)
        self._first = (start - low).tolist()  # first[b] + c is the column of [f(b) >= c]
        count = len(self._bit_contracted)
        self.lower += [0.0] * count
        self.upper += [1.0] * count
        self.integer += [True] * count
        for b, c in zip(self._bit_contracted.tolist(), self._bit_level.tolist(), strict=True):
            self.add_row([(self.z(b, c), 1.0), (self.z(b, c - 1), -1.0)], 0.0)

    # From the values of columns to a partition, and back.

    def assignment(self, values: Sequence[float] | FloatArray) -> IntArray:
        """Returns [M] the chips of a point, given the value of each column; bits are rounded."""
        f = self.low.copy()
        bits = np.round(np.asarray(values)[1 : 1 + len(self._bit_contracted)]).astype(np.int64)
        np.add.at(f, self._bit_contracted, bits)
        return f

    def contains(self, f: IntArray) -> bool:
        """Whether the partition f [M] lies between the bounds."""
        return bool(((f >= self.low) & (f <= self.high)).all())

    def point(self, f: IntArray) -> FloatArray:
        """Returns [columns] the point of a partition.

        Each column that is not a bit takes the least value that the rows allow.

        Args:
          f: [M] chips between the bounds.
        """
        bits = len(self._bit_contracted)
        values = [1.0, *(f[self._bit_contracted] >= self._bit_level).astype(np.float64).tolist()]
        for column in range(1 + bits, len(self.lower)):
            least = self.lower[column]
            for terms in self._lower_terms[column]:
                least = max(least, sum(a * values[j] for j, a in terms))
            values.append(least)
        return np.array(values)

    def seek_nearest(self, contraction: IntArray, y: IntArray, weights: FloatArray) -> None:
        """Makes the objective the sum over nodes of weight * |f - y|.

        Args:
          contraction: [N] the contracted node of each node.
          y: [N] target chips, 0 or more.
          weights: [N] cost of moving each node by one chip.
        """
        self.objective_constant = float((weights * np.abs(self.low[contraction] - y)).sum())
        total = np.bincount(contraction, weights, len(self.low))
        order = np.lexsort((y, contraction))
        before = np.concatenate([[0.0], np.cumsum(weights[order])])
        width = int(max(self.high.max(), y.max())) + 1
        key = contraction[order] * width + y[order]
        start = np.searchsorted(key, self._bit_contracted * width)
        middle = np.searchsorted(key, self._bit_contracted * width + self._bit_level)
        # A bit [f(b) >= c] that is one adds the weight of targets below c and saves that of others.
        below = before[middle] - before[start]
        self.objective = dict(enumerate((2 * below - total[self._bit_contracted]).tolist(), 1))

    # Terms and rows.

    def z(self, b: int, c: int) -> int:
        """The column of [f(b) >= c]; `ONE` or `ZERO` where the bounds decide it."""
        if c <= self._low[b]:
            return ONE
        if c > self._high[b]:
            return ZERO
        return self._first[b] + c

    def on(self, b: int, c: int, scale: float = 1.0) -> Terms:
        """Returns terms for [f(b) = c], times `scale`."""
        if not self.may_be_on(b, c):
            return []
        here, beyond = self.z(b, c), self.z(b, c + 1)
        return [(here, scale)] if beyond == ZERO else [(here, scale), (beyond, -scale)]

    def may_be_on(self, b: int, c: int) -> bool:
        """Whether the bounds let contracted node b be on chip c."""
        return self._low[b] <= c <= self._high[b]

    def may_be_off(self, b: int, c: int) -> bool:
        """Whether the bounds let contracted node b be on a chip other than c."""
        return not self._low[b] == self._high[b] == c

    def add_column(self, lower: float, upper: float) -> int:
        """Adds a continuous column with these bounds and returns its number."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(False)
        column = len(self.lower) - 1
        self._lower_terms[column] = []
        return column

    def add_row(self, terms: Iterable[tuple[int, float]], upper: float) -> None:
        """States that the terms sum to at most `upper`."""
        total: dict[int, float] = defaultdict(float)
        for column, coefficient in terms:
            if column != ZERO:
                total[column] += coefficient
        upper -= total.pop(ONE, 0.0)
        row = [(j, a) for j, a in total.items() if a != 0]
        if row:
            self.rows.append(row)
            self.row_upper.append(upper)
        elif upper < -1e-12:
            self.is_infeasible = True

    def at_least(self, column: int, terms: Terms) -> None:
        """States that a column, not a bit, is at least the terms; they use earlier columns only."""
        kept = [(j, a) for j, a in terms if j != ZERO]
        self._lower_terms[column].append(kept)
        self.add_row([*kept, (column, -1.0)], 0.0)

    def maximum(self, choices: Iterable[Terms]) -> Terms:
        """Returns terms that are at least 0 and at least each choice.

        Args:
          choices: terms, none ever more than 1 at integer bits.
        """
        kept: list[Terms] = []
        for choice in choices:
            terms = [(j, a) for j, a in choice if j != ZERO]
            ends = [(a * self.lower[j], a * self.upper[j]) for j, a in terms]
            if sum(min(pair) for pair in ends) >= 1:
                return [(ONE, 1.0)]
            if sum(max(pair) for pair in ends) > 0 and terms not in kept:
                kept.append(terms)
        if not kept:
            return []
        if len(kept) == 1 and all(a > 0 for _, a in kept[0]):
            return kept[0]
        column = self.add_column(0.0, 1.0)
        for terms in kept:
            self.at_least(column, terms)
        return [(column, 1.0)]
