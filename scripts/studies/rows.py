"""The benchmark's rows on disk: kept as they come, gone on from, and merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import read_bytes, write_whole

Row = dict[str, Any]
# What tells one row from another; a row has those that it needs.
_KEY = ("part", "graph", "mcm", "method", "seed", "nodes_asked", "chips")


class Rows:
    """Rows of a JSON file. Whoever measures with the same settings goes on where it was."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """Reads what is there.

        Args:
          path: None: nothing is kept.
          settings: what decides a row beside what is in it.

        Raises:
          InputError: the file was made with other settings, or is none of ours.
        """
        self.path, self.settings = path, settings
        self.environments: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}  # rival -> package
        self.rows: list[Row] = []
        if path is not None and path.exists():
            self._take(path)

    @classmethod
    def merged(cls, paths: Sequence[Path], into: Path | None) -> Rows:
        """The rows of several files, of equal settings; of two for the same, the first.

        Raises:
          InputError: their settings differ, or one of them cannot be read.
        """
        rows = cls(None, _document(paths[0])["settings"])
        for path in paths:
            rows._take(path)
        rows.path = into
        return rows

    def get(self, **key: Any) -> Row | None:
        """The row of this key, where there is one."""
        return next((row for row in self.rows if _key(row) == _key(key)), None)

    def add(self, row: Row) -> None:
        """Keeps a row."""
        here = environment()
        if here not in self.environments:
            self.environments.append(here)
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Writes everything, a line a row."""
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
        document = _document(path)
        if document["settings"] != self.settings:
            raise InputError(f"{path}: made with {document['settings']}, expected {self.settings}")
        self.environments += [x for x in document["environments"] if x not in self.environments]
        self.missing |= document["missing"]
        seen = {_key(row) for row in self.rows}
        self.rows += [row for row in document["rows"] if _key(row) not in seen]


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(path))
        if {"environments", "settings", "missing", "rows"} <= document.keys():
            return document
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{path}: no file of this benchmark")


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)
