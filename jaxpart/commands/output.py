"""What commands print: figures on stdout, words on stderr."""

from __future__ import annotations

import contextlib
import sys

from jaxpart.errors import InputError
from jaxpart.text import one_line, tell


def show(text: str) -> None:
    """Lines on stdout."""
    try:
        tell(sys.stdout, text)
    except OSError as error:
        raise InputError(f"standard output cannot be written ({error.strerror})") from error


def say(message: str, code: int = 0) -> int:
    """One line on stderr; gives `code` back."""
    with contextlib.suppress(OSError):  # there is nowhere to say so
        tell(sys.stderr, one_line(message))
    return code
