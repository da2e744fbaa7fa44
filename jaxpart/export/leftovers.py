"""Temporary folders beside a folder of stages, and what killed exports left of them.

A living process holds a lock on its folders, which the system releases when it ends in any way. So
a folder that can be locked is a leftover. Names carry a hash of the target's name: an export tidies
up after earlier ones into the same place alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is tidied up there
    fcntl = None


def locked_folder(target: Path) -> tuple[Path, int | None]:
    """Makes a temporary folder beside a target, and locks it.

    Returns:
      The folder, and the lock for `release`.
    """
    while True:
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=_beginning(target, "new")))
        try:
            lock = _lock(made)
        except (BlockingIOError, FileNotFoundError):
            continue  # another export took it for a leftover before it was locked
        if made.exists():
            return made, lock
        release(lock)


def old_folder(target: Path) -> Path:
    """Makes an empty folder beside a target, for what is there to be moved to."""
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=_beginning(target, "old")))


def try_lock(folder: Path) -> int | None:
    """Locks a folder; None if another process holds it."""
    try:
        return _lock(folder)
    except (BlockingIOError, FileNotFoundError):
        return None


def release(lock: int | None) -> None:
    """Gives a lock back."""
    if lock is not None:
        os.close(lock)


def tidy(target: Path) -> None:
    """Removes what killed exports into a target left beside it.

    One that was killed after it had moved the old folder away has its old folder back first.
    """
    for kind in ("old", "new"):
        for left in sorted(target.parent.glob(f"{_beginning(target, kind)}*")):
            lock = try_lock(left)
            if lock is None:
                continue
            if kind == "old" and not os.path.lexists(target) and any(left.iterdir()):
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)
            release(lock)


def _beginning(target: Path, kind: str) -> str:
    """How the names of temporary folders begin; short, whatever the name of the target."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return f".jaxpart.{digest}.{kind}."


def _lock(folder: Path) -> int | None:
    """Locks a folder; None where the system or the file system has no such locks.

    Raises:
      BlockingIOError: another process holds it.
      FileNotFoundError: the folder is not there.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle
