"""Solver tasks on the machines of a Ray cluster, by the interface of the local pool.

Each worker is a Ray actor with one core; jaxpart must be installed where they run, in the same
version. Ray is an optional extra, imported when the first pool is made.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpart.errors import InputError
from jaxpart.problem.problem import Problem
from jaxpart.runtime.core_sharing import CoreSharing
from jaxpart.runtime.pool import SolverPool
from jaxpart.runtime.process import SolverWorker, WorkerEndedError

POOLS = ("local", "ray")
# Actors find the package where this process does, if they run on this machine.
_HOME = str(Path(__file__).parents[2])


def check_pool(kind: str) -> None:
    """Raises InputError where `kind` is not in `POOLS`, or needs what is not installed."""
    if kind not in POOLS:
        raise InputError(f"pool is {kind!r}, expected one of {', '.join(POOLS)}")
    if kind == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("pool 'ray' needs Ray, which is not installed: pip install 'jaxpart[ray]'")


def open_pool(
    kind: str,
    problem: Problem,
    workers: int = 1,
    *,
    niceness: int = 0,
    sharing: CoreSharing | None = None,
) -> SolverPool:
    """A pool on this machine, whose processes give way by `niceness` and in `turns`, or on Ray.

    Raises:
      InputError: as `check_pool`.
    """
    check_pool(kind)
    if kind == "ray":
        return RayPool(problem, workers)
    return SolverPool(problem, workers, niceness=niceness, sharing=sharing)


class RayPool(SolverPool):
    """As `SolverPool`, with workers that are Ray actors: what dies there costs what it costs here.

    Connects to the cluster that `RAY_ADDRESS` names, else to one on this machine, else starts one
    that ends with this process; a program that has called `ray.init` keeps its own.
    """

    def __init__(self, problem: Problem, workers: int = 1, **stall_limit: Any) -> None:
        """As `SolverPool`.

        Raises:
          InputError: Ray is not installed.
        """
        check_pool("ray")
        _connect()
        super().__init__(problem, workers, **stall_limit)

    def _new_worker(self, content: bytes, start_s: float) -> SolverWorker:
        return RayWorker(content, start_s)


class RayWorker:
    """One actor at a time, replaced when it dies: the interface of `process.Worker`."""

    def __init__(self, content: bytes, start_s: float) -> None:
        """Starts nothing yet.

        Args:
          content: the pickled problem.
          start_s: seconds after which an actor that is not ready counts as hung.
        """
        self._content, self._start_s = content, start_s
        self._lock = threading.Lock()  # between starting an actor and closing the pool
        self._is_closed = False
        self._is_ready = False
        self._actor: Any = None
        self.worker_id: int | None = None

    def start(self) -> None:
        """Starts an actor and waits until it has the problem.

        Raises:
          WorkerEndedError: the pool was closed, or no actor gets ready.
        """
        ray = _ray()
        with self._lock:
            if self._is_closed:
                raise WorkerEndedError("the pool was closed")
            self._end()
            # SPREAD: machines that are idle come first.
            self._actor = (
                ray.remote(_Actor)
                .options(
                    num_cpus=1,
                    scheduling_strategy="SPREAD",
                    runtime_env={"env_vars": {"PYTHONPATH": _HOME}},
                )
                .remote(self._content)
            )
            ready = self._actor.process_id.remote()
        if not ray.wait([ready], timeout=self._start_s)[0]:
            raise self._ended(f"no Ray worker was ready in {self._start_s:.0f} s", hung=True)
        try:
            self.worker_id = ray.get(ready)
        except ray.exceptions.RayError as error:
            raise self._ended(f"no Ray worker could be started: {_line(error)}") from error
        self._is_ready = True

    def run(self, message: bytes, timeout_s: float, count: int) -> Iterator[Any]:
        """The `count` answers to one message, as they come.

        Raises:
          WorkerEndedError: the actor died, or did not answer in time.
        """
        ray = _ray()
        if not self._is_ready:
            self.start()
        actor = self._actor
        if actor is None:  # closed a moment ago
            raise self._ended("the worker was killed")
        try:
            answers = actor.run.options(num_returns="streaming").remote(message)
            for _ in range(count):
                if not ray.wait([answers], timeout=timeout_s)[0]:
                    said = f"the worker gave no answer in {timeout_s:.0f} s and was killed"
                    raise self._ended(said, hung=True)
                answer = next(answers, None)
                if answer is None:
                    raise self._ended("the worker ended without an answer")
                yield ray.get(answer)
        except ray.exceptions.RayError as error:
            raise self._ended(f"the worker ended: {_line(error)}") from error

    def close(self) -> None:
        """Kills the actor, for good."""
        with self._lock:
            self._is_closed = True
            self._end()

    def discard(self) -> None:
        """Nothing is left of an actor that was killed."""

    def _ended(self, message: str, *, hung: bool = False) -> WorkerEndedError:
        with self._lock:
            self._end()
            return WorkerEndedError(
                "the pool was closed" if self._is_closed else message, hung=hung
            )

    def _end(self) -> None:
        ray = _ray()
        self._is_ready, self.worker_id = False, None
        if self._actor is not None:
            # A cluster that is gone has taken its actors along.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self._actor)
            self._actor = None


class _Actor:
    """What runs in a Ray worker; as `worker.main`."""

    def __init__(self, content: bytes) -> None:
        import pickle

        from jaxpart.runtime.worker import import_solvers

        self._problem = pickle.loads(content)
        import_solvers()

    def process_id(self) -> int:
        return os.getpid()

    def run(self, message: bytes) -> Iterator[Any]:
        import pickle

        from jaxpart.runtime.worker import outcomes_of

        yield from outcomes_of(self._problem, *pickle.loads(message))


def _ray() -> Any:
    """The package, which need not be there for anything else."""
    return importlib.import_module("ray")


def _connect() -> None:
    ray = _ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        ray.init(log_to_driver=False, logging_level=logging.ERROR)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
