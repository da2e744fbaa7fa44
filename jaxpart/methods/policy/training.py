"""The steps of pretraining: PPO on many graphs and many modules.

All random numbers of a step follow from (seed, number of the step). So a run that was stopped can
resume with the same results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxpart.cost.batch import is_accelerator
from jaxpart.errors import JaxpartError
from jaxpart.methods.policy import ppo
from jaxpart.methods.policy.actions import Decoder
from jaxpart.methods.policy.network import NetworkConfig
from jaxpart.methods.policy.rollout import Params, Rollout, State, Task, play
from jaxpart.methods.policy.stacking import alike

_MAX_CUT_WORK = 2**26  # batch x rows x window x (chips + 1) / 8 may be at most this for orders


class TrainingError(JaxpartError):
    """A loss or gradient is not finite; the message says at which step and on which task."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a run trains. With the pairs of graph and module, it determines the run."""

    seed: int = 0
    tasks: int = 3  # pairs of graph and module (`rollout.Task`) per step
    rounds: int = 8  # rounds of refinement per task
    learned: int = 4  # rounds per task that are learned from, drawn at random
    batch: int = 64  # samples per round
    order_share: float = 0.2  # probability that a task decodes by orders, which cost more
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    ppo_config: ppo.PPOConfig = dataclasses.field(default_factory=ppo.PPOConfig)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The state of training after `step` steps."""

    params: Params
    opt_state: optax.OptState
    step: int


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """The log of one task in one step. A reward is that of `ppo.py`, 0 for an invalid sample."""

    step: int  # from 0
    task: str
    decoder: str
    start: float  # reward of the first sample of the first round, which moves nothing
    mean: float  # mean reward of the valid samples; 0 if there are none
    best: float  # greatest reward
    valid: float  # share of valid samples
    # Means of the fields of `ppo.Report` over the transitions of the task, in the last epoch.
    loss: float
    entropy: float
    divergence: float
    clipped: float


def begin(config: TrainingConfig, params: Params) -> Learner:
    """A learner with these weights that has made no step."""
    return Learner(params, ppo.optimizer(config.ppo_config).init(params), 0)


def decoder_of(task: Task, config: TrainingConfig, rng: np.random.Generator) -> Decoder:
    """Draws the decoder of a task.

    Args:
      task: of the step.
      config: `order_share` is the probability of orders.
      rng: source of the draw.

    Returns:
      "orders" if they were drawn and are affordable for the task, otherwise "labels".
    """
    wants_orders = rng.random() < config.order_share
    return "orders" if wants_orders and "orders" in _decoders(task, config) else "labels"


def advance(
    learner: Learner, config: TrainingConfig, names: Sequence[str], tasks: Sequence[Task]
) -> tuple[Learner, list[TrainingRow]]:
    """Makes one step: rollouts on its tasks, then epochs of PPO.

    Args:
      learner: the state before the step.
      config: how to train.
      names: of the tasks.
      tasks: of the step, `config.tasks` in number.

    Returns:
      The state after the step, and a row per task.

    Raises:
      TrainingError: a loss or gradient is not finite.
    """
    rng = np.random.default_rng([config.seed, learner.step])
    transitions: list[tuple[str, Decoder, ppo.Transition]] = []
    rows: list[dict[str, Any]] = []
    for number, (name, task) in enumerate(zip(names, tasks, strict=True)):
        decoder = decoder_of(task, config, rng)
        key = jax.random.fold_in(jax.random.key(config.seed), learner.step * config.tasks + number)
        made, row = _episode(learner, config, task, decoder, key, rng)
        for transition in made:
            transitions.append((name, decoder, transition))
        rows.append({"step": learner.step, "task": name, "decoder": decoder, **row})
    params, opt_state = learner.params, learner.opt_state
    reports: dict[int, ppo.Report] = {}
    for _ in range(config.ppo_config.epochs):
        shuffled = rng.permutation(len(transitions)).tolist()
        for start in range(0, len(shuffled), config.ppo_config.minibatch):
            chosen = shuffled[start : start + config.ppo_config.minibatch]
            gradients = []
            for indices in _calls(transitions, chosen):
                gradient, found = _learned(params, config, [transitions[i] for i in indices])
                names_of = ", ".join(dict.fromkeys(transitions[i][0] for i in indices))
                for index, report in zip(indices, found, strict=True):
                    _check(learner.step, names_of, report, gradient)
                    reports[index] = report
                gradients.append(gradient)
            params, opt_state = ppo.apply_gradients(
                params, opt_state, gradients, config.ppo_config, len(chosen)
            )
    for number, row in enumerate(rows):
        own = [reports[number * config.learned + k] for k in range(config.learned)]
        fields = [f.name for f in dataclasses.fields(ppo.Report)]
        row |= {field: float(np.mean([getattr(r, field) for r in own])) for field in fields}
    return Learner(params, opt_state, learner.step + 1), [TrainingRow(**row) for row in rows]


def _calls(
    transitions: Sequence[tuple[str, Decoder, ppo.Transition]], chosen: list[int]
) -> list[list[int]]:
    """The chosen transitions by program call: on a CPU each alone, else those of a bucket."""
    if not is_accelerator():
        return [[index] for index in chosen]
    decoders: tuple[Decoder, ...] = ("labels", "orders")
    of_decoder = ([i for i in chosen if transitions[i][1] == decoder] for decoder in decoders)
    return [
        [indices[k] for k in numbers]
        for indices in of_decoder
        for numbers in alike([transitions[i][2] for i in indices])
    ]


def _learned(
    params: Params, config: TrainingConfig, several: list[tuple[str, Decoder, ppo.Transition]]
) -> tuple[Params, list[ppo.Report]]:
    """The sum of the gradients of transitions of one call, and the statistics of each."""
    _, decoder, transition = several[0]
    rest = config.network, config.ppo_config, decoder, ppo.part_for(config.batch)
    if len(several) > 1:
        return ppo.gradients(params, [each for _, _, each in several], *rest)
    gradient, report = ppo.gradient(params, transition, *rest)
    return gradient, [report]


def _episode(
    learner: Learner,
    config: TrainingConfig,
    task: Task,
    decoder: Decoder,
    key: jax.Array,
    rng: np.random.Generator,
) -> tuple[list[ppo.Transition], dict[str, float]]:
    """Plays the rounds of one task; gives transitions to learn from, and figures of the rounds."""
    learned = set(rng.permutation(config.rounds)[: config.learned].tolist())
    state, transitions = task.start, []
    valid, rewards = [], []
    for number in range(config.rounds):
        round_key = jax.random.fold_in(key, number)
        batch = play(
            learner.params,
            config.network,
            task,
            state,
            round_key,
            batch=config.batch,
            decoder=decoder,
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
    """The transition of a batch that was drawn from `state`."""
    reward = task.reference_s / batch.costs.bottleneck_s
    return ppo.Transition(
        task.features,
        state,
        batch.actions,
        batch.log_prob,
        ppo.advantages(reward, batch.costs.valid),
    )


def _check(step: int, name: str, report: ppo.Report, gradient: Params) -> None:
    """Raises `TrainingError` if the loss or its gradient is not finite."""
    if not (np.isfinite(report.loss) and np.isfinite(optax.tree.norm(gradient))):
        raise TrainingError(
            f"step {step}, {name}: loss {float(report.loss):g} or its gradient is not finite; "
            "the last checkpoint is good"
        )


def zero_shot(
    params: Params, config: TrainingConfig, task: Task, decoder: Decoder, *, rounds: int, seed: int
) -> float:
    """Plays rounds without learning.

    Args:
      params: weights of the network.
      config: sizes of the network and of the batch.
      task: to play.
      decoder: of the samples.
      rounds: of refinement.
      seed: same seed, same samples.

    Returns:
      The best reward, `task.reference_s` / T; 0 if no sample was valid.
    """
    state = task.start
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(seed), number)
        batch = play(params, config.network, task, state, key, batch=config.batch, decoder=decoder)
        state = batch.after
    return task.reference_s / float(state.bottleneck_s)


def score(
    params: Params,
    config: TrainingConfig,
    tasks: Sequence[Task],
    *,
    rounds: int = 4,
    seeds: int = 2,
) -> float:
    """The validation score: geometric mean of `zero_shot` over tasks, decoders and seeds.

    A reward below 0.1 counts as 0.1, also if no sample was valid.

    Args:
      params: weights of the network.
      config: sizes of the network and of the batch.
      tasks: to play.
      rounds: of refinement, for each task, decoder and seed.
      seeds: number of seeds.
    """
    found = [
        zero_shot(params, config, task, decoder, rounds=rounds, seed=seed)
        for task in tasks
        for decoder in _decoders(task, config)
        for seed in range(seeds)
    ]
    return float(np.exp(np.mean(np.log(np.maximum(found, 0.1)))))


def _decoders(task: Task, config: TrainingConfig) -> tuple[Decoder, ...]:
    """The affordable decoders: orders are left out if cutting a batch of them costs too much."""
    rows, chips = task.contracted.padded_nodes, task.device.config.num_chips
    affordable = rows * task.window * (chips + 1) <= _MAX_CUT_WORK // config.batch * 8
    return ("labels", "orders") if affordable else ("labels",)
