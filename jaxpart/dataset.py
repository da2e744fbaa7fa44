"""The graphs that come with jaxpart, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxpart.errors import InputError
from jaxpart.graph import Graph
from jaxpart.ingest.load import load_graph
from jaxpart.mcm import MCM

_SUFFIX = ".json.gz"
# In an installed package the graphs lie inside it, in a checkout beside it.
_FOLDERS = (
    Path(__file__).parent / "data" / "graphs",
    Path(__file__).parents[1] / "data" / "graphs",
)


def names() -> list[str]:
    """The names of the shipped graphs, sorted."""
    return sorted(_files())


def load(name: str) -> Graph:
    """A shipped graph.

    Raises:
      InputError: no graph has this name; the message lists those that there are.
    """
    files = _files()
    if name not in files:
        raise InputError(f"no graph is named {name!r}, expected one of: {', '.join(sorted(files))}")
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
        raise InputError(
            f"{name_or_path!r} is neither a file nor a shipped graph ({', '.join(names())})"
        )
    return load_graph(name_or_path, dims=dims)


def _files() -> dict[str, Path]:
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[-1])
    return {path.name.removesuffix(_SUFFIX): path for path in folder.glob(f"*{_SUFFIX}")}
