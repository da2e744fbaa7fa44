"""The default method `auto`: a portfolio of all good methods, cheap ones first."""

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
from jaxpart.runtime.background import without_holding_up
from jaxpart.runtime.device_time import DeviceTime
from jaxpart.runtime.state import Search, is_small

# Steps that stand for the whole budget where there is no time limit.
_NOMINAL_STEPS = 100.0
# Share of the budget that the other methods get before a method begins. Start-up, mostly
# compilation, costs them time; the policy compiles longest and finds the least alone.
_START_DELAYS = {"clusters": 0.0, "tempering": 0.05, "slicing": 0.1, "policy": 0.15}
# Share of the budget that a gain pays for, where the bottleneck falls by a factor of e.
_GAIN_CREDIT = 5.0
# How far credit may put a method ahead of the others at most, as a share of the budget.
_MOST_CREDIT = 0.1
# How far a method that waits is put behind the others: a share of the budget, at most in seconds.
_WAIT_SHARE = 0.01
_MOST_WAIT_S = 0.2

# Pause of the searches after a step without gain, as a multiple of its time, where the integer
# program is small.
_PAUSE_FACTOR = 3.0
# Share of the budget after which the pauses end: the program is then unlikely to close the gap.
_SOLVER_FIRST_SHARE = 0.4
# Seconds between two looks at methods that all wait, or at the prover.
_POLL_S = 0.05


def auto(search: Search, policy: PolicySource = None) -> Generator[None]:
    """The default method: program order, ideals, then searches in turn and background solvers.

    1. The program order is cut optimally.
    2. The dynamic programs over ideals run. Where ideals are few, they usually prove the optimum
       and the search is over.
    3. Tempering, evolution of orders and the policy take steps in turn; `in_turn` prefers methods
       with recent gains. In the background clusters grow, SCIP repairs invalid candidates and
       improves the best by large-neighbourhood search, and CP-SAT works on a proof.

    Without a time limit the same seed gives the same answer. Then clusters grow in turn with the
    other methods, and the solvers only repair candidates and prove interval bounds.

    Args:
      search: the state of the search.
      policy: weights of the policy, as of `partition`.
    """
    # All nodes on one chip: the best partition where transfers cost more than they save.
    search.samples += 1
    search.offer(np.zeros((search.problem.num_nodes, 1), np.int64))
    yield
    yield from program_order(search)
    is_timed = search.budget.time_limit_s is not None
    with closing(clusters_background(search)) as clusters:
        # On wide graphs clusters give partitions that no cut of an order gives. Where ideals are
        # few, the programs over them are enough.
        if has_many_ideals(search.problem):
            next(clusters, None)
            if is_timed:  # a worker takes a second to start, so the first clusters grow here
                next(cluster_search(search), None)
                next(clusters, None)
            yield
        yield from _proofs_and_searches(search, clusters, policy, is_timed=is_timed)


def _proofs_and_searches(
    search: Search, clusters: Generator[None], policy: PolicySource, *, is_timed: bool
) -> Generator[None]:
    """Runs ideals, then the searches in turn, with solvers and clusters in the background."""
    with (
        closing(IntervalProofs(search)) as proofs,
        closing(Prover(search)) as prover,
        closing(Workers(search)) as workers,
    ):
        prover.step()
        for _ in ideals(search):
            prover.step()
            yield
        slices = slice_search(search)
        methods: dict[str, Generator[bool | None]] = {
            "tempering": tempering_background(search),
            "slicing": without_holding_up(slices) if is_timed else slices,
            "policy": policy_background(search, policy),
        }
        if not is_timed:
            methods = {"clusters": clusters, **methods}
        best_s, began_s = search.best_s, time.perf_counter()
        for _ in in_turn(search, methods):
            gives_way = is_small(search.problem) and search.spent < _SOLVER_FIRST_SHARE
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
                yield from _pause(prover, _PAUSE_FACTOR * (time.perf_counter() - began_s))
            best_s, began_s = search.best_s, time.perf_counter()


def _pause(prover: Prover, seconds: float) -> Generator[None]:
    """Pauses the searches for some seconds while the prover's solver works."""
    until_s = time.perf_counter() + seconds
    while prover.is_solving and time.perf_counter() < until_s:
        time.sleep(_POLL_S)
        prover.step()
        yield


def in_turn(search: Search, methods: Mapping[str, Generator[bool | None]]) -> Generator[None]:
    """Runs steps of several methods; the next step goes to the one with the least unpaid time.

    The unpaid time of a method is the time of its steps minus a credit for its gains
    (`_GAIN_CREDIT`). So a method that gains goes on, and methods without gain share the time
    evenly. A method that yields True only waits, and is put behind the others. Without a time limit
    steps are counted instead of seconds, so that the same seed gives the same answer.

    The time in which an accelerator works is that of the method that gave it the step (`_Bills`).

    Args:
      search: its best partition shows the gains; its time limit is the budget.
      methods: name -> steps of the method; each yields whether it only waits.

    Yields:
      None after each step.
    """
    limit_s = search.budget.time_limit_s
    is_timed = limit_s is not None
    whole = limit_s if is_timed else _NOMINAL_STEPS
    wait = min(_WAIT_SHARE * whole, _MOST_WAIT_S) if is_timed else _WAIT_SHARE * whole
    unpaid = {name: _START_DELAYS[name] * whole for name in methods}
    waiting: set[str] = set()
    bills = _Bills(search.device_time)
    while unpaid:
        name = min(unpaid, key=unpaid.__getitem__)
        search.enter(name)
        bills.begin()
        best_s = search.best_s
        try:
            is_waiting = next(methods[name])
        except StopIteration:
            del unpaid[name]
            waiting.discard(name)
            continue
        others = [spent for other, spent in unpaid.items() if other != name]
        if is_waiting:
            waiting.add(name)
            if len(waiting) == len(unpaid):
                time.sleep(_POLL_S)
            unpaid[name] = max(unpaid[name], min(others, default=0.0) + wait)
        else:
            waiting.discard(name)
            unpaid[name] += 0.0 if is_timed else 1.0
        for owner, seconds in bills.end(None if is_waiting else name).items():
            if is_timed and owner in unpaid:
                unpaid[owner] += seconds
        if search.best_s < best_s:
            gain = math.log(best_s / search.best_s) if best_s < math.inf else 1.0
            unpaid[name] -= _GAIN_CREDIT * whole * gain
            unpaid[name] = max(unpaid[name], min(others, default=0.0) - _MOST_CREDIT * whole)
        yield


class _Bills:
    """What turns cost each method, where an accelerator may work on a step of any of them.

    While it works, the time is that of the method that gave it the step, whoever's turn it is. The
    rest of a turn is that of the method whose turn it is. So no second is billed twice.
    """

    def __init__(self, device: DeviceTime) -> None:
        """Begins with what the device has done so far, which is not billed."""
        self._device = device
        self._billed_s = device.used_s()
        self.begin()

    def begin(self) -> None:
        """Begins a turn."""
        self._begun_s = self._device.clock()
        self._used_before_s = sum(self._device.used_s().values())

    def end(self, name: str | None) -> dict[str, float]:
        """Ends the turn.

        Args:
          name: of the method whose turn it was. None: it only waited, which costs nothing.

        Returns:
          Seconds of each method. Those of the device are counted from the end of the last turn on.
        """
        ended_s, used_s = self._device.clock(), self._device.used_s()
        bill = {owner: s - self._billed_s.get(owner, 0.0) for owner, s in used_s.items()}
        self._billed_s = used_s
        if name is not None:
            worked_s = sum(used_s.values()) - self._used_before_s
            own_s = max(0.0, ended_s - self._begun_s - worked_s)
            bill[name] = bill.get(name, 0.0) + own_s
        return bill
