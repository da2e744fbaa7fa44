"""`jaxpart sweep`: throughput by number of chips, and what more of a resource would bring."""

from __future__ import annotations

import argparse
import json
import sys

from jaxpart.arguments import (
    DEFAULT_MCM,
    Parser,
    add_graph_argument,
    count,
    file_name,
    lists,
    name_or_file,
    positive,
    seed,
)
from jaxpart.commands.inputs import graph_and_mcm, problem_of, start_jax
from jaxpart.commands.output import show
from jaxpart.files import check_writable, write_whole
from jaxpart.problem.limits import MAX_CHIPS
from jaxpart.text import one_line

DESCRIPTION = "Throughput by number of chips, the fewest chips for a rate, and what binds."

_EXAMPLES = """\
examples:
  %(prog)s bert-large --mcm mcm64 --chips 8..64
  %(prog)s bert-large --chips 18,24,30,36 --rate 400 --time-limit 60 --json sweep.json
"""
_EXIT_CODES = """\
exit codes:
  0 done   1 no number of chips has a valid partition, or none reaches the rate   2 bad input
"""


def add_arguments(parser: Parser) -> None:
    """`sweep GRAPH [...]`."""
    add = parser.add_argument
    add_graph_argument(parser)
    add(
        "--mcm",
        metavar="NAME_OR_TOML",
        type=name_or_file,
        help=f"the module, a chain or host (default: {DEFAULT_MCM})",
    )
    add(
        "--chips",
        metavar="COUNTS",
        type=counts,
        help="numbers of chips, such as 1..36 or 8,16..20 (default: 1 to all)",
    )
    add("--rate", metavar="PER_SECOND", type=positive, help="says the fewest chips for this rate")
    add(
        "--time-limit",
        metavar="SECONDS",
        type=positive,
        help="of all searches together (default: 5 for each number of chips, or none where "
        "--samples is given)",
    )
    add(
        "--samples",
        metavar="N",
        type=count,
        help="of each search: same seed, same answer (default: no limit)",
    )
    add("--seed", metavar="N", type=seed, default=0, help="of the searches (default: 0)")
    add("--json", metavar="FILE.json", type=file_name, help="write the tables here")
    parser.lists = lambda: f"{_EXAMPLES}\n{lists(with_methods=False)}\n{_EXIT_CODES}"


def counts(text: str) -> tuple[int, ...]:
    """An argument: whole numbers and ranges A..B of them, both ends included, 1 or more."""
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            low = count(first)
            high = count(last) if dots else low
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected numbers of chips such as 1..36 or 8,16..20"
            ) from error
        if not low <= high <= MAX_CHIPS:
            raise argparse.ArgumentTypeError(
                f"{text!r}: {part} is no range of 1 to {MAX_CHIPS} chips"
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def run(arguments: argparse.Namespace) -> int:
    """Shows the tables; writes them as JSON where asked."""
    graph, mcm = graph_and_mcm(arguments)
    problem_of(graph, mcm, arguments.graph)
    if arguments.json is not None:
        named = (arguments.mcm, arguments.seconds)
        check_writable(arguments.json, [arguments.graph, *filter(None, named)])

    start_jax()
    from jaxpart.results import progress
    from jaxpart.sweep import RESOURCES, sweep

    total = len(arguments.chips or range(mcm.num_chips)) + len(RESOURCES)
    with progress.counted(sys.stderr, total, "searches") as callback:
        found = sweep(
            graph,
            mcm,
            arguments.chips,
            time_limit_s=arguments.time_limit,
            max_samples=arguments.samples,
            seed=arguments.seed,
            callback=callback,
        )
    show(found.summary(arguments.rate))
    if arguments.json is not None:
        content = json.dumps(found.to_dict(), indent=1, allow_nan=False).encode() + b"\n"
        write_whole(arguments.json, content)
        show(f"\n{one_line(f'written: {arguments.json}')}")
    if arguments.rate is not None:
        return 0 if found.fewest(arguments.rate) else 1
    return 0 if any(row.bottleneck_s is not None for row in found.rows) else 1
