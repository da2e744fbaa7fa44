"""A pretraining run: pairs of graphs and modules, log, checkpoints, model selection, resuming."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.cost.greedy import baseline
from jaxpart.errors import InputError, JaxpartError
from jaxpart.files import read_bytes, write_whole
from jaxpart.methods.policy.checkpoint import SHIPPED, Policy
from jaxpart.methods.policy.imitation import Example, ImitationConfig, imitate
from jaxpart.methods.policy.modules import CHIPS, draw_module
from jaxpart.methods.policy.rollout import Task, initial_params
from jaxpart.methods.policy.training import (
    Learner,
    TrainingConfig,
    TrainingRow,
    advance,
    begin,
    score,
)
from jaxpart.problem.graph import Graph
from jaxpart.problem.problem import Problem

LOG = "training.csv"  # one row per task of a step
VALIDATION = "validation.csv"  # one row per validation
# Task shapes whose programs stay compiled. The programs of one shape take about 3,000 memory maps,
# and Linux allows a process 65,530. With JAX's compilation cache on disk, recompiling is cheap.
_MAX_SHAPES = 14
_TRIES = 8  # modules drawn per graph and number of chips, until one has a baseline
_ALL_ROWS = [field.name for field in dataclasses.fields(TrainingRow)]


@dataclasses.dataclass(frozen=True)
class PretrainingRun:
    """Where a run is stored, and how long it trains."""

    folder: Path
    steps: int  # in all, those of earlier calls included
    minutes: float | None = None  # time limit of this call; a later one can resume
    save_every: int = 25  # steps
    validate_every: int = 100  # a multiple of `save_every`
    modules: int = 2  # modules per training graph, for `pairs`
    command: str = ""  # stored in the policy (`Policy.made`)


def pretraining_pairs(graphs: Sequence[Graph], count: int, seed: int) -> dict[str, Problem]:
    """Draws modules for each graph.

    A module on which the graph has no baseline is drawn again, a few times.

    Args:
      graphs: to draw modules for.
      count: modules per graph, each with another number of chips; at most `len(CHIPS)` are drawn.
      seed: same graphs, count and seed, same modules.

    Returns:
      Problems by name, "GRAPH/MODULE".

    Raises:
      InputError: no graph has a baseline on any of its modules.
    """
    found: dict[str, Problem] = {}
    for number, graph in enumerate(graphs):
        rng = np.random.default_rng([seed, number])
        for chips in rng.permutation(CHIPS)[:count].tolist():
            for _ in range(_TRIES):
                problem = Problem.build(graph, draw_module(rng, graph, chips))
                if why_infeasible(problem) is None and baseline(problem) is not None:
                    found[f"{graph.name}/{problem.mcm.name}"] = problem
                    break
    if not found:
        raise InputError("no graph has a baseline on any module drawn, expected at least one pair")
    return found


def pretrain(
    train: dict[str, Problem],
    valid: dict[str, Problem],
    config: TrainingConfig,
    run: PretrainingRun,
    report: Callable[[int, Sequence[TrainingRow], float], None] = lambda step, rows, best: None,
    *,
    examples: Mapping[str, Example] | None = None,
    imitation: ImitationConfig | None = None,
    taught: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Path:
    """Trains a policy, or resumes the run that `run.folder` holds.

    A run that was interrupted and resumed gives the same weights as an uninterrupted run.

    Args:
      train: problems to train on, by name.
      valid: problems to select the weights on, by name.
      config: how to train.
      run: the folder and the length of the run.
      report: called after each step with the number of steps so far, the rows of the step, and the
        best validation score so far.
      examples: partitions that the first placement is fitted to before the first step. A run that
        resumes from a checkpoint does not fit it again.
      imitation: how to fit it; None: the defaults of `ImitationConfig`, with the seed of `config`.
      taught: called after each epoch of that fit with its number and the mean squared distance.

    Returns:
      The file of the policy with the best validation score.

    Raises:
      TrainingError: a loss or gradient is not finite; the folder keeps the last good checkpoint.
      InputError: the folder holds a run with another configuration or other problems.
    """
    folder = run.folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be the folder of a run ({error.strerror})") from error
    imitation = imitation or ImitationConfig(seed=config.seed)
    _check_same(folder, _description(config, train, valid, examples or {}, imitation))
    tasks: dict[str, Task] = {}
    programs = _Programs()
    started = time.monotonic()

    def task(name: str) -> Task:
        if name not in tasks:
            tasks[name] = Task.build(train[name] if name in train else valid[name])
        return tasks[name]

    def validate(learner: Learner) -> float:
        reached = score(
            learner.params, config, programs.admit([task(name) for name in sorted(valid)])
        )
        _append(folder / VALIDATION, ["step", "score"], [[learner.step, reached]])
        return reached

    with ocp.CheckpointManager(
        folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as manager:
        names = sorted(train)
        learner = begin(config, initial_params(config.network, task(names[0]), config.seed))
        held = _Held(learner, learner.params, -1.0, 0.0)
        if manager.latest_step() is not None:
            held = _restored(manager, held)
        else:
            for file in (LOG, VALIDATION):  # left by a run without a checkpoint
                (folder / file).unlink(missing_ok=True)
            held = dataclasses.replace(held, best_score=validate(held.learner))
            if examples:
                programs.clear()
                params = imitate(learner.params, config.network, examples, imitation, taught)
                programs.clear()
                held = dataclasses.replace(held, learner=begin(config, params))
                held = _selected(held, validate(held.learner))
            _save(manager, dataclasses.replace(held, seconds=time.monotonic() - started))
        for file in (LOG, VALIDATION):
            _cut(folder / file, held.learner.step)
        while held.learner.step < run.steps:
            if run.minutes is not None and time.monotonic() - started > 60 * run.minutes:
                break
            chosen = _chosen(names, config, held.learner.step)
            tasks_of_step = programs.admit([task(name) for name in chosen])
            learner, rows = advance(held.learner, config, chosen, tasks_of_step)
            held = dataclasses.replace(held, learner=learner)
            _append(folder / LOG, _ALL_ROWS, [list(dataclasses.astuple(row)) for row in rows])
            if learner.step % run.validate_every == 0:
                held = _selected(held, validate(learner))
            if learner.step % run.save_every == 0:
                seconds = held.seconds + time.monotonic() - started
                _save(manager, dataclasses.replace(held, seconds=seconds))
                _write_policy(folder, held, config, run, seconds)
            report(learner.step, rows, held.best_score)
        seconds = held.seconds + time.monotonic() - started
        if manager.latest_step() != held.learner.step:
            _save(manager, dataclasses.replace(held, seconds=seconds))
        return _write_policy(folder, held, config, run, seconds)


class _Programs:
    """Counts the shapes of the compiled programs, and drops all before there are too many."""

    def __init__(self) -> None:
        self._shapes: set[Any] = set()

    def admit(self, tasks: list[Task]) -> list[Task]:
        """Makes room for the programs of the tasks, and returns the tasks."""
        shapes = {_shape_of(task) for task in tasks}
        if self._shapes and len(self._shapes | shapes) > _MAX_SHAPES:
            self.clear()
        self._shapes |= shapes
        return tasks

    def clear(self) -> None:
        """Drops all compiled programs."""
        jax.clear_caches()
        self._shapes.clear()


def _shape_of(task: Task) -> tuple[Any, ...]:
    """The key of a task's compiled programs: tasks with equal keys share them."""
    arrays = jax.tree.leaves((task.device, task.contracted, task.features))
    return (task.device.config, task.window, *(array.shape for array in arrays))


@dataclasses.dataclass(frozen=True)
class _Held:
    """The content of a checkpoint."""

    learner: Learner
    best_params: Any
    best_score: float
    seconds: float  # of training so far

    def tree(self) -> dict[str, Any]:
        """The content as a pytree of arrays."""
        return {
            "params": self.learner.params,
            "opt_state": self.learner.opt_state,
            "step": np.array(self.learner.step),
            "best_params": self.best_params,
            "best_score": np.array(self.best_score),
            "seconds": np.array(self.seconds),
        }


def _selected(held: _Held, reached: float) -> _Held:
    """Takes the learner's weights as the best if their score is higher than the best score."""
    if reached <= held.best_score:
        return held
    return dataclasses.replace(held, best_params=held.learner.params, best_score=reached)


def _chosen(names: list[str], config: TrainingConfig, step: int) -> list[str]:
    """The tasks of a step: passes over all names, each pass in a new random order."""
    picks = []
    for k in range(step * config.tasks, (step + 1) * config.tasks):
        epoch, place = divmod(k, len(names))
        order = np.random.default_rng([config.seed, 1, epoch]).permutation(len(names))
        picks.append(names[order[place]])
    return picks


def _save(manager: ocp.CheckpointManager, held: _Held) -> None:
    """Writes a checkpoint and waits until it is on disk."""
    manager.save(held.learner.step, args=ocp.args.StandardSave(held.tree()))
    manager.wait_until_finished()


def _restored(manager: ocp.CheckpointManager, template: _Held) -> _Held:
    """Reads the latest checkpoint; `template` gives the shapes and types of its arrays."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template.tree())
    step = manager.latest_step()
    tree = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    learner = Learner(tree["params"], tree["opt_state"], int(tree["step"]))
    best_score, seconds = float(tree["best_score"]), float(tree["seconds"])
    return _Held(learner, tree["best_params"], best_score, seconds)


def _write_policy(
    folder: Path, held: _Held, config: TrainingConfig, run: PretrainingRun, seconds: float
) -> Path:
    """Writes the best weights as a policy, and returns its file."""
    from jaxpart.environment import environment

    made = {
        "command": run.command,
        "seed": config.seed,
        "steps": held.learner.step,
        "seconds": round(seconds, 1),
        "validation_score": held.best_score,
        **environment(),
    }
    path = folder / f"{SHIPPED}.policy"
    Policy(held.best_params, config.network, made).save(path)
    return path


def _description(
    config: TrainingConfig,
    train: dict[str, Problem],
    valid: dict[str, Problem],
    examples: Mapping[str, Example],
    imitation: ImitationConfig,
) -> str:
    """Everything that identifies a run, as text."""
    lines = [str(config), str(sorted(train)), str(sorted(valid))]
    if examples:
        digest = hashlib.sha256()
        for name in sorted(examples):
            digest.update(name.encode() + examples[name].assignment.astype("<i4").tobytes())
        lines += [str(imitation), f"{len(examples)} examples, sha256 {digest.hexdigest()}"]
    return "".join(f"{line}\n" for line in lines)


def _check_same(folder: Path, description: str) -> None:
    """Stores the description of a run in a new folder, or compares it with the stored one.

    A run that resumes with another configuration or other pairs would be a mixture of two runs.

    Raises:
      InputError: the folder holds another run.
    """
    path = folder / "config.txt"
    if path.exists() and read_bytes(path) != description.encode():
        raise InputError(
            f"{folder}: holds a run of another configuration or other pairs ({path.name}); name "
            "a new folder"
        )
    write_whole(path, description.encode())


def _append(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Appends rows to a CSV file; a new file gets the header first."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(header)
        writer.writerows(rows)


def _cut(path: Path, step: int) -> None:
    """Drops the rows that were written after the checkpoint at `step`.

    The log numbers a step from 0, so its rows up to `step` - 1 stay. A validation has the number of
    steps before it, so its rows up to `step` stay.

    Raises:
      InputError: the file is damaged.
    """
    if not path.exists():
        return
    header, *rows = _rows_of(path)
    is_log = path.name == LOG
    kept = [row for row in rows if int(row[0]) < step or (not is_log and int(row[0]) == step)]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    os.replace(temporary, path)


def _rows_of(path: Path) -> list[list[str]]:
    """The header of a CSV file, and its rows, which begin with the number of a step.

    A kill while a row was written leaves a part of it, without a line break; it is left out.

    Raises:
      InputError: the file is damaged elsewhere; the message names the line.
    """
    try:
        lines = read_bytes(path).decode().splitlines(keepends=True)
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{path}: the file is empty, expected a header")
    for number, row in enumerate(rows[1:], 2):
        if not row or not re.fullmatch("[0-9]{1,15}", row[0]):
            shown = repr(row[0]) if row else "nothing"
            raise InputError(
                f"{path}: line {number}: begins with {shown}, expected the number of a step"
            )
    return rows


def load_graphs(names: Sequence[str], side: str) -> list[Graph]:
    """Loads graphs.

    Args:
      names: names of shipped graphs, or files; empty: all graphs of one side of the split.
      side: of the split, "train" or "valid"; error messages contain it.

    Raises:
      InputError: there is no such graph, or a file is damaged.
    """
    from jaxpart import datasets

    try:
        return [datasets.resolve(name)[0] for name in names or datasets.split(side)]
    except JaxpartError as error:
        raise InputError(f"{side} graphs: {error}") from error
