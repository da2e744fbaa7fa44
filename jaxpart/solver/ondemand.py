"""The two rules whose rows would number in the millions: stated where a solution breaks them.

Every row holds for all valid partitions of the window, so adding one proves nothing less.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpart import exact
from jaxpart.problem import IntArray
from jaxpart.solver.program import ONE, Terms

if TYPE_CHECKING:
    from jaxpart.solver.model import Model

# Solvers hold rows to about 1e-6; a memory row that a solution breaks by less comes back tighter.
_TOLERANCE = 4e-6


class OnDemand:
    """Adds rows for the peak of live activations and the chip triangle to one model.

    Attributes:
      is_relaxed: whether all rows so far hold for every valid partition. No longer so once a memory
        row had to be tightened against a solver's tolerance.
    """

    def __init__(self, model: Model) -> None:
        """Adds nothing yet."""
        self.is_relaxed = True
        self._model = model
        self._peaks: dict[tuple[int, int], _Memory] = {}  # by node (-1: no peak) and chip
        self._paths: set[tuple[int, ...]] = set()  # paths of chips that forbid a chip edge
        self._chip_edges: dict[tuple[int, int], Terms] = {}
        self._lives: dict[tuple[int, tuple[int, ...], int], Terms] = {}

    def separate(self, f: IntArray, seen: int) -> bool:
        """As `Model.separate`."""
        rules = self._model.problem.mcm.constraints
        is_broken = False
        if rules.triangle and self._model.rule != "span":
            is_broken |= self._separate_triangles(f)
        if rules.memory:
            is_broken |= self._separate_memory(f, seen)
        return is_broken

    def _separate_triangles(self, f: IntArray) -> bool:
        """No chip edge and the steps of a longer path beside it all at once."""
        paths = exact.triangle_conflicts(self._model.problem, f[self._model.problem.block])
        for path in paths:
            if tuple(path) not in self._paths:
                self._paths.add(tuple(path))
                steps = [*itertools.pairwise(path), (path[0], path[-1])]
                terms = [term for a, b in steps for term in self._chip_edge(a, b)]
                self._model.add_row(terms, len(steps) - 1)
        return bool(paths)

    def _chip_edge(self, a: int, b: int) -> Terms:
        """At least [some edge leads from chip a to chip b]."""
        model = self._model
        if (a, b) not in self._chip_edges:
            self._chip_edges[a, b] = model.maximum(
                [*model.on(u, a), *model.on(v, b), (ONE, -1.0)]
                for u, v in model.problem.block_pairs.tolist()
                if model.may_be_on(u, a) and model.may_be_on(v, b)
            )
        return self._chip_edges[a, b]

    def _separate_memory(self, f: IntArray, seen: int) -> bool:
        model, problem = self._model, self._model.problem
        nodes = f[problem.block]
        over = np.flatnonzero(exact.memory_bytes(problem, nodes) > problem.capacity_bytes).tolist()
        is_full = problem.mcm.memory_model == "full"
        peak_node = exact.peak_bytes(problem, nodes)[1] if is_full else None
        for c in over:
            t = -1 if peak_node is None else int(peak_node[c])
            b = problem.block[t]
            # Wherever this node goes, so does its peak.
            for chip in range(model.low[b], model.high[b] + 1) if t >= 0 else (c,):
                if (t, chip) not in self._peaks:
                    live = self._live(t, chip) if t >= 0 else []
                    self._state_memory(t, chip, _Memory(model.held[chip] + live))
            if self._peaks[t, c].row < seen:
                self.is_relaxed = False
                margin = max(_TOLERANCE, 4 * self._peaks[t, c].margin)
                self._state_memory(t, c, _Memory(self._peaks[t, c].terms, margin))
        return bool(over)

    def _state_memory(self, t: int, c: int, memory: _Memory) -> None:
        self._peaks[t, c] = memory._replace(row=len(self._model.rows))
        self._model.add_row(memory.terms, 1.0 - memory.margin)

    def _live(self, t: int, c: int) -> Terms:
        """What is alive on chip c while node t runs, in capacities.

        Valid wherever t is: what a chip holds from before t until after it, it also holds while its
        next node runs.
        """
        model, p, block = self._model, self._model.problem, self._model.problem.block
        capacity = p.capacity_bytes[c]
        alive = (p.tensor_producer <= t) & (p.last_consumer >= t) & (p.tensor_bytes > 0)
        terms: Terms = []
        for k in np.flatnonzero(alive).tolist():
            start, stop = np.searchsorted(p.edge_tensor, [k, k + 1])
            later = p.edge_consumer[start:stop]
            producer = int(block[p.tensor_producer[k]])
            ends = sorted({int(b) for b in block[later[later >= t]]})
            if p.tensor_producer[k] == t or producer in ends:
                live = model.on(producer, c)
            elif model.may_be_on(producer, c):
                key = (producer, tuple(ends), c)
                if key not in self._lives:
                    self._lives[key] = model.maximum(self._both(producer, q, c) for q in ends)
                live = self._lives[key]
            else:
                live = []
            terms += [(j, a * float(p.tensor_bytes[k]) / capacity) for j, a in live]
        return terms

    def _both(self, p: int, q: int, c: int) -> Terms:
        """At most [f(p) = c = f(q)], and equal to it at integers."""
        model = self._model
        if not (model.may_be_on(p, c) and model.may_be_on(q, c)):
            return []
        if model.rule == "none":
            return [*model.on(p, c), *model.on(q, c), (ONE, -1.0)]
        return [(model.z(p, c), 1.0), (model.z(q, c + 1), -1.0)]


class _Memory(NamedTuple):
    """A memory row stated on demand."""

    terms: Terms  # in capacities
    margin: float = 0.0
    row: int = -1
