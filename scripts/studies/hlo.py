"""Counts the kernels, bytes and operations of a compiled XLA program from its HLO text.

The text is that of `jax.stages.Compiled.as_text()`: after all passes, every instruction of a
computation that is no fused one is about one kernel. `module_of` reads it and `counts_of` counts.

- A fusion, a library call, a copy or a sort is one kernel, whatever is inside. Parameters,
  constants, tuples and bitcasts are none, and neither is arithmetic on one number outside a fusion:
  a TPU has a scalar unit for it, and other compilers fuse it.
- A loop counts its body once per iteration. The number of iterations is known if the compiler
  states it, or if the condition compares a counter with a constant. If the condition compares it
  with an argument of the program, the number is estimated from `sizes`. Otherwise one iteration is
  counted, and the result says that it is the least. Only where the number is not known does the
  condition run on the device and count, too.
- Of the branches of a `conditional` the one with the most kernels counts.
- The host is asked once for each `conditional`, and before each iteration of a loop whose number of
  iterations is unknown to the compiler.
- Bytes are those that a kernel reads and writes in the memory of the device. Arrays that XLA keeps
  on a TPU's core count nothing. Slices, gathers and updates in place count the rows that they
  touch, not the whole array.
- Operations are those on elements: one for each element of the result, for a reduction one for each
  element that goes in, for a product of matrices two for each multiply-add. `cost_analysis()` is
  not used: it counts the body of a loop once, and a GPU that is not there has none.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CORE = re.compile(r"S\([1-9]")  # a layout outside the memory of the device
_FLOATS = re.compile(r"\bb?f\d")  # the types of floats
_BITS = re.compile(r"(\d+)")

# Opcodes that start no kernel.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("optimization-barrier", "opt-barrier", "partition-id", "replica-id", "add-dependency"),
    }
)
# Opcodes that exchange data with other devices; each begins an instruction's opcode.
_COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-", "ragged-all-to-all"),
    *("reduce-scatter", "send", "recv"),
)
# Library calls that tell the compiler something and do nothing.
_FREE_CALLS = ("AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding", "AllocateBuffer")
# Opcodes whose result is their first operand, moved or under another type.
_SAME = frozenset(
    {"bitcast", "copy", "copy-start", "copy-done", "convert", "reshape", "optimization-barrier"}
)
_ELEMENTWISE = frozenset(
    {
        *("abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "compare", "convert", "cosine"),
        *("count-leading-zeros", "divide", "erf", "exponential", "exponential-minus-one", "floor"),
        *("gather", "is-finite", "log", "log-plus-one", "logistic", "maximum", "minimum"),
        *("multiply", "negate", "not", "or", "popcnt", "power", "remainder", "round-nearest-afz"),
        *("round-nearest-even", "rsqrt", "select", "shift-left", "shift-right-arithmetic"),
        *("shift-right-logical", "sign", "sine", "sqrt", "subtract", "tan", "tanh", "xor"),
    }
)
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "minimum": min,
    "maximum": max,
}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # text of the type of its result
    opcode: str
    operands: tuple[str, ...]
    literal: str  # what stands in the parentheses
    attributes: str  # what stands behind them

    def attribute(self, name: str) -> str | None:
        """The name of a computation that an attribute holds."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


class Computation(NamedTuple):
    """A list of instructions by name; the last one or the marked one is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str


class Place(NamedTuple):
    """An instruction and the computation that it stands in."""

    computation: str
    instruction: Instruction


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the first one.
      callers: the instruction that calls a computation, and which operand each parameter is; None:
        all parameters are the first operand.
    """

    computations: dict[str, Computation]
    entry: str
    callers: dict[str, tuple[Place, int | None]]


class Trips(NamedTuple):
    """Iterations of a loop."""

    count: float
    is_known: bool  # to the compiler
    is_least: bool = False  # nothing is known; one iteration is counted


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a program does in one call. `unknown_loops` and `known_loops` are those in its text."""

    kernels_outside: int = 0  # that stand outside all loops
    kernels_inside: int = 0
    launches: float = 0.0  # kernels, each as often as its loops run
    questions: float = 0.0  # to the host
    num_bytes: float = 0.0
    operations: float = 0.0
    collectives: int = 0  # in its text: instructions that wait for other devices
    unknown_loops: int = 0
    known_loops: int = 0
    float_scatters: int = 0  # in its text: instructions that add floats by a scatter
    is_estimated: bool = False  # iterations were estimated from sizes
    is_least: bool = False  # a loop of which nothing is known counts one iteration

    def __add__(self, other: Counts) -> Counts:
        """The counts of both, one after the other."""
        fields = (field.name for field in dataclasses.fields(Counts))
        both = {name: getattr(self, name) + getattr(other, name) for name in fields}
        flags = {name: bool(both[name]) for name in ("is_estimated", "is_least")}
        return Counts(**{**both, **flags})


def module_of(text: str) -> Module:
    """Reads the text of a compiled program.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = None
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name, root, lines = header[2], None, {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name is not None:
            computations[name] = Computation(name, lines, root or next(reversed(lines)))
            name = None
        elif name is not None and (found := _INSTRUCTION.match(line)):
            lines[found[2]] = _instruction(found[2], line[found.end() :])
            root = found[2] if found[1] else root
    if entry is None:
        raise ValueError("no ENTRY computation in the text of the program")
    callers: dict[str, tuple[Place, int | None]] = {}
    for computation in computations.values():
        for instruction in computation.instructions.values():
            place = Place(computation.name, instruction)
            for called, first in _called(instruction):
                callers.setdefault(called, (place, first))
    return Module(computations, entry, callers)


def _instruction(name: str, text: str) -> Instruction:
    """Splits `TYPE opcode(operands), attributes`; a type may be a tuple with parentheses."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    found = _OPCODE.match(text, end)
    if found is None:
        raise ValueError(f"no opcode in the instruction {name}: {text[:80]}")
    stop = _closing(text, found.end() - 1)
    literal = text[found.end() : stop - 1]
    return Instruction(
        name, text[:end], found[1], tuple(_NAME.findall(literal)), literal, text[stop:]
    )


def _closing(text: str, start: int) -> int:
    """The position behind the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at + 1
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def _called(instruction: Instruction) -> Iterator[tuple[str, int | None]]:
    """Computations that an instruction runs, and the operand that is their first parameter."""
    if instruction.opcode == "while":
        for name in ("body", "condition"):
            if called := instruction.attribute(name):
                yield called, None
    elif instruction.opcode == "conditional":
        for number, called in enumerate(_branches(instruction)):
            yield called, number + 1
    elif instruction.opcode in ("fusion", "call", "async-start"):
        called = instruction.attribute("calls") or instruction.attribute("to_apply")
        if called:
            yield called, 0


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return _NAME.findall(listed[1])
    names = (instruction.attribute(f"{way}_computation") for way in ("true", "false"))
    return [name for name in names if name]


def counts_of(module: Module, sizes: Mapping[str, float] | None = None) -> Counts:
    """Counts a program.

    Args:
      module: the program.
      sizes: what is known of its arguments, by their names in the text: a number, or for a table of
        offsets the mean length of a segment.
    """
    known = sizes or {}
    counts = _counts(module, module.entry, known, inside=False)
    places = [
        Place(computation.name, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
    ]
    loops = [
        trips_of(module, place, known).is_known
        for place in places
        if place.instruction.opcode == "while"
    ]
    exchanged = [
        place
        for place in places
        if place.instruction.opcode.startswith(_COLLECTIVES)
        and not place.instruction.opcode.endswith("-done")
    ]
    return dataclasses.replace(
        counts,
        unknown_loops=len(loops) - sum(loops),
        known_loops=sum(loops),
        collectives=len(exchanged),
        float_scatters=sum(_adds_floats_by_scatter(module, place) for place in places),
    )


def _adds_floats_by_scatter(module: Module, place: Place) -> bool:
    """Whether an instruction scatters floats, alone or in a fusion, and combines them."""
    instruction = place.instruction
    if instruction.opcode != "scatter" or not _FLOATS.search(instruction.shape):
        return False
    combined = instruction.attribute("to_apply")
    # What only overwrites hands on the new value.
    return combined is None or _root(module, combined).opcode != "parameter"


def _counts(module: Module, name: str, sizes: Mapping[str, float], *, inside: bool) -> Counts:
    total = Counts()
    for instruction in module.computations[name].instructions.values():
        total += _counts_of_one(module, Place(name, instruction), sizes, inside=inside)
    return total


def _counts_of_one(
    module: Module, place: Place, sizes: Mapping[str, float], *, inside: bool
) -> Counts:
    instruction = place.instruction
    opcode = instruction.opcode
    if opcode == "while":
        trips = trips_of(module, place, sizes)
        once = Counts()
        for name in ("body",) if trips.is_known else ("body", "condition"):
            if called := instruction.attribute(name):
                once += _counts(module, called, sizes, inside=True)
        return dataclasses.replace(
            once,
            launches=once.launches * trips.count,
            questions=once.questions * trips.count + (0 if trips.is_known else trips.count),
            num_bytes=once.num_bytes * trips.count,
            operations=once.operations * trips.count,
            is_estimated=once.is_estimated or not (trips.is_known or trips.is_least),
            is_least=once.is_least or trips.is_least,
        )
    if opcode == "conditional":
        branches = [_counts(module, b, sizes, inside=inside) for b in _branches(instruction)]
        most = max(branches, key=lambda counts: (counts.launches, counts.operations))
        return most + Counts(questions=1)
    if opcode in ("call", "async-start") and (called := next(_called(instruction), None)):
        return _counts(module, called[0], sizes, inside=inside)
    is_scalar = opcode in _ELEMENTWISE and "[]" in instruction.shape
    if is_scalar or opcode in _FREE or opcode.endswith(("-done", "-update")):
        return Counts()
    if _is_free_call(instruction):
        return Counts()
    # On a TPU a copy engine moves data beside the core, so that this is no kernel.
    is_kernel = not (opcode.endswith("-start") and ":S(" in instruction.shape)
    return Counts(
        kernels_outside=int(is_kernel and not inside),
        kernels_inside=int(is_kernel and inside),
        launches=float(is_kernel),
        num_bytes=_bytes(module, place),
        operations=_operations(module, place),
    )


def _is_free_call(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and any(
        f'custom_call_target="{name}"' in instruction.attributes for name in _FREE_CALLS
    )


def trips_of(module: Module, loop: Place, sizes: Mapping[str, float]) -> Trips:
    """The number of iterations of a loop.

    Args:
      module: the program.
      loop: its `while`.
      sizes: as in `counts_of`.
    """
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.instruction.attributes)
    if stated:
        return Trips(float(stated[1]), is_known=True)
    unknown = Trips(1.0, is_known=False, is_least=True)
    condition, body = (loop.instruction.attribute(name) for name in ("condition", "body"))
    if condition is None or body is None:
        return unknown
    compared = _followed(module, Place(condition, _root(module, condition)))
    if compared.instruction.opcode != "compare":
        return unknown
    sides = [_operand(module, compared, k) for k in (0, 1)]
    if "direction=GT" in compared.instruction.attributes:
        sides.reverse()
    elif "direction=LT" not in compared.instruction.attributes:
        return unknown
    counter = _carried(module, condition, sides[0])
    if counter is None or _step(module, body, counter) != 1:
        return unknown
    limit = _value(module, sides[1], sizes)
    start = _value(module, sides[0], sizes)
    if limit is None:
        return unknown
    if limit.is_constant and start is not None and start.is_constant:
        return Trips(max(limit.number - start.number, 0.0), is_known=True)
    # Both ends of a segment have its mean length as value; it starts at the first one.
    first = start.number if start is not None and start.is_constant else 0.0
    return Trips(max(limit.number - first, 0.0), is_known=False)


class _Value(NamedTuple):
    number: float
    is_constant: bool  # stands in the program


def _value(module: Module, place: Place, sizes: Mapping[str, float]) -> _Value | None:
    """The number that an instruction gives, if it is a constant, or an argument with a size."""
    found = _followed(module, place)
    if combine := _ARITHMETIC.get(found.instruction.opcode):
        sides = [_value(module, _operand(module, found, k), sizes) for k in (0, 1)]
        if sides[0] is None or sides[1] is None:
            return None
        number = combine(sides[0].number, sides[1].number)
        return _Value(number, sides[0].is_constant and sides[1].is_constant)
    if found.instruction.opcode in ("dynamic-slice", "slice", "gather"):  # of a table of offsets
        found = _followed(module, _operand(module, found, 0))
    if found.instruction.opcode == "constant":
        try:
            return _Value(float(found.instruction.literal), is_constant=True)
        except ValueError:
            return None
    if found.instruction.opcode == "parameter" and found.computation == module.entry:
        name = re.search(r'op_name="([^"]*)"', found.instruction.attributes)
        if name and name[1] in sizes:
            return _Value(float(sizes[name[1]]), is_constant=False)
    return None


def _root(module: Module, computation: str) -> Instruction:
    found = module.computations[computation]
    return found.instructions[found.root]


def _operand(module: Module, place: Place, number: int) -> Place:
    name = place.instruction.operands[number]
    return Place(place.computation, module.computations[place.computation].instructions[name])


def _followed(module: Module, place: Place, *, within: str | None = None) -> Place:
    """The instruction that makes a value, back through copies, tuples and calls.

    A value that a loop carries is taken to be the one that it starts with.

    Args:
      module: the program.
      place: where the value is read.
      within: a computation whose parameters are not followed to its caller.
    """
    wanted: list[int] = []  # elements of tuples that are open, the innermost last
    for _ in range(10_000):  # calls cannot recurse, so this ends long before
        computation, instruction = place
        opcode = instruction.opcode
        if opcode in _SAME or (opcode == "while" and wanted):
            place = _operand(module, place, 0)
        elif opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.attributes)
            source = _operand(module, place, 0)
            if within == computation and source.instruction.opcode == "parameter":
                return place
            wanted.append(int(index[1]) if index else 0)
            place = source
        elif opcode == "tuple" and wanted:
            place = _operand(module, place, wanted.pop())
        elif opcode in ("fusion", "call") and (called := next(_called(instruction), None)):
            place = Place(called[0], _root(module, called[0]))
        elif opcode == "parameter" and computation in module.callers and computation != within:
            caller, first = module.callers[computation]
            number = 0 if first is None else first + int(instruction.literal)
            place = _operand(module, caller, number)
        else:
            return place
    return place


def _carried(module: Module, condition: str, side: Place) -> int | None:
    """Which element of the carried tuple one side of a loop's condition is; None if it is none."""
    found = _followed(module, side, within=condition)
    if found.computation == condition and found.instruction.opcode == "get-tuple-element":
        index = re.search(r"index=(\d+)", found.instruction.attributes)
        return int(index[1]) if index else None
    return None


def _step(module: Module, body: str, element: int) -> float | None:
    """By how much a loop's body increases an element of what it carries; None if not by a constant.

    A body that calls another computation for its result is not looked into.
    """
    root = _root(module, body)
    if root.opcode != "tuple":
        return None
    place = _operand(module, Place(body, root), element)
    found = _followed(module, place, within=body)
    if found.instruction.opcode != "add":
        return None
    sides = [_operand(module, found, k) for k in (0, 1)]
    carried = [_carried(module, body, side) == element for side in sides]
    constants = [_value(module, side, {}) for side in sides]
    for is_carried, other in zip(carried, reversed(constants), strict=True):
        if is_carried and other is not None:
            return other.number
    return None


def _elements(shape: str) -> Iterator[tuple[int, float, bool]]:
    """(elements, bytes of one, whether it lies in the memory of the device) of each array."""
    for kind, extents, layout in _ARRAY.findall(shape):
        bits = _BITS.search(kind)
        size = 1.0 if bits is None else int(bits[1]) / 8  # pred has no number
        count = math.prod(int(extent) for extent in extents.split(",") if extent)
        yield count, size, not _ON_CORE.search(layout)


def _count(shape: str) -> int:
    return sum(count for count, _, _ in _elements(shape))


def _shape_bytes(shape: str) -> float:
    return sum(count * size for count, size, is_far in _elements(shape) if is_far)


def _bytes(module: Module, place: Place) -> float:
    """Bytes that a kernel reads and writes in the memory of the device."""
    computation, instruction = place
    shapes = {
        name: found.shape for name, found in module.computations[computation].instructions.items()
    }
    operands = [shapes.get(name, "") for name in instruction.operands]
    opcode, result = instruction.opcode, _shape_bytes(instruction.shape)
    if opcode == "fusion":
        return _fusion_bytes(module, place, operands)
    if opcode.endswith("-start"):  # the type holds source and result; only the result is moved
        arrays = sorted(_elements(instruction.shape), reverse=True)
        return arrays[1][0] * arrays[1][1] if len(arrays) > 1 else 0.0
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result + sum(map(_shape_bytes, operands[1:]))
    if opcode == "dynamic-update-slice":
        return 2 * _shape_bytes(operands[1])
    if opcode == "scatter":
        return 2 * sum(map(_shape_bytes, operands[len(operands) // 2 :]))
    return result + sum(map(_shape_bytes, operands))


def _fusion_bytes(module: Module, place: Place, operands: list[str]) -> float:
    """Bytes of a fusion; of what is sliced or updated in it, only the rows that it touches."""
    called = place.instruction.attribute("calls")
    if called is None or called not in module.computations:
        return _shape_bytes(place.instruction.shape) + sum(map(_shape_bytes, operands))
    inside = module.computations[called].instructions
    readers: dict[str, list[Instruction]] = {}
    for instruction in inside.values():
        for name in instruction.operands:
            readers.setdefault(name, []).append(instruction)

    def read(name: str, outer: str) -> float:
        touched = 0.0
        for reader in readers.get(name, []):
            first = reader.operands[0] == name
            if reader.opcode in ("bitcast", "reshape"):
                touched += read(reader.name, outer)
            elif reader.opcode in ("dynamic-slice", "slice", "gather") and first:
                touched += _count(reader.shape) * _size_of(outer)
            elif reader.opcode == "dynamic-update-slice" and first:
                touched += 0.0  # updated in place
            else:
                return _shape_bytes(outer)
        return min(touched, _shape_bytes(outer))

    total = 0.0
    parameters = [found for found in inside.values() if found.opcode == "parameter"]
    for parameter in parameters:
        number = int(parameter.literal)
        if number < len(operands):
            total += read(parameter.name, operands[number])
    root = _root(module, called)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    shapes = [
        f"{kind}[{extents}]{layout}"
        for kind, extents, layout in _ARRAY.findall(place.instruction.shape)
    ]
    for result, shape in zip(results, shapes, strict=False):
        while result.opcode in ("bitcast", "copy") and result.operands:
            result = inside[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            total += _count(inside[result.operands[1]].shape) * _size_of(shape)
        else:
            total += _shape_bytes(shape)
    return total


def _size_of(shape: str) -> float:
    """Bytes of an element in the memory of the device; 0 on a TPU's core."""
    return next((size if is_far else 0.0 for _, size, is_far in _elements(shape)), 0.0)


def _operations(module: Module, place: Place) -> float:
    """Operations on elements, those of a fused computation included."""
    computation, instruction = place
    opcode = instruction.opcode
    if opcode == "fusion":
        called = instruction.attribute("calls")
        if called is None or called not in module.computations:
            return 0.0
        fused = module.computations[called].instructions.values()
        return sum(_operations(module, Place(called, inner)) for inner in fused)
    instructions = module.computations[computation].instructions
    operands = [instructions[n].shape for n in instruction.operands if n in instructions]
    result = _count(instruction.shape)
    if opcode in _ELEMENTWISE:
        return result
    if opcode == "reduce":
        return sum(map(_count, operands[: len(operands) // 2]))
    if opcode == "reduce-window":
        window = re.search(r"size=([\dx]+)", instruction.attributes)
        extents = window[1].split("x") if window else []
        return result * math.prod(map(int, extents))
    if opcode == "scatter":
        return _count(operands[-1]) if operands else 0.0
    if opcode == "sort":
        extents = _ARRAY.findall(operands[0])[0][1].split(",")
        longest = max((int(extent) for extent in extents if extent), default=1)
        return _count(operands[0]) * math.log2(max(longest, 2))
    is_product = opcode in ("dot", "convolution") or "gemm" in instruction.attributes
    if is_product and len(operands) >= 2:
        # [M, K] by [K, N] has M * K * N multiply-adds, the root of the three sizes' product.
        first = next(_elements(instruction.shape))[0]
        return 2 * math.sqrt(_count(operands[0]) * _count(operands[1]) * first)
    return 0.0
