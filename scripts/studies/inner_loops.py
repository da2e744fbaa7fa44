"""Candidates per second of each inner loop against batch size, beside its floor and a scalar loop.

  python scripts/studies/inner_loops.py --json data/benchmarks/inner.json
  python scripts/studies/inner_loops.py --quick

The loops: full evaluation (`cost.evaluate`: every figure and verdict, links and peak memory
included), projection, slicing (`slice_orders`) and probing (`probe`). Labels are uniformly random,
or near-valid: the greedy baseline with 1% of its labels randomised, projected (for the projection
itself: not yet). Orders are the program order with keys jittered, made topological.

Batches are shared by all local devices; on a CPU, `--devices` of them are made, one a core. The
reference is `reference_evaluate.py`: one thread, float64, numba. It takes turns with `evaluate`, so
that what disturbs the machine disturbs both; ratios are medians over the turns. Compilation, of
either, is timed apart: a first call less a later one. Every call ends with `block_until_ready`.

Floors, per candidate, for N nodes, E edges, K tensors, U uses of weights, C chips, L links,
B contracted nodes with P pairs of neighbours, and pieces of at most M contracted nodes:

  evaluate  N + 2E + U + 4(6C + L) bytes: labels read once as int8, those at the ends of edges and
            uses gathered, the figures written. E + U + N + E + K + K + 2N operations: is this chip
            new, once an edge and use; compute, received, sent, link ends; live bytes and their
            peak. An operation reads a total, changes it and writes it.
  project   2N bytes. 14P operations: votes and drops once a pair; four columns closed along and
            against the pairs, then two more that return, if the first sweep settled them all.
  slice     5B bytes. 2BMC operations: an addition or maximum and a minimum for each start of each
            piece on each chip.
  probe     8B bytes. 5BM operations: the figures of each start, compared once.

What the device does of each is measured first: bytes/s of an array larger than the caches, changed
in place, and float32 additions/s in the nearest cache, vectors included. The floor is the slower of
the two. It asks more than can be had where totals per chip are gathered and scattered: vectors do
not do that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numba
import numpy as np
import reference_evaluate

from jaxpart.cost.device import lower, pad_assignments
from jaxpart.cost.evaluate import evaluate, verify
from jaxpart.cost.greedy import baseline
from jaxpart.cost.host import peak_bounds
from jaxpart.cost.sharding import devices_for, replicated, split
from jaxpart.datasets.shipped import resolve
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.methods.labels.projection import project
from jaxpart.methods.orders.probe import can_probe, probe, weights_of
from jaxpart.methods.orders.search import mutate, sorted_nodes, swept
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import IntArray, Problem

_NOISE = 0.01  # of the labels
_REFERENCE = 1024  # candidates that the scalar loop is given at most


class Floor(NamedTuple):
    """What one candidate cannot do without."""

    num_bytes: int
    operations: int


def main() -> int:
    """Prints one row per loop, kind of input and batch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", default="bert-large")
    parser.add_argument("--mcm", default="mcm36")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--orders", type=int, nargs="+", default=[16, 64, 512])
    parser.add_argument("--calls", type=int, default=7, help="of which the median counts")
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="on a CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one size each, three calls")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.orders, arguments.calls = [1024], [16], 3
    jax.config.update("jax_num_cpu_devices", arguments.devices)

    graph, machine = resolve(arguments.graph)
    problem = Problem.build(graph, machine or load_mcm(arguments.mcm))
    start = baseline(problem)
    if start is None:
        raise InputError(f"{arguments.graph}: greedy finds nothing valid to start from")
    bench = Bench(arguments.calls)
    print(
        f"{bench.bytes_per_s / 1e9:.1f} GB/s streamed, {bench.operations_per_s / 1e9:.1f} G adds/s"
    )
    print(
        f"{'loop':<9}{'input':<12}{'batch':>6}{'compile s':>10}{'ms':>10}{'per s':>12}"
        f"{'floor/s':>12}{'reference/s':>12}{'ratio':>7}"
    )
    rng = np.random.default_rng(arguments.seed)
    for batch in arguments.batch:
        _labels(bench, problem, start, batch, rng)
    if can_probe(problem.contracted):
        for batch in arguments.orders:
            _orders(bench, problem, start, batch, arguments.seed)
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("graph", "mcm", "seed", "calls")}
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
        }
        write_whole(arguments.json, json.dumps(document, indent=1).encode())
    return 0


class Bench:
    """The rows so far, and what the device can do."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.rows: list[dict[str, object]] = []
        # Larger than the caches, four bytes read and four written; and in the nearest one.
        self.bytes_per_s = 8 * _additions_per_s(calls, 2**24, 8)
        self.operations_per_s = _additions_per_s(calls, 2**12, 20_000)

    def add(
        self,
        loop: str,
        kind: str,
        batch: int,
        run: Callable[[], Any],
        floor: Floor,
        reference: tuple[int, Callable[[], Any]] | None = None,
    ) -> None:
        """Times `run` of a batch, in turns with a reference and its candidates, if there is one."""
        first_s = _seconds(run)
        reference_first_s = _seconds(reference[1]) if reference else None
        sharing = []
        for _ in range(self.calls):
            reference_s = _seconds(reference[1]) if reference else None
            sharing.append((_seconds(run), reference_s))
        run_s = statistics.median(turn[0] for turn in sharing)
        floor_s = max(floor.num_bytes / self.bytes_per_s, floor.operations / self.operations_per_s)
        row: dict[str, Any] = {
            "loop": loop,
            "input": kind,
            "batch": batch,
            "devices": devices_for(batch),
            "compile_s": max(first_s - run_s, 0.0),
            "run_s": run_s,
            "candidates_per_s": batch / run_s,
            "floor_bytes": floor.num_bytes,
            "floor_operations": floor.operations,
            "floor_candidates_per_s": 1 / floor_s,
        }
        beside = ""
        if reference:
            count = reference[0]
            each_s = [other / count for _, other in sharing]
            reference_s = statistics.median(each_s)
            row |= {
                "reference_candidates_per_s": 1 / reference_s,
                "reference_compile_s": max(reference_first_s - reference_s * count, 0.0),
                "times_reference": statistics.median(
                    each * batch / mine for each, (mine, _) in zip(each_s, sharing, strict=True)
                ),
            }
            beside = f"{1 / reference_s:>12,.0f}{row['times_reference']:>7.2f}"
        self.rows.append(row)
        print(
            f"{loop:<9}{kind:<12}{batch:>6}{row['compile_s']:>10.2f}{run_s * 1e3:>10.1f}"
            f"{batch / run_s:>12,.0f}{1 / floor_s:>12,.0f}{beside}",
            flush=True,
        )


def _labels(
    bench: Bench, problem: Problem, start: IntArray, batch: int, rng: np.random.Generator
) -> None:
    """Full evaluation and projection."""
    device = replicated(lower(problem), batch)
    table = reference_evaluate.tables(problem)
    chips, nodes = problem.num_chips, problem.num_nodes
    edges, tensors, uses = len(problem.edge_tensor), problem.num_tensors, len(problem.use_node)
    figures = 6 * chips + len(problem.mcm.links)
    of_evaluate = Floor(
        nodes + 2 * edges + uses + 4 * figures,
        3 * nodes + 2 * edges + 2 * tensors + 2 * uses,
    )
    of_project = Floor(2 * nodes, 14 * len(problem.contracted_pairs))
    uniform = rng.integers(0, chips, (nodes, batch))
    noisy = np.where(rng.random(uniform.shape) < _NOISE, uniform, start[:, None])
    projected = np.asarray(project(device, pad_assignments(device, noisy))[0])
    run_evaluate = split(evaluate, batch, (None, 1))
    run_project = split(project, batch, (None, 1))
    for kind, labels in (("uniform", pad_assignments(device, uniform)), ("near-valid", projected)):
        labels = jax.device_put(labels)
        few = np.ascontiguousarray(np.asarray(labels)[:nodes, :_REFERENCE].T, np.uint16)
        bench.add(
            "evaluate",
            kind,
            batch,
            lambda labels=labels: run_evaluate(device, labels),
            of_evaluate,
            (len(few), lambda few=few: reference_evaluate.evaluate(table, few)),
        )
    for kind, labels in (("uniform", uniform), ("1% noise", noisy)):
        labels = jax.device_put(pad_assignments(device, labels))
        run = lambda labels=labels: run_project(device, labels)  # noqa: E731
        bench.add("project", kind, batch, run, of_project)


def _orders(bench: Bench, problem: Problem, start: IntArray, batch: int, seed: int) -> None:
    """Slicing and probing, within the bottleneck of the baseline."""
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
    run_slice = split(slice_orders, batch, (None, 0, 0), window=window)
    run_probe = split(probe, batch, (None, None, 1, 1, 0), window=window)
    arrays = [jnp.asarray(x) for x in (orders, peaks, orders.T, peaks.T)]
    weights = replicated(weights_of(contracted, size), batch)
    limits_s = jnp.full(batch, limit_s, jnp.float32)
    if batch <= 64:  # a table of chips by nodes for each order: more of them only wait
        bench.add(
            "slice",
            f"window {window}",
            batch,
            lambda: run_slice(device, arrays[0], arrays[1]),
            Floor(5 * count, 2 * count * window * chips),
        )
    bench.add(
        "probe",
        f"window {window}",
        batch,
        lambda: run_probe(device, weights, arrays[2], arrays[3], limits_s),
        Floor(8 * count, 5 * count * window),
    )


def _additions_per_s(calls: int, size: int, steps: int) -> float:
    """Multiply-adds/s to `size` float32 in place, again and again, by each device."""
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
    start_s = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start_s


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
