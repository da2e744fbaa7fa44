"""Measures candidates per second of each device program, with a floor and a scalar loop to compare.

  python scripts/studies/inner_loops.py --json data/benchmarks/inner.json
  python scripts/studies/inner_loops.py --quick
  python scripts/studies/inner_loops.py --seconds 900 --json data/benchmarks

They are full evaluation (`evaluate`: every cost and verdict, links and peak memory included),
projection (`project`), slicing (`slice`: `slice_orders`), probing (`probe`), sampling (`sample`),
sorting of orders (`order`), annealing (`temper`: a candidate is a chain in one sweep), and the
policy (`act`, and the `gradient` of its loss). They run on whatever device JAX finds, in the form
that it has there. With a folder as `--json`, the file is named after the device (`inner.json` for a
CPU). Batches that
`--seconds` leaves no time for are left out, the largest first; a call that runs is never stopped.

Beside each row stand the launches of a call, on each device, and the candidates/s that
`data/benchmarks/device_programs.json` predicts for the device, if it is one of its targets. Where
nothing was compiled for as many devices, launches are those for one, and nothing is predicted; the
file says so (`forecast_devices`).

 Labels are uniformly random
or near-valid. Near-valid labels are the greedy baseline with 1% of its labels randomised;
`evaluate` gets them projected, `project` gets them as they are. Orders are the program order with
random noise on its keys, made topological.

All local devices share a batch; on a CPU there are `--devices` of them, by default one per core.
The reference is `reference_evaluate.py`: one thread, float64, numba. Its runs alternate with those
of `evaluate`, so that a disturbance of the machine affects both; ratios are medians over the runs.
Compilation is timed separately: the first call minus the median of later calls. Every call ends
with `block_until_ready`.

The floor is the least work per candidate. For N nodes, E edges, K tensors, U uses of weights, C
chips, L links, M contracted nodes with P pairs of neighbours, and segments of at most W contracted
nodes:

  evaluate  Bytes: N + 2E + U + 4(6C + L). Every label is read once as int8; the labels at the ends
            of edges and at uses are gathered; all costs are written.
            Operations: 3N + 2E + 2K + 2U. One test per edge and per use whether the chip is new
            (E + U); sums of compute (N), of received bytes (E), of sent bytes and ends of links
            (2K), of weights (U); live bytes and their peak (2N). An operation reads a sum, changes
            it and writes it.
  project   Bytes: 2N. Operations: 14P. Votes and drops, once per pair; four columns closed along
            and against the pairs, then two more columns, if the first sweep settles all nodes.
  slice     Bytes: 5M. Operations: 2MWC. One addition or maximum, and one minimum, for each start of
            each segment on each chip.
  probe     Bytes: 8M. Operations: 5MW. The costs of each start of a segment, compared once.
  others    Bytes of all inputs and results, each moved once; operations are not counted. For a
            sweep of `temper`: all chains and orders, read and written.

The rates of the device are measured first: bytes/s of an array larger than the caches, updated in
place, and float32 multiply-adds/s in the nearest cache, with vector instructions. The floor in
seconds is the slower of the two. Sums per chip are gathered and scattered, and vector instructions
do not do that; so these loops cannot reach the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numba
import numpy as np
import reference_evaluate
from pairs import greedy_start
from program_runs import MEASURED, Forecast, run_of

from jaxpart.arguments import count, whole_number
from jaxpart.cost.batch import is_accelerator
from jaxpart.cost.device import lower, pad_assignments
from jaxpart.cost.evaluate import evaluate, verify
from jaxpart.cost.host import peak_bounds
from jaxpart.cost.sharding import LEAST_LABELS, devices_for, replicated, split
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.methods.labels.projection import project
from jaxpart.methods.orders.probe import can_probe, probe
from jaxpart.methods.orders.search import mutate, sorted_nodes, swept
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.methods.orders.weights import weights_of
from jaxpart.methods.policy.training import TrainingConfig
from jaxpart.problem.problem import IntArray, Problem

_PROGRAMS = ("evaluate", "project", "slice", "probe", *MEASURED)
_NOISE_SHARE = 0.01  # share of labels that are randomised
_REFERENCE_CANDIDATES = 1024  # most candidates of a call of the scalar loop


class Floor(NamedTuple):
    """The least work for one candidate; the docstring of this module derives it."""

    num_bytes: int
    operations: int


def main() -> int:
    """Prints one row per loop, kind of input and batch size; returns exit code 0.

    Raises:
      InputError: the graph or module does not exist, or there is no baseline.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", default="bert-large")
    parser.add_argument("--mcm", default="mcm36")
    parser.add_argument("--batch", type=whole_number, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--orders", type=whole_number, nargs="+", default=[16, 64, 512])
    parser.add_argument("--calls", type=whole_number, default=7, help="of which the median counts")
    parser.add_argument("--devices", type=whole_number, default=os.cpu_count(), help="on a CPU")
    parser.add_argument("--programs", nargs="+", choices=_PROGRAMS, default=list(_PROGRAMS))
    parser.add_argument("--seconds", type=count, default=1800, help="budget of all, about")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--quick", action="store_true", help="one size each, three calls")
    parser.add_argument("--json", metavar="FILE", help="or a folder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.orders, arguments.calls = [1024], [16], 3
    jax.config.update("jax_num_cpu_devices", arguments.devices)

    problem, start = greedy_start(arguments.graph, arguments.mcm)
    bench = Bench(arguments.calls, arguments.seconds)
    print(
        f"{bench.bytes_per_s / 1e9:.1f} GB/s streamed, {bench.operations_per_s / 1e9:.1f} G adds/s"
    )
    print(
        f"{'program':<9}{'input':<12}{'batch':>6}{'compile s':>10}{'ms':>10}{'per s':>12}"
        f"{'floor/s':>12}{'launches':>11}{'predicted/s':>13}{'reference/s':>12}{'ratio':>7}"
    )
    rng = np.random.default_rng(arguments.seed)
    wanted = [name for name in _PROGRAMS if name in arguments.programs]
    if not can_probe(problem.contracted):
        wanted = [name for name in wanted if name != "probe"]
    for number, name in enumerate(wanted):
        bench.share(len(wanted) - number)
        for batch in _batches(name, arguments.batch, arguments.orders):
            if not bench.has_time_for(batch):
                bench.leave_out(name, batch)
            elif name in ("evaluate", "project"):
                _labels(bench, name, problem, start, batch, rng)
            elif name in ("slice", "probe"):
                _orders(bench, name, problem, start, batch, arguments.seed)
            else:
                _program(bench, name, problem, start, batch, arguments.seed)
    if arguments.json:
        settings = {
            key: getattr(arguments, key) for key in ("graph", "mcm", "seed", "calls", "seconds")
        }
        document = {
            "environment": {
                **environment(),
                "devices": jax.local_device_count(),
                "numba": numba.__version__,
            },
            "settings": settings,
            "streamed_bytes_per_s": bench.bytes_per_s,
            "additions_per_s": bench.operations_per_s,
            "rows": bench.rows,
            "left_out": bench.left_out,
        }
        path = Path(arguments.json)
        if path.is_dir():
            path /= file_of(bench.device)
        write_whole(path, json.dumps(document, indent=1).encode())
    return 0


def file_of(device_kind: str) -> str:
    """The name of the raw file of a kind of device."""
    kind = re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")
    return "inner.json" if kind == "cpu" else f"inner-{kind}.json"


def _batches(name: str, labels: list[int], orders: list[int]) -> list[int]:
    """The batches of a program, ascending, from those asked for labels and for orders."""
    chosen = set(orders if name in ("slice", "probe", "order") else labels)
    if not is_accelerator():
        # On a CPU every order that is cut needs a table of chips by nodes; a larger batch gains no
        # speed. And a gradient has the batch of the training.
        limits = {"slice": 64, "gradient": TrainingConfig().batch}
        chosen = {min(batch, limits.get(name, batch)) for batch in chosen}
    return sorted(chosen)


class Bench:
    """Times loops and collects the rows.

    Attributes:
      calls: timed calls per row; the median counts.
      device: its name.
      rows: one per program, kind of input and batch size.
      left_out: programs and batches for which no time was left.
      bytes_per_s: rate of the device's memory.
      operations_per_s: rate of its arithmetic.
    """

    def __init__(self, calls: int, seconds: float) -> None:
        self.calls = calls
        self.device = jax.devices()[0].device_kind
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, object]] = []
        self._forecast = Forecast.of(self.device, jax.default_backend())
        self._end_s = time.perf_counter() + seconds
        self._share_end_s, self._last = self._end_s, None
        # An element of the large array takes four bytes read and four written.
        self.bytes_per_s = 8 * _additions_per_s(calls, 2**24, 8)
        self.operations_per_s = _additions_per_s(calls, 2**12, 20_000)

    def share(self, left: int) -> None:
        """Begins a program; `left` programs share the time that is left, this one included."""
        now_s = time.perf_counter()
        self._share_end_s = now_s + max(self._end_s - now_s, 0) / left
        self._last: tuple[int, float] | None = None

    def has_time_for(self, batch: int) -> bool:
        """Whether a batch of the program would end in time, by the one before it.

        The first batch of a program always runs.
        """
        if self._last is None:
            self._last, self._begun_s = (batch, 0.0), time.perf_counter()
            return True
        size, _ = self._last
        now_s = time.perf_counter()
        expected_s = (now_s - self._begun_s) * max(batch / size, 1.0)
        self._last, self._begun_s = (batch, expected_s), now_s
        return now_s + expected_s <= self._share_end_s

    def leave_out(self, program: str, batch: int) -> None:
        """Notes that there was no time for a batch, and says so."""
        self.left_out.append({"loop": program, "batch": batch})
        print(f"{program:<9}{'no time left':<12}{batch:>6}", flush=True)

    def add(
        self,
        loop: str,
        kind: str,
        batch: int,
        run: Callable[[], Any],
        floor: Floor,
        reference: tuple[int, Callable[[], Any]] | None = None,
        devices: int | None = None,
        calls: int = 1,
    ) -> None:
        """Times `run`, alternating with the reference if there is one, and prints the row.

        Args:
          loop: name of the program.
          kind: of the input.
          batch: candidates in a call of `run`.
          run: treats one batch.
          floor: of one candidate.
          reference: the candidates in a call of the scalar loop, and this call.
          devices: that share the batch; by default those of programs on labels.
          calls: of the program in a call of `run`.
        """
        first_s = _seconds(run)
        reference_first_s = _seconds(reference[1]) if reference else None
        timings = []
        for _ in range(self.calls):
            reference_s = _seconds(reference[1]) if reference else None
            timings.append((_seconds(run) / calls, reference_s))
        run_s = statistics.median(seconds[0] for seconds in timings)
        shared_by = devices or devices_for(batch, LEAST_LABELS)
        floor_s = max(floor.num_bytes / self.bytes_per_s, floor.operations / self.operations_per_s)
        row: dict[str, Any] = {
            "loop": loop,
            "input": kind,
            "batch": batch,
            "device": self.device,
            "devices": shared_by,
            "compile_s": max(first_s - run_s * calls, 0.0),
            "run_s": run_s,
            "candidates_per_s": batch / run_s,
            "floor_bytes": floor.num_bytes,
            "floor_operations": floor.operations,
            "floor_candidates_per_s": 1 / floor_s,
            **self._forecast.figures(loop, batch, shared_by),
        }
        comparison = ""
        if reference:
            count = reference[0]
            each_s = [other / count for _, other in timings]
            reference_s = statistics.median(each_s)
            row |= {
                "reference_candidates_per_s": 1 / reference_s,
                "reference_compile_s": max(reference_first_s - reference_s * count, 0.0),
                "times_reference": statistics.median(
                    each * batch / mine for each, (mine, _) in zip(each_s, timings, strict=True)
                ),
            }
            comparison = f"{1 / reference_s:>12,.0f}{row['times_reference']:>7.2f}"
        self.rows.append(row)
        print(
            f"{loop:<9}{kind:<12}{batch:>6}{row['compile_s']:>10.2f}{run_s * 1e3:>10.1f}"
            f"{batch / run_s:>12,.0f}{1 / floor_s:>12,.0f}"
            f"{_shown(row['launches']):>11}{_shown(row['predicted_candidates_per_s']):>13}"
            f"{comparison}",
            flush=True,
        )


def _labels(
    bench: Bench,
    name: str,
    problem: Problem,
    start: IntArray,
    batch: int,
    rng: np.random.Generator,
) -> None:
    """Measures full evaluation or projection of a batch of labels."""
    device = replicated(lower(problem), batch, LEAST_LABELS)
    chips, nodes = problem.num_chips, problem.num_nodes
    edges, tensors, uses = len(problem.edge_tensor), problem.num_tensors, len(problem.use_node)
    figures = 6 * chips + len(problem.mcm.links)
    uniform = rng.integers(0, chips, (nodes, batch))
    noisy = np.where(rng.random(uniform.shape) < _NOISE_SHARE, uniform, start[:, None])
    run_project = split(project, batch, (None, 1), least=LEAST_LABELS)
    if name == "project":
        floor = Floor(2 * nodes, 14 * len(problem.contracted_pairs))
        for kind, labels in (("uniform", uniform), ("1% noise", noisy)):
            labels = jax.device_put(pad_assignments(device, labels))
            run = lambda labels=labels: run_project(device, labels)  # noqa: E731
            bench.add("project", kind, batch, run, floor)
        return
    table = reference_evaluate.tables(problem)
    floor = Floor(
        nodes + 2 * edges + uses + 4 * figures,
        3 * nodes + 2 * edges + 2 * tensors + 2 * uses,
    )
    projected = np.asarray(run_project(device, pad_assignments(device, noisy))[0])
    run_evaluate = split(evaluate, batch, (None, 1), least=LEAST_LABELS)
    for kind, labels in (("uniform", pad_assignments(device, uniform)), ("near-valid", projected)):
        labels = jax.device_put(labels)
        few = np.ascontiguousarray(np.asarray(labels)[:nodes, :_REFERENCE_CANDIDATES].T, np.uint16)
        bench.add(
            "evaluate",
            kind,
            batch,
            lambda labels=labels: run_evaluate(device, labels),
            floor,
            (len(few), lambda few=few: reference_evaluate.evaluate(table, few)),
        )


def _orders(
    bench: Bench, name: str, problem: Problem, start: IntArray, batch: int, seed: int
) -> None:
    """Measures slicing or probing of a batch of orders; the limit is the baseline's bottleneck."""
    contracted = problem.contracted
    device = replicated(lower(contracted), batch)
    size, limit_s = device.padded_nodes, float(verify(problem, start[:, None]).bottleneck_s[0])
    window = window_for(contracted, limit_s)
    program = jnp.arange(size, dtype=jnp.float32)[None]
    keys = mutate(jax.random.key(seed), program, problem.num_contracted, batch)
    orders = sorted_nodes(swept(device, keys))
    peaks = np.zeros((batch, size), np.float32)
    peaks[:, : problem.num_contracted] = peak_bounds(problem)[1]
    count, chips = problem.num_contracted, problem.num_chips
    arrays = [jnp.asarray(x) for x in (orders, peaks, orders.T, peaks.T)]
    kind, devices = f"window {window}", devices_for(batch)
    if name == "slice":
        run_slice = split(slice_orders, batch, (None, 0, 0), window=window)
        run = lambda: run_slice(device, arrays[0], arrays[1])  # noqa: E731
        floor = Floor(5 * count, 2 * count * window * chips)
    else:
        weights = replicated(weights_of(contracted, size), batch)
        limits_s = jnp.full(batch, limit_s, jnp.float32)
        run_probe = split(probe, batch, (None, None, 1, 1, 0), window=window)
        run = lambda: run_probe(device, weights, arrays[2], arrays[3], limits_s)  # noqa: E731
        floor = Floor(8 * count, 5 * count * window)
    bench.add(name, kind, batch, run, floor, devices=devices)


def _program(
    bench: Bench, name: str, problem: Problem, start: IntArray, batch: int, seed: int
) -> None:
    """Measures one of the other programs."""
    run = run_of(name, problem, start, batch, seed)
    floor = Floor(run.num_bytes // run.candidates, 0)
    calls = run.candidates // batch
    kind = f"{calls} sweeps" if calls > 1 else ""
    bench.add(name, kind, batch, run.call, floor, devices=run.devices, calls=calls)


def _shown(value: float | None) -> str:
    """A figure as text."""
    return "-" if value is None else f"{value:,.0f}"


def _additions_per_s(calls: int, size: int, steps: int) -> float:
    """Multiply-adds/s of all devices together.

    Args:
      calls: timed calls; the median counts.
      size: float32 numbers that each device updates in place.
      steps: updates of each number in a call.
    """
    batch = 2 * jax.local_device_count()

    def add(values: jax.Array) -> jax.Array:
        def step(_: Any, values: jax.Array) -> jax.Array:
            return values * jnp.float32(0.999) + jnp.float32(1)

        return jax.lax.fori_loop(0, steps, step, values)

    run = split(jax.jit(add), batch, (0,), 0)
    values = jnp.zeros((batch, size // 2), jnp.float32)
    _seconds(lambda: run(values))
    times_s = [_seconds(lambda: run(values)) for _ in range(calls)]
    return values.size * steps / statistics.median(times_s)


def _seconds(run: Callable[[], Any]) -> float:
    """Seconds of one call, until its result is ready."""
    start_s = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start_s


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
