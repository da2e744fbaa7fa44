"""Compiles every device program for accelerators that are not there, and counts what it would do.

  python scripts/device_programs.py
  python scripts/device_programs.py --programs evaluate project --targets h100 --batch 64
  pip install '.[aot]'                     what the targets h100 and v5e need (1 GB, Linux)

Compilation is real: the counts are those of the program after all passes of XLA, for an H100, a TPU
v5e, and the CPU. No driver or hardware is needed, and nothing runs. A GPU or TPU waits for each
kernel and for each question to the host; so a loop of thousands of small steps is what makes a
program slow there, however large its batch.

Columns:
  devices   that share the batch; the rest of the row is of each of them
  form      of the program (`lower` in `jaxpart/cost/device.py`); the target's own unless --form
  loops ?   loops whose number of iterations the compiler does not know
  loops     those with a known number
  kernels   outside loops, and inside
  launches  a call: kernels, each as often as its loops run; of the branches of a conditional, the
            one with most. "~": iterations estimated from the sizes of the problem. ">": a loop of
            which nothing is known counts one iteration
  questions a call, to the host: a conditional asks one, a loop "?" one per iteration
  temp MiB  temporary memory
  waits     instructions that wait for other devices
  per s     predicted, not measured: the batch over the seconds of a call, which are
            launches * launch time + questions * question time
              + max(bytes / memory bandwidth, operations / rate)
            with the constants of `targets.py`. "<": because of ">" it is at most this. Bytes and
            operations are counted in the HLO (`hlo.py`). Nothing is predicted for the CPU.

On several devices each has `batch` candidates. `temper` is not divided.

A candidate of `slice`, `probe` and `order` is an order of nodes; one of `temper` is a chain that
makes one sweep over its nodes. `kernel` is `evaluate` by one kernel, in the form of that name. Its
operations are counted by hand, for whole tiles on all multiprocessors; a CPU has no row for it.
On a CPU `gradient`, of the policy, has at most the batch of its training. Islands exchange by the
host and have no device program.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from hlo import Counts, counts_of, module_of
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from pairs import greedy_start
from targets import TARGETS, Target, devices_of, missing

from jaxpart.arguments import count, whole_number
from jaxpart.cost.device import DeviceProblem, Form, lower
from jaxpart.cost.evaluate import evaluate, verify
from jaxpart.cost.sharding import along, mesh_of, split
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.methods.annealing.ensemble import ensemble_of, sweep, temper
from jaxpart.methods.annealing.state import chip_graph_of, moves_of
from jaxpart.methods.labels.projection import project
from jaxpart.methods.labels.sampling import sample_lanes
from jaxpart.methods.orders.probe import probe
from jaxpart.methods.orders.search import order_by
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.methods.orders.weights import weights_of
from jaxpart.methods.policy import ppo
from jaxpart.methods.policy.network import NetworkConfig
from jaxpart.methods.policy.rollout import Task, act, initial_params
from jaxpart.methods.policy.training import TrainingConfig
from jaxpart.problem.problem import IntArray, Problem

_PACKAGES = ("libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt")
_SHIFT_ORDERS = 16  # orders that shifts of `temper` choose from
_LAYOUT = "{:<9}{:<7}{:>7}  {:<8}{:>6}{:>8}{:>7}{:>9}{:>8}{:>11}{:>11}{:>7}{:>10}{:>9}{:>13}"
_HEADER = (
    *("program", "target", "devices", "form", "batch", "loops ?", "loops", "outside", "inside"),
    *("launches", "questions", "waits", "temp MiB", "compile", "predicted/s"),
)
_DEVICES = (1, 4)  # that programs are compiled for, where a target has as many
Row = dict[str, Any]


class Program(NamedTuple):
    """A jitted function and what it is called with; arrays may be `ShapeDtypeStruct`s.

    Where several devices share it, `axes` has the axis of the candidates in each argument (None:
    each device needs the whole), and `out_axis` that of every result. No `axes`: they do not.
    """

    function: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    axes: tuple[int | None, ...] | None = None
    out_axis: int | None = -1  # None: means over the candidates, which devices exchange
    takes_mesh: bool = False  # the function itself divides what it draws (`sharding.divided`)
    # Of a kernel that the text of the program does not show: candidates that one core takes at a
    # time, and operations for each.
    tile: int = 1
    operations: float = 0.0


def shared(program: Program, batch: int, devices: list[Any]) -> Program:
    """The same program on several devices, each with an equal part of the candidates."""
    assert program.axes is not None
    if program.takes_mesh:
        return program._replace(static=program.static | {"mesh": mesh_of(tuple(devices))})
    function = split(
        program.function, batch, program.axes, program.out_axis, devices=devices, **program.static
    )
    return program._replace(function=function, static={})


@dataclasses.dataclass
class Case:
    """The problem that programs are compiled for. What is dear is made at most once."""

    problem: Problem
    start: IntArray  # [N] the greedy baseline
    batch: int  # of all devices
    devices: int = 1

    @functools.cached_property
    def device(self) -> DeviceProblem:
        """The problem of the nodes."""
        return lower(self.problem)

    @functools.cached_property
    def contracted(self) -> DeviceProblem:
        """The problem of the contracted nodes."""
        return lower(self.problem.contracted)

    @functools.cached_property
    def window(self) -> int:
        """The most contracted nodes in a segment no slower than the baseline."""
        limit_s = float(verify(self.problem, self.start[:, None]).bottleneck_s[0])
        return window_for(self.problem.contracted, limit_s)

    @functools.cached_property
    def task(self) -> Task:
        """The problem prepared for the policy."""
        return Task.build(self.problem)

    def labels(self) -> jax.ShapeDtypeStruct:
        """[N, B] chips of nodes."""
        shape = (self.device.padded_nodes, self.batch)
        return jax.ShapeDtypeStruct(shape, self.device.config.chip_dtype)

    def orders(self, dtype: Any, *, by_row: bool) -> jax.ShapeDtypeStruct:
        """[B, N] orders, keys or peaks of contracted nodes; [N, B] if not by row."""
        shape = (self.batch, self.contracted.padded_nodes)
        return jax.ShapeDtypeStruct(shape if by_row else shape[::-1], dtype)


def _evaluate(case: Case) -> Program:
    return Program(evaluate, (case.device, case.labels()), {}, (None, 1))


def _kernel(case: Case) -> Program:
    from jaxpart.cost import by_kernel  # not with every version of JAX

    launch = by_kernel.TPU if jax.default_backend() == "tpu" else by_kernel.GPU
    device = lower(case.problem, form="kernel")
    operations = by_kernel.operations(device, launch)
    arguments = (device, case.labels())
    tile = launch.tile
    return Program(evaluate, arguments, {}, (None, 1), tile=tile, operations=operations)


def _project(case: Case) -> Program:
    return Program(project, (case.device, case.labels()), {}, (None, 1))


def _sample(case: Case) -> Program:
    lanes = jax.ShapeDtypeStruct((case.batch,), jnp.int32)
    return Program(sample_lanes, (case.device, jax.random.key(0), lanes), {}, (None, None, 0))


def _order(case: Case) -> Program:
    arguments = (case.contracted, case.orders(jnp.float32, by_row=True))
    return Program(order_by, arguments, {}, (None, 0), 0)


def _slice(case: Case) -> Program:
    orders, peaks = (case.orders(kind, by_row=True) for kind in (jnp.int32, jnp.float32))
    arguments = (case.contracted, orders, peaks)
    return Program(slice_orders, arguments, {"window": case.window}, (None, 0, 0))


def _probe(case: Case) -> Program:
    weights = weights_of(case.problem.contracted, case.contracted.padded_nodes)
    orders, peaks = (case.orders(kind, by_row=False) for kind in (jnp.int32, jnp.float32))
    limits_s = jax.ShapeDtypeStruct((case.batch,), jnp.float32)
    arguments = (case.contracted, weights, orders, peaks, limits_s)
    return Program(probe, arguments, {"window": case.window}, (None, None, 1, 1, 0))


def _temper(case: Case) -> Program:
    graph = chip_graph_of(case.problem, case.start, np.random.default_rng(0))
    moves = moves_of(case.problem, graph)
    rows = moves.contracted.padded_nodes
    labels = jax.ShapeDtypeStruct((rows, case.batch), moves.contracted.config.chip_dtype)
    ensemble = jax.eval_shape(ensemble_of, labels, jax.random.key(0))
    orders = jax.ShapeDtypeStruct((_SHIFT_ORDERS, rows), jnp.int32)
    rest = (jax.random.key(0), jnp.float32(1), jnp.int32(1))
    by_rows = jax.jit(temper, static_argnames="share")
    function = by_rows if moves.neighbours is None else sweep
    return Program(function, (moves, ensemble, orders, *rest), {})


def _act(case: Case) -> Program:
    task, sizes = case.task, NetworkConfig()
    params = jax.eval_shape(lambda: initial_params(sizes, task, 0))
    count = case.contracted.num_nodes
    arguments = (params, task.features, task.start, jax.random.key(0), count)
    static = {"sizes": sizes, "batch": case.batch, "decoder": "labels"}
    return Program(act, arguments, static, (None,) * len(arguments), takes_mesh=True)


def _gradient(case: Case) -> Program:
    program = _act(case)
    params, features, state = program.arguments[:3]
    drawn = jax.eval_shape(functools.partial(act, **program.static), *program.arguments)
    samples = drawn.actions, drawn.log_prob, jax.ShapeDtypeStruct((case.batch,), jnp.float32)
    static = {"sizes": NetworkConfig(), "ppo_config": ppo.PPOConfig(), "decoder": "labels"}
    static["part"] = ppo.part_for(case.batch // case.devices)
    arguments = (params, features, state, samples)
    return Program(ppo.gradient_of, arguments, static, ppo.GRADIENT_AXES, None)


PROGRAMS: dict[str, Callable[[Case], Program]] = {
    "evaluate": _evaluate,
    "kernel": _kernel,
    "project": _project,
    "sample": _sample,
    "order": _order,
    "slice": _slice,
    "probe": _probe,
    "temper": _temper,
    "act": _act,
    "gradient": _gradient,
}


def main() -> int:
    """Prints one row per program, target and batch size; returns exit code 0, 1 if one failed.

    Raises:
      InputError: the graph or module does not exist, there is no baseline, or a target's packages
        are not installed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", default="bert-large")
    parser.add_argument("--mcm", default="mcm36")
    parser.add_argument("--batch", type=whole_number, nargs="+", default=[4096])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--devices", type=count, nargs="+", default=list(_DEVICES))
    parser.add_argument("--form", choices=("rows", "arrays"), help="default: the target's own")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    targets = [TARGETS[name] for name in arguments.targets]
    for target in targets:
        if absent := missing(target):
            raise InputError(
                f"{target.name} needs {', '.join(absent)}: pip install '.[aot]'; "
                "--targets cpu needs nothing"
            )
    problem, start = greedy_start(arguments.graph, arguments.mcm)
    rows = []
    print(_LAYOUT.format(*_HEADER))
    for target in targets:
        for batch, devices in itertools.product(arguments.batch, arguments.devices):
            if devices > 1 and target.backend == "cpu":
                continue
            places = devices_of(target, devices)
            for row in _rows(
                problem, start, batch, target, arguments.form, arguments.programs, places
            ):
                rows.append(row)
                print(line_of(row), flush=True)
    print("\nPredicted, not measured: a call takes launches + questions, and the longer of moving")
    print("its bytes and computing its operations. ~ estimated, > at least, < at most.")
    for target in targets:
        if target.bytes_per_s:
            print(target.describe())
    if arguments.json:
        kept = ("graph", "mcm", "batch", "devices", "form")
        settings = {key: getattr(arguments, key) for key in kept}
        constants = {t.name: t._asdict() for t in targets if t.bytes_per_s}
        document = {
            "environment": {**environment(), **_versions()},
            "settings": {**settings, "targets": constants},
            "rows": rows,
        }
        write_whole(arguments.json, json.dumps(document, indent=1).encode() + b"\n")
    return int(any("error" in row for row in rows))


def _rows(
    problem: Problem,
    start: IntArray,
    batch: int,
    target: Target,
    form: Form | None,
    programs: list[str],
    devices: list[Any],
) -> Iterator[Row]:
    """One row per program; `batch` is that of each device."""
    form = form or ("rows" if target.backend == "cpu" else "arrays")
    accelerator = "gpu" if target.backend == "cpu" else target.backend
    backend = "cpu" if form == "rows" else accelerator
    with _as_on(backend):
        case = Case(problem, start, batch * len(devices), len(devices))
        training = dataclasses.replace(case, batch=min(case.batch, TrainingConfig().batch))
        for name in programs:
            if name == "kernel" and target.backend == "cpu":
                continue
            chosen = training if name == "gradient" and backend == "cpu" else case
            program = PROGRAMS[name](chosen)
            if len(devices) > 1:
                if program.axes is None:
                    continue
                program = shared(program, chosen.batch, devices)
            known = {"program": name, "target": target.name, "devices": len(devices)}
            known |= {"form": name if name == "kernel" else form}
            known |= {"batch": chosen.batch // len(devices)}
            try:
                yield known | compiled(program, devices, target, chosen.batch)
            except jax.errors.JaxRuntimeError as error:  # the compiler refuses: no memory, mostly
                yield known | {"error": str(error).splitlines()[0]}


@contextlib.contextmanager
def _as_on(backend: str) -> Iterator[None]:
    """Makes the package choose what it chooses on a backend, such as the form of its programs."""
    jax.clear_caches()
    with (
        mock.patch.object(jax, "default_backend", return_value=backend),
        mock.patch("jaxpart.cost.device.warn_of_slow_release"),  # nothing runs here
    ):
        yield
    jax.clear_caches()


def compiled(program: Program, devices: list[Any], target: Target, batch: int) -> Row:
    """Compiles a program and counts it.

    Args:
      program: to compile.
      devices: of the target.
      target: whose constants the prediction has.
      batch: candidates of a call, on all devices.
    """

    def placed(argument: Any, axis: int | None) -> Any:
        def described(leaf: Any) -> jax.ShapeDtypeStruct:
            place: Any = SingleDeviceSharding(devices[0])
            if len(devices) > 1:
                spec = PartitionSpec() if axis is None else along(axis, jnp.ndim(leaf))
                place = NamedSharding(mesh_of(tuple(devices)), spec)
            return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, sharding=place)

        return jax.tree.map(described, argument)

    begun_s = time.perf_counter()
    axes = program.axes or (None,) * len(program.arguments)
    arguments = list(map(placed, program.arguments, axes))
    done = program.function.lower(*arguments, **program.static).compile()
    seconds = time.perf_counter() - begun_s
    counts = counts_of(module_of(done.as_text()), sizes_of(program))
    # Candidates at a time; the last wave counts whole.
    wave = program.tile * target.cores
    waves = -(-batch // (wave * len(devices)))
    counts += Counts(operations=waves * wave * program.operations)
    memory = done.memory_analysis()
    call_s = target.seconds(counts)
    return {
        "unknown_loops": counts.unknown_loops,
        "known_loops": counts.known_loops,
        "kernels_outside": counts.kernels_outside,
        "kernels_inside": counts.kernels_inside,
        "launches": round(counts.launches),
        "launches_are": "least" if counts.is_least else "estimated" if counts.is_estimated else "",
        "questions": round(counts.questions),
        "collectives": counts.collectives,
        "float_scatters": counts.float_scatters,
        "bytes": counts.num_bytes,
        "operations": counts.operations,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "compile_s": seconds,
        "predicted_s": call_s,
        "predicted_per_s": None if call_s is None else batch / call_s,
    }


def sizes_of(program: Program) -> dict[str, float]:
    """What is known of a program's arguments, by the names that they have in the compiled text.

    Integers are themselves; of a table of offsets it is the mean length of a segment.
    """
    sizes: dict[str, float] = {}
    names = list(inspect.signature(program.function).parameters)
    for name, argument in zip(names, program.arguments, strict=False):
        for path, leaf in jax.tree_util.tree_flatten_with_path(argument)[0]:
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
                continue
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            if not jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.ndim > 1 or leaf.size == 0:
                continue
            values = np.asarray(leaf)
            key = name + jax.tree_util.keystr(path)
            if values.ndim == 0:
                sizes[key] = float(values)
            elif values[0] == 0 and (np.diff(values) >= 0).all():
                segments = max(int((values < values[-1]).sum()), 1)  # padding comes behind them
                sizes[key] = float(values[-1]) / segments
    return sizes


def line_of(row: Row) -> str:
    """A row as text."""
    first = (row["program"], row["target"], row["devices"], row["form"], f"{row['batch']:,}")
    if "error" in row:
        return _LAYOUT.format(*first, *[""] * 10).rstrip() + f"  {row['error']}"
    mark = {"least": ">", "estimated": "~", "": ""}[row["launches_are"]]
    limit = {"least": "<", "estimated": "~", "": ""}[row["launches_are"]]
    predicted = row["predicted_per_s"]
    return _LAYOUT.format(
        *first,
        *(row[key] for key in ("unknown_loops", "known_loops", "kernels_outside")),
        row["kernels_inside"],
        f"{mark}{row['launches']:,}",
        f"{row['questions']:,}",
        row["collectives"],
        f"{row['temp_bytes'] / 2**20:,.1f}",
        f"{row['compile_s']:.1f} s",
        "-" if predicted is None else f"{limit}{predicted:,.0f}",
    )


def _versions() -> dict[str, str]:
    """Versions of the packages that compile for accelerators, as far as they are installed."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
