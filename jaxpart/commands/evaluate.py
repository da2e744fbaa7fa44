"""`jaxpart evaluate`: score and check a partition."""

from __future__ import annotations

import argparse

from jaxpart.arguments import EXIT_CODES, Parser, add_result_arguments, lists
from jaxpart.commands.inputs import evaluation_of_result
from jaxpart.commands.output import show

DESCRIPTION = "Score and check any partition against a graph and a module."

_EXAMPLES = """\
examples:
  %(prog)s bert-large bert-large-mcm36.result.json
  %(prog)s bert-large my-partition.json --mcm my-module.toml
"""


def add_arguments(parser: Parser) -> None:
    """`evaluate GRAPH RESULT [...]`."""
    add_result_arguments(parser)
    parser.lists = lambda: f"{_EXAMPLES}\n{lists(with_methods=False)}\n{EXIT_CODES}"


def run(arguments: argparse.Namespace) -> int:
    """Shows the costs of a partition, and the rules that it breaks."""
    evaluation = evaluation_of_result(arguments)
    show(evaluation.summary())
    return 0 if evaluation.valid else 1
