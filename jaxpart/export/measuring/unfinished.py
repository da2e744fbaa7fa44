"""Measurements that were stopped: kept in the file of seconds, and taken up again.

The file is what `--seconds` reads, the medians so far, with two columns more: the time of each run
in microseconds, and what was measured. The file of a finished measurement does not have them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxpart.files import read_bytes, write_whole

_COLUMNS = ["name", "seconds", "runs_us", "measured"]

Times = dict[str, list[float]]  # node -> seconds of each run


def key_of(path: str, inputs: str | os.PathLike[str] | None, *settings: object) -> str:
    """What is measured, as a short text: the same for the same model, inputs and settings.

    Args:
      path: of the model.
      inputs: the file of its inputs, if there is one.
      settings: anything else that matters, as JSON has it.

    Raises:
      InputError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for file in (path, *([] if inputs is None else [inputs])):
        digest.update(hashlib.sha256(read_bytes(file)).digest())
    return digest.hexdigest()[:16]


def read_unfinished(path: str | os.PathLike[str] | None, key: str) -> Times:
    """The times in a file of an unfinished measurement; none where it is not of this one.

    Args:
      path: the file; None, and one that does not exist, have none.
      key: what is measured.

    Raises:
      InputError: the file cannot be read.
    """
    if path is None or not Path(path).exists():
        return {}
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path).decode(), newline=""), strict=True))
        if not rows or rows[0] != _COLUMNS or any(row[3] != key for row in rows[1:]):
            return {}
        return {row[0]: [float(time) / 1e6 for time in row[2].split()] for row in rows[1:]}
    except (UnicodeDecodeError, csv.Error, ValueError, IndexError):  # no file of ours
        return {}


def write_unfinished(
    path: str | os.PathLike[str], times: Mapping[str, Sequence[float]], key: str
) -> None:
    """Writes the times so far, completely or not at all.

    Raises:
      InputError: the folder does not exist or cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(_COLUMNS)
    # All names are quoted: the writer does not see that a carriage return needs it.
    rows = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for name, taken in times.items():
        runs_us = " ".join(repr(round(1e6 * time, 3)) for time in taken)
        rows.writerow((name, statistics.median(taken), runs_us, key))
    write_whole(path, text.getvalue().encode())
