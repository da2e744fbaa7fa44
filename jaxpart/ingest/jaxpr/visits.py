"""What became of each equation while a program was expanded; recorded for stages alone."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Visit:
    """One equation, at one place of the expanded program.

    Attributes:
      eqn: the equation.
      operands: numbers of the values of its operands.
      start: number of operations before it.
      stop: number of operations after it, and after those of its bodies.
      results: numbers of the values of its results.
      bodies: what was expanded in its place: the body of a wrapper, the branch that is known, each
        step of an unrolled loop. Empty where the equation stays as it is.
      is_unrolled: whether it is an unrolled loop, of no step or more.
    """

    eqn: Any
    operands: tuple[int, ...]
    start: int
    stop: int = 0
    results: tuple[int, ...] = ()
    bodies: list[Expansion] = dataclasses.field(default_factory=list)
    is_unrolled: bool = False


@dataclasses.dataclass(frozen=True)
class Expansion:
    """A closed jaxpr that was expanded, with the numbers of the values of its arguments."""

    closed: Any
    operands: tuple[int, ...]
    visits: list[Visit]
