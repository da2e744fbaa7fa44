"""A model of a file as a function of JAX, and what its arguments and results are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxpart.ingest.jaxpr.importer import Role


@dataclasses.dataclass(frozen=True)
class TracedFile:
    """A model that was read from a file.

    Attributes:
      closed: the function, a ClosedJaxpr; it and all that runs it needs types of 64 bits.
      roles: what each of its arguments is.
      names: of its arguments; constants have none.
      results: a position for each result, in the structure that a user knows.
      held: reads the values of the arguments that the file has, by their position.
    """

    closed: Any
    roles: tuple[Role, ...]
    names: tuple[str, ...]
    results: Any
    held: Callable[[], Mapping[int, Any]]
