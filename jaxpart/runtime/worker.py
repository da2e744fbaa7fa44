"""What runs in a worker process of the pool: no JAX, no part of the user's program.

Tasks arrive on standard input and outcomes leave on standard output, both as pickles. A task is the
name of a function, "module:function", and its keyword arguments; the worker imports the module when
the first task asks for it. When the input ends, the worker exits, even in the middle of a task, so
that it never outlives its parent.
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
from jaxpart.runtime.core_sharing import end_with_parent
from jaxpart.solvers.repair import Outcome, repair
from jaxpart.solvers.scip import Status

Task = Callable[..., Outcome]  # (problem, **arguments); a function of a module
BATCH = "repair_batch"  # [B, N] candidates, [N], [B, N] or no weights


def main(niceness: int = 0) -> None:
    """Reads the problem, says None when ready, then reads tasks (name, keyword arguments) and
    writes an outcome for each.

    Of a batch of repairs, an outcome for each candidate as soon as it is there.

    Args:
      niceness: by how much to give way to other processes, where the system knows that.
    """
    end_with_parent()
    if hasattr(os, "nice"):
        os.nice(niceness)
    outcomes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the outcomes
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    problem: Problem = messages.get()
    import_solvers()
    _write(outcomes, None)  # ready
    gc.freeze()  # the graph's many objects stay: no collection need look at them again
    while True:
        name, arguments = messages.get()
        for outcome in outcomes_of(problem, name, arguments):
            _write(outcomes, outcome)


def _listen(source: BinaryIO, messages: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            messages.put(pickle.load(source))
        except EOFError:
            # A solver may be running on the main thread, without Python's lock.
            os._exit(0)


def import_solvers() -> None:
    """Before the first task, whose time limit should not pay for it."""
    import ortools.graph.python.max_flow  # noqa: F401
    import pyscipopt  # noqa: F401


def _write(target: BinaryIO, answer: Outcome | None) -> None:
    pickle.dump(answer, target, pickle.HIGHEST_PROTOCOL)
    target.flush()


def outcomes_of(problem: Problem, name: str, arguments: dict[str, Any]) -> Iterator[Outcome]:
    """One outcome of a task; of a batch one for each candidate, as they come."""
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
    """The name by which a worker finds a function: "module:function"."""
    return f"{task.__module__}:{task.__qualname__}"


_REPAIR = name_of(repair)


def _run(problem: Problem, name: str, arguments: dict[str, Any]) -> Outcome:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(problem, **arguments)
    except Exception as error:  # one task's failure is that task's outcome, never the worker's
        return Outcome(Status.ERROR, message=f"{type(error).__name__}: {error}")
