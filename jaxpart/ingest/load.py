"""Loads graph files of every format; the content decides the format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import msgspec

from jaxpart import errors
from jaxpart.files import decode_json, opened, read_bytes, sha256_of, uncompressed, without_mark
from jaxpart.ingest import max_load, pipedream
from jaxpart.ingest.stablehlo import marks
from jaxpart.problem.graph import Graph, decode
from jaxpart.problem.mcm import MCM

ZIP = b"PK\x03\x04"


def load_graph(
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    param_argnums: Sequence[int] = (),
) -> Graph:
    """Loads the graph in a file.

    The formats are jaxpart's JSON, max-load JSON, a PipeDream profile, ONNX, StableHLO (text,
    bytecode, a portable artifact) and what `jax.export` serializes, each of which can be gzipped,
    and what `torch.export` saves (`.pt2`).

    Args:
      path: of the file.
      dims: sizes of the free dimensions of an ONNX model or a `.pt2`, by name.
      param_argnums: positions of the arguments of a StableHLO module or exported JAX function that
        are parameters, as in `jaxpart.from_stablehlo`.

    Raises:
      InputError: the file cannot be read, has an unknown format, or breaks its format; the message
        names the file and the place in it.
    """
    return load_with_module(path, dims=dims, param_argnums=param_argnums)[0]


def load_instance(path: str | os.PathLike[str]) -> tuple[Graph, MCM]:
    """Loads the graph and the module in a file that contains both: a max-load input.

    Raises:
      InputError: as for `load_graph`, or the file contains no module.
    """
    graph, mcm = load_with_module(path)
    if mcm is None:
        raise errors.InputError(
            f"{path}: brings no module, expected a max-load input; load_graph reads the graph alone"
        )
    return graph, mcm


def load_with_module(
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    param_argnums: Sequence[int] = (),
) -> tuple[Graph, MCM | None]:
    """Loads the graph in a file, and the module if the file contains one (else None).

    Args and errors are those of `load_graph`.
    """
    if is_archive(path):  # its weights can be larger than any other file, and are not read
        refuse_options(path, None, param_argnums)
        from jaxpart.ingest.pt2.importer import from_pt2

        return from_pt2(path, dims=dims), None
    content = without_mark(uncompressed(read_bytes(path), path))
    if not content.strip():
        raise errors.FileFormatError(f"{path}: the file is empty, expected a graph")
    if content.lstrip()[:1] in (b"{", b"["):
        refuse_options(path, dims, param_argnums)
        return _from_json(content, path)
    if pipedream.is_profile(content):
        refuse_options(path, dims, param_argnums)
        return pipedream.decode(content, path), None
    if marks.is_module(content) or marks.is_exported(content):
        refuse_options(path, dims, ())
        from jaxpart.ingest.stablehlo.importer import from_stablehlo_bytes

        return from_stablehlo_bytes(content, path, param_argnums), None
    refuse_options(path, None, param_argnums)
    if _is_text(content) and not os.fspath(path).endswith(".onnx"):
        raise errors.FileFormatError(
            f"{path}: line 1: expected a graph: JSON (jaxpart or max-load), a PipeDream profile, "
            "an ONNX model, a StableHLO module or what torch.export saves"
        )
    from jaxpart.ingest.onnx.importer import from_onnx_bytes

    return from_onnx_bytes(content, path, dims=dims), None


def model_sha256(path: str | os.PathLike[str]) -> str | None:
    """The SHA-256 of a file that holds a model; None for one that holds a graph alone.

    External data of an ONNX model is in other files, and does not count. A gzipped model has the
    hash of what is compressed.

    Raises:
      InputError: the file cannot be read.
    """
    if is_archive(path):
        return sha256_of(path)
    content = uncompressed(read_bytes(path), path)
    text = without_mark(content).lstrip()
    if not text or text[:1] in (b"{", b"[") or pipedream.is_profile(text):
        return None
    return hashlib.sha256(content).hexdigest()


def refuse_options(
    where: str | os.PathLike[str],
    dims: Mapping[str, int] | None,
    param_argnums: int | Sequence[int],
) -> None:
    """Refuses options that a graph has no use for.

    Args:
      where: name of the graph or its file, for the message.
      dims: sizes of dimensions; none may be given for a graph whose sizes are all known.
      param_argnums: positions of parameters; none may be given where the file itself tells them.

    Raises:
      InputError: there are some.
    """
    if dims:
        raise errors.InputError(
            f"{where}: its sizes are all known, expected sizes of dimensions for an ONNX model "
            f"alone, but got {', '.join(dims)}"
        )
    if param_argnums or param_argnums == 0:
        raise errors.InputError(
            f"{where}: says itself what its parameters are, expected param_argnums for StableHLO "
            "and for what jax.export serializes alone"
        )


def _from_json(content: bytes, path: str | os.PathLike[str]) -> tuple[Graph, MCM | None]:
    keys = decode_json(content, dict[str, msgspec.Raw], path, expected="; expected a graph").keys()
    if "format" not in keys and {"maxDevices", "maxMemoryPerDevice"} & keys:
        raise errors.FileFormatError(
            f"{path}: a Piper input (Tarnawski et al., NeurIPS 2021): it describes training with "
            "tensor and data parallelism, expected inference (such as a max-load input)"
        )
    if "format" not in keys and "maxFPGAs" in keys:
        return max_load.decode(content, path)
    return decode(content, path), None


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip, as `torch.export` writes.

    Raises:
      InputError: the file cannot be read.
    """
    with opened(path) as file:
        return file.read(len(ZIP)) == ZIP


def _is_text(content: bytes) -> bool:
    head = content[:1000]
    return head.isascii() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
