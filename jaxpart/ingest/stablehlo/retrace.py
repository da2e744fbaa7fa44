"""Turns a module of StableHLO into a function that JAX can trace.

StableHLO is what JAX lowers its own primitives to, so nearly every operation goes back to the
primitive that it came from. The importer for JAX then does the rest: it opens calls, unrolls loops,
folds what depends on parameters alone, and counts. No cost rule is stated twice.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.stablehlo.constants import all_elements, attribute_of, elements_that_matter
from jaxpart.ingest.stablehlo.splits import splits
from jaxpart.ingest.stablehlo.types import aval_of

Array = Any  # a value of the trace, or a constant

_COMMUTE = ("add", "and", "maximum", "minimum", "multiply", "or", "xor")
_RETURNS = ("func.return", "stablehlo.return", "mhlo.return", "sdy.return")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a module, as rules see it.

    Attributes:
      name: without the dialect: `dot_general`.
      attributes: name -> attribute of MLIR.
      results: shape and type of each result.
      regions: its bodies; each takes arrays and gives those that it returns.
      where: the place in the file, for messages.
    """

    name: str
    attributes: Any
    results: tuple[jax.ShapeDtypeStruct, ...]
    regions: tuple[Region, ...]
    where: str

    @property
    def result(self) -> jax.ShapeDtypeStruct:
        """Shape and type of the only result."""
        return self.results[0]

    def numbers(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        """Whole numbers of an attribute; the default where it is left out."""
        if name not in self.attributes:
            return tuple(default)
        return tuple(int(n) for n in np.array(list(self.attributes[name])).reshape(-1))

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        if default is not None and name not in self.attributes:
            return default
        return int(self.attributes[name].value)

    def precision(self) -> Any:
        """How exactly each of two operands is multiplied, as functions of `jax.lax` take it."""
        if "precision_config" not in self.attributes:
            return None
        given = str(self.attributes["precision_config"])
        found = re.findall(r"precision (DEFAULT|HIGHEST|HIGH)\b", given)
        return tuple(jax.lax.Precision[name] for name in found) if len(found) == 2 else None


@dataclasses.dataclass(frozen=True)
class Region:
    """A body of an operation: called, it adds its operations.

    Attributes:
      block: the block of MLIR.
      run: takes values for the arguments of the block, and gives what it returns.
    """

    block: Any
    run: Callable[[Sequence[Array]], list[Array]]

    def only_operation(self) -> str | None:
        """Name of the operation that the body applies to its two arguments; None if it does more.

        Without the dialect. A body that returns its second argument is "second".
        The operation takes them in their order, unless the order does not matter.
        """
        *before, last = list(self.block.operations)
        returned, arguments = list(last.operation.operands), list(self.block.arguments)
        if len(returned) != 1 or len(arguments) != 2:
            return None
        if not before:
            return "second" if returned[0] == arguments[1] else None
        if len(before) != 1 or before[0].operation.results[0] != returned[0]:
            return None
        operands = list(before[0].operation.operands)
        name = before[0].operation.name.partition(".")[2]
        if operands == arguments or (operands == arguments[::-1] and name in _COMMUTE):
            return name
        return None


Rule = Callable[[Operation, list[Array]], Any]


class Module:
    """A module of StableHLO as a function of its arguments and its large constants.

    Attributes:
      arguments: shape and type of each argument of `main`.
      constants: likewise, of each constant whose elements are not at hand.
    """

    def __init__(self, module: Any, rules: dict[str, Rule], where: str) -> None:
        """Looks at the functions and constants of a module.

        Args:
          module: an `ir.Module`.
          rules: name of an operation, without the dialect -> what adds it to a trace.
          where: name of the file, for messages.

        Raises:
          FileFormatError: there is no function `main`, or values are no arrays of known shape.
        """
        self._module, self._rules, self._where = module, rules, where
        self._functions: dict[str, Any] = {}
        for view in module.body.operations:
            if view.operation.name == "func.func":
                self._functions[_text(view.operation.attributes["sym_name"])] = view.operation
        self._main = self._entry()
        block = self._main.regions[0].blocks[0]
        self.arguments = [aval_of(a.type, f"{where}: @main") for a in block.arguments]
        self.constants: list[jax.ShapeDtypeStruct] = []
        self._values: dict[Any, np.ndarray | int] = {}  # constants by attribute, or a position
        self._large: list[Any] = []  # the operations of `constants`
        self._given: list[Array] = []  # values for `constants`
        self._calling: list[str] = []  # the functions that are being opened
        for operation in _constants(module.operation):
            self._note_constant(operation)

    def _entry(self) -> Any:
        public = [
            name
            for name, function in self._functions.items()
            if "sym_visibility" not in function.attributes
            or _text(function.attributes["sym_visibility"]) == "public"
        ]
        name = "main" if "main" in self._functions else public[0] if len(public) == 1 else None
        if name is None:
            raise FileFormatError(
                f"{self._where}: {len(public)} public functions and none is @main, expected the "
                "function to partition as @main"
            )
        if not self._functions[name].regions[0].blocks:
            raise FileFormatError(f"{self._where}: @{name} has no body, expected one")
        return self._functions[name]

    def _note_constant(self, operation: Any) -> None:
        key = _constant_key(operation)
        if key in self._values:
            return
        aval = aval_of(operation.results[0].type, f"{self._where}: {operation.name}")
        elements = elements_that_matter(operation, aval)
        if elements is None:
            self._values[key] = len(self.constants)
            self.constants.append(aval)
            self._large.append(operation)
        else:
            self._values[key] = elements

    def constant_values(self) -> list[np.ndarray]:
        """The elements of each of `constants`.

        Raises:
          FileFormatError: the file leaves some out.
        """
        values = []
        for operation, aval in zip(self._large, self.constants, strict=True):
            elements = all_elements(operation, aval)
            if elements is None:
                raise FileFormatError(
                    f"{self._where}: a constant of {aval.dtype}{list(aval.shape)} has no elements "
                    f"in the file{_line(operation)}, expected them: stages hold their weights"
                )
            values.append(elements)
        return values

    def global_constants(self) -> dict[int, str]:
        """Positions of the arguments of `main` that JAX feeds itself, and what they are."""
        if "arg_attrs" not in self._main.attributes:
            return {}
        return {
            i: _text(given["jax.global_constant"])
            for i, given in enumerate(self._main.attributes["arg_attrs"])
            if "jax.global_constant" in given
        }

    def __call__(self, arguments: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
        """Adds the operations of `main` to the trace that is running.

        Args:
          arguments: a value for each of `arguments`.
          constants: a value for each of `constants`.

        Returns:
          What `main` returns.
        """
        name = _text(self._main.attributes["sym_name"])
        self._given, self._calling = list(constants), [name]
        return self._run(self._main.regions[0].blocks[0], arguments, {}, f"@{name}")

    def call(self, symbol: Any, arguments: Sequence[Array], where: str) -> list[Array]:
        """Adds the operations of another function.

        Raises:
          FileFormatError: there is no such function with a body.
        """
        name = str(symbol.value).removeprefix("@")
        function = self._functions.get(name)
        if function is None or not function.regions[0].blocks:
            raise FileFormatError(f"{where}: calls @{name}, expected a function of the module")
        if name in self._calling:
            raise FileFormatError(f"{where}: calls @{name}, which calls itself, expected no circle")
        self._calling.append(name)
        try:
            return self._run(function.regions[0].blocks[0], arguments, {}, f"@{name}")
        finally:
            self._calling.pop()

    def _run(
        self, block: Any, arguments: Sequence[Array], outer: dict[Any, Array], inside: str
    ) -> list[Array]:
        values = {**outer, **dict(zip(block.arguments, arguments, strict=True))}
        split_at = {split.results[0]: split for split in splits(block)}
        for view in block.operations:
            operation = view.operation
            if (results := list(operation.results)) and results[0] in split_at:
                split = split_at[results[0]]
                parts = jax.lax.split(values[split.array], split.sizes, split.axis)
                values.update(zip(split.results, parts, strict=True))
            if results and results[0] in values:  # a part of a split
                continue
            operands = [values[v] for v in operation.operands]
            if operation.name in _RETURNS:
                return operands
            where = f"{self._where}: {inside}: {operation.name}{_line(operation)}"
            values.update(
                zip(
                    operation.results,
                    self._results(operation, operands, values, inside, where),
                    strict=True,
                )
            )
        raise FileFormatError(f"{self._where}: {inside} ends without a return, expected one")

    def _results(
        self,
        operation: Any,
        operands: list[Array],
        values: dict[Any, Array],
        inside: str,
        where: str,
    ) -> list[Array]:
        name = operation.name.partition(".")[2]
        if name == "constant":
            return [self._constant(operation)]
        expected = tuple(aval_of(result.type, where) for result in operation.results)
        regions = tuple(
            Region(block, lambda given, block=block: self._run(block, given, values, inside))
            for region in operation.regions
            for block in region.blocks
        )
        rule = self._rules.get(name)
        seen = Operation(name, operation.attributes, expected, regions, where)
        if rule is None:
            return by_shape(operation.name, operands, expected)
        try:
            results = rule(seen, operands)
        except InputError:
            raise
        except (TypeError, ValueError, KeyError, IndexError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise FileFormatError(f"{where}: JAX refuses it ({first})") from error
        results = list(results) if isinstance(results, list | tuple) else [results]
        for result, aval in zip(results, expected, strict=True):
            if tuple(np.shape(result)) != aval.shape or result.dtype != aval.dtype:
                raise FileFormatError(
                    f"{where}: computes {result.dtype}{list(np.shape(result))}, but the file "
                    f"says {aval.dtype}{list(aval.shape)}"
                )
        return results

    def _constant(self, operation: Any) -> Array:
        value = self._values[_constant_key(operation)]
        if isinstance(value, int):
            return self._given[value]
        aval = aval_of(operation.results[0].type, self._where)
        if value.shape == aval.shape:
            return value
        return jax.lax.broadcast_in_dim(value, aval.shape, ())


def _constant_key(operation: Any) -> Any:
    """The same for constants that are equal: MLIR keeps an attribute once."""
    value = attribute_of(operation, "value")
    return operation.results[0] if value is None else value


def _constants(operation: Any) -> Iterator[Any]:
    """All constants in an operation, in its functions and bodies too."""
    for region in operation.regions:
        for block in region.blocks:
            for view in block.operations:
                inner = view.operation
                if inner.name in ("stablehlo.constant", "mhlo.constant"):
                    yield inner
                yield from _constants(inner)


def _text(attribute: Any) -> str:
    return str(attribute.value)


def _line(operation: Any) -> str:
    """Where an operation stands in a text, as MLIR tells it; empty for bytecode."""
    place = operation.location
    line = getattr(place, "start_line", None)
    return f" (line {line})" if isinstance(line, int) and line > 0 else ""
