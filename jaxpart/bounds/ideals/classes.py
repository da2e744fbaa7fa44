"""The class of a graph by its number of ideals: chain, narrow or wide."""

from __future__ import annotations

from typing import Literal

from jaxpart.bounds.ideals.pairs import count_ideals
from jaxpart.problem.problem import Problem

GraphClass = Literal["chain", "narrow", "wide"]
CLASSES: tuple[GraphClass, ...] = ("chain", "narrow", "wide")
# Largest number of ideals per contracted node of a chain, and of a narrow graph.
_CHAIN_RATIO, _NARROW_RATIO = 1.5, 10.0
_MAX_IDEALS = 20_000  # a graph with more ideals is wide, whatever its size


def class_of(problem: Problem) -> GraphClass:
    """The class of a graph, by its ideals per contracted node."""
    nodes = problem.num_contracted
    ideals = count_ideals(problem, min(_MAX_IDEALS, int(_NARROW_RATIO * nodes) + 1))
    if ideals is None or ideals > _NARROW_RATIO * nodes:
        return "wide"
    return "chain" if ideals <= _CHAIN_RATIO * nodes else "narrow"
