"""jaxpart: partitions of machine-learning graphs over multi-chip modules.

The names below are loaded on first use, so that `import jaxpart` starts no JAX: solver workers and
`--help` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpart.dataset import load
    from jaxpart.errors import InfeasibleError, InputError, JaxpartError, NothingFoundError
    from jaxpart.graph import Graph, Node, Tensor, Weight
    from jaxpart.ingest.jaxpr import from_jax
    from jaxpart.ingest.load import load_graph
    from jaxpart.ingest.onnx import from_onnx
    from jaxpart.mcm import MCM, Chip, Constraints, load_mcm
    from jaxpart.problem import Problem
    from jaxpart.result import Result
    from jaxpart.search.engine import partition

_HOME = {
    "load": "dataset",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "JaxpartError": "errors",
    "NothingFoundError": "errors",
    "Graph": "graph",
    "Node": "graph",
    "Tensor": "graph",
    "Weight": "graph",
    "from_jax": "ingest.jaxpr",
    "load_graph": "ingest.load",
    "from_onnx": "ingest.onnx",
    "MCM": "mcm",
    "Chip": "mcm",
    "Constraints": "mcm",
    "load_mcm": "mcm",
    "Problem": "problem",
    "Result": "result",
    "partition": "search.engine",
}

__all__ = [
    "MCM",
    "Chip",
    "Constraints",
    "Graph",
    "InfeasibleError",
    "InputError",
    "JaxpartError",
    "Node",
    "NothingFoundError",
    "Problem",
    "Result",
    "Tensor",
    "Weight",
    "from_jax",
    "from_onnx",
    "load",
    "load_graph",
    "load_mcm",
    "partition",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxpart' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxpart.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
