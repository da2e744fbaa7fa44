"""Makes models from tables. A row names a model and the function that traces it in flax."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Collection, Mapping, Sequence

from jaxpart.problem.graph import Graph

from .catalog import Kind, Model, Split

Row = tuple[str, str, str, str]  # name, family, "module.function", configuration


def models_of(
    kind: Kind, sides: Mapping[Split, Sequence[Row]], raw: Collection[str], prefix: str
) -> tuple[Model, ...]:
    """Makes the models of tables.

    Args:
      kind: of all models.
      sides: the rows of each side of the split.
      raw: names of models that are also included without fusing.
      prefix: module `m` of a row is the module `PREFIX_m` of this package. It is imported when the
        model is built.

    Returns:
      The models of all rows, then the ones without fusing. These have `-raw` after their name, and
      are on the side of the fused model.
    """
    fused, unfused = [], []
    for split, rows in sides.items():
        fused += [_model(row, kind, split, prefix, fused=True) for row in rows]
        unfused += [_model(row, kind, split, prefix, fused=False) for row in rows if row[0] in raw]
    return (*fused, *unfused)


def _model(row: Row, kind: Kind, split: Split, prefix: str, *, fused: bool) -> Model:
    name, family, function, config = row
    name = name if fused else f"{name}-raw"
    return Model(
        name=name,
        family=family,
        kind=kind,
        source="flax",
        license="Apache-2.0",
        config=config,
        split=split,
        build=functools.partial(_build, f"{prefix}_{function}", name),
        fused=fused,
    )


def _build(function: str, name: str) -> Graph:
    """Imports "module.function" of this package and calls it with the name of the graph."""
    module, function = function.split(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)(name)
