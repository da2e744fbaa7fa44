"""Converts a JAX function to a Graph: one node per primitive equation.

The function is traced on abstract values (`jax.make_jaxpr`). It is never executed, so its weights
need not exist. The steps:

1. Wrappers (pjit, custom_jvp, custom_vjp, remat, closed calls) are replaced by their bodies. A
   `scan` of at most `unroll_limit` steps is unrolled. Every other loop or branch is one node.
2. Equations on parameters and constants alone are folded: they become no nodes, and the consumers
   of their results hold the original weights. Slices of one weight that do not overlap (the layers
   of a stacked parameter) are separate weights.
3. Dead code is dropped.
4. Cheap nodes that depend on inputs alone and would tie distant nodes together (an attention mask)
   are cloned into their consumers.

`program.py` does steps 1 and 2, `rewrite/clone.py` step 4. `costs.py` counts FLOPs and bytes.
"""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxpart.errors import EmptyGraphError, InputError
from jaxpart.ingest.jaxpr import costs
from jaxpart.ingest.jaxpr.program import Box, Op, Program, Source
from jaxpart.ingest.rewrite.clone import clone_inputs
from jaxpart.ingest.rewrite.fuse import fuse as fused
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


def from_jax(
    fn: Callable[..., Any],
    *args: Any,
    param_argnums: int | Sequence[int] = (),
    name: str | None = None,
    element_bytes: float | None = None,
    unroll_limit: int = 64,
    fuse: bool = False,
) -> Graph:
    """The graph of one call `fn(*args)`.

    Args:
      fn: any function that JAX can trace.
      args: example arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.
      param_argnums: positions of the arguments that are parameters; their leaves become weights.
        All other arguments are inputs, which the host feeds. The importer never guesses parameters.
      name: name of the graph; the default is the name of the function.
      element_bytes: bytes to count per element of a float tensor or weight (1 for an int8
        deployment). A complex element counts twice that. Integers and booleans keep their size. By
        default all sizes are as traced.
      unroll_limit: a `scan` of at most this many steps is unrolled; a longer one is one node.
      fuse: whether to merge operations as compilers do, with `jaxpart.fuse`.

    Returns:
      The graph. Its `element_bytes` is the given one, or else the element size of the float type
      with the most bytes (4 if there are no floats). Unused parameters are left out.

    Raises:
      InputError: `param_argnums`, `element_bytes` or `unroll_limit` is out of range, `fn` cannot be
        traced, or an argument has a shape that is not made of whole numbers.
      EmptyGraphError: no operation depends on an input.

    Warns:
      UserWarning: an operation has no cost rule and is counted by its shapes; the message names it.
    """
    name = name if name is not None else str(getattr(fn, "__name__", type(fn).__name__))
    argnums = (param_argnums,) if isinstance(param_argnums, int) else tuple(param_argnums)
    for position in argnums:
        if not -len(args) <= position < len(args):
            raise InputError(
                f"{name}: param_argnums names argument {position}, expected 0 to {len(args) - 1}"
            )
    if element_bytes is not None and not 0 < element_bytes < math.inf:
        raise InputError(f"{name}: element_bytes is {element_bytes}, expected a positive number")
    if unroll_limit < 0:
        raise InputError(f"{name}: unroll_limit is {unroll_limit}, expected 0 or more")
    try:
        closed = jax.make_jaxpr(fn)(*args)
    except Exception as error:  # the user's function can raise any exception
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{name}: cannot be traced ({type(error).__name__}: {lines[0]})"
        ) from error

    for variable in closed.jaxpr.invars:
        shape = getattr(variable.aval, "shape", ())
        if not all(isinstance(extent, int) for extent in shape):
            raise InputError(f"{name}: an argument has shape {shape}, expected whole numbers")

    is_param: list[bool] = []
    for position, arg in enumerate(args):
        leaf_count = len(jax.tree.leaves(arg))
        is_param += [position in argnums or position - len(args) in argnums] * leaf_count

    def size(aval: Any) -> float:
        count = costs.elements(aval)
        if element_bytes is None or not costs.is_float(aval):
            return count * costs.element_bytes(aval) if count else 0
        return count * element_bytes * (2 if aval.dtype.kind == "c" else 1)

    program = Program(size, unroll_limit)
    operands = [
        program.parameter(v.aval) if parameter else program.value(size(v.aval))
        for v, parameter in zip(closed.jaxpr.invars, is_param, strict=True)
    ]
    outputs = program.run(closed, operands)
    graph = _to_graph(program, outputs, name, element_bytes)
    graph = clone_inputs(graph)
    return fused(graph) if fuse else graph


def _to_graph(
    program: Program, outputs: Iterable[int], name: str, element_bytes: float | None
) -> Graph:
    """The graph of `program`; `outputs` are the numbers of the values that it returns."""
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


def _live(ops: Sequence[Op], outputs: Iterable[int]) -> list[Op]:
    """The operations that some output depends on, in program order."""
    needed = set(outputs)
    live = []
    for op in reversed(ops):
        if not needed.isdisjoint(op.results):
            needed.update(op.operands)
            live.append(op)
    return live[::-1]


def _weights(program: Program, uses: dict[Source, list[int]]) -> Iterable[Weight]:
    """Yields one weight per used parameter, or one per used part if these do not overlap."""
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
