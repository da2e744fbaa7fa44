"""Reads and writes files; a file is written as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from jaxpart.errors import InputError


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, or leaves an existing file untouched.

    The bytes go to a temporary file in the same folder, which then replaces `path`. A reader never
    sees half a file, and a crash leaves the old file.

    Args:
      path: the file, in a folder that exists.
      content: all bytes of the file.

    Raises:
      InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot write here ({error.strerror})") from error
    temporary = Path(name)
    try:
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
        temporary.unlink(missing_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads a file that the user named.

    Args:
      path: the file.

    Returns:
      All bytes of the file.

    Raises:
      InputError: the file does not exist, is a folder, or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
