"""Reads StableHLO modules from bytes: text, MLIR bytecode, and portable artifacts.

The parser is jaxlib's own. A portable artifact is bytecode of the dialect VHLO, which StableHLO
promises to read in later versions; plain bytecode and text are bound to a release. What is damaged
can crash the parser, or keep it busy for ever: LLVM does not harden it. So a process of its own
parses bytecode, and text that is nested deep, before this one does (about half a second).
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.interpreters.mlir
import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from jaxpart.errors import FileFormatError
from jaxpart.files import MIB
from jaxpart.ingest.stablehlo.child import REFUSED, first_error
from jaxpart.ingest.stablehlo.marks import MAGIC, PORTABLE, PRODUCER

_LOCATION = re.compile(r'(?:loc\()?"-":(\d+):\d+\)?: ?')
_CHILD = Path(__file__).with_name("child.py")
_LIMIT_S = 60.0  # for the child to start and to parse, on a busy machine
_LIMIT_S_PER_MIB = 2.0
_MAX_DEPTH = 500  # of brackets in a text that is parsed at once


def parse(content: bytes, where: str, *, trusted: bool = False) -> Any:
    """The module in `content`, an `ir.Module`.

    Args:
      content: text, MLIR bytecode, or a portable artifact.
      where: name of the file, for messages.
      trusted: whether this process made the bytecode.

    Raises:
      FileFormatError: the parser refuses it; the message has the parser's own words and place. Or
        it crashes the parser, or keeps it busy for more than a minute and two seconds a MiB.
    """
    if not trusted and (content.startswith(MAGIC) or _depth(content) > _MAX_DEPTH):
        _try_in_child(content, where)
    context = jax.interpreters.mlir.make_ir_context()
    told: list[str] = []

    def note(diagnostic: Any) -> bool:
        told.append(f"{diagnostic.location}: {diagnostic.message}")
        return True

    handler: Any = context.attach_diagnostic_handler(note)
    try:
        if PORTABLE.match(content):
            return stablehlo.deserialize_portable_artifact(context, content)
        return ir.Module.parse(content, context=context)
    except (ir.MLIRError, RuntimeError, ValueError) as error:
        words = told[0] if told else first_error(str(error))
        raise FileFormatError(f"{where}: {_reason(content, words)}") from error
    finally:
        handler.detach()


def _try_in_child(content: bytes, where: str) -> None:
    """Refuses a module that a process of its own cannot parse."""
    limit_s = _LIMIT_S + _LIMIT_S_PER_MIB * len(content) / MIB
    kind = "portable" if PORTABLE.match(content) else "other"
    # -P: the folder of the program, whose modules have names of the standard library, is no path.
    command = [sys.executable, "-P", str(_CHILD), kind]
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        what = f"keeps the parser busy for more than {limit_s:.0f} s"
        raise FileFormatError(f"{where}: {_reason(content, what)}") from error
    if done.returncode == REFUSED:
        words = done.stdout.decode("utf-8", "replace")
        raise FileFormatError(f"{where}: {_reason(content, words)}")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise FileFormatError(f"{where}: {_reason(content, f'crashes the parser ({name})')}")
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{where}: jaxlib's parser did not start: {''.join(last)}")


def _depth(text: bytes) -> int:
    """How deep brackets are nested, at most; those in strings count, too."""
    codes = np.frombuffer(text.replace(b"->", b""), np.uint8)
    change = np.zeros(256, np.int64)
    change[list(b"([{<")], change[list(b")]}>")] = 1, -1
    return int(np.cumsum(change[codes]).max(initial=0))


def _reason(content: bytes, words: str) -> str:
    """What is wrong with a module, in the parser's words."""
    found = PRODUCER.match(content)
    if found is None and content.startswith(MAGIC):
        return f"bytecode of MLIR that breaks off in its first bytes ({_LOCATION.sub('', words)})"
    if found is None:
        words = _LOCATION.sub(r"line \1: ", words)
        return f"{words}; expected a module of StableHLO, as MLIR prints it"
    version = stablehlo.get_current_version()
    return (
        f"bytecode by {found[1].decode('ascii')}: {_LOCATION.sub('', words)}; expected a whole "
        f"module that this jaxlib can read (portable artifacts up to StableHLO {version})"
    )
