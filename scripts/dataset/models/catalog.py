"""All models of the data set, each with its family and its side of the split."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Literal

from jaxpart.problem.graph import Graph

Kind = Literal["cnn", "rnn", "transformer", "moe"]
Split = Literal["train", "valid", "test", "extra"]

# Each module has a tuple MODELS, and imports heavy packages only when a model is built.
_MODULES = ("keras_cnn", "cnn", "recurrent", "transformers_flax")


@dataclasses.dataclass(frozen=True)
class Model:
    """One graph of the data set.

    Attributes:
      name: of the graph and its file.
      family: of the architecture. The models of a family share their structure, and their side of
        the split.
      kind: of the architecture.
      source: the package that defines the layers, by its pip name.
      license: of that package, an SPDX identifier.
      config: the configuration in words, in one line.
      split: side of the split; "extra" is outside the split.
      build: traces the model for inference at batch size 1, with float tensors counted as int8 and
        one node per primitive.
      fused: whether `jaxpart/ingest/rewrite/fuse.py` then merges nodes to the kernels of a
        compiler.
    """

    name: str
    family: str
    kind: Kind
    source: str
    license: str
    config: str
    split: Split
    build: Callable[[], Graph]
    fused: bool = True


def models() -> tuple[Model, ...]:
    """All models, in the order of their modules.

    Raises:
      ValueError: two models share a name, or a family is on two sides of the split.
    """
    found: list[Model] = []
    for module in _MODULES:
        if importlib.util.find_spec(f"{__package__}.{module}") is not None:
            found += importlib.import_module(f"{__package__}.{module}").MODELS
    check(found)
    return tuple(found)


def check(found: list[Model]) -> None:
    """Raises ValueError if two models share a name or a family is on two sides of the split."""
    names: set[str] = set()
    sides: dict[str, Split] = {}
    for model in found:
        if model.name in names:
            raise ValueError(f"two models are named {model.name!r}, expected distinct names")
        names.add(model.name)
        if sides.setdefault(model.family, model.split) != model.split:
            raise ValueError(
                f"family {model.family!r} stands on the sides {sides[model.family]!r} and "
                f"{model.split!r} ({model.name}), expected one"
            )
