"""`jaxpart evaluate`: score and check a partition."""

from __future__ import annotations

import argparse
import dataclasses

from jaxpart.arguments import (
    DEFAULT_MCM,
    EXIT_CODES,
    Parser,
    add_graph_argument,
    file_name,
    lists,
    name_or_file,
)
from jaxpart.commands.inputs import graph_and_mcm, problem_of, start_jax
from jaxpart.commands.output import show

DESCRIPTION = "Score and check any partition against a graph and a module."

_EXAMPLES = """\
examples:
  %(prog)s bert-large bert-large-mcm36.result.json
  %(prog)s bert-large my-partition.json --mcm my-module.toml
"""


def add_arguments(parser: Parser) -> None:
    """`evaluate GRAPH RESULT [...]`."""
    add_graph_argument(parser)
    parser.add_argument(
        "result", metavar="RESULT", type=file_name, help="a result file, or JSON {node: chip}"
    )
    parser.add_argument(
        "--mcm",
        metavar="NAME_OR_TOML",
        type=name_or_file,
        help=f"the module (default: the result file's; {DEFAULT_MCM} for plain JSON)",
    )
    parser.lists = lambda: f"{_EXAMPLES}\n{lists(with_methods=False)}\n{EXIT_CODES}"


def run(arguments: argparse.Namespace) -> int:
    """Shows the costs of a partition, and the rules that it breaks."""
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
    show(evaluation.summary())
    return 0 if evaluation.valid else 1
