"""The integer program of a window of a partition: its rules and costs.

The program places contracted nodes. A contracted node is free within an interval of chips, and
fixed where the interval is one chip. With the bits z[b, c] = [f(b) >= c], dataflow and span are
differences of two bits, and so is what crosses a link of a chain. Tarnawski et al. (NeurIPS 2020)
state the same program over assignment bits.

Variables for traffic, copies of weights and live tensors are bounded from below only. Every row
holds for every valid partition of the window, so a lower bound on the program is a lower bound on
all of them. Together the rows state every rule and cost of `jaxpart/README.md` but two: the peak of
live activations and the chip triangle. These are lazy constraints (`lazy_constraints.py`); only a
solution that breaks neither counts.
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
    """The program of one window.

    Attributes:
      problem: of N nodes.
      contracted: the problem of its M contracted nodes.
      rule: what the rows ask of every edge.
      unit_s: the unit of time in seconds; None where the program leaves time out.
      bottleneck: the column of T / `unit_s`; None where the program leaves time out.
      stages: the loads that T is the maximum of, in `unit_s`, each with its chips: one, or a link's
        two.
      held: [C] memory of each chip without the peak of live activations, in its capacity; empty
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
          problem: its fixed chips and colocation groups do not contradict each other.
          low: [M] lowest chip of each contracted node.
          high: [M] highest chip of each contracted node.
          span: whether every edge must keep 0 <= f(v) - f(u) <= 1, in place of the triangle rule.
            This is a much smaller program, but covers only some of the valid partitions.
          unit_s: the unit of time in seconds, about T; None leaves out time, and traffic in time.
        """
        self.problem = problem
        self.contracted = problem.contracted
        self.rule: EdgeRule = "none"
        if problem.mcm.constraints.acyclic:
            self.rule = "span" if span else "acyclic"
        self.unit_s = unit_s
        fixed_chip = self.contracted.fixed_chip
        low = np.where(fixed_chip >= 0, np.maximum(low, fixed_chip), low)
        high = np.where(fixed_chip >= 0, np.minimum(high, fixed_chip), high)
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
        """Whether the program holds every valid partition of the window, so bounds are proofs."""
        return self._lazy.is_relaxed

    def separate(self, f: IntArray, seen: int = 0) -> bool:
        """Returns whether a partition breaks a lazy constraint, and adds rows that forbid it.

        Args:
          f: [M] chips in the window.
          seen: the number of rows that the solver knew when it found f. If f breaks a memory row
            among them, within the solver's tolerance, the row is added again, tightened.
        """
        return self._lazy.separate(f, seen)

    def seek_bottleneck(self) -> None:
        """Makes T the objective, in units of `unit_s`.

        Raises:
          ValueError: the program was stated without time.
        """
        if self.bottleneck is None:
            raise ValueError("the program was stated without time")
        self.objective = {self.bottleneck: 1.0}
        self.objective_constant = 0.0

    def _edges(self) -> None:
        """States dataflow and, if asked, span."""
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
        """States that chips below one in use are in use: sum_b [f(b) = c] >= [some f(b) >= c]."""
        has_successor = np.zeros(len(self.low), bool)
        if self.rule != "none":
            has_successor[self.problem.contracted_pairs[:, 0]] = True
        # One of these is on the highest chip in use.
        last = np.flatnonzero(~has_successor).tolist()
        fixed = set(self.low[self.low == self.high].tolist())
        for c in range(int(self.high.max())):
            if c in fixed:
                continue
            beyond = self.maximum([(self.z(b, c), 1.0)] for b in last)
            here = np.flatnonzero((self.low <= c) & (self.high >= c)).tolist()
            self.add_row([*beyond, *(term for b in here for term in self.on(b, c, -1.0))], 0.0)

    # Compute, traffic and memory.

    def _costs(self) -> None:
        """States time and memory of every chip: constants for fixed nodes, terms for free ones."""
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
        """Returns the bytes by (producer, consumers), of tensors chosen by [K].

        Tensors with the same producer and consumers always travel together.
        """
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
        """Adds the load of a tensor to the ports of the chips and to the links.

        Args:
          p: the producer.
          ends: its consumers.
          size: bytes.
          links: number of each link; empty where time is left out.
        """
        low, high = self._low[p], self._high[p]
        top = max(self._high[q] for q in ends)
        mcm = self.problem.mcm
        if self.rule != "none":
            # [f(p) <= c < highest f(q)]. With span this is all the traffic, from c to c + 1.
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
        """Returns terms for [f(p) <= c and some f(q) > c], given dataflow."""
        if self._low[p] > c:
            return []
        if (ends, c) not in self._beyond:
            # A consumer that feeds another one is never on a higher chip than that one.
            tops = [q for q in ends if not any((q, r) in self._pairs for r in ends)]
            self._beyond[ends, c] = self.maximum([(self.z(q, c + 1), 1.0)] for q in tops)
        beyond = self._beyond[ends, c]
        producer = self.z(p, c + 1)
        return [*beyond, (producer, -1.0)] if beyond and producer != ZERO else list(beyond)

    def _mesh_links(
        self, p: int, ends: tuple[int, ...], size: float, links: dict[tuple[int, int], int]
    ) -> None:
        """Adds the load on the links of a mesh.

        A route changes the column first, then the row. So the routes over a link are all those from
        one set of chips to another set. The link is used where the producer is on a chip of the
        first set and a consumer on a chip of the second.
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
        """Adds one copy of each chosen weight [W] to every chip with a consumer of it."""
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
        """States that T is at least every stage and every link."""
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
