"""Benchmark: time to quality against rivals, and growth of `auto`; JSON, tables and pictures.

  python scripts/benchmark.py                        # everything, into data/benchmarks/
  python scripts/benchmark.py --quick                # a test of all parts, about a minute
  python scripts/benchmark.py --parts quality --graphs hrnet-w18-small las --mcm mcm8 --json a.json
  python scripts/benchmark.py --merge a.json b.json --json all.json --pictures data/benchmarks

*quality* runs every method on every pair of a graph and a module. Each run has a process of its
own, and all runs have the same time limit and the same cores. The clock of a method leaves out
start-up and the compilation before the search (for a rival: the time to state its program). Both
count in "cold s". What `auto` compiles during its searches is on its clock. With `--warm 10` it is
compiled before, as in a process that partitions more than once. Compiled programs are stored for
later runs, as the command stores them. So are those of numba; therefore run `--quick` once after an
installation. "s to 1%" is the time to within 1% of the best partition that any method found for the
pair; a run that never gets there counts as the time limit. "final x" is the final bottleneck over
the best. "no-policy" is `auto` without the policy.

*growth* runs `auto` on a decoder with more and more nodes and chips; see `growth.py`.

Inner loops have scripts of their own: `inner_loops.py` (candidates per second of evaluation,
projection, slicing and probing) and `moves.py` (annealing moves).

Each row is written when it is measured; after Ctrl-C, the same command resumes. A run that dies or
hangs gets a row with the reason. Runs use the first of the cores that this process may use, so two
halves of the graphs can run at the same time, each with its own `--json`:

  taskset -c 0 python scripts/benchmark.py --parts quality --graphs ... --json a.json &
  taskset -c 1 python scripts/benchmark.py --parts quality --graphs ... --json b.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import growth
from child import measure
from quality_figures import behind_table, judge, method_table, race_table
from rivals import RIVALS, missing
from rows import Row, Rows
from runs import WITHOUT_POLICY

from jaxpart import datasets
from jaxpart.arguments import Parser, file_path, non_negative, whole_number
from jaxpart.files import write_whole
from jaxpart.methods import METHODS

_FOLDER = Path(__file__).parents[2] / "data" / "benchmarks"
# `auto` comes last: what earlier runs have compiled does not count on its clock.
_OURS = ("clusters", "tempering", "slice", "policy", WITHOUT_POLICY, "auto")
_QUICK: dict[str, Any] = {
    "graphs": ["mobilenet-v2", "mobilenet-v3-large", "inception-v3"],
    "mcm": ["mcm8"],
    "methods": ["auto", "clusters", "cpsat"],
    "seconds": 2.0,
    "nodes": [1_000, 3_000],
    "chips": [],
    "growth_seconds": 5.0,
}
_ROW = "{:<22} {:<9} {:>6} {:<11} {:>4} {:>10} {:>8} {:>8} {:>9} {:>8}  {}"
_HEAD = (
    *("graph", "mcm", "nodes", "method", "seed", "T us", "gap %", "start s", "compile s"),
    *("search s", ""),
)
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing; prints tables and draws pictures.

    Args:
      argv: arguments of the command; None: those of the process.

    Returns:
      Exit code: 0, or 130 after Ctrl-C.

    Raises:
      InputError: a graph or module does not exist, or a file was made with other settings.
    """
    arguments = _arguments(argv)
    if arguments.merge:
        rows = Rows.merged(arguments.merge, arguments.json)
        rows.write()
        _show(rows, arguments.pictures)
        return 0
    names = ("seconds", "growth_seconds", "threads")
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.warm:
        settings["warm_s"] = arguments.warm
    rows = Rows(arguments.json, settings)
    code = 0
    try:
        if "quality" in arguments.parts:
            _quality(rows, arguments)
        if "growth" in arguments.parts:
            print("\ngrowth")
            base = (arguments.base_nodes, arguments.base_chips)
            growth.run(rows, arguments.nodes, arguments.chips, base, threads=arguments.threads)
    except KeyboardInterrupt:
        print(f"interrupted: {len(rows.rows)} rows are in {rows.path}", file=sys.stderr)
        code = _INTERRUPTED
    _show(rows, arguments.pictures)
    return code


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line; sets the defaults that depend on other arguments."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=("quality", "growth"), default=["quality", "growth"])
    graphs = [*datasets.split("test"), "bert-large"]
    add("--graphs", nargs="+", default=graphs, metavar="GRAPH", help="(the test split, bert-large)")
    add("--mcm", nargs="+", default=["mcm8", "mcm36"], metavar="NAME_OR_TOML")
    methods, choices = [*_OURS, *RIVALS], [*METHODS, WITHOUT_POLICY, *RIVALS]
    add("--methods", nargs="+", choices=choices, default=methods, metavar="METHOD")
    add("--seconds", type=non_negative, default=20.0, help="of each run (20)")
    warm = "of `auto` on the pair before each run of it, in the same process (0)"
    add("--warm", type=non_negative, default=0.0, metavar="SECONDS", help=warm)
    add("--threads", type=whole_number, default=1, help="cores of each run (1)")
    add("--seeds", type=whole_number, default=1, help="runs of each method on each pair (1)")
    add("--nodes", type=whole_number, nargs="*", default=[1_000, 3_000, 10_000, 30_000, 100_000])
    add("--chips", type=whole_number, nargs="*", default=[16, 64, 256, 1024])
    add("--base-nodes", type=whole_number, default=30_000, help="of growing chips (30,000)")
    add("--base-chips", type=whole_number, default=256, help="of growing nodes (256)")
    add("--growth-seconds", type=non_negative, default=60.0, help="of each size (60)")
    add("--json", type=file_path, metavar="FILE", help="(data/benchmarks/benchmark.json)")
    add("--pictures", type=file_path, metavar="FOLDER", help="(data/benchmarks, without --json)")
    add(
        "--merge",
        type=file_path,
        nargs="+",
        metavar="FILE",
        help="measure nothing; show these as one",
    )
    add("--quick", action="store_true", help="few, small and short, anew; no pictures")
    # --quick changes the defaults, so arguments on the command line override it.
    if parser.parse_args(argv).quick:
        parser.set_defaults(**_QUICK)
    arguments = parser.parse_args(argv)
    for name in ("seconds", "growth_seconds", "threads", "seeds"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name.replace('_', '-')}: expected a positive number")
    if not arguments.warm >= 0:
        parser.error("--warm: expected no negative number")
    if arguments.json is None and not arguments.merge:
        arguments.json = _FOLDER / f"benchmark{'-quick' * arguments.quick}.json"
        if arguments.quick:
            arguments.json.unlink(missing_ok=True)
        else:
            arguments.pictures = arguments.pictures or _FOLDER
    return arguments


def _quality(rows: Rows, arguments: argparse.Namespace) -> None:
    """Measures every pair, method and seed that has no row yet."""
    methods = list(arguments.methods)
    for rival in [method for method in methods if method in RIVALS]:
        package = missing(rival)
        if package is not None:
            print(f"{rival} is left out: the package {package} is missing (the extra `benchmark`)")
            rows.missing[rival] = package
            methods.remove(rival)
    print(_ROW.format(*_HEAD))
    for name in arguments.graphs:
        for module in arguments.mcm:
            pair = _pair(rows, name, module)
            if "infeasible" in pair:
                print(_line(pair), flush=True)
                continue
            for seed in range(arguments.seeds):
                for method in methods:
                    row = _run(rows, pair, (name, module), method, seed)
                    print(_line(row), flush=True)


def _pair(rows: Rows, name: str, module: str) -> Row:
    """The row of a pair without a method: baseline and program order, or why it is infeasible."""
    from jaxpart.bounds.ideals.pairs import program_order_s
    from jaxpart.bounds.infeasible import why_infeasible
    from jaxpart.cost.greedy import baseline_s_of
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem

    graph, machine = datasets.resolve(name)
    mcm = machine or load_mcm(module)
    key = {"part": "pair", "graph": graph.name, "mcm": mcm.name}
    row = rows.get(**key)
    if row is None:
        problem = Problem.build(graph, mcm)
        row = {**key, "nodes": len(graph.nodes)}
        why = why_infeasible(problem)
        if why is None:
            greedy_s = baseline_s_of(problem)
            row |= {"greedy_s": greedy_s, "program_order_s": program_order_s(problem, greedy_s)}
        else:
            row["infeasible"] = why
        rows.add(row)
    return row


def _run(rows: Rows, pair: Row, names: tuple[str, str], method: str, seed: int) -> Row:
    """The row of one run, measured if it is not there yet."""
    key = {"part": "quality", "graph": pair["graph"], "mcm": pair["mcm"]}
    key |= {"method": method, "seed": seed}
    row = rows.get(**key)
    if row is None:
        seconds, threads = rows.settings["seconds"], rows.settings["threads"]
        arguments = {
            **{"graph": names[0], "mcm": names[1], "method": method, "seed": seed},
            **{"seconds": seconds, "threads": threads, "began": time.time()},
            "warm_s": rows.settings.get("warm_s", 0.0),
        }
        answer = measure(
            # The time limit is long: stating the largest program takes minutes on a busy core.
            *("runs", "by_method", arguments),
            threads=threads,
            limit_s=10 * seconds + 300,
        )
        row = {**key, "nodes": pair["nodes"], "history": [], "cold_history": [], **answer}
        rows.add(row)
    return row


def _show(rows: Rows, pictures: Path | None) -> None:
    """Prints the tables and writes them next to the JSON; draws the pictures.

    Args:
      rows: of all parts.
      pictures: folder; None: no pictures.
    """
    limit_s = rows.settings["seconds"]
    quality = [row for row in rows.rows if row["part"] in ("pair", "quality")]
    judged = judge(quality, limit_s)
    lines = []
    if judged:
        others = [m for m in dict.fromkeys(run.method for run in judged) if m != "auto"]
        threads = rows.settings["threads"]
        warm_s = rows.settings.get("warm_s")
        warmed = f", auto after {warm_s:g} s of the same" if warm_s else ""
        lines += ["", f"time to quality: {limit_s:g} s, {threads} core(s) each{warmed}"]
        lines += method_table(judged)
        lines += ["", *race_table(judged, "auto", others), "", *behind_table(judged, "auto")]
    for rival, package in rows.missing.items():
        lines.append(f"{rival}: not measured, the package {package} was missing")
    for row in quality:
        if "died" in row:
            lines.append(f"{row['graph']} {row['mcm']} {row['method']}: died, {row['died']}")
    if any(row["part"] == "growth" for row in rows.rows):
        seconds = rows.settings["growth_seconds"]
        lines += ["", f"growth: auto, {seconds:g} s each", *growth.table(rows.rows)]
    print("\n".join(lines))
    if rows.path is not None:
        write_whole(rows.path.with_suffix(".txt"), "\n".join([*lines, ""]).lstrip().encode())
    if pictures is not None:
        from quality_pictures import draw_growth, draw_quality

        if judged:
            draw_quality(judged, pictures / "time-to-quality.png")
        draw_growth(rows.rows, pictures / "growth.png")


def _line(row: Row) -> str:
    """A row as a line of the console."""
    start = (row["graph"][:22], row["mcm"], row["nodes"], row.get("method", ""))
    why = next((f"{key}: {row[key]}" for key in ("died", "infeasible") if key in row), None)
    if why is not None:
        return "{:<22} {:<9} {:>6} {:<11} {}".format(*start, why)
    final_s, bound_s = row.get("bottleneck_s"), row.get("lower_bound_s")
    return _ROW.format(
        *start,
        row["seed"],
        f"{final_s * 1e6:.2f}" if final_s else "-",
        f"{100 * (final_s / bound_s - 1):.2f}" if final_s and bound_s else "-",
        *(f"{row[name]:.2f}" for name in ("start_s", "compile_s", "search_s")),
        "proven" if row.get("is_proven") else "",
    ).rstrip()
