"""Access to the shipped graphs by name and by split."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxpart.datasets import manifest
from jaxpart.datasets.manifest import Entry, Manifest
from jaxpart.errors import InputError
from jaxpart.ingest.load import load_with_module, refuse_options
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM

SPLITS = ("train", "valid", "test", "extra")
_SUFFIX = ".json.gz"
_MOST_SUGGESTIONS = 5
# An installed package contains the graphs; in a checkout they are next to the package.
_FOLDERS = (
    Path(__file__).parents[1] / "data" / "graphs",
    Path(__file__).parents[2] / "data" / "graphs",
)


def names() -> list[str]:
    """The names of the shipped graphs, sorted."""
    return sorted(_files())


def split(side: str) -> list[str]:
    """The names of the graphs of one split.

    All graphs of a family of architectures are in the same split.

    Args:
      side: "train" (to train on), "valid" (to select with), "test" (to report on), or "extra"
        (for none of these).

    Raises:
      InputError: no split has this name.
    """
    if side not in SPLITS:
        raise InputError(f"no side of the split is named {side!r}, expected {', '.join(SPLITS)}")
    return [entry.name for entry in contents().graphs if entry.split == side]


def contents() -> Manifest:
    """The manifest of the shipped graphs: source, configuration, sizes, structure, hash, split.

    Raises:
      InputError: the manifest cannot be read.
      FileFormatError: the manifest breaks its schema.
    """
    return _contents(_folder())


def entry(name: str) -> Entry:
    """The manifest entry of one shipped graph.

    Raises:
      InputError: no graph has this name.
    """
    found = next((entry for entry in contents().graphs if entry.name == name), None)
    if found is None:
        raise InputError(_unknown(name))
    return found


def load(name: str) -> Graph:
    """Loads a shipped graph.

    Raises:
      InputError: no graph has this name; the message lists similar names.
    """
    files = _files()
    if name not in files:
        raise InputError(_unknown(name))
    return Graph.load(files[name])


def is_shipped(name: str) -> bool:
    """Whether a graph with this name comes with jaxpart; `resolve` prefers it to a file."""
    return name in _files()


def resolve(
    name_or_path: str,
    *,
    dims: Mapping[str, int] | None = None,
    param_argnums: Sequence[int] = (),
) -> tuple[Graph, MCM | None]:
    """Loads a shipped graph by its name, or a graph from a file.

    Args:
      name_or_path: name of a shipped graph, or path of a file that `load_with_module` reads.
      dims: sizes of the free dimensions of an ONNX model, by name.
      param_argnums: positions of the arguments of a StableHLO module or exported JAX function that
        are parameters.

    Returns:
      The graph, and the module if the file contains one (else None).

    Raises:
      InputError: there is no such graph and no such readable file of a known format.
    """
    if is_shipped(name_or_path):
        refuse_options(name_or_path, dims, param_argnums)
        return load(name_or_path), None
    if not os.path.exists(name_or_path):
        raise InputError(f"{name_or_path!r} is no file, and {_unknown(name_or_path)}")
    return load_with_module(name_or_path, dims=dims, param_argnums=param_argnums)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, names(), _MOST_SUGGESTIONS, cutoff=0.5)
    hint = f"perhaps {', '.join(close)}" if close else "--help lists them"
    return f"no shipped graph is named {name!r} ({hint})"


def _folder() -> Path:
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[-1])


def _files() -> dict[str, Path]:
    return {path.name.removesuffix(_SUFFIX): path for path in _folder().glob(f"*{_SUFFIX}")}


@functools.cache
def _contents(folder: Path) -> Manifest:
    return manifest.read(folder / manifest.FILE)
