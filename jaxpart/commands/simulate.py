"""`jaxpart simulate`: run a partition as a pipeline."""

from __future__ import annotations

import argparse

from jaxpart.arguments import Parser, add_result_arguments, count, file_name, lists
from jaxpart.commands.inputs import evaluation_of_result
from jaxpart.commands.output import show
from jaxpart.files import check_writable
from jaxpart.text import one_line

DESCRIPTION = "Run a partition as a pipeline: throughput, latency and busy time of inferences."

_EXAMPLES = """\
examples:
  %(prog)s bert-large bert-large-mcm36.result.json
  %(prog)s bert-large bert-large-mcm36.result.json --count 100000 --buffers 3 --plot busy.png
"""
_EXIT_CODES = """\
exit codes:
  0 simulated   2 bad input, or a partition that is not valid
"""


def add_arguments(parser: Parser) -> None:
    """`simulate GRAPH RESULT [...]`."""
    add_result_arguments(parser)
    parser.add_argument(
        "--count",
        metavar="K",
        type=count,
        default=1000,
        help="inferences, all waiting at the entrance from the start (default: %(default)s)",
    )
    parser.add_argument(
        "--buffers",
        metavar="B",
        type=count,
        default=2,
        help="slots of a chip for what it sends, and for what it receives from each sender; the "
        "memory of the cost model has 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        type=file_name,
        help="draw who is busy when, during the first inferences; .svg and .pdf work too",
    )
    parser.lists = lambda: f"{_EXAMPLES}\n{lists(with_methods=False)}\n{_EXIT_CODES}"


def run(arguments: argparse.Namespace) -> int:
    """Shows what a pipeline of the partition does; draws it where asked."""
    from jaxpart.results.picture import kind_of

    if arguments.plot is not None:
        kind_of(arguments.plot)
        named = (arguments.mcm, arguments.seconds)
        inputs = [arguments.graph, arguments.result, *filter(None, named)]
        check_writable(arguments.plot, inputs)
    evaluation = evaluation_of_result(arguments)

    from jaxpart.cost.verdicts import require_valid
    from jaxpart.export.simulation.simulate import simulation_of

    problem, assignment, costs = evaluation.problem, evaluation.assignment, evaluation.costs
    require_valid(problem, assignment, costs, arguments.result)
    found = simulation_of(
        problem, assignment, costs, arguments.count, arguments.buffers, evaluation.notes
    )
    show(found.summary())
    if arguments.plot is not None:
        found.plot(arguments.plot)
        show(f"\n{one_line(f'written: {arguments.plot}')}")
    return 0
