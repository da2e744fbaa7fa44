"""What tells a StableHLO file from others, without JAX."""

from __future__ import annotations

import re

MAGIC = b"ML\xefR"
# The producer stands behind the magic and the version of the bytecode, a varint of one byte.
PRODUCER = re.compile(rb"ML\xefR.([ -~]{1,80})\0", re.DOTALL)
PORTABLE = re.compile(rb"ML\xefR.StableHLO_v", re.DOTALL)
_TEXT = re.compile(
    rb"\s*(//[^\n]*\n\s*|#[\w.]+\s*=[^\n]*\n\s*)*"
    rb"(module\b|builtin\.module\b|\"builtin\.module\"|func\.func\b|\"func\.func\")"
)
# Bytes searched for the artifact inside of a serialized `jax.export`: it follows the types.
_MAX_HEAD = 2**24


def is_module(content: bytes) -> bool:
    """Whether bytes look like a module of MLIR: text or bytecode."""
    return content.startswith(MAGIC) or _TEXT.match(content) is not None


def is_exported(content: bytes) -> bool:
    """Whether bytes look like what `jax.export` serializes: a portable artifact inside of others.

    The format, a FlatBuffer, has no mark of its own.
    """
    return not is_module(content) and PORTABLE.search(content, 0, _MAX_HEAD) is not None
