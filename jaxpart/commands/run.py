"""`jaxpart run`: run exported stages as a pipeline, and compare them with the whole model."""

from __future__ import annotations

import argparse
import sys

from jaxpart.arguments import Parser, add_dimension_argument, count, file_name, seed
from jaxpart.commands.inputs import sizes
from jaxpart.commands.output import show

DESCRIPTION = "Run exported stages as a pipeline, time them, and compare their outputs."

_EXAMPLES = """\
examples:
  %(prog)s stages --model model.onnx
  %(prog)s stages --model model.pt2 --dim s77=4
  %(prog)s stages --inputs pictures.npz --count 200

exit codes:
  0 the stages ran   1 their outputs are not those of the model   2 bad input   130 Ctrl-C
"""


def add_arguments(parser: Parser) -> None:
    """`run DIR [--inputs FILE.npz] [--count N] [--model FILE]`."""
    add = parser.add_argument
    add("folder", metavar="DIR", type=file_name, help="the folder of stages")
    add(
        "--inputs",
        metavar="FILE.npz",
        type=file_name,
        help="an array for each input, or rows of them for several inferences (default: random)",
    )
    add("--count", metavar="N", type=count, default=64, help="inferences (default: %(default)s)")
    add("--seed", metavar="N", type=seed, default=0, help="of random inputs (default: 0)")
    add(
        "--model",
        metavar="FILE",
        type=file_name,
        help="the whole model, to compare the outputs of the first inferences with",
    )
    add_dimension_argument(parser)
    parser.lists = lambda: _EXAMPLES


def run(arguments: argparse.Namespace) -> int:
    """Runs the stages, and shows what they took."""
    from jaxpart.export.running.run import run_stages
    from jaxpart.results import progress

    with progress.counted(sys.stderr, arguments.count, "inferences") as callback:
        report = run_stages(
            arguments.folder,
            inputs=arguments.inputs,
            count=arguments.count,
            seed=arguments.seed,
            model=arguments.model,
            dims=sizes(arguments.dim),
            callback=callback,
        )
    show(report.summary())
    return 0 if report.agrees else 1
