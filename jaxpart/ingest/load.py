"""Graph files of every format, recognised by their content."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from jaxpart import errors
from jaxpart.files import read_bytes
from jaxpart.ingest import max_load, pipedream
from jaxpart.problem.graph import Graph, decode, uncompressed
from jaxpart.problem.mcm import MCM


def load_graph(path: str | os.PathLike[str], *, dims: Mapping[str, int] | None = None) -> Graph:
    """The graph in a file: jaxpart's JSON, gzipped or not, max-load JSON, PipeDream or ONNX.

    Args:
      path: of the file.
      dims: sizes of the free dimensions of an ONNX model.

    Raises:
      InputError: the file cannot be read, is of no known format, or breaks its own; the message
        names it and the place.
    """
    return load_with_machine(path, dims=dims)[0]


def load_instance(path: str | os.PathLike[str]) -> tuple[Graph, MCM]:
    """The graph and the module in a file that brings both: a max-load input.

    Raises:
      InputError: as `load_graph`, or the file brings no module.
    """
    graph, mcm = load_with_machine(path)
    if mcm is None:
        raise errors.InputError(
            f"{path}: brings no module, expected a max-load input; load_graph reads the graph alone"
        )
    return graph, mcm


def load_with_machine(
    path: str | os.PathLike[str], *, dims: Mapping[str, int] | None = None
) -> tuple[Graph, MCM | None]:
    """As `load_graph`, with the module where the file brings one."""
    content = uncompressed(read_bytes(path), path)
    if not content.strip():
        raise errors.FileFormatError(f"{path}: the file is empty, expected a graph")
    if content.lstrip()[:1] in (b"{", b"["):
        return _from_json(content, path)
    if pipedream.is_profile(content):
        return pipedream.decode(content, path), None
    if _is_text(content) and not os.fspath(path).endswith(".onnx"):
        raise errors.FileFormatError(
            f"{path}: line 1: expected a graph: JSON (jaxpart or max-load), a PipeDream profile or "
            "an ONNX model"
        )
    from jaxpart.ingest.onnx.importer import from_onnx_bytes

    return from_onnx_bytes(content, path, dims=dims), None


def _from_json(content: bytes, path: str | os.PathLike[str]) -> tuple[Graph, MCM | None]:
    try:
        keys = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).keys()
    except msgspec.DecodeError as error:
        raise errors.FileFormatError(f"{path}: {error}") from error
    if "format" not in keys and "maxFPGAs" in keys:
        return max_load.decode(content, path)
    return decode(content, path), None


def _is_text(content: bytes) -> bool:
    head = content[:1000]
    return head.isascii() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
