"""Arrays that are made of others without an operation.

A part of a parameter or state, a row of a stack, and what was written into an array are read where
they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxpart.ingest.jaxpr import boxes, parts, sizes
from jaxpart.ingest.jaxpr.boxes import Box
from jaxpart.ingest.jaxpr.costs import Cost
from jaxpart.ingest.jaxpr.cuts import NO_CUTS, stack_cuts
from jaxpart.ingest.jaxpr.demand import operand_boxes
from jaxpart.ingest.jaxpr.values import Known, Op, Pieces, Source, Value, Values, regions
from jaxpart.ingest.jaxpr.views import Change, View, changed, whole

_MAX_DEPTH = 100  # equations that are followed one after the other, back to parameters
_MAX_FOLLOWED = 10_000  # boxes that are followed for one box
MAX_ROWS = 4096  # most rows or pieces of an array that are kept apart


class Arrays(Values):
    """Values that are made of others: folded ones, parts, stacks of rows."""

    def __init__(self, size: Callable[[Any], float]) -> None:
        """Starts an empty program; `size` is as in `Values`."""
        super().__init__(size)
        self.depth = 0  # of unrolled loops

    def fold(
        self,
        operands: Sequence[int],
        avals: Sequence[Any],
        sources: frozenset[Source] | None = None,
        **more: Any,
    ) -> list[int]:
        """Adds folded results. A compiler computes them once, ahead of time.

        Args:
          operands: numbers of the values that they are computed from.
          avals: abstract values of the results.
          sources: parts of parameters that they need; None: all of the operands'.
          more: other attributes of `Value`.
        """
        if sources is None:
            sources = frozenset().union(*(self.values[v].sources for v in operands))
        distinct = [self.values[v] for v in set(operands)]
        reads = sum(value.reads for value in distinct)
        share = math.fsum(v.reads * v.fixed for v in distinct) / reads if reads else 0.0
        if sources:  # halves of the same packed bytes are read once
            stored = math.fsum(self.region_bytes(*source) for source in sources)
            reads = min(reads, stored + sum(v.reads for v in distinct if not v.sources))
        results = []
        for aval in avals:
            size = self.size(aval)
            # Quantised weights and their scales stay as they are; what is smaller is precomputed.
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

    def part(self, v: int, change: Change, aval: Any, name: str) -> int | None:
        """Adds a part of a value that is folded or a state; None if it cannot be told apart.

        Args:
          v: number of the value.
          change: from its view to that of the part.
          aval: abstract value of the part.
          name: of the primitive that takes the part.
        """
        value = self.values[v]
        if value.folded and name in parts.IDENTITIES:
            made = self._recast(value, change, aval, name)
            if made is not None:
                return made
        if value.views is None:
            return None
        views = []
        for parameter, view in value.views:
            part = changed(view, change)
            if part is None or not (value.folded or part.is_strided):
                return None
            views.append((parameter, part))
        sources = regions(views)
        size = self.size(aval)
        if not value.folded:
            return self.value(size, aval, sources=sources, views=tuple(views))
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

    def _recast(self, value: Value, change: Change, aval: Any, name: str) -> int | None:
        """Adds a stack or joined array whose parts are handed on, cast or not; else None."""
        if value.rows is not None:
            row = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
            rows = [self.part(r, change, row, name) for r in value.rows]
            return None if None in rows else self.stack_of_rows(_all(rows), aval)[0]
        if value.pieces is not None and value.pieces.base is None:
            shapes = [boxes.extents(box) for box in value.pieces.boxes]
            made = [
                self.part(piece, change, jax.ShapeDtypeStruct(shape, aval.dtype), name)
                for piece, shape in zip(value.pieces.boxes.values(), shapes, strict=True)
            ]
            return None if None in made else self.joined(value.pieces.boxes, _all(made), aval)[0]
        return None

    def stack_of_rows(self, rows: Sequence[int], aval: Any) -> list[int]:
        """Adds the folded stack of some folded rows; returns its number alone in a list."""
        return self.fold(rows, [aval], rows=tuple(rows))

    def joined(self, where: Iterable[Box], pieces: Sequence[int], aval: Any) -> list[int]:
        """Adds the folded array that some folded pieces make up; returns its number in a list.

        Args:
          where: the box of each piece.
          pieces: numbers of their values.
          aval: abstract value of the array.
        """
        kept = dict(zip(where, pieces, strict=True))
        return self.fold(pieces, [aval], pieces=Pieces(tuple(aval.shape), None, kept))

    def rows_taken(self, eqn: Any, v: int, constants: Sequence[Known]) -> list[int] | None:
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
        if not shape or shape[0] > MAX_ROWS:
            return None
        changes = parts.changes(eqn, constants)
        if changes is None:
            return None
        original, results = whole(shape), []
        for change, out in zip(changes, eqn.outvars, strict=True):
            view = changed(original, change)
            span = None if view is None else row_span(original, view)
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
                results.extend(self.stack_of_rows(_all(rows), out.aval))
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
        cuts = NO_CUTS if self.shards else stack_cuts(1, aval.shape)
        cost = Cost(0.0, (value.bytes,), (size,))
        self.ops.append(Op("reshape", (row,), (stack,), cost, cuts=cuts))
        return stack

    def row_of(self, v: int, index: int, aval: Any) -> int | None:
        """A row of a value, as a value; None where it cannot be told apart.

        Args:
          v: number of the value.
          index: position on its first axis.
          aval: abstract value of the row.
        """
        value = self.values[v]
        if value.rows is not None:
            return value.rows[index]
        shape = (index + 2, *aval.shape)  # how many rows come behind does not matter
        row = self.box(v, shape, boxes.row_box(shape, index), aval)
        if row is not None and value.known is not None:
            self.values[row] = dataclasses.replace(self.values[row], known=value.known[index])
        return row

    def box(self, v: int, shape: Sequence[int], box: Box, aval: Any) -> int | None:
        """A box of a value, as a value; None where it cannot be told apart.

        Args:
          v: number of the value.
          shape: its shape.
          box: span of positions on each of its axes.
          aval: abstract value of the box; axes of extent 1 may be left out.
        """
        value = self.values[v]
        if box == boxes.whole_box(shape):
            return self.shaped(v, aval)
        if value.pieces is not None:
            return self._piece(value.pieces, box, aval)
        if value.rows is not None:
            (first, stop), *rest = box
            if stop - first != 1:
                return None
            return self.box(value.rows[first], shape[1:], tuple(rest), aval)
        if value.views is not None and not self.shards:
            return self.part(v, lambda view: _cut(view, box, aval), aval, "slice")
        if value.folded:
            return self.fold([v], [aval], self.needed(v, shape, box))[0]
        if value.fed is None:
            return None
        row = self.value(self.size(aval), aval, fed=value.fed)
        return self._with_axis(row, aval) if _keeps_row(box, aval) else row

    def needed(self, v: int, shape: Sequence[int], box: Box) -> frozenset[Source]:
        """The parts of parameters that a box of a folded value is computed from.

        Args:
          v: number of the value.
          shape: its shape.
          box: span of positions on each of its axes.
        """
        known: dict[tuple[int, Box], frozenset[Source]] = {}
        return self._needed(v, shape, box, known, _MAX_DEPTH)

    def _needed(
        self,
        v: int,
        shape: Sequence[int],
        box: Box,
        known: dict[tuple[int, Box], frozenset[Source]],
        depth: int,
    ) -> frozenset[Source]:
        """As `needed`; `known` has what was found so far, `depth` the equations still to follow."""
        value = self.values[v]
        if not value.sources or box == boxes.whole_box(shape) or not depth or self.shards:
            return value.sources
        if (v, box) not in known:
            if value.views is not None:
                views = [(w, changed(view, _within(box))) for w, view in value.views]
                cut = [(w, view) for w, view in views if view is not None]
                known[v, box] = regions(cut) if len(cut) == len(views) else value.sources
            elif len(known) > _MAX_FOLLOWED or not (value.rows or value.pieces or value.made):
                known[v, box] = value.sources
            else:
                inner = self._made_of(value, shape, box)
                found = [self._needed(*part, known, depth - 1) for part in inner]
                known[v, box] = frozenset().union(*found)
        return known[v, box]

    def _made_of(
        self, value: Value, shape: Sequence[int], box: Box
    ) -> list[tuple[int, tuple[int, ...], Box]]:
        """The values that a box of a folded value is made of: number, shape, and box of each."""
        if value.rows is not None:
            return [(row, tuple(shape[1:]), box[1:]) for row in value.rows[slice(*box[0])]]
        if value.pieces is not None:
            inside = [(w, boxes.common(w, box), piece) for w, piece in value.pieces.boxes.items()]
            return [
                (piece, boxes.extents(where), boxes.relative(where, part))
                for where, part, piece in inside
                if part is not None
            ]
        assert value.made is not None
        made = value.made
        needed = operand_boxes(made.eqn, made.known, made.result, box)
        atoms = zip(made.operands, made.eqn.invars, needed, strict=True)
        return [(v, tuple(atom.aval.shape), part) for v, atom, part in atoms if part is not None]

    def _piece(self, pieces: Pieces, box: Box, aval: Any) -> int | None:
        """As `box`, of an array that is made of pieces."""
        exact = pieces.boxes.get(box)
        if exact is not None:
            row = self.shaped(exact, aval)
            if row is None or not _keeps_row(box, aval) or self.values[row].folded:
                return row
            return self._with_axis(row, aval)
        touched = [other for other in pieces.boxes if not boxes.disjoint(other, box)]
        if not touched:
            return None if pieces.base is None else self.box(pieces.base, pieces.shape, box, aval)
        if len(touched) > 1 or not boxes.contains(touched[0], box):
            return None
        (outer,) = touched
        v = pieces.boxes[outer]
        inner = self.box(v, boxes.extents(outer), boxes.relative(outer, box), aval)
        if inner is None:
            size = self.size(aval)
            inner = self.value(size, aval)
            self.ops.append(Op("slice", (v,), (inner,), Cost(0.0, (size,), (size,))))
        return inner

    def shaped(self, v: int, aval: Any) -> int | None:
        """The value in the shape of `aval`. Values that operations compute have no shape here."""
        if self.values[v].views is None or self.shards:
            return v
        return self.part(v, lambda view: view.reshaped(aval.shape), aval, "reshape")


def row_span(original: View, part: View) -> tuple[int, int, int, bool] | None:
    """The rows that a part consists of: first, step, count, and whether it is one row alone."""
    (_, stride), *_ = original.axes[0]
    if not stride or part.offset % stride:
        return None
    if part.axes == original.axes[1:]:
        return part.offset // stride, 1, 1, True
    if part.axes[1:] != original.axes[1:] or len(part.axes[0]) != 1:
        return None
    ((count, step),) = part.axes[0]
    return None if step % stride else (part.offset // stride, step // stride, count, False)


def _within(box: Box) -> Change:
    return lambda view: boxes.cut(view, box)


def _cut(view: View, box: Box, aval: Any) -> View:
    return boxes.cut(view, box).reshaped(aval.shape)


def _keeps_row(box: Box, aval: Any) -> bool:
    """Whether `aval` is one row of an array and still has the first axis."""
    return len(aval.shape) == len(box) and aval.shape[0] == 1


def _all(numbers: Iterable[int | None]) -> list[int]:
    return [v for v in numbers if v is not None]
