"""Rollouts: rounds of samples that the policy draws for one graph on one module.

A round proposes moves away from the last placement, draws a batch of samples, decodes them into
partitions, and computes their costs. The next round starts from the best sample so far. This is the
iterative refinement of Xie et al. (MLSys 2022, section 4), but with the best sample of a batch in
place of a single sample.

There are two decoders:

- labels: one chip per node, made valid by `fix` or `sample` as in the paper;
- orders: one key per node; the order that the keys give is cut optimally (`slice_orders`). The
  result keeps all rules, except that memory can overflow.

In all shapes, N is the number of rows: one per contracted node, plus padding. V is the number of
nodes of the graph, with padding; B the number of samples; C of chips.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import DeviceProblem, lower
from jaxpart.cost.evaluate import Costs, evaluate, verify
from jaxpart.cost.greedy import baseline
from jaxpart.cost.host import peak_bounds
from jaxpart.cost.sharding import devices_for, divided, mesh_for, replicated, split
from jaxpart.methods.labels.sampling import fix, sample_lanes
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

Params = Any  # weights of the network, a pytree
Mode = Literal["fix", "sample", "none"]  # how labels are made valid; "none": not at all
# Fields of `Task` that are arrays.
_ON_DEVICE = ("device", "contracted", "features", "contracted_of", "first_node", "peak_bytes")
_FORBIDDEN_LOG_PROB = -1e3  # log-probability of what must not be drawn


@struct.dataclass
class State:
    """The best placement so far, of the contracted nodes.

    Round 0 starts from the network's first placement, round 1 from program order, and every later
    round from this placement.
    """

    round: Int[Array, ""]
    bottleneck_s: Float[Array, ""]  # inf while there is no valid placement
    order: Float[Array, " N"]  # the place of each contracted node in the order
    position: Float[Array, " N"]  # of each contracted node in the module, 0..1
    # The placement as input of the network. Columns: position in the module; place in the order,
    # 0..1; 1 if there is a placement; then of the node's chip, relative to the bottleneck: stage,
    # compute, receiving and sending time; and its memory relative to its capacity.
    seen: Float[Array, "N 8"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A graph on a module, prepared for rollouts."""

    problem: Problem
    device: DeviceProblem  # of the nodes
    contracted: DeviceProblem  # of the contracted nodes
    features: Features
    contracted_of: Int[Array, " V"]  # row of each node's contracted node
    first_node: Int[Array, " N"]  # row of each contracted node's first node
    peak_bytes: Float[Array, " N"]  # upper bound of `peak_bounds` in `cost/host.py`
    window: int  # most contracted nodes in a segment of an order
    # Bottleneck that has the reward 1: that of the greedy baseline, or twice the mean load if there
    # is no baseline.
    reference_s: float
    copies: dict[int, Task] = dataclasses.field(default_factory=dict)  # for so many devices

    @classmethod
    def build(cls, problem: Problem) -> Task:
        """Prepares a problem: puts it and its contracted problem on the device.

        Args:
          problem: a graph on a module.

        Raises:
          InputError: the graph has more contracted nodes than the largest bucket holds.
          InfeasibleError: the nodes of one contracted node are fixed to different chips.
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
            jax.device_put(features(problem, rows, pairs, has_lists=device.tables is not None)),
            jnp.asarray(contracted_of),
            jnp.asarray(first),
            jnp.asarray(peaks),
            window,
            reference_s,
        )

    def shared(self, batch: int) -> Task:
        """The task on each of the devices that share a batch of this size; copied once."""
        count = devices_for(batch)
        if count == 1:
            return self
        if count not in self.copies:
            arrays = {f: getattr(self, f) for f in _ON_DEVICE}
            self.copies[count] = dataclasses.replace(self, **replicated(arrays, batch), copies={})
        return self.copies[count]

    @property
    def start(self) -> State:
        """The state before round 0: program order, and positions by the load before each node."""
        order = jnp.arange(self.contracted.padded_nodes, dtype=jnp.float32)
        seen = _seen_first(self.features)
        return State(jnp.int32(0), jnp.float32(jnp.inf), order, self.features.position, seen)


@struct.dataclass
class Rollout:
    """The samples of one round, with their partitions and costs."""

    actions: Actions
    log_prob: LogProbs
    assignments: Int[Array, "V B"]  # chips of nodes
    costs: Costs
    after: State  # the state for the next round


def initial_params(sizes: NetworkConfig, task: Task, seed: int) -> Params:
    """Draws fresh weights.

    Args:
      sizes: of the network.
      task: any task; the weights depend only on its number of features.
      seed: same seed, same weights.
    """
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
    """Plays one round: draws a batch, decodes it and computes its costs.

    The call does not wait for the device.

    Args:
      params: weights of the network.
      sizes: of the network.
      task: the graph on the module.
      state: the state before the round.
      key: same key, same samples.
      batch: B.
      decoder: of the samples.
      mode: how labels are made valid; not used for orders.

    Returns:
      The samples and the state after the round.
    """
    act_key, solve_key = jax.random.split(key)
    task = task.shared(batch)
    params, state = replicated((params, state), batch)
    drawn = act(
        params, task.features, state, act_key, task.contracted.num_nodes,
        sizes=sizes, batch=batch, decoder=decoder, mesh=mesh_for(batch),
        has_scores=decoder == "labels" and mode == "sample",
    )  # fmt: skip
    actions, log_prob = drawn.actions, drawn.log_prob
    if decoder == "orders":
        to_order = split(order_by, batch, (None, 0), 0)
        to_chips = split(slice_orders, batch, (None, 0, 0), window=task.window)
        orders = to_order(task.contracted, order_keys(drawn.base, actions))
        peaks = jnp.broadcast_to(task.peak_bytes, (batch, task.peak_bytes.shape[0]))
        _, chips = to_chips(task.contracted, orders, peaks)
        assignments = chips[task.contracted_of]
        order = ranks_of(orders).T
    else:
        if mode == "sample":
            decide = split(sample_lanes, batch, (None, None, 0, 2))
            log_probs_of = drawn.scores[task.contracted_of]
            assignments = decide(task.device, solve_key, jnp.arange(batch), log_probs_of)
        else:
            labels = actions.taken[task.contracted_of].astype(task.device.config.chip_dtype)
            assignments = labels
            if mode == "fix":
                assignments = split(fix, batch, (None, 1))(task.device, labels)
        order = jnp.broadcast_to(drawn.order[:, None], (drawn.order.shape[0], batch))
    costs = split(evaluate, batch, (None, 1))(task.device, assignments)
    chips = assignments[task.first_node]
    after = _advance(state, chips, order, costs, task.device, task.features.is_real)
    after = dataclasses.replace(after, round=state.round + 1)
    return Rollout(actions, log_prob, assignments, costs, after)


def advanced(task: Task, state: State, assignments: Int[Array, "V B"], costs: Costs) -> State:
    """Takes the best of given partitions into the state, if it is better than the state.

    Args:
      task: the graph on the module.
      state: to improve.
      assignments: [V, B] chips of nodes, made by other methods.
      costs: of the assignments.

    Returns:
      The new state. Its round is that of `state`.
    """
    task = task.shared(assignments.shape[1])
    chips = assignments[task.first_node]
    # An order that can be cut into these segments: by chip, and in program order on each chip.
    last = task.device.config.num_chips  # larger than any chip, so that padding comes last
    chip = jnp.where(task.features.is_real[:, None] > 0, chips.astype(jnp.int32), last)
    order = ranks_of(jnp.argsort(chip, axis=0, stable=True).T.astype(jnp.int32)).T
    return _advance(state, chips, order, costs, task.device, task.features.is_real)


@struct.dataclass
class _Drawn:
    """The samples of one round before decoding."""

    base: Float[Array, " N"]  # `order` for orders, positions in the module for labels
    order: Float[Array, " N"]  # the place of each contracted node in the order
    actions: Actions
    log_prob: LogProbs
    # Log-probabilities of the chips, if asked for: they are large.
    scores: Float[Array, "N C B"] | None


@partial(jax.jit, static_argnames=("sizes", "batch", "decoder", "mesh", "has_scores"))
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
    mesh: Mesh | None = None,
    has_scores: bool = False,
) -> _Drawn:
    """Draws the actions of a batch, and computes their log-probabilities.

    Args:
      params: weights of the network.
      features: of the graph on the module.
      state: the state before the round.
      key: same key, same actions.
      count: number of contracted nodes, without padding.
      sizes: of the network.
      batch: B.
      decoder: of the samples.
      mesh: of the devices that share the batch; None: one device. The samples are the same.
      has_scores: whether to return the log-probabilities of the chips, for the mode "sample" of
        labels.
    """
    proposal, order, position = proposed(params, sizes, features, state)
    moves = proposal.orders if decoder == "orders" else proposal.labels
    base = order if decoder == "orders" else position
    shared_key, node_key = jax.random.split(key)
    shared = draw_shared(
        shared_key, order, moves, count, features.chip.shape[0],
        batch=batch, decoder=decoder,
    )  # fmt: skip
    if decoder == "orders":
        actions = draw_orders(node_key, moves, shared)
    else:
        actions = draw_labels(node_key, base, moves, proposal.scores, shared)
    scores = None
    if has_scores:
        scores = label_log_probs(base, moves, proposal.scores, shared)
        chip = jnp.arange(scores.shape[1])[None, :, None]
        kept = jnp.where(chip == actions.taken[:, None], 0.0, _FORBIDDEN_LOG_PROB)
        scores = jnp.where(shared.moves[:, None], scores, kept)
    real = features.is_real > 0
    log_prob, _ = log_probs(decoder, base, moves, proposal.scores, actions, real)
    return _Drawn(base, order, *divided((actions, log_prob, scores), mesh))


def proposed(
    params: Params, sizes: NetworkConfig, features: Features, state: State
) -> tuple[Proposal, Float[Array, " N"], Float[Array, " N"]]:
    """Applies the network to a state.

    Args:
      params: weights of the network.
      sizes: of the network.
      features: of the graph on the module.
      state: the state before the round.

    Returns:
      The proposal of the network, and what it moves away from in this round (see `State`): the
      order [N] in places, and the positions [N] in the module, 0..1.
    """
    rows = features.is_real.shape[0]
    program = jnp.arange(rows, dtype=jnp.float32)
    seen = jnp.where(state.round < 2, _seen_first(features), state.seen)
    proposal = propose(params, sizes, features, seen)
    own = jnp.where(features.is_real > 0, proposal.first, 2.0)  # padding comes last
    own_order = ranks_of(jnp.argsort(own, stable=True)[None].astype(jnp.int32))[0]
    choices = [own_order.astype(jnp.float32), program, state.order]
    order = jnp.select([state.round == 0, state.round == 1], choices[:2], choices[2])
    starts = [proposal.first, features.position]
    position = jnp.select([state.round == 0, state.round == 1], starts, state.position)
    return proposal, order, position


def _seen_first(features: Features) -> Float[Array, "N 8"]:
    """`State.seen` while there is no placement: program order, and positions by load."""
    order = jnp.arange(features.position.shape[0]) / features.is_real.sum()
    seen = jnp.stack([features.position, order], axis=1)
    seen = jnp.pad(seen, ((0, 0), (0, PLACEMENT - seen.shape[1])))
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
    """The state with the best sample of a batch, if it is better than the state.

    Args:
      state: before the batch; the result has its round.
      chips: [N, B] chips of contracted nodes.
      order: [N, B] places of contracted nodes in the order.
      costs: of the samples.
      problem: the problem of the nodes.
      is_real: [N] 1 for a contracted node, 0 for padding.
    """
    reached = jnp.where(costs.valid, costs.bottleneck_s, jnp.inf)
    b = jnp.argmin(reached)
    best_s = reached[b]
    chip = chips[:, b].astype(jnp.int32)
    busy = [costs.stage_s[:, b], costs.compute_s[:, b], costs.in_s[:, b], costs.out_s[:, b]]
    per_chip = [*(s / best_s for s in busy), costs.memory_bytes[:, b] / problem.capacity_bytes]
    position = (chip + 0.5) / problem.config.num_chips
    place = order[:, b]
    columns = [
        position,
        place / is_real.sum(),
        jnp.ones_like(position),
        *(f[chip] for f in per_chip),
    ]
    seen = jnp.stack(columns, axis=1) * is_real[:, None]
    better = State(state.round, best_s, place, position, seen)
    is_better = best_s < state.bottleneck_s
    return jax.tree.map(lambda new, old: jnp.where(is_better, new, old), better, state)
