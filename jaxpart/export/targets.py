"""What a partition can be taken away as."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.checked import Partition, checked_result
from jaxpart.export.manifest import RESULT, TARGETS, Manifest, check_folder, write_stages
from jaxpart.export.onnx.annotated import annotated
from jaxpart.export.onnx.stages import onnx_stages
from jaxpart.files import check_writable, read_bytes, uncompressed, without_mark, write_whole
from jaxpart.ingest.onnx.importer import ImportedModel, import_model
from jaxpart.ingest.seconds import with_seconds
from jaxpart.problem.mcm import MCM
from jaxpart.results.result import Result


def export(
    model: str | os.PathLike[str],
    partition: Partition,
    *,
    to: str = "onnx",
    out: str | os.PathLike[str],
    mcm: MCM | None = None,
    dims: Mapping[str, int] | None = None,
    seconds: Mapping[str, float] | str | os.PathLike[str] | None = None,
    copy_data: bool = False,
) -> Result:
    """Takes a partition of an ONNX model away.

    The same export twice writes the same bytes. Nothing is half written.

    Args:
      model: the file that was partitioned.
      partition: a `Result` or the file of one; or chips, by the names of the nodes (also as a JSON
        file) or in their order.
      to: "onnx": a folder of stages, as `jaxpart/README.md` describes it. "onnx-annotated": one
        file, the whole model; external data is referred to as in the model and may be missing.
      out: the folder or file to write; one that an earlier export wrote is replaced.
      mcm: the module, where the partition brings none.
      dims: sizes of free dimensions, as for `from_onnx`; those of the partition.
      seconds: measured times of the nodes, as for `with_seconds`; those of the partition.
      copy_data: of stages: copy the parts of external data that each stage reads to a file of its
        own. Else the whole file gets a second name in the folder (a hard link), where the file
        system allows that.

    Returns:
      The partition that was taken away, with its costs.

    Raises:
      InputError: the model cannot be read or imported; the partition is not valid, or was made for
        another graph; data flows to a lower chip; external data is missing (stages alone); or `out`
        cannot be written or is an input.
    """
    if to not in TARGETS:
        raise InputError(f"cannot export to {to!r}, expected {' or '.join(TARGETS)}")
    path = os.fspath(model)
    files = [path, *(f for f in (partition, seconds) if isinstance(f, (str, os.PathLike)))]
    if to == "onnx":
        check_folder(out)
        if Path(out).resolve() in Path(path).resolve().parents:
            raise InputError(f"{out}: holds the model ({path}), expected another folder to write")
    else:
        check_writable(out, files)
    imported = read_model(path, dims)
    if seconds is not None:
        timed = with_seconds(imported.graph, seconds)
        imported = dataclasses.replace(imported, graph=timed)
    result = checked_result(imported.graph, partition, mcm, path)
    if to == "onnx":
        write_onnx_stages(imported, result, path, Path(out), copy_data=copy_data)
    else:
        content = annotated(imported, result, path).SerializeToString(deterministic=True)
        write_whole(out, content)
    return result


def write_onnx_stages(
    imported: ImportedModel, result: Result, path: str, folder: Path, *, copy_data: bool = False
) -> Manifest:
    """Writes the folder of stages of an ONNX model; arguments and errors are as in `onnx_stages`.

    Returns:
      The manifest, without hashes.
    """
    manifest, files = onnx_stages(imported, result, path, folder, copy_data=copy_data)
    write_stages(folder, manifest, {**files, RESULT: result.encoded()})
    return manifest


def read_model(path: str, dims: Mapping[str, int] | None) -> ImportedModel:
    """Reads and imports an ONNX file.

    Raises:
      InputError: the file cannot be read, is no ONNX model, or cannot be imported.
    """
    content = without_mark(uncompressed(read_bytes(path), path))
    if not content.strip():
        raise FileFormatError(f"{path}: the file is empty, expected an ONNX model")
    if content.lstrip()[:1] in (b"{", b"["):
        raise FileFormatError(f"{path}: is JSON, expected an ONNX model: a graph has no operations")
    return import_model(content, path, dims=dims)
