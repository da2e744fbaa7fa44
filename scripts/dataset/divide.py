"""Adds to the graphs under data/graphs how their nodes can be divided; nothing else changes.

  pip install -e .[dataset]
  python scripts/dataset/divide.py                    # all graphs
  python scripts/dataset/divide.py --only vgg16 gnmt  # these

Each model is traced again, a few in one process. Its nodes and tensors must be those of the shipped
graph; a graph that differs is named and left as it is. Weights are matched by their
consumers. One that has no match is held whole by every part, as far as the file says.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from models import catalog

from jaxpart.arguments import file_path
from jaxpart.datasets import manifest
from jaxpart.errors import InputError
from jaxpart.ingest.rewrite.divisions import renumbered, with_divisions
from jaxpart.ingest.rewrite.fuse import fuse
from jaxpart.problem.graph import Graph

_TOGETHER = 12  # models in one process: imports take longer than most traces
FOLDER = Path(__file__).parents[2] / "data" / "graphs"


def main() -> int:
    """Adds divisions to the shipped graphs.

    Returns:
      Exit code 1 if a graph was left as it is, else 0.

    Raises:
      InputError: there is no such graph, or the manifest is missing or damaged.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these graphs")
    parser.add_argument("--folder", type=file_path, default=FOLDER, help="default: data/graphs")
    parser.add_argument("--trace", metavar="FOLDER", type=file_path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trace:
        for name in arguments.only:
            traced(name).save(_file(arguments.trace, name))
        return 0
    path = arguments.folder / manifest.FILE
    entries = {entry.name: entry for entry in manifest.read(path).graphs}
    unknown = {*(arguments.only or ())} - {*entries}
    if unknown:
        raise InputError(f"no graph is named {', '.join(sorted(unknown))}")
    left = 0
    for name, built in _all_traced(arguments.only or list(entries)):
        file = _file(arguments.folder, name)
        try:
            graph, unmatched = divided(Graph.load(file), built)
        except ValueError as error:
            print(f"{name:<26} left as it is: {error}", flush=True)
            left += 1
            continue
        graph.save(file)
        content = file.read_bytes()
        before = entries[name].bytes
        entries[name] = msgspec.structs.replace(
            entries[name], sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)
        )
        manifest.write(path, manifest.manifest(entries.values()))
        ways = sum(len(node.divide) for node in graph.nodes)
        note = f", {unmatched} weights without a match" if unmatched else ""
        print(f"{name:<26} {ways:6} ways, {before} to {len(content)} bytes{note}", flush=True)
    return int(left > 0)


def traced(name: str) -> Graph:
    """The graph of a model as its source gives it today."""
    (model,) = (model for model in catalog.models() if model.name == name)
    graph = model.build()
    return fuse(graph) if model.fused else graph


def _all_traced(names: Sequence[str]) -> Iterator[tuple[str, Graph]]:
    """Yields the graphs that models have today; a few are traced in one fresh process."""
    settings = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    for first in range(0, len(names), _TOGETHER):
        batch = names[first : first + _TOGETHER]
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, __file__, "--trace", folder, "--only", *batch],
                env={**os.environ, **settings},
                check=True,
            )
            for name in batch:
                yield name, Graph.load(_file(Path(folder), name))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json.gz"


def divided(shipped: Graph, built: Graph) -> tuple[Graph, int]:
    """A graph with the divisions of another trace of the same model.

    Args:
      shipped: the graph.
      built: the same nodes and tensors, with divisions.

    Returns:
      The graph, of which only divisions changed; and the number of its weights without a match.

    Raises:
      ValueError: nodes or tensors differ.
    """
    if [(v.name, v.op) for v in shipped.nodes] != [(v.name, v.op) for v in built.nodes]:
        raise ValueError("its nodes differ")
    tensors = [(k.producer, k.consumers) for k in shipped.tensors]
    if tensors != [(k.producer, k.consumers) for k in built.tensors]:
        raise ValueError("its tensors differ")
    weights = _matched_weights(shipped, built)
    same = {k: k for k in range(len(tensors))}
    nodes = tuple(
        with_divisions(old, renumbered(new.divide, same, weights))
        for old, new in zip(shipped.nodes, built.nodes, strict=True)
    )
    unmatched = len(shipped.weights) - len(set(weights.values()))
    return dataclasses.replace(shipped, nodes=nodes), unmatched


def _matched_weights(shipped: Graph, built: Graph) -> dict[int, int]:
    """Weight of the built graph -> the one of the shipped graph with the same consumers.

    Several weights with the same consumers are matched in their order, if they have the same bytes
    in both graphs.
    """
    by_consumers: list[dict[tuple[int, ...], list[int]]] = []
    for graph in (shipped, built):
        groups = collections.defaultdict(list)
        for w, weight in enumerate(graph.weights):
            groups[weight.consumers].append(w)
        by_consumers.append(groups)
    matched = {}
    for consumers, olds in by_consumers[0].items():
        news = by_consumers[1].get(consumers, [])
        sizes = [
            [graph.weights[w].bytes for w in group]
            for graph, group in ((shipped, olds), (built, news))
        ]
        if sizes[0] == sizes[1]:
            matched.update(zip(news, olds, strict=True))
    return matched


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
