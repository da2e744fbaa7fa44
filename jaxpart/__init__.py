"""jaxpart: partitions of machine-learning graphs over multi-chip modules.

The names below are imported when they are first used, so `import jaxpart` starts no JAX: solver
workers and `--help` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from jaxpart import datasets
    from jaxpart.bounds.combinatorial import Bound
    from jaxpart.cost.device import DeviceProblem
    from jaxpart.cost.evaluate import Costs
    from jaxpart.cost.verdicts import Verdict
    from jaxpart.engine import lower_bound, partition
    from jaxpart.errors import (
        EmptyGraphError,
        FileFormatError,
        GraphError,
        InfeasibleError,
        InputError,
        JaxpartError,
        NothingFoundError,
    )
    from jaxpart.export.jax.files import load_stage
    from jaxpart.export.jax.from_file import trace_file
    from jaxpart.export.jax.stages import Stages, Trace, trace
    from jaxpart.export.measuring.profile import Profile, profile
    from jaxpart.export.running.run import RunReport, StageTime, run_stages
    from jaxpart.export.simulation.simulate import Simulation, Stall, simulate
    from jaxpart.export.targets import export
    from jaxpart.export.torch_split import torch_split
    from jaxpart.ingest.jaxpr.importer import from_jax
    from jaxpart.ingest.load import load_graph, load_instance
    from jaxpart.ingest.onnx.importer import from_onnx
    from jaxpart.ingest.pt2.importer import from_pt2
    from jaxpart.ingest.rewrite.fuse import fuse
    from jaxpart.ingest.rewrite.split import Split
    from jaxpart.ingest.seconds import with_seconds
    from jaxpart.ingest.stablehlo.importer import from_stablehlo
    from jaxpart.methods import METHODS
    from jaxpart.methods.policy.checkpoint import Policy
    from jaxpart.methods.policy.imitation import Example, ImitationConfig, read_examples
    from jaxpart.methods.policy.network import NetworkConfig
    from jaxpart.methods.policy.ppo import PPOConfig
    from jaxpart.methods.policy.pretraining import PretrainingRun, pretrain, pretraining_pairs
    from jaxpart.methods.policy.search import PolicySearchConfig, PolicySource
    from jaxpart.methods.policy.training import TrainingConfig, TrainingError, TrainingRow
    from jaxpart.policies import Samples, finetune, rollout
    from jaxpart.problem.graph import Graph, Node, Tensor, Weight
    from jaxpart.problem.mcm import MCM, Chip, Constraints, load_mcm
    from jaxpart.problem.problem import Problem
    from jaxpart.results.evaluation import Evaluation, evaluate
    from jaxpart.results.result import Result, SearchInfo
    from jaxpart.runtime.islands import Islands
    from jaxpart.runtime.pool import SolverPool
    from jaxpart.runtime.state import Budget, Method, Progress, Rule, Search
    from jaxpart.solvers.repair import Outcome
    from jaxpart.splitting import refine, split
    from jaxpart.sweep import ChipsRow, DoubledRow, Sweep, sweep

_HOME = {
    "Bound": "bounds.combinatorial",
    "Budget": "runtime.state",
    "Chip": "problem.mcm",
    "ChipsRow": "sweep",
    "Constraints": "problem.mcm",
    "Costs": "cost.evaluate",
    "DeviceProblem": "cost.device",
    "DoubledRow": "sweep",
    "EmptyGraphError": "errors",
    "Evaluation": "results.evaluation",
    "Example": "methods.policy.imitation",
    "FileFormatError": "errors",
    "Graph": "problem.graph",
    "GraphError": "errors",
    "ImitationConfig": "methods.policy.imitation",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "Islands": "runtime.islands",
    "JaxpartError": "errors",
    "MCM": "problem.mcm",
    "METHODS": "methods",
    "Method": "runtime.state",
    "NetworkConfig": "methods.policy.network",
    "Node": "problem.graph",
    "NothingFoundError": "errors",
    "Outcome": "solvers.repair",
    "PPOConfig": "methods.policy.ppo",
    "Policy": "methods.policy.checkpoint",
    "PolicySearchConfig": "methods.policy.search",
    "PolicySource": "methods.policy.search",
    "PretrainingRun": "methods.policy.pretraining",
    "Problem": "problem.problem",
    "Profile": "export.measuring.profile",
    "Progress": "runtime.state",
    "Result": "results.result",
    "Rule": "runtime.state",
    "RunReport": "export.running.run",
    "Samples": "policies",
    "Search": "runtime.state",
    "SearchInfo": "results.result",
    "Simulation": "export.simulation.simulate",
    "SolverPool": "runtime.pool",
    "Stall": "export.simulation.simulate",
    "Split": "ingest.rewrite.split",
    "StageTime": "export.running.run",
    "Stages": "export.jax.stages",
    "Sweep": "sweep",
    "Tensor": "problem.graph",
    "Trace": "export.jax.stages",
    "TrainingConfig": "methods.policy.training",
    "TrainingError": "methods.policy.training",
    "TrainingRow": "methods.policy.training",
    "Verdict": "cost.verdicts",
    "Weight": "problem.graph",
    "evaluate": "results.evaluation",
    "finetune": "policies",
    "from_jax": "ingest.jaxpr.importer",
    "from_onnx": "ingest.onnx.importer",
    "from_pt2": "ingest.pt2.importer",
    "from_stablehlo": "ingest.stablehlo.importer",
    "fuse": "ingest.rewrite.fuse",
    "load_graph": "ingest.load",
    "load_instance": "ingest.load",
    "load_mcm": "problem.mcm",
    "load_stage": "export.jax.files",
    "lower_bound": "engine",
    "partition": "engine",
    "pretrain": "methods.policy.pretraining",
    "pretraining_pairs": "methods.policy.pretraining",
    "profile": "export.measuring.profile",
    "read_examples": "methods.policy.imitation",
    "refine": "splitting",
    "rollout": "policies",
    "run_stages": "export.running.run",
    "simulate": "export.simulation.simulate",
    "split": "splitting",
    "sweep": "sweep",
    "torch_split": "export.torch_split",
    "trace": "export.jax.stages",
    "trace_file": "export.jax.from_file",
    "with_seconds": "ingest.seconds",
}

__all__ = [
    "MCM",
    "METHODS",
    "Bound",
    "Budget",
    "Chip",
    "ChipsRow",
    "Constraints",
    "Costs",
    "DeviceProblem",
    "DoubledRow",
    "EmptyGraphError",
    "Evaluation",
    "Example",
    "FileFormatError",
    "Graph",
    "GraphError",
    "ImitationConfig",
    "InfeasibleError",
    "InputError",
    "Islands",
    "JaxpartError",
    "Method",
    "NetworkConfig",
    "Node",
    "NothingFoundError",
    "Outcome",
    "PPOConfig",
    "Policy",
    "PolicySearchConfig",
    "PolicySource",
    "PretrainingRun",
    "Problem",
    "Profile",
    "Progress",
    "Result",
    "Rule",
    "RunReport",
    "Samples",
    "Search",
    "SearchInfo",
    "Simulation",
    "SolverPool",
    "Split",
    "StageTime",
    "Stages",
    "Stall",
    "Sweep",
    "Tensor",
    "Trace",
    "TrainingConfig",
    "TrainingError",
    "TrainingRow",
    "Verdict",
    "Weight",
    "datasets",
    "evaluate",
    "export",
    "finetune",
    "from_jax",
    "from_onnx",
    "from_pt2",
    "from_stablehlo",
    "fuse",
    "load_graph",
    "load_instance",
    "load_mcm",
    "load_stage",
    "lower_bound",
    "partition",
    "pretrain",
    "pretraining_pairs",
    "profile",
    "read_examples",
    "refine",
    "rollout",
    "run_stages",
    "simulate",
    "split",
    "sweep",
    "torch_split",
    "trace",
    "trace_file",
    "with_seconds",
]


def __getattr__(name: str) -> Any:
    if name in ("datasets", "export"):  # packages; the second can be called
        return importlib.import_module(f"jaxpart.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'jaxpart' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxpart.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
