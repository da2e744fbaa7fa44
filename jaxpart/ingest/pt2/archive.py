"""Reads a `.pt2` archive: a zip of which one member, JSON, holds the program.

The weights are in other members. A graph needs their shapes alone; `weights.py` reads them for
whoever runs the program.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import msgspec

from jaxpart.errors import FileFormatError
from jaxpart.files import MAX_TEXT_BYTES, decode_json
from jaxpart.ingest.pt2.schema import Program, Version

_MAJOR = 8  # version of the schema whose keys are those below
_PROGRAM = re.compile(r"(?:.*/)?(?:models/([^/]+)\.json|serialized_exported_program\.json)")
_EXPECTED = "an archive that torch.export.save wrote"


def read_program(file: IO[bytes], where: str) -> Program:
    """The program in an archive.

    Args:
      file: the archive, open.
      where: its name, for messages.

    Raises:
      FileFormatError: it is no such archive, is cut off, of another version, or breaks its schema.
    """
    with archive_of(file, where) as archive:
        name = _member(archive, where)
        info = archive.getinfo(name)
        if info.file_size > MAX_TEXT_BYTES:
            raise FileFormatError(
                f"{where}: {name} has {info.file_size} bytes, expected at most {MAX_TEXT_BYTES}"
            )
        content = archive.read(name)
    place = f"{name}: "
    version = decode_json(content, _Versioned, where, place=place).schema_version
    if version.major != _MAJOR:
        raise FileFormatError(
            f"{where}: {place}schema version {version.major}.{version.minor}, expected {_MAJOR}"
        )
    return decode_json(content, Program, where, place=place)


@contextlib.contextmanager
def archive_of(file: IO[bytes], where: str) -> Iterator[zipfile.ZipFile]:
    """Opens an archive.

    Raises:
      FileFormatError: it is no zip file, or what is read from it within the context is broken or
        encrypted.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise FileFormatError(
            f"{where}: a broken zip file ({error}), expected {_EXPECTED}"
        ) from error
    except RuntimeError as error:  # a member is encrypted
        raise FileFormatError(f"{where}: {error}, expected {_EXPECTED}") from error


class _Versioned(msgspec.Struct):
    schema_version: Version


def _member(archive: zipfile.ZipFile, where: str) -> str:
    """Name of the member that holds the program."""
    names = archive.namelist()
    found = {m[1]: name for name in names if (m := _PROGRAM.fullmatch(name))}
    if len(found) > 1:
        found = {key: name for key, name in found.items() if key == "model"} or found
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise FileFormatError(
            f"{where}: holds {len(found)} programs ({', '.join(map(str, found))}), expected one, "
            "or one that is named model"
        )
    if any(name.endswith("constants.pkl") for name in names):
        what = "holds TorchScript"
    elif any("aotinductor" in name for name in names):
        what = "holds a compiled program"
    elif any(name.endswith("data.pkl") for name in names):
        what = "holds pickled tensors and no program"
    else:
        what = "holds no models/*.json"
    raise FileFormatError(f"{where}: a zip file that {what}, expected {_EXPECTED}")
