"""Pairs of graphs and modules, and a JSON file of one row per pair, for `compare` and `certify`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpart import datasets
from jaxpart.bounds.ideals.classes import CLASSES, class_of
from jaxpart.errors import InputError
from jaxpart.files import write_whole

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph
    from jaxpart.problem.mcm import MCM
    from jaxpart.problem.problem import IntArray, Problem

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser, modules: Sequence[str]) -> None:
    """Adds graphs, `--split` and `--mcm`; `names_in` and `pairs` read them.

    Args:
      parser: of the study.
      modules: default of `--mcm`.
    """
    add = parser.add_argument
    add("graphs", nargs="*", metavar="GRAPH")
    add("--split", nargs="+", choices=datasets.SPLITS, default=[], help="all graphs of these sides")
    add("--mcm", nargs="+", default=list(modules), metavar="NAME_OR_TOML")


def names_in(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The graphs that the arguments name; exits with code 2 where they name none."""
    names = [*arguments.graphs, *(n for side in arguments.split for n in datasets.split(side))]
    if not names:
        parser.error("expected a GRAPH or --split")
    return names


def identity(problem: Problem) -> Row:
    """What every row says of its pair: graph, module, nodes and class."""
    return {
        "graph": problem.graph.name,
        "mcm": problem.mcm.name,
        "nodes": problem.num_nodes,
        "class": class_of(problem),
    }


def greedy_start(graph_name: str, mcm_name: str) -> tuple[Problem, IntArray]:
    """The problem of a pair, and the baseline [N], from which a study starts.

    Raises:
      InputError: there is no such graph or module, or there is no baseline.
    """
    from jaxpart.cost.greedy import baseline
    from jaxpart.problem.problem import Problem

    graph, mcm = next(pairs([graph_name], [mcm_name]))
    problem = Problem.build(graph, mcm)
    start = baseline(problem)
    if start is None:
        raise InputError(f"{graph.name} on {mcm.name}: greedy finds nothing valid to start from")
    return problem, start


def pairs(names: Sequence[str], modules: Sequence[str]) -> Iterator[tuple[Graph, MCM]]:
    """Pairs every graph with every module.

    Args:
      names: of shipped graphs, or files.
      modules: presets or files. A graph that brings its own machine is paired with that one alone.

    Yields:
      The pairs, graph by graph.

    Raises:
      InputError: there is no such graph or module, or it is damaged.
    """
    from jaxpart.problem.mcm import load_mcm

    loaded = [load_mcm(name) for name in modules]
    for name in names:
        graph, machine = datasets.resolve(name)
        for mcm in [machine] if machine else loaded:
            yield graph, mcm


class Rows:
    """Rows of a JSON file, one per pair, so that a run that was stopped resumes."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """Reads the rows of an earlier run.

        Args:
          path: of the file, which need not exist; None: rows are not written.
          settings: all settings that rows depend on.

        Raises:
          InputError: the file was made with other settings.
        """
        self._path, self._settings = path, settings
        self._rows: list[Row] = []
        if path is not None and path.exists():
            document = json.loads(path.read_bytes())
            if document.get("settings") != settings:
                raise InputError(
                    f"{path}: made with {document.get('settings')}, expected {settings}"
                )
            self._rows = document["rows"]
        self._done = {(row["graph"], row["mcm"]): row for row in self._rows}

    def get(self, graph: Graph, mcm: MCM) -> Row | None:
        """The row of a pair; None if there is none."""
        return self._done.get((graph.name, mcm.name))

    def add(self, row: Row) -> None:
        """Adds a row and writes the file."""
        from jaxpart.environment import environment

        self._rows.append(row)
        self._done[row["graph"], row["mcm"]] = row
        if self._path is not None:
            document = {
                "environment": environment(),
                "settings": self._settings,
                "rows": self._rows,
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(document, indent=1).encode() + b"\n")


def by_module_and_class(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups rows by module and by class of the graph.

    Args:
      rows: with "mcm" and "class".

    Yields:
      (module, class, rows) for each group that is not empty; "all" comes last in both. With one
      module there is no group of all modules.
    """
    modules = list(dict.fromkeys(row["mcm"] for row in rows))
    for module in (*modules, "all") if len(modules) > 1 else modules:
        for kind in (*CLASSES, "all"):
            chosen = [
                row
                for row in rows
                if module in (row["mcm"], "all") and kind in (row["class"], "all")
            ]
            if chosen:
                yield module, kind, chosen
