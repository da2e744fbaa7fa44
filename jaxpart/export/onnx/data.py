"""The contents of weights that an ONNX model keeps in other files, for its stages.

ONNX Runtime follows no path, and no link by name, that leads out of the folder of the file it
loads. A second name of the same file (a hard link) within the folder costs nothing, and is taken
where the file system allows it. Elsewhere, or if the user wants it, the parts that a stage reads
are copied to a file beside it.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.manifest import Content
from jaxpart.files import irregular_kind
from jaxpart.ingest.onnx.external import tensors_in
from jaxpart.ingest.onnx.shapes import array_of, is_external

_ALIGNMENT = 4096  # bytes; whoever maps a file into memory needs whole pages
_CHUNK = 2**22
_LARGE = 2**12  # bytes of a tensor, from which on it goes to a shared file


@dataclasses.dataclass(frozen=True)
class _Part:
    """Where the contents of a tensor are."""

    file: str  # its real path
    offset: int
    length: int


class Data:
    """Hands out names for external data, and collects the files to write.

    Attributes:
      files: name -> content of each file that stages need beside them.
    """

    def __init__(self, model_path: str, folder: Path, *, copy: bool) -> None:
        """Takes the model's path, where the stages go, and whether contents must be copied."""
        self._model = model_path
        self._folder = folder
        self._copy = copy
        self._linked: dict[str, str | None] = {}  # real path -> name in the folder; None: copied
        self.files: dict[str, Content] = {}

    def place(self, stage: ModelProto, stem: str) -> list[str]:
        """Points the external tensors of a stage to files beside it.

        Args:
          stage: it is changed in place.
          stem: the name of the stage's file, without its ending.

        Returns:
          The names of these files.

        Raises:
          InputError: a file is missing or cannot be read.
          FileFormatError: a file is too short, or a tensor's place in it is no place.
        """
        tensors = [(t, name) for t, name in tensors_in(stage.graph) if is_external(t)]
        if not tensors:
            return []
        parts = [self.part(tensor, name) for tensor, name in tensors]
        names: dict[str, None] = {}
        copied: dict[_Part, int] = {}  # -> offset in the stage's own file
        size = 0
        own = f"{stem}.data"
        for (tensor, _), part in zip(tensors, parts, strict=True):
            linked = None if self._copy else self.link(part.file)
            if linked is not None:
                _point(tensor, linked, part.offset, part.length)
                names[linked] = None
                continue
            if part not in copied:
                copied[part] = size
                size += -(-part.length // _ALIGNMENT) * _ALIGNMENT
            _point(tensor, own, copied[part], part.length)
            names[own] = None
        if copied:
            self.files[own] = _copier(copied)
        return list(names)

    def part(self, tensor: TensorProto, name: str) -> _Part:
        """Where the contents of an external tensor are; errors are those of `place`."""
        given: dict[str, str] = {}
        for entry in tensor.external_data:
            given.setdefault(entry.key, entry.value)
        place = f"{self._model}: tensor {name}"
        location = given["location"]  # checked when the model was imported
        file = os.path.realpath(os.path.join(os.path.dirname(self._model), location))
        expected = int(array_of(tensor).bytes)
        offset = _number(given.get("offset", "0"), f"{place}: offset")
        length = _number(given.get("length", str(expected)), f"{place}: length")
        if length != expected:
            raise FileFormatError(
                f"{place} has {length:,} bytes in {location!r}, expected {expected:,} by its type "
                "and shape"
            )
        try:
            found = os.stat(file)
        except FileNotFoundError as error:
            raise InputError(
                f"{place} is in the file {location!r}, which is missing, expected it beside the "
                "model: a stage holds its weights"
            ) from error
        except OSError as error:
            raise InputError(f"{place}: {location!r} cannot be read ({error.strerror})") from error
        if kind := irregular_kind(found.st_mode):
            raise InputError(f"{place}: {location!r} is {kind}, expected a regular file")
        if found.st_size < offset + length:
            raise FileFormatError(
                f"{place} ends at byte {offset + length:,} of {location!r}, which has "
                f"{found.st_size:,} bytes"
            )
        return _Part(file, offset, length)

    def link(self, file: str) -> str | None:
        """The name of a file in the folder; None if it cannot have one there."""
        if file not in self._linked:
            name = f"weights-{len(self._linked):02}.data"
            linked = _can_link(file, self._folder.parent)
            self._linked[file] = name if linked else None
            if linked:
                self.files[name] = lambda path: os.link(file, path)
        return self._linked[file]


def with_shared_data(source: ModelProto, model_path: str, folder: Path) -> ModelProto:
    """The model with its large tensors in files to which stages within a folder can link.

    So several exports of a model take its room once. What is in the file system of the folder
    stays where it is.

    Args:
      source: the model.
      model_path: where it is; its external data is beside it.
      folder: an existing one, which gets a file. Its path is in the result, which is for
        `onnx_stages` alone.

    Raises:
      InputError: a file is missing or cannot be read.
      FileFormatError: a file is too short, or a tensor's place in it is no place.
    """
    made = ModelProto()
    made.CopyFrom(source)
    data = Data(model_path, folder / "stages", copy=False)
    path = (folder / "shared.data").absolute()
    with open(path, "wb") as target:
        for tensor in made.graph.initializer:
            if is_external(tensor):
                part = data.part(tensor, tensor.name)
                if data.link(part.file) is not None:
                    continue
                chunks, length = _read(part), part.length
            elif len(tensor.raw_data) >= _LARGE:
                chunks, length = iter([tensor.raw_data]), len(tensor.raw_data)
            else:
                continue
            offset = -(-target.tell() // _ALIGNMENT) * _ALIGNMENT
            target.seek(offset)
            for chunk in chunks:
                target.write(chunk)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            _point(tensor, os.fspath(path), offset, length)
    return made


def _number(text: str | bytes, place: str) -> int:
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19):
        raise FileFormatError(f"{place} is {text!r}, expected a number of bytes")
    return int(text)


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _can_link(file: str, folder: Path) -> bool:
    """Whether a file may get a second name in a folder."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        return False
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".jaxpart.") as trial:
            os.link(file, os.path.join(trial, "link"))
    except OSError:
        return False
    return True


def _copier(parts: dict[_Part, int]) -> Callable[[Path], None]:
    """Writes parts of files to a file, each at its offset."""

    def write(path: Path) -> None:
        with open(path, "wb") as target:
            for part, offset in parts.items():
                target.seek(offset)
                for chunk in _read(part):
                    target.write(chunk)

    return write


def _read(part: _Part) -> Iterator[bytes]:
    with open(part.file, "rb") as source:
        source.seek(part.offset)
        left = part.length
        while left and (chunk := source.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk
    if left:
        raise InputError(f"{part.file}: became shorter while it was read")
