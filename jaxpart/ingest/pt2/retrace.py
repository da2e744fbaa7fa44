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
import msgspec

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.pt2.archive import Graph, Node, TensorMeta

# The number of a type in the file -> its name in JAX.
DTYPES = {
    **{1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32"},
    **{8: "float64", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16"},
    **{29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz"},
    **{33: "float8_e8m0fnu", 34: "uint32", 35: "uint64"},
}
_MISSING = object()

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
      results: shape and type of each result that is a tensor; extents are None where they depend on
        a size that is not given.
      where: the place in the file, for messages.
    """

    name: str
    overload: str
    arguments: Mapping[str, Any]
    results: tuple[Any, ...]
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

    def __init__(self, rules: Mapping[str, Rule], sizes: Mapping[str, int], where: str) -> None:
        """Takes what all graphs of a program share.

        Args:
          rules: name of an operator of ATen -> what adds it to a trace.
          sizes: of free dimensions, by the name of their symbol.
          where: name of the file, for messages.
        """
        self._rules, self._sizes, self._where = rules, sizes, where

    def aval(self, meta: TensorMeta, where: str) -> jax.ShapeDtypeStruct:
        """Shape and type of a tensor whose sizes are all known.

        Raises:
          InputError: a size is free and not given.
          FileFormatError: its elements are of a type that JAX does not have.
        """
        return jax.ShapeDtypeStruct(
            tuple(self._extent(size, where) for size in meta.sizes), _dtype(meta.dtype, where)
        )

    def _extent(self, size: dict[str, Any], where: str) -> int:
        if "as_int" in size:
            return size["as_int"]
        symbol = str(size.get("as_expr", {}).get("expr_str", size))
        if symbol not in self._sizes:
            hint = size.get("as_expr", {}).get("hint") or {}
            traced = f" (exported with {hint['as_int']})" if "as_int" in hint else ""
            raise InputError(
                f"{where}: its size {symbol} is free{traced}, expected a size for it: "
                f"--dim {symbol}=SIZE"
            )
        return self._sizes[symbol]

    def _result(self, meta: TensorMeta | None, where: str) -> Any:
        """As `aval`; None if the shape depends on sizes in a way that only tracing tells."""
        if meta is None:
            raise FileFormatError(f"{where}: a result without type and shape, expected both")
        known = all("as_int" in size or self._is_given(size) for size in meta.sizes)
        return self.aval(meta, where) if known else None

    def _is_given(self, size: dict[str, Any]) -> bool:
        return str(size.get("as_expr", {}).get("expr_str")) in self._sizes

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
            known[_name_of(given)] = value
        for position, node in enumerate(graph.nodes):
            where = f"{self._where}: node {position} ({node.target.removeprefix('torch.ops.')})"
            self._node(graph, node, known, where)
        return [self._value(out, known, f"{self._where}: outputs") for out in graph.outputs]

    def _node(self, graph: Graph, node: Node, known: dict[str, Any], where: str) -> None:
        library, name, overload = _split(node.target)
        if name in _NO_WORK:
            return
        arguments = {a.name: self._value(a.arg, known, where) for a in node.inputs}
        names = [name for out in node.outputs for name in _names_of(out)]
        tensors = [n for out in node.outputs for n in _tensors_of(out)]
        metas = [self._result(graph.tensor_values.get(n), where) for n in tensors]
        if name in _ON_SIZES and not tensors:
            results = [_ON_SIZES[name](*arguments.values())]
        elif name == "sym_size":
            results = [arguments["self"].shape[arguments["dim"]]]
        elif library == "higher_order":
            results = self._higher(name, list(arguments.values()), metas, where)
        else:
            call = Call(name, overload, arguments, tuple(metas), where)
            results = self._results(call)
        if len(results) < len(names):
            raise FileFormatError(
                f"{where}: {len(names)} results in the file, expected {len(results)}"
            )
        for result_name, result in zip(names, results, strict=False):
            known[result_name] = result
        _write_in_place(node, name, names, known)

    def _results(self, call: Call) -> list[Any]:
        rule = self._rules.get(call.name) or self._rules.get(_functional(call.name))
        if rule is None or any(result is None for result in call.results):
            return self._without_rule(call) if rule is None else _listed(_tried(rule, call))
        results = _listed(_tried(rule, call))
        for i, (result, aval) in enumerate(zip(results, call.results, strict=False)):
            if result is None:
                continue
            if tuple(result.shape) != aval.shape:
                raise FileFormatError(
                    f"{call.where}: computes the shape {list(result.shape)}, but the file says "
                    f"{list(aval.shape)}"
                )
            if result.dtype != aval.dtype:
                results[i] = result.astype(aval.dtype)
        return results

    def _without_rule(self, call: Call) -> list[Any]:
        if any(result is None for result in call.results):
            raise FileFormatError(f"{call.where}: no rule for it and no whole shape, expected one")
        if not call.results:
            return []
        operands = jax.tree.leaves(list(call.arguments.values()))
        arrays = [leaf for leaf in operands if isinstance(leaf, jax.Array)]
        return by_shape(f"aten.{call.name}", arrays, call.results)

    def _higher(self, name: str, operands: list[Any], metas: list[Any], where: str) -> list[Any]:
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
        except (TypeError, ValueError, IndexError) as error:
            _refuse(error, where)
        raise FileFormatError(f"{where}: no rule for it, expected operators without graphs in them")

    def _value(self, argument: Any, known: Mapping[str, Any], where: str) -> Any:
        """The value of an argument."""
        if len(argument) != 1:
            raise FileFormatError(f"{where}: an argument with {len(argument)} values, expected one")
        ((kind, value),) = argument.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor" | "as_custom_obj" | "as_token":
                return _look_up(known, value["name"], where)
            case "as_tensors":
                return [_look_up(known, one["name"], where) for one in value]
            case "as_optional_tensors":
                return [self._value(one, known, where) for one in value]
            case "as_optional_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._symbol(value, known, where)
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [self._symbol(one, known, where) for one in value]
            case "as_graph":
                return _graph_in(value["graph"], where)
            case "as_scalar_type":
                return _dtype(value, where)
            case "as_complex":
                return complex(value["real"], value["imag"])
            case "as_nested_tensors":
                return [[_look_up(known, one["name"], where) for one in row] for row in value]
            case "as_float":
                return float(value)  # infinity is a text
        return value

    def _symbol(self, value: dict[str, Any], known: Mapping[str, Any], where: str) -> Any:
        if "as_name" in value:
            return _look_up(known, value["as_name"], where)
        return self._value(value, known, where)


def _look_up(known: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in known:
        raise FileFormatError(f"{where}: reads {name}, expected a value that is there by then")
    return known[name]


def _graph_in(value: Any, where: str) -> Graph:
    """A graph inside of an argument.

    Raises:
      FileFormatError: it breaks the schema.
    """
    try:
        return msgspec.convert(value, Graph)
    except msgspec.ValidationError as error:
        raise FileFormatError(f"{where}: {error}") from error


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


def _write_in_place(node: Node, name: str, names: Sequence[str], known: dict[str, Any]) -> None:
    """What a name stands for after an operator that writes into its first argument.

    Views of what was written keep the old value.
    """
    if name == _functional(name) or not names:
        return
    target = node.inputs[0].arg.get("as_tensor")
    if target is not None:
        known[target["name"]] = known[names[0]]


def _name_of(argument: dict[str, Any]) -> str:
    ((_, value),) = argument.items()
    if isinstance(value, dict):
        return str(value.get("name", value.get("as_name", "")))
    return ""


def _names_of(out: dict[str, Any]) -> list[str]:
    """Names of what an output of a node holds."""
    ((kind, value),) = out.items()
    if kind == "as_none":
        return []
    if isinstance(value, list):
        return [str(one.get("name", one.get("as_name", ""))) for one in value]
    return [_name_of(out)]


def _tensors_of(out: dict[str, Any]) -> list[str]:
    return _names_of(out) if "as_tensor" in out or "as_tensors" in out else []


def _listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, list | tuple) else [results]


def _tried(rule: Rule, call: Call) -> Any:
    try:
        return rule(call)
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        _refuse(error, call.where)


def _refuse(error: Exception, where: str) -> Any:
    first = (str(error).strip().splitlines() or [""])[0]
    raise FileFormatError(f"{where}: arguments that do not fit it ({first})") from error
