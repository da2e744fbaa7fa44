"""Turns a program of `torch.export` into a function that JAX can trace.

Each operator of torch's library ATen becomes functions of JAX, and the importer for JAX does the
rest: it folds what depends on parameters alone, and counts. No cost rule is stated twice. The shape
of each result is compared with the one in the file.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from msgspec import UNSET, UnsetType

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.pt2.schema import Argument, Graph, Node, Symbol, TensorMeta
from jaxpart.ingest.pt2.symbols import extent

# The number of a type in the file -> its name in JAX.
DTYPES = {
    **{1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32"},
    **{8: "float64", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16"},
    **{29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz"},
    **{33: "float8_e8m0fnu", 34: "uint32", 35: "uint64"},
}
_MISSING = object()
# What arguments raise that a file says and an operator does not take.
_MISFITS = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)
_MISFITS += (AssertionError, NotImplementedError, MemoryError)

# Operators that check or mark something, and compute nothing.
_NO_WORK = (
    *("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range"),
    "sym_constrain_range_for_size",
)
# Operators on sizes; they run while the program is traced.
_ON_SIZES: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "mod", "neg", "floordiv")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "truediv")},
    **{"pow": operator.pow, "and_": operator.and_, "or_": operator.or_},
    **{"sym_max": max, "sym_min": min, "sym_not": operator.not_, "sym_float": float},
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One operator of a program, as rules see it.

    Attributes:
      name: without library and overload: `conv2d`.
      overload: `default`, `dim`.
      arguments: by their names in torch's schema; those with their default are left out.
      results: shape and type of each result that is a tensor.
      where: the place in the file, for messages.
    """

    name: str
    overload: str
    arguments: Mapping[str, Any]
    results: tuple[jax.ShapeDtypeStruct, ...]
    where: str

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """An argument, or its default.

        Raises:
          KeyError: it is left out and has no default.
        """
        found = self.arguments.get(name, default)
        if found is _MISSING:
            raise KeyError(f"no argument {name!r}")
        return found

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.results[0].shape

    @property
    def dtype(self) -> Any:
        """Type of the first result."""
        return self.results[0].dtype


Rule = Callable[[Call], Any]


class Interpreter:
    """Runs the graph of a program on values of a trace."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        written_back: Callable[[Call, Any, Any], Any | None],
        sizes: Mapping[str, int],
        where: str,
    ) -> None:
        """Takes what all graphs of a program share.

        Args:
          rules: name of an operator of ATen -> what adds it to a trace.
          written_back: what a tensor is after a view of it was written; None if it is no view.
          sizes: of free dimensions, by the name of their symbol.
          where: name of the file, for messages.
        """
        self._rules, self._sizes, self._where = rules, sizes, where
        self._written_back = written_back
        self._views: dict[str, tuple[str, Call]] = {}  # result -> first operand, and the operator

    def aval(self, meta: TensorMeta, where: str) -> jax.ShapeDtypeStruct:
        """Shape and type of a tensor whose sizes are all known.

        Raises:
          InputError: a size is free and not given.
          FileFormatError: a size is no expression, or JAX does not have the type of its elements.
        """
        shape = tuple(extent(size, self._sizes, where) for size in meta.sizes)
        return jax.ShapeDtypeStruct(shape, _dtype(meta.dtype, where))

    def _result(self, graph: Graph, name: str, where: str) -> jax.ShapeDtypeStruct:
        meta = graph.tensor_values.get(name)
        if meta is None:
            raise FileFormatError(f"{where}: {name} has no type and shape, expected both")
        return self.aval(meta, where)

    def run(self, graph: Graph, values: Sequence[Any]) -> list[Any]:
        """Adds the operators of a graph to the trace that is running.

        Args:
          graph: the graph.
          values: for each of its inputs.

        Returns:
          Its outputs.
        """
        known: dict[str, Any] = {}
        for given, value in zip(graph.inputs, values, strict=True):
            known.update(dict.fromkeys(_names_of(given, f"{self._where}: inputs"), value))
        for position, node in enumerate(graph.nodes):
            where = f"{self._where}: node {position} ({node.target.removeprefix('torch.ops.')})"
            # The equations of JAX keep the name of the node that they are made for.
            with jax.named_scope(_name_of(node, where) or "unnamed"):
                self._node(graph, node, known, where)
        return [self._value(out, known, f"{self._where}: outputs") for out in graph.outputs]

    def _node(self, graph: Graph, node: Node, known: dict[str, Any], where: str) -> None:
        library, name, overload = _split(node.target)
        if name in _NO_WORK:
            return
        given = [self._value(a.arg, known, where) for a in node.inputs]
        arguments = dict(zip((a.name for a in node.inputs), given, strict=True))
        names = [n for out in node.outputs for n in _names_of(out, where)]
        tensors = [n for out in node.outputs if _holds_tensors(out) for n in _names_of(out, where)]
        avals = tuple(self._result(graph, n, where) for n in tensors)
        call = Call(name, overload, arguments, avals, where)
        if name in _ON_SIZES and not tensors:
            results = [_tried(lambda _: _ON_SIZES[name](*given), call)]
        elif name == "sym_size":
            results = [_tried(lambda call: call["self"].shape[call["dim"]], call)]
        elif library == "higher_order":
            results = self._higher(name, given, where)
        else:
            results = self._results(library, call)
        if len(results) < len(names):
            raise FileFormatError(
                f"{where}: {len(names)} results in the file, expected {len(results)}"
            )
        for result_name, result in zip(names, results, strict=False):
            known[result_name] = result
        first = node.inputs[0].arg.as_tensor if node.inputs else UNSET
        if isinstance(first, UnsetType) or not names:
            return
        if name != _functional(name):
            self._write(first.name, known[names[0]], known)
        self._views[names[0]] = first.name, call

    def _write(self, target: str, value: Any, known: dict[str, Any]) -> None:
        """Writes a tensor in place, and so what it is a view of.

        Other views of that which were made before keep the old value.
        """
        known[target] = value
        if target not in self._views:
            return
        base, view = self._views[target]
        if view.name != _functional(view.name):  # what an operator in place returns is its operand
            self._write(base, value, known)
        elif (after := self._written_back(view, known[base], value)) is not None:
            self._write(base, after, known)

    def _results(self, library: str, call: Call) -> list[Any]:
        rule = self._rules.get(call.name) or self._rules.get(_functional(call.name))
        if rule is None or library != "aten":
            arrays = [v for v in jax.tree.leaves([*call.arguments.values()]) if _is_array(v)]
            return by_shape(f"{library}.{call.name}", arrays, call.results)
        results = _listed(_tried(rule, call))
        for i, (result, aval) in enumerate(zip(results, call.results, strict=False)):
            if tuple(result.shape) != aval.shape:
                raise FileFormatError(
                    f"{call.where}: computes the shape {list(result.shape)}, but the file says "
                    f"{list(aval.shape)}"
                )
            if result.dtype != aval.dtype:
                results[i] = result.astype(aval.dtype)
        return results

    def _higher(self, name: str, operands: list[Any], where: str) -> list[Any]:
        """Operators on graphs: a branch, a loop, or a graph that runs once."""
        try:
            if name == "cond":
                which, on_true, on_false, given = operands
                return list(
                    jax.lax.cond(
                        jnp.reshape(which, ()),
                        lambda: tuple(self.run(on_true, given)),
                        lambda: tuple(self.run(on_false, given)),
                    )
                )
            if name == "while_loop":
                condition, body, carried, more = operands
                return list(
                    jax.lax.while_loop(
                        lambda c: jnp.reshape(self.run(condition, [*c, *more])[0], ()),
                        lambda c: tuple(self.run(body, [*c, *more])),
                        tuple(carried),
                    )
                )
            if name.startswith("wrap"):  # a graph that runs under another mode of torch
                (start,) = (i for i, o in enumerate(operands) if isinstance(o, Graph))
                return self.run(operands[start], operands[start + 1 :])
        except InputError:
            raise
        except _MISFITS as error:
            _refuse(error, where)
        raise FileFormatError(f"{where}: no rule for it, expected operators without graphs in them")

    def _value(self, argument: Argument | Symbol, known: Mapping[str, Any], where: str) -> Any:
        """The value of an argument."""
        kind, value = argument.only(where)
        match kind:
            case "as_none" | "as_device" | "as_layout" | "as_memory_format":
                return None
            case "as_tensor" | "as_custom_obj" | "as_token":
                return _look_up(known, value.name, where)
            case "as_name":
                return _look_up(known, value, where)
            case "as_tensors":
                return [_look_up(known, one.name, where) for one in value]
            case "as_nested_tensors":
                return [[_look_up(known, one.name, where) for one in row] for row in value]
            case "as_optional_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._value(value, known, where)
            case "as_optional_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [self._value(one, known, where) for one in value]
            case "as_graph":
                return value.graph
            case "as_scalar_type":
                return _dtype(value, where)
            case "as_complex":
                return complex(value.real, value.imag)
            case "as_float":
                return _number(value, where)
            case "as_floats":
                return [_number(one, where) for one in value]
        return value


def node_of(eqn: Any) -> str:
    """The name of the node of torch.fx that an equation of a program was made for.

    Args:
      eqn: an equation of the program itself, of no body in it.
    """
    return str(eqn.source_info.name_stack).split("/", 1)[0]


def _name_of(node: Node, where: str) -> str:
    return node.name or next((n for out in node.outputs for n in _names_of(out, where)), "")


def _number(value: float | str, where: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise FileFormatError(f"{where}: {value!r}, expected a number") from error


def _look_up(known: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in known:
        raise FileFormatError(f"{where}: reads {name}, expected a value that is there by then")
    return known[name]


def _dtype(number: int, where: str) -> Any:
    if number not in DTYPES:
        raise FileFormatError(f"{where}: elements of torch's type {number}, expected JAX's")
    return jnp.dtype(DTYPES[number])


def _split(target: str) -> tuple[str, str, str]:
    """Library, name and overload of `torch.ops.aten.add.Tensor`; others have a name alone."""
    parts = target.split(".")
    if target.startswith("torch.ops.") and len(parts) >= 4:
        return parts[2], parts[3], ".".join(parts[4:])
    return parts[0], parts[-1], ""


def _functional(name: str) -> str:
    """Name of the operator that computes what one in place does."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _names_of(argument: Argument, where: str) -> list[str]:
    """Names of the values that an input or output holds; those without one are ""."""
    kind, value = argument.only(where)
    if kind == "as_none":
        return []
    several = value if isinstance(value, list) else [value]
    return [getattr(one, "name", None) or getattr(one, "as_name", None) or "" for one in several]


def _holds_tensors(argument: Argument) -> bool:
    return argument.as_tensor is not UNSET or argument.as_tensors is not UNSET


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def _listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, list | tuple) else [results]


def _tried(rule: Rule, call: Call) -> Any:
    try:
        return rule(call)
    except InputError:
        raise
    except _MISFITS as error:
        _refuse(error, call.where)


def _refuse(error: Exception, where: str) -> Any:
    first = (str(error).strip().splitlines() or [""])[0]
    raise FileFormatError(f"{where}: arguments that do not fit it ({first})") from error
