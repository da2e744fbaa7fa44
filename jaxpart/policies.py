"""The policy in studies: fine-tuning on one graph, and rollouts of its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from jaxpart.cost.evaluate import Costs, verify
from jaxpart.engine import partition
from jaxpart.errors import InputError
from jaxpart.methods.policy.actions import Decoder
from jaxpart.methods.policy.checkpoint import Policy
from jaxpart.methods.policy.rollout import Task, play
from jaxpart.methods.policy.search import (
    PolicySearchConfig,
    PolicySource,
    params_of,
    policy_of,
    with_policy,
)
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.result import Result
from jaxpart.runtime.state import Progress


def finetune(
    graph: Graph,
    mcm: MCM,
    *,
    policy: PolicySource = None,
    decoder: Decoder | Literal["both"] = "labels",
    config: PolicySearchConfig | None = None,
    max_samples: int = 20_000,
    seed: int = 0,
    callback: Callable[[Progress], None] | None = None,
) -> tuple[Policy, Result]:
    """Fine-tunes a policy on one graph (Xie et al., MLSys 2022, section 5.3).

    Args:
      graph: of N nodes.
      mcm: the module.
      policy: to start from, as of `partition`; "fresh" learns from scratch.
      decoder: how actions become partitions; only used without `config`.
      config: how the search uses and trains it. None: zero-shot samples first, then learning; with
        a fresh policy, learning from the first sample on.
      max_samples: costs to compute.
      seed: of samples, and of fresh weights.
      callback: called with the state of the search whenever it changes.

    Returns:
      The fine-tuned policy, and the best partition found on the way.

    Raises:
      InputError: bad arguments, or no such policy.
      InfeasibleError: no valid partition exists.
      NothingFoundError: none was found in so many samples.
    """
    trained, _ = policy_of(policy)
    if config is None:
        config = PolicySearchConfig(decoder)
        if trained is None:
            config = dataclasses.replace(config, learn_after=0)
    kept: list[Policy] = []

    def keep(current: Policy) -> None:
        kept[:] = [current]

    method = with_policy(trained, config, keep)
    result = partition(
        graph,
        mcm,
        method=method,
        time_limit_s=None,
        max_samples=max_samples,
        seed=seed,
        relative_gap=0.0,
        callback=callback,
    )
    if not kept:  # over before the first round: the baseline is proven optimal
        raise InputError(f"{graph.name}: nothing to learn, the baseline is proven optimal")
    return kept[0], result


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """S samples of a policy, made valid where that was possible, and scored in float64."""

    assignments: IntArray  # [N, S]
    costs: Costs  # [C, S], [L, S] and [S]


def rollout(
    graph: Graph,
    mcm: MCM,
    *,
    policy: PolicySource = None,
    config: PolicySearchConfig | None = None,
    rounds: int = 4,
    batch: int = 16,
    seed: int = 0,
) -> Samples:
    """Zero-shot samples: each round is conditioned on the best sample so far.

    Args:
      graph: of N nodes.
      mcm: the module.
      policy: as of `partition`; "none" is refused.
      config: decoder and mode; the rest is not used here.
      rounds: of `batch` samples each, so S = rounds * batch.
      batch: samples a round.
      seed: of the samples, and of fresh weights.

    Raises:
      InputError: bad arguments, no such policy, or a graph too large for it.
    """
    if rounds < 1 or batch < 1:
        raise InputError(f"rounds and batch are {rounds} and {batch}, expected 1 or more")
    trained, _ = policy_of(policy)
    config = config or PolicySearchConfig()
    if config.decoder == "both":
        raise InputError("decoder is 'both', expected 'labels' or 'orders' for a rollout")
    problem = Problem.build(graph, mcm)
    task = Task.build(problem)
    params, sizes = params_of(trained, task, seed, config.network)
    state, key = task.start, jax.random.key(seed)
    columns = []
    for number in range(rounds):
        made = play(
            params,
            sizes,
            task,
            state,
            jax.random.fold_in(key, number),
            batch=batch,
            decoder=config.decoder,
            mode=config.mode,
        )
        columns.append(np.asarray(made.assignments)[: problem.num_nodes].astype(np.int64))
        state = made.after
    assignments = np.concatenate(columns, axis=1)
    return Samples(assignments, verify(problem, assignments))
