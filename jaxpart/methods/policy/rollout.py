"""Rollouts: samples of the policy for one graph on one module, made valid, costed, remembered.

A round proposes moves away from the last placement, draws a batch, decodes it and costs it; the
best sample so far is the placement that the next round is conditioned on (the iterative refinement
of Xie et al., MLSys 2022, section 4, with the best of a batch in place of a single sample).

Two decoders. Labels: a chip per node, made valid by `fix` or by `sample`, as in the paper. Orders:
a priority per node, cut optimally by slicing; whatever is drawn becomes valid but for memory.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import DeviceProblem, lower
from jaxpart.cost.evaluate import Costs, evaluate, verify
from jaxpart.cost.greedy import baseline
from jaxpart.cost.host import peak_bounds
from jaxpart.methods.labels.sampling import fix, sample
from jaxpart.methods.orders.search import order_by, ranks_of
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.methods.policy.actions import (
    Actions,
    Decoder,
    LogProbs,
    draw_labels,
    draw_orders,
    draw_shared,
    label_log_probs,
    log_probs,
    order_keys,
)
from jaxpart.methods.policy.features import Features, features
from jaxpart.methods.policy.network import (
    PLACEMENT,
    NetworkConfig,
    PolicyNetwork,
    Proposal,
    propose,
)
from jaxpart.problem.problem import Problem

Params = Any  # the network's weights, a pytree
Mode = Literal["fix", "sample", "none"]  # how labels are made valid, if they are
_NEVER = -1e3  # log-probability of what must not be drawn


@struct.dataclass
class State:
    """The best placement so far; N rows of blocks.

    Round 0 starts from where the network would place each contracted node, round 1 from program
    order, all others from here.
    """

    round: Int[Array, ""]
    bottleneck_s: Float[Array, ""]  # inf: nothing valid yet
    order: Float[Array, " N"]  # the place of each contracted node in the order
    position: Float[Array, " N"]  # where each contracted node stands in the module, 0..1
    seen: Float[Array, "N 8"]  # what the network is told of it


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A graph on a module, ready for rollouts."""

    problem: Problem
    device: DeviceProblem
    contracted: DeviceProblem
    features: Features
    contracted_of: Int[Array, " V"]  # rows of `device` to rows of `blocks`
    first_node: Int[Array, " N"]  # and back
    peak_bytes: Float[Array, " N"]
    window: int
    reference_s: float  # what a reward of 1 is

    @classmethod
    def build(cls, problem: Problem) -> Task:
        """Lowers a problem and its blocks.

        Raises:
          InputError: the graph is beyond the largest bucket.
          InfeasibleError: pins within one contracted node differ.
        """
        contracted_problem = problem.contracted
        device = lower(problem)
        contracted = device if contracted_problem is problem else lower(contracted_problem)
        rows, pairs = contracted.padded_nodes, contracted.pair_from.shape[0]
        contracted_of = np.full(device.padded_nodes, rows - 1, np.int32)
        contracted_of[: problem.num_nodes] = problem.contraction
        first = np.full(rows, device.padded_nodes - 1, np.int32)
        np.minimum.at(first, problem.contraction, np.arange(problem.num_nodes, dtype=np.int32))
        peaks = np.zeros(rows, np.float32)
        peaks[: problem.num_contracted] = peak_bounds(problem)[1]
        greedy = baseline(problem)
        reference_s = 2 * problem.mean_load_s
        if greedy is not None:
            reference_s = float(verify(problem, greedy[:, None]).bottleneck_s[0])
        window = window_for(contracted_problem, max(reference_s, 2 * problem.mean_load_s))
        return cls(
            problem,
            device,
            contracted,
            jax.device_put(features(problem, rows, pairs)),
            jnp.asarray(contracted_of),
            jnp.asarray(first),
            jnp.asarray(peaks),
            window,
            reference_s,
        )

    @property
    def start(self) -> State:
        """Nothing placed yet: program order, and chips by the load that comes before."""
        order = jnp.arange(self.contracted.padded_nodes, dtype=jnp.float32)
        seen = _seen_first(self.features)
        return State(jnp.int32(0), jnp.float32(jnp.inf), order, self.features.position, seen)


@struct.dataclass
class Rollout:
    """One round's samples, decoded and costed."""

    actions: Actions
    log_prob: LogProbs
    assignments: Int[Array, "V B"]  # of nodes
    costs: Costs
    after: State


def initial_params(sizes: NetworkConfig, task: Task, seed: int) -> Params:
    """Fresh weights; `task` lends its number of features."""
    return PolicyNetwork(sizes).init(jax.random.key(seed), task.features, task.start.seen)


def play(
    params: Params,
    sizes: NetworkConfig,
    task: Task,
    state: State,
    key: jax.Array,
    *,
    batch: int,
    decoder: Decoder,
    mode: Mode = "fix",
) -> Rollout:
    """One round: draws, decodes and costs a batch. Nothing here waits for the device."""
    act_key, solve_key = jax.random.split(key)
    drawn = act(
        params, task.features, state, act_key, task.contracted.num_nodes,
        sizes=sizes, batch=batch, decoder=decoder,
    )  # fmt: skip
    actions, log_prob = drawn.actions, drawn.log_prob
    if decoder == "orders":
        orders = order_by(task.contracted, order_keys(drawn.base, actions))
        peaks = jnp.broadcast_to(task.peak_bytes, (batch, task.peak_bytes.shape[0]))
        _, chips = slice_orders(task.contracted, orders, peaks, task.window)
        assignments = chips[task.contracted_of]
        order = ranks_of(orders).T
    else:
        if mode == "sample":
            assignments = sample(task.device, solve_key, drawn.scores[task.contracted_of], batch)
        else:
            labels = actions.taken[task.contracted_of].astype(task.device.config.chip_dtype)
            assignments = labels if mode == "none" else fix(task.device, labels)
        order = jnp.broadcast_to(drawn.order[:, None], (drawn.order.shape[0], batch))
    costs = evaluate(task.device, assignments)
    chips = assignments[task.first_node]
    after = _advance(state, chips, order, costs, task.device, task.features.is_real)
    after = dataclasses.replace(after, round=state.round + 1)
    return Rollout(actions, log_prob, assignments, costs, after)


def advanced(task: Task, state: State, assignments: Int[Array, "V B"], costs: Costs) -> State:
    """The state with the best of partitions that others made, where it is better."""
    chips = assignments[task.first_node]
    # Lower chips first, in program order on each: an order that can be cut into these pieces.
    last = task.device.config.num_chips  # padding stays behind
    chip = jnp.where(task.features.is_real[:, None] > 0, chips.astype(jnp.int32), last)
    order = ranks_of(jnp.argsort(chip, axis=0, stable=True).T.astype(jnp.int32)).T
    return _advance(state, chips, order, costs, task.device, task.features.is_real)


@struct.dataclass
class _Drawn:
    base: Float[Array, " N"]  # order or position
    order: Float[Array, " N"]
    actions: Actions
    log_prob: LogProbs
    scores: Float[Array, "N C B"] | None  # log-probabilities, for `sample`


@partial(jax.jit, static_argnames=("sizes", "batch", "decoder"))
def act(
    params: Params,
    features: Features,
    state: State,
    key: jax.Array,
    count: Int[Array, ""],
    *,
    sizes: NetworkConfig,
    batch: int,
    decoder: Decoder,
) -> _Drawn:
    """Draws actions of a batch and says how probable each node's was."""
    proposal, order, position = proposed(params, sizes, features, state)
    moves = proposal.orders if decoder == "orders" else proposal.labels
    base = order if decoder == "orders" else position
    shared_key, node_key = jax.random.split(key)
    shared = draw_shared(
        shared_key, order, moves, count, features.chip.shape[0],
        batch=batch, decoder=decoder,
    )  # fmt: skip
    if decoder == "orders":
        actions, scores = draw_orders(node_key, moves, shared), None
    else:
        actions = draw_labels(node_key, base, moves, proposal.scores, shared)
        scores = label_log_probs(base, moves, proposal.scores, shared)
        chip = jnp.arange(scores.shape[1])[None, :, None]
        kept = jnp.where(chip == actions.taken[:, None], 0.0, _NEVER)
        scores = jnp.where(shared.moves[:, None], scores, kept)
    real = features.is_real > 0
    log_prob, _ = log_probs(decoder, base, moves, proposal.scores, actions, real)
    return _Drawn(base, order, actions, log_prob, scores)


def proposed(
    params: Params, sizes: NetworkConfig, features: Features, state: State
) -> tuple[Proposal, Float[Array, " N"], Float[Array, " N"]]:
    """What the network says in this round; the order and the positions that it moves away from."""
    rows = features.is_real.shape[0]
    program = jnp.arange(rows, dtype=jnp.float32)
    seen = jnp.where(state.round < 2, _seen_first(features), state.seen)
    proposal = propose(params, sizes, features, seen)
    own = jnp.where(features.is_real > 0, proposal.first, 2.0)  # padding stays behind
    own_order = ranks_of(jnp.argsort(own, stable=True)[None].astype(jnp.int32))[0]
    choices = [own_order.astype(jnp.float32), program, state.order]
    order = jnp.select([state.round == 0, state.round == 1], choices[:2], choices[2])
    starts = [proposal.first, features.position]
    position = jnp.select([state.round == 0, state.round == 1], starts, state.position)
    return proposal, order, position


def _seen_first(features: Features) -> Float[Array, "N 8"]:
    """What the network is told while nothing is placed: program order, by load."""
    order = jnp.arange(features.position.shape[0]) / features.is_real.sum()
    seen = jnp.zeros((features.position.shape[0], PLACEMENT))
    seen = seen.at[:, 0].set(features.position).at[:, 1].set(order)
    return seen * features.is_real[:, None]


@jax.jit
def _advance(
    state: State,
    chips: Int[Array, "N B"],
    order: Float[Array, "N B"],
    costs: Costs,
    problem: DeviceProblem,
    is_real: Float[Array, " N"],
) -> State:
    """The best of the batch, where it is better than what the round started from."""
    reached = jnp.where(costs.valid, costs.bottleneck_s, jnp.inf)
    b = jnp.argmin(reached)
    best_s = reached[b]
    chip = chips[:, b].astype(jnp.int32)
    # Times relative to the bottleneck, one row per chip.
    busy = [costs.stage_s[:, b], costs.compute_s[:, b], costs.in_s[:, b], costs.out_s[:, b]]
    figures = [*(s / best_s for s in busy), costs.memory_bytes[:, b] / problem.capacity_bytes]
    position = (chip + 0.5) / problem.config.num_chips
    place = order[:, b]
    told = [position, place / is_real.sum(), jnp.ones_like(position), *(f[chip] for f in figures)]
    seen = jnp.stack(told, axis=1) * is_real[:, None]
    better = State(state.round, best_s, place, position, seen)
    is_better = best_s < state.bottleneck_s
    return jax.tree.map(lambda new, old: jnp.where(is_better, new, old), better, state)
