"""Expands a jaxpr into a flat list of operations on numbered values.

Wrappers (pjit, custom_jvp, remat, ...) are replaced by their bodies, and short scans are unrolled.
An equation on parameters and constants alone adds no operation. Its results are folded values. They
record which parts of which parameters they are made of.
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

# Bytes as traced: the host feeds captured constants up to this size; larger ones are weights.
SMALL_CONSTANT_BYTES = 1024

Box = tuple[tuple[int, int], ...]  # (start, stop) on each axis of a parameter
Source = tuple[int, Box]  # number of a parameter, and a part of it


@dataclasses.dataclass(frozen=True)
class Value:
    """One array of the program.

    Attributes:
      bytes: size of the array in bytes.
      folded: whether the value depends on parameters and constants alone.
      sources: the parts of parameters that a folded value is made of; else empty.
      reads: bytes that a consumer must read for a folded value; else 0. A broadcast weight needs no
        more than the bytes of the weight itself.
      view: the axis of the parameter for each axis of the value, if the value is exactly one part
        of one parameter; else None.
    """

    bytes: float
    folded: bool = False
    sources: frozenset[Source] = frozenset()
    reads: float = 0.0
    view: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation on numbered values.

    Attributes:
      name: name of the primitive.
      operands: numbers of the values that it reads.
      results: numbers of the values that it computes.
      cost: FLOPs and bytes.
    """

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    cost: Cost


class Program:
    """A flat list of operations; `parameter`, `value` and `run` extend it.

    Attributes:
      size: function from an abstract value to its bytes.
      unroll_limit: scans of at most this many steps are unrolled.
      values: all arrays of the program; the position of a value is its number.
      ops: the operations in program order.
      parameters: the abstract values of parameters and large constants.
      captured: id of a captured array -> the array, the number of its value.
      float_bytes: bytes per element of a float type -> bytes of all values of that type, as traced.
        A complex number counts as two floats.
    """

    def __init__(self, size: Callable[[Any], float], unroll_limit: int) -> None:
        """Starts an empty program.

        Args:
          size: function from an abstract value to its bytes.
          unroll_limit: scans of at most this many steps are unrolled.
        """
        self.size = size
        self.unroll_limit = unroll_limit
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.parameters: list[Any] = []
        self.captured: dict[int, tuple[Any, int]] = {}
        self.float_bytes: collections.Counter[int] = collections.Counter()

    def value(self, size: float, **folding: Any) -> int:
        """Adds a value. If it is neither folded nor a result, it is an input of the graph.

        Args:
          size: bytes.
          folding: the other attributes of `Value`, for a folded value.

        Returns:
          The number of the value.
        """
        self.values.append(Value(size, **folding))
        return len(self.values) - 1

    def parameter(self, aval: Any) -> int:
        """Adds a parameter and a value that is the whole of it.

        Args:
          aval: abstract value of the parameter.

        Returns:
          The number of the value.
        """
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
        """Adds a captured array, unless it is already there.

        Args:
          constant: the array. It becomes a parameter if it has more than `SMALL_CONSTANT_BYTES`.

        Returns:
          The number of its value; the same array always has the same number.
        """
        known = self.captured.get(id(constant))
        if known is not None:
            return known[1]
        aval = jax.typeof(constant)
        size = self.size(aval)
        if costs.elements(aval) * costs.element_bytes(aval) > SMALL_CONSTANT_BYTES:
            value = self.parameter(aval)
        else:
            value = self.value(size, folded=True, reads=size)
        self.captured[id(constant)] = (constant, value)  # the reference keeps the id unique
        return value

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
            return self._literal(atom) if isinstance(atom, Literal) else environment[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            environment.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _literal(self, literal: Any) -> int:
        if getattr(literal.val, "ndim", 0):
            return self.constant(literal.val)
        # A scalar is part of the instruction: there are no bytes to read.
        return self.value(self.size(literal.aval), folded=True)

    def _equation(self, eqn: Any, operands: list[int]) -> list[int]:
        body = costs.inlined(eqn)
        if body is not None:
            return self.run(body, operands)
        if eqn.primitive.name == "scan" and eqn.params["length"] <= self.unroll_limit:
            return self._unroll(eqn, operands)
        sizes = [self.size(v.aval) for v in eqn.outvars]
        if all(self.values[v].folded for v in operands):
            if not eqn.invars:  # a constant, such as iota
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
        """Adds folded results of `sizes` bytes. A compiler computes them once, ahead of time."""
        sources = frozenset().union(*(self.values[v].sources for v in operands))
        reads = sum(self.values[v].reads for v in set(operands))
        return [
            self.value(size, folded=True, sources=sources, reads=min(size, reads)) for size in sizes
        ]

    def _parts(self, eqn: Any, operands: Sequence[int]) -> list[int] | None:
        """Adds the results of an equation that returns one parameter, whole or in parts.

        Returns:
          Numbers of the results; None if the equation does anything else.
        """
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
                permuted = tuple(view[i] for i in params["permutation"])
                return [self._part(operands[0], {}, permuted, eqn.outvars[0].aval)]
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
        """Adds a part of the parameter that `whole` is a view of.

        Args:
          whole: number of a value with a view.
          cut: axis of the parameter -> start and stop on it, relative to `whole`.
          view: the `Value.view` of the part.
          aval: abstract value of the part.

        Returns:
          The number of the part.
        """
        ((parameter, box),) = self.values[whole].sources
        spans = list(box)
        for axis, (start, stop) in cut.items():
            spans[axis] = (box[axis][0] + start, box[axis][0] + stop)
        size = self.size(aval)
        sources = frozenset(((parameter, tuple(spans)),))
        return self.value(size, folded=True, sources=sources, reads=size, view=view)

    def _unroll(self, eqn: Any, operands: list[int]) -> list[int]:
        """Appends the operations of all steps of a scan; returns the numbers of its results."""
        params, body = eqn.params, eqn.params["jaxpr"]
        length = params["length"]
        # Ranks tell constants and carry from scanned arrays, because releases of JAX name these
        # counts differently. A scanned array has one axis more outside the body than inside.
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
        """The slice of a scanned array that step `step` reads, as a value."""
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
        """The array of the results that the steps of an unrolled scan return, as a value."""
        size = self.size(aval)
        if all(self.values[v].folded for v in rows):
            return self._fold(rows, [size])[0]
        self.count_float(aval)
        stack = self.value(size)
        reads = tuple(self.values[v].bytes for v in rows)
        self.ops.append(Op("concatenate", tuple(rows), (stack,), Cost(0.0, reads, (size,))))
        return stack

    def count_float(self, aval: Any) -> None:
        """Adds the bytes of `aval` to `float_bytes` if its elements are floats."""
        if costs.is_float(aval):
            width = costs.element_bytes(aval) // (2 if aval.dtype.kind == "c" else 1)
            self.float_bytes[width] += costs.elements(aval) * width


def _same_rank(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    """Number of values with the same rank inside the body of a scan as outside."""
    return sum(a.ndim == v.aval.ndim for a, v in zip(inside, outside, strict=True))
