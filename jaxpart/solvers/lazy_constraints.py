"""Lazy constraints: two rules whose rows would number in the millions.

The rules are the peak of live activations and the chip triangle. Their rows are added only where a
solution breaks them. Every row holds for all valid partitions of the window, so lower bounds stay
proofs; `LazyConstraints.is_relaxed` tells of the one exception.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from jaxpart.cost import host
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.minimum_cut import EdgeRule
from jaxpart.solvers.program import ONE, Program, Terms

# Least margin, in capacities, of a row that a solution breaks; solvers hold rows to about 1e-6.
_LEAST_MARGIN = 4e-6


class LazyConstraints:
    """Adds rows for the peak of live activations and the chip triangle to one program.

    Attributes:
      is_relaxed: whether all rows so far hold for every valid partition. It turns false once a
        memory row is tightened against a solver's tolerance.
    """

    def __init__(
        self, program: Program, problem: Problem, rule: EdgeRule, held: list[Terms]
    ) -> None:
        """Adds no rows yet.

        Args:
          program: gets the rows.
          problem: of N nodes.
          rule: what the program's rows ask of every edge.
          held: [C] memory of each chip without the peak, in capacities; may be filled in later.
        """
        self.is_relaxed = True
        self._program, self._problem = program, problem
        self._rule, self._held = rule, held
        self._memory_rows: dict[tuple[int, int], _MemoryRow] = {}  # by node (-1: no peak) and chip
        self._forbidden_paths: set[tuple[int, ...]] = set()
        self._chip_edges: dict[tuple[int, int], Terms] = {}
        self._live_terms: dict[tuple[int, tuple[int, ...], int], Terms] = {}

    def separate(self, f: IntArray, seen: int) -> bool:
        """See `Model.separate`."""
        rules = self._problem.mcm.constraints
        is_broken = False
        if rules.triangle and self._rule != "span":
            is_broken |= self._separate_triangles(f)
        if rules.memory:
            is_broken |= self._separate_memory(f, seen)
        return is_broken

    def _separate_triangles(self, f: IntArray) -> bool:
        """Returns whether f [M] breaks the triangle rule; adds the rows that forbid it.

        Each row forbids that a chip edge and all steps of a longer path between its ends exist.
        """
        paths = host.triangle_conflicts(self._problem, f[self._problem.contraction])
        for path in paths:
            if tuple(path) not in self._forbidden_paths:
                self._forbidden_paths.add(tuple(path))
                steps = [*itertools.pairwise(path), (path[0], path[-1])]
                terms = [term for a, b in steps for term in self._chip_edge(a, b)]
                self._program.add_row(terms, len(steps) - 1)
        return bool(paths)

    def _chip_edge(self, a: int, b: int) -> Terms:
        """Returns terms that are at least [some edge leads from chip a to chip b]."""
        program = self._program
        if (a, b) not in self._chip_edges:
            self._chip_edges[a, b] = program.maximum(
                [*program.on(u, a), *program.on(v, b), (ONE, -1.0)]
                for u, v in self._problem.contracted_pairs.tolist()
                if program.may_be_on(u, a) and program.may_be_on(v, b)
            )
        return self._chip_edges[a, b]

    def _separate_memory(self, f: IntArray, seen: int) -> bool:
        """Returns whether f [M] exceeds a chip's capacity; adds the rows that forbid it.

        Args:
          f: [M] chips.
          seen: as in `Model.separate`.
        """
        program, problem = self._program, self._problem
        nodes = f[problem.contraction]
        over = np.flatnonzero(host.memory_bytes(problem, nodes) > problem.capacity_bytes).tolist()
        is_full = problem.mcm.memory_model == "full"
        peak_node = host.peak_bytes(problem, nodes)[1] if is_full else None
        for c in over:
            t = -1 if peak_node is None else int(peak_node[c])
            b = problem.contraction[t]
            # The same peak would arise on every chip that this node may be on.
            for chip in range(program.low[b], program.high[b] + 1) if t >= 0 else (c,):
                if (t, chip) not in self._memory_rows:
                    live = self._live(t, chip) if t >= 0 else []
                    self._state_memory(t, chip, _MemoryRow(self._held[chip] + live))
            if self._memory_rows[t, c].row < seen:
                self.is_relaxed = False
                margin = max(_LEAST_MARGIN, 4 * self._memory_rows[t, c].margin)
                self._state_memory(t, c, _MemoryRow(self._memory_rows[t, c].terms, margin))
        return bool(over)

    def _state_memory(self, t: int, c: int, memory: _MemoryRow) -> None:
        """Adds the memory row of node t (-1: no peak) on chip c and notes where it is."""
        self._memory_rows[t, c] = memory._replace(row=len(self._program.rows))
        self._program.add_row(memory.terms, 1.0 - memory.margin)

    def _live(self, t: int, c: int) -> Terms:
        """Returns terms for what is alive on chip c while node t runs, in capacities of c.

        The terms are at most the peak of c, wherever t is:

        1. If t is on c, they are what is alive on c while t runs.
        2. If t is elsewhere, they are the tensors that c holds from before t until after t. All of
           these are also alive while the next node of c runs.
        """
        program, p, contraction = self._program, self._problem, self._problem.contraction
        capacity = p.capacity_bytes[c]
        alive = (p.tensor_producer <= t) & (p.last_consumer >= t) & (p.tensor_bytes > 0)
        terms: Terms = []
        for k in np.flatnonzero(alive).tolist():
            start, stop = np.searchsorted(p.edge_tensor, [k, k + 1])
            later = p.edge_consumer[start:stop]
            producer = int(contraction[p.tensor_producer[k]])
            ends = sorted({int(b) for b in contraction[later[later >= t]]})
            if p.tensor_producer[k] == t or producer in ends:
                live = program.on(producer, c)
            elif program.may_be_on(producer, c):
                key = (producer, tuple(ends), c)
                if key not in self._live_terms:
                    self._live_terms[key] = program.maximum(
                        self._both(producer, q, c) for q in ends
                    )
                live = self._live_terms[key]
            else:
                live = []
            terms += [(j, a * float(p.tensor_bytes[k]) / capacity) for j, a in live]
        return terms

    def _both(self, p: int, q: int, c: int) -> Terms:
        """Returns terms that are at most [f(p) = c = f(q)], and equal to it at integers."""
        program = self._program
        if not (program.may_be_on(p, c) and program.may_be_on(q, c)):
            return []
        if self._rule == "none":
            return [*program.on(p, c), *program.on(q, c), (ONE, -1.0)]
        return [(program.z(p, c), 1.0), (program.z(q, c + 1), -1.0)]


class _MemoryRow(NamedTuple):
    """A memory row of one chip, with the peak at one node."""

    terms: Terms  # memory, in capacities
    margin: float = 0.0  # taken off the right-hand side, in capacities
    row: int = -1  # index of its latest version among the program's rows; -1 before it is added
