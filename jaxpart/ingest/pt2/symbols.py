"""Sizes of a program for dynamic shapes: expressions of symbols, as SymPy writes them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UnsetType

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.pt2.schema import Size

_SYMBOL = re.compile(r"Symbol\('(\w+)'")
_MAX_POWER = 32
_MAX_EXTENT = 2**31 - 1  # of an axis
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda *terms: sum(terms),
    "CleanDiv": lambda a, b: a // b,
    "FloorDiv": lambda a, b: a // b,
    "Integer": lambda n: n,
    "Max": max,
    "Min": min,
    "Mod": lambda a, b: a % b,
    "Mul": lambda *factors: math.prod(factors),
    "Pow": lambda a, b: a ** min(max(b, 0), _MAX_POWER),
    "PythonMod": lambda a, b: a % b,
}


def extent(size: Size, sizes: Mapping[str, int], where: str) -> int:
    """The extent of an axis.

    Args:
      size: a number, or an expression.
      sizes: of the symbols in expressions.
      where: for messages.

    Raises:
      InputError: a symbol has no size.
      FileFormatError: the expression is none that is known here.
    """
    kind, about = size.only(where)
    if kind == "as_int":
        return _checked(about, str(about), where)
    text = about.expr_str
    try:
        value = _value(ast.parse(text, mode="eval").body, sizes)
    except _FreeError as error:
        hint = (about.hint or {}).get("as_int")
        traced = "" if hint is None else f" (exported with {hint})"
        raise InputError(
            f"{where}: its size hangs on {error}, which is free{traced}; expected a size for it, "
            f"such as {error}=1"
        ) from error
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise FileFormatError(
            f"{where}: a size {text!r}, expected an expression of sizes"
        ) from error
    return _checked(value, text, where)


def _checked(value: Any, text: str, where: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX_EXTENT:
        raise InputError(f"{where}: a size {text} becomes {value}, expected 0 to {_MAX_EXTENT}")
    return value


def names_in(size: Size) -> set[str]:
    """Names of the symbols that a size hangs on."""
    if isinstance(size.as_expr, UnsetType):
        return set()
    return set(_SYMBOL.findall(size.as_expr.expr_str))


class _FreeError(Exception):
    """A symbol without a size."""


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    """The value of an expression of calls and whole numbers; symbols are looked up.

    Raises:
      TypeError: it holds anything else.
    """
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            if name not in sizes:
                raise _FreeError(name)
            return sizes[name]
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, sizes) for argument in arguments))
    raise TypeError(ast.dump(node))
