"""The command line: find a partition, check one, list the graphs.

Exit codes: 0 a valid partition, 1 none (infeasible, none found, or the checked one is not valid),
2 bad input, 130 interrupted (128 and the number of the signal: 143 for SIGTERM, 129 for SIGHUP).
Heavy packages are imported after the arguments are parsed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import re
import sys
import time
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
from jaxpart.files import check_writable
from jaxpart.runtime import background, interrupt
from jaxpart.text import one_line, tell

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph
    from jaxpart.problem.mcm import MCM
    from jaxpart.problem.problem import Problem
    from jaxpart.runtime.islands import Islands

# Seconds after an interrupt in which the picture may be drawn.
_PATIENCE_S = 2.2
_BEGAN_S = time.perf_counter()  # when the program was loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the subcommands and gives its exit code.

    Args:
      argv: the arguments. None: those of the process, which this call may end.
    """
    parser = Parser(prog="jaxpart", description="Partitions of graphs over multi-chip modules.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (description, add_arguments, _) in _COMMANDS.items():
        add_arguments(commands.add_parser(name, help=description, description=description))
    arguments = parser.parse_args(argv)
    return _run(_COMMANDS[arguments.command][2], arguments, is_process=argv is None)


def run_script(command: str, argv: Sequence[str] | None = None) -> int:
    """One command as a script of its own: runs it and gives its exit code; as `main`."""
    description, add_arguments, run = _COMMANDS[command]
    parser = Parser(description=description)
    add_arguments(parser)
    return _run(run, parser.parse_args(argv), is_process=argv is None)


def _run(
    command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, *, is_process: bool
) -> int:
    with interrupt.command_signals() as signals:
        code = _code_of(command, arguments, signals)
        if is_process:
            # What still compiles is not waited for. And nothing that comes now is worth a word.
            if sys.stdout is not None:  # None: started without one
                sys.stdout.flush()
            if background.is_any_running():
                os._exit(code)
            interrupt.ignore_from_now()
    return code


def _code_of(
    command: Callable[[argparse.Namespace], int],
    arguments: argparse.Namespace,
    signals: interrupt.Interrupts,
) -> int:
    try:
        return command(arguments)
    except InputError as error:
        return _say(f"error: {error}", 2)
    except InfeasibleError as error:
        return _say(f"infeasible: {error}", 1)
    except NothingFoundError as error:
        return _say(f"none found: {error}", 1)
    except KeyboardInterrupt:
        return _say(interrupt.NOTHING, signals.code)


def _partition(arguments: argparse.Namespace) -> int:
    from jaxpart.results.picture import kind_of

    if arguments.plot is not None:
        kind_of(arguments.plot)
    islands = _islands(arguments)
    graph, mcm = _graph_and_mcm(arguments)
    stem = _stem(f"{graph.name}-{mcm.name}")
    if islands is not None and islands.process:
        stem += f"-island{islands.process}"
    out, plot = _outputs(arguments, stem)
    _problem(graph, mcm, arguments.graph)

    _start_jax()
    from jaxpart.engine import partition
    from jaxpart.results import progress
    from jaxpart.results.file import read_assignment

    init = None if arguments.init is None else read_assignment(arguments.init, graph, mcm)
    time_limit_s = arguments.time_limit
    if time_limit_s is None and arguments.samples is None:
        time_limit_s = DEFAULT_TIME_LIMIT_S
    # Imported now, for the picture: after the search nobody wants to wait for it.
    importlib.import_module("matplotlib.backends.backend_agg")
    start_up_s = time.perf_counter() - _BEGAN_S
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
    signals = interrupt.active()
    farewell = one_line(f"interrupted: the best so far is in {out}")
    signals.leave_at_once(farewell)
    _show(result.summary(start_up_s))
    drawn = background.started(lambda: result.plot(plot))
    if background.finishes(drawn, lambda: signals.waited_s > _PATIENCE_S):
        drawn.result()
        _show(f"\n{one_line(f'written: {out} and {plot}')}")
    else:
        _show(f"\n{one_line(f'written: {out}; no picture: not drawn in time')}")
    signals.leave_at_once(None)
    if signals.event.is_set():
        return _say(farewell, signals.code)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from jaxpart.results.file import StoredResult, read_partition

    stored = read_partition(arguments.result)
    default = stored.mcm if isinstance(stored, StoredResult) else None
    graph, mcm = _graph_and_mcm(arguments, default)
    problem = _problem(graph, mcm, arguments.graph)
    assignment = stored.on(graph, mcm)

    _start_jax()
    from jaxpart.results.evaluation import evaluation_of, rescaling_notes

    evaluation = evaluation_of(problem, assignment, rescaling_notes(graph, problem))
    if isinstance(stored, StoredResult):
        notes = (*evaluation.notes, *stored.notes(evaluation))
        evaluation = dataclasses.replace(evaluation, notes=notes)
    _show(evaluation.summary())
    return 0 if evaluation.valid else 1


def _graphs(arguments: argparse.Namespace) -> int:
    from jaxpart import datasets
    from jaxpart.datasets import catalog
    from jaxpart.files import write_whole
    from jaxpart.results.picture import kind_of

    if arguments.show is not None:
        _show(catalog.record(datasets.entry(arguments.show)))
    elif arguments.plot is not None:
        if not arguments.graphs:
            raise InputError(f"{arguments.plot}: expected the names of the graphs to draw")
        if kind_of(arguments.plot) != "png":
            raise InputError(f"{arguments.plot}: this picture is a PNG, expected a name in .png")
        check_writable(arguments.plot)
        graphs = [datasets.load(name) for name in arguments.graphs]
        write_whole(arguments.plot, catalog.draw(graphs))
        _show(one_line(f"written: {arguments.plot}"))
    else:
        _show(catalog.table(arguments.split, arguments.graphs))
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
        graph, brought = datasets.resolve(
            arguments.graph, dims=_sizes(arguments.dim), param_argnums=arguments.param_argnums
        )
    if brought is not None and named is not None:
        raise InputError(f"{arguments.graph}: this format brings its own module, expected no --mcm")
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for message in dict.fromkeys(told):
        _say(f"warning: {message}")
    mcm = brought or named or default or load_mcm(DEFAULT_MCM)
    if arguments.element_bytes is not None:
        mcm = dataclasses.replace(mcm, element_bytes=arguments.element_bytes)
    return graph, mcm


def _sizes(dims: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The sizes given by --dim, each once."""
    sizes: dict[str, int] = {}
    for name, size in dims:
        if sizes.setdefault(name, size) != size:
            raise InputError(f"--dim: {name} is {sizes[name]} and {size}, expected one size")
    return sizes


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


def _stem(name: str) -> str:
    """The name of a graph and a module as the beginning of a file's name, at most 200 bytes."""
    return re.sub(r"[^\w.+-]+", "-", name).encode()[:200].decode(errors="ignore")


def _outputs(arguments: argparse.Namespace, stem: str) -> tuple[Path, Path]:
    """The files for the result and the picture, found to be writable before a search.

    `--init` may be replaced by the result, which is at least as good.
    """
    inputs = [arguments.graph, *filter(None, (arguments.mcm, arguments.policy))]
    out = check_writable(f"{stem}.result.json" if arguments.out is None else arguments.out, inputs)
    plot = check_writable(
        f"{stem}.png" if arguments.plot is None else arguments.plot,
        [*inputs, *filter(None, [arguments.init])],
    )
    if out.resolve() == plot.resolve() or (out.exists() and plot.exists() and out.samefile(plot)):
        raise InputError(f"{out}: named for both the result and the picture, expected two files")
    return out, plot


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


def _show(text: str) -> None:
    """Lines on stdout."""
    try:
        tell(sys.stdout, text)
    except OSError as error:
        raise InputError(f"standard output cannot be written ({error.strerror})") from error


def _say(message: str, code: int = 0) -> int:
    """One line on stderr; gives `code` back."""
    with contextlib.suppress(OSError):  # there is nowhere to say so
        tell(sys.stderr, one_line(message))
    return code
