"""A pretraining run: pairs of graphs and modules, log, checkpoints, selection, and going on."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
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
from jaxpart.methods.policy.checkpoint import SHIPPED, Policy
from jaxpart.methods.policy.imitation import Example, ImitationConfig, imitate
from jaxpart.methods.policy.modules import CHIPS, draw_module
from jaxpart.methods.policy.rollout import Task, initial_params
from jaxpart.methods.policy.training import Learner, Row, TrainingConfig, advance, begin, score
from jaxpart.problem.graph import Graph
from jaxpart.problem.problem import Problem

LOG = "training.csv"
VALIDATION = "validation.csv"
# Shapes whose programs stay compiled: those of one take about 3,000 memory maps, and Linux gives a
# process 65,530. The compilation cache on disk, where it is on, makes coming back cheap.
_SHAPES = 14
_TRIES = 8  # modules drawn until one has a baseline
_ALL_ROWS = [field.name for field in dataclasses.fields(Row)]


@dataclasses.dataclass(frozen=True)
class PretrainingRun:
    """Where and how long a run goes."""

    folder: Path
    steps: int
    minutes: float | None = None  # stop after so long, this time; going on needs the same seed
    save_every: int = 25  # steps
    validate_every: int = 100  # a multiple of `save_every`
    modules: int = 2  # per graph
    command: str = ""


def pairs(graphs: Sequence[Graph], count: int, seed: int) -> dict[str, Problem]:
    """Each graph on some modules, drawn by seed; those without a baseline are drawn again."""
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
    plan: TrainingConfig,
    run: PretrainingRun,
    report: Callable[[int, Sequence[Row], float], None] = lambda step, rows, best: None,
    *,
    examples: Mapping[str, Example] | None = None,
    lessons: ImitationConfig | None = None,
    taught: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Path:
    """Trains, or goes on where `run.folder` has a run; gives the file of the selected policy.

    Whatever interrupts it, going on gives what an unbroken run would have given.

    Args:
      report: called after each step with its rows and the best validation score so far.
      examples: partitions that the first placement is fitted to before the first step.
      lessons: how.
      taught: called after each epoch of that with its number and the mean squared distance.

    Raises:
      TrainingError: figures that are none; the folder keeps the last good checkpoint.
      InputError: the folder holds a run of another plan.
    """
    folder = run.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lessons = lessons or ImitationConfig(seed=plan.seed)
    _check_same(folder, _stated(plan, train, valid, examples or {}, lessons))
    tasks: dict[str, Task] = {}
    programs = _Programs()
    started = time.monotonic()

    def task(name: str) -> Task:
        if name not in tasks:
            tasks[name] = Task.build(train[name] if name in train else valid[name])
        return tasks[name]

    def validate(learner: Learner) -> float:
        reached = score(
            learner.params, plan, programs.admit([task(name) for name in sorted(valid)])
        )
        _append(folder / VALIDATION, ["step", "score"], [[learner.step, reached]])
        return reached

    with ocp.CheckpointManager(
        folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as manager:
        names = sorted(train)
        learner = begin(plan, initial_params(plan.sizes, task(names[0]), plan.seed))
        held = _Held(learner, learner.params, -1.0, 0.0)
        if manager.latest_step() is not None:
            held = _restored(manager, held)
        else:
            for file in (LOG, VALIDATION):  # of a run that was stopped before its first checkpoint
                (folder / file).unlink(missing_ok=True)
            held = dataclasses.replace(held, best_score=validate(held.learner))
            if examples:
                programs.clear()
                params = imitate(learner.params, plan.sizes, examples, lessons, taught)
                programs.clear()
                held = dataclasses.replace(held, learner=begin(plan, params))
                held = _selected(held, validate(held.learner))
            _save(manager, dataclasses.replace(held, seconds=time.monotonic() - started))
        for file in (LOG, VALIDATION):
            _cut(folder / file, held.learner.step)
        while held.learner.step < run.steps:
            if run.minutes is not None and time.monotonic() - started > 60 * run.minutes:
                break
            chosen = _chosen(names, plan, held.learner.step)
            tasks_of_step = programs.admit([task(name) for name in chosen])
            learner, rows = advance(held.learner, plan, chosen, tasks_of_step)
            held = dataclasses.replace(held, learner=learner)
            _append(folder / LOG, _ALL_ROWS, [list(dataclasses.astuple(row)) for row in rows])
            if learner.step % run.validate_every == 0:
                held = _selected(held, validate(learner))
            if learner.step % run.save_every == 0:
                seconds = held.seconds + time.monotonic() - started
                _save(manager, dataclasses.replace(held, seconds=seconds))
                _write_policy(folder, held, plan, run, seconds)
            report(learner.step, rows, held.best_score)
        seconds = held.seconds + time.monotonic() - started
        if manager.latest_step() != held.learner.step:
            _save(manager, dataclasses.replace(held, seconds=seconds))
        return _write_policy(folder, held, plan, run, seconds)


class _Programs:
    """Compiled programs, forgotten before there are too many."""

    def __init__(self) -> None:
        self._shapes: set[Any] = set()

    def admit(self, tasks: list[Task]) -> list[Task]:
        """The tasks, when there is room for their programs."""
        shapes = {_shape_of(task) for task in tasks}
        if self._shapes and len(self._shapes | shapes) > _SHAPES:
            self.clear()
        self._shapes |= shapes
        return tasks

    def clear(self) -> None:
        """Forgets all of them."""
        jax.clear_caches()
        self._shapes.clear()


def _shape_of(task: Task) -> tuple[Any, ...]:
    """What tasks that share their programs have in common."""
    arrays = jax.tree.leaves((task.device, task.contracted, task.features))
    return (task.device.config, task.window, *(array.shape for array in arrays))


@dataclasses.dataclass(frozen=True)
class _Held:
    """What a checkpoint holds."""

    learner: Learner
    best_params: Any
    best_score: float
    seconds: float  # trained so far

    def tree(self) -> dict[str, Any]:
        return {
            "params": self.learner.params,
            "opt_state": self.learner.opt_state,
            "step": np.array(self.learner.step),
            "best_params": self.best_params,
            "best_score": np.array(self.best_score),
            "seconds": np.array(self.seconds),
        }


def _selected(held: _Held, reached: float) -> _Held:
    """With the learner's weights as the best, if they score better."""
    if reached <= held.best_score:
        return held
    return dataclasses.replace(held, best_params=held.learner.params, best_score=reached)


def _chosen(names: list[str], plan: TrainingConfig, step: int) -> list[str]:
    """The tasks of a step: all in a random order, over and over."""
    picks = []
    for k in range(step * plan.tasks, (step + 1) * plan.tasks):
        epoch, place = divmod(k, len(names))
        order = np.random.default_rng([plan.seed, 1, epoch]).permutation(len(names))
        picks.append(names[order[place]])
    return picks


def _save(manager: ocp.CheckpointManager, held: _Held) -> None:
    manager.save(held.learner.step, args=ocp.args.StandardSave(held.tree()))
    manager.wait_until_finished()


def _restored(manager: ocp.CheckpointManager, template: _Held) -> _Held:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template.tree())
    step = manager.latest_step()
    tree = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    learner = Learner(tree["params"], tree["opt_state"], int(tree["step"]))
    best_score, seconds = float(tree["best_score"]), float(tree["seconds"])
    return _Held(learner, tree["best_params"], best_score, seconds)


def _write_policy(
    folder: Path, held: _Held, plan: TrainingConfig, run: PretrainingRun, seconds: float
) -> Path:
    from jaxpart.environment import environment

    made = {
        "command": run.command,
        "seed": plan.seed,
        "steps": held.learner.step,
        "seconds": round(seconds, 1),
        "validation_score": held.best_score,
        **environment(),
    }
    path = folder / f"{SHIPPED}.policy"
    Policy(held.best_params, plan.sizes, made).save(path)
    return path


def _stated(
    plan: TrainingConfig,
    train: dict[str, Problem],
    valid: dict[str, Problem],
    examples: Mapping[str, Example],
    lessons: ImitationConfig,
) -> str:
    """All that makes a run what it is, as text."""
    lines = [str(plan), str(sorted(train)), str(sorted(valid))]
    if examples:
        digest = hashlib.sha256()
        for name in sorted(examples):
            digest.update(name.encode() + examples[name].assignment.astype("<i4").tobytes())
        lines += [str(lessons), f"{len(examples)} examples, sha256 {digest.hexdigest()}"]
    return "".join(f"{line}\n" for line in lines)


def _check_same(folder: Path, stated: str) -> None:
    """A folder is for one plan on the same pairs: going on with another would be neither run."""
    path = folder / "plan.txt"
    if path.exists() and path.read_text() != stated:
        raise InputError(
            f"{folder}: holds a run of another plan or other pairs ({path.name}); name a new folder"
        )
    path.write_text(stated)


def _append(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(header)
        writer.writerows(rows)


def _cut(path: Path, step: int) -> None:
    """Drops what was logged after the checkpoint that a run goes on from."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    is_log = path.name == LOG
    kept = [row for row in rows if int(row[0]) < step or (not is_log and int(row[0]) == step)]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    os.replace(temporary, path)


def load_graphs(names: Sequence[str], side: str) -> list[Graph]:
    """The named graphs or files; all of one side of the split where none is named.

    Raises:
      JaxpartError: no such graph, or a damaged file.
    """
    from jaxpart import datasets

    try:
        return [datasets.resolve(name)[0] for name in names or datasets.split(side)]
    except JaxpartError as error:
        raise InputError(f"{side} graphs: {error}") from error
