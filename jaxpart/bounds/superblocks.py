"""A lower bound from one chip at a time: what is before it, on it and after it.

Archer et al., ICML 2024 ("Practical performance guarantees for pipelined DNN inference"), bound the
bottleneck by the "three-superblock" relaxation: an integer program with two ideals x <= y, for what
runs before a chip, and before or on it. Here it is a test of a limit T for one contracted node at a
time, with the rules of this package; a limit at which some contracted node fits nowhere is a lower
bound.

Proof. Let f be a valid partition of bottleneck at most T, dataflow acyclic, v a contracted node,
and i = f(v).
The ideals x = {f < i} and y = {f <= i} leave v in the piece y - x, which is what chip i runs. Then
- the work of the piece, on the fastest kind of chip, is at most T; without overlap together with
  its transfers: tensors made before the piece and used in it, made in it and used after it;
- with overlap the piece receives, and sends, for at most T each; on a chain, all that crosses from
  x outward is on one link, and from y too, for at most T each;
- the piece holds the weights that its contracted nodes use, each once, and its transfers twice,
  within the largest capacity (in the full model of memory these are the first two terms);
- the work before chip i is at most i T, that after it at most (C - 1 - i) T;
- by the triangle rule, what lies between the ends of an edge shares its two chips
  (`jaxpart.intervals`), so a block of the piece has one end or the other in the piece.
So the program of v and T has a solution; where it has none, every bottleneck exceeds T. A solution
settles all contracted nodes of its piece at once. Numbers are scaled to integers and rounded down,
so that sums of them keep the limits that the exact sums keep.
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

# One of a limit in the program's integers.
_UNIT = 2**30
# Loads are float64 sums; limits are this much, relative, larger.
_SAFETY = 1e-9
# CP-SAT's deterministic seconds for one contracted node; what is not settled by then counts as
# fitting.
_MAX_DETERMINISTIC_TIME = 2.0
_MAX_CONTRACTED = 1500
# Clauses for the triangle rule; those that do not fit are left out.
_MOST_CLAUSES = 50_000
# The first limit is this much above what is known: what is refuted mostly is so at the first few
# contracted nodes, and what is not takes a test of every block.
_FIRST_STEP = 1.02
# The end: this ratio between what is refuted and what is not.
_CLOSE = 1.001


@dataclasses.dataclass
class Sweep:
    """What tests of one limit gave."""

    is_refuted: bool
    witness: IntArray  # [any] nodes of the contracted node that fits nowhere
    tests: int


def superblock_bound(
    problem: Problem,
    low_s: float,
    high_s: float,
    *,
    give_up: Callable[[], bool] = lambda: False,
) -> float:
    """The largest limit found that is refuted: a lower bound on every bottleneck.

    Limits go up in steps that double until one is not refuted; from there it is bisection.

    Args:
      problem: of N nodes.
      low_s: a lower bound in seconds, above 0; what comes back is no less.
      high_s: where to stop: a valid partition's bottleneck.
      give_up: asked between tests whether to stop, with the bound so far.
    """
    if not problem.mcm.constraints.acyclic or not 0 < low_s < high_s or not np.isfinite(high_s):
        return low_s
    witness, step = np.zeros(0, np.int64), _FIRST_STEP
    while high_s > low_s * _CLOSE and not give_up():
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
    """Tests one limit, contracted node by contracted node, until one fits nowhere or all are
    settled.

    Args:
      first: [any] nodes whose contracted nodes are tested first.
    """
    none = np.zeros(0, np.int64)
    # Strictly below: a bottleneck of just the limit must not be refuted.
    reduced = reduce_below(problem, limit_s * (1 + _SAFETY))
    if reduced is None:
        return Sweep(is_refuted=True, witness=none, tests=0)
    contraction = reduced.problem.contraction
    contracted = reduced.problem.contracted
    if contracted.num_nodes > _MAX_CONTRACTED:
        return Sweep(is_refuted=False, witness=none, tests=0)
    program = _Superblocks(reduced, limit_s * (1 + _SAFETY))
    rank = np.argsort(-_hardness(contracted), kind="stable")
    early = none if first is None else contraction[first]
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
    return Sweep(is_refuted=False, witness=none, tests=tests)


def _hardness(contracted: Problem) -> FloatArray:
    """[M] work and transfers in seconds: contracted nodes with much of them are refuted first."""
    seconds = contracted.tensor_bytes / contracted.mcm.link_bandwidth
    sent = np.bincount(contracted.tensor_producer, seconds, contracted.num_nodes)
    received = np.bincount(
        contracted.edge_consumer, seconds[contracted.edge_tensor], contracted.num_nodes
    )
    return contracted.node_s.min(axis=1) + sent + received


class _Superblocks:
    """The program of one limit, whichever contracted node is to be on the chip."""

    def __init__(self, reduced: Reduced, limit_s: float) -> None:
        from ortools.sat.python import cp_model

        self._reduced, self._limit_s = reduced, limit_s
        self._problem, self._contracted = reduced.problem, reduced.problem.contracted
        self._tensors = _tensors(self._contracted)
        self._model = cp_model.CpModel()
        count = range(self._contracted.num_nodes)
        self._chip = self._model.new_int_var(0, self._problem.num_chips - 1, "")
        self._before = [self._model.new_bool_var("") for _ in count]  # x
        self._until = [self._model.new_bool_var("") for _ in count]  # y
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
        """Whether contracted node v may fit; and the contracted nodes of a piece that has it, if
        one was found.
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
        """Of the chip, and of those before and after it."""
        work = _scaled(self._contracted.node_s.min(axis=1), self._limit_s).tolist()
        minus = [-amount for amount in work]
        self._load = ([*self._until, *self._before], [*work, *minus])
        self._limit(*self._load, _UNIT)
        self._limit([*self._before, self._chip], [*work, -_UNIT], 0)
        rest = _UNIT * (self._problem.num_chips - 1) - sum(work)
        self._limit([*self._until, self._chip], [*minus, _UNIT], rest)

    def _cut(self, ideal: list[cp_model.IntVar]) -> None:
        """All that crosses it shares a link."""
        crossing = []
        for producer, consumers, _ in self._tensors:
            crosses = self._model.new_bool_var("")
            for q in consumers:
                self._model.add_bool_or(~ideal[producer], ideal[q], crosses)
            crossing.append(crosses)
        self._limit(crossing, self._seconds(), _UNIT)

    def _transfers(self, holds: bool) -> None:
        """What the chip receives and sends, and with it what it holds."""
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
        """Whether one chip may have too little memory for weights and transfers."""
        mcm = self._problem.mcm
        most = self._contracted.weight_bytes[np.unique(self._contracted.use_weight)].sum()
        if mcm.memory_model == "full":
            most += 2 * self._contracted.tensor_bytes.sum()
        return mcm.constraints.memory and most > self._problem.capacity_bytes.max() > 0

    def _memory(self, inside: list[cp_model.IntVar], moved: list[cp_model.IntVar]) -> None:
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
        """A contracted node between the ends of an edge is on the chip of one of them."""
        reach = reachability_matrix(self._contracted) > 0
        x, y = self._before, self._until
        room = _MOST_CLAUSES
        for u, v in self._contracted.node_pairs.tolist():
            between = np.flatnonzero(reach[u] & reach[:, v])
            for w in between[(between != u) & (between != v)].tolist():
                room -= 1
                if room < 0:
                    return
                # Where w is on it, u is at or before it and v at or after it.
                self._model.add_bool_or(~y[w], x[w], ~x[u], y[v])

    def _limit(self, columns: list[cp_model.IntVar], amounts: list[int], upper: int) -> None:
        """States that the columns times the amounts sum to at most `upper`."""
        from ortools.sat.python import cp_model

        if columns:
            self._model.add(cp_model.LinearExpr.weighted_sum(columns, amounts) <= upper)

    def _seconds(self) -> list[int]:
        """Of each tensor on a link, in units of the limit."""
        size = np.array([size for _, _, size in self._tensors])
        return _scaled(size / self._problem.mcm.link_bandwidth, self._limit_s).tolist()


def _tensors(contracted: Problem) -> list[tuple[int, tuple[int, ...], float]]:
    """Producer, consumers and bytes; tensors with the same ends are one."""
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
    """In units of the limit, rounded down; an amount beyond the limit is just beyond one."""
    return np.minimum(np.floor(amounts / limit * _UNIT), _UNIT + 1).astype(np.int64)
