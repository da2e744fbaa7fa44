"""The manifest of a folder of graphs: the source and the properties of each graph."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import msgspec

from jaxpart.errors import FileFormatError
from jaxpart.files import decode_json, read_bytes, write_whole

FILE = "manifest.json"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph of the data set. Costs are per inference at batch size 1."""

    name: str  # of the graph; the file is NAME.json.gz
    family: str  # architectures with the same structure
    kind: Literal["cnn", "rnn", "transformer", "moe"]
    split: Literal["train", "valid", "test", "extra"]  # the same for a whole family
    source: str  # package that defines the layers, by its pip name
    source_version: str
    jax_version: str  # of the trace
    license: str  # of the source, an SPDX identifier
    config: str  # layers and sizes, in words
    fused: bool  # True: one node per kernel of a compiler; False: one node per primitive
    counting: str  # how nodes, FLOPs and bytes are counted, in words
    nodes: int
    edges: int  # pairs of a tensor and one of its consumers
    weights: int  # number of weights
    weight_mib: float  # MiB of all weights
    gflop: float  # 1e9 FLOP of all nodes
    depth: int  # number of nodes on the longest path
    width: int  # number of nodes of the largest antichain
    ideals: int | None  # ideals (down-sets), the empty one included; None: above ideals_limit
    ideals_limit: int  # where the count of ideals stops
    largest_flops_share: float  # of the node with the most FLOPs, in the FLOPs of all nodes
    largest_time_share: float  # of the slowest node, in the time of all nodes, on a chip of mcm36
    topology: str  # `topology_hash` in problem/structure.py
    sha256: str  # hash of the file
    bytes: int  # size of the file


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All graphs of a folder, sorted by name."""

    graphs: tuple[Entry, ...]
    format: Literal["jaxpart-manifest"]
    version: Literal[1]

    def __getitem__(self, name: str) -> Entry:
        """The entry of one graph.

        Raises:
          KeyError: no graph has this name.
        """
        return {entry.name: entry for entry in self.graphs}[name]


def manifest(entries: Iterable[Entry]) -> Manifest:
    """Makes a manifest of these entries and sorts them by name."""
    ordered = tuple(sorted(entries, key=lambda entry: entry.name))
    return Manifest(ordered, "jaxpart-manifest", 1)


def read(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: the file breaks the schema, or names a graph twice.
    """
    found = decode_json(read_bytes(path), Manifest, path)
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
    """Writes a manifest with one key per line, in the order of the schema.

    The fixed layout keeps differences between versions of the file short.

    Raises:
      InputError: the folder does not exist or cannot be written.
    """
    fields = {
        "format": contents.format,
        "version": contents.version,
        "graphs": [msgspec.structs.asdict(entry) for entry in contents.graphs],
    }
    write_whole(path, msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n")
