"""Builds the graphs under data/graphs and their manifest from the source of their models.

  pip install -e .[dataset]
  python scripts/dataset/build.py                    # graphs that are missing or out of date
  python scripts/dataset/build.py --only vgg16 gnmt  # these models again
  python scripts/dataset/build.py --check            # builds all elsewhere and compares the bytes

A graph is out of date if it was built by other versions or from another configuration. Every model
is traced in a process of its own; nothing is downloaded. A build that was stopped resumes. Graphs
are traced for inference at batch size 1; float tensors count as int8.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from models import catalog

from jaxpart.arguments import file_path, whole_number
from jaxpart.datasets import manifest
from jaxpart.errors import InputError

FOLDER = Path(__file__).parents[2] / "data" / "graphs"
IDEALS_LIMIT = 1_000_000  # where the count of ideals stops
REFERENCE_MODULE = "mcm36"  # module of `largest_time_share`
_RAW = "one node per primitive of the trace that depends on an input; 1 FLOP an element, 2 a MAC"
_FUSED = f"{_RAW}; then elementwise operations, views and layout changes merged (jaxpart.ingest)"


def main() -> int:
    """Builds or checks.

    Returns:
      Exit code 1 if a model failed or differs, else 0.

    Raises:
      InputError: there is no such model, or the manifest is missing or damaged.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="build these models, again")
    parser.add_argument("--check", action="store_true", help="compare with what is shipped")
    parser.add_argument("--jobs", type=whole_number, default=2, help="models at a time (default 2)")
    parser.add_argument("--out", type=file_path, default=FOLDER, help="default: data/graphs")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models = {model.name: model for model in catalog.models()}
    unknown = {*(arguments.only or ()), *([arguments.one] if arguments.one else ())} - {*models}
    if unknown:
        raise InputError(
            f"no model is named {', '.join(sorted(unknown))}; see scripts/dataset/models"
        )
    if arguments.one:
        entry = build(models[arguments.one], arguments.out)
        print(msgspec.json.encode(entry).decode())
        return 0
    chosen = [models[name] for name in arguments.only or models]
    if arguments.check:
        return check(chosen, arguments.out, arguments.jobs)
    return build_all(chosen, arguments.out, arguments.jobs, again=bool(arguments.only))


def build(model: catalog.Model, folder: Path) -> manifest.Entry:
    """Traces one model and writes its graph.

    Args:
      model: to trace.
      folder: of the graph.

    Returns:
      The entry of the manifest.
    """
    from jaxpart.bounds.ideals.pairs import count_ideals
    from jaxpart.ingest.rewrite.fuse import fuse
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem
    from jaxpart.problem.structure import depth, topology_hash, width

    graph = model.build()
    if model.fused:
        graph = fuse(graph)
    path = _file(folder, model.name)
    graph.save(path)
    content = path.read_bytes()
    problem = Problem.build(graph, load_mcm(REFERENCE_MODULE))
    node_s = problem.node_s[:, 0]
    return manifest.Entry(
        name=model.name,
        family=model.family,
        kind=model.kind,
        split=model.split,
        license=model.license,
        config=model.config,
        fused=model.fused,
        **_versions(model),
        counting=_FUSED if model.fused else _RAW,
        nodes=len(graph.nodes),
        edges=graph.num_edges,
        weights=len(graph.weights),
        weight_mib=round(graph.weight_bytes / 2**20, 4),
        gflop=round(graph.total_flops / 1e9, 6),
        depth=depth(graph),
        width=width(graph),
        ideals=count_ideals(problem, IDEALS_LIMIT),
        ideals_limit=IDEALS_LIMIT,
        largest_flops_share=round(max(n.flops for n in graph.nodes) / graph.total_flops, 4),
        largest_time_share=round(float(node_s.max() / node_s.sum()), 4),
        topology=topology_hash(graph),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )


def build_all(models: Sequence[catalog.Model], folder: Path, jobs: int, *, again: bool) -> int:
    """Builds the graphs that are out of date; the manifest is written after every model.

    Args:
      models: to build.
      folder: of the graphs and the manifest; made if it does not exist.
      jobs: models at a time.
      again: whether graphs that are up to date are built too.

    Returns:
      Exit code 1 if a model failed, else 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / manifest.FILE
    entries = {e.name: e for e in manifest.read(path).graphs} if path.exists() else {}
    known = {model.name for model in catalog.models()}
    entries = {name: entry for name, entry in entries.items() if name in known}
    todo = [m for m in models if again or not _is_current(m, entries.get(m.name), folder)]
    print(f"{len(models) - len(todo)} graphs are up to date, {len(todo)} to build")
    failed = []
    for name, entry in _built(todo, folder, jobs):
        if isinstance(entry, str):
            failed.append(f"{name}: {entry}")
            continue
        entries[name] = entry
        manifest.write(path, manifest.manifest(entries.values()))
    total = sum(entry.bytes for entry in entries.values())
    print(f"{len(entries)} graphs, {total / 2**20:.2f} MiB in {folder}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return int(bool(failed))


def check(models: Sequence[catalog.Model], folder: Path, jobs: int) -> int:
    """Builds graphs in a temporary folder and compares them with a folder and its manifest.

    Args:
      models: to build.
      folder: of the shipped graphs.
      jobs: models at a time.

    Returns:
      Exit code 1 if a model failed or differs, else 0.
    """
    shipped = {entry.name: entry for entry in manifest.read(folder / manifest.FILE).graphs}
    different = []
    with tempfile.TemporaryDirectory() as rebuilt:
        for name, entry in _built(models, Path(rebuilt), jobs):
            if isinstance(entry, str):
                different.append(f"{name}: {entry}")
            elif name not in shipped:
                different.append(f"{name}: not in the manifest")
            elif difference := _difference(entry, shipped[name], folder):
                different.append(f"{name}: {difference}")
    for line in different:
        print(line, file=sys.stderr)
    print(f"{len(models) - len(different)} of {len(models)} graphs are what their source builds")
    return int(bool(different))


def _difference(built: manifest.Entry, shipped: manifest.Entry, folder: Path) -> str | None:
    """The first difference between a built graph and the shipped one; None if they are equal."""
    for field in manifest.Entry.__struct_fields__:
        was, now = getattr(shipped, field), getattr(built, field)
        if was != now:
            return f"{field} is {was!r} in the manifest, {now!r} as built"
    if _sha256(_file(folder, shipped.name)) != shipped.sha256:
        return "the file is not the one of the manifest"
    return None


def _built(
    models: Sequence[catalog.Model], folder: Path, jobs: int
) -> Iterator[tuple[str, manifest.Entry | str]]:
    """Builds graphs in parallel; yields the name and the entry or error of each, as they end."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns) as progress,
        concurrent.futures.ThreadPoolExecutor(jobs) as threads,
    ):
        task = progress.add_task("building", total=len(models))
        running = {threads.submit(_in_own_process, m.name, folder): m.name for m in models}
        for future in concurrent.futures.as_completed(running):
            name, entry = running[future], future.result()
            what = entry if isinstance(entry, str) else f"{entry.nodes} nodes"
            progress.console.print(f"{name:<26} {what}", markup=False, highlight=False)
            progress.advance(task)
            yield name, entry


def _in_own_process(name: str, folder: Path) -> manifest.Entry | str:
    """Builds one model in a fresh process; returns its entry, or the error."""
    command = [sys.executable, __file__, "--one", name, "--out", str(folder)]
    # Traces do not depend on the device. keras reads its backend when it is imported.
    settings = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [
            line for line in done.stderr.splitlines() if re.match(r"\w*(Error|Exception)", line)
        ]
        return errors[-1] if errors else f"its process ended with {done.returncode}"
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=manifest.Entry)


def _is_current(model: catalog.Model, entry: manifest.Entry | None, folder: Path) -> bool:
    """Whether the graph of a model exists and has the same versions, configuration and hash."""
    if entry is None:
        return False
    described = ("family", "kind", "split", "license", "config", "fused")
    if any(getattr(entry, field) != getattr(model, field) for field in described):
        return False
    if any(getattr(entry, field) != value for field, value in _versions(model).items()):
        return False
    path = _file(folder, model.name)
    return path.exists() and _sha256(path) == entry.sha256


def _versions(model: catalog.Model) -> dict[str, str]:
    """The source and versions of a model, as in the manifest."""
    return {
        "source": model.source,
        "source_version": importlib.metadata.version(model.source),
        "jax_version": importlib.metadata.version("jax"),
    }


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json.gz"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
