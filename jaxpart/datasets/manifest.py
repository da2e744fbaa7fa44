"""The table of contents of a folder of graphs: where each comes from, what it looks like."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import msgspec

from jaxpart.errors import FileFormatError
from jaxpart.files import read_bytes, write_whole

FILE = "manifest.json"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph of the data set; costs are per inference at batch 1."""

    name: str  # of the graph; its file is NAME.json.gz
    family: str  # architectures that share their structure
    kind: Literal["cnn", "rnn", "transformer", "moe"]
    split: Literal["train", "valid", "test", "extra"]  # a family stands on one side
    source: str  # package that defines the layers, as named for pip
    source_version: str
    jax_version: str  # that traced it
    license: str  # of the source, SPDX
    config: str
    fused: bool  # at the granularity of a compiler's kernels, or one node per primitive
    counting: str  # the rule behind nodes, FLOPs and bytes, in a sentence
    nodes: int
    edges: int  # pairs of a tensor and one of its consumers
    weights: int
    weight_mib: float
    gflop: float
    depth: int  # nodes on the longest path
    width: int  # nodes of the largest antichain
    ideals: int | None  # down-sets, the empty one included; None: more than ideals_limit
    ideals_limit: int
    largest_flops_share: float  # of the node with the most FLOPs
    largest_time_share: float  # of the slowest node, on a chip of mcm36
    topology: str  # hash of nodes and edges alone (`structure.topology_hash`)
    sha256: str  # of the file
    bytes: int  # of the file


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All graphs of a folder, by name."""

    graphs: tuple[Entry, ...]
    format: Literal["jaxpart-manifest"]
    version: Literal[1]

    def __getitem__(self, name: str) -> Entry:
        """The entry of one graph; KeyError where there is none."""
        return {entry.name: entry for entry in self.graphs}[name]


def manifest(entries: Iterable[Entry]) -> Manifest:
    """A manifest of these entries, sorted by name."""
    ordered = tuple(sorted(entries, key=lambda entry: entry.name))
    return Manifest(ordered, "jaxpart-manifest", 1)


def read(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: it breaks the schema, or names a graph twice.
    """
    try:
        found = msgspec.json.decode(read_bytes(path), type=Manifest)
    except msgspec.DecodeError as error:
        raise FileFormatError(f"{path}: {error}") from error
    names: set[str] = set()
    for position, entry in enumerate(found.graphs):
        if entry.name in names:
            raise FileFormatError(
                f"{path}: graphs[{position}] is named {entry.name!r} like another, "
                "expected each graph once"
            )
        names.add(entry.name)
    return found


def write(path: str | os.PathLike[str], contents: Manifest) -> None:
    """Writes a manifest: keys of schema order, one a line, so that versions can be compared."""
    fields = {
        "format": contents.format,
        "version": contents.version,
        "graphs": [msgspec.structs.asdict(entry) for entry in contents.graphs],
    }
    write_whole(path, msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n")
