"""Traces a search by timestamps: how long the device has nothing to do while the host works.

  python scripts/studies/overlap.py --json data/benchmarks/overlap.json
  python scripts/studies/overlap.py squeezenet --mcm mcm4 --methods random --steps 20

On an accelerator a search starts the next step before it looks at the last one (`steps_ahead` in
`jaxpart/cost/batch.py`). Each method runs twice here, on whatever device there is: looking at each
step at once, as on a CPU, and a step behind, as on an accelerator. A thread notes when the results
of each step are there. Looking is verification in float64, SCIP's queue, and bookkeeping.

Columns:

- steps: that were timed; the first eight, some of which compile, are not. The policy does not
  learn here.
- device ms: median from the start of a step, or the end of the one before it, to its results.
- host ms: median of the time from the results of a step to the start of the next one that the host
  asks for, where it looks at once. This is what looking a step behind can hide.
- idle: share of the wall time in which the device has no step to work on.

On a CPU device and host are one. What may improve the best is verified by a program that waits for
the step ahead there, so that looking a step behind hides nothing in a search that verifies in each
step. On an accelerator verification runs on the host's CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from jaxpart.arguments import count
from jaxpart.datasets.shipped import resolve
from jaxpart.engine import partition
from jaxpart.environment import environment
from jaxpart.files import write_whole
from jaxpart.methods.annealing import search as annealing
from jaxpart.methods.labels import search as labels
from jaxpart.methods.policy import search as policy
from jaxpart.problem.mcm import load_mcm
from jaxpart.runtime.state import Search

# Per method: its module, and the first and the last program of a step.
_PROGRAMS: dict[str, tuple[Any, str, str]] = {
    "random": (labels, "sample_lanes", "evaluate"),
    "paper_annealing": (labels, "relabel", "evaluate"),
    "policy": (policy, "play", "play"),
    "tempering": (annealing, "temper", "temper"),
}
_COMPILING = 8  # steps that are not timed


class StepTimes:
    """When each step was started, and when its results were there; seconds."""

    def __init__(self) -> None:
        """Starts the thread that waits for results."""
        self.begun_s: list[float] = []
        self.done_s: list[float] = []
        self._started: queue.Queue[Any] = queue.Queue()
        self._number = 0  # of steps whose last program was started
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def first(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The first program of a step; notes when it was given to the device."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.begun_s.append(time.perf_counter())
            return program(*args, **kwargs)

        return call

    def last(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The last program of a step; its results are waited for."""

        def call(*args: Any, **kwargs: Any) -> Any:
            results = program(*args, **kwargs)
            if len(self.begun_s) > self._number:  # not what is costed before the first step
                self._number += 1
                self._started.put(results)
            return results

        return call

    def close(self) -> None:
        """Waits until all results are there."""
        self._started.put(None)
        self._thread.join()

    def _wait(self) -> None:
        while (results := self._started.get()) is not None:
            jax.block_until_ready(results)
            self.done_s.append(time.perf_counter())


def idle_share(begun_s: list[float], done_s: list[float]) -> float:
    """The share of the time, from the first start to the last end, in which no step is there.

    Args:
      begun_s: when each step was given to the device, which computes them in order.
      done_s: when the results of each were there.
    """
    gaps = (max(b - d, 0.0) for b, d in zip(begun_s[1:], done_s, strict=False))
    return sum(gaps) / (done_s[-1] - begun_s[0])


@contextlib.contextmanager
def traced(method: str, ahead: int) -> Iterator[StepTimes]:
    """Notes the steps of a method, which looks at them `ahead` steps behind."""
    module, first, last = _PROGRAMS[method]
    trace = StepTimes()
    ends = trace.last(getattr(module, last))
    begins = trace.first(ends if first == last else getattr(module, first))
    with (
        mock.patch.object(module, last, ends),
        mock.patch.object(module, first, begins),
        mock.patch.object(module, "steps_ahead", return_value=ahead),
    ):
        yield trace
        trace.close()


def stopped_after(method: Callable[[Search], Iterator[Any]], steps: int) -> Any:
    """A method that ends after so many steps."""

    def limited(search: Search) -> Iterator[Any]:
        yield from itertools.islice(method(search), steps)

    return limited


def measure(graph: Any, mcm: Any, method: str, ahead: int, steps: int) -> dict[str, Any]:
    """Traces one search."""
    config = policy.PolicySearchConfig(batch=64, learn_after=None)
    methods = {
        "random": labels.random,
        "paper_annealing": labels.paper_annealing,
        "policy": policy.with_policy(policy.policy_of(None)[0], config),
        "tempering": annealing.tempering,
    }
    with traced(method, ahead) as trace:
        partition(
            graph,
            mcm,
            method=stopped_after(methods[method], steps + _COMPILING),
            time_limit_s=None,
            max_samples=10**12,
            relative_gap=0.0,
        )
    begun, done = trace.begun_s[_COMPILING:], trace.done_s[_COMPILING:]
    after = [trace.done_s[_COMPILING - 1], *done]
    device = [d - max(b, a) for b, d, a in zip(begun, done, after, strict=False)]
    host = [b - d for b, d in zip(begun[1:], done, strict=False)]
    return {
        "method": method,
        "ahead": ahead,
        "steps": len(done),
        "device_ms": 1e3 * statistics.median(device),
        "host_ms": None if ahead else 1e3 * statistics.median(host),
        "idle": idle_share(begun, done),
    }


def main() -> None:
    """Traces, prints a table and writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", nargs="?", default="bert-large", metavar="GRAPH")
    parser.add_argument("--mcm", default="mcm36", metavar="NAME_OR_TOML")
    parser.add_argument("--methods", nargs="+", choices=_PROGRAMS, default=list(_PROGRAMS))
    parser.add_argument("--steps", type=count, default=40, help="of each search")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    graph, brought = resolve(arguments.graph)
    mcm = brought or load_mcm(arguments.mcm)
    layout = "{:<16}{:>12}{:>8}{:>12}{:>10}{:>9}"
    print(layout.format("method", "looks behind", "steps", "device ms", "host ms", "idle"))
    rows = []
    for method, ahead in itertools.product(arguments.methods, (0, 1)):
        row = measure(graph, mcm, method, ahead, arguments.steps)
        rows.append(row)
        host = "-" if row["host_ms"] is None else f"{row['host_ms']:.1f}"
        figures = (f"{row['device_ms']:.1f}", host, f"{100 * row['idle']:.1f}%")
        print(layout.format(method, ahead, row["steps"], *figures), flush=True)
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("graph", "mcm", "steps")}
        document = {"environment": environment(), "settings": settings, "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
