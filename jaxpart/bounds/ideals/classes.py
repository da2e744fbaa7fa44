"""How wide a graph is, by its number of ideals: chain, narrow or wide."""

from __future__ import annotations

from typing import Literal

from jaxpart.bounds.ideals.pairs import count_ideals
from jaxpart.problem.problem import Problem

GraphClass = Literal["chain", "narrow", "wide"]
CLASSES: tuple[GraphClass, ...] = ("chain", "narrow", "wide")
# Ideals per contracted node up to which a graph is a chain, and narrow.
_CHAIN, _NARROW = 1.5, 10.0
_IDEALS_LIMIT = 20_000  # beyond so many a graph is wide, whatever its size


def class_of(problem: Problem) -> GraphClass:
    """The class of a graph: chain, narrow or wide."""
    nodes = problem.num_contracted
    ideals = count_ideals(problem, min(_IDEALS_LIMIT, int(_NARROW * nodes) + 1))
    if ideals is None or ideals > _NARROW * nodes:
        return "wide"
    return "chain" if ideals <= _CHAIN * nodes else "narrow"
