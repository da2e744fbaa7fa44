"""Search over quotient graphs: chips side by side where the model branches.

Orders cut into pieces (`orders`) give chips in a row. On wide graphs the triangle rule admits much
more: clusters of nodes whose graph has no edge with a longer path beside it (`clusters.quotient`),
grown and improved by `clusters.growth`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

import numpy as np

from jaxpart.clusters.growth import (
    MOST_BLOCKS,
    PATIENCE,
    Grower,
    Step,
    blocks_of,
    can_grow,
    compile_growth,
    of_nodes,
)
from jaxpart.environment import usable_cores
from jaxpart.search.state import Search
from jaxpart.solver.grow import Grown
from jaxpart.solver.pool import SolverPool

# Candidates are offered, and the engine asked, about so often.
_ROUND_S = 0.25
_ROUND_STEPS = 16
# What a worker finds is home after a slice: short ones first, then such that it seldom waits for
# whoever asks for the next; the last is home before the end.
_FIRST_SLICE_S, _LONGEST_SLICE_S = 0.25, 2.0
_LEAST_SLICE_S, _WAY_HOME_S = 0.05, 0.1
# Cores for each worker: the others are the device's and the solvers'.
_CORES_EACH = 2
_SEEDS = 2**32


def cluster_search(search: Search) -> Generator[None]:
    """Grows and improves partitions until the budget is spent; nothing where it cannot work."""
    problem = search.problem
    if not can_grow(problem):
        search.notes.append(
            f"clusters are grown for graphs without pins, up to {MOST_BLOCKS} nodes"
        )
        return
    with search.compiling():
        compile_growth()
    search.start_clock()
    search.enter("clusters")
    grower = Grower(problem, search.bound.seconds, np.random.default_rng(search.seed))
    start_s, steps = time.perf_counter(), 0
    for step in _steps(search, grower):
        search.samples += 1
        steps += 1
        candidate = step.grown
        if candidate is not None:
            merit = candidate.merit
            if merit.overfull == 0 and merit.bottleneck_s < search.best_s:
                search.offer(candidate.labels[problem.block][:, None])
        # Without a time limit steps are counted, so that the same seed gives the same answer.
        is_timed = search.budget.time_limit_s is not None
        if time.perf_counter() - start_s > _ROUND_S if is_timed else steps >= _ROUND_STEPS:
            yield
            start_s, steps = time.perf_counter(), 0


def clusters_beside(search: Search) -> Generator[bool]:
    """Grows clusters in turn with other methods.

    Under a time limit processes of their own do it, one for two cores, and this yields True: it has
    to wait for them. The generator ends where clusters cannot be grown.
    """
    if search.budget.time_limit_s is None:
        for _ in cluster_search(search):
            yield False
        return
    if not can_grow(search.problem):
        return
    count = max(1, usable_cores() // _CORES_EACH)
    with contextlib.closing(search.open_pool(workers=count, gives_way=False)) as pool:
        yield True  # workers take a second to start
        slices = [_slices(search, pool, number) for number in range(count)]
        while True:
            for worker in slices:
                next(worker)
            yield True


def _steps(search: Search, grower: Grower) -> Generator[Step]:
    """Without end: lives of fresh partitions, and in turn with them those of the best."""
    while True:
        yield from grower.life(None, search.best_s)
        if search.best is not None:
            yield from grower.life(of_nodes(search.problem, search.best), search.best_s)


def _slices(search: Search, pool: SolverPool, number: int) -> Generator[None]:
    """One worker's lives, slice by slice, without end; waits between steps."""
    rng, slice_s = np.random.default_rng([search.seed, number]), _FIRST_SLICE_S
    # Somebody grows the best further from the beginning.
    lead = None if number or search.best is None else blocks_of(search.problem, search.best)
    patience = PATIENCE
    while True:
        task = pool.grow(
            search.best,
            time_limit_s=max(min(slice_s, search.remaining_s - _WAY_HOME_S), _LEAST_SLICE_S),
            bound_s=search.bound.seconds,
            lead=lead,
            patience=patience,
            seed=int(rng.integers(_SEEDS)),
        )
        while not task.done():
            yield
        slice_s = min(2 * slice_s, _LONGEST_SLICE_S)
        outcome = task.result()
        search.note_failure(outcome)
        if isinstance(outcome, Grown):
            search.samples += outcome.samples
            lead, patience = outcome.lead, outcome.patience
        if outcome.assignment is not None:
            search.offer(outcome.assignment[:, None])
