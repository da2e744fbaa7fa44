"""Values that need no operation: functions of parameters, parts of them, and rows of stacks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxpart.ingest.jaxpr import known, parts, sizes
from jaxpart.ingest.jaxpr.costs import Cost
from jaxpart.ingest.jaxpr.flops import is_elementwise
from jaxpart.ingest.jaxpr.values import Known, Op, Values, regions
from jaxpart.ingest.jaxpr.views import Change, View, whole

_MAX_VIEWS = 16  # most parts of parameters that an elementwise function of them keeps apart
_MAX_ROWS = 4096  # most rows of an array that are kept apart


class Folding(Values):
    """Values that equations make without an operation.

    A value that depends on parameters and constants alone is folded: a compiler computes it once,
    ahead of time. A part of a parameter or state, and a row of a stack, is read where it is.
    """

    def __init__(self, size: Callable[[Any], float]) -> None:
        """Starts an empty program; `size` is as in `Values`."""
        super().__init__(size)
        self.depth = 0  # of unrolled loops

    def folded(self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]) -> list[int]:
        """Adds the results of an equation on parameters and constants alone."""
        avals = [v.aval for v in eqn.outvars]
        values = known.known_results(eqn, constants)
        if not eqn.invars:  # a constant, such as iota
            results = [
                self.value(size, aval, folded=True, reads=size, views=())
                for aval in avals
                for size in [self.size(aval)]
            ]
        else:
            results = self._parts(eqn, operands, constants) or self.fold(operands, avals)
        for v, array in zip(results, values or (), strict=False):
            self.values[v] = dataclasses.replace(self.values[v], known=array)
        return results

    def fold(self, operands: Sequence[int], avals: Sequence[Any], **more: Any) -> list[int]:
        """Adds folded results. A compiler computes them once, ahead of time."""
        sources = frozenset().union(*(self.values[v].sources for v in operands))
        distinct = [self.values[v] for v in set(operands)]
        reads = sum(value.reads for value in distinct)
        results = []
        for aval in avals:
            size = self.size(aval)
            # Quantised weights and their scales stay as they are; what is smaller is precomputed.
            share = math.fsum(v.reads * v.fixed for v in distinct) / reads if reads else 0.0
            density = min(1.0, reads / size) if size and more.get("views") is not None else 1.0
            results.append(
                self.value(
                    size,
                    folded=True,
                    sources=sources,
                    reads=min(size, reads),
                    fixed=share if reads < size else 0.0 if sizes.is_float(aval) else 1.0,
                    **{"density": density, **more},
                )
            )
        return results

    def _parts(
        self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]
    ) -> list[int] | None:
        """Adds the results of an equation that keeps parts of parameters apart.

        Returns:
          Numbers of the results; None if the equation mixes the parts.
        """
        if self.shards:
            return None
        first = self.values[operands[0]]
        name = eqn.primitive.name
        changes = parts.changes(eqn, constants)
        if changes is not None:
            rows = self._rows_taken(eqn, operands[0], constants)
            if rows is not None:
                return rows
            pairs = zip(changes, eqn.outvars, strict=True)
            taken = [self._changed(operands[0], change, v.aval, eqn) for change, v in pairs]
            return None if None in taken else [v for v in taken if v is not None]
        if name == "gather" and first.folded:
            positions = parts.gathered_rows(eqn, constants)
            if positions is None or len(positions) > _MAX_ROWS or not first.sources:
                return None
            return self._stack_of_parts(eqn, [(operands[0], i) for i in positions])
        if name in ("concatenate", "stack"):
            return self._joined(eqn, operands)
        if is_elementwise(name):
            return self._elementwise(eqn, operands)
        return None

    def _changed(self, v: int, change: Change, aval: Any, eqn: Any) -> int | None:
        """Adds a part of a value that is folded or a state; None if it cannot be told apart."""
        value = self.values[v]
        if value.rows is not None and eqn is not None and eqn.primitive.name in parts.IDENTITIES:
            row = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
            rows = [self._changed(r, change, row, eqn) for r in value.rows]
            if value.folded and None not in rows:
                return self.stack_of_rows([r for r in rows if r is not None], aval)[0]
        if value.views is None:
            return None
        views = []
        for parameter, view in value.views:
            changed = change(view)
            if changed is None:
                return None
            views.append((parameter, changed))
        sources = regions(views)
        size = self.size(aval)
        if not value.folded:
            return self.value(size, aval, sources=sources, views=tuple(views))
        name = eqn.primitive.name if eqn is not None else "slice"
        if name in ("convert_element_type", "reduce_precision"):
            # A weight that is cast is read in its own type.
            density = value.density * value.bytes / size if size else 1.0
            reads, fixed = value.reads, value.fixed
            if len(views) != 1:  # computed ahead of time
                reads, density = min(size, reads), 1.0
                fixed = 0.0 if sizes.is_float(aval) else 1.0
        else:
            stored = math.fsum(self.region_bytes(*source) for source in sources)
            density, fixed = value.density, value.fixed
            reads = min(value.reads, stored) if views else min(size, value.reads)
        return self.value(
            size,
            folded=True,
            sources=sources,
            reads=reads,
            density=density,
            fixed=fixed,
            views=tuple(views),
        )

    def _elementwise(self, eqn: Any, operands: Sequence[int]) -> list[int] | None:
        """Adds the results of an elementwise function; its operands repeat along axes of extent 1.

        None if an operand is no elementwise function of parameters itself.
        """
        shape = eqn.outvars[0].aval.shape
        views: dict[tuple[int, View], None] = {}
        for v, atom in zip(operands, eqn.invars, strict=True):
            value, extents = self.values[v], atom.aval.shape
            if value.views is None or len(extents) not in (0, len(shape)):
                return None
            if any(n not in (1, m) for n, m in zip(extents, shape, strict=False)):
                return None
            for parameter, view in value.views:
                views[parameter, view.broadcast(shape, range(len(extents)))] = None
        if len(views) > _MAX_VIEWS:
            return None
        return self.fold(operands, [v.aval for v in eqn.outvars], views=tuple(views))

    def _joined(self, eqn: Any, operands: Sequence[int]) -> list[int] | None:
        """Adds folded values that are joined on their first axis, as a stack of its rows."""
        name, params = eqn.primitive.name, eqn.params
        if params["axis" if name == "stack" else "dimension"] != 0:
            return None
        if not any(self.values[v].sources for v in operands):
            return None
        if name == "stack":
            return self.stack_of_rows(operands, eqn.outvars[0].aval)
        extents = [atom.aval.shape[0] for atom in eqn.invars]
        if sum(extents) > _MAX_ROWS:
            return None
        return self._stack_of_parts(
            eqn,
            [(v, i) for v, extent in zip(operands, extents, strict=True) for i in range(extent)],
        )

    def _stack_of_parts(self, eqn: Any, positions: Sequence[tuple[int, int]]) -> list[int] | None:
        """Adds a folded stack of rows; each is a value and a position on its first axis."""
        aval = eqn.outvars[0].aval
        row = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
        made: dict[tuple[int, int], int | None] = {}
        for position in positions:
            if position not in made:
                made[position] = self.row_of(*position, row)
        rows = [made[position] for position in positions]
        if any(v is None for v in rows):
            return None
        return self.stack_of_rows([v for v in rows if v is not None], aval)

    def stack_of_rows(self, rows: Sequence[int], aval: Any) -> list[int]:
        """Adds the folded stack of some folded rows; returns its number alone in a list."""
        return self.fold(rows, [aval], rows=tuple(rows))

    def taken(
        self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]
    ) -> list[int] | None:
        """Adds what an equation takes of a state or of known rows; None if it does anything else.

        Taking a part is no operation: the consumer reads the part where it is.
        """
        if self.shards or not operands:
            return None
        name, first = eqn.primitive.name, self.values[operands[0]]
        if first.folded or name not in (
            *("slice", "squeeze", "unstack", "split", "dynamic_slice", "gather", "reshape"),
            *("rev", "copy", "stop_gradient"),
        ):
            return None
        if first.rows is not None or first.fed is not None:
            rows = self._rows_taken(eqn, operands[0], constants)
            if rows is not None:
                return rows
        if not first.is_state:
            return None
        changes = parts.changes(eqn, constants)
        if changes is None or name == "rev":
            return None
        pairs = zip(changes, eqn.outvars, strict=True)
        taken = [self._changed(operands[0], change, v.aval, eqn) for change, v in pairs]
        return None if None in taken else [v for v in taken if v is not None]

    def _rows_taken(self, eqn: Any, v: int, constants: Sequence[Known]) -> list[int] | None:
        """Values of whole rows that an equation takes of a stack; None if it takes others.

        Rows of a stack are values of the program. Rows of an input are fed by the host; they are
        taken so inside unrolled loops alone.
        """
        value, name = self.values[v], eqn.primitive.name
        if value.rows is None and (
            value.fed is None or not self.depth or name not in ("dynamic_slice", "gather")
        ):
            return None
        shape = eqn.invars[0].aval.shape
        if not shape or shape[0] > _MAX_ROWS:
            return None
        changes = parts.changes(eqn, constants)
        if changes is None:
            return None
        original, results = whole(shape), []
        for change, out in zip(changes, eqn.outvars, strict=True):
            view = change(original)
            span = None if view is None else _row_span(original, view)
            if span is None:
                return None
            start, step, count, squeezed = span
            if not value.folded and not squeezed and count != 1:
                return None
            row = jax.ShapeDtypeStruct(shape[1:], out.aval.dtype)
            rows = [self.row_of(v, start + i * step, row) for i in range(count)]
            if squeezed:
                results.append(rows[0])
            elif value.folded:
                results.extend(self.stack_of_rows([r for r in rows if r is not None], out.aval))
            elif rows[0] is not None:
                results.append(self._with_axis(rows[0], out.aval))
        return results if None not in results else None

    def _with_axis(self, row: int, aval: Any) -> int:
        """Adds a row with a first axis of extent 1; no operation if the host feeds the row."""
        size, value = self.size(aval), self.values[row]
        if value.fed is not None or value.folded:
            return self.value(
                size,
                aval,
                fed=value.fed,
                folded=value.folded,
                sources=value.sources,
                reads=value.reads,
                rows=(row,),
            )
        stack = self.value(size, aval, rows=(row,))
        self.ops.append(Op("reshape", (row,), (stack,), Cost(0.0, (value.bytes,), (size,))))
        return stack

    def row_of(self, v: int, index: int, aval: Any) -> int | None:
        """A row of a value, as a value; None where it cannot be told apart.

        Args:
          v: number of the value.
          index: position on its first axis.
          aval: abstract value of the row.
        """
        value, size = self.values[v], self.size(aval)
        if value.rows is not None:
            return value.rows[index]
        constant = None if value.known is None else value.known[index]
        if value.views is not None and not self.shards:
            row = self._changed(v, lambda view: view.row(index), aval, None)
            if row is not None and constant is not None:
                self.values[row] = dataclasses.replace(self.values[row], known=constant)
            return row
        if value.folded:
            return self.fold([v], [aval], known=constant)[0]
        if value.fed is not None:
            return self.value(size, aval, fed=value.fed)
        return None

    def note_rows(
        self, eqn: Any, operands: Sequence[int], results: Sequence[int], constants: Sequence[Known]
    ) -> None:
        """Records the rows of the result where an equation writes one row of known position."""
        if self.shards:
            return
        name, (first, *_) = eqn.primitive.name, (*results, None)
        if first is None:
            return
        aval = eqn.outvars[0].aval
        if name in ("broadcast_in_dim", "reshape") and len(operands) == 1:
            before = tuple(eqn.invars[0].aval.shape)
            if tuple(aval.shape) == (1, *before):
                self.values[first] = dataclasses.replace(self.values[first], alone=operands[0])
            return
        if name in ("slice", "rev", "dynamic_slice") and self.values[operands[0]].rows is not None:
            change = parts.changes(eqn, constants)
            view = None if change is None else change[0](whole(eqn.invars[0].aval.shape))
            span = None if view is None else _row_span(whole(eqn.invars[0].aval.shape), view)
            if span is not None:
                start, step, count, _ = span
                stacked = self.values[operands[0]].rows or ()
                rows = tuple(stacked[start + i * step] for i in range(count))
                self.values[first] = dataclasses.replace(self.values[first], rows=rows)
            return
        written = parts.updated_row(eqn, constants)
        if written is None or aval.shape[0] > _MAX_ROWS:
            return
        index, with_axis = written
        update = operands[1] if with_axis else operands[2]
        row = self.values[update].alone if with_axis else update
        if row is None or self.values[row].folded or self.values[row].fed is not None:
            return
        shape = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
        rows = [self.row_of(operands[0], i, shape) for i in range(aval.shape[0])]
        if any(r is None for i, r in enumerate(rows) if i != index):
            return
        rows[index] = row
        kept = tuple(r for r in rows if r is not None)
        self.values[first] = dataclasses.replace(self.values[first], rows=kept)


def _row_span(original: View, part: View) -> tuple[int, int, int, bool] | None:
    """The rows that a part consists of: first, step, count, and whether it is one row alone."""
    stride = original.strides[0]
    if stride and part.shape == original.shape[1:] and part.strides == original.strides[1:]:
        return None if part.offset % stride else (part.offset // stride, 1, 1, True)
    if part.shape[1:] != original.shape[1:] or not part.shape or not stride:
        return None
    if len(part.shape) != len(original.shape) or part.strides[1:] != original.strides[1:]:
        return None
    if part.strides[0] % stride or part.offset % stride:
        return None
    return part.offset // stride, part.strides[0] // stride, part.shape[0], False
