"""What several commands read: the graph, the module, and the problem of both."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxpart.arguments import DEFAULT_MCM
from jaxpart.commands.output import say
from jaxpart.errors import InputError

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph
    from jaxpart.problem.mcm import MCM
    from jaxpart.problem.problem import Problem
    from jaxpart.results.evaluation import Evaluation


def graph_and_mcm(arguments: argparse.Namespace, default: MCM | None = None) -> tuple[Graph, MCM]:
    """The graph, and the module: the graph file's own, else --mcm, else the default.

    The graph has the measured seconds of --seconds. Warnings of the importers become one line each.
    """
    from jaxpart import datasets
    from jaxpart.ingest.seconds import with_seconds
    from jaxpart.problem.mcm import load_mcm

    named = None if arguments.mcm is None else load_mcm(arguments.mcm)
    with warnings_told():
        graph, brought = datasets.resolve(
            arguments.graph, dims=sizes(arguments.dim), param_argnums=arguments.param_argnums
        )
        if brought is not None and named is not None:
            raise InputError(
                f"{arguments.graph}: this format brings its own module, expected no --mcm"
            )
        if arguments.seconds is not None:
            graph = with_seconds(graph, arguments.seconds)
    mcm = brought or named or default or load_mcm(DEFAULT_MCM)
    if arguments.element_bytes is not None:
        mcm = dataclasses.replace(mcm, element_bytes=arguments.element_bytes)
    return graph, mcm


@contextlib.contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings of the importers become one line each, unless an error ends the context."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for message in dict.fromkeys(told):
        say(f"warning: {message}")


def sizes(dims: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The sizes given by --dim, each once."""
    given: dict[str, int] = {}
    for name, size in dims:
        if given.setdefault(name, size) != size:
            raise InputError(f"--dim: {name} is {given[name]} and {size}, expected one size")
    return given


def problem_of(graph: Graph, mcm: MCM, where: str) -> Problem:
    """The problem; what is wrong with it is told with the file's name."""
    from jaxpart.problem.problem import Problem

    try:
        return Problem.build(graph, mcm)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def evaluation_of_result(arguments: argparse.Namespace) -> Evaluation:
    """The partition in the file RESULT, scored; what contradicts the file is among its notes."""
    from jaxpart.results.file import StoredResult, read_partition

    stored = read_partition(arguments.result)
    default = stored.mcm if isinstance(stored, StoredResult) else None
    graph, mcm = graph_and_mcm(arguments, default)
    problem = problem_of(graph, mcm, arguments.graph)
    assignment = stored.on(graph, mcm)

    start_jax()
    from jaxpart.results.evaluation import evaluation_of, rescaling_notes

    evaluation = evaluation_of(problem, assignment, rescaling_notes(graph, problem))
    if isinstance(stored, StoredResult):
        notes = (*evaluation.notes, *stored.notes(evaluation))
        evaluation = dataclasses.replace(evaluation, notes=notes)
    return evaluation


def start_jax() -> None:
    """Compiled programs are kept between runs; warns of a slow GPU release."""
    from jaxpart.environment import keep_compiled, warn_of_slow_release

    keep_compiled()
    warn_of_slow_release(lambda message: say(f"warning: {message}"))
