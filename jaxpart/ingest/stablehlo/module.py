"""Reads StableHLO modules from bytes: text, MLIR bytecode, and portable artifacts.

The parser is jaxlib's own. A portable artifact is bytecode of the dialect VHLO, which StableHLO
promises to read in later versions; plain bytecode and text are bound to a release. What is cut off
or is no bytecode is refused. Bytecode of which single bytes are damaged can crash the parser: LLVM
does not harden it.
"""

from __future__ import annotations

import re
from typing import Any

import jax.interpreters.mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from jaxpart.errors import FileFormatError
from jaxpart.ingest.stablehlo.marks import MAGIC, PORTABLE, PRODUCER

_LOCATION = re.compile(r'(?:loc\()?"-":(\d+):\d+\)?: ?')


def parse(content: bytes, where: str) -> Any:
    """The module in `content`, an `ir.Module`.

    Args:
      content: text, MLIR bytecode, or a portable artifact.
      where: name of the file, for messages.

    Raises:
      FileFormatError: the parser refuses it; the message has the parser's own words and place.
    """
    context = jax.interpreters.mlir.make_ir_context()
    told: list[str] = []

    def note(diagnostic: Any) -> bool:
        try:
            told.append(f"{diagnostic.location}: {diagnostic.message}")
        except RuntimeError:  # of damaged bytecode it can quote bytes that are no text
            told.append("names that are no text")
        return True

    handler: Any = context.attach_diagnostic_handler(note)
    try:
        if PORTABLE.match(content):
            return stablehlo.deserialize_portable_artifact(context, content)
        return ir.Module.parse(content, context=context)
    except (ir.MLIRError, RuntimeError, ValueError) as error:
        raise FileFormatError(f"{where}: {_reason(content, told, error)}") from error
    finally:
        handler.detach()


def _reason(content: bytes, told: list[str], error: Exception) -> str:
    """What is wrong with a module, in the parser's words."""
    found = PRODUCER.match(content)
    words = told[0] if told else _first_error(str(error))
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


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return lines[0].removeprefix("error: ") if lines else text.strip()
