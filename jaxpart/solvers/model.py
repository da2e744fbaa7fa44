"""The integer program of a window of a partition: problem, rules and costs, once.

Contracted nodes (nodes that must share a chip) stand for nodes; a contracted node is free within an
interval of chips and fixed where the interval is one chip. With the bits z[b, c] = [f(b) >= c],
dataflow and span are differences of two bits, and what crosses a link of a chain is one too
(Tarnawski et al., NeurIPS 2020, have the same program over assignment bits).

Variables for traffic, copies of weights and live tensors are bounded from below alone: every row
holds for every valid partition of the window, so a bound is a bound. Together the rows state all of
the README's "What every figure means" but two rules, the peak of live activations and the chip
triangle. Those are lazy constraints (`lazy_constraints.py`), and only a solution that breaks
neither counts.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem
from jaxpart.solvers.lazy_constraints import LazyConstraints
from jaxpart.solvers.minimum_cut import EdgeRule, tighten
from jaxpart.solvers.program import ONE, ZERO, Program, Terms


class Model(Program):
    """A window's program.

    Attributes:
      problem: of N nodes.
      rule: what its rows ask of every edge.
      unit_s: the unit of time; None where the program leaves time out.
      bottleneck: the column of T / `unit_s`; None where it leaves time out.
      stages: what T is the maximum of, each with the chips that it concerns: one, or a link's two.
      held: [C] what each chip holds, without the peak of live activations, in its capacity; empty
        where memory is no rule.
    """

    def __init__(
        self,
        problem: Problem,
        low: IntArray,
        high: IntArray,
        *,
        span: bool = False,
        unit_s: float | None = None,
    ) -> None:
        """States the window low <= f <= high.

        Args:
          problem: whose fixed chips and colocation groups do not contradict each other.
          low: [M] lowest chip of each block.
          high: [M] highest chip of each block.
          span: whether to ask 0 <= f(v) - f(u) <= 1 of every edge in place of the triangle rule:
            a part of what is valid, with a much smaller program.
          unit_s: the unit of time, about T; None leaves time and traffic's time out.
        """
        self.problem = problem
        self.contracted = problem.contracted
        self.rule: EdgeRule = "none"
        if problem.mcm.constraints.acyclic:
            self.rule = "span" if span else "acyclic"
        self.unit_s = unit_s
        pin = self.contracted.fixed_chip
        low = np.where(pin >= 0, np.maximum(low, pin), low)
        high = np.where(pin >= 0, np.minimum(high, pin), high)
        super().__init__(*tighten(problem, low, high, self.rule))
        self.bottleneck: int | None = None
        self.stages: list[tuple[tuple[int, ...], Terms]] = []
        self.held: list[Terms] = []
        self._lazy = LazyConstraints(self, problem, self.rule, self.held)
        if self.is_infeasible:
            return
        self._beyond: dict[tuple[tuple[int, ...], int], Terms] = {}
        self._pairs = {(u, v) for u, v in problem.contracted_pairs.tolist()}
        self._edges()
        if problem.mcm.constraints.no_skip:
            self._no_skip()
        self._costs()

    @property
    def is_relaxed(self) -> bool:
        """Whether every valid partition of the window is a point, so that bounds are proofs."""
        return self._lazy.is_relaxed

    def separate(self, f: IntArray, seen: int = 0) -> bool:
        """Whether the partition f [M] breaks a rule; if so, rows that forbid it are in place.

        Args:
          f: from the window.
          seen: how many of the rows the solver that found f knew. A memory row among them that f
            breaks all the same, within that solver's tolerance, comes back tightened.
        """
        return self._lazy.separate(f, seen)

    def seek_bottleneck(self) -> None:
        """Makes the objective T, in units of `unit_s`."""
        if self.bottleneck is None:
            raise ValueError("the program was stated without time")
        self.objective = {self.bottleneck: 1.0}
        self.objective_constant = 0.0

    def _edges(self) -> None:
        """Dataflow, and span."""
        if self.rule == "none":
            return
        low, high = self.low.tolist(), self.high.tolist()
        free = self.low < self.high
        u, v = self.problem.contracted_pairs[:, 0], self.problem.contracted_pairs[:, 1]
        for a, b in self.problem.contracted_pairs[free[u] | free[v]].tolist():
            for c in range(low[b] + 1, high[a] + 1):
                self.add_row([(self.z(a, c), 1.0), (self.z(b, c), -1.0)], 0.0)
            if self.rule == "span":
                for c in range(low[a] + 2, high[b] + 1):
                    self.add_row([(self.z(b, c), 1.0), (self.z(a, c - 1), -1.0)], 0.0)

    def _no_skip(self) -> None:
        """A chip below one in use is in use: sum over b of [f(b) = c] >= [some f(b) >= c]."""
        has_successor = np.zeros(len(self.low), bool)
        if self.rule != "none":
            has_successor[self.problem.contracted_pairs[:, 0]] = True
        last = np.flatnonzero(~has_successor).tolist()  # the highest chip has one of these
        fixed = set(self.low[self.low == self.high].tolist())
        for c in range(int(self.high.max())):
            if c in fixed:
                continue
            beyond = self.maximum([(self.z(b, c), 1.0)] for b in last)
            here = np.flatnonzero((self.low <= c) & (self.high >= c)).tolist()
            self.add_row([*beyond, *(term for b in here for term in self.on(b, c, -1.0))], 0.0)

    # Loads.

    def _costs(self) -> None:
        """Time and memory of every chip: what is fixed as constants, the rest by its blocks."""
        p, chips = self.contracted, self.problem.num_chips
        with_time = self.unit_s is not None
        with_memory = self.problem.mcm.constraints.memory
        self._with_traffic = with_time or (with_memory and self.problem.mcm.memory_model == "full")
        free = self.low < self.high
        free_tensor = free[p.tensor_producer].copy()
        free_tensor[p.edge_tensor[free[p.edge_consumer]]] = True
        free_weight = np.zeros(len(p.weight_bytes), bool)
        free_weight[p.use_weight[free[p.use_node]]] = True
        fixed = host.loads(p, self.low, ~free, ~free_tensor, ~free_weight)
        links = {link: number for number, link in enumerate(self.problem.mcm.links)}
        self._in: list[Terms] = [[(ONE, x)] for x in fixed.in_bytes]
        self._out: list[Terms] = [[(ONE, x)] for x in fixed.out_bytes]
        self._link: list[Terms] = [[(ONE, x)] for x in fixed.link_bytes]
        if self._with_traffic:
            for (producer, consumers), size in self._merged_tensors(free_tensor).items():
                self._traffic(producer, consumers, size, links if with_time else {})
        if with_time:
            self._time(fixed.compute_s, free)
        if with_memory:
            weights: list[Terms] = [[(ONE, x)] for x in fixed.weight_bytes]
            self._weights(weights, free_weight)
            for c in range(chips):
                held = weights[c]
                if self._with_traffic and self.problem.mcm.memory_model == "full":
                    held = held + [(j, 2 * a) for j, a in self._in[c] + self._out[c]]
                capacity = p.capacity_bytes[c]
                self.held.append([(j, a / capacity) for j, a in held])
                self.add_row(self.held[c], 1.0)

    def _merged_tensors(self, chosen: host.BoolArray) -> dict[tuple[int, tuple[int, ...]], float]:
        """Bytes by (producer, consumers): tensors that always travel together are one."""
        p = self.contracted
        consumers: dict[int, list[int]] = {}
        edges = np.flatnonzero(chosen[p.edge_tensor])
        for k, q in zip(
            p.edge_tensor[edges].tolist(), p.edge_consumer[edges].tolist(), strict=True
        ):
            consumers.setdefault(k, []).append(q)
        merged: dict[tuple[int, tuple[int, ...]], float] = defaultdict(float)
        for k, ends in consumers.items():
            merged[int(p.tensor_producer[k]), tuple(ends)] += float(p.tensor_bytes[k])
        return {key: size for key, size in merged.items() if size > 0}

    def _traffic(
        self, p: int, ends: tuple[int, ...], size: float, links: dict[tuple[int, int], int]
    ) -> None:
        """Adds what the tensor loads to the chips' ports and the links."""
        low, high = self._low[p], self._high[p]
        top = max(self._high[q] for q in ends)
        mcm = self.problem.mcm
        if self.rule != "none":
            # [f(p) <= c < highest f(q)]: with span this is all there is, from c to c + 1.
            for c in range(low, top):
                crosses = self._crossing(p, ends, c)
                if not crosses:
                    continue
                terms = [(j, a * size) for j, a in crosses]
                if self.rule == "span":
                    self._out[c] += terms
                    self._in[c + 1] += terms
                    for link in mcm.route(c, c + 1) if links else ():
                        self._link[links[link]] += terms
                elif mcm.topology == "chain" and links:
                    self._link[links[c, c + 1]] += terms
        if self.rule == "span":
            return
        for a in range(low, high + 1):
            leaves = self.maximum(
                self.on(p, a) + self.on(q, a, -1.0) for q in ends if self.may_be_off(q, a)
            )
            self._out[a] += [(j, x * size) for j, x in leaves]
        for c in range(min(self._low[q] for q in ends), top + 1):
            if low == high == c:
                continue
            arrives = self.maximum(self.on(q, c) + self.on(p, c, -1.0) for q in ends)
            self._in[c] += [(j, x * size) for j, x in arrives]
        if mcm.topology == "mesh" and links:
            self._mesh_links(p, ends, size, links)

    def _crossing(self, p: int, ends: tuple[int, ...], c: int) -> Terms:
        """[f(p) <= c and some f(q) > c], with dataflow."""
        if self._low[p] > c:
            return []
        if (ends, c) not in self._beyond:
            # A consumer that feeds another one is never beyond it.
            tops = [q for q in ends if not any((q, r) in self._pairs for r in ends)]
            self._beyond[ends, c] = self.maximum([(self.z(q, c + 1), 1.0)] for q in tops)
        beyond = self._beyond[ends, c]
        producer = self.z(p, c + 1)
        return [*beyond, (producer, -1.0)] if beyond and producer != ZERO else list(beyond)

    def _mesh_links(
        self, p: int, ends: tuple[int, ...], size: float, links: dict[tuple[int, int], int]
    ) -> None:
        """A link is used where the producer is on a chip before it and a consumer on one behind.

        Column first, then row: whether a route uses a link depends on its two ends apart.
        """
        sources: dict[tuple[int, int], set[int]] = defaultdict(set)
        targets: dict[tuple[int, int], set[int]] = defaultdict(set)
        for a in range(self._low[p], self._high[p] + 1):
            for d in {d for q in ends for d in range(self._low[q], self._high[q] + 1)}:
                for link in self.problem.mcm.route(a, d):
                    sources[link].add(a)
                    targets[link].add(d)
        for link, before in sources.items():
            start = [term for a in sorted(before) for term in self.on(p, a)]
            behind = sorted(targets[link])
            used = self.maximum(
                [*start, *(term for d in behind for term in self.on(q, d)), (ONE, -1.0)]
                for q in ends
            )
            self._link[links[link]] += [(j, a * size) for j, a in used]

    def _weights(self, held: list[Terms], chosen: host.BoolArray) -> None:
        """Adds one copy of each chosen weight to every chip with a consumer."""
        p = self.contracted
        users: dict[int, list[int]] = {}
        uses = np.flatnonzero(chosen[p.use_weight])
        for w, b in zip(p.use_weight[uses].tolist(), p.use_node[uses].tolist(), strict=True):
            users.setdefault(w, []).append(b)
        merged: dict[tuple[int, ...], float] = defaultdict(float)
        for w, contracted in users.items():
            merged[tuple(contracted)] += float(p.weight_bytes[w])
        for contracted, size in merged.items():
            first, last = (
                min(self._low[b] for b in contracted),
                max(self._high[b] for b in contracted),
            )
            for c in range(first, last + 1):
                copy = self.maximum(self.on(b, c) for b in contracted)
                held[c] += [(j, a * size) for j, a in copy]

    def _time(self, fixed_s: FloatArray, free: host.BoolArray) -> None:
        """T is at least every stage and every link."""
        p, mcm = self.contracted, self.problem.mcm
        unit = self.unit_s or 1.0
        compute: list[Terms] = [[(ONE, x / unit)] for x in fixed_s]
        for b in np.flatnonzero(free).tolist():
            for c in range(self._low[b], self._high[b] + 1):
                seconds = float(p.node_s[b, p.chip_kind[c]])
                if seconds:
                    compute[c] += self.on(b, c, seconds / unit)
        per_byte = 1 / (mcm.link_bandwidth * unit)
        for c in range(self.problem.num_chips):
            arrives = [(j, a * per_byte) for j, a in self._in[c]]
            leaves = [(j, a * per_byte) for j, a in self._out[c]]
            parts = [compute[c], arrives, leaves]
            if not mcm.overlap:
                parts = [[term for part in parts for term in part]]
            self.stages += [((c,), part) for part in parts]
        for link, load in zip(mcm.links, self._link, strict=True):
            self.stages.append((link, [(j, a * per_byte) for j, a in load]))
        self.bottleneck = self.add_column(0.0, np.inf)
        for _, stage in self.stages:
            self.at_least(self.bottleneck, stage)
