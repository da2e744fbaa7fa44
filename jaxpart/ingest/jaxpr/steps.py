"""The exact steps of a function: equations on numbered arrays, each with its shape.

The values of `values.py` say what costs what. They have no shapes, and a part of an array may be
the array's own value. Steps compute what the function computes, bit for bit. An array and a value
are tied by the value's number: where the importer found that a result is a value of before (a row
of a stack that steps of a loop made), the step is a reshape of the array of before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxpart.ingest.jaxpr import sizes
from jaxpart.ingest.jaxpr.boxes import Box, contains, disjoint, read_box, whole_box, written_box
from jaxpart.ingest.jaxpr.demand import operand_boxes, reshaped_box
from jaxpart.ingest.jaxpr.flops import SCATTERS
from jaxpart.ingest.jaxpr.loops import scan_counts
from jaxpart.ingest.jaxpr.program import Program
from jaxpart.ingest.jaxpr.visits import Expansion, Visit

Needs = Callable[[int, Box], "Sequence[Box | None]"]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One equation, or a row, stack or reshape that an unrolled loop brings.

    Attributes:
      name: of the primitive.
      operands: numbers of the arrays that it reads.
      results: numbers of the arrays that it computes.
      run: computes the results of the operands.
      needs: the box of each operand that a box of a result, named by its position, is computed
        from; None for an operand that does not matter. At most too much.
      eqn: the equation, if it is one.
      pieces: numbers of the values that the importer computes here beside the results: boxes of an
        array that is written into.
    """

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    run: Callable[..., Sequence[Any]]
    needs: Needs
    eqn: Any = None
    pieces: tuple[int, ...] = ()


class Steps:
    """The steps of a function in program order.

    Attributes:
      avals: the abstract value of each array; the position of an array is its number.
      values: [arrays] the number of the importer's value of each array, -1 for none.
      steps: the steps.
      maker: array -> position of the step that computes it, and of the result there.
      constants: array -> what it holds, for literals and captured arrays.
      arguments: the arrays that are the leaves of the function's arguments.
      outputs: the arrays that the function returns.
      opaque: names of the equations whose bodies are nodes, but which only run as a whole.
    """

    def __init__(self, program: Program, expansion: Expansion) -> None:
        """Lists the steps of a program from what became of its equations."""
        self._program = program
        self.avals: list[Any] = []
        self.values: list[int] = []
        self.steps: list[Step] = []
        self.maker: dict[int, tuple[int, int]] = {}
        self.constants: dict[int, Any] = {}
        self.opaque: set[str] = set()
        self._first: dict[int, int] = {}  # value -> the first array that it is
        self._captured: dict[tuple[int, str], int] = {}  # id and dtype of what is held -> its array
        self._root = expansion.closed.jaxpr
        self.arguments = [
            self._array(v.aval, number)
            for v, number in zip(self._root.invars, expansion.operands, strict=True)
        ]
        self.outputs = self._expand(expansion, self.arguments)

    def value_of(self, array: int) -> int | None:
        """The number of the importer's value, for the first array of this value; else None."""
        value = self.values[array]
        return value if self._first.get(value) == array else None

    def array_of(self, value: int) -> int | None:
        """The first array that is this value; None if there is none."""
        return self._first.get(value)

    def _array(self, aval: Any, value: int = -1) -> int:
        self.avals.append(aval)
        self.values.append(value)
        number = len(self.avals) - 1
        if value >= 0:
            self._first.setdefault(value, number)
        return number

    def _constant(self, held: Any, aval: Any) -> int:
        """The array of a literal or captured array; the same one has one number."""
        key = (id(held), str(getattr(aval, "dtype", None)))
        if key not in self._captured:
            array = self._array(aval)
            self.constants[array] = held  # the reference keeps the id unique
            self._captured[key] = array
        return self._captured[key]

    def _expand(self, expansion: Expansion, operands: Sequence[int]) -> list[int]:
        """Adds the steps of a body; returns the arrays of its results."""
        jaxpr = expansion.closed.jaxpr
        environment: dict[Any, int] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, held in zip(jaxpr.constvars, expansion.closed.consts, strict=True):
            environment[variable] = self._constant(held, variable.aval)

        def read(atom: Any) -> int:
            if isinstance(atom, Literal):
                return self._constant(atom.val, atom.aval)
            return environment[atom]

        for visit in expansion.visits:
            results = self._visit(visit, [read(atom) for atom in visit.eqn.invars])
            environment.update(zip(visit.eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _visit(self, visit: Visit, operands: list[int]) -> list[int]:
        name = visit.eqn.primitive.name
        if name == "shard_map":
            self.opaque.add(name)
            return self._equation(visit, operands)
        if visit.is_unrolled:
            unroll = self._unrolled_scan if name == "scan" else self._unrolled_while
            return unroll(visit, operands)
        if visit.bodies:
            (body,) = visit.bodies
            return self._expand(body, operands[len(operands) - len(body.operands) :])
        return self._equation(visit, operands)

    def _unrolled_while(self, visit: Visit, operands: list[int]) -> list[int]:
        params = visit.eqn.params
        first = params["cond_nconsts"] + params["body_nconsts"]
        consts, carry = operands[params["cond_nconsts"] : first], operands[first:]
        for body in visit.bodies:
            carry = self._expand(body, [*consts, *carry])
        return carry

    def _unrolled_scan(self, visit: Visit, operands: list[int]) -> list[int]:
        eqn, length = visit.eqn, len(visit.bodies)
        num_consts, num_carry = scan_counts(eqn)
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        scanned = operands[num_consts + num_carry :]
        collected: list[list[int]] = [[] for _ in eqn.outvars[num_carry:]]
        for step, body in enumerate(visit.bodies):
            at = length - 1 - step if eqn.params["reverse"] else step
            numbers = body.operands[num_consts + num_carry :]
            rows = [self._row(v, at, n) for v, n in zip(scanned, numbers, strict=True)]
            results = self._expand(body, [*consts, *carry, *rows])
            carry = results[:num_carry]
            for column, result in zip(collected, results[num_carry:], strict=True):
                column.append(result)
        stacks = [
            self._stack(column[::-1] if eqn.params["reverse"] else column, v.aval, number)
            for column, v, number in zip(
                collected, eqn.outvars[num_carry:], visit.results[num_carry:], strict=True
            )
        ]
        return [*carry, *stacks]

    def _equation(self, visit: Visit, operands: list[int]) -> list[int]:
        """Adds an equation as it is."""
        eqn, values = visit.eqn, self._program.values
        known = [values[v].known for v in visit.operands]
        columns = self._program.index_columns(eqn, visit.operands, known)
        before = [
            self._before(v.aval, number)
            for v, number in zip(eqn.outvars, visit.results, strict=True)
        ]
        results = [
            self._array(v.aval, -1 if known_array is not None else number)
            for v, number, known_array in zip(eqn.outvars, visit.results, before, strict=True)
        ]
        made = [r for op in self._program.ops[visit.start : visit.stop] for r in op.results]
        self._add(
            Step(
                eqn.primitive.name,
                tuple(operands),
                tuple(results),
                functools.partial(_run, eqn, self._root),
                functools.partial(_needed, eqn, known, columns),
                eqn,
                tuple(r for r in made if r not in visit.results),
            )
        )
        return [
            result if array is None else self._reshaped(array, self.avals[result])
            for result, array in zip(results, before, strict=True)
        ]

    def _before(self, aval: Any, value: int) -> int | None:
        """The array that is this value already; None if there is none of as many elements."""
        array = self._first.get(value)
        if array is None:
            return None
        other = self.avals[array]
        same = getattr(aval, "dtype", None) == getattr(other, "dtype", None)
        return array if same and sizes.elements(aval) == sizes.elements(other) else None

    def _row(self, array: int, index: int, value: int) -> int:
        shape = self.avals[array].shape
        aval = jax.ShapeDtypeStruct(shape[1:], self.avals[array].dtype)
        before = self._before(aval, value)
        if before is not None:
            return self._reshaped(before, aval)
        row = self._array(aval, value)
        self._add(
            Step(
                "slice",
                (array,),
                (row,),
                functools.partial(_row_of, index),
                lambda _, box: [((index, index + 1), *box)],
            )
        )
        return row

    def _stack(self, rows: Sequence[int], aval: Any, value: int) -> int:
        before = self._before(aval, value)
        if before is not None:
            return self._reshaped(before, aval)

        def needs(_: int, box: Box) -> list[Box | None]:
            return [box[1:] if i in range(*box[0]) else None for i in range(len(rows))]

        def run(*operands: Any) -> list[Any]:
            return [jnp.stack(operands) if operands else jnp.zeros(aval.shape, aval.dtype)]

        stack = self._array(aval, value)
        self._add(Step("concatenate", tuple(rows), (stack,), run, needs))
        return stack

    def _reshaped(self, array: int, aval: Any) -> int:
        """An array in another shape, its elements in the same order."""
        before, after = self.avals[array].shape, aval.shape
        if before == after:
            return array
        result = self._array(aval)
        self._add(
            Step(
                "reshape",
                (array,),
                (result,),
                lambda x: [lax.reshape(x, after)],
                lambda _, box: [reshaped_box(before, after, box)],
            )
        )
        return result

    def _add(self, step: Step) -> None:
        for position, array in enumerate(step.results):
            self.maker[array] = (len(self.steps), position)
        self.steps.append(step)


def _row_of(index: int, x: Any) -> list[Any]:
    if isinstance(x, Tracer):
        return [lax.index_in_dim(x, index, 0, keepdims=False)]
    return [lax.dynamic_index_in_dim(x, index, 0, keepdims=False)]  # compiled once for all rows


def _run(eqn: Any, jaxpr: Any, *operands: Any) -> Sequence[Any]:
    """Runs one equation on its operands; of `jaxpr`, only the debug information is used."""
    given = {
        atom: x
        for atom, x in zip(eqn.invars, operands, strict=True)
        if not isinstance(atom, Literal)
    }
    alone = jaxpr.replace(
        constvars=[],
        invars=list(given),
        outvars=list(eqn.outvars),
        eqns=[eqn],
        effects=eqn.effects,
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def _needed(
    eqn: Any, known: Sequence[Any], columns: Sequence[Any], result: int, box: Box
) -> list[Box | None]:
    """The box of each operand that a box of a result is computed from; at most too much."""
    needed = list(operand_boxes(eqn, known, result, box))
    if not eqn.invars or not getattr(eqn.invars[0].aval, "shape", ()):
        return needed
    read = read_box(eqn, known, columns)
    if read is not None and needed[0] == whole_box(eqn.invars[0].aval.shape):
        needed[0] = read
    written = written_box(eqn, known, columns)
    if written is not None:
        where, is_replaced = written
        if disjoint(where, box):
            needed[1:] = [None] * (len(needed) - 1)
        elif is_replaced and contains(where, box):
            needed[0] = None
    # An update that does not matter is zeros, and they too must be written where it would be.
    name = eqn.primitive.name
    places = range(2, len(needed)) if name == "dynamic_update_slice" else (1,)
    if name == "dynamic_update_slice" or name in SCATTERS:
        for i in places:
            needed[i] = whole_box(getattr(eqn.invars[i].aval, "shape", ()))
    return needed
