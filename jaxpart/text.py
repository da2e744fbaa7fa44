"""Text that leaves the program: escaped, of bounded length, and written in one place.

Names, keys, arguments and paths come from files and from users. They may contain terminal escapes,
bidirectional controls, or code units that are no text. Nothing of that reaches a terminal raw.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import TextIO

_LINE_LIMIT = 2000  # characters of a message
_WORD_LIMIT = 300  # characters of a word in a message; paths are words, too
_NAME_LIMIT = 80  # characters of a name in a table or a title
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def printable(text: str) -> str:
    """Escapes every character that is not printable, as Python's `repr` does.

    These are control characters (line breaks and tabs included), bidirectional and other invisible
    controls, lone surrogates, and unassigned or private characters. Printable text stays as it is,
    so that escaping twice is escaping once.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters (8 or more): the middle of a longer text is left out."""
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 3
    return f"{text[: limit - 3 - tail]}...{text[-tail:]}"


def name_of(name: str) -> str:
    """A name for tables and titles: printable and short."""
    return shortened(printable(name), _NAME_LIMIT)


def one_line(message: str) -> str:
    """A message as one printable line of bounded length: long words lose their middle.

    Line breaks become spaces. Everything else that is not printable is escaped.
    """
    lines = " ".join(part.strip() for part in message.splitlines())
    words = [shortened(word, _WORD_LIMIT) for word in printable(lines).split(" ")]
    return shortened(" ".join(words), _LINE_LIMIT)


def decimal(text: str) -> float | None:
    """The value of a decimal number as files and users write it, such as 12, -0.5 or 1e-3.

    `float` takes more: underscores, the digits of other scripts, spaces, nan and inf. In a file
    these are mistakes.

    Returns:
      The nearest float64, which is infinite beyond its range; None if the text is no such number.
    """
    return float(text) if _DECIMAL.fullmatch(text) else None


def tell(stream: TextIO | None, text: str) -> None:
    """Writes lines to a stream: escaped, and spelled in the encoding of the stream.

    A reader that has gone (`| head`) is no error: what follows goes nowhere.

    Args:
      stream: to write to; None where the program was started without it.
      text: lines, without the last line break.

    Raises:
      OSError: the stream cannot be written for another reason, such as a full disk.
    """
    if stream is None:
        return
    lines = "\n".join(map(printable, text.split("\n")))
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(lines.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:
        _close(stream)
    except OSError:
        _close(stream)
        raise


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _close(stream: TextIO) -> None:
    """Leads a stream nowhere; Python would write what is left in its buffer again at exit."""
    with contextlib.suppress(io.UnsupportedOperation, OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
