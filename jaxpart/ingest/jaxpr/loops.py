"""Loops of a jaxpr: their parts, their length, and what of them depends on constants alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

from jaxpart.ingest.jaxpr import costs, known
from jaxpart.ingest.jaxpr.values import Known

_MAX_TRIED = 100_000  # most equations evaluated to find the number of steps of a `while`


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop.

    Attributes:
      body: one step: constants, carry and rows in; carry and other results out.
      length: number of steps; None if it is known at run time only.
      consts: numbers of the values that all steps read.
      carry: numbers of the values that the first step starts from.
    """

    body: Any
    length: int | None
    consts: list[int]
    carry: list[int]


def no_rows(step: int) -> list[int]:
    """What a step takes of scanned arrays in a loop that has none."""
    return []


def kept_because(length: int | None) -> str:
    """Why a loop of this length is one node, and what unrolls it."""
    if length is None:
        return "its steps are known at run time only, and count as one; fixed bounds unroll it"
    return f"all its {length} steps; unroll_limit={length} unrolls it"


def count_equations(closed: Any) -> int:
    """Equations of a body, with those of wrappers; loops and branches count one."""
    total = 0
    for eqn in closed.jaxpr.eqns:
        body = costs.inlined(eqn)
        total += 1 if body is None else count_equations(body)
    return total


def folded_outputs(closed: Any, folded: Sequence[bool]) -> list[bool]:
    """Which results of a body depend on constants alone, given which operands do."""
    jaxpr = closed.jaxpr
    constant: dict[Any, bool] = dict(zip(jaxpr.invars, folded, strict=True))

    def read(atom: Any) -> bool:
        return isinstance(atom, Literal) or constant.get(atom, True)

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        body = costs.inlined(eqn)
        results = [all(inputs)] * len(eqn.outvars) if body is None else folded_outputs(body, inputs)
        constant.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def known_trips(
    params: Any, cond: Sequence[Known], body: Sequence[Known], operands: Sequence[Known]
) -> int | None:
    """Steps of a `while` whose condition depends on known integers alone; else None."""
    carry = list(operands[len(cond) + len(body) :])
    per_step = max(1, count_equations(params["cond_jaxpr"]) + count_equations(params["body_jaxpr"]))
    for trips in range(_MAX_TRIED // per_step + 1):
        (again,) = known.known_outputs(params["cond_jaxpr"], [*cond, *carry])
        if again is None:
            return None
        if not again:
            return trips
        carry = known.known_outputs(params["body_jaxpr"], [*body, *carry])
    return None


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of the operands of a `scan` are constants, and how many are its carry.

    Ranks tell them from scanned arrays, because releases of JAX name these counts differently. A
    scanned array has one axis more outside the body than inside.
    """
    body = eqn.params["jaxpr"]
    num_carry = _same_rank(body.out_avals, eqn.outvars)
    return _same_rank(body.in_avals, eqn.invars) - num_carry, num_carry


def _same_rank(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    """Number of values with the same rank inside the body of a scan as outside."""
    return sum(a.ndim == v.aval.ndim for a, v in zip(inside, outside, strict=True))
