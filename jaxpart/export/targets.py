"""What a partition can be taken away as."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from onnx import ModelProto

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.checked import Partition, checked_result
from jaxpart.export.jax.from_file import trace_file
from jaxpart.export.manifest import RESULT, TARGETS, Manifest, check_folder, write_stages
from jaxpart.export.onnx.annotated import annotated
from jaxpart.export.onnx.stages import onnx_stages
from jaxpart.files import check_writable, read_bytes, uncompressed, without_mark, write_whole
from jaxpart.ingest.load import ZIP, refuse_options
from jaxpart.ingest.onnx.external import external_paths
from jaxpart.ingest.onnx.importer import ImportedModel, import_model
from jaxpart.ingest.seconds import with_seconds
from jaxpart.ingest.stablehlo import marks
from jaxpart.problem.graph import Graph
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
    param_argnums: int | Sequence[int] = (),
) -> Result:
    """Takes a partition of the model in a file away.

    An ONNX model goes to ONNX; StableHLO, what `jax.export` serializes and what `torch.export`
    saves go to StableHLO. Of these, the weights that the file holds (constants, the tensors of a
    `.pt2`) are weights of the stages. An argument that `param_argnums` names has no values there:
    it stays an input, which the host gives to each stage that needs it.

    The same export twice writes the same bytes. Nothing is half written.

    Args:
      model: the file that was partitioned.
      partition: a `Result` or the file of one; or chips, by the names of the nodes (also as a JSON
        file) or in their order.
      to: "onnx": a folder of stages, as `jaxpart/README.md` describes it. "onnx-annotated": one
        file, the whole model; external data is referred to as in the model and may be missing, so
        the file must then be in the model's folder. "stablehlo": a folder of stages that JAX loads,
        `.mlirbc` and weights for other tools beside them (this needs the extra `export`). "mpmd":
        one file, the text of a module of Shardy.
      out: the folder or file to write; one that an earlier export wrote is replaced.
      mcm: the module, where the partition brings none.
      dims: sizes of free dimensions, as for `from_onnx`; those of the partition.
      seconds: measured times of the nodes, as for `with_seconds`; those of the partition.
      copy_data: of stages: copy the parts of external data that each stage reads to a file of its
        own. Else the whole file gets a second name in the folder (a hard link), where the file
        system allows that.
      param_argnums: which arguments of StableHLO are parameters, as for `from_stablehlo`; those of
        the partition.

    Returns:
      The partition that was taken away, with its costs.

    Raises:
      InputError: the model cannot be read or imported, is of a kind that does not go there, or
        holds what JAX cannot run; the partition is not valid, or was made for
        another graph; data flows to a lower chip; external data is missing (stages alone) or not
        beside `out` (annotated file); or `out` cannot be written or is an input.
    """
    if to not in TARGETS:
        raise InputError(f"cannot export to {to!r}, expected {' or '.join(TARGETS)}")
    path = os.fspath(model)
    files = [path, *(f for f in (partition, seconds) if isinstance(f, (str, os.PathLike)))]
    if to in ("onnx", "stablehlo"):
        check_folder(out)
        if Path(out).resolve() in Path(path).resolve().parents:
            raise InputError(f"{out}: holds the model ({path}), expected another folder to write")
    else:
        check_writable(out, files)
    if to in ("stablehlo", "mpmd"):
        if copy_data:
            raise InputError(f"{path}: its weights are in it, expected copy_data of ONNX alone")
        return _export_jax(path, partition, to, Path(out), mcm, dims, seconds, param_argnums)
    imported = read_model(path, dims, param_argnums)
    imported = dataclasses.replace(imported, graph=_timed(imported.graph, seconds))
    result = checked_result(imported.graph, partition, mcm, path)
    if to == "onnx":
        write_onnx_stages(imported, result, path, Path(out), copy_data=copy_data)
    else:
        _check_beside_data(imported.source, path, out)
        content = annotated(imported, result, path).SerializeToString(deterministic=True)
        write_whole(out, content)
    return result


def _export_jax(
    path: str,
    partition: Partition,
    to: str,
    out: Path,
    mcm: MCM | None,
    dims: Mapping[str, int] | None,
    seconds: Mapping[str, float] | str | os.PathLike[str] | None,
    param_argnums: int | Sequence[int],
) -> Result:
    """`export` by way of JAX."""
    trace = trace_file(path, dims=dims, param_argnums=param_argnums)
    graph = _timed(trace.graph, seconds)
    imported = dataclasses.replace(trace.imported, graph=graph)
    trace = dataclasses.replace(trace, graph=graph, imported=imported)
    result = checked_result(graph, partition, mcm, path)
    with jax.enable_x64(True):
        stages = trace.stages(result)
        if to == "stablehlo":
            stages.save(out)
        else:
            write_whole(out, stages.to_mpmd().encode())
    return result


def _check_beside_data(model: ModelProto, path: str, out: str | os.PathLike[str]) -> None:
    """Refuses a folder for the annotated file from which its external data would not be found.

    The places of the data are relative to the folder of the file, and must not lead out of it.
    """
    folder = Path(path).parent
    if Path(out).parent.resolve() == folder.resolve():
        return
    for location, name in external_paths(model, path).items():
        raise InputError(
            f"{out}: the tensor {name} of {path} is in the file {location!r} beside the model, "
            f"expected the annotated file in the same folder, {folder} (data of stages can be "
            "copied: --to onnx --copy-data)"
        )


def _timed(graph: Graph, seconds: Mapping[str, float] | str | os.PathLike[str] | None) -> Graph:
    return graph if seconds is None else with_seconds(graph, seconds)


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


def read_model(
    path: str, dims: Mapping[str, int] | None, param_argnums: int | Sequence[int] = ()
) -> ImportedModel:
    """Reads and imports an ONNX file.

    Args:
      path: of the file.
      dims: sizes of free dimensions.
      param_argnums: none: an ONNX model says itself what its parameters are.

    Raises:
      InputError: the file cannot be read, is no ONNX model, or cannot be imported.
    """
    content = without_mark(uncompressed(read_bytes(path), path))
    if not content.strip():
        raise FileFormatError(f"{path}: the file is empty, expected an ONNX model")
    if content.lstrip()[:1] in (b"{", b"["):
        raise FileFormatError(f"{path}: is JSON, expected an ONNX model: a graph has no operations")
    if marks.is_module(content) or marks.is_exported(content) or content.startswith(ZIP):
        raise FileFormatError(
            f"{path}: is {_of_jax(content)}, expected an ONNX model; the partition of such a file "
            "goes --to stablehlo or mpmd"
        )
    refuse_options(path, None, param_argnums)
    return import_model(content, path, dims=dims)


def _of_jax(content: bytes) -> str:
    """What kind of file a model is that becomes a function of JAX."""
    if content.startswith(ZIP):
        return "a zip, as torch.export saves"
    return "StableHLO" if marks.is_module(content) else "what jax.export serialized"
