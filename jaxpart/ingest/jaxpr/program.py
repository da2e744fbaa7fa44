"""Expands a jaxpr into a flat list of operations on numbered values.

Wrappers (pjit, custom_jvp, remat, ...) are replaced by their bodies, and loops with a known number
of steps are unrolled. An equation on parameters and constants alone adds no operation. Its results
are folded values. They record which parts of which parameters they are made of.

Small integers that do not depend on inputs (loop counters, indices) are computed on the way. An
index that is known so takes its part of a parameter, and a branch that is known so is the only one.

`values.py` holds values and operations, `folding.py` what needs no operation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

from jaxpart.ingest.jaxpr import costs, parts, sizes
from jaxpart.ingest.jaxpr.costs import Cost
from jaxpart.ingest.jaxpr.cuts import NO_CUTS, row_cuts, stack_cuts
from jaxpart.ingest.jaxpr.folding import Folding
from jaxpart.ingest.jaxpr.loops import (
    Loop,
    count_equations,
    folded_outputs,
    kept_because,
    known_trips,
    no_rows,
    scan_counts,
)
from jaxpart.ingest.jaxpr.values import Op, live
from jaxpart.ingest.jaxpr.visits import Expansion, Visit

MAX_NODES = 20_000  # loops are unrolled by default as far as the graph stays below
_NO_WORK = ("optimization_barrier", "pbroadcast", "pvary")  # they hand on their operands
_EXPORTED = "a module of jax.export, which holds no jaxpr to open"
_SUMS = frozenset(("psum", "psum2", "psum_invariant", "pmax", "pmin"))  # over devices


class Program(Folding):
    """A flat list of operations; `run_all` extends it by those of a function.

    Attributes:
      lookups: numbers of the values that are rows of a table, at positions of run time.
      visit: the equation that is being expanded; None where it is not recorded.
      unroll_limit: loops of at most this many steps are unrolled. None: as far as there are at most
        `MAX_NODES` operations.
    """

    def __init__(self, size: Callable[[Any], float], unroll_limit: int | None) -> None:
        """Starts an empty program.

        Args:
          size: function from an abstract value to its bytes.
          unroll_limit: as in the class.
        """
        super().__init__(size)
        self.lookups: set[int] = set()
        self.visit: Visit | None = None
        self.unroll_limit = unroll_limit
        self._spare = float(MAX_NODES)  # operations that unrolled loops may still add

    def run_all(
        self, closed: Any, operands: Sequence[int], *, record: bool = False
    ) -> tuple[list[int], Expansion | None]:
        """Appends the operations of the whole function.

        Args:
          closed: its ClosedJaxpr.
          operands: numbers of the values of its arguments.
          record: whether to record what becomes of each equation.

        Returns:
          Numbers of the values of its results, and what became of each equation.
        """
        self._spare = MAX_NODES - count_equations(closed)
        self.visit = Visit(None, (), 0) if record else None
        root = self.visit
        results = self.run(closed, operands)
        self.visit = None
        return results, root.bodies[0] if root else None

    def run(self, closed: Any, operands: Sequence[int]) -> list[int]:
        """Appends the operations of a closed jaxpr.

        Args:
          closed: the ClosedJaxpr.
          operands: numbers of the values of its arguments.

        Returns:
          Numbers of the values of its results.
        """
        jaxpr = closed.jaxpr
        environment: dict[Any, int] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
            environment[variable] = self.constant(constant)

        def read(atom: Any) -> int:
            return self.literal(atom) if isinstance(atom, Literal) else environment[atom]

        visits: list[Visit] | None = None
        if self.visit is not None:
            visits = []
            self.visit.bodies.append(Expansion(closed, tuple(operands), visits))
        for eqn in jaxpr.eqns:
            results = self._visited(eqn, [read(atom) for atom in eqn.invars], visits)
            environment.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _visited(self, eqn: Any, operands: list[int], visits: list[Visit] | None) -> list[int]:
        """As `_equation`; adds what became of the equation to `visits` where they are recorded."""
        if visits is None:
            return self._equation(eqn, operands)
        visit = Visit(eqn, tuple(operands), len(self.ops))
        visits.append(visit)
        outer, self.visit = self.visit, visit
        try:
            results = self._equation(eqn, operands)
        finally:
            self.visit = outer
        visit.results = tuple(results)
        visit.stop = len(self.ops)
        return results

    def _equation(self, eqn: Any, operands: list[int]) -> list[int]:
        body = costs.inlined(eqn)
        if body is not None:
            return self.run(body, operands)
        name = eqn.primitive.name
        if name in _NO_WORK or (name in _SUMS and not self.shards):
            return operands
        constants = [self.values[v].known for v in operands]
        if name == "cond" and constants[0] is not None:  # the branch is known
            branches = eqn.params["branches"]
            taken = branches[min(max(int(constants[0]), 0), len(branches) - 1)]
            return self.run(taken, operands[1:])
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "while":
            return self._while(eqn, operands)
        if name == "shard_map":
            return self._shard_map(eqn, operands)
        if all(self.values[v].folded for v in operands):
            return self.folded(eqn, operands, constants)
        taken_parts = self.taken(eqn, operands, constants)
        if taken_parts is not None:
            return taken_parts
        if name == "cond":
            return self._append(eqn, operands, self._branch_cost(eqn, operands))
        operands = self.narrowed(eqn, operands, constants)
        kept = _EXPORTED if name == "call_exported" else ""
        results = self._append(eqn, operands, self._cost(eqn), kept)
        if parts.looks_up_rows(eqn) and constants[1] is None:
            self.lookups.update(results)
        self.note(eqn, operands, results, constants)
        return results

    def _append(self, eqn: Any, operands: Sequence[int], cost: Cost, kept: str = "") -> list[int]:
        """Adds the operation of an equation; returns the numbers of its results."""
        for v in eqn.outvars:
            self.count_float(v.aval)
        results = [self.value(self.size(v.aval), v.aval) for v in eqn.outvars]
        whole = None if self.shards else eqn  # each device has a shard of the operands
        self.ops.append(Op(eqn.primitive.name, tuple(operands), tuple(results), cost, kept, whole))
        return results

    def _cost(self, eqn: Any) -> Cost:
        cost = costs.equation_cost(eqn, self.size)
        if not self.shards:
            return cost
        avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
        copies = max((self.copies(aval) for aval in avals), default=1)
        flops = cost.flops * copies
        if eqn.primitive.name in _SUMS:
            before = sum(self.copies(v.aval) * sizes.elements(v.aval) for v in eqn.invars)
            after = sum(sizes.elements(v.aval) for v in eqn.outvars)
            flops = max(0, before - after)  # one addition per element folded in
        return dataclasses.replace(cost, flops=flops)

    def _scan(self, eqn: Any, operands: list[int]) -> list[int]:
        params, body = eqn.params, eqn.params["jaxpr"]
        num_consts, num_carry = scan_counts(eqn)
        first_stacked = num_consts + num_carry
        loop = Loop(
            body, params["length"], operands[:num_consts], operands[num_consts:first_stacked]
        )
        stacked, slices = operands[first_stacked:], body.in_avals[first_stacked:]

        def rows(step: int) -> list[int]:
            at = params["length"] - 1 - step if params["reverse"] else step
            return [self._scanned_row(v, at, a) for v, a in zip(stacked, slices, strict=True)]

        if not self._may_unroll(loop, rows):
            return self._kept_loop(eqn, operands, loop, rows)
        carry, collected = self._unroll(loop, rows)
        if params["reverse"]:
            collected = [column[::-1] for column in collected]
        stacks = [
            self._stack(column, v.aval)
            for column, v in zip(collected, eqn.outvars[num_carry:], strict=True)
        ]
        return [*carry, *stacks]

    def _while(self, eqn: Any, operands: list[int]) -> list[int]:
        params = eqn.params
        num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
        conditions = operands[:num_cond]
        consts, carry = operands[num_cond : num_cond + num_body], operands[num_cond + num_body :]
        values = [self.values[v].known for v in operands]
        trips = known_trips(
            params, values[:num_cond], values[num_cond : num_cond + num_body], values
        )
        loop = Loop(params["body_jaxpr"], trips, consts, carry)
        if trips is not None and self._may_unroll(loop, no_rows):
            return self._unroll(loop, no_rows)[0]
        cond = (params["cond_jaxpr"], [*conditions, *carry])
        return self._kept_loop(eqn, operands, loop, no_rows, cond)

    def _may_unroll(self, loop: Loop, rows: Callable[[int], list[int]]) -> bool:
        """Whether a loop of known length is unrolled."""
        assert loop.length is not None
        if self.unroll_limit is not None:
            return loop.length <= self.unroll_limit
        if not loop.length:
            return True
        if self._spare <= 0:
            return False
        return loop.length * len(self._one_step(loop, rows)) <= self._spare

    def _unroll(
        self, loop: Loop, rows: Callable[[int], list[int]]
    ) -> tuple[list[int], list[list[int]]]:
        """Appends the operations of all steps.

        Args:
          loop: the loop.
          rows: step -> the values that this step takes of scanned arrays.

        Returns:
          The numbers of the carry after the last step; and for each other result of the body, its
          numbers in the order of the steps.
        """
        assert loop.length is not None
        if self.visit is not None:
            self.visit.is_unrolled = True
        carry = list(loop.carry)
        collected: list[list[int]] = [[] for _ in loop.body.out_avals[len(carry) :]]
        before, spare = len(self.ops), self._spare
        for step in range(loop.length):
            with self._inside(loop, spare):
                results = self.run(loop.body, [*loop.consts, *carry, *rows(step)])
            carry = results[: len(carry)]
            for column, result in zip(collected, results[len(carry) :], strict=True):
                column.append(result)
        self._spare = spare - (len(self.ops) - before)
        return carry, collected

    @contextlib.contextmanager
    def _inside(self, loop: Loop, spare: float) -> Iterator[None]:
        """Inside one step of a loop: inner loops share what this step may add."""
        outer, self._spare = (
            self._spare,
            spare // max(loop.length or 1, 1) - count_equations(loop.body),
        )
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            self._spare = outer

    def _one_step(self, loop: Loop, rows: Callable[[int], list[int]]) -> list[Op]:
        """The operations that one step after the first would add; the program stays as it is."""
        ops, floats, visit = self.ops, self.float_bytes.copy(), self.visit
        self.ops, self.visit = [], None
        try:
            carry = self._steady(loop, rows)
            with self._inside(loop, self._spare):
                results = self.run(loop.body, [*loop.consts, *carry, *rows(0)])
            return live(self.ops, results)
        finally:
            self.ops, self.float_bytes, self.visit = ops, floats, visit

    def _steady(self, loop: Loop, rows: Callable[[int], list[int]]) -> list[int]:
        """Values that stand for the carry of a step after the first.

        A state of the loop that is constant at first and depends on inputs later (a hidden state of
        zeros) is a value of its own here.
        """
        consts = [self.values[v].folded for v in loop.consts]
        carried = [self.values[v].folded for v in loop.carry]
        taken = [self.values[v].folded for v in (rows(0) if loop.length != 0 else ())]
        while True:
            after = folded_outputs(loop.body, [*consts, *carried, *taken])[: len(carried)]
            steady = [a and b for a, b in zip(carried, after, strict=True)]
            if steady == carried:
                break
            carried = steady
        avals = loop.body.in_avals[len(consts) : len(consts) + len(carried)]
        return [
            v if folded or not self.values[v].folded else self.value(self.size(aval), aval)
            for v, folded, aval in zip(loop.carry, carried, avals, strict=True)
        ]

    def _kept_loop(
        self,
        eqn: Any,
        operands: list[int],
        loop: Loop,
        rows: Callable[[int], list[int]],
        cond: tuple[Any, list[int]] | None = None,
    ) -> list[int]:
        """Adds a loop as one operation, or folds it; its bytes are those of all its steps."""
        if all(self.values[v].folded for v in operands):
            return self.fold(operands, [v.aval for v in eqn.outvars])
        steps = 1 if loop.length is None else loop.length
        step = self._one_step(loop, rows) if steps else []
        if cond is not None:
            step = [*step, *self._one_step(Loop(cond[0], loop.length, cond[1], []), no_rows)]
        accessed, fixed = self._traffic_of(step)
        cost = self._cost(eqn)
        flops = cost.flops if eqn.primitive.name == "scan" else cost.flops * steps
        cost = dataclasses.replace(
            cost, flops=flops, accessed=steps * accessed, fixed=steps * fixed
        )
        return self._append(eqn, operands, cost, kept_because(loop.length))

    def _branch_cost(self, eqn: Any, operands: list[int]) -> Cost:
        """The cost of a `cond` that stays one operation: that of its costliest branch."""
        taken = []
        for branch in eqn.params["branches"]:
            ops = self._one_step(Loop(branch, 1, operands[1:], []), no_rows)
            accessed, fixed = self._traffic_of(ops)
            taken.append((costs.body_flops(branch), accessed, fixed))
        _, accessed, fixed = max(taken)
        return dataclasses.replace(self._cost(eqn), accessed=accessed, fixed=fixed)

    def _traffic_of(self, ops: Sequence[Op]) -> tuple[float, float]:
        """Bytes that operations read and write, and those of them that nothing scales."""
        pairs = [self.traffic(op) for op in ops]
        return math.fsum(a for a, _ in pairs), math.fsum(f for _, f in pairs)

    def _scanned_row(self, stacked: int, step: int, aval: Any) -> int:
        """The slice of a scanned array that step `step` reads, as a value."""
        row = self.row_of(stacked, step, aval)
        if row is not None:
            return row
        size = self.size(aval)
        row = self.value(size, aval)
        cost = Cost(0.0, (size,), (size,))
        cuts = NO_CUTS if self.shards else row_cuts(aval.shape)
        self.ops.append(Op("slice", (stacked,), (row,), cost, cuts=cuts))
        return row

    def _stack(self, rows: Sequence[int], aval: Any) -> int:
        """The array of the results that the steps of an unrolled scan return, as a value."""
        size = self.size(aval)
        if all(self.values[v].folded for v in rows):
            return self.stack_of_rows(rows, aval)[0]
        self.count_float(aval)
        stack = self.value(size, aval, rows=tuple(rows))
        reads = tuple(self.values[v].bytes for v in rows)
        cuts = NO_CUTS if self.shards else stack_cuts(len(rows), aval.shape)
        cost = Cost(0.0, reads, (size,))
        self.ops.append(Op("concatenate", tuple(rows), (stack,), cost, cuts=cuts))
        return stack

    def _shard_map(self, eqn: Any, operands: list[int]) -> list[int]:
        """Appends the body of a `shard_map`; costs count the shards of all devices."""
        params = eqn.params
        extents = {a: params["mesh"].shape[a] for a in params["newly_manual_axes"]}
        shards = {a: n for a, n in extents.items() if n > 1}
        before = self.shards, self.all_vary
        self.shards = {**self.shards, **shards}
        self.all_vary |= not params["check_vma"]
        try:
            body = ClosedJaxpr(params["jaxpr"], ())
            if shards:
                operands = [self._unsplit(v) for v in operands]
            results = self.run(body, operands)
        finally:
            self.shards, self.all_vary = before
        return [self._unsplit(v) for v in results] if shards else results

    def _unsplit(self, v: int) -> int:
        """The value, without what is known of parts: shards have other shapes."""
        value = self.values[v]
        if value.folded:
            whole = dataclasses.replace(
                value, views=None, known=None, rows=None, pieces=None, made=None
            )
            self.values.append(whole)
            return len(self.values) - 1
        if value.rows is not None or value.pieces is not None or value.fed is not None:
            whole = dataclasses.replace(value, rows=None, pieces=None, alone=None, fed=None)
            self.values[v] = whole
        return v
