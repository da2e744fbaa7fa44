"""Search over node orders: evolution of topological orders, each cut into segments.

There are two ways to score an order:

- With the triangle rule on and no fixed chips, `probe.py` compares thousands of orders with the
  incumbent. Only orders that beat it are cut at the least bottleneck that they allow.
- Otherwise `slicing.py` cuts each order optimally.

An order is a vector of keys, one per contracted node; nodes run in ascending order of their keys.
After a mutation, one sweep along the edges makes the keys topological again (`swept`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.batch import batch_within, is_accelerator, steps_ahead
from jaxpart.cost.device import DeviceProblem, lower
from jaxpart.cost.evaluate import Costs, evaluate
from jaxpart.cost.host import peak_bounds
from jaxpart.cost.sharding import replicated, split
from jaxpart.methods.orders import sweeping_by_arrays
from jaxpart.methods.orders.probe import Probed, can_probe
from jaxpart.methods.orders.prober import ENTRY_BYTES, MOST_WINNERS, Prober, lane_roles
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.methods.orders.starts import keys_of, start_keys
from jaxpart.problem.problem import IntArray
from jaxpart.runtime.state import Search

# The batch sizes for a CPU keep a batch within a fraction of a second on two cores, so that budgets
# hold and the user sees progress.

# Most steps of the dynamic program per batch: orders * nodes * window * chips.
_BATCH_WORK = 2**29
# Most orders per batch of the dynamic program.
_MOST_ORDERS = 64
# Orders that survive a step.
_PARENTS = 16
# Share of the best bottleneck that counts as better; the margin exceeds the error of float32 sums.
_BETTER = 1 - 2e-6


def batch_size(problem: DeviceProblem, window: int) -> int:
    """How many orders the dynamic program cuts per step on a CPU.

    A power of two, 4 to `_MOST_ORDERS`.
    """
    per_order = problem.padded_nodes * window * (problem.config.num_chips + 1)
    size = 4
    while size < _MOST_ORDERS and 2 * size * per_order <= _BATCH_WORK:
        size *= 2
    return size


def slice_search(search: Search) -> Generator[None]:
    """Cuts a few orders, then evolves them without end.

    Each step changes the keys of good orders within a random stretch of the program (`mutate`).

    Args:
      search: the state of the search; it receives the partitions.

    Yields:
      None after every batch, so that the caller can check the budget.
    """
    search.enter("slicing")
    yield from (_probed if can_probe(search.problem.contracted) else _cut_optimally)(search)


class _Generation(NamedTuple):
    """What survives of a batch of orders, best first; P of them."""

    limit_s: float  # that of the batch
    orders: Int[Array, "P N"]
    lanes: Int[Array, " P"]  # the lanes that they were in
    passes: Bool[Array, " P"]  # whether they pass the limit


def _probed(search: Search) -> Generator[None]:
    """Evolves orders; the fitness is how many nodes fit within the best bottleneck (`covered`).

    What a generation is bred from stays on the device: the host looks only at what passes.
    """
    prober = Prober(search)
    starts = start_keys(search.problem.contracted)
    first = np.tile(np.arange(prober.padded, dtype=np.float32), (len(starts), 1))
    for row, keys in zip(first, starts, strict=True):
        row[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    yield from prober.cut(np.asarray(sorted_nodes(first)))
    key, count = jax.random.key(search.seed), search.problem.num_contracted
    parents, step, received = jnp.asarray(first), 0, search.received
    sweep = split(swept, prober.lanes, (None, 0), 0)
    pending: deque[_Generation] = deque()

    def breed() -> None:
        nonlocal parents, step, received
        if search.received is not None and search.received is not received:
            received = search.received
            parents = parents.at[-1, :count].set(keys_of(search.problem, received))
        children = mutate(jax.random.fold_in(key, step), parents, count, prober.lanes)
        children = children.at[: len(parents)].set(parents)
        orders = sorted_nodes(sweep(prober.contracted, children))
        limit_s = search.best_s * _BETTER
        found = prober.probe(jnp.asarray(orders.T), np.full(prober.lanes, limit_s))
        kept, lanes, passes = survivors(orders, found)
        pending.append(_Generation(limit_s, kept, lanes, passes))
        parents, step = ranks_of(kept), step + 1

    def breed_beside() -> None:
        """Gives the device work for the time in which the host narrows limits."""
        while len(pending) < 2 * steps_ahead():
            breed()

    while True:
        while len(pending) <= steps_ahead():
            breed()
        orders, lanes = _winners(search, pending.popleft())
        search.samples += prober.lanes
        yield
        if len(lanes):
            yield from prober.cut(orders, lanes, breed_beside)


@jax.jit
def survivors(
    orders: Int[Array, "B N"], found: Probed
) -> tuple[Int[Array, "P N"], Int[Array, " P"], Bool[Array, " P"]]:
    """The orders that are bred from, best first, their lanes, and whether they pass.

    At a tie children come before parents, which have the first lanes: the search then drifts along
    a plateau.

    Args:
      orders: the batch.
      found: what the probe says of it.
    """
    far = jnp.argsort(-found.covered[::-1], stable=True)
    far = (len(orders) - 1 - far)[:_PARENTS]
    return orders[far], far, found.passes[far]


def _winners(search: Search, found: _Generation) -> tuple[np.ndarray, IntArray]:
    """[K, N] a few orders of a generation that beat the incumbent, and [K] their lanes.

    None if the incumbent has improved since the generation was bred: they are probed again with
    their children.
    """
    lanes, passes = np.asarray(found.lanes), np.asarray(found.passes)
    is_stale = search.best_s * _BETTER < found.limit_s
    rows = np.flatnonzero(passes)[: 0 if is_stale else MOST_WINNERS]
    # Indexed on the host: on an accelerator a program for it would wait for the next step.
    return (np.asarray(found.orders) if len(rows) else np.zeros((1, 1), np.int32))[rows], lanes[
        rows
    ]


def _cut_optimally(search: Search) -> Generator[None]:
    """Evolves orders; the fitness is the bottleneck of their optimal cuts."""
    problem = search.problem
    contracted = lower(problem.contracted)
    start_s = search.best_s if search.best is not None else 4 * problem.mean_load_s
    most = max(start_s, search.bound.seconds)
    window = window_for(problem.contracted, most)
    size = batch_size(contracted, window)
    with search.compiling():  # the device may be asked, which compiles
        size = batch_within(search.device_problem, size, ENTRY_BYTES * contracted.padded_nodes)
    contracted_of = np.zeros(search.device_problem.padded_nodes, np.int32)
    contracted_of[: problem.num_nodes] = problem.contraction
    contracted_of = jax.device_put(contracted_of)
    key = jax.random.key(search.seed)

    contracted, whole = replicated(contracted, size), replicated(search.device_problem, size)
    to_order = split(order_by, size, (None, 0), 0)
    to_chips = split(slice_orders, size, (None, 0, 0), window=window)
    judge = split(evaluate, size, (None, 1))

    peaks = np.zeros((2, contracted.padded_nodes), np.float32)
    peaks[1, : problem.num_contracted], peaks[0, : problem.num_contracted] = peak_bounds(problem)
    _, is_second_pair = lane_roles(np.arange(size))
    peaks = jax.device_put(peaks[is_second_pair.astype(np.int32)])
    parents = jnp.arange(contracted.padded_nodes, dtype=jnp.float32)[None]
    fitness = jnp.full(1, jnp.inf, jnp.float32)
    # The first batch has the unchanged program order in two lanes, one for each peak bound.
    keys = mutate(key, parents, problem.num_contracted, size)
    keys = keys.at[np.array([0, 2 % size])].set(parents[0])
    pending: deque[tuple[Array, Costs]] = deque()
    step, received = 0, search.received
    while True:
        while len(pending) <= steps_ahead():
            if step and search.received is not None and search.received is not received:
                received = search.received
                parents = parents.at[-1, : problem.num_contracted].set(keys_of(problem, received))
                fitness = fitness.at[-1].set(search.best_s)
            if step:
                key_of_step = jax.random.fold_in(key, step)
                keys = mutate(key_of_step, parents, problem.num_contracted, size)
            orders = to_order(contracted, keys)
            _, chips = to_chips(contracted, orders, peaks)
            assignments = chips[contracted_of]
            costs = judge(whole, assignments)
            pending.append((assignments, costs))
            search.device_time.given("slicing", costs.valid)
            parents, fitness = fittest(orders, costs, parents, fitness)
            step += 1
        search.offer_batch(*pending.popleft())
        search.start_clock()
        yield


@jax.jit
def fittest(
    orders: Int[Array, "B N"],
    costs: Costs,
    parents: Float[Array, "P N"],
    fitness: Float[Array, " P"],
) -> tuple[Float[Array, "Q N"], Float[Array, " Q"]]:
    """The keys of the best of parents and children, and their bottlenecks, best first.

    At a tie children come first, so that the search drifts along a plateau.

    Args:
      orders: the children.
      costs: of their cuts.
      parents: their keys.
      fitness: their bottlenecks, seconds; inf: none.
    """
    children = jnp.where(costs.valid, costs.bottleneck_s, jnp.inf)
    pool = jnp.concatenate([children, fitness])
    kept = jnp.argsort(pool, stable=True)[:_PARENTS]
    return jnp.concatenate([ranks_of(orders), parents])[kept], pool[kept]


@jax.jit
def order_by(problem: DeviceProblem, keys: Float[Array, "B N"]) -> Int[Array, "B N"]:
    """Topological orders near the keys: `swept`, then sorted; padding comes last.

    Args:
      problem: the contracted problem, padded to N.
      keys: one row per order.
    """
    return jnp.argsort(swept(problem, keys), axis=1, stable=True).astype(jnp.int32)


def sorted_nodes(keys: Float[Array, "B N"] | np.ndarray) -> np.ndarray | Array:
    """[B, N] the nodes in ascending order of their keys; on an accelerator they stay there.

    On a CPU, numpy sorts four times as fast as XLA, and the keys need no transfer.
    """
    if not is_accelerator():
        return np.argsort(np.asarray(keys), axis=1).astype(np.int32)
    return jnp.argsort(keys, axis=1).astype(jnp.int32)


@jax.jit
def swept(problem: DeviceProblem, keys: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Changes keys as little as one sweep allows, so that their ascending order is topological.

    A forward sweep raises the keys of successors: a node that moved back drags its successors
    along. A backward sweep lowers the keys of predecessors. `lane_roles` says which rows are swept
    forward.

    Args:
      problem: the contracted problem, padded to N.
      keys: one row per order.

    Returns:
      The new keys; the keys of padding are larger than all others.
    """
    size, nodes = keys.shape
    # Least distance between the keys of an edge's ends; exceeds the error of float32 keys.
    apart = jnp.maximum(1e-3, nodes * 4e-7)
    # Padding stays behind all nodes.
    number = jnp.arange(nodes, dtype=keys.dtype)[:, None]
    behind = 16 * nodes + number
    if problem.tables is not None and problem.tables.sweeps is not None:
        keys = sweeping_by_arrays.swept(problem.tables.sweeps, keys, apart)
        return jnp.where(problem.num_nodes > number.T, keys, behind.T)
    by_node = keys.T  # [N, B]

    def later(v, key_of):
        def after_producer(e, row):
            producer = problem.tensor_producer[problem.in_edge_tensor[e]]
            return jnp.maximum(row, key_of[producer] + apart)

        start, stop = problem.node_in_edges[v], problem.node_in_edges[v + 1]
        return key_of.at[v].set(lax.fori_loop(start, stop, after_producer, key_of[v]))

    def earlier(step, key_of):
        v = problem.num_nodes - 1 - step

        def before_consumer(e, row):
            return jnp.minimum(row, key_of[problem.edge_consumer[e]] - apart)

        start = problem.tensor_edges[problem.node_tensors[v]]
        stop = problem.tensor_edges[problem.node_tensors[v + 1]]
        return key_of.at[v].set(lax.fori_loop(start, stop, before_consumer, key_of[v]))

    forward = lax.fori_loop(0, problem.num_nodes, later, by_node)
    backward = lax.fori_loop(0, problem.num_nodes, earlier, by_node)
    is_forward, _ = lane_roles(jnp.arange(size)[None])
    keys = jnp.where(is_forward, forward, backward)
    return jnp.where(number < problem.num_nodes, keys, behind).T


@jax.jit
def ranks_of(orders: Int[Array, "B N"]) -> Float[Array, "B N"]:
    """Keys that give these orders: the position of each node."""
    positions = jnp.arange(orders.shape[1], dtype=jnp.int32)  # as floats, a GPU would scatter them
    ranks = jax.vmap(lambda order: jnp.zeros_like(positions).at[order].set(positions))(orders)
    return ranks.astype(jnp.float32)


@partial(jax.jit, static_argnames="size")
def mutate(
    key: jax.Array, parents: Float[Array, "P N"], count: Int[Array, ""], size: int
) -> Float[Array, "B N"]:
    """Children of random parents: keys with noise added within a random stretch of the program.

    Args:
      key: the same key gives the same children.
      parents: keys, one row per order.
      count: nodes without padding; the keys of padding do not change.
      size: B, children.
    """
    pick, place, width, strength, noise = jax.random.split(key, 5)
    chosen = parents[jax.random.randint(pick, (size,), 0, parents.shape[0])]
    centre = jax.random.uniform(place, (size, 1)) * count
    # Both are log-uniform: from a few nodes to the whole program, from a swap to a shuffle.
    reach = 4 * (count / 4.0) ** jax.random.uniform(width, (size, 1))
    amount = 2 * (count / 8.0 + 1) ** jax.random.uniform(strength, (size, 1))
    amount = jnp.minimum(amount, reach)
    reach = jnp.where(chosen < count, reach, -1.0)  # padding does not move
    jitter = jax.random.normal(noise, chosen.shape) * amount
    return chosen + jnp.where(jnp.abs(chosen - centre) <= reach, jitter, 0.0)
