"""Reads and writes files; a file is written as a whole or not at all.

Nothing but regular files is read or replaced. What is read has a limit.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from jaxpart.errors import FileFormatError, InputError

MIB = 2**20
MAX_FILE_BYTES = 2048 * MIB  # of any file; no ONNX model may be larger in one file
MAX_TEXT_BYTES = 128 * MIB  # of JSON: several hundred thousand nodes
_MAX_RATIO = 4  # a file may grow by this when decompressed, or to `MAX_TEXT_BYTES`
_MAX_GZIP_PARTS = 100
_CHUNK = MIB
_GZIP = b"\x1f\x8b"
# Beginnings of files that are taken for a graph or a module by mistake.
_KINDS_OF_CONTENT = (
    (codecs.BOM_UTF32_LE, "UTF-32 text"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "UTF-16 text"),
    (_GZIP, "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"\x89PNG\r\n", "a picture"),
    (b"%PDF-", "a PDF"),
)

_Decoded = TypeVar("_Decoded")


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> bytes:
    """Reads a file that the user named.

    Args:
      path: the file; it may be a link to one.
      limit: most bytes that it may have.

    Returns:
      All bytes of the file.

    Raises:
      InputError: the path is empty or no valid path; the file does not exist, is no regular file
        (it is not opened then), is too large, or cannot be read.
    """
    with opened(path) as file:
        parts, size = [], os.fstat(file.fileno()).st_size
        if size <= limit:
            size = 0
            while size <= limit and (part := file.read(_CHUNK)):
                parts.append(part)
                size += len(part)
    if size > limit:
        name = os.fspath(path)
        raise InputError(f"{name}: is larger than {_in_mib(limit)}, the limit for such a file")
    return b"".join(parts)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[io.FileIO]:
    """Opens a file that the user named, to read bytes; closes it afterwards.

    Args:
      path: the file; it may be a link to one.

    Raises:
      InputError: the path is empty or no valid path; the file does not exist, is no regular file
        (it is not opened then), or cannot be read.
    """
    name = checked_path(path)
    try:
        _refuse_to_read(os.stat(name).st_mode, name)
        # Between the two calls the file may have been replaced: a FIFO must not block.
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
        with io.FileIO(handle) as file:
            _refuse_to_read(os.fstat(handle).st_mode, name)
            yield file
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the bytes of a file, in hexadecimal digits.

    Raises:
      InputError: as for `opened`.
    """
    digest = hashlib.sha256()
    with opened(path) as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def uncompressed(content: bytes, path: str | os.PathLike[str]) -> bytes:
    """Decompresses `content` if it is gzip; returns it unchanged if it is not.

    At most four times the size of `content` comes out, or `MAX_TEXT_BYTES` if that is more.

    Args:
      content: the bytes of a file.
      path: for messages.

    Raises:
      FileFormatError: the gzip data is broken, expands to more than the limit, or contains gzip.
    """
    if not content.startswith(_GZIP):
        return content
    packed = len(content)
    limit = min(max(MAX_TEXT_BYTES, _MAX_RATIO * packed), MAX_FILE_BYTES)
    parts, size = [], 0
    for _ in range(_MAX_GZIP_PARTS):
        inflater = zlib.decompressobj(wbits=31)
        try:
            part = inflater.decompress(content, limit - size + 1)
        except zlib.error as error:
            raise FileFormatError(f"{path}: broken gzip file ({error})") from error
        parts.append(part)
        size += len(part)
        if size > limit:
            raise FileFormatError(
                f"{path}: expands to more than {_in_mib(limit)}, the limit for a file of "
                f"{packed:,} bytes"
            )
        if not inflater.eof:
            raise FileFormatError(f"{path}: broken gzip file (it is truncated)")
        content = inflater.unused_data.lstrip(b"\0")
        if not content:
            whole = b"".join(parts)
            if whole.startswith(_GZIP):
                raise FileFormatError(f"{path}: is gzip within gzip, expected it compressed once")
            return whole
    raise FileFormatError(f"{path}: broken gzip file (more than {_MAX_GZIP_PARTS} parts)")


def without_mark(content: bytes) -> bytes:
    """The bytes of a text in UTF-8 without its byte order mark, which some editors write."""
    return content.removeprefix(codecs.BOM_UTF8)


def kind_of_content(content: bytes) -> str:
    """What a file is that could not be read, such as "UTF-16 text"; empty if it is not known.

    Only for messages: few bytes are looked at.
    """
    for beginning, kind in _KINDS_OF_CONTENT:
        if content.startswith(beginning):
            return kind
    # ASCII in two bytes each, without a byte order mark.
    for first, second in ((content[0:4:2], content[1:4:2]), (content[1:4:2], content[0:4:2])):
        if second == b"\0\0" and first.isascii() and first.decode().isprintable():
            return "UTF-16 text"
    return ""


def decode_json(
    content: bytes,
    kind: type[_Decoded],
    path: str | os.PathLike[str],
    *,
    place: str = "",
    expected: str = "",
) -> _Decoded:
    """Decodes JSON.

    Args:
      content: the JSON, with or without a byte order mark.
      kind: its schema.
      path: for messages.
      place: in the file, for messages, such as "assignment: ".
      expected: added to messages, such as "; expected a result".

    Raises:
      FileFormatError: the content is too large, is no JSON in UTF-8, is nested too deep, or breaks
        the schema.
    """
    where = f"{path}: {place}"
    if len(content) > MAX_TEXT_BYTES:
        raise FileFormatError(
            f"{where}is larger than {_in_mib(MAX_TEXT_BYTES)}, the limit for JSON{expected}"
        )
    try:
        return msgspec.json.decode(without_mark(content), type=kind)
    except RecursionError as error:
        raise FileFormatError(f"{where}is nested too deep{expected}") from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        if found := kind_of_content(content):
            raise FileFormatError(f"{where}is {found}, expected JSON in UTF-8{expected}") from error
        if isinstance(error, UnicodeDecodeError):
            raise FileFormatError(f"{where}is no utf-8 text ({error.reason}){expected}") from error
        raise FileFormatError(f"{where}{error}{expected}") from error


def stem_of(path: str | os.PathLike[str]) -> str:
    """The name of a file up to its first dot, as text: names the content where nothing else does.

    Bytes of the name that are no text are escaped.
    """
    return Path(path).name.split(".")[0].encode("utf-8", "backslashreplace").decode()


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, or leaves an existing file untouched.

    The bytes go to a temporary file in the same folder, which then replaces `path`. A reader never
    sees half a file, and a crash leaves the old file.

    Args:
      path: the file, in a folder that exists.
      content: all bytes of the file.

    Raises:
      InputError: the path is empty or no valid path; it names something that is no regular file (a
        folder, link, device or FIFO) or is read-only; or the folder cannot be written.
    """
    path = _checked_target(path)
    temporary: Path | None = None
    try:
        # The name is short: a longer one than that of `path` might be too long.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".jaxpart.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes private files; this one gets the permissions of the user's other files.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write here ({error.strerror})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(
    path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()
) -> Path:
    """Finds out whether `write_whole` can write a file, before there is anything to write.

    Args:
      path: the file; an existing one may be replaced.
      inputs: files that must not be replaced; names of what is no file are ignored.

    Returns:
      The same path.

    Raises:
      InputError: as for `write_whole`, or `path` is one of the inputs under any name.
    """
    target = _checked_target(path)
    for source in inputs:
        if os.path.exists(source) and target.exists() and target.samefile(source):
            raise InputError(
                f"{target}: is an input ({os.fspath(source)}), expected another file to write"
            )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"{target}: cannot write here ({error.strerror})") from error
    return target


def checked_path(path: str | os.PathLike[str]) -> str:
    """The path as text.

    Raises:
      InputError: the path is empty, or no system call takes it.
    """
    name = os.fspath(path)
    if not name:
        raise InputError("the path of a file is empty, expected a name")
    try:
        valid = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise InputError(f"{name!r}: is no valid path, expected the name of a file")
    return name


def _checked_target(path: str | os.PathLike[str]) -> Path:
    """The path of a file to write; refuses what must not be replaced."""
    name = checked_path(path)
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        if name.endswith(os.sep):
            raise InputError(f"{name}: is a folder, expected a file to write") from None
        return Path(name)
    except OSError as error:
        raise InputError(f"{name}: cannot write here ({error.strerror})") from error
    if kind := irregular_kind(found.st_mode):
        raise InputError(f"{name}: is {kind}, expected a file to write")
    # A file that nobody may write is protected on purpose, also from root.
    if not found.st_mode & 0o222 or not os.access(name, os.W_OK):
        raise InputError(f"{name}: is read-only, expected a file to write")
    return Path(name)


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def irregular_kind(mode: int) -> str:
    """What a file with this mode is that is no regular one; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no regular file")


def _refuse_to_read(mode: int, name: str) -> None:
    if kind := irregular_kind(mode):
        raise InputError(f"{name}: cannot be read (it is {kind}), expected a regular file")


def _in_mib(count: int) -> str:
    return f"{count // MIB:,} MiB"
