"""`jaxpart profile`: measure each node of a model on the device at hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpart.arguments import (
    Parser,
    add_dimension_argument,
    add_param_argument,
    count,
    file_name,
    seed,
)
from jaxpart.commands.inputs import sizes, start_jax, warnings_told
from jaxpart.commands.output import show
from jaxpart.errors import InputError
from jaxpart.files import check_writable, stem_of
from jaxpart.text import one_line

if TYPE_CHECKING:
    from jaxpart.export.measuring.profile import Profile

DESCRIPTION = "Measure the seconds of each node of a model on the device at hand."

_EXAMPLES = """\
examples:
  %(prog)s model.onnx
  %(prog)s model.onnx --count 100 --inputs pictures.npz --out cpu.csv
  jaxpart partition model.onnx --seconds cpu.csv
  %(prog)s model.mlir --param-argnums 0-198

A run of an ONNX model that was stopped goes on where it was, if its --out is there.
A function of JAX is profiled in Python: jaxpart.profile(jaxpart.trace(function, ...)).

exit codes:
  0 measured and written   2 bad input, nothing is written   130 Ctrl-C
"""


def add_arguments(parser: Parser) -> None:
    """`profile MODEL [--out FILE.csv] [--count N] [--inputs FILE.npz] [...]`."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        type=file_name,
        help="a file: ONNX, StableHLO, or of jax.export or torch.export (.pt2)",
    )
    add(
        "--out",
        metavar="FILE.csv",
        type=file_name,
        help="the measured seconds, for --seconds of the other commands (default: "
        "MODEL.seconds.csv, here)",
    )
    add("--count", metavar="N", type=count, default=20, help="runs (default: %(default)s)")
    add(
        "--inputs",
        metavar="FILE.npz",
        type=file_name,
        help="of an ONNX model: an array for each input, or rows of them for several runs "
        "(default: random)",
    )
    add("--seed", metavar="N", type=seed, default=0, help="of random inputs (default: 0)")
    add_dimension_argument(parser)
    add_param_argument(parser)
    parser.lists = lambda: _EXAMPLES


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes and shows."""
    out = arguments.out or f"{stem_of(arguments.model)}.seconds.csv"
    check_writable(Path(out), [arguments.model, *filter(None, [arguments.inputs])])
    start_jax()
    from jaxpart.export.jax.from_file import is_for_jax

    found = _of_jax(arguments) if is_for_jax(arguments.model) else _of_onnx(arguments, out)
    found.save(out)
    show(found.summary())
    show(f"\n{one_line(f'written: {out}')}")
    return 0


def _of_onnx(arguments: argparse.Namespace, out: str) -> Profile:
    from jaxpart.export.measuring.profile import profile
    from jaxpart.results import progress

    with warnings_told(), progress.counted(sys.stderr, arguments.count, "runs") as callback:
        return profile(
            arguments.model,
            count=arguments.count,
            dims=sizes(arguments.dim),
            param_argnums=arguments.param_argnums,
            inputs=arguments.inputs,
            seed=arguments.seed,
            out=out,
            callback=callback,
        )


def _of_jax(arguments: argparse.Namespace) -> Profile:
    from jaxpart.export.jax.from_file import trace_file
    from jaxpart.export.measuring.profile import profile
    from jaxpart.export.measuring.profile_jax import programs_of
    from jaxpart.results import progress

    if arguments.inputs is not None:
        raise InputError(f"{arguments.model}: runs on JAX, expected --inputs of an ONNX file alone")
    with warnings_told():
        trace = trace_file(
            arguments.model, dims=sizes(arguments.dim), param_argnums=arguments.param_argnums
        )
    with progress.counted(sys.stderr, programs_of(trace), "programs") as callback:
        return profile(trace, count=arguments.count, seed=arguments.seed, callback=callback)
