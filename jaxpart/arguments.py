"""What command lines accept: the types of arguments, and a help page worth reading."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jaxpart.text import decimal, one_line, tell

DEFAULT_MCM = "mcm36"
DEFAULT_TIME_LIMIT_S = 20.0
_MAX_POSITIONS = 100_000  # of arguments

EXIT_CODES = """\
exit codes:
  0 a valid partition   1 none: infeasible, none found, or not valid   2 bad input
  130 Ctrl-C, 143 SIGTERM, 129 SIGHUP: the best so far is written, if there is one
"""


class Parser(argparse.ArgumentParser):
    """Bad arguments in one line; examples and lists in the help, made only when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        """Takes the settings of `argparse.ArgumentParser`."""
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.lists: Callable[[], str] | None = None  # makes the last part of the help

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 and one line."""
        self.exit(2, one_line(f"error: {message} (see {self.prog} --help)") + "\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints help or an error where argparse prints; a closed pipe is no error."""
        if message:
            with contextlib.suppress(OSError):
                tell(file or sys.stderr, message.removesuffix("\n"))

    def format_help(self) -> str:
        """The help page."""
        if self.lists is not None:
            self.epilog = self.lists()
        return super().format_help()


def _dimension(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    value = _digits(size)
    if not name or value is None or value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=SIZE, such as batch=1")
    return name, value


def add_graph_argument(parser: argparse.ArgumentParser) -> None:
    """`GRAPH [--dim NAME=SIZE] [--element-bytes BYTES] [--seconds FILE]`, and the like."""
    parser.add_argument(
        "graph",
        metavar="GRAPH",
        type=name_or_file,
        help="a shipped graph's name, or a file: jaxpart's own format, ONNX, StableHLO (text, "
        "bytecode, portable artifact), what jax.export or torch.export (.pt2) saved, max-load JSON "
        "or a PipeDream profile, recognised by its content",
    )
    add_dimension_argument(parser)
    add_param_argument(parser)
    parser.add_argument(
        "--element-bytes",
        metavar="BYTES",
        type=positive,
        help="of a float in the deployment (1: int8); integers and quantised weights keep their "
        "size (default: the module's, or as counted)",
    )
    add_seconds_argument(parser)


def add_param_argument(parser: argparse.ArgumentParser) -> None:
    """`[--param-argnums POSITIONS]`."""
    parser.add_argument(
        "--param-argnums",
        metavar="POSITIONS",
        type=positions,
        default=(),
        help="which arguments are parameters, such as 0 or 0-198,201: of @main of a StableHLO "
        "module, of the function that jax.export saved; all other files say so themselves",
    )


def add_seconds_argument(parser: argparse.ArgumentParser) -> None:
    """`[--seconds FILE]`."""
    parser.add_argument(
        "--seconds",
        metavar="FILE.csv",
        type=file_name,
        help="measured times of the nodes, in place of the cost model's: CSV with the columns name "
        "and seconds (`jaxpart profile` writes it), or what ONNX Runtime's profiler wrote",
    )


def add_dimension_argument(parser: argparse.ArgumentParser) -> None:
    """`[--dim NAME=SIZE]`."""
    parser.add_argument(
        "--dim",
        metavar="NAME=SIZE",
        type=_dimension,
        action="append",
        default=[],
        help="size of a free dimension of an ONNX model or a .pt2, or how often a Loop runs "
        "(RESULT:trips=SIZE); may be repeated",
    )


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """`GRAPH RESULT [--mcm NAME_OR_TOML]`, and what goes with GRAPH."""
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


def lists(*, with_methods: bool) -> str:
    """What GRAPH, --mcm and, if wanted, --method may name; for the end of a help page."""
    from jaxpart import datasets
    from jaxpart.problem.mcm import PRESETS
    from jaxpart.results.report import module_line

    names = textwrap.fill(
        ", ".join(datasets.names()),
        96,
        break_on_hyphens=False,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    lines = ["graphs:", names, "modules:"]
    lines += [f"  {module_line(make())}" for make in PRESETS.values()]
    if with_methods:
        from jaxpart.methods import METHODS

        width = max(map(len, METHODS))
        lines += ["methods:", *(f"  {name:{width}}  {what}" for name, what in METHODS.items())]
    return "\n".join(lines) + "\n"


def file_name(text: str) -> str:
    """An argument: the path of a file."""
    return _name(text, "the name of a file")


def file_path(text: str) -> Path:
    """An argument: the path of a file or a folder."""
    return Path(_name(text, "the name of a file or a folder"))


def name_or_file(text: str) -> str:
    """An argument: the name of something that is shipped, or the path of a file."""
    return _name(text, "a name, or the name of a file")


def _name(text: str, expected: str) -> str:
    """Refuses the empty name, and "-".

    Elsewhere "-" is a standard stream. Nothing here reads or writes one.
    """
    if text == "-":
        raise argparse.ArgumentTypeError(
            f"'-', expected {expected}; standard input is not read, and standard output has the "
            "summary (a file of this name is ./-)"
        )
    if not text:
        raise argparse.ArgumentTypeError(f"'', expected {expected}")
    return text


def positive(text: str) -> float:
    """An argument: a number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "a positive number")


def non_negative(text: str) -> float:
    """An argument: a number, 0 or more."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number, 0 or more")


def count(text: str) -> int:
    """An argument: a whole number, 1 or more."""
    return _integer(text, 1, 10**15, "a whole number, 1 or more")


def whole_number(text: str) -> int:
    """An argument: a whole number, 0 or more."""
    return _integer(text, 0, 10**15, "a whole number, 0 or more")


def positions(text: str) -> tuple[int, ...]:
    """An argument: positions and ranges of positions, from 0 on, both ends included."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = _digits(first)
        high = _digits(last) if dash else low
        if low is None or high is None or not low <= high < _MAX_POSITIONS:
            raise argparse.ArgumentTypeError(f"{text!r}: expected positions such as 0 or 0-198,201")
        found.extend(range(low, high + 1))
    return tuple(found)


def seed(text: str) -> int:
    """An argument: a seed, which has 31 bits."""
    return _integer(text, 0, 2**31 - 1, "a whole number from 0 to 2147483647")


def _number(text: str, is_good: Callable[[float], bool], expected: str) -> float:
    value = decimal(text)
    if value is None or not is_good(value):
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")
    return value


def _integer(text: str, low: int, high: int, expected: str) -> int:
    value = _digits(text)
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")
    return value


def _digits(text: str) -> int | None:
    """The value of at most 16 decimal digits; None: the text is another one."""
    return int(text) if re.fullmatch(r"[0-9]{1,16}", text) else None
