"""The first placement, learned from partitions that a search has found.

A search of seconds leaves a good partition of every training graph on every module; where in the
module each contracted node stands there is what `Proposal.first` is fitted to, by regression. What
this gives is where reinforcement learning (`pretraining`) sets out: expert iteration (Anthony et
al., 2017), one round of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxpart.errors import InputError
from jaxpart.methods.policy.features import Features
from jaxpart.methods.policy.network import NetworkConfig, propose
from jaxpart.methods.policy.rollout import Params, Task
from jaxpart.problem.graph import Graph
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.file import read_result

_STEEPEST = 0.01  # norm of a gradient; distances are hundredths
_LOAD = 1  # the column of `Features.node` that is the load over a chip's, at most 4


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """How to imitate."""

    seed: int = 0
    epochs: int = 60
    batch: int = 8  # pairs of graph and module per step of the optimiser
    learning_rate: float = 2e-3  # at its peak; warmed up, then along a cosine to zero
    decay: float = 1e-3  # of weights


@dataclasses.dataclass(frozen=True)
class Example:
    """A partition to learn from."""

    problem: Problem
    assignment: IntArray  # [num_nodes]


def read_examples(folder: Path, graphs: Sequence[Graph]) -> dict[str, Example]:
    """The result files of a folder that are of these graphs, by file name.

    Raises:
      FileFormatError: one of them is no result file.
      InputError: one is of another graph of that name, or the folder has none.
    """
    by_name = {graph.name: graph for graph in graphs}
    found: dict[str, Example] = {}
    for path in sorted(folder.glob("*.result.json")):
        stored = read_result(path)
        graph = by_name.get(stored.file.graph)
        if graph is not None:
            problem = Problem.build(graph, stored.mcm)
            found[path.name] = Example(problem, stored.on(graph, stored.mcm))
    if not found:
        raise InputError(
            f"{folder}: no *.result.json of a graph to train on, expected what "
            "scripts/compare.py --results writes"
        )
    return found


def positions(task: Task, assignment: IntArray) -> Float[Array, " N"]:
    """Where each contracted node stands in a partition: the middle of its chip's share of the load,
    0..1.

    Args:
      task: the graph on the module.
      assignment: [num_nodes] chips of nodes; contracted nodes are on one chip each.
    """
    contracted = task.problem.contracted
    chip = np.zeros(contracted.num_nodes, np.int64)
    chip[task.problem.contraction] = assignment
    load_s = contracted.node_s.mean(axis=1)
    of_chip = np.bincount(chip, weights=load_s, minlength=contracted.num_chips)
    middle = (np.cumsum(of_chip) - 0.5 * of_chip) / of_chip.sum()
    padded = np.zeros(task.contracted.padded_nodes, np.float32)
    padded[: contracted.num_nodes] = middle[chip]
    return jnp.asarray(padded)


def distance(
    params: Params,
    sizes: NetworkConfig,
    features: Features,
    seen: Array,
    target: Float[Array, " N"],
) -> Float[Array, ""]:
    """Mean over contracted nodes, half by number and half by load, of the squared distance of
    positions.
    """
    first = propose(params, sizes, features, seen).first
    real = features.is_real
    load = real * features.node[:, _LOAD]
    weight = 0.5 * real / real.sum() + 0.5 * load / jnp.maximum(load.sum(), 1e-9)
    return jnp.sum(weight * (first - target) ** 2)


@partial(jax.jit, static_argnames="sizes")
def _gradient(
    params: Params, sizes: NetworkConfig, features: Features, seen: Array, target: Array
) -> tuple[Array, Params]:
    return jax.value_and_grad(distance)(params, sizes, features, seen, target)


def imitate(
    params: Params,
    sizes: NetworkConfig,
    examples: Mapping[str, Example],
    lessons: ImitationConfig,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Params:
    """Fits the first placement to the examples.

    Args:
      params: to begin with.
      report: called after every epoch with its number and the mean squared distance.
    """
    tasks, targets = [], []
    for name in sorted(examples):
        task = Task.build(examples[name].problem)
        tasks.append((task.features, task.start.seen))
        targets.append(positions(task, examples[name].assignment))
    batches = -(-len(tasks) // lessons.batch)
    steps = lessons.epochs * batches
    schedule = optax.warmup_cosine_decay_schedule(0.0, lessons.learning_rate, steps // 20, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(_STEEPEST), optax.adamw(schedule, weight_decay=lessons.decay)
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params: Params, state: Any, gradients: list[Params]) -> tuple[Params, Any]:
        mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *gradients)
        updates, state = optimizer.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    for epoch in range(lessons.epochs):
        order = np.random.default_rng([lessons.seed, epoch]).permutation(len(tasks))
        losses = []
        for chosen in np.array_split(order, batches):
            gradients = []
            for index in chosen.tolist():
                loss, gradient = _gradient(params, sizes, *tasks[index], targets[index])
                gradients.append(gradient)
                losses.append(loss)
            params, state = step(params, state, gradients)
        report(epoch, float(np.mean(losses)))
    return params
