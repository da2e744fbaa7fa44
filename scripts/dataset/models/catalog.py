"""What the data set consists of: every architecture, its family and its side of the split."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Literal

from jaxpart.problem.graph import Graph

Kind = Literal["cnn", "rnn", "transformer", "moe"]
Split = Literal["train", "valid", "test", "extra"]

# Each has a tuple of models named MODELS, and imports heavy packages in their `build` alone.
_MODULES = ("keras_cnn", "cnn", "recurrent", "transformers_flax")


@dataclasses.dataclass(frozen=True)
class Model:
    """One graph of the data set.

    Attributes:
      name: of the graph and its file.
      family: architectures of one family share their structure, and their side of the split.
      kind: what the architecture is.
      source: the package (as named for pip) that defines the layers.
      license: of that package, as an SPDX identifier.
      config: the configuration in one line that a person can read.
      split: the side; "extra" stands outside of the split.
      build: traces it: batch 1, inference, float tensors counted as int8, one node per primitive.
      fused: whether the graph is brought to the granularity of a compiler's kernels
        (`jaxpart.ingest.fuse`) after that.
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
      ValueError: two models share a name, or one family stands on two sides of the split.
    """
    found: list[Model] = []
    for module in _MODULES:
        if importlib.util.find_spec(f"{__package__}.{module}") is not None:
            found += importlib.import_module(f"{__package__}.{module}").MODELS
    check(found)
    return tuple(found)


def check(found: list[Model]) -> None:
    """Raises ValueError where names repeat or a family stands on two sides."""
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
