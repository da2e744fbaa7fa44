"""The folder of stages: `manifest.json` beside the files of each chip in use.

Whoever runs the stages in their order, each with the tensors of its inputs by name, has the
outputs of the model. The format is described in `jaxpart/README.md`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.leftovers import locked_folder, old_folder, release, tidy, try_lock
from jaxpart.files import checked_path, decode_json, irregular_kind, read_bytes, sha256_of

# What a partition can be taken away as.
TARGETS = {
    "onnx": "a folder with an ONNX file for each chip in use, and a manifest",
    "onnx-annotated": "one ONNX file that says for each node where it runs",
    "stablehlo": "a folder with StableHLO, what jax.export serializes and weights for each chip",
    "mpmd": "one module of Shardy's MPMD dialect, as text, with a fragment for each chip",
}
MANIFEST = "manifest.json"
RESULT = "result.json"  # the result file that the stages were made of
HOST = "host"

_Chip = Annotated[int, msgspec.Meta(ge=0)]
Place = _Chip | Literal["host"]
_Extent = Annotated[int, msgspec.Meta(ge=0)]


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that is given to a stage or comes from one."""

    name: str
    dtype: str  # as NumPy names it; also bfloat16, int4 and their kin, and "string"
    shape: tuple[_Extent, ...]


class StageInput(
    TensorInfo, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}, kw_only=True
):
    """An input of a stage, and where it comes from: an earlier chip or the host."""

    source: Place


class StageOutput(TensorInfo, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An output of a stage, and where it goes: to later chips, to the host, or to both."""

    to: tuple[Place, ...]


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one chip runs."""

    chip: _Chip
    file: str  # the program, in the folder
    weight_bytes: Annotated[int, msgspec.Meta(ge=0)]
    inputs: tuple[StageInput, ...]
    outputs: tuple[StageOutput, ...]
    sha256: dict[str, str]  # of each file of the stage, `file` and others, by name


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stages of a model, in chip order, which is an order in which they can run."""

    kind: Literal["onnx", "jax"]
    graph: str  # its name
    graph_sha256: str  # of the graph that the partition was scored on
    mcm: str  # the name of the module
    inputs: tuple[TensorInfo, ...]  # of the model
    outputs: tuple[TensorInfo, ...]
    stages: tuple[Stage, ...]
    format: Literal["jaxpart-stages"] = "jaxpart-stages"
    version: Literal[1] = 1


Content = bytes | Callable[[Path], None]  # a file's bytes, or what writes it to the path


def write_stages(
    folder: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, Content]
) -> None:
    """Writes a folder of stages as a whole, or leaves what was there untouched.

    The files are written beside the folder, which is then renamed. An existing folder of stages is
    replaced; so is an empty folder. What a killed export into the same place left is removed.

    Args:
      folder: where to; its parent exists.
      manifest: what the folder holds. The hashes in `sha256` of its stages are filled in here: a
        stage names its files there, with any text.
      files: content of each file, by name.

    Raises:
      InputError: the folder exists and holds something else, or cannot be written.
    """
    folder = Path(folder)
    check_folder(folder)
    temporary: Path | None = None
    lock = None
    try:
        tidy(folder)
        temporary, lock = locked_folder(folder)
        for name, content in files.items():
            if callable(content):
                content(temporary / name)
            else:
                (temporary / name).write_bytes(content)
        names = {name for stage in manifest.stages for name in stage.sha256}
        hashes = {name: sha256_of(temporary / name) for name in sorted(names)}
        stages = tuple(
            msgspec.structs.replace(
                stage, sha256={name: hashes[name] for name in sorted(stage.sha256)}
            )
            for stage in manifest.stages
        )
        encoded = msgspec.json.encode(msgspec.structs.replace(manifest, stages=stages))
        text = msgspec.json.format(_format_first(encoded), indent=1)
        (temporary / MANIFEST).write_bytes(text + b"\n")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        _replace(folder, temporary)
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror})") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        release(lock)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Finds out whether a folder of stages may be written, before there is anything to write.

    Raises:
      InputError: something else is there, also beside stages; or the parent folder does not exist.
    """
    folder = Path(checked_path(folder))
    if not folder.name or folder.name == "..":
        raise InputError(f"{folder}: expected the name of a folder to write")
    try:
        if not folder.parent.is_dir():
            raise InputError(f"{folder}: the folder {folder.parent} does not exist")
        if not os.path.lexists(folder):
            return
        mode = os.lstat(folder).st_mode
        if not stat.S_ISDIR(mode):
            raise InputError(f"{folder}: is {irregular_kind(mode) or 'a file'}, expected a folder")
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror})") from error
    if not names:
        return
    try:
        stages = _decoded(folder / MANIFEST).stages if MANIFEST in names else ()
    except InputError:  # not written here, or damaged: nothing of it is removed
        stages = ()
    expected = {MANIFEST, *(name for stage in stages for name in stage.sha256)}
    if not stages or (others := sorted(set(names) - expected)):
        shown = f" ({others[0]!r})" if stages else ""
        raise InputError(
            f"{folder}: holds other files{shown}, expected a new or empty folder, or one of stages"
        )


def read_stages(folder: str | os.PathLike[str]) -> Manifest:
    """Reads the manifest of a folder of stages, and checks that all files are as it says.

    Raises:
      InputError: the folder, its manifest or a file of a stage does not exist or cannot be read; a
        name leads out of the folder; or a file was changed.
      FileFormatError: the manifest breaks the schema, or its stages do not fit together.
    """
    folder = Path(checked_path(folder))
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder, expected a folder of stages")
    manifest = _decoded(folder / MANIFEST)
    hashes: dict[str, str] = {}  # a file of many gigabytes may serve all stages
    for stage in manifest.stages:
        for name, expected in stage.sha256.items():
            file = file_of(folder, stage, name)
            if name not in hashes:
                hashes[name] = sha256_of(file)
            if hashes[name] != expected:
                raise InputError(
                    f"{file}: was changed since it was exported (its SHA-256 is not the manifest's)"
                )
    return manifest


def file_of(folder: Path, stage: Stage, name: str) -> Path:
    """A file of a stage that is to be read: `read_stages` has compared its hash.

    Args:
      folder: of the stages.
      stage: whose file it is.
      name: of the file.

    Raises:
      InputError: the file is missing, a link, or no regular file.
      FileFormatError: the manifest has no hash of it, or the name leads out of the folder.
    """
    where = f"{folder / MANIFEST}: the stage of chip {stage.chip}"
    if name not in stage.sha256:
        raise FileFormatError(f"{where}: $.sha256 has no hash of {name!r}, which the stage reads")
    _check_name(name, where)
    file = folder / name
    try:
        kind = irregular_kind(os.lstat(file).st_mode)
    except FileNotFoundError as error:
        raise InputError(f"{file}: is missing, expected the file of chip {stage.chip}") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    if kind:
        raise InputError(f"{file}: is {kind}, expected a regular file in the folder of stages")
    return file


def _decoded(path: Path) -> Manifest:
    """A manifest whose stages fit together."""
    manifest = decode_json(read_bytes(path), Manifest, path, expected="; expected a manifest")
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    """Checks that stages fit together: what one receives, an earlier one or the host sends."""
    if not manifest.stages:
        raise FileFormatError(f"{path}: $.stages is empty, expected one stage or more")
    fed = {tensor.name: tensor for tensor in manifest.inputs}
    sent: dict[tuple[int, str], StageOutput] = {}
    produced: dict[str, TensorInfo] = dict(fed)
    chips = [stage.chip for stage in manifest.stages]
    for s, (one, other) in enumerate(itertools.pairwise(chips), 1):
        if one >= other:
            raise FileFormatError(
                f"{path}: $.stages[{s}]: chip {other} after chip {one}, expected order"
            )
    for s, stage in enumerate(manifest.stages):
        where = f"{path}: $.stages[{s}]"
        if stage.file not in stage.sha256:
            raise FileFormatError(f"{where}: $.sha256 has no hash of {stage.file!r}")
        for name in stage.sha256:
            _check_name(name, where)
        _check_once(stage.inputs, where)
        _check_once(stage.outputs, where)
        for given in stage.inputs:
            source: TensorInfo | None = fed.get(given.name)
            if given.source != HOST:
                output = sent.get((given.source, given.name))
                source = output if output is not None and stage.chip in output.to else None
            if source is None:
                origin = "the host" if given.source == HOST else f"chip {given.source}"
                raise FileFormatError(f"{where}: {origin} does not send {given.name!r} to it")
            _check_alike(source, given, where)
        for output in stage.outputs:
            sent[stage.chip, output.name] = output
            for place in output.to:
                if place != HOST and (place <= stage.chip or place not in chips):
                    raise FileFormatError(
                        f"{where}: sends {output.name!r} to chip {place}, expected a later stage's"
                    )
            if HOST in output.to:
                produced[output.name] = output
    for wanted in manifest.outputs:
        if wanted.name not in produced:
            raise FileFormatError(f"{path}: no stage sends {wanted.name!r} to the host")
        _check_alike(produced[wanted.name], wanted, f"{path}: $.outputs")


def _check_once(tensors: Sequence[TensorInfo], where: str) -> None:
    names = [tensor.name for tensor in tensors]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise FileFormatError(f"{where}: {repeated[0]!r} stands twice, expected once")


def _check_alike(sent: TensorInfo, received: TensorInfo, where: str) -> None:
    if (sent.dtype, sent.shape) != (received.dtype, received.shape):
        raise FileFormatError(f"{where}: {received.name!r} is sent with another dtype or shape")


def _check_name(name: str, where: str) -> None:
    """Refuses the name of a file that is not in the folder itself."""
    plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name
    if not plain or "\0" in name or ":" in name:
        raise FileFormatError(f"{where}: the file {name!r} is not within the folder")


def _format_first(encoded: bytes) -> bytes:
    """The keys of a manifest with `format` and `version` in front."""
    keys = msgspec.json.decode(encoded, type=dict[str, msgspec.Raw])
    front = {key: keys.pop(key) for key in ("format", "version")}
    return msgspec.json.encode({**front, **keys})


def _replace(folder: Path, new: Path) -> None:
    """Puts `new` in the place of `folder`, if there is one; it is removed afterwards."""
    if not folder.exists():
        new.rename(folder)
        return
    lock = try_lock(folder)  # it stays that of the old one under its new name
    old = old_folder(folder)
    try:
        folder.rename(old)  # onto an empty folder
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        release(lock)
