"""Measures the policy's loop: act, project, evaluate, and SCIP's repair of what overflows.

  python scripts/benchmark.py --parts rollout --json data/benchmarks/rollout.json
  python scripts/benchmark.py --parts rollout --quick

A round draws a batch of samples on the device, makes them keep the rules, and costs them (`play`).
Memory binds: the capacity of a chip is the mean memory of the baseline's chips and 20% more
(`repair.py`). The next round is on the device before the host looks at this one. The host sends the
fastest samples that break memory alone to a pool of SCIP workers, as long as fewer wait there than
two for each worker, and takes what is done. It never waits for the pool. The shipped policy plays.

Columns, for each number of workers:

- samples/s: through act, project and evaluate, over wall time.
- alone: the same without repair.
- device waits: the share of the wall time in which no round is being computed. A round that is
  computed beside repairs counts the time of one alone, the median; so where the workers share the
  cores of a CPU with it, this is an upper bound.
- repaired/s: samples with a valid answer of the pool, over wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from repair import module

from jaxpart.arguments import non_negative, whole_number
from jaxpart.cost.batch import is_accelerator
from jaxpart.datasets.shipped import resolve
from jaxpart.environment import environment
from jaxpart.files import write_whole
from jaxpart.methods.policy.checkpoint import SHIPPED, Policy
from jaxpart.methods.policy.rollout import Rollout, Task, play
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.repair_batch import Repairs

_ROOM = 0.2  # capacity above the mean, as a share of it
_LIMIT_S = 1.0  # of one repair
_BATCH, _ACCELERATOR_BATCH = 64, 4096


def main() -> None:
    """Measures, prints a table and writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", nargs="?", default="bert-large", metavar="GRAPH")
    parser.add_argument("--mcm", default="mcm36", metavar="NAME_OR_TOML")
    parser.add_argument("--workers", type=whole_number, nargs="+", default=[1, 2, 16])
    parser.add_argument("--batch", type=whole_number, help="samples per round")
    parser.add_argument("--seconds", type=non_negative, default=20.0, help="for each (20)")
    parser.add_argument("--quick", action="store_true", help="1 worker, 5 s")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--json", metavar="FILE.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.workers, arguments.seconds = [1], 5.0
    batch = arguments.batch or (_ACCELERATOR_BATCH if is_accelerator() else _BATCH)

    graph, _ = resolve(arguments.graph)
    problem = Problem.build(graph, module(graph, load_mcm(arguments.mcm), _ROOM))
    rounds = _Rounds(problem, batch, arguments.seed)
    alone_s = rounds.alone_s()
    print(f"{graph.name} on {problem.mcm.name}, {batch} samples a round of {alone_s * 1e3:.1f} ms")
    print(f"{'workers':>7}{'samples/s':>12}{'alone':>10}{'device waits':>14}{'repaired/s':>12}")
    rows = []
    for workers in arguments.workers:
        row = rounds.with_repair(workers, arguments.seconds, alone_s)
        rows.append(row)
        print(
            f"{workers:>7}{row['samples_per_s']:>12,.0f}{batch / alone_s:>10,.0f}"
            f"{row['device_waits']:>13.0%} {row['repaired_per_s']:>12,.1f}",
            flush=True,
        )
    if arguments.json:
        document = {
            "environment": environment(),
            "arguments": vars(arguments),
            "batch": batch,
            "round_alone_s": alone_s,
            "rows": rows,
        }
        write_whole(arguments.json, json.dumps(document, indent=1).encode() + b"\n")


class _Rounds:
    """Rounds of the shipped policy on one problem."""

    def __init__(self, problem: Problem, batch: int, seed: int) -> None:
        self.problem, self.batch = problem, batch
        self.task = Task.build(problem)
        self.policy = Policy.load(SHIPPED)
        self.key = jax.random.key(seed)

    def start(self, number: int, state: Any) -> Rollout:
        """Starts a round on the device; does not wait for it."""
        key = jax.random.fold_in(self.key, number)
        return play(
            self.policy.params, self.policy.network, self.task, state, key,
            batch=self.batch, decoder="labels", mode="fix",
        )  # fmt: skip

    def alone_s(self, count: int = 10) -> float:
        """Median seconds of a round without repair, after one that compiles."""
        state, seconds = self.task.start, []
        for number in range(count + 1):
            start_s = time.perf_counter()
            state = jax.block_until_ready(self.start(number, state).after)
            seconds.append(time.perf_counter() - start_s)
        return statistics.median(seconds[1:])

    def with_repair(self, workers: int, seconds: float, alone_s: float) -> dict[str, Any]:
        """Measures rounds whose fastest overflowing samples are repaired beside them.

        Args:
          workers: processes of the pool.
          seconds: to play.
          alone_s: of a round without repair.
        """
        waiting: list[Future[Repairs]] = []
        rounds = asked = answered = repaired = 0
        with SolverPool(self.problem, workers) as pool:
            pool.repair_batch(np.zeros((1, self.problem.num_nodes), np.int64)).result()  # starts it
            made = self.start(0, self.task.start)
            jax.block_until_ready(made.after)
            start_s = time.perf_counter()
            while time.perf_counter() - start_s < seconds:
                rounds += 1
                following = self.start(rounds, made.after)
                room = 2 * workers - len(waiting)
                for candidate in _overflowing(self.problem, made, room) if room else ():
                    waiting.append(pool.repair_batch(candidate[None], time_limit_s=_LIMIT_S))
                    asked += 1
                done = [future for future in waiting if future.done()]
                waiting = [future for future in waiting if not future.done()]
                answered += len(done)
                repaired += sum(int(future.result().valid.sum()) for future in done)
                made = following
            jax.block_until_ready(made.after)
            wall_s = time.perf_counter() - start_s
        return {
            "workers": workers,
            "rounds": rounds,
            "wall_s": wall_s,
            "samples_per_s": rounds * self.batch / wall_s,
            "device_waits": max(0.0, 1 - rounds * alone_s / wall_s),
            "asked": asked,
            "answered": answered,
            "repaired": repaired,
            "repaired_per_s": repaired / wall_s,
        }


def _overflowing(problem: Problem, made: Rollout, most: int) -> np.ndarray:
    """[at most `most`, N] the fastest samples that keep every rule but memory."""
    costs = jax.device_get(made.costs)
    keeps = costs.acyclic & costs.no_skip & costs.triangle & costs.colocation & costs.fixed_chips
    wanted = np.flatnonzero(keeps & ~costs.memory)
    fastest = wanted[np.argsort(costs.bottleneck_s[wanted], kind="stable")][:most]
    return np.asarray(made.assignments)[: problem.num_nodes, fastest].T


if __name__ == "__main__":
    main()
