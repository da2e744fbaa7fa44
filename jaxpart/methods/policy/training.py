"""Pretraining: PPO over many graphs on many modules, one step a pure function of its number.

Everything random follows from (seed, step), so that a run that was stopped goes on as if it had not
been.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxpart.errors import JaxpartError
from jaxpart.methods.policy import ppo
from jaxpart.methods.policy.actions import Decoder
from jaxpart.methods.policy.network import NetworkConfig
from jaxpart.methods.policy.rollout import Params, Rollout, State, Task, play

_WIDEST = 2**26  # orders x nodes x window x chips that a training batch may cost


class TrainingError(JaxpartError):
    """Training came to figures that are none; the message says where."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a run trains; what fixes it, together with the pairs."""

    seed: int = 0
    tasks: int = 3  # pairs of graph and module per step
    rounds: int = 8  # of refinement, per pair
    learned: int = 4  # of these, drawn at random
    batch: int = 64
    order_share: float = 0.2  # of tasks that decode by orders; they cost more
    sizes: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    settings: ppo.PPOConfig = dataclasses.field(default_factory=ppo.PPOConfig)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The state of training."""

    params: Params
    opt_state: optax.OptState
    step: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One task of one step, as logged."""

    step: int
    task: str
    decoder: str
    start: float  # reward of the first sample
    mean: float  # of all valid samples
    best: float
    valid: float  # share
    loss: float
    entropy: float
    divergence: float
    clipped: float


def begin(plan: TrainingConfig, params: Params) -> Learner:
    """A learner with these weights."""
    return Learner(params, ppo.optimizer(plan.settings).init(params), 0)


def decoder_of(task: Task, plan: TrainingConfig, rng: np.random.Generator) -> Decoder:
    """Orders with the plan's share, where cutting them is cheap enough; else labels."""
    wants_orders = rng.random() < plan.order_share
    return "orders" if wants_orders and "orders" in _decoders(task, plan) else "labels"


def advance(
    learner: Learner, plan: TrainingConfig, names: Sequence[str], tasks: Sequence[Task]
) -> tuple[Learner, list[Row]]:
    """One step on the tasks drawn for it: rollouts, then epochs of PPO.

    Raises:
      TrainingError: a loss or gradient is not finite; says at which step and on which task.
    """
    rng = np.random.default_rng([plan.seed, learner.step])
    transitions: list[tuple[str, Decoder, ppo.Transition]] = []
    rows: list[dict[str, Any]] = []
    for number, (name, task) in enumerate(zip(names, tasks, strict=True)):
        decoder = decoder_of(task, plan, rng)
        key = jax.random.fold_in(jax.random.key(plan.seed), learner.step * plan.tasks + number)
        made, row = _episode(learner, plan, task, decoder, key, rng)
        for transition in made:
            transitions.append((name, decoder, transition))
        rows.append({"step": learner.step, "task": name, "decoder": decoder, **row})
    params, opt_state = learner.params, learner.opt_state
    reports: dict[int, ppo.Report] = {}
    for _ in range(plan.settings.epochs):
        shuffled = rng.permutation(len(transitions)).tolist()
        for start in range(0, len(shuffled), plan.settings.minibatch):
            gradients = []
            for index in shuffled[start : start + plan.settings.minibatch]:
                name, decoder, transition = transitions[index]
                gradient, report = ppo.gradient(
                    params, transition, plan.sizes, plan.settings, decoder
                )
                _check(learner.step, name, report, gradient)
                gradients.append(gradient)
                reports[index] = report
            params, opt_state = ppo.apply_gradients(params, opt_state, gradients, plan.settings)
    for number, row in enumerate(rows):
        own = [reports[number * plan.learned + k] for k in range(plan.learned)]
        fields = [f.name for f in dataclasses.fields(ppo.Report)]
        row |= {field: float(np.mean([getattr(r, field) for r in own])) for field in fields}
    return Learner(params, opt_state, learner.step + 1), [Row(**row) for row in rows]


def _episode(
    learner: Learner,
    plan: TrainingConfig,
    task: Task,
    decoder: Decoder,
    key: jax.Array,
    rng: np.random.Generator,
) -> tuple[list[ppo.Transition], dict[str, float]]:
    """Rounds of refinement on one task, and some of them as transitions to learn from."""
    learned = set(rng.permutation(plan.rounds)[: plan.learned].tolist())
    state, transitions = task.start, []
    valid, rewards = [], []
    for number in range(plan.rounds):
        round_key = jax.random.fold_in(key, number)
        batch = play(
            learner.params, plan.sizes, task, state, round_key, batch=plan.batch, decoder=decoder
        )
        if number in learned:
            transitions.append(_transition(task, state, batch))
        valid.append(batch.costs.valid)
        rewards.append(task.reference_s / batch.costs.bottleneck_s)
        state = batch.after
    is_valid, reward = np.concatenate(valid), np.concatenate(rewards)
    reached = np.where(is_valid, reward, 0.0)
    row = {
        "start": float(reached[0]),
        "mean": float(reached.sum() / max(is_valid.sum(), 1)),
        "best": float(reached.max()),
        "valid": float(is_valid.mean()),
    }
    return transitions, row


def _transition(task: Task, state: State, batch: Rollout) -> ppo.Transition:
    reward = task.reference_s / batch.costs.bottleneck_s
    return ppo.Transition(
        task.features,
        state,
        batch.actions,
        batch.log_prob,
        ppo.advantages(reward, batch.costs.valid),
    )


def _check(step: int, name: str, report: ppo.Report, gradient: Params) -> None:
    if not (np.isfinite(report.loss) and np.isfinite(optax.tree.norm(gradient))):
        raise TrainingError(
            f"step {step}, {name}: loss {float(report.loss):g} or its gradient is not finite; "
            "the last checkpoint is good"
        )


def zero_shot(
    params: Params, plan: TrainingConfig, task: Task, decoder: Decoder, *, rounds: int, seed: int
) -> float:
    """Best reward (T_baseline / T) of some rounds without learning; 0 where nothing was valid."""
    state = task.start
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(seed), number)
        batch = play(params, plan.sizes, task, state, key, batch=plan.batch, decoder=decoder)
        state = batch.after
    return task.reference_s / float(state.bottleneck_s)


def score(
    params: Params, plan: TrainingConfig, tasks: Sequence[Task], *, rounds: int = 4, seeds: int = 2
) -> float:
    """Geometric mean over tasks, seeds and decoders of `zero_shot`: what selects a checkpoint.

    Where nothing valid is found, a sample is worth a tenth of the baseline.
    """
    found = [
        zero_shot(params, plan, task, decoder, rounds=rounds, seed=seed)
        for task in tasks
        for decoder in _decoders(task, plan)
        for seed in range(seeds)
    ]
    return float(np.exp(np.mean(np.log(np.maximum(found, 0.1)))))


def _decoders(task: Task, plan: TrainingConfig) -> tuple[Decoder, ...]:
    """Orders only where cutting a batch of them is cheap enough."""
    rows, chips = task.contracted.padded_nodes, task.device.config.num_chips
    affordable = rows * task.window * (chips + 1) <= _WIDEST // plan.batch * 8
    return ("labels", "orders") if affordable else ("labels",)
