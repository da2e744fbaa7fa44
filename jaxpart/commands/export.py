"""`jaxpart export`: take a partition away as files that other tools load."""

from __future__ import annotations

import argparse

from jaxpart.arguments import (
    DEFAULT_MCM,
    Parser,
    add_dimension_argument,
    add_param_argument,
    add_seconds_argument,
    file_name,
    name_or_file,
)
from jaxpart.commands.inputs import sizes, start_jax, warnings_told
from jaxpart.commands.output import show
from jaxpart.text import one_line

DESCRIPTION = "Take a partition away: a file for each chip, or one that says where each node runs."

_EXAMPLES = """\
examples:
  %(prog)s model.onnx model-mcm4.result.json --to onnx --out stages
  %(prog)s model.onnx model-mcm4.result.json --to onnx-annotated --out placed.onnx
  %(prog)s model.mlir model-mcm4.result.json --param-argnums 0-198 --to stablehlo --out stages
"""
_EXIT_CODES = """\
exit codes:
  0 written   2 bad input, nothing is written   130 Ctrl-C
"""


def add_arguments(parser: Parser) -> None:
    """`export MODEL RESULT --to KIND --out DIR [...]`."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        type=file_name,
        help="the file that was partitioned: ONNX, StableHLO, or of jax.export or torch.export",
    )
    add("result", metavar="RESULT", type=file_name, help="a result file, or JSON {node: chip}")
    add("--to", metavar="KIND", required=True, help="what to write, see below")
    add(
        "--out",
        metavar="DIR",
        type=file_name,
        required=True,
        help="the folder to write; the file, for onnx-annotated and mpmd",
    )
    add_dimension_argument(parser)
    add_param_argument(parser)
    add_seconds_argument(parser)
    add(
        "--mcm",
        metavar="NAME_OR_TOML",
        type=name_or_file,
        help=f"the module, where RESULT is plain JSON (default: {DEFAULT_MCM})",
    )
    add(
        "--copy-data",
        action="store_true",
        help="copy the weights that are in other files (default: link to them where possible)",
    )
    parser.lists = lambda: f"{_EXAMPLES}\n{_kinds()}\n{_EXIT_CODES}"


def _kinds() -> str:
    from jaxpart.export.manifest import TARGETS

    width = max(map(len, TARGETS))
    return "kinds:\n" + "".join(f"  {name:{width}}  {what}\n" for name, what in TARGETS.items())


def run(arguments: argparse.Namespace) -> int:
    """Writes the files."""
    start_jax()
    from jaxpart.export.targets import export
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.results.file import StoredResult, read_partition

    mcm = None if arguments.mcm is None else load_mcm(arguments.mcm)
    if mcm is None and not isinstance(read_partition(arguments.result), StoredResult):
        mcm = load_mcm(DEFAULT_MCM)
    with warnings_told():
        result = export(
            arguments.model,
            arguments.result,
            to=arguments.to,
            out=arguments.out,
            mcm=mcm,
            dims=sizes(arguments.dim),
            seconds=arguments.seconds,
            copy_data=arguments.copy_data,
            param_argnums=arguments.param_argnums,
        )
    for note in result.notes:
        show(one_line(f"note: {note}"))
    show(one_line(f"written: {arguments.out}, chips in use: {result.chips_used}"))
    return 0
