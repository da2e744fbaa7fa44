"""The arrays and operations of a program, numbered: what is known of each array, and its bytes."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpart.ingest.jaxpr import known, sizes
from jaxpart.ingest.jaxpr.boxes import Box, whole_box
from jaxpart.ingest.jaxpr.costs import Cost
from jaxpart.ingest.jaxpr.cuts import NO_CUTS, ShapedCuts
from jaxpart.ingest.jaxpr.views import View, whole

# Bytes as traced: the host feeds captured constants up to this size; larger ones are weights.
SMALL_CONSTANT_BYTES = 1024

Source = tuple[int, View]  # number of a parameter, and a region of it (`View.region`)
Known = np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Pieces:
    """An array of which some boxes are values of their own.

    Attributes:
      shape: of the array.
      base: number of the array that the rest is as in; None if there is no rest.
      boxes: box -> number of its value; the boxes share no element.
    """

    shape: tuple[int, ...]
    base: int | None
    boxes: dict[Box, int]


@dataclasses.dataclass(frozen=True)
class Made:
    """How a folded value was computed.

    Attributes:
      eqn: the equation.
      operands: numbers of its operands.
      known: the elements of each operand; None where they are not known.
      result: position of the value among the results of the equation.
    """

    eqn: Any
    operands: tuple[int, ...]
    known: tuple[Known, ...]
    result: int


@dataclasses.dataclass(frozen=True)
class Value:
    """One array of the program.

    Attributes:
      bytes: size of the array in bytes.
      folded: whether the value depends on parameters and constants alone.
      sources: the parts of parameters that a folded value is made of, or the part of a state that
        the value is; else empty.
      reads: bytes that a consumer must read for a folded value; else 0. A broadcast weight needs no
        more than the bytes of the weight itself, and a weight that is cast those of its own type.
      density: bytes of parameters that a consumer reads per byte that it touches of a folded value.
      fixed: the share of the bytes that no element size scales, 0 to 1.
      views: parts of parameters, if the value is an elementwise function of them; each has the
        shape of the value. None if the value is anything else.
      known: the elements, if the value is small, of integers, and known while tracing.
      rows: numbers of the values that are stacked in this one on its first axis; None if unknown.
      pieces: the values that were written into this one, or that it is joined of; None if unknown.
      columns: the elements at each position of the last axis, None for each that is not known, if
        the value is small, of integers, and joined of columns that are partly known.
      made: what a folded value was computed by, if it is not known otherwise what parts of
        parameters its own parts need.
      alone: number of the value that this one is with a first axis of extent 1; None if unknown.
      fed: number of the input of the graph that the value is, or is a row of; else None.
      shape: of an input or result; None for other values and inside a `shard_map`.
    """

    bytes: float
    folded: bool = False
    sources: frozenset[Source] = frozenset()
    reads: float = 0.0
    density: float = 1.0
    fixed: float = 0.0
    views: tuple[tuple[int, View], ...] | None = None
    known: Known = None
    rows: tuple[int, ...] | None = None
    pieces: Pieces | None = None
    columns: tuple[Known, ...] | None = None
    made: Made | None = None
    alone: int | None = None
    fed: int | None = None
    shape: tuple[int, ...] | None = None

    @property
    def is_state(self) -> bool:
        """Whether the value is a state that lives on a chip, or a part of one."""
        return not self.folded and self.views is not None


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation on numbered values.

    Attributes:
      name: name of the primitive.
      operands: numbers of the values that it reads.
      results: numbers of the values that it computes.
      cost: FLOPs and bytes.
      kept: what a warning says of an operation whose body stays shut (a loop); else empty.
      eqn: the equation that it is; None for a row or stack that an unrolled loop brings.
      cuts: where it is no equation, the axes along which it can be cut.
    """

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    cost: Cost
    kept: str = ""
    eqn: Any = None
    cuts: ShapedCuts = NO_CUTS


class Values:
    """The values and operations of a program; `input`, `parameter` and `state` add its arguments.

    Attributes:
      values: all arrays of the program; the position of a value is its number.
      ops: the operations in program order.
      parameters: the abstract values of parameters, states and large constants.
      constants: positions in `parameters` of captured constants.
      captured: id of a captured array -> the array, the number of its value.
      float_bytes: bytes per element of a float type -> bytes of all values of that type, as traced.
        A complex number counts as two floats.
      shards: manual axis of the devices of a `shard_map` -> extent, while its body is expanded.
    """

    def __init__(self, size: Callable[[Any], float]) -> None:
        """Starts an empty program.

        Args:
          size: function from an abstract value to its bytes.
        """
        self._array_size = size
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.parameters: list[Any] = []
        self.constants: set[int] = set()
        self.captured: dict[int, tuple[Any, int]] = {}
        self.float_bytes: collections.defaultdict[float, float] = collections.defaultdict(float)
        self.shards: dict[str, int] = {}
        self.all_vary = False  # whether types do not say on which axes a value varies

    def size(self, aval: Any) -> float:
        """Bytes of an array; inside a `shard_map`, of its shards on all devices."""
        return self._array_size(aval) * self.copies(aval)

    def value(self, size: float, aval: Any = None, **known_of_it: Any) -> int:
        """Adds a value.

        Args:
          size: bytes.
          aval: its abstract value; by default its elements are floats.
          known_of_it: the other attributes of `Value`.

        Returns:
          The number of the value.
        """
        if aval is not None and "fixed" not in known_of_it:
            known_of_it["fixed"] = 0.0 if sizes.is_float(aval) else 1.0
        if aval is not None and not self.shards:
            known_of_it["shape"] = tuple(getattr(aval, "shape", ()))
        self.values.append(Value(size, **known_of_it))
        return len(self.values) - 1

    def input(self, aval: Any) -> int:
        """Adds an input of the graph, which the host feeds; returns its number."""
        return self.value(self.size(aval), aval, fed=len(self.values))

    def parameter(self, aval: Any) -> int:
        """Adds a parameter and a value that is the whole of it.

        Args:
          aval: abstract value of the parameter.

        Returns:
          The number of the value.
        """
        views = self._registered(aval)
        size = self.size(aval)
        return self.value(size, aval, folded=True, sources=regions(views), reads=size, views=views)

    def unseen_constant(self, aval: Any) -> int:
        """Adds a constant whose elements are not at hand.

        Args:
          aval: its abstract value; it becomes a parameter like those of `constant`.

        Returns:
          The number of its value.
        """
        if sizes.array_bytes(aval) > SMALL_CONSTANT_BYTES:
            self.constants.add(len(self.parameters))
            return self.parameter(aval)
        size = self.size(aval)
        return self.value(size, aval, folded=True, reads=size, views=())

    def state(self, aval: Any) -> int:
        """Adds a state that lives on a chip and a value that is the whole of it.

        A state takes memory like a parameter. Operations on it are work and are not folded.

        Args:
          aval: abstract value of the state.

        Returns:
          The number of the value.
        """
        views = self._registered(aval)
        return self.value(self.size(aval), aval, sources=regions(views), views=views)

    def _registered(self, aval: Any) -> tuple[tuple[int, View], ...]:
        self.count_float(aval)
        self.parameters.append(aval)
        return ((len(self.parameters) - 1, whole(aval.shape)),)

    def constant(self, constant: Any) -> int:
        """Adds a captured array, unless it is already there.

        Args:
          constant: the array. It becomes a parameter if it has more than `SMALL_CONSTANT_BYTES`.

        Returns:
          The number of its value; the same array always has the same number.
        """
        found = self.captured.get(id(constant))
        if found is not None:
            return found[1]
        aval = jax.typeof(constant)
        size = self.size(aval)
        values = known.known_value(constant)
        if sizes.array_bytes(aval) > SMALL_CONSTANT_BYTES:
            self.constants.add(len(self.parameters))
            value = self.parameter(aval)
            self.values[value] = dataclasses.replace(self.values[value], known=values)
        else:
            value = self.value(size, aval, folded=True, reads=size, views=(), known=values)
        self.captured[id(constant)] = (constant, value)  # the reference keeps the id unique
        return value

    def literal(self, literal: Any) -> int:
        """Adds a value that is written in the program; returns its number."""
        if getattr(literal.val, "ndim", 0):
            return self.constant(literal.val)
        # A scalar is part of the instruction: there are no bytes to read.
        aval = literal.aval
        scalar = known.known_value(literal.val)
        return self.value(self.size(aval), aval, folded=True, views=(), known=scalar)

    def traffic(self, op: Op) -> tuple[float, float]:
        """Bytes that an operation reads and writes, and those of them that nothing scales."""
        if op.cost.accessed is not None:
            return op.cost.accessed, op.cost.fixed
        read: dict[int, float] = {}
        for operand, touched in zip(op.operands, op.cost.reads, strict=True):
            value = self.values[operand]
            amount = touched
            if value.folded and touched >= value.bytes:
                amount = value.reads
            elif value.folded:
                amount = min(touched * value.density, value.reads)
            read[operand] = max(read.get(operand, 0.0), amount)
        accessed = math.fsum(read.values()) + math.fsum(op.cost.writes)
        written = zip(op.results, op.cost.writes, strict=True)
        fixed = math.fsum(
            [
                *(amount * self.values[v].fixed for v, amount in read.items()),
                *(amount * self.values[v].fixed for v, amount in written),
            ]
        )
        return accessed, fixed

    def outputs(self, results: Sequence[int]) -> list[int]:
        """The values that a function returns.

        An array that steps of a loop stack up is its rows. An array that was written into is what
        was written, and the rows of before that were not overwritten.

        Args:
          results: numbers of the values that the function returns.

        Returns:
          Numbers of values; a row that is itself a stack of rows is replaced by these.
        """
        leaves: list[int] = []
        for v in results:
            value = self.values[v]
            if value.pieces is not None:
                leaves.extend(self.outputs(self._pieces_and_rest(value.pieces)))
            else:
                leaves.extend(self.outputs(value.rows) if value.rows is not None else [v])
        return leaves

    def _pieces_and_rest(self, pieces: Pieces) -> list[int]:
        written = list(pieces.boxes.values())
        if pieces.base is None or self.values[pieces.base].rows is None:
            return written
        rest = whole_box(pieces.shape)[1:]
        covered = {i for box in pieces.boxes if box[1:] == rest for i in range(*box[0])}
        rows = enumerate(self.values[pieces.base].rows or ())
        return [*written, *(row for i, row in rows if i not in covered)]

    def region_bytes(self, parameter: int, region: View) -> float:
        """Bytes of a part of a parameter, in its own type."""
        return part_bytes(self._array_size, self.parameters[parameter], region.elements)

    def copies(self, aval: Any) -> int:
        """On how many devices of a `shard_map` a value differs."""
        if not self.shards:
            return 1
        if self.all_vary:
            return math.prod(self.shards.values())
        varying = aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else ()
        return math.prod(n for axis, n in self.shards.items() if axis in varying)

    def count_float(self, aval: Any) -> None:
        """Adds the bytes of `aval` to `float_bytes` if its elements are floats."""
        if sizes.is_float(aval):
            width = sizes.element_bits(aval) / 8 / (2 if aval.dtype.kind == "c" else 1)
            self.float_bytes[width] += sizes.elements(aval) * width


def part_bytes(size: Callable[[Any], float], aval: Any, count: int) -> float:
    """Bytes of a part of a parameter.

    Args:
      size: function from an abstract value to its bytes.
      aval: abstract value of the parameter.
      count: number of elements of the part.
    """
    return size(jax.ShapeDtypeStruct((count,), aval.dtype))


def live(ops: Sequence[Op], outputs: Sequence[int]) -> list[Op]:
    """The operations that some output depends on, in program order."""
    needed = set(outputs)
    live = []
    for op in reversed(ops):
        if not needed.isdisjoint(op.results):
            needed.update(op.operands)
            live.append(op)
    return live[::-1]


def regions(views: Sequence[tuple[int, View]]) -> frozenset[Source]:
    """The parts of parameters that some views of them show."""
    return frozenset((parameter, view.region()) for parameter, view in views)
