"""A JAX function becomes a Graph: one node per primitive equation, nothing executed.

The function is traced on abstract values (`jax.make_jaxpr`), so weights need not exist. Then:

1. Wrappers (pjit, custom_jvp, custom_vjp, remat, closed calls) are opened; `scan` of at most
   `unroll_limit` steps is unrolled; other loops and branches stay one node.
2. Equations on parameters and constants alone are folded: they vanish, and whoever uses their
   result holds the original weight. Slices of a weight that do not overlap (the layers of a
   stacked parameter) are weights of their own.
3. Dead code is dropped.
4. What depends on inputs alone, is cheap and would tie distant nodes together (an attention mask)
   is cloned into its consumers: `rewrite.clone_inputs`.

What an equation costs: `jaxpr_costs`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from jaxpart.errors import EmptyGraphError, InputError
from jaxpart.graph import Graph, Node, Tensor, Weight
from jaxpart.ingest import jaxpr_costs, rewrite
from jaxpart.ingest.jaxpr_costs import Cost

# Constants captured by closure up to this size (as traced) ride in the program, fed by the host.
SMALL_CONSTANT_BYTES = 1024

Box = tuple[tuple[int, int], ...]  # start and stop on each axis of a parameter
Source = tuple[int, Box]  # part of a parameter


def from_jax(
    fn: Callable[..., Any],
    *args: Any,
    params: int | Sequence[int] = (),
    name: str | None = None,
    element_bytes: float | None = None,
    unroll_limit: int = 64,
) -> Graph:
    """The graph of one call `fn(*args)`.

    Args:
      fn: any function that JAX can trace.
      args: example arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.
      params: positions of the arguments that are parameters; their leaves become weights. All
        other arguments are inputs, fed by the host. Never guessed.
      name: of the graph; by default the function's.
      element_bytes: bytes to count per element of a float tensor or weight (1 for an int8
        deployment), complex twice that; integers and booleans keep their size. By default as traced.
      unroll_limit: `scan` of at most this many steps is unrolled; a longer one is one node.

    Returns:
      The graph. Its `element_bytes` is the one given, or else the size of the float type that holds
      most bytes (4 where there are no floats). Parameters that nothing uses are left out.

    Raises:
      InputError: `params` or `unroll_limit` is out of range, `fn` cannot be traced, or no
        operation depends on an input.

    Warns:
      UserWarning: an operation has no cost rule and is counted by its shapes; names it.
    """
    name = name or getattr(fn, "__name__", type(fn).__name__)
    argnums = (params,) if isinstance(params, int) else tuple(params)
    for position in argnums:
        if not -len(args) <= position < len(args):
            raise InputError(
                f"{name}: params names argument {position}, expected 0 to {len(args) - 1}"
            )
    if unroll_limit < 0:
        raise InputError(f"{name}: unroll_limit is {unroll_limit}, expected 0 or more")
    try:
        closed = jax.make_jaxpr(fn)(*args)
    except Exception as error:  # whatever the user's function raises
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{name}: cannot be traced ({type(error).__name__}: {lines[0]})"
        ) from error

    is_param: list[bool] = []
    for position, arg in enumerate(args):
        leaf_count = len(jax.tree.leaves(arg))
        is_param += [position in argnums or position - len(args) in argnums] * leaf_count

    def size(aval: Any) -> float:
        count = jaxpr_costs.elements(aval)
        if element_bytes is None or not jaxpr_costs.is_float(aval):
            return count * jaxpr_costs.element_bytes(aval) if count else 0
        return count * element_bytes * (2 if aval.dtype.kind == "c" else 1)

    program = _Program(size, unroll_limit)
    operands = [
        program.parameter(v.aval) if parameter else program.value(size(v.aval))
        for v, parameter in zip(closed.jaxpr.invars, is_param, strict=True)
    ]
    outputs = program.run(closed, operands)
    graph = _to_graph(program, outputs, name, element_bytes)
    return rewrite.clone_inputs(graph)


@dataclasses.dataclass(frozen=True)
class _Value:
    """One array of the program.

    Attributes:
      bytes: its size.
      folded: depends on parameters and constants alone.
      sources: the parts of parameters that it is made of, where folded.
      reads: bytes that a consumer must read for it: a weight broadcast is no larger than the weight.
      view: where the value is one part of one parameter and nothing else, the parameter's axes
        that its own axes are; else None.
    """

    bytes: float
    folded: bool = False
    sources: frozenset[Source] = frozenset()
    reads: float = 0.0
    view: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Op:
    name: str
    operands: tuple[int, ...]  # value numbers
    results: tuple[int, ...]
    cost: Cost


class _Program:
    """The flat list of operations that opening a jaxpr gives."""

    def __init__(self, size: Callable[[Any], float], unroll_limit: int) -> None:
        self.size = size
        self.unroll_limit = unroll_limit
        self.values: list[_Value] = []
        self.ops: list[_Op] = []
        self.parameters: list[Any] = []  # abstract values
        self.captured: dict[int, tuple[Any, int]] = {}  # id of a constant -> itself, its value
        self.float_bytes: collections.Counter[int] = collections.Counter()  # element size -> bytes

    def value(self, size: float, **folding: Any) -> int:
        self.values.append(_Value(size, **folding))
        return len(self.values) - 1

    def parameter(self, aval: Any) -> int:
        self._count_float(aval)
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
        if jaxpr_costs.elements(aval) * jaxpr_costs.element_bytes(aval) > SMALL_CONSTANT_BYTES:
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
        body = jaxpr_costs.inlined(eqn)
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
            self._count_float(v.aval)
        results = [self.value(size) for size in sizes]
        cost = jaxpr_costs.equation_cost(eqn, self.size)
        self.ops.append(_Op(eqn.primitive.name, tuple(operands), tuple(results), cost))
        return results

    def _fold(self, operands: Sequence[int], sizes: Sequence[float]) -> list[int]:
        """Results that a compiler computes once, ahead of time, from parameters and constants."""
        sources = frozenset().union(*(self.values[v].sources for v in operands))
        reads = sum(self.values[v].reads for v in set(operands))
        return [
            self.value(size, folded=True, sources=sources, reads=min(size, reads)) for size in sizes
        ]

    def _parts(self, eqn: Any, operands: Sequence[int]) -> list[int] | None:
        """The results of an equation that takes parts of one parameter, or hands it on unchanged."""
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
        length, num_consts, num_carry = params["length"], params["num_consts"], params["num_carry"]
        constants, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        stacked = operands[num_consts + num_carry :]
        slices = body.in_avals[num_consts + num_carry :]
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
        self.ops.append(_Op("slice", (stacked,), (row,), Cost(0.0, (size,), (size,))))
        return row

    def _stack(self, rows: Sequence[int], aval: Any) -> int:
        """The array that an unrolled scan collects."""
        size = self.size(aval)
        if all(self.values[v].folded for v in rows):
            return self._fold(rows, [size])[0]
        self._count_float(aval)
        stack = self.value(size)
        reads = tuple(self.values[v].bytes for v in rows)
        self.ops.append(_Op("concatenate", tuple(rows), (stack,), Cost(0.0, reads, (size,))))
        return stack

    def _count_float(self, aval: Any) -> None:
        if jaxpr_costs.is_float(aval):
            width = jaxpr_costs.element_bytes(aval) // (2 if aval.dtype.kind == "c" else 1)
            self.float_bytes[width] += jaxpr_costs.elements(aval) * width


def _to_graph(
    program: _Program, outputs: Iterable[int], name: str, element_bytes: float | None
) -> Graph:
    ops = _live(program.ops, outputs)
    if not ops:
        raise EmptyGraphError(
            f"{name}: no operation depends on an input, expected at least one "
            "(are all arguments named as parameters?)"
        )
    unknown = sorted(frozenset().union(*(op.cost.unknown for op in ops)))
    if unknown:
        warnings.warn(
            f"{name}: no cost rule for {', '.join(unknown)}; counted by shapes, one FLOP per "
            "element of the result",
            stacklevel=3,
        )
    values = program.values
    consumers: dict[int, list[int]] = {}
    uses: dict[Source, list[int]] = {}
    nodes = []
    numbers: collections.Counter[str] = collections.Counter()
    for v, op in enumerate(ops):
        read: dict[int, float] = {}
        for operand, touched in zip(op.operands, op.cost.reads, strict=True):
            consumers.setdefault(operand, []).append(v)
            for source in values[operand].sources:
                uses.setdefault(source, []).append(v)
            limit = values[operand].reads if values[operand].folded else math.inf
            read[operand] = max(read.get(operand, 0.0), min(touched, limit))
        accessed = math.fsum(read.values()) + math.fsum(op.cost.writes)
        nodes.append(Node(f"{op.name}_{numbers[op.name]}", op.name, op.cost.flops, accessed))
        numbers[op.name] += 1
    wanted = set(outputs)
    tensors = [
        Tensor(v, values[result].bytes, tuple(consumers.get(result, ())))
        for v, op in enumerate(ops)
        for result in op.results
        if result in consumers or result in wanted
    ]
    if element_bytes is None:
        (element_bytes, _), *_ = program.float_bytes.most_common(1) or [(4, 0)]
    weights = tuple(_weights(program, uses))
    return Graph(tuple(nodes), tuple(tensors), weights, name, element_bytes)


def _live(ops: Sequence[_Op], outputs: Iterable[int]) -> list[_Op]:
    """The operations that some output depends on, in order."""
    needed = set(outputs)
    live = []
    for op in reversed(ops):
        if not needed.isdisjoint(op.results):
            needed.update(op.operands)
            live.append(op)
    return live[::-1]


def _weights(program: _Program, uses: dict[Source, list[int]]) -> Iterable[Weight]:
    """One weight per parameter in use; one per part where its parts do not overlap."""
    by_parameter: dict[int, list[Box]] = {}
    for parameter, box in uses:
        by_parameter.setdefault(parameter, []).append(box)
    for parameter in sorted(by_parameter):
        boxes = sorted(by_parameter[parameter])
        size = program.size(program.parameters[parameter])
        extents = program.parameters[parameter].shape
        if _disjoint(boxes):
            for box in boxes:
                share = math.prod(stop - start for start, stop in box) / max(math.prod(extents), 1)
                yield Weight(size * share, tuple(uses[parameter, box]))
        else:
            yield Weight(size, tuple(v for box in boxes for v in uses[parameter, box]))


def _disjoint(boxes: Sequence[Box]) -> bool:
    """Whether no two boxes share an element."""
    return not any(
        all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))
        for i, one in enumerate(boxes)
        for other in boxes[:i]
    )
