"""A lower bound that looks at one chip at a time: what runs before it, on it and after it.

Archer et al., ICML 2024 ("Practical performance guarantees for pipelined DNN inference"), bound the
bottleneck with the "three-superblock" relaxation. It is an integer program with two ideals x <= y:
x runs before a chip, y runs before it or on it. Here the program tests a limit T for one contracted
node at a time, with the rules of this package. If some contracted node fits on no chip, T is a
lower bound.

Proof. Let f be a valid partition with acyclic dataflow and a bottleneck of at most T. It is also a
valid partition of the problem that `bounds/reduction.py` reduces below T. Let v be a contracted
node of the reduced problem and i = f(v). Take the ideals x = {f < i} and y = {f <= i}. Chip i runs
the segment y - x, and v is in it. Then these conditions hold:
1. The work of the segment, on the fastest kind of chip, takes at most T. Without overlap this
   includes its transfers: tensors made in x and used in the segment, and tensors made in the
   segment and used outside y.
2. With overlap, the segment receives for at most T and sends for at most T. On a chain, all tensors
   made in x and used outside x are on one link, so they take at most T; the same holds for y.
3. The weights that the segment uses, each once, fit into the largest capacity. In the full memory
   model so do these weights plus twice the transfers (the first two terms of M_c).
4. The work before chip i takes at most i T, and the work after it at most (C - 1 - i) T.
5. With the triangle rule, a contracted node between the ends of an edge shares a chip with one of
   the ends (`bounds/intervals.py`). So if it is in the segment, one of the ends is too.
6. Chip i is in the range of chips that the reduction leaves to v. A contracted node whose range is
   entirely below that range is in x; one whose range is entirely above it is outside y.
Hence the integer program of these conditions has a solution for every v. If it has none for some v,
every valid partition has a bottleneck above T.

A solution for v places all contracted nodes of its segment on one chip, so these are not tested
again; skipping a test never makes the bound wrong. Amounts are scaled to integers and rounded down,
so that every solution of the exact conditions is a solution of the rounded ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxpart.bounds.reachability import reachability_matrix
from jaxpart.bounds.reduction import Reduced, reduce_below
from jaxpart.problem.problem import FloatArray, IntArray, Problem

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

# The integer that stands for one limit (of seconds or bytes) in the program.
_UNIT = 2**30
# Relative amount added to limits, so that float64 rounding never refutes one wrongly.
_SAFETY = 1e-9
# Deterministic seconds of CP-SAT per contracted node; a node not decided by then counts as fitting.
_MAX_DETERMINISTIC_TIME = 2.0
# Largest number of contracted nodes for which a limit is tested.
_MAX_CONTRACTED = 1500
# Largest number of clauses for the triangle rule; the rest are left out.
_MAX_CLAUSES = 50_000
# First limit divided by the known bound. It is small because a limit is refuted after a few tests,
# but a limit that is not refuted takes a test of every contracted node.
_FIRST_STEP = 1.02
# The search ends at this ratio of the lowest limit not refuted to the highest one refuted.
_FINAL_RATIO = 1.001


@dataclasses.dataclass
class Sweep:
    """The outcome of the tests of one limit."""

    is_refuted: bool  # no valid partition has a bottleneck within the limit
    witness: IntArray  # nodes of the contracted node that fits on no chip; empty if there is none
    tests: int  # number of contracted nodes tested


def superblock_bound(
    problem: Problem,
    low_s: float,
    high_s: float,
    *,
    give_up: Callable[[], bool] = lambda: False,
) -> float:
    """The largest limit found that is refuted.

    The limits rise in growing steps until one is not refuted; from there on the search bisects.

    Args:
      problem: of N nodes.
      low_s: a lower bound in seconds, above 0.
      high_s: where the search stops, in seconds: the bottleneck of a valid partition.
      give_up: asked between tests whether to stop with the bound found so far.

    Returns:
      A lower bound in seconds on the bottleneck of every valid partition, at least `low_s`.
    """
    if not problem.mcm.constraints.acyclic or not 0 < low_s < high_s or not np.isfinite(high_s):
        return low_s
    witness, step = np.zeros(0, np.int64), _FIRST_STEP
    while high_s > low_s * _FINAL_RATIO and not give_up():
        limit_s = min(low_s * step, (low_s * high_s) ** 0.5)
        found = sweep(problem, limit_s, first=witness, give_up=give_up)
        if found.is_refuted:
            low_s, witness, step = limit_s, found.witness, step**2
        else:
            high_s = limit_s
    return low_s


def sweep(
    problem: Problem,
    limit_s: float,
    *,
    first: IntArray | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Tests one limit: contracted node by contracted node, until one fits on no chip.

    Args:
      problem: of N nodes, with acyclic dataflow.
      limit_s: in seconds.
      first: nodes whose contracted nodes are tested first.
      give_up: asked between tests whether to stop; the limit then counts as not refuted.
    """
    nothing = np.zeros(0, np.int64)
    # `reduce_below` excludes a bottleneck equal to its cut-off, but the limit itself must stay.
    reduced = reduce_below(problem, limit_s * (1 + _SAFETY))
    if reduced is None:
        return Sweep(is_refuted=True, witness=nothing, tests=0)
    contraction = reduced.problem.contraction
    contracted = reduced.problem.contracted
    if contracted.num_nodes > _MAX_CONTRACTED:
        return Sweep(is_refuted=False, witness=nothing, tests=0)
    program = _Superblocks(reduced, limit_s * (1 + _SAFETY))
    rank = np.argsort(-_hardness(contracted), kind="stable")
    early = nothing if first is None else contraction[first]
    is_open = np.ones(contracted.num_nodes, bool)
    tests = 0
    for v in itertools.chain(early.tolist(), rank.tolist()):
        if not is_open[v]:
            continue
        if give_up():
            break
        tests += 1
        is_open[v] = False
        fits, segment = program.place(v)
        if not fits:
            return Sweep(is_refuted=True, witness=np.flatnonzero(contraction == v), tests=tests)
        is_open[segment] = False
    return Sweep(is_refuted=False, witness=nothing, tests=tests)


def _hardness(contracted: Problem) -> FloatArray:
    """Seconds of work and transfers [M]; contracted nodes with most of them are tested first."""
    seconds = contracted.tensor_bytes / contracted.mcm.link_bandwidth
    sent = np.bincount(contracted.tensor_producer, seconds, contracted.num_nodes)
    received = np.bincount(
        contracted.edge_consumer, seconds[contracted.edge_tensor], contracted.num_nodes
    )
    return contracted.node_s.min(axis=1) + sent + received


class _Superblocks:
    """The integer program of one limit, for any contracted node on the chip."""

    def __init__(self, reduced: Reduced, limit_s: float) -> None:
        from ortools.sat.python import cp_model

        self._reduced, self._limit_s = reduced, limit_s
        self._problem, self._contracted = reduced.problem, reduced.problem.contracted
        self._tensors = _tensors(self._contracted)
        self._model = cp_model.CpModel()
        count = range(self._contracted.num_nodes)
        self._chip = self._model.new_int_var(0, self._problem.num_chips - 1, "")
        self._before = [self._model.new_bool_var("") for _ in count]  # the ideal x
        self._until = [self._model.new_bool_var("") for _ in count]  # the ideal y
        self._ideals()
        self._work()
        if self._problem.mcm.topology == "chain":
            self._cut(self._before)
            self._cut(self._until)
        holds = self._may_be_full()
        if holds or not (self._problem.mcm.overlap and self._problem.mcm.topology == "chain"):
            self._transfers(holds)
        if self._problem.mcm.constraints.triangle:
            self._intervals()

    def place(self, v: int) -> tuple[bool, IntArray]:
        """Tests whether contracted node v may fit on some chip.

        Returns:
          Whether v may fit, and the contracted nodes of a segment with v; empty if none was found.

        Raises:
          AssertionError: CP-SAT refuses the program.
        """
        from ortools.sat.python import cp_model

        low, high = self._reduced.low, self._reduced.high
        model = self._model.clone()
        model.add(self._chip >= int(low[v]))
        model.add(self._chip <= int(high[v]))
        model.add(self._before[v] == 0)
        model.add(self._until[v] == 1)
        for u in np.flatnonzero(high < low[v]).tolist():
            model.add(self._before[u] == 1)
        for u in np.flatnonzero(low > high[v]).tolist():
            model.add(self._until[u] == 0)
        solver = cp_model.CpSolver()
        solver.parameters.max_deterministic_time = _MAX_DETERMINISTIC_TIME
        solver.parameters.num_workers = 1
        solver.parameters.catch_sigint_signal = False
        ended = solver.solve(model)
        if ended == cp_model.MODEL_INVALID:
            raise AssertionError(f"CP-SAT refuses the program: {model.validate()}")
        if ended in (cp_model.INFEASIBLE, cp_model.UNKNOWN):
            return ended == cp_model.UNKNOWN, np.zeros(0, np.int64)
        inside = [
            solver.boolean_value(y) and not solver.boolean_value(x)
            for x, y in zip(self._before, self._until, strict=True)
        ]
        return True, np.flatnonzero(inside)

    def _ideals(self) -> None:
        for x, y in zip(self._before, self._until, strict=True):
            self._model.add_implication(x, y)
        for u, v in self._contracted.node_pairs.tolist():
            self._model.add_implication(self._before[v], self._before[u])
            self._model.add_implication(self._until[v], self._until[u])

    def _work(self) -> None:
        """Limits the work on the chip, before it and after it (conditions 1 and 4)."""
        work = _scaled(self._contracted.node_s.min(axis=1), self._limit_s).tolist()
        minus = [-amount for amount in work]
        self._load = ([*self._until, *self._before], [*work, *minus])
        self._limit(*self._load, _UNIT)
        self._limit([*self._before, self._chip], [*work, -_UNIT], 0)
        rest = _UNIT * (self._problem.num_chips - 1) - sum(work)
        self._limit([*self._until, self._chip], [*minus, _UNIT], rest)

    def _cut(self, ideal: list[cp_model.IntVar]) -> None:
        """Limits the tensors that leave the ideal, because they share a link (condition 2)."""
        crossing = []
        for producer, consumers, _ in self._tensors:
            crosses = self._model.new_bool_var("")
            for q in consumers:
                self._model.add_bool_or(~ideal[producer], ideal[q], crosses)
            crossing.append(crosses)
        self._limit(crossing, self._seconds(), _UNIT)

    def _transfers(self, holds: bool) -> None:
        """Limits what the chip receives and sends and, if `holds`, what it holds (1 to 3)."""
        inside = []
        for x, y in zip(self._before, self._until, strict=True):
            member = self._model.new_bool_var("")
            self._model.add_bool_or(~y, x, member)
            inside.append(member)
        arrives, leaves = [], []
        for producer, consumers, _ in self._tensors:
            received, sent = self._model.new_bool_var(""), self._model.new_bool_var("")
            for q in consumers:
                self._model.add_bool_or(~self._before[producer], ~inside[q], received)
                self._model.add_bool_or(~inside[producer], self._until[q], sent)
            arrives.append(received)
            leaves.append(sent)
        seconds = self._seconds()
        if self._problem.mcm.overlap:
            self._limit(arrives, seconds, _UNIT)
            self._limit(leaves, seconds, _UNIT)
        else:
            columns, amounts = self._load
            self._limit([*columns, *arrives, *leaves], [*amounts, *seconds, *seconds], _UNIT)
        if holds:
            self._memory(inside, [*arrives, *leaves])

    def _may_be_full(self) -> bool:
        """Whether all weights and transfers together exceed the largest capacity."""
        mcm = self._problem.mcm
        most = self._contracted.weight_bytes[np.unique(self._contracted.use_weight)].sum()
        if mcm.memory_model == "full":
            most += 2 * self._contracted.tensor_bytes.sum()
        return mcm.constraints.memory and most > self._problem.capacity_bytes.max() > 0

    def _memory(self, inside: list[cp_model.IntVar], moved: list[cp_model.IntVar]) -> None:
        """Limits the weights and the buffers of the chip (condition 3)."""
        capacity = float(self._problem.capacity_bytes.max()) * (1 + _SAFETY)
        users: dict[int, list[int]] = {}
        for w, q in zip(
            self._contracted.use_weight.tolist(), self._contracted.use_node.tolist(), strict=True
        ):
            users.setdefault(w, []).append(q)
        together: dict[tuple[int, ...], float] = {}
        for w, nodes in users.items():
            key = tuple(nodes)
            together[key] = together.get(key, 0.0) + float(self._contracted.weight_bytes[w])
        held = []
        for nodes in together:
            copy = self._model.new_bool_var("")
            for q in nodes:
                self._model.add_implication(inside[q], copy)
            held.append(copy)
        amounts = _scaled(np.array(list(together.values())), capacity).tolist()
        if self._problem.mcm.memory_model == "full":
            buffers = np.array([size for _, _, size in self._tensors] * 2)
            held, amounts = [*held, *moved], [*amounts, *_scaled(2 * buffers, capacity).tolist()]
        self._limit(held, amounts, _UNIT)

    def _intervals(self) -> None:
        """States that an edge interval shares the chips of its two ends (condition 5)."""
        reach = reachability_matrix(self._contracted) > 0
        x, y = self._before, self._until
        room = _MAX_CLAUSES
        for u, v in self._contracted.node_pairs.tolist():
            between = np.flatnonzero(reach[u] & reach[:, v])
            for w in between[(between != u) & (between != v)].tolist():
                room -= 1
                if room < 0:
                    return
                # If w is on the chip, u is not before it or v is not after it.
                self._model.add_bool_or(~y[w], x[w], ~x[u], y[v])

    def _limit(self, columns: list[cp_model.IntVar], amounts: list[int], upper: int) -> None:
        """Adds the row: the sum of columns times amounts is at most `upper`."""
        from ortools.sat.python import cp_model

        if columns:
            self._model.add(cp_model.LinearExpr.weighted_sum(columns, amounts) <= upper)

    def _seconds(self) -> list[int]:
        """Integer seconds of each tensor on a link (`_scaled`)."""
        size = np.array([size for _, _, size in self._tensors])
        return _scaled(size / self._problem.mcm.link_bandwidth, self._limit_s).tolist()


def _tensors(contracted: Problem) -> list[tuple[int, tuple[int, ...], float]]:
    """Producer, consumers and bytes of each tensor; tensors with the same ends are merged."""
    consumers: dict[int, list[int]] = {}
    for k, q in zip(
        contracted.edge_tensor.tolist(), contracted.edge_consumer.tolist(), strict=True
    ):
        consumers.setdefault(k, []).append(q)
    together: dict[tuple[int, tuple[int, ...]], float] = {}
    for k, nodes in consumers.items():
        key = (int(contracted.tensor_producer[k]), tuple(nodes))
        together[key] = together.get(key, 0.0) + float(contracted.tensor_bytes[k])
    return [(producer, nodes, size) for (producer, nodes), size in together.items() if size > 0]


def _scaled(amounts: FloatArray, limit: float) -> IntArray:
    """Integers in which `_UNIT` stands for the limit, rounded down and at most `_UNIT` + 1."""
    return np.minimum(np.floor(amounts / limit * _UNIT), _UNIT + 1).astype(np.int64)
