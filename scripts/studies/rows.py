"""The rows of the benchmark in a JSON file: written as they are measured, read again, merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import read_bytes, write_whole

Row = dict[str, Any]
# Keys that identify a row. A row lacks the keys that do not apply to it.
_KEY = ("part", "graph", "mcm", "method", "seed", "nodes_asked", "chips")


class Rows:
    """Rows of a JSON file, so that a benchmark that was stopped resumes.

    Attributes:
      path: of the file; None: rows are not written.
      settings: all settings that rows depend on and do not contain.
      environments: machines and versions that measured the rows.
      missing: rival -> package that was not installed.
      rows: all rows.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """Reads the rows of an earlier benchmark.

        Args:
          path: of the file, which need not exist; None: rows are not written.
          settings: all settings that rows depend on and do not contain.

        Raises:
          InputError: the file was made with other settings, or is no file of this benchmark.
        """
        self.path, self.settings = path, settings
        self.environments: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}
        self.rows: list[Row] = []
        if path is not None and path.exists():
            self._take(path)

    @classmethod
    def merged(cls, paths: Sequence[Path], into: Path | None) -> Rows:
        """Merges files with equal settings; of two rows with the same key, the first is taken.

        Args:
          paths: of the files.
          into: file of the merged rows, which is not written yet.

        Raises:
          InputError: the settings differ, or a file cannot be read.
        """
        rows = cls(None, _document(paths[0])["settings"])
        for path in paths:
            rows._take(path)
        rows.path = into
        return rows

    def get(self, **key: Any) -> Row | None:
        """The row with exactly these keys; None if there is none."""
        return next((row for row in self.rows if _key(row) == _key(key)), None)

    def add(self, row: Row) -> None:
        """Adds a row and writes the file."""
        here = environment()
        if here not in self.environments:
            self.environments.append(here)
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Writes the file, with one line per row."""
        if self.path is None:
            return
        head = {
            "environments": self.environments,
            "settings": self.settings,
            "missing": self.missing,
        }
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        text = json.dumps(head, indent=1).removesuffix("\n}") + f',\n "rows": [\n{lines}\n]}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, text.encode())

    def _take(self, path: Path) -> None:
        """Adds the rows of a file, except those whose key is already there."""
        document = _document(path)
        if document["settings"] != self.settings:
            raise InputError(f"{path}: made with {document['settings']}, expected {self.settings}")
        self.environments += [x for x in document["environments"] if x not in self.environments]
        self.missing |= document["missing"]
        seen = {_key(row) for row in self.rows}
        self.rows += [row for row in document["rows"] if _key(row) not in seen]


def _document(path: Path) -> dict[str, Any]:
    """Reads a file of rows; raises InputError for any other file."""
    try:
        document = json.loads(read_bytes(path))
        if {"environments", "settings", "missing", "rows"} <= document.keys():
            return document
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{path}: no file of this benchmark")


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)
