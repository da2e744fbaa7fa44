"""The device programs with real inputs, to be run: what `inner_loops.py` measures of them.

`program_gate.py` makes each program with the shapes of its inputs. Here they get values: orders are
the program order with noise, chains start from the greedy baseline, networks have fresh weights.
What is left has the value 0; the time of a call does not depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from program_gate import PROGRAMS, Case, Program, shared

from jaxpart.cost.device import pad_assignments
from jaxpart.cost.sharding import LEAST_LABELS, devices_for, replicated
from jaxpart.methods.annealing.ensemble import ensemble_of, temper
from jaxpart.methods.orders.search import mutate, order_by
from jaxpart.problem.problem import IntArray, Problem

MEASURED = ("sample", "order", "temper", "act", "gradient")  # the others have inputs of two kinds
SWEEPS = 4  # of a call of `temper`; some move single nodes, some shift groups
_FORECAST = Path(__file__).parents[2] / "data" / "benchmarks" / "device_programs.json"
_TARGETS = {"H100": "h100", "TPU v5 lite": "v5e", "TPU v5e": "v5e"}  # part of a device's name


class Run(NamedTuple):
    """A program that can be called."""

    call: Callable[[], Any]
    candidates: int  # of a call
    devices: int  # that share them
    # Of all inputs and results; what every device needs as a whole counts for each.
    num_bytes: int


def run_of(name: str, problem: Problem, start: IntArray, batch: int, seed: int) -> Run:
    """Makes a program of `MEASURED` ready to be called.

    Args:
      name: of the program.
      problem: that it works on.
      start: [N] the greedy baseline.
      batch: candidates.
      seed: of the noise.
    """
    least = LEAST_LABELS if name == "sample" else 1
    count = 1 if name == "temper" else devices_for(batch, least)
    case = Case(problem, start, batch, count)
    program = PROGRAMS[name](case)
    key = jax.random.key(seed)
    if name == "sample":
        program = _with(program, {2: jnp.arange(batch, dtype=jnp.int32)})
    elif name == "order":
        program = _with(program, {1: _keys(case, key, batch)})
    elif name == "temper":
        return _temper(case, program, key)
    arguments = jax.tree.map(_filled, program.arguments)
    assert program.axes is not None
    whole = [
        argument for argument, axis in zip(arguments, program.axes, strict=True) if axis is None
    ]
    if count > 1:
        arguments = tuple(
            replicated(argument, batch, least) if axis is None else argument
            for argument, axis in zip(arguments, program.axes, strict=True)
        )
        program = shared(program, batch, jax.local_devices()[:count])
    function = functools.partial(program.function, **program.static)
    results = jax.eval_shape(function, *arguments)
    num_bytes = _bytes((arguments, results)) + (count - 1) * _bytes(whole)
    return Run(lambda: function(*arguments), batch, count, num_bytes)


def _temper(case: Case, program: Program, key: jax.Array) -> Run:
    """Sweeps of chains that start from the baseline, as a search calls them."""
    moves, _, orders, *_ = program.arguments
    labels = np.zeros((case.problem.num_contracted, case.batch), np.int64)
    labels[case.problem.contraction] = case.start[:, None]
    ensemble = ensemble_of(jnp.asarray(pad_assignments(moves.contracted, labels)), key)
    several = order_by(moves.contracted, _keys(case, key, orders.shape[0]))
    unit_s = jnp.float32(case.problem.mean_load_s)

    def call() -> Any:
        return temper(moves, ensemble, several, key, unit_s, SWEEPS)

    num_bytes = SWEEPS * 2 * _bytes((ensemble, several))
    return Run(call, SWEEPS * case.batch, 1, num_bytes)


def _keys(case: Case, key: jax.Array, batch: int) -> jax.Array:
    """[B, N] keys of the program order with noise."""
    nodes = jnp.arange(case.contracted.padded_nodes, dtype=jnp.float32)[None]
    return mutate(key, nodes, case.contracted.num_nodes, batch)


def _with(program: Program, values: dict[int, Any]) -> Program:
    """The program with some of its arguments replaced."""
    arguments = tuple(values.get(i, argument) for i, argument in enumerate(program.arguments))
    return program._replace(arguments=arguments)


def _filled(leaf: Any) -> Any:
    """Zeros in place of a shape."""
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _bytes(tree: Any) -> int:
    """Bytes of all arrays."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    known = (x for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.extended))
    return sum(x.size * x.dtype.itemsize for x in known)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What `device_programs.json` says of a kind of device, if it is one of its targets."""

    target: str | None
    rows: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, device_kind: str, backend: str, path: Path = _FORECAST) -> Forecast:
        """Of the device with this name."""
        names = [target for part, target in _TARGETS.items() if part in device_kind]
        target = "cpu" if backend == "cpu" else names[0] if names else None
        rows = json.loads(path.read_bytes())["rows"] if target else []
        mine = [row for row in rows if row["target"] == target and "error" not in row]
        return cls(target, tuple(mine))

    def figures(self, program: str, batch: int, devices: int = 1) -> dict[str, Any]:
        """What was predicted for a run; None: unknown.

        Args:
          program: its name.
          batch: candidates in a call.
          devices: that share them.

        Returns:
          `launches` of a call on each device; they depend little on the batch, and those of the
          nearest batch of a device that was compiled are taken. `predicted_candidates_per_s` of all
          devices together, where this very batch was predicted for as many devices.
          `forecast_devices`: for how many devices the two were made; where nothing was compiled for
          as many as there are, one, and only launches are given.
        """
        rows = [row for row in self.rows if row["program"] == program]
        counts = {row.get("devices", 1) for row in rows} & {1, devices}
        if not counts:
            return dict.fromkeys(
                ("launches", "predicted_candidates_per_s", "forecast_devices"), None
            )
        most = max(counts)
        rows = [row for row in rows if row.get("devices", 1) == most]
        near = min(rows, key=lambda row: abs(np.log(row["batch"] * devices / batch)))
        is_same = most == devices and near["batch"] * devices == batch
        return {
            "launches": near["launches"],
            "predicted_candidates_per_s": near["predicted_per_s"] if is_same else None,
            "forecast_devices": most,
        }
