"""A disk that has no room left for single files, for tests."""

import errno
import io
import os
from pathlib import Path

FULL = r"cannot write here \(No space left on device\)"
WHEN = ("the write", "the rename")


def fill_up(monkeypatch, when="the write"):
    """From now on `write_whole` finds no room: after the first byte, or in the end."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:1])
            raise full

    def replace(self, target):
        raise full

    if when == "the write":
        monkeypatch.setattr(os, "fdopen", lambda handle, mode: Full(handle, mode))
    else:
        monkeypatch.setattr(Path, "replace", replace)
