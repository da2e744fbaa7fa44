"""jaxpart: partitions of machine-learning graphs over multi-chip modules.

The names below are loaded on first use, so that `import jaxpart` starts no JAX: solver workers and
`--help` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpart.datasets.shipped import load
    from jaxpart.engine import partition
    from jaxpart.errors import InfeasibleError, InputError, JaxpartError, NothingFoundError
    from jaxpart.ingest.jaxpr.importer import from_jax
    from jaxpart.ingest.load import load_graph
    from jaxpart.ingest.onnx.importer import from_onnx
    from jaxpart.problem.graph import Graph, Node, Tensor, Weight
    from jaxpart.problem.mcm import MCM, Chip, Constraints, load_mcm
    from jaxpart.problem.problem import Problem
    from jaxpart.results.result import Result

_HOME = {
    "load": "datasets.shipped",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "JaxpartError": "errors",
    "NothingFoundError": "errors",
    "Graph": "problem.graph",
    "Node": "problem.graph",
    "Tensor": "problem.graph",
    "Weight": "problem.graph",
    "from_jax": "ingest.jaxpr.importer",
    "load_graph": "ingest.load",
    "from_onnx": "ingest.onnx.importer",
    "MCM": "problem.mcm",
    "Chip": "problem.mcm",
    "Constraints": "problem.mcm",
    "load_mcm": "problem.mcm",
    "Problem": "problem.problem",
    "Result": "results.result",
    "partition": "engine",
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
