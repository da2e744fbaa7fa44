"""The code that runs in a worker process of a pool, without JAX or the user's program.

Tasks arrive on standard input and outcomes leave on standard output, both as pickles. A task is the
name of a function, "module:function", and its keyword arguments. The worker imports the module when
a task first needs it. When the input ends or is damaged, the worker exits, even in the middle of a
task, so that it never outlives its parent (see also `core_sharing.end_with_parent`).
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
import pickle
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from jaxpart.problem.problem import Problem
from jaxpart.solvers.repair import Outcome, repair
from jaxpart.solvers.scip import Status

# A solver task: a function of a module, called as task(problem, **arguments).
Task = Callable[..., Outcome]
# The name of the task that repairs a batch. Its arguments are those of `repair` in
# `solvers/repair.py`, but `assignments` [B, N] for `y`, and `weights` [N], [B, N] or None.
BATCH = "repair_batch"


def main(niceness: int = 0) -> None:
    """Runs the worker: reads the problem, writes None when ready, then runs tasks.

    For each task (name, keyword arguments) it writes one outcome; for a batch of repairs, one
    outcome for each candidate as soon as it is found.

    Args:
      niceness: niceness of this process, where the system has one.
    """
    if hasattr(os, "nice"):
        os.nice(niceness)
    outcomes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that a library prints must not mix with the outcomes
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    problem: Problem = messages.get()
    import_solvers()
    _write(outcomes, None)  # ready
    gc.freeze()  # the graph's many objects stay: garbage collections need not visit them again
    while True:
        name, arguments = messages.get()
        for outcome in outcomes_of(problem, name, arguments):
            _write(outcomes, outcome)


def _listen(source: BinaryIO, messages: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            messages.put(pickle.load(source))
    except EOFError:
        os._exit(0)
    finally:
        # Whatever is wrong with the input (half a message of a killed parent), no task can come.
        # Not `sys.exit`: a solver may run on the main thread, which would go on.
        os._exit(1)


def import_solvers() -> None:
    """Imports the solvers now, so that the first task does not spend its time limit on it."""
    import ortools.graph.python.max_flow  # noqa: F401
    import pyscipopt  # noqa: F401


def _write(target: BinaryIO, answer: Outcome | None) -> None:
    try:
        pickle.dump(answer, target, pickle.HIGHEST_PROTOCOL)
        target.flush()
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def outcomes_of(problem: Problem, name: str, arguments: dict[str, Any]) -> Iterator[Outcome]:
    """Runs a task.

    Args:
      problem: of N nodes.
      name: `BATCH`, or the name of a function as `name_of` gives it.
      arguments: keyword arguments of the task; a batch removes entries from them.

    Yields:
      The outcome; for a batch, one outcome for each candidate as it is found.
    """
    if name != BATCH:
        yield _run(problem, name, arguments)
        return
    candidates, weights = arguments.pop("assignments"), arguments.pop("weights")
    for k, y in enumerate(candidates):
        weight = weights[k] if weights is not None and weights.ndim == 2 else weights
        found = _run(problem, _REPAIR, {**arguments, "y": y, "weights": weight})
        if found.assignment is not None:
            found = dataclasses.replace(found, assignment=found.assignment.astype(y.dtype))
        yield found


def name_of(task: Task) -> str:
    """The name by which a worker finds a task: "module:function"."""
    return f"{task.__module__}:{task.__qualname__}"


_REPAIR = name_of(repair)


def _run(problem: Problem, name: str, arguments: dict[str, Any]) -> Outcome:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(problem, **arguments)
    except Exception as error:  # a failed task must not end the worker
        return Outcome(Status.ERROR, message=f"{type(error).__name__}: {error}")
