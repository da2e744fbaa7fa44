"""The default: what is best, in the order of what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from contextlib import closing

import numpy as np

from jaxpart.methods.annealing.search import tempering_background
from jaxpart.methods.clusters.search import cluster_search, clusters_background
from jaxpart.methods.exact.interval_proofs import IntervalProofs
from jaxpart.methods.exact.prover import Prover
from jaxpart.methods.exact.search import has_many_ideals, ideals, program_order
from jaxpart.methods.orders.search import slice_search
from jaxpart.methods.policy.search import PolicySource, policy_background
from jaxpart.methods.repair.search import Workers
from jaxpart.runtime.state import Search, is_small

# Shares of the time (of so many steps, without a limit):
_STEPS = 100.0
# that each method lets the others have before it begins: starting up, compiling above all, is time
# that they could use, and the policy has the most to compile and finds the least alone;
_LATER = {"clusters": 0.0, "tempering": 0.05, "slicing": 0.1, "policy": 0.15}
# that a gain of a power of e pays for, and that may be ahead at most;
_WORTH = 5.0
_MOST_CREDIT = 0.1
# that a method which has to wait falls behind the others, and its most seconds.
_WAIT = 0.01
_MOST_WAIT_S = 0.2

# Where the integer program is small, searches rest after a step without gain for so many times what
# it took.
_REST = 3.0
# For that share of the time: what the program has not closed by then, searches may.
_SOLVER_FIRST = 0.4
_POLL_S = 0.05


def auto(search: Search, policy: PolicySource = None) -> Generator[None]:
    """The program order cut optimally, ideals, then searches in turn beside the solver.

    Without a time limit the solver only repairs, so that the same seed gives the same answer.

    Where ideals are few, the second step proves the optimum and the search is over. Elsewhere
    chains of moves are tempered, orders evolve and the policy proposes, whichever has paid more
    lately, while clusters grow, SCIP repairs what memory forbids and polishes the best, and CP-SAT
    works on what could still be better: a proof.
    """
    # Fewest chips and nothing sent: the best where transfers cost more than they save.
    search.samples += 1
    search.offer(np.zeros((search.problem.num_nodes, 1), np.int64))
    yield
    yield from program_order(search)
    is_timed = search.budget.time_limit_s is not None
    with closing(clusters_background(search)) as clusters:
        # Finds on wide graphs what cut orders cannot; where ideals are few, they are enough.
        if has_many_ideals(search.problem):
            next(clusters, None)
            if is_timed:  # a worker takes a second to start: the first ones are grown here
                next(cluster_search(search), None)
                next(clusters, None)
            yield
        yield from _proofs_and_searches(search, clusters, policy, is_timed=is_timed)


def _proofs_and_searches(
    search: Search, clusters: Generator[None], policy: PolicySource, *, is_timed: bool
) -> Generator[None]:
    """Ideals, then what the device searches, in turn; solvers and growing beside them."""
    with (
        IntervalProofs(search) as proofs,
        Prover(search) as prover,
        Workers(search) as workers,
    ):
        prover.step()
        for _ in ideals(search):
            prover.step()
            yield
        methods: dict[str, Generator[bool | None]] = {
            "tempering": tempering_background(search),
            "slicing": slice_search(search),
            "policy": policy_background(search, policy),
        }
        if not is_timed:
            methods = {"clusters": clusters, **methods}
        best_s, began_s = search.best_s, time.perf_counter()
        for _ in in_turn(search, methods):
            gives_way = is_small(search.problem) and search.spent < _SOLVER_FIRST
            workers.repair_promising()
            if not (gives_way and prover.is_solving):
                workers.improve_best()
            workers.collect()
            if is_timed:
                next(clusters, None)
            proofs.collect()
            prover.step()
            yield
            if gives_way and search.best_s >= best_s:
                yield from _give_way(prover, _REST * (time.perf_counter() - began_s))
            best_s, began_s = search.best_s, time.perf_counter()


def _give_way(prover: Prover, seconds: float) -> Generator[None]:
    """Leaves the processor to a solver at work."""
    until_s = time.perf_counter() + seconds
    while prover.is_solving and time.perf_counter() < until_s:
        time.sleep(_POLL_S)
        prover.step()
        yield


def in_turn(search: Search, methods: Mapping[str, Generator[bool | None]]) -> Generator[None]:
    """Steps of several methods: next is always the one that has gone the least time without gain.

    Gains pay for the time that they took, as far as they go (`_WORTH`). So a method that gains goes
    on, and those that do not share the time evenly; one that yields True waits behind the others.
    Without a time limit steps are counted instead of seconds, so that the same seed gives the same
    answer.
    """
    limit_s = search.budget.time_limit_s
    is_timed = limit_s is not None
    whole = limit_s if is_timed else _STEPS
    wait = min(_WAIT * whole, _MOST_WAIT_S) if is_timed else _WAIT * whole
    idle = {name: _LATER[name] * whole for name in methods}
    waiting: set[str] = set()
    while idle:
        name = min(idle, key=idle.__getitem__)
        search.enter(name)
        start_s, best_s = time.perf_counter(), search.best_s
        try:
            is_waiting = next(methods[name])
        except StopIteration:
            del idle[name]
            waiting.discard(name)
            continue
        others = [spent for other, spent in idle.items() if other != name]
        if is_waiting:
            waiting.add(name)
            if len(waiting) == len(idle):
                time.sleep(_POLL_S)
            idle[name] = max(idle[name], min(others, default=0.0) + wait)
        else:
            waiting.discard(name)
            idle[name] += time.perf_counter() - start_s if is_timed else 1.0
        if search.best_s < best_s:
            gain = math.log(best_s / search.best_s) if best_s < math.inf else 1.0
            idle[name] -= _WORTH * whole * gain
            idle[name] = max(idle[name], min(others, default=0.0) - _MOST_CREDIT * whole)
        yield
