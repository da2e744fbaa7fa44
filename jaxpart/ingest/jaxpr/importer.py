"""Converts a JAX function to a Graph: one node per primitive equation.

The function is traced on abstract values (`jax.make_jaxpr`). It is never executed, so its weights
need not exist. The steps:

1. Wrappers (pjit, custom_jvp, custom_vjp, remat, closed calls, shard_map) are replaced by their
   bodies. A loop with a known number of steps is unrolled as far as the graph stays small; a
   warning names each kind of loop that is kept. Every other branch is one node.
2. Equations on parameters and constants alone are folded: they become no nodes, and the consumers
   of their results hold the original weights. Parts of one weight that do not overlap (the layers
   of a stacked parameter) are separate weights, also where a loop counter selects them.
3. Dead code is dropped.
4. Cheap nodes that depend on inputs alone and would tie distant nodes together (an attention mask)
   are cloned into their consumers.

`program.py` does step 1 and `folding.py` step 2: `known.py` computes small integers, `parts.py` and
`views.py` say which part of a parameter an equation takes. `rewrite/clone.py` does step 4.
`costs.py` counts FLOPs and bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax

from jaxpart.errors import EmptyGraphError, InputError
from jaxpart.ingest.jaxpr import sizes
from jaxpart.ingest.jaxpr.divide import node_divisions
from jaxpart.ingest.jaxpr.program import Program
from jaxpart.ingest.jaxpr.values import Op, Source, live, part_bytes
from jaxpart.ingest.jaxpr.views import View, overlap_groups
from jaxpart.ingest.jaxpr.visits import Expansion
from jaxpart.ingest.rewrite.clone import cloned
from jaxpart.ingest.rewrite.divisions import with_divisions
from jaxpart.ingest.rewrite.fuse import fused
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

# What an argument is; a constant is large, and its elements are not at hand.
Role = Literal["input", "parameter", "state", "constant"]

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
# They hand on their first operand, or a part of it, cast or laid out in another way.
_LAYOUTS = (
    *("broadcast_in_dim", "convert_element_type", "copy", "dynamic_slice", "expand_dims"),
    *("reshape", "rev", "slice", "split", "squeeze", "transpose", "unstack"),
)
_LARGE_INPUT_BYTES = 2**20  # of an input that is likely a forgotten parameter
_MAX_NAMED = 5  # most kinds of kept loops that are named, one warning each


def from_jax(
    fn: Callable[..., Any],
    *args: Any,
    param_argnums: int | Sequence[int] = (),
    state_argnums: int | Sequence[int] = (),
    name: str | None = None,
    element_bytes: float | None = None,
    unroll_limit: int | None = None,
    fuse: bool = False,
) -> Graph:
    """The graph of one call `fn(*args)`.

    Args:
      fn: any function that JAX can trace.
      args: example arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.
      param_argnums: positions of the arguments that are parameters; their leaves become weights.
        All other arguments are inputs, which the host feeds. The importer never guesses parameters.
      state_argnums: positions of the arguments that are state living on a chip (KV caches, running
        statistics). Each leaf, or the part of it that a step takes, counts like a weight in the
        memory of every chip with a consumer. Operations on it are work and are not folded.
      name: name of the graph; the default is the name of the function.
      element_bytes: bytes to count per element of a float tensor or weight (1 for an int8
        deployment). A complex element counts twice that. Integers and booleans keep their size,
        and are marked as fixed for a later change of element size. By default all sizes are as
        traced.
      unroll_limit: a loop of at most this many steps is unrolled; a longer one is one node. By
        default loops are unrolled as far as the graph has at most `MAX_NODES` nodes (20,000).
      fuse: whether to merge operations as compilers do, with `jaxpart.fuse`.

    Returns:
      The graph. Its `element_bytes` is the given one, or else the element size of the float type
      with the most bytes (4 if there are no floats). Unused parameters are left out.

    Raises:
      InputError: `param_argnums`, `state_argnums`, `element_bytes` or `unroll_limit` is out of
        range, an argument is named as both parameter and state, `fn` cannot be traced, or an
        argument has a shape that is not made of whole numbers.
      EmptyGraphError: no operation depends on an input.

    Warns:
      UserWarning: an operation has no cost rule and is counted by its shapes, or a loop is kept as
        one node (the message names it), or a large input is used as parameters are: in a matrix
        product or convolution without a weight, or as a table of rows.
    """
    options = Options(param_argnums, state_argnums, name, element_bytes, unroll_limit, fuse)
    return import_function(fn, args, options).graph


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user says of a function; as in `from_jax`."""

    param_argnums: int | Sequence[int] = ()
    state_argnums: int | Sequence[int] = ()
    name: str | None = None
    element_bytes: float | None = None
    unroll_limit: int | None = None
    fuse: bool = False


@dataclasses.dataclass(frozen=True)
class Imported:
    """A graph, and what its nodes stand for.

    Attributes:
      graph: the graph.
      closed: the ClosedJaxpr of the function.
      roles: what each of its arguments is.
      program: the function as operations on numbered values.
      expansion: what became of each equation; None if it was not recorded.
      node_of: number of a value that a live operation computes -> the node of this operation; None
        where clones or views replace it.
      clones: node -> numbers of the values that clones inside it compute.
      doubts: what a user must know to trust the figures, a line each.
      params: positions of the arguments of the user's function that are parameters.
      results: abstract values in the structure that the user's function returns.
    """

    graph: Graph
    closed: Any
    roles: tuple[Role, ...]
    program: Program
    expansion: Expansion | None
    node_of: dict[int, int | None]
    clones: dict[int, frozenset[int]]
    doubts: tuple[str, ...]
    params: frozenset[int] = frozenset()
    results: Any = None

    @property
    def is_parameter(self) -> tuple[bool, ...]:
        """For each argument of `closed`, whether it is a parameter."""
        return tuple(role == "parameter" for role in self.roles)


def import_function(
    fn: Callable[..., Any], args: Sequence[Any], options: Options, *, record: bool = False
) -> Imported:
    """The graph of `fn(*args)`, and what its nodes stand for; raises and warns as `from_jax`.

    Args:
      fn: as in `from_jax`.
      args: as in `from_jax`.
      options: as in `from_jax`.
      record: whether to record what became of each equation.
    """
    name = options.name if options.name is not None else _name_of(fn)
    element_bytes, unroll_limit = options.element_bytes, options.unroll_limit
    params = positions_of(options.param_argnums, len(args), f"{name}: param_argnums")
    states = positions_of(options.state_argnums, len(args), f"{name}: state_argnums")
    if params & states:
        raise InputError(
            f"{name}: argument {min(params & states)} is named in param_argnums and in "
            "state_argnums, expected one of them"
        )
    check_options(name, element_bytes, unroll_limit)
    try:
        # JAX refuses an object whose name is no text; a lambda around it has one.
        closed, results = jax.make_jaxpr(lambda *given: fn(*given), return_shape=True)(*args)
    except Exception as error:  # the user's function can raise any exception
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{name}: cannot be traced ({type(error).__name__}: {lines[0]})"
        ) from error

    for variable in closed.jaxpr.invars:
        shape = getattr(variable.aval, "shape", ())
        if not all(isinstance(extent, int) for extent in shape):
            raise InputError(f"{name}: an argument has shape {shape}, expected whole numbers")
    roles: list[Role] = [
        "parameter" if i in params else "state" if i in states else "input"
        for i, arg in enumerate(args)
        for _ in jax.tree.leaves(arg)
    ]
    imported = _imported(
        closed, roles, name, element_bytes, unroll_limit, options.fuse, record=record
    )
    for doubt in imported.doubts:
        warnings.warn(f"{name}: {doubt}", stacklevel=3)
    return dataclasses.replace(imported, params=params, results=results)


def check_options(name: str, element_bytes: float | None, unroll_limit: int | None) -> None:
    """Refuses options of an importer that are out of range.

    Args:
      name: of the graph, for messages.
      element_bytes: as in `from_jax`.
      unroll_limit: as in `from_jax`.

    Raises:
      InputError: one of them is out of range.
    """
    if element_bytes is not None and not 0 < element_bytes < math.inf:
        raise InputError(f"{name}: element_bytes is {element_bytes}, expected a positive number")
    if unroll_limit is not None and unroll_limit < 0:
        raise InputError(f"{name}: unroll_limit is {unroll_limit}, expected 0 or more")


def graph_of(
    closed: Any,
    roles: Sequence[Role],
    name: str,
    element_bytes: float | None,
    unroll_limit: int | None,
    fuse: bool,
) -> Graph:
    """The graph of a function that was traced; the options are those of `from_jax`.

    Args:
      closed: the function, a ClosedJaxpr.
      roles: what each of its arguments is.
      name: name of the graph.
      element_bytes: as in `from_jax`.
      unroll_limit: as in `from_jax`.
      fuse: as in `from_jax`.

    Returns:
      The graph. Errors and warnings are those of `from_jax`; warnings name the caller's caller.
    """
    imported = _imported(closed, roles, name, element_bytes, unroll_limit, fuse)
    for doubt in imported.doubts:
        warnings.warn(f"{name}: {doubt}", stacklevel=3)
    return imported.graph


def _imported(
    closed: Any,
    roles: Sequence[Role],
    name: str,
    element_bytes: float | None,
    unroll_limit: int | None,
    fuse: bool,
    *,
    record: bool = False,
) -> Imported:
    """`graph_of` without its warnings, and what the nodes stand for."""

    def size(aval: Any) -> float:
        if element_bytes is None or not sizes.is_float(aval):
            return sizes.array_bytes(aval)
        return sizes.elements(aval) * element_bytes * (2 if aval.dtype.kind == "c" else 1)

    program = Program(size, unroll_limit)
    add = {
        "input": program.input,
        "parameter": program.parameter,
        "state": program.state,
        "constant": program.unseen_constant,
    }
    operands = [add[role](v.aval) for role, v in zip(roles, closed.jaxpr.invars, strict=True)]
    numbers, expansion = program.run_all(closed, operands, record=record)
    outputs = program.outputs(numbers)
    ops = live(program.ops, outputs)
    traced, constants = _to_graph(program, ops, outputs, name, element_bytes)
    graph, node_of, clones = cloned(traced, constants)
    if fuse:
        graph, kernel_of = fused(graph)
        node_of = [None if v is None else kernel_of[v] for v in node_of]
    inside: dict[int, set[int]] = {}
    for q, copied in clones.items():
        consumer = node_of[q]
        if consumer is not None:
            inside.setdefault(consumer, set()).update(r for u in copied for r in ops[u].results)
    return Imported(
        graph,
        closed,
        tuple(roles),
        program,
        expansion,
        {r: v for op, v in zip(ops, node_of, strict=True) for r in op.results},
        {v: frozenset(numbers) for v, numbers in inside.items()},
        tuple(_doubts(program, ops, traced)),
    )


def _name_of(fn: Callable[..., Any]) -> str:
    try:
        name = getattr(fn, "__name__", None)
    except Exception:  # a property of the user's object can raise any exception
        name = None
    return name if isinstance(name, str) else type(fn).__name__


def positions_of(argnums: int | Sequence[int], count: int, where: str) -> frozenset[int]:
    """Positions of arguments, counted from the first.

    Args:
      argnums: one or several; negative ones count from the last argument.
      count: number of arguments.
      where: for the message.

    Raises:
      InputError: there is no such argument, or a position is no whole number.
    """
    several = argnums if isinstance(argnums, Iterable) else (argnums,)
    try:
        positions = [operator.index(position) for position in several]
    except TypeError as error:
        raise InputError(f"{where} is {argnums!r}, expected positions of arguments") from error
    for position in positions:
        if not -count <= position < count:
            raise InputError(f"{where} names argument {position}, expected 0 to {count - 1}")
    return frozenset(position % count for position in positions)


def _to_graph(
    program: Program,
    ops: Sequence[Op],
    outputs: Sequence[int],
    name: str,
    element_bytes: float | None,
) -> tuple[Graph, frozenset[int]]:
    """The graph of a program, and the numbers of its weights that are constants.

    Args:
      program: the program.
      ops: [N] its live operations.
      outputs: numbers of the values that it returns.
      name: name of the graph.
      element_bytes: as in `from_jax`.
    """
    if not ops:
        raise EmptyGraphError(
            f"{name}: no operation depends on an input, expected at least one "
            "(are all arguments named as parameters?)"
        )
    values = program.values
    consumers: dict[int, list[int]] = {}
    uses: dict[Source, list[int]] = {}
    nodes = []
    numbers: collections.Counter[str] = collections.Counter()
    for v, op in enumerate(ops):
        for operand in op.operands:
            consumers.setdefault(operand, []).append(v)
            for source in values[operand].sources:
                uses.setdefault(source, []).append(v)
        accessed, fixed = program.traffic(op)
        nodes.append(
            Node(
                f"{op.name}_{numbers[op.name]}",
                op.name,
                op.cost.flops,
                accessed,
                fixed_bytes=min(fixed, accessed),
            )
        )
        numbers[op.name] += 1
    wanted = set(outputs)
    sent = {
        result: v
        for v, op in enumerate(ops)
        for result in op.results
        if result in consumers or result in wanted
    }
    tensors = [
        Tensor(v, values[result].bytes, tuple(consumers.get(result, ())), values[result].fixed == 1)
        for result, v in sent.items()
    ]
    if element_bytes is None:
        totals = program.float_bytes
        element_bytes = max(totals, key=lambda width: totals[width]) if totals else 4
    weights = list(_weights(program, uses))
    constants = frozenset(
        w for w, (parameter, _, _) in enumerate(weights) if parameter in program.constants
    )
    divide = node_divisions(
        program,
        ops,
        {result: k for k, result in enumerate(sent)},
        [(parameter, parts) for parameter, parts, _ in weights],
    )
    graph = Graph(
        tuple(map(with_divisions, nodes, divide)),
        tuple(tensors),
        tuple(weight for _, _, weight in weights),
        name,
        element_bytes,
    )
    return graph, constants


def _doubts(program: Program, ops: Sequence[Op], graph: Graph) -> Iterable[str]:
    """What a user must know to trust the figures of a graph; a line each.

    Args:
      program: the program.
      ops: [N] its live operations.
      graph: of N nodes.
    """
    unknown = sorted(frozenset().union(*(op.cost.unknown for op in ops)))
    if unknown:
        yield (
            f"no cost rule for {', '.join(unknown)}; counted by shapes, one FLOP per element of "
            "the result: the figures hang on it"
        )
    kept: dict[str, list[str]] = {}  # nodes by what is said of them; copies of a loop are alike
    for node, op in zip(graph.nodes, ops, strict=True):
        if op.kept:
            kept.setdefault(op.kept, []).append(node.name)
    for reason, (first, *others) in list(kept.items())[:_MAX_NAMED]:
        like = f", like {len(others)} more nodes" if others else ""
        yield f"{first} is kept as one node, on one chip{like}: {reason}"
    if rest := list(kept.values())[_MAX_NAMED:]:
        yield f"{sum(map(len, rest))} more nodes are kept whole, as {rest[0][0]} is"
    forgotten = _likely_parameters(program, ops)
    if forgotten:
        size, op = max(forgotten)
        none = "" if graph.weights else "0 MiB of weights: no argument is named as parameters, and "
        yield (
            f"{none}an input of {size / 2**20:.3g} MiB goes into {op}; if it is a parameter, name "
            "it in param_argnums (a cache: state_argnums)"
        )


def _likely_parameters(program: Program, ops: Sequence[Op]) -> list[tuple[float, str]]:
    """Large inputs that are used as parameters are: their bytes, and the operation.

    A product or convolution with a weight has an activation as its other operand. One without a
    weight has a parameter that was not named, or a cache, if an operand is a large input that was
    at most cast, cut, or laid out in another way. So has a lookup of rows by computed positions.
    """
    values = program.values
    origin: dict[int, int] = {}  # value -> the input that it is laid out from

    def fed(v: int) -> int | None:
        leaf = values[v].fed
        return origin.get(v) if leaf is None else leaf

    found = []
    for op in ops:
        first = fed(op.operands[0]) if op.operands else None
        if op.name in _LAYOUTS and first is not None:
            origin.update(dict.fromkeys(op.results, first))
        candidates: list[int | None] = []
        if op.name in _PRODUCTS and not any(values[v].sources for v in op.operands):
            candidates = [fed(v) for v in op.operands]
        elif not program.lookups.isdisjoint(op.results):
            candidates = [first]
        found.extend(
            (values[leaf].bytes, op.name)
            for leaf in candidates
            if leaf is not None and values[leaf].bytes >= _LARGE_INPUT_BYTES
        )
    return found


def _weights(
    program: Program, uses: dict[Source, list[int]]
) -> Iterable[tuple[int, list[View], Weight]]:
    """Yields the weights, each with the number of the parameter, and the parts of it that it is.

    Parts of one parameter are weights of their own where they do not overlap and have different
    consumers. Parts that overlap are one weight.
    """
    by_parameter: dict[int, list[View]] = {}
    for parameter, region in uses:
        by_parameter.setdefault(parameter, []).append(region)
    for parameter in sorted(by_parameter):
        aval = program.parameters[parameter]
        whole = program.size(aval)
        parts: dict[tuple[int, ...], list[View]] = {}  # by consumers
        for group in overlap_groups(by_parameter[parameter]):
            readers = tuple(sorted({v for region in group for v in uses[parameter, region]}))
            parts.setdefault(readers, []).extend(group)
        for readers, regions in parts.items():
            size = part_bytes(program.size, aval, sum(region.elements for region in regions))
            weight = Weight(min(size, whole), readers, not sizes.is_float(aval))
            yield parameter, regions, weight
