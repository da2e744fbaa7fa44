"""The command line: find a partition, check one, list the graphs.

Exit codes: 0 a valid partition, 1 none (infeasible, none found, or the checked one is not valid),
2 bad input, 130 interrupted. Heavy packages are imported after the arguments are parsed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpart.arguments import (
    DEFAULT_MCM,
    DEFAULT_TIME_LIMIT_S,
    Parser,
    add_evaluate_arguments,
    add_graphs_arguments,
    add_partition_arguments,
)
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph
    from jaxpart.problem.mcm import MCM
    from jaxpart.problem.problem import Problem
    from jaxpart.runtime.islands import Islands

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the subcommands and gives its exit code."""
    parser = Parser(prog="jaxpart", description="Partitions of graphs over multi-chip modules.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (description, add_arguments, _) in _COMMANDS.items():
        add_arguments(commands.add_parser(name, help=description, description=description))
    arguments = parser.parse_args(argv)
    return _run(_COMMANDS[arguments.command][2], arguments)


def run_script(command: str, argv: Sequence[str] | None = None) -> int:
    """One command as a script of its own: runs it and gives its exit code."""
    description, add_arguments, run = _COMMANDS[command]
    parser = Parser(description=description)
    add_arguments(parser)
    return _run(run, parser.parse_args(argv))


def _run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return command(arguments)
    except InputError as error:
        return _say(f"error: {error}", 2)
    except InfeasibleError as error:
        return _say(f"infeasible: {error}", 1)
    except NothingFoundError as error:
        return _say(f"none found: {error}", 1)
    except KeyboardInterrupt:
        return _say("interrupted before there was anything to write", _INTERRUPTED)


def _partition(arguments: argparse.Namespace) -> int:
    from jaxpart.results.picture import kind_of

    if arguments.plot is not None:
        kind_of(arguments.plot)
    islands = _islands(arguments)
    graph, mcm = _graph_and_mcm(arguments)
    stem = re.sub(r"[^\w.+-]+", "-", f"{graph.name}-{mcm.name}")
    if islands is not None and islands.process:
        stem += f"-island{islands.process}"
    out = Path(arguments.out or f"{stem}.result.json")
    plot = Path(arguments.plot or f"{stem}.png")
    _check_writable(out)
    _check_writable(plot)
    if out.resolve() == plot.resolve():
        raise InputError(f"{out}: named for both the result and the picture, expected two files")
    _problem(graph, mcm, arguments.graph)

    _start_jax()
    from jaxpart.engine import partition
    from jaxpart.results import progress
    from jaxpart.results.file import read_assignment

    init = None if arguments.init is None else read_assignment(arguments.init, graph, mcm)
    time_limit_s = arguments.time_limit
    if time_limit_s is None and arguments.samples is None:
        time_limit_s = DEFAULT_TIME_LIMIT_S
    with progress.shown(sys.stderr) as callback:
        result = partition(
            graph,
            mcm,
            method=arguments.method,
            time_limit_s=time_limit_s,
            max_samples=arguments.samples,
            seed=arguments.seed,
            initial_assignment=init,
            relative_gap=arguments.gap,
            policy=arguments.policy,
            islands=islands,
            pool=arguments.pool,
            callback=callback,
        )
    result.save(out)
    print(result.summary(), flush=True)
    result.plot(plot)
    print(f"\nwritten: {out} and {plot}", flush=True)
    if result.search.interrupted:
        return _say(f"interrupted: the best so far is in {out}", _INTERRUPTED)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from jaxpart.results.file import StoredResult, read_partition

    stored = read_partition(arguments.result)
    default = stored.mcm if isinstance(stored, StoredResult) else None
    graph, mcm = _graph_and_mcm(arguments, default)
    problem = _problem(graph, mcm, arguments.graph)
    assignment = stored.on(graph, mcm)

    _start_jax()
    from jaxpart.cost.evaluate import score
    from jaxpart.results.evaluation import evaluation_of, rescaling_notes

    notes = rescaling_notes(graph, problem)
    if isinstance(stored, StoredResult):
        notes += stored.notes(problem, float(score(problem, assignment).bottleneck_s))
    evaluation = evaluation_of(problem, assignment, notes)
    print(evaluation.summary())
    return 0 if evaluation.valid else 1


def _graphs(arguments: argparse.Namespace) -> int:
    from jaxpart import datasets
    from jaxpart.datasets import catalog
    from jaxpart.files import write_whole

    if arguments.show is not None:
        print(catalog.record(datasets.entry(arguments.show)))
    elif arguments.plot is not None:
        if not arguments.graphs:
            raise InputError(f"{arguments.plot}: expected the names of the graphs to draw")
        graphs = [datasets.load(name) for name in arguments.graphs]
        write_whole(arguments.plot, catalog.draw(graphs))
        print(f"written: {arguments.plot}")
    else:
        print(catalog.table(arguments.split, arguments.graphs))
    return 0


_COMMANDS = {
    "partition": (
        "Find a partition of a graph over the chips of a module.",
        add_partition_arguments,
        _partition,
    ),
    "evaluate": (
        "Score and check any partition against a graph and a module.",
        add_evaluate_arguments,
        _evaluate,
    ),
    "graphs": (
        "The graphs that come with jaxpart: a table, one graph's record, or a picture.",
        add_graphs_arguments,
        _graphs,
    ),
}


def _graph_and_mcm(arguments: argparse.Namespace, default: MCM | None = None) -> tuple[Graph, MCM]:
    """The graph, and the module: the graph file's own, else --mcm, else the default.

    Warnings of the importers become one line each.
    """
    from jaxpart import datasets
    from jaxpart.problem.mcm import load_mcm

    named = None if arguments.mcm is None else load_mcm(arguments.mcm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        graph, brought = datasets.resolve(arguments.graph, dims=dict(arguments.dim))
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for message in dict.fromkeys(told):
        _say(f"warning: {' '.join(message.split())}")
    if brought is not None and named is not None:
        raise InputError(
            f"{arguments.graph}: this format brings its own machine, expected no --mcm"
        )
    return graph, brought or named or default or load_mcm(DEFAULT_MCM)


def _islands(arguments: argparse.Namespace) -> Islands | None:
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if all(value is None for value in given):
        return None
    if any(value is None for value in given):
        raise InputError("islands need all of --coordinator, --processes and --process, or none")
    from jaxpart.runtime.islands import Islands

    return Islands(*given)


def _problem(graph: Graph, mcm: MCM, where: str) -> Problem:
    """The problem; what is wrong with it is told with the file's name."""
    from jaxpart.problem.problem import Problem

    try:
        return Problem.build(graph, mcm)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_writable(path: Path) -> None:
    """Finds out before a search, not after it, whether its result can be written."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot write here ({error.strerror})") from error


def _start_jax() -> None:
    """Compiled programs are kept between runs; warns of a slow GPU release."""
    import jax

    from jaxpart.environment import keep_compiled

    keep_compiled()
    jaxlib = version("jaxlib")
    release = tuple(int(part) for part in re.findall(r"\d+", jaxlib)[:3])
    if (0, 10, 2) <= release <= (0, 11, 0) and jax.default_backend() == "gpu":
        _say(
            f"warning: jaxlib {jaxlib} has slow scatters on a GPU; use 0.11.1 or newer "
            "(Python 3.12 or newer), or JAX_PLATFORMS=cpu"
        )


def _say(message: str, code: int = 0) -> int:
    """One line on stderr; gives `code` back."""
    print(" ".join(message.splitlines()), file=sys.stderr, flush=True)
    return code
