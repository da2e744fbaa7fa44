"""How a sort of StableHLO goes back to JAX: by what its comparator says."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax

from jaxpart.ingest.jaxpr.by_shape import by_shape
from jaxpart.ingest.stablehlo.constants import attribute_of
from jaxpart.ingest.stablehlo.retrace import Array, Operation

_CONSTANTS = ("stablehlo.constant", "mhlo.constant")

# What a body computes: its operations in order, each with the places that its operands come from.
Signature = tuple[tuple[Any, ...], ...]


def sort(op: Operation, operands: list[Array]) -> Any:
    """A sort in ascending order by the first operands is JAX's own.

    Any other has the same costs, and cannot be run.
    """
    dimension = op.number("dimension", -1)
    found = signature(op.regions[0].block)
    dtypes = tuple(str(x.dtype) for x in operands)
    for num_keys in range(1, len(operands) + 1):
        if found in _ascending(dtypes, num_keys):
            return lax.sort(operands, dimension=dimension, num_keys=num_keys)
    return by_shape("sort", operands, op.results, dimension=dimension, num_keys=1)


def signature(block: Any) -> Signature:
    """The same for two bodies that compute the same in the same way, in whatever context.

    Constants are told by their elements, wherever they stand.
    """
    places: dict[Any, Any] = {argument: i for i, argument in enumerate(block.arguments)}
    found = []
    for view in block.operations:
        operation = view.operation
        if operation.name in _CONSTANTS:
            continue
        operands = tuple(_place(value, places) for value in operation.operands)
        attributes = tuple(
            (name, _plain(str(attribute_of(operation, name))))
            for name in sorted(operation.attributes.keys())
        )
        found.append((operation.name.partition(".")[2], attributes, operands))
        places.update({result: (len(found), i) for i, result in enumerate(operation.results)})
    return tuple(found)


def _place(value: Any, places: dict[Any, Any]) -> Any:
    if value in places:
        return places[value]
    owner = getattr(value.owner, "operation", value.owner)
    if getattr(owner, "name", "") in _CONSTANTS:
        return str(attribute_of(owner, "value"))
    return "outside"


def _plain(attribute: str) -> str:
    return attribute.replace("#mhlo", "#stablehlo")


@functools.cache
def _ascending(dtypes: tuple[str, ...], num_keys: int) -> tuple[Signature, ...]:
    """Signatures of comparators of an ascending sort: JAX's own, and the plain one of one key."""
    shapes = [jax.ShapeDtypeStruct((2,), dtype) for dtype in dtypes]
    lowered = jax.jit(lambda *x: lax.sort(x, dimension=0, num_keys=num_keys)).lower(*shapes)
    module: Any = lowered.compiler_ir("stablehlo")
    main = next(
        f for f in module.body.operations if f.operation.attributes["sym_name"].value == "main"
    )
    (own,) = (
        view.operation
        for view in main.operation.regions[0].blocks[0].operations
        if view.operation.name == "stablehlo.sort"
    )
    jaxs = signature(own.regions[0].blocks[0])
    return (jaxs, *_PLAIN) if num_keys == 1 else (jaxs,)


def _compared(kind: str) -> Signature:
    direction = ("comparison_direction", "#stablehlo<comparison_direction LT>")
    attributes = (
        *([("compare_type", f"#stablehlo<comparison_type {kind}>")] if kind else []),
        direction,
    )
    return (("compare", attributes, (0, 1)), ("return", (), ((1, 0),)))


_PLAIN = tuple(map(_compared, ("", "FLOAT", "SIGNED", "UNSIGNED")))
