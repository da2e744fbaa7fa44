"""A jaxpr opened into a flat list of operations on numbered values.

Wrappers (pjit, custom_jvp, remat, ...) are opened and short scans unrolled. What depends on
parameters and constants alone becomes no operation: its value remembers which parts of which
parameters it is made of.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from jaxpart.ingest.jaxpr import costs
from jaxpart.ingest.jaxpr.costs import Cost

# Constants captured by closure up to this size (as traced) ride in the program, fed by the host.
SMALL_CONSTANT_BYTES = 1024

Box = tuple[tuple[int, int], ...]  # start and stop on each axis of a parameter
Source = tuple[int, Box]  # part of a parameter


@dataclasses.dataclass(frozen=True)
class Value:
    """One array of the program.

    Attributes:
      bytes: its size.
      folded: depends on parameters and constants alone.
      sources: the parts of parameters that it is made of, where folded.
      reads: bytes that a consumer must read for it, where folded: a weight that was broadcast is no
        larger than the weight.
      view: where the value is one part of one parameter and nothing else, the parameter's axes
        that its own axes are; else None.
    """

    bytes: float
    folded: bool = False
    sources: frozenset[Source] = frozenset()
    reads: float = 0.0
    view: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation on numbered values."""

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    cost: Cost


class Program:
    """The flat list of operations that opening a jaxpr gives; grown by `parameter`, `value`, `run`.

    Attributes:
      values: every array of the program.
      ops: the operations in program order.
      parameters: the abstract values of parameters and large constants.
      float_bytes: bytes of all floats as traced, by the size of an element.
    """

    def __init__(self, size: Callable[[Any], float], unroll_limit: int) -> None:
        """An empty program; `size` gives the bytes of an abstract value."""
        self.size = size
        self.unroll_limit = unroll_limit
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.parameters: list[Any] = []
        self.captured: dict[int, tuple[Any, int]] = {}  # id of a constant -> itself, its value
        self.float_bytes: collections.Counter[int] = collections.Counter()

    def value(self, size: float, **folding: Any) -> int:
        """The number of a new value; an input of the graph unless it is folded or a result."""
        self.values.append(Value(size, **folding))
        return len(self.values) - 1

    def parameter(self, aval: Any) -> int:
        """The number of a value that is a parameter."""
        self.count_float(aval)
        self.parameters.append(aval)
        box = tuple((0, extent) for extent in aval.shape)
        source = (len(self.parameters) - 1, box)
        size = self.size(aval)
        return self.value(
            size,
            folded=True,
            sources=frozenset((source,)),
            reads=size,
            view=tuple(range(len(box))),
        )

    def constant(self, constant: Any) -> int:
        """A captured array: a weight where it is large, the same array the same weight."""
        known = self.captured.get(id(constant))
        if known is not None:
            return known[1]
        aval = jax.typeof(constant)
        size = self.size(aval)
        if costs.elements(aval) * costs.element_bytes(aval) > SMALL_CONSTANT_BYTES:
            value = self.parameter(aval)
        else:
            value = self.value(size, folded=True, reads=size)
        self.captured[id(constant)] = (constant, value)  # kept alive, so that the id stays its own
        return value

    def run(self, closed: Any, operands: Sequence[int]) -> list[int]:
        """Appends the operations of a closed jaxpr; the values of its results."""
        jaxpr = closed.jaxpr
        environment: dict[Any, int] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
            environment[variable] = self.constant(constant)

        def read(atom: Any) -> int:
            return self._literal(atom) if isinstance(atom, Literal) else environment[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            environment.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _literal(self, literal: Any) -> int:
        if getattr(literal.val, "ndim", 0):
            return self.constant(literal.val)
        return self.value(self.size(literal.aval), folded=True)  # in the instruction: nothing read

    def _equation(self, eqn: Any, operands: list[int]) -> list[int]:
        body = costs.inlined(eqn)
        if body is not None:
            return self.run(body, operands)
        if eqn.primitive.name == "scan" and eqn.params["length"] <= self.unroll_limit:
            return self._unroll(eqn, operands)
        sizes = [self.size(v.aval) for v in eqn.outvars]
        if all(self.values[v].folded for v in operands):
            if not eqn.invars:  # iota and the like: a constant
                return [self.value(size, folded=True, reads=size) for size in sizes]
            parts = self._parts(eqn, operands)
            return parts or self._fold(operands, sizes)
        for v in eqn.outvars:
            self.count_float(v.aval)
        results = [self.value(size) for size in sizes]
        cost = costs.equation_cost(eqn, self.size)
        self.ops.append(Op(eqn.primitive.name, tuple(operands), tuple(results), cost))
        return results

    def _fold(self, operands: Sequence[int], sizes: Sequence[float]) -> list[int]:
        """Results that a compiler computes once, ahead of time, from parameters and constants."""
        sources = frozenset().union(*(self.values[v].sources for v in operands))
        reads = sum(self.values[v].reads for v in set(operands))
        return [
            self.value(size, folded=True, sources=sources, reads=min(size, reads)) for size in sizes
        ]

    def _parts(self, eqn: Any, operands: Sequence[int]) -> list[int] | None:
        """The results of an equation that hands on parts of one parameter, or all of it."""
        view = self.values[operands[0]].view
        if view is None:
            return None
        params = eqn.params
        match eqn.primitive.name:
            case "convert_element_type" | "copy" | "stop_gradient":
                return [self._part(operands[0], {}, view, eqn.outvars[0].aval)]
            case "squeeze":
                kept = tuple(a for i, a in enumerate(view) if i not in params["dimensions"])
                return [self._part(operands[0], {}, kept, eqn.outvars[0].aval)]
            case "transpose":
                turned = tuple(view[i] for i in params["permutation"])
                return [self._part(operands[0], {}, turned, eqn.outvars[0].aval)]
            case "slice" if params["strides"] is None:
                spans = zip(params["start_indices"], params["limit_indices"], strict=True)
                cut = dict(zip(view, spans, strict=True))
                return [self._part(operands[0], cut, view, eqn.outvars[0].aval)]
            case "split":
                start, results = 0, []
                for extent, v in zip(params["sizes"], eqn.outvars, strict=True):
                    cut = {view[params["axis"]]: (start, start + extent)}
                    results.append(self._part(operands[0], cut, view, v.aval))
                    start += extent
                return results
        return None

    def _part(
        self, whole: int, cut: dict[int, tuple[int, int]], view: tuple[int, ...], aval: Any
    ) -> int:
        """A part of the parameter that `whole` is a view of; cuts are relative to that view."""
        ((parameter, box),) = self.values[whole].sources
        spans = list(box)
        for axis, (start, stop) in cut.items():
            spans[axis] = (box[axis][0] + start, box[axis][0] + stop)
        size = self.size(aval)
        sources = frozenset(((parameter, tuple(spans)),))
        return self.value(size, folded=True, sources=sources, reads=size, view=view)

    def _unroll(self, eqn: Any, operands: list[int]) -> list[int]:
        params, body = eqn.params, eqn.params["jaxpr"]
        length = params["length"]
        # Told by their ranks, since releases of JAX name the split in different ways: what runs
        # along the scan has one axis more outside than inside.
        num_carry = _same_rank(body.out_avals, eqn.outvars)
        first_stacked = _same_rank(body.in_avals, eqn.invars)
        num_consts = first_stacked - num_carry
        constants, carry = operands[:num_consts], operands[num_consts:first_stacked]
        stacked, slices = operands[first_stacked:], body.in_avals[first_stacked:]
        collected: list[list[int]] = [[] for _ in eqn.outvars[num_carry:]]
        for step in reversed(range(length)) if params["reverse"] else range(length):
            rows = [
                self._row(v, step, length, aval) for v, aval in zip(stacked, slices, strict=True)
            ]
            results = self.run(body, [*constants, *carry, *rows])
            carry = results[:num_carry]
            for column, result in zip(collected, results[num_carry:], strict=True):
                column.append(result)
        stacks = [
            self._stack(column, v.aval)
            for column, v in zip(collected, eqn.outvars[num_carry:], strict=True)
        ]
        return [*carry, *stacks]

    def _row(self, stacked: int, step: int, length: int, aval: Any) -> int:
        """What step `step` of an unrolled scan sees of an array that it runs along."""
        whole, size = self.values[stacked], self.size(aval)
        if whole.view is not None:
            cut = {whole.view[0]: (step, step + 1)}
            return self._part(stacked, cut, whole.view[1:], aval)
        if whole.folded:
            return self._fold([stacked], [size])[0]
        row = self.value(size)
        self.ops.append(Op("slice", (stacked,), (row,), Cost(0.0, (size,), (size,))))
        return row

    def _stack(self, rows: Sequence[int], aval: Any) -> int:
        """The array that an unrolled scan collects."""
        size = self.size(aval)
        if all(self.values[v].folded for v in rows):
            return self._fold(rows, [size])[0]
        self.count_float(aval)
        stack = self.value(size)
        reads = tuple(self.values[v].bytes for v in rows)
        self.ops.append(Op("concatenate", tuple(rows), (stack,), Cost(0.0, reads, (size,))))
        return stack

    def count_float(self, aval: Any) -> None:
        """Adds to `float_bytes` where `aval` holds floats."""
        if costs.is_float(aval):
            width = costs.element_bytes(aval) // (2 if aval.dtype.kind == "c" else 1)
            self.float_bytes[width] += costs.elements(aval) * width


def _same_rank(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    """How many values have the same rank inside a scan's body as outside."""
    return sum(a.ndim == v.aval.ndim for a, v in zip(inside, outside, strict=True))
