"""Lazy constraints: the two rules whose rows would number in the millions.

Rows for the peak of live activations and for the chip triangle are added only where a solution
breaks them. Every row holds for all valid partitions of the window, so bounds stay proofs.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from jaxpart.cost import host
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.minimum_cut import EdgeRule
from jaxpart.solvers.program import ONE, Program, Terms

# Solvers hold rows to about 1e-6; a memory row that a solution breaks by less comes back tighter.
_TOLERANCE = 4e-6


class LazyConstraints:
    """Adds rows for the peak of live activations and the chip triangle to one program.

    Attributes:
      is_relaxed: whether all rows so far hold for every valid partition. No longer so once a memory
        row had to be tightened against a solver's tolerance.
    """

    def __init__(
        self, program: Program, problem: Problem, rule: EdgeRule, held: list[Terms]
    ) -> None:
        """Adds nothing yet.

        Args:
          program: that rows are added to.
          problem: of N nodes.
          rule: what the program's rows ask of every edge.
          held: [C] what each chip holds without the peak, in its capacity; may be filled in later.
        """
        self.is_relaxed = True
        self._program, self._problem = program, problem
        self._rule, self._held = rule, held
        self._peaks: dict[tuple[int, int], _Memory] = {}  # by node (-1: no peak) and chip
        self._paths: set[tuple[int, ...]] = set()  # paths of chips that forbid a chip edge
        self._chip_edges: dict[tuple[int, int], Terms] = {}
        self._live_terms: dict[tuple[int, tuple[int, ...], int], Terms] = {}

    def separate(self, f: IntArray, seen: int) -> bool:
        """As `Model.separate`."""
        rules = self._problem.mcm.constraints
        is_broken = False
        if rules.triangle and self._rule != "span":
            is_broken |= self._separate_triangles(f)
        if rules.memory:
            is_broken |= self._separate_memory(f, seen)
        return is_broken

    def _separate_triangles(self, f: IntArray) -> bool:
        """No chip edge and the steps of a longer path beside it all at once."""
        paths = host.triangle_conflicts(self._problem, f[self._problem.contraction])
        for path in paths:
            if tuple(path) not in self._paths:
                self._paths.add(tuple(path))
                steps = [*itertools.pairwise(path), (path[0], path[-1])]
                terms = [term for a, b in steps for term in self._chip_edge(a, b)]
                self._program.add_row(terms, len(steps) - 1)
        return bool(paths)

    def _chip_edge(self, a: int, b: int) -> Terms:
        """At least [some edge leads from chip a to chip b]."""
        program = self._program
        if (a, b) not in self._chip_edges:
            self._chip_edges[a, b] = program.maximum(
                [*program.on(u, a), *program.on(v, b), (ONE, -1.0)]
                for u, v in self._problem.contracted_pairs.tolist()
                if program.may_be_on(u, a) and program.may_be_on(v, b)
            )
        return self._chip_edges[a, b]

    def _separate_memory(self, f: IntArray, seen: int) -> bool:
        program, problem = self._program, self._problem
        nodes = f[problem.contraction]
        over = np.flatnonzero(host.memory_bytes(problem, nodes) > problem.capacity_bytes).tolist()
        is_full = problem.mcm.memory_model == "full"
        peak_node = host.peak_bytes(problem, nodes)[1] if is_full else None
        for c in over:
            t = -1 if peak_node is None else int(peak_node[c])
            b = problem.contraction[t]
            # Wherever this node goes, so does its peak.
            for chip in range(program.low[b], program.high[b] + 1) if t >= 0 else (c,):
                if (t, chip) not in self._peaks:
                    live = self._live(t, chip) if t >= 0 else []
                    self._state_memory(t, chip, _Memory(self._held[chip] + live))
            if self._peaks[t, c].row < seen:
                self.is_relaxed = False
                margin = max(_TOLERANCE, 4 * self._peaks[t, c].margin)
                self._state_memory(t, c, _Memory(self._peaks[t, c].terms, margin))
        return bool(over)

    def _state_memory(self, t: int, c: int, memory: _Memory) -> None:
        self._peaks[t, c] = memory._replace(row=len(self._program.rows))
        self._program.add_row(memory.terms, 1.0 - memory.margin)

    def _live(self, t: int, c: int) -> Terms:
        """What is alive on chip c while node t runs, in capacities.

        Valid wherever t is: what a chip holds from before t until after it, it also holds while its
        next node runs.
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
        """At most [f(p) = c = f(q)], and equal to it at integers."""
        program = self._program
        if not (program.may_be_on(p, c) and program.may_be_on(q, c)):
            return []
        if self._rule == "none":
            return [*program.on(p, c), *program.on(q, c), (ONE, -1.0)]
        return [(program.z(p, c), 1.0), (program.z(q, c + 1), -1.0)]


class _Memory(NamedTuple):
    """A memory row stated on demand."""

    terms: Terms  # in capacities
    margin: float = 0.0
    row: int = -1
