"""Reads the weights of a `.pt2` archive: raw bytes in members of the zip, listed in JSON."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxpart.errors import FileFormatError, InputError
from jaxpart.files import MAX_TEXT_BYTES, decode_json
from jaxpart.ingest.pt2.archive import archive_of
from jaxpart.ingest.pt2.retrace import DTYPES
from jaxpart.ingest.pt2.schema import Size

_CONFIG = re.compile(r"((?:.*/)?data/(?:weights|constants)/)[^/]+_config\.json")
_MAX_RATIO = 4  # of a compressed member that is larger than text may be


class _Meta(msgspec.Struct):
    dtype: int
    sizes: list[Size]
    strides: list[Size]
    storage_offset: Size


class _Stored(msgspec.Struct):
    path_name: str
    use_pickle: bool
    tensor_meta: _Meta | None = None


class _Config(msgspec.Struct):
    config: dict[str, _Stored]


def read_tensors(
    file: IO[bytes], wanted: Mapping[int, tuple[str, jax.ShapeDtypeStruct]], where: str
) -> dict[int, np.ndarray]:
    """The tensors that an archive stores for some arguments.

    Args:
      file: the archive, open.
      wanted: by argument: the name of the tensor, its shape and type.
      where: name of the archive, for messages.

    Raises:
      InputError: a tensor is not there, or pickled.
      FileFormatError: the archive is broken, or a tensor is not as the program says.
    """
    found = {}
    with archive_of(file, where) as archive:
        stored = _listed(archive, where)
        for argument, (name, aval) in wanted.items():
            place = f"{where}: the weight {name!r}"
            if name not in stored:
                raise InputError(
                    f"{place} is not listed in the archive, expected all weights: export again "
                    "with torch 2.9 or later, which stores them one by one"
                )
            folder, about = stored[name]
            if about.use_pickle or about.tensor_meta is None:
                raise InputError(f"{place} is pickled, expected the bytes of a tensor")
            found[argument] = _tensor(archive, folder, about, about.tensor_meta, aval, place)
    return found


def _listed(archive: zipfile.ZipFile, where: str) -> dict[str, tuple[str, _Stored]]:
    """Where each tensor is stored: the folder in the archive, and what is said of it."""
    found: dict[str, tuple[str, _Stored]] = {}
    for member in archive.namelist():
        if match := _CONFIG.fullmatch(member):
            content = _content(archive, member, f"{where}: {member}")
            config = decode_json(content, _Config, where, place=f"{member}: ").config
            found.update({name: (match[1], about) for name, about in config.items()})
    return found


def _content(archive: zipfile.ZipFile, member: str, place: str) -> bytes:
    try:
        info = archive.getinfo(member)
    except KeyError as error:
        raise FileFormatError(f"{place}: no member {member} in the archive, expected it") from error
    if info.file_size > max(MAX_TEXT_BYTES, _MAX_RATIO * info.compress_size):
        raise FileFormatError(f"{place}: expands to {info.file_size:,} bytes, expected fewer")
    return archive.read(info)


def _tensor(
    archive: zipfile.ZipFile,
    folder: str,
    about: _Stored,
    meta: _Meta,
    aval: jax.ShapeDtypeStruct,
    place: str,
) -> np.ndarray:
    """A tensor: a view of the storage that several may share."""
    shape, strides = _whole(meta.sizes, place), _whole(meta.strides, place)
    (offset,) = _whole([meta.storage_offset], place)
    name = DTYPES.get(meta.dtype, "")
    if (shape, name) != (aval.shape, str(aval.dtype)) or len(strides) != len(shape):
        raise FileFormatError(
            f"{place} is {name or meta.dtype}{list(shape)}, expected {aval.dtype}"
            f"{list(aval.shape)} as the program says"
        )
    dtype = jnp.dtype(name)
    content = _content(archive, folder + about.path_name, place)
    storage = np.frombuffer(content, np.uint8)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, dtype)
    if (last + 1) * dtype.itemsize > storage.size:
        raise FileFormatError(f"{place} has {storage.size:,} bytes, expected more for its shape")
    elements = storage[: storage.size // dtype.itemsize * dtype.itemsize].view(dtype)
    in_bytes = [stride * dtype.itemsize for stride in strides]
    view: Any = np.lib.stride_tricks.as_strided(elements[offset:], shape, in_bytes, writeable=False)
    return np.ascontiguousarray(view).reshape(shape)


def _whole(sizes: list[Size], place: str) -> tuple[int, ...]:
    """Sizes that are whole numbers, 0 or more."""
    found = [size.as_int for size in sizes]
    if not all(isinstance(n, int) and n >= 0 for n in found):
        raise FileFormatError(f"{place} has a size that is not known, expected whole numbers")
    return tuple(n for n in found if isinstance(n, int))
