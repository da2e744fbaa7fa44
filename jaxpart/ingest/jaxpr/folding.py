"""Values that need no operation: functions of parameters, parts of them, and rows of stacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpart.ingest.jaxpr import known, parts, sizes
from jaxpart.ingest.jaxpr.arrays import MAX_ROWS, Arrays, row_span
from jaxpart.ingest.jaxpr.boxes import (
    Box,
    box_of,
    contains,
    disjoint,
    read_box,
    whole_box,
    written_box,
)
from jaxpart.ingest.jaxpr.boxes import extents as box_extents
from jaxpart.ingest.jaxpr.costs import equation_cost
from jaxpart.ingest.jaxpr.demand import operand_boxes
from jaxpart.ingest.jaxpr.flops import is_elementwise
from jaxpart.ingest.jaxpr.values import Known, Made, Op, Pieces, Source
from jaxpart.ingest.jaxpr.views import Change, View, changed, whole

_MAX_VIEWS = 16  # most parts of parameters that an elementwise function of them keeps apart
_MAX_COLUMNS = 16  # most columns of indices that are kept apart


class Folding(Arrays):
    """Values that equations make without an operation.

    A value that depends on parameters and constants alone is folded: a compiler computes it once,
    ahead of time. A part of a parameter or state, and a row of a stack, is read where it is.
    """

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
            results = self._parts(eqn, operands, constants) or self._computed(
                eqn, operands, constants
            )
        for v, array in zip(results, values or (), strict=False):
            self.values[v] = dataclasses.replace(self.values[v], known=array)
        return results

    def _computed(self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]) -> list[int]:
        """Adds folded results that remember how they were computed."""
        if self.shards:
            return self.fold(operands, [v.aval for v in eqn.outvars])
        results = []
        takes = parts.changes(eqn, constants) is not None
        for position, v in enumerate(eqn.outvars):
            made = Made(eqn, tuple(operands), tuple(constants), position)
            sources = self._needed_by(made) if takes else None
            results.extend(self.fold(operands, [v.aval], sources, made=made))
        return results

    def _needed_by(self, made: Made) -> frozenset[Source]:
        """The parts of parameters that a part of its first operand is computed from."""
        shape = made.eqn.invars[0].aval.shape
        whole_result = whole_box(made.eqn.outvars[made.result].aval.shape)
        box, *_ = operand_boxes(made.eqn, made.known, made.result, whole_result)
        assert box is not None
        return self.needed(made.operands[0], shape, box)

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
            return self._changed(eqn, operands[0], changes, constants)
        if name == "gather" and first.folded:
            positions = parts.gathered_rows(eqn, constants)
            if positions is None or len(positions) > MAX_ROWS or not first.sources:
                return None
            return self._stack_of_parts(eqn, [(operands[0], i) for i in positions])
        if name in ("concatenate", "stack"):
            return self._joined(eqn, operands)
        if is_elementwise(name):
            return self._elementwise(eqn, operands)
        return None

    def _changed(
        self, eqn: Any, v: int, changes: Sequence[Change], constants: Sequence[Known]
    ) -> list[int] | None:
        """Adds the parts that an equation takes of a value; None if one cannot be told apart."""
        found = self.rows_taken(eqn, v, constants) or self._boxes_taken(eqn, v, changes)
        if found is not None:
            return found
        pairs = zip(changes, eqn.outvars, strict=True)
        taken = [self.part(v, change, out.aval, eqn.primitive.name) for change, out in pairs]
        return None if None in taken else [v for v in taken if v is not None]

    def _boxes_taken(self, eqn: Any, v: int, changes: Sequence[Change]) -> list[int] | None:
        """Adds the boxes that an equation takes of a value that is made of pieces."""
        if self.values[v].pieces is None:
            return None
        shape, taken = eqn.invars[0].aval.shape, []
        for change, out in zip(changes, eqn.outvars, strict=True):
            view = changed(whole(shape), change)
            box = None if view is None else box_of(shape, view)
            taken.append(None if box is None else self.box(v, shape, box, out.aval))
        return None if None in taken else [v for v in taken if v is not None]

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
        name, params, aval = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
        if len(operands) > MAX_ROWS or not any(self.values[v].sources for v in operands):
            return None
        axis = params["axis" if name == "stack" else "dimension"]
        if axis == 0 and name == "stack":
            return self.stack_of_rows(operands, aval)
        extents = [1 if name == "stack" else atom.aval.shape[axis] for atom in eqn.invars]
        if axis == 0 and sum(extents) <= MAX_ROWS:
            return self._stack_of_parts(
                eqn,
                [
                    (v, i)
                    for v, extent in zip(operands, extents, strict=True)
                    for i in range(extent)
                ],
            )
        where, start = [], 0
        for extent in extents:
            box = list(whole_box(aval.shape))
            box[axis] = (start, start + extent)
            where.append(tuple(box))
            start += extent
        pieces = [
            self.shaped(v, jax.ShapeDtypeStruct(box_extents(box), aval.dtype))
            for v, box in zip(operands, where, strict=True)
        ]
        if None in pieces:
            return None
        return self.joined(where, [v for v in pieces if v is not None], aval)

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
            *("rev", "copy", "stop_gradient", "broadcast_in_dim", "expand_dims"),
        ):
            return None
        if sizes.elements(eqn.outvars[0].aval) > sizes.elements(eqn.invars[0].aval):
            return None
        changes = parts.changes(eqn, constants)
        if changes is None:
            return None
        if first.is_state and name != "rev":  # an axis of extent 1 more is no work
            return self._changed(eqn, operands[0], changes, constants)
        return self.rows_taken(eqn, operands[0], constants) or self._boxes_taken(
            eqn, operands[0], changes
        )

    def narrowed(self, eqn: Any, operands: list[int], constants: Sequence[Known]) -> list[int]:
        """The operands of an equation; instead of a table, the box of it that can be read.

        An index that is known while tracing selects a part of a parameter, whatever the others are.
        """
        if self.shards or not operands:
            return operands
        table = self.values[operands[0]]
        if not (table.sources or table.pieces is not None or table.rows is not None):
            return operands
        box = read_box(eqn, constants, self.index_columns(eqn, operands, constants))
        if box is None:
            return operands
        aval = eqn.invars[0].aval
        part = _operand(box, aval.dtype)
        taken = self.box(operands[0], aval.shape, box, part)
        return operands if taken is None else [taken, *operands[1:]]

    def index_columns(
        self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]
    ) -> Sequence[Known]:
        """The indices of a gather or scatter, those of each indexed axis."""
        if len(operands) < 2 or not getattr(eqn.invars[1].aval, "shape", ()):
            return ()
        columns = self.values[operands[1]].columns
        if constants[1] is not None:
            return list(np.moveaxis(constants[1], -1, 0))
        return columns or (None,) * eqn.invars[1].aval.shape[-1]

    def note(
        self, eqn: Any, operands: Sequence[int], results: Sequence[int], constants: Sequence[Known]
    ) -> None:
        """Records what is known of the result of an operation: its rows, pieces, or columns."""
        if self.shards or not results or not operands:
            return
        name, aval, before = eqn.primitive.name, eqn.outvars[0].aval, self.values[operands[0]]
        more: dict[str, Any] = {}
        if name in ("broadcast_in_dim", "reshape") and len(operands) == 1:
            if tuple(aval.shape) == (1, *eqn.invars[0].aval.shape):
                more["alone"] = operands[0]
        elif name in ("slice", "rev", "dynamic_slice"):
            more["rows"] = self._rows_kept(eqn, operands[0], constants)
        elif name == "concatenate" and eqn.params["dimension"] == len(aval.shape) - 1:
            more["columns"] = self._columns_joined(eqn, operands, constants)
        elif name in parts.IDENTITIES:
            more["columns"] = before.columns
        else:
            more["pieces"] = self._written(eqn, operands, constants)
        self.values[results[0]] = dataclasses.replace(self.values[results[0]], **more)

    def _rows_kept(self, eqn: Any, v: int, constants: Sequence[Known]) -> tuple[int, ...] | None:
        """The rows of a result that is made of whole rows of a stack; None if it is not."""
        value, aval = self.values[v], eqn.invars[0].aval
        if value.rows is None and value.pieces is None:
            return None
        changes = parts.changes(eqn, constants)
        view = None if changes is None else changed(whole(aval.shape), changes[0])
        span = None if view is None else row_span(whole(aval.shape), view)
        if span is None or span[2] > MAX_ROWS:
            return None
        start, step, count, _ = span
        row = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
        rows = [self.row_of(v, start + i * step, row) for i in range(count)]
        return None if None in rows else tuple(v for v in rows if v is not None)

    def _columns_joined(
        self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]
    ) -> tuple[Known, ...] | None:
        """The columns of indices that are joined of known and unknown ones; None if none is."""
        columns: list[Known] = []
        for v, atom, constant in zip(operands, eqn.invars, constants, strict=True):
            extent = atom.aval.shape[-1]
            if constant is not None:
                columns.extend(np.moveaxis(constant, -1, 0))
            else:
                columns.extend(self.values[v].columns or (None,) * extent)
            if len(columns) > _MAX_COLUMNS:
                return None
        return tuple(columns) if any(column is not None for column in columns) else None

    def _written(
        self, eqn: Any, operands: Sequence[int], constants: Sequence[Known]
    ) -> Pieces | None:
        """The pieces of an array after an equation wrote a box of known position into it.

        An update that replaces the box is the new piece. Any other is an operation on what was in
        the box before: it touches this part of a state alone.
        """
        table = self.values[operands[0]]
        if not (
            table.folded
            or table.is_state
            or table.fed is not None
            or table.rows is not None
            or table.pieces is not None
        ):
            return None
        found = written_box(eqn, constants, self.index_columns(eqn, operands, constants))
        if found is None:
            return None
        box, replaced = found
        shape = tuple(eqn.outvars[0].aval.shape)
        pieces = table.pieces or Pieces(shape, operands[0], {})
        touched = [other for other in pieces.boxes if not disjoint(other, box)]
        if len(touched) == 1 and contains(touched[0], box):
            box, replaced = touched[0], replaced and touched[0] == box
        elif touched and not (replaced and all(contains(box, other) for other in touched)):
            return None
        if len(pieces.boxes) >= MAX_ROWS:
            return None
        piece = self._replaced(eqn, operands) if replaced else None
        if piece is None:
            piece = self._updated(eqn, operands, box)
        if piece is None:
            return None
        kept = {other: v for other, v in pieces.boxes.items() if other not in touched}
        return Pieces(shape, pieces.base, {**kept, box: piece})

    def _replaced(self, eqn: Any, operands: Sequence[int]) -> int | None:
        """The update of an equation that replaces a box; None if no operation computes it."""
        update = operands[1 if eqn.primitive.name == "dynamic_update_slice" else 2]
        alone = self.values[update].alone
        piece = update if alone is None else alone
        value = self.values[piece]
        return None if value.folded or value.is_state or value.fed is not None else piece

    def _updated(self, eqn: Any, operands: Sequence[int], box: Box) -> int | None:
        """Adds the operation that updates a box of an array; None if the box is not known."""
        aval = eqn.outvars[0].aval
        after = _operand(box, aval.dtype)
        before = self.box(operands[0], aval.shape, box, after)
        if before is None:
            return None
        result = self.value(self.size(after), after)
        cost = equation_cost(eqn, self.size)
        self.ops.append(Op(eqn.primitive.name, (before, *operands[1:]), (result,), cost))
        return result


def _operand(box: Box, dtype: Any) -> jax.ShapeDtypeStruct:
    """A box as an operand: without axes of extent 1, so that no reshape is counted for them."""
    return jax.ShapeDtypeStruct(tuple(n for n in box_extents(box) if n != 1), dtype)
