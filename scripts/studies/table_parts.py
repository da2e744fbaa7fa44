"""What the tables of the READMEs are made of: raw files, figures as text, and columns."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "benchmarks"
_VERSIONS = ("jax", "jaxlib", "numpy", "pyscipopt", "ortools", "libtpu", "jax-cuda12-plugin")


Row = dict[str, Any]


def raw(name: str) -> dict[str, Any]:
    """A raw file of data/benchmarks."""
    return json.loads((FOLDER / f"{name}.json").read_bytes())


def markdown(header: str, rows: Sequence[Sequence[str]]) -> str:
    """A table. In `header` columns are split by `|`; those that begin with `>` align right."""
    columns = [column.strip() for column in header.split("|")]
    names = [column.removeprefix(">") for column in columns]
    rule = ["---:" if column.startswith(">") else "---" for column in columns]
    lines = [names, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int, scale: float = 1.0, none: str = "-") -> str:
    """A number with thousands separated; `none` where there is no finite one."""
    if value is None or not math.isfinite(value):
        return none
    return f"{value * scale:,.{digits}f}"


def percent(value: float | None, digits: int) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def mean(values: Sequence[float]) -> float:
    """The geometric mean; 1 of none."""
    return statistics.geometric_mean(values or [1.0])


def measured(*names: str) -> str:
    """A line for each raw file: command, cores, machine, versions and commit."""
    provenance = json.loads((FOLDER / "provenance.json").read_bytes())
    lines = []
    for name in names:
        document, told = raw(name), provenance[name]
        environments = document.get("environments") or [document["environment"]]
        found = environments[0]
        versions = ", ".join(f"{key} {found[key]}" for key in _VERSIONS if key in found)
        commit = found.get("commit") or told["commit"]
        lines.append(
            f"`{told['command']}`, commit {commit}, {told['cores']}, {found['machine']}, "
            f"Python {found['python']}, {versions}."
        )
    return "\n\n".join(lines) + "\n"
