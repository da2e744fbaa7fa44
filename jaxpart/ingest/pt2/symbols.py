"""Sizes of a program for dynamic shapes: expressions of symbols, as SymPy writes them."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxpart.errors import FileFormatError, InputError

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda *terms: sum(terms),
    "CleanDiv": lambda a, b: a // b,
    "FloorDiv": lambda a, b: a // b,
    "Integer": lambda n: n,
    "Max": max,
    "Min": min,
    "Mod": lambda a, b: a % b,
    "Mul": lambda *factors: math.prod(factors),
    "Pow": lambda a, b: a**b,
    "PythonMod": lambda a, b: a % b,
}


def extent(size: Mapping[str, Any], sizes: Mapping[str, int], where: str) -> int:
    """The extent of an axis.

    Args:
      size: `{"as_int": 8}`, or `{"as_expr": {"expr_str": ..., "hint": ...}}`.
      sizes: of the symbols in expressions.
      where: for messages.

    Raises:
      InputError: a symbol has no size.
      FileFormatError: the expression is none that is known here.
    """
    if isinstance(size.get("as_int"), int):
        return size["as_int"]
    about = size.get("as_expr") or {}
    text = str(about.get("expr_str"))
    try:
        value = _value(ast.parse(text, mode="eval").body, sizes)
    except _FreeError as error:
        hint = (about.get("hint") or {}).get("as_int")
        traced = "" if hint is None else f" (exported with {hint})"
        raise InputError(
            f"{where}: its size hangs on {error}, which is free{traced}; expected a size for it, "
            f"such as {error}=1"
        ) from error
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise FileFormatError(
            f"{where}: a size {text!r}, expected an expression of sizes"
        ) from error
    if not isinstance(value, int) or value < 0:
        raise InputError(f"{where}: a size {text!r} becomes {value}, expected a whole number")
    return value


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
