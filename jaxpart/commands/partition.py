"""`jaxpart partition`: find a partition, write it as a result file and a picture."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpart.arguments import (
    DEFAULT_MCM,
    DEFAULT_TIME_LIMIT_S,
    EXIT_CODES,
    Parser,
    add_graph_argument,
    count,
    file_name,
    lists,
    name_or_file,
    non_negative,
    positive,
    seed,
)
from jaxpart.commands.inputs import graph_and_mcm, problem_of, sizes, start_jax
from jaxpart.commands.output import say, show
from jaxpart.errors import InputError
from jaxpart.files import check_writable
from jaxpart.runtime import background, interrupt
from jaxpart.text import one_line

if TYPE_CHECKING:
    from jaxpart.export.jax.stages import Trace
    from jaxpart.ingest.onnx.importer import ImportedModel
    from jaxpart.results.result import Result
    from jaxpart.runtime.islands import Islands

DESCRIPTION = "Find a partition of a graph over the chips of a module."

# Seconds after an interrupt in which the picture may be drawn.
_PATIENCE_S = 2.2
_BEGAN_S = time.perf_counter()  # when the program was loaded

_EXAMPLES = """\
examples:
  %(prog)s bert-large
  %(prog)s bert-large --mcm mcm64 --time-limit 60 --seed 1
  %(prog)s model.onnx --mcm my-module.toml --out best.json --plot best.png
  %(prog)s model.onnx --mcm mcm4 --measure 5
  %(prog)s bert-large --samples 100000 --out again.json --init best.json
several processes or hosts, each its own command (here on two, ten.example being the first):
  %(prog)s bert-large --coordinator ten.example:4321 --processes 2 --process 0
  %(prog)s bert-large --coordinator ten.example:4321 --processes 2 --process 1
"""


def add_arguments(parser: Parser) -> None:
    """`partition GRAPH [...]`."""
    add = parser.add_argument
    add_graph_argument(parser)
    add(
        "--mcm",
        metavar="NAME_OR_TOML",
        type=name_or_file,
        help=f"the module (default: {DEFAULT_MCM})",
    )
    add("--method", default="auto", help="how to search, see below (default: %(default)s)")
    add(
        "--time-limit",
        metavar="SECONDS",
        type=positive,
        help="search time, compilation included; start-up comes beside it (default: "
        f"{DEFAULT_TIME_LIMIT_S:g}, or none where --samples is given)",
    )
    add(
        "--samples",
        metavar="N",
        type=count,
        help="stop after N costs or changes of cost: same seed, same answer (default: no limit)",
    )
    add("--seed", metavar="N", type=seed, default=0, help="of the search (default: 0)")
    add(
        "--init",
        metavar="FILE.json",
        type=file_name,
        help="start from this partition: a result, or {node: chip}",
    )
    add(
        "--gap",
        metavar="G",
        type=non_negative,
        default=1e-4,
        help="stop when proven this close to the optimum (default: %(default)s)",
    )
    add(
        "--policy",
        metavar="NAME_OR_FILE",
        type=name_or_file,
        help="of --method auto and policy: a shipped policy or a checkpoint; fresh: an untrained "
        "one; none: no policy at all (default: shipped)",
    )
    add(
        "--pool",
        default="local",
        metavar="local|ray",
        help="where solvers run: this machine, or the Ray cluster that RAY_ADDRESS names, by the "
        "extra jaxpart[ray] (default: %(default)s)",
    )
    add(
        "--measure",
        metavar="K",
        type=count,
        help="of a file that can run (ONNX, StableHLO, of jax.export, .pt2): time the stages of "
        "the K best distinct partitions on this machine, one at a time, and take the fastest",
    )
    add(
        "--split",
        metavar="auto|off|K",
        type=_parts,
        default="off",
        help="split operations that are too large for a chip's share, into K parts at most "
        "(default: %(default)s)",
    )
    add(
        "--save-graph",
        metavar="FILE.json",
        type=file_name,
        help="write the graph that the result is of: with --split it has the parts (default, where "
        "operations were split: the result's name with .graph.json.gz)",
    )
    islands = parser.add_argument_group(
        "islands",
        "Processes that search for the same partition, with a seed each, and exchange the\n"
        "best. Each goes on when others end, die or never come, and writes files of its own;\n"
        "the one that ends last has the best of all. All three arguments, or none.",
    )
    islands.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where they meet: the first one's host and a free port, on a network to be trusted",
    )
    islands.add_argument("--processes", metavar="N", type=count, help="how many there are")
    islands.add_argument("--process", metavar="I", type=seed, help="which this is, from 0 on")
    add(
        "--out",
        metavar="FILE.json",
        type=file_name,
        help="the result file (default: GRAPH-MCM.result.json)",
    )
    add(
        "--plot",
        metavar="FILE.png",
        type=file_name,
        help="the picture; .svg and .pdf work too (default: GRAPH-MCM.png)",
    )
    parser.lists = lambda: f"{_EXAMPLES}\n{lists(with_methods=True)}\n{EXIT_CODES}"


def _parts(text: str) -> str | int:
    if text in ("auto", "off"):
        return text
    try:
        most = count(text)
    except argparse.ArgumentTypeError:
        most = 0
    if most < 2:
        raise argparse.ArgumentTypeError(f"{text!r}, expected auto, off or a number, 2 or more")
    return most


def run(arguments: argparse.Namespace) -> int:
    """Finds, writes and shows a partition."""
    from jaxpart import datasets
    from jaxpart.ingest.load import model_sha256
    from jaxpart.results.picture import kind_of

    if arguments.plot is not None:
        kind_of(arguments.plot)
    islands = _islands(arguments)
    graph, mcm = graph_and_mcm(arguments)
    stem = _stem(f"{graph.name}-{mcm.name}")
    if islands is not None and islands.process:
        stem += f"-island{islands.process}"
    out, plot, parts = _outputs(arguments, stem)
    model_hash = None if datasets.is_shipped(arguments.graph) else model_sha256(arguments.graph)
    problem_of(graph, mcm, arguments.graph)
    if arguments.measure is not None and arguments.split != "off":
        raise InputError("--measure: parts of operations are not exported yet, expected no --split")
    model = None if arguments.measure is None else _model_to_measure(arguments)

    start_jax()
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
            alternatives=(arguments.measure or 1) - 1,
            split=arguments.split,
            callback=callback,
        )
    result = dataclasses.replace(result, model_sha256=model_hash)
    written = [out]
    if parts is not None and (arguments.save_graph is not None or result.split is not None):
        # The graph comes first: no result is left without the graph that it is of.
        result.problem.graph.save(parts)
        written.append(parts)
    result.save(out)
    signals = interrupt.active()
    farewell = one_line(f"interrupted: the best so far is in {out}")
    signals.leave_at_once(farewell)
    measured = ""
    if model is not None and not signals.event.is_set():
        result, measured = _measured(model, arguments.graph, result)
        result.save(out)
    show(result.summary(start_up_s))
    if measured:
        show(f"\n{measured}")
    drawn = background.started(lambda: result.plot(plot))
    if background.finishes(drawn, lambda: signals.waited_s > _PATIENCE_S):
        drawn.result()
        show(f"\n{one_line(f'written: {_enumerated([*written, plot])}')}")
    else:
        names = _enumerated(written)
        show(f"\n{one_line(f'written: {names}; no picture: not drawn in time')}")
    signals.leave_at_once(None)
    if signals.event.is_set():
        return say(farewell, signals.code)
    return 0


def _model_to_measure(arguments: argparse.Namespace) -> ImportedModel | Trace:
    """The model that is to be measured; what cannot be shows before the search."""
    from jaxpart.export.jax.from_file import is_for_jax, trace_file
    from jaxpart.export.running.runtimes import check_onnx_runtime
    from jaxpart.export.targets import read_model

    if is_for_jax(arguments.graph):
        params = arguments.param_argnums
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told when the graph was read
            return trace_file(arguments.graph, dims=sizes(arguments.dim), param_argnums=params)
    check_onnx_runtime(arguments.graph)
    return read_model(arguments.graph, sizes(arguments.dim))


def _measured(model: ImportedModel | Trace, path: str, result: Result) -> tuple[Result, str]:
    """The fastest partition by measurement, and a table of those that were measured."""
    from jaxpart.export.measuring.choice import chosen, measured, table
    from jaxpart.results import progress

    total = 1 + len(result.alternatives)
    with progress.counted(sys.stderr, total, "partitions measured") as callback:
        found = measured(model, path, result, callback=callback)
    return chosen(result, found), table(found)


def _islands(arguments: argparse.Namespace) -> Islands | None:
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if all(value is None for value in given):
        return None
    if any(value is None for value in given):
        raise InputError("islands need all of --coordinator, --processes and --process, or none")
    from jaxpart.runtime.islands import Islands

    return Islands(*given)


def _stem(name: str) -> str:
    """The name of a graph and a module as the beginning of a file's name, at most 200 bytes."""
    return re.sub(r"[^\w.+-]+", "-", name).encode()[:200].decode(errors="ignore")


def _enumerated(files: list[Path]) -> str:
    """Names in a sentence: a, b and c."""
    *first, last = map(str, files)
    return f"{', '.join(first)} and {last}" if first else last


def _outputs(arguments: argparse.Namespace, stem: str) -> tuple[Path, Path, Path | None]:
    """The files for the result, the picture and the graph, found to be writable before a search.

    The graph has one where it is asked for, or where operations may be split.
    `--init` may be replaced by the result, which is at least as good.
    """
    named = (arguments.mcm, arguments.policy, arguments.seconds)
    inputs = [arguments.graph, *filter(None, named)]
    out = check_writable(f"{stem}.result.json" if arguments.out is None else arguments.out, inputs)
    plot = check_writable(
        f"{stem}.png" if arguments.plot is None else arguments.plot,
        [*inputs, *filter(None, [arguments.init])],
    )
    saved = arguments.save_graph
    if saved is None and arguments.split != "off":
        saved = out.with_name(f"{out.stem}.graph.json.gz")
    if saved is not None:
        saved = check_writable(saved, [*inputs, *filter(None, [arguments.init])])
        if saved.resolve() in (out.resolve(), plot.resolve()):
            raise InputError(
                f"{saved}: named for the graph and for another file, expected two files"
            )
    if out.resolve() == plot.resolve() or (out.exists() and plot.exists() and out.samefile(plot)):
        raise InputError(f"{out}: named for both the result and the picture, expected two files")
    return out, plot, saved
