"""The graphs that come with jaxpart: real architectures, by name and by side of the split."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path

from jaxpart.datasets import manifest
from jaxpart.datasets.manifest import Entry, Manifest
from jaxpart.errors import InputError
from jaxpart.ingest.load import load_with_machine
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM

SPLITS = ("train", "valid", "test", "extra")
_SUFFIX = ".json.gz"
_MOST_SUGGESTIONS = 5
# In an installed package the graphs lie inside it, in a checkout beside it.
_FOLDERS = (
    Path(__file__).parents[1] / "data" / "graphs",
    Path(__file__).parents[2] / "data" / "graphs",
)


def names() -> list[str]:
    """The names of the shipped graphs, sorted."""
    return sorted(_files())


def split(side: str) -> list[str]:
    """The names of the graphs on one side: "train", "valid", "test", or "extra" (outside of it).

    A family of architectures stands on one side. Train on "train", select on "valid", and report
    on "test".

    Raises:
      InputError: there is no such side.
    """
    if side not in SPLITS:
        raise InputError(f"no side of the split is named {side!r}, expected {', '.join(SPLITS)}")
    return [entry.name for entry in contents().graphs if entry.split == side]


def contents() -> Manifest:
    """What is known of each graph: source, configuration, sizes, shape, hash, side of the split.

    Raises:
      FileFormatError: the manifest is damaged.
    """
    return _contents(_folder())


def entry(name: str) -> Entry:
    """What is known of one shipped graph.

    Raises:
      InputError: no graph has this name.
    """
    found = next((entry for entry in contents().graphs if entry.name == name), None)
    if found is None:
        raise InputError(_unknown(name))
    return found


def load(name: str) -> Graph:
    """A shipped graph.

    Raises:
      InputError: no graph has this name; the message names those that come near.
    """
    files = _files()
    if name not in files:
        raise InputError(_unknown(name))
    return Graph.load(files[name])


def resolve(
    name_or_path: str, *, dims: Mapping[str, int] | None = None
) -> tuple[Graph, MCM | None]:
    """A shipped graph, or one from a file together with the machine that the file may bring.

    Raises:
      InputError: neither a shipped graph nor a readable file of a known format.
    """
    if name_or_path in _files():
        return load(name_or_path), None
    if not Path(name_or_path).exists():
        raise InputError(f"{name_or_path!r} is no file, and {_unknown(name_or_path)}")
    return load_with_machine(name_or_path, dims=dims)


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
