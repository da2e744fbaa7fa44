"""Solver tasks on the machines of a Ray cluster, with the interface of the local pool.

Each worker is a Ray actor with one core. The same version of jaxpart must be installed on the
machines of the actors. Ray is an optional extra, imported when the first Ray pool is made.
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

# The kinds of pool.
POOLS = ("local", "ray")
# The folder of this package; an actor on this machine imports it from there.
_HOME = str(Path(__file__).parents[2])


def check_pool(kind: str) -> None:
    """Checks that a kind of pool exists and that its package is installed.

    Args:
      kind: a name in `POOLS`.

    Raises:
      InputError: no such kind, or "ray" without Ray.
    """
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
    """Opens a pool on this machine or on a Ray cluster.

    Args:
      kind: a name in `POOLS`.
      problem: the problem of all tasks.
      workers: number of workers.
      niceness: niceness of the processes on this machine; a Ray pool ignores it.
      sharing: shares cores among busy processes of this machine; a Ray pool ignores it.

    Raises:
      InputError: as `check_pool`.
    """
    check_pool(kind)
    if kind == "ray":
        return RayPool(problem, workers)
    return SolverPool(problem, workers, niceness=niceness, sharing=sharing)


class RayPool(SolverPool):
    """A `SolverPool` whose workers are Ray actors; a dead actor is handled as a dead process is.

    A program that has called `ray.init` keeps its connection. Otherwise the pool connects to the
    cluster that `RAY_ADDRESS` names, or to a cluster on this machine. Where there is none, it
    starts a cluster that ends with this process.
    """

    def __init__(self, problem: Problem, workers: int = 1, **pool_options: Any) -> None:
        """Connects to Ray and starts the actors in the background.

        Args:
          problem: the problem of all tasks.
          workers: number of actors.
          options: `grace_s` and `start_s` of `SolverPool`.

        Raises:
          InputError: Ray is not installed.
        """
        check_pool("ray")
        _connect()
        super().__init__(problem, workers, **pool_options)

    def _new_worker(self, content: bytes, start_s: float) -> SolverWorker:
        return RayWorker(content, start_s)


class RayWorker:
    """A worker that is a Ray actor, replaced by a new one when it dies.

    It has the interface `SolverWorker` of `runtime/process.py`.

    Attributes:
      worker_id: number of the actor's process on its machine; None if none runs.
    """

    def __init__(self, content: bytes, start_s: float) -> None:
        """Makes the worker; starts no actor yet.

        Args:
          content: the pickled problem.
          start_s: seconds after which an actor that is not ready counts as hung.
        """
        self._content, self._start_s = content, start_s
        self._lock = threading.Lock()  # no actor starts after the pool is closed
        self._is_closed = False
        self._is_ready = False
        self._actor: Any = None
        self.worker_id: int | None = None

    def start(self) -> None:
        """Starts an actor and waits until it has the problem.

        Raises:
          WorkerEndedError: the pool was closed, or the actor did not become ready.
        """
        ray = _ray()
        with self._lock:
            if self._is_closed:
                raise WorkerEndedError("the pool was closed")
            self._end()
            # SPREAD: idle machines come first.
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
        """Sends a message and yields its answers as they come.

        Args:
          message: a pickled task for the actor.
          timeout_s: seconds to wait for each answer.
          count: number of answers.

        Raises:
          WorkerEndedError: the actor died, or did not answer in time.
        """
        ray = _ray()
        if not self._is_ready:
            self.start()
        actor = self._actor
        if actor is None:  # another thread has just closed the pool
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
        """Kills the actor; none is started afterwards."""
        with self._lock:
            self._is_closed = True
            self._end()

    def discard(self) -> None:
        """Does nothing: a killed actor leaves no resources."""

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
            # If the cluster is gone, its actors are gone too.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self._actor)
            self._actor = None


class _Actor:
    """The code that runs in a Ray worker, like `main` of `runtime/worker.py`."""

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
    """The package `ray`, imported only where a Ray pool is used."""
    return importlib.import_module("ray")


def _connect() -> None:
    ray = _ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no usage statistics
        ray.init(log_to_driver=False, logging_level=logging.ERROR)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
