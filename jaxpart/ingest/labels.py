"""Labels of axes that hold across a graph, and the ways to divide its nodes.

The axes of a result and of the operands that are cut with it get one label, so that a cut can pass
from one operation to the next. No label names two axes of one value: where an operation would make
it so (query and key positions of attention scores), the operand is read along a label of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxpart.ingest.axes import AxisCut
from jaxpart.problem.division import Division

Value = Any  # name or number of an array of the model
_Pairs = tuple[tuple[int, str | None], ...]
_Axis = tuple[Hashable, int]  # of a value, or of a weight; what it belongs to, and its dimension


class Held(NamedTuple):
    """A weight, as the operations see it that read a value made of it.

    Attributes:
      weight: number of the weight.
      axes: for each dimension of the value, the axis of the weight that is cut with it; None where
        a part of the value needs the whole weight.
    """

    weight: int
    axes: tuple[int | None, ...]


class Work(NamedTuple):
    """One operation: the values that it reads and computes, and its cuts.

    Attributes:
      operands: the values of its operands, in order.
      results: the values of its results, in order.
      cuts: the dimensions of a cut are those of the values.
    """

    operands: Sequence[Value]
    results: Sequence[Value]
    cuts: Sequence[AxisCut]


def divisions(
    works: Sequence[Work], tensors: Mapping[Value, int], held: Mapping[Value, Sequence[Held]]
) -> list[tuple[Division, ...]]:
    """The ways to divide each node of a graph.

    Args:
      works: [N] what the nodes do, in an order in which results come before their readers.
      tensors: value -> number of the tensor of the graph that it is.
      held: value -> the weights that it is made of, none for a constant of the program. Values
        without an entry are results and inputs.

    Returns:
      [N] the divisions of each node. Labels are numbered in the order of their first use.
    """
    labels = _Labels()
    for v, work in enumerate(works):
        for c, cut in enumerate(work.cuts):
            first, *others = _axes_of(work, cut, held, (v, c))
            for other in others:
                labels.join(first, other)
    found = []
    for v, work in enumerate(works):
        divide: list[Division] = []
        for c, cut in enumerate(work.cuts):
            names = [labels.of(axis) for axis in _axes_of(work, cut, held, (v, c))]
            if cut.results[0] is None:  # a sum may read one operand along an axis of the result
                names.sort(key=[division.axis for division in divide].__contains__)
            reads, weights = _read(work, cut, tensors, held, labels)
            join = "sum" if cut.results[0] is None else None
            divide.append(Division(cut.ways, names[0], join, cut.halo, reads, weights))
        found.append(tuple(divide))
    return found


def _read(
    work: Work,
    cut: AxisCut,
    tensors: Mapping[Value, int],
    held: Mapping[Value, Sequence[Held]],
    labels: _Labels,
) -> tuple[_Pairs, _Pairs]:
    """What a cut of an operation reads along a label: of its tensors, and of its weights."""
    reads: dict[int, set[str | None]] = {}
    weights: dict[int, set[str | None]] = {}
    for value, at in zip(work.operands, cut.operands, strict=True):
        if value in tensors:
            label = None if at is None else labels.of((("value", value), at))
            reads.setdefault(tensors[value], set()).add(label)
        for weight, axes in held.get(value, ()):
            to = None if at is None else axes[at]
            label = None if to is None else labels.of((("weight", weight), to))
            weights.setdefault(weight, set()).add(label)
    return tuple(pairs(reads)), tuple(pairs(weights))


def pairs(labels: Mapping[int, Iterable[str | None]]) -> Iterable[tuple[int, str | None]]:
    """Yields what is cut of what a node reads.

    Args:
      labels: number of a tensor or weight -> the labels along which it is read, None for the whole
        of it. What is read in two ways is read whole, and left out as all that is read whole.
    """
    for number, found in labels.items():
        label, *others = set(found)
        if label is not None and not others:
            yield number, label


def _axes_of(
    work: Work, cut: AxisCut, held: Mapping[Value, Sequence[Held]], name: Hashable
) -> Iterable[_Axis]:
    """Yields the axes that a cut would give one label: first those of results, then of operands.

    Args:
      work: the operation.
      cut: of it.
      held: as in `divisions`.
      name: of an axis that stands for the cut where no value or weight has it.
    """
    named = False
    for value, at in zip(work.results, cut.results, strict=True):
        if at is not None:
            named = True
            yield ("value", value), at
    for value, at in zip(work.operands, cut.operands, strict=True):
        if at is None:
            continue
        if value not in held:
            named = True
            yield ("value", value), at
        for weight, axes in held.get(value, ()):
            to = axes[at]
            if to is not None:
                named = True
                yield ("weight", weight), to
    if not named:
        yield ("cut", name), 0


@dataclasses.dataclass
class _Label:
    """Axes of one label.

    Attributes:
      axes: what has such an axis -> its dimension.
      name: of the label; None before it is used.
    """

    axes: dict[Hashable, int]
    name: str | None = None


class _Labels:
    """Sets of axes that grow by joining; no set has two axes of one value."""

    def __init__(self) -> None:
        self._of: dict[_Axis, _Label] = {}
        self._used = 0

    def _find(self, axis: _Axis) -> _Label:
        label = self._of.get(axis)
        if label is None:
            label = self._of[axis] = _Label({axis[0]: axis[1]})
        return label

    def join(self, one: _Axis, other: _Axis) -> None:
        """Gives two axes one label, unless it would name two axes of one value."""
        large, small = self._find(one), self._find(other)
        if large is small:
            return
        if len(large.axes) < len(small.axes):
            large, small = small, large
        if any(owner in large.axes for owner in small.axes):
            return
        large.axes.update(small.axes)
        for axis in small.axes.items():
            self._of[axis] = large

    def of(self, axis: _Axis) -> str:
        """The name of the label of an axis."""
        label = self._find(axis)
        if label.name is None:
            label.name = f"a{self._used}"
            self._used += 1
        return label.name
