"""Imitation: fits the network's first placement to partitions that a search has found.

A search of a few seconds gives a good partition of every training graph on every module. The
partition gives a position in the module for each contracted node. `Proposal.first` is fitted to
these positions by regression. Reinforcement learning (`pretraining.py`) then starts from the fitted
weights. This is one round of expert iteration (Anthony et al., 2017).
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
from jaxtyping import Array, Float, Int

from jaxpart.cost.batch import is_accelerator
from jaxpart.errors import InputError
from jaxpart.methods.policy.features import Features
from jaxpart.methods.policy.network import NetworkConfig, propose
from jaxpart.methods.policy.rollout import Params, Task
from jaxpart.methods.policy.stacking import alike, together
from jaxpart.problem.graph import Graph
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.file import read_result

_MAX_GRADIENT_NORM = 0.01  # gradients are clipped to this norm; the loss is of this order
_LOAD_COLUMN = 1  # column of `Features.node`: the load relative to a chip's mean load, at most 4


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """How to fit the first placement."""

    seed: int = 0
    epochs: int = 60
    batch: int = 8  # examples per step of the optimiser
    learning_rate: float = 2e-3  # peak; after a warm-up it falls to 0 along a cosine
    decay: float = 1e-3  # weight decay of AdamW


@dataclasses.dataclass(frozen=True)
class Example:
    """A problem and a partition of it to learn from."""

    problem: Problem
    assignment: IntArray  # [num_nodes] chips of nodes


def read_examples(folder: Path, graphs: Sequence[Graph]) -> dict[str, Example]:
    """Reads the result files (`*.result.json`) in a folder that belong to the given graphs.

    Args:
      folder: of the files; results of other graphs are ignored.
      graphs: to train on.

    Returns:
      The examples, by file name.

    Raises:
      FileFormatError: a file is not a result file.
      InputError: a result is of another graph that has the same name, or no result is of the given
        graphs.
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
            "scripts/studies/compare.py --results writes"
        )
    return found


def positions(task: Task, assignment: IntArray) -> Float[Array, " N"]:
    """The position of each contracted node in a partition.

    Each chip covers an interval of 0..1, as long as its share of the load; the chips follow each
    other by number. The position of a contracted node is the middle of its chip's interval.

    Args:
      task: the graph on the module.
      assignment: [num_nodes] chips of nodes; the nodes of a contracted node share a chip.

    Returns:
      [N] positions, 0..1; 0 for padding.
    """
    contracted = task.problem.contracted
    chip = task.problem.contracted_assignment(assignment)
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
    """The loss: weighted mean of the squared distance between proposed and target positions.

    Half of the weight is divided equally among the contracted nodes, the other half in proportion
    to their load (at most four times the mean load of a chip).

    Args:
      params: weights of the network.
      sizes: of the network.
      features: of the graph on the module.
      seen: [N, 8] the placement that the network sees (`rollout.State.seen`).
      target: [N] positions, 0..1.
    """
    first = propose(params, sizes, features, seen).first
    real = features.is_real
    load = real * features.node[:, _LOAD_COLUMN]
    weight = 0.5 * real / real.sum() + 0.5 * load / jnp.maximum(load.sum(), 1e-9)
    return jnp.sum(weight * (first - target) ** 2)


@partial(jax.jit, static_argnames="sizes")
def _gradient(
    params: Params, sizes: NetworkConfig, features: Features, seen: Array, target: Array
) -> tuple[Array, Params]:
    return jax.value_and_grad(distance)(params, sizes, features, seen, target)


@partial(jax.jit, static_argnames="sizes")
def _gradient_of_several(
    params: Params,
    sizes: NetworkConfig,
    lessons: _Lesson,
    chosen: Int[Array, " K"],
    weight: Float[Array, " K"],
) -> tuple[Array, Params]:
    """The weighted sum of `distance` over the chosen lessons of a bucket, and its gradient."""

    def total(params: Params) -> Array:
        each = jax.vmap(partial(distance, params, sizes))
        return jnp.sum(weight * each(*(jax.tree.map(lambda leaf: leaf[chosen], lessons))))

    return jax.value_and_grad(total)(params)


_Lesson = tuple[Features, Array, Array]  # what the network sees, and the target positions
# The losses and gradients of the lessons of these numbers, as sums of some of them.
_Teacher = Callable[[Params, Sequence[int]], tuple[list[Array], list[Params]]]


def one_by_one(sizes: NetworkConfig, lessons: Sequence[_Lesson]) -> _Teacher:
    """Calls a program for each lesson."""

    def teach(params: Params, chosen: Sequence[int]) -> tuple[list[Array], list[Params]]:
        found = [_gradient(params, sizes, *lessons[number]) for number in chosen]
        return [loss for loss, _ in found], [gradient for _, gradient in found]

    return teach


def by_bucket(sizes: NetworkConfig, lessons: Sequence[_Lesson]) -> _Teacher:
    """Calls a program for each bucket among the lessons."""
    buckets = [(numbers, together([lessons[n] for n in numbers])) for numbers in alike(lessons)]
    place = {n: (b, k) for b, (numbers, _) in enumerate(buckets) for k, n in enumerate(numbers)}

    def teach(params: Params, chosen: Sequence[int]) -> tuple[list[Array], list[Params]]:
        losses, gradients = [], []
        for bucket, (_, stack) in enumerate(buckets):
            rows = [k for b, k in map(place.__getitem__, chosen) if b == bucket]
            if not rows:
                continue
            # Few lengths, so that few programs are compiled: a power of two, with weights of 0.
            spare = (1 << (len(rows) - 1).bit_length()) - len(rows)
            weight = np.array([1.0] * len(rows) + [0.0] * spare, np.float32)
            numbers = np.array(rows + [rows[0]] * spare, np.int32)
            loss, gradient = _gradient_of_several(params, sizes, stack, numbers, weight)
            losses.append(loss)
            gradients.append(gradient)
        return losses, gradients

    return teach


def imitate(
    params: Params,
    sizes: NetworkConfig,
    examples: Mapping[str, Example],
    imitation: ImitationConfig,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Params:
    """Fits the first placement to the examples.

    Args:
      params: initial weights of the network.
      sizes: of the network.
      examples: partitions to learn from, by name.
      imitation: how to fit.
      report: called after every epoch with its number and the mean of `distance`.

    Returns:
      The fitted weights.
    """
    lessons = []
    for name in sorted(examples):
        task = Task.build(examples[name].problem)
        target = positions(task, examples[name].assignment)
        lessons.append((task.features, task.start.seen, target))
    teach = (by_bucket if is_accelerator() else one_by_one)(sizes, lessons)
    batches = -(-len(lessons) // imitation.batch)
    steps = imitation.epochs * batches
    schedule = optax.warmup_cosine_decay_schedule(0.0, imitation.learning_rate, steps // 20, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(_MAX_GRADIENT_NORM),
        optax.adamw(schedule, weight_decay=imitation.decay),
    )
    state = optimizer.init(params)

    @partial(jax.jit, static_argnames="count")
    def step(params: Params, state: Any, gradients: list[Params], count: int) -> tuple[Params, Any]:
        mean = jax.tree.map(lambda *parts: sum(parts) / count, *gradients)
        updates, state = optimizer.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    for epoch in range(imitation.epochs):
        order = np.random.default_rng([imitation.seed, epoch]).permutation(len(lessons))
        losses = []
        for chosen in np.array_split(order, batches):
            found, gradients = teach(params, chosen.tolist())
            losses += found
            params, state = step(params, state, gradients, len(chosen))
        report(epoch, float(np.sum(losses) / len(lessons)))
    return params
