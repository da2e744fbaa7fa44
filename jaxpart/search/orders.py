"""Search over node orders: evolution of topological orders, each cut optimally by `slicing`.

An order is a vector of keys, one per block; changed keys are made topological by one sweep along
the edges, which drags successors behind (or predecessors before) whatever moved.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpart.cost import evaluate
from jaxpart.device import DeviceProblem, lower
from jaxpart.exact import peak_bounds
from jaxpart.search.state import Search
from jaxpart.slicing import slice_orders, window_for

# Steps of the dynamic program (orders x nodes x window x chips) per batch: a fraction of a second
# on two cores, so that budgets are kept and the user sees something happen.
_BATCH_WORK = 2**29
_MOST_ORDERS = 64
_PARENTS = 16


def batch_size(problem: DeviceProblem, window: int) -> int:
    """How many orders are cut per step."""
    per_order = problem.padded_nodes * window * (problem.switches.num_chips + 1)
    size = 4
    while size < _MOST_ORDERS and 2 * size * per_order <= _BATCH_WORK:
        size *= 2
    return size


def slice_search(search: Search) -> Generator[None]:
    """Cuts the program order, then evolves orders until the budget is spent.

    The first batch holds the program order unchanged. Later ones change the keys of good orders
    within a stretch of the program that often covers the bottleneck's chip.
    """
    search.enter("slicing")
    problem = search.problem
    blocks = lower(problem.contracted)
    start_s = search.best_s if search.best is not None else 4 * problem.mean_load_s
    most = max(start_s, search.bound.seconds)
    window = window_for(problem.contracted, most)
    size = batch_size(blocks, window)
    block_of = np.zeros(search.device_problem.padded_nodes, np.int32)
    block_of[: problem.num_nodes] = problem.block
    block_of = jax.device_put(block_of)
    key = jax.random.key(search.seed)

    # Half of the orders are cut so that what is found fits, half so that nothing valid is missed.
    peaks = np.zeros((2, blocks.padded_nodes), np.float32)
    peaks[1, : problem.num_blocks], peaks[0, : problem.num_blocks] = peak_bounds(problem)
    peaks = jax.device_put(peaks[np.arange(size) // 2 % 2])
    parents = jnp.arange(blocks.padded_nodes, dtype=jnp.float32)[None]
    fitness = np.full(1, np.inf)
    step = 0
    # The program order itself leads the first batch, cut both ways.
    keys = mutate(key, parents, problem.num_blocks, size)
    keys = keys.at[np.array([0, 2 % size])].set(parents[0])
    while True:
        orders = order_by(blocks, keys)
        _, chips = slice_orders(blocks, orders, peaks, window)
        assignments = chips[block_of]
        costs = evaluate(search.device_problem, assignments)
        search.offer_batch(assignments, costs)
        search.start_clock()
        yield
        # Survivors: the best of parents and children; among equals the newer, so that plateaus
        # drift.
        children = np.where(np.asarray(costs.valid), np.asarray(costs.bottleneck_s), np.inf)
        pool = np.concatenate([children, fitness])
        kept = np.argsort(pool, kind="stable")[:_PARENTS]
        parents = jnp.concatenate([ranks_of(orders), parents])[kept]
        fitness = pool[kept]
        step += 1
        keys = mutate(jax.random.fold_in(key, step), parents, problem.num_blocks, size)


@jax.jit
def order_by(problem: DeviceProblem, keys: Float[Array, "B N"]) -> Int[Array, "B N"]:
    """The topological orders nearest to the keys: swept along the edges, then sorted.

    The first half of a batch is swept forward (a node that moved back drags its successors), the
    other half backward (a node that moved forward drags its predecessors).
    """
    size, nodes = keys.shape
    # Between neighbours of an edge; above the resolution of float32 at the largest key.
    apart = jnp.maximum(1e-3, nodes * 4e-7)
    by_node = keys.T  # [N, B]

    def later(v, key_of):
        def follow(e, row):
            producer = problem.tensor_producer[problem.in_edge_tensor[e]]
            return jnp.maximum(row, key_of[producer] + apart)

        start, stop = problem.node_in_edges[v], problem.node_in_edges[v + 1]
        return key_of.at[v].set(lax.fori_loop(start, stop, follow, key_of[v]))

    def earlier(step, key_of):
        v = problem.num_nodes - 1 - step

        def lead(e, row):
            return jnp.minimum(row, key_of[problem.edge_consumer[e]] - apart)

        start = problem.tensor_edges[problem.node_tensors[v]]
        stop = problem.tensor_edges[problem.node_tensors[v + 1]]
        return key_of.at[v].set(lax.fori_loop(start, stop, lead, key_of[v]))

    forward = lax.fori_loop(0, problem.num_nodes, later, by_node)
    backward = lax.fori_loop(0, problem.num_nodes, earlier, by_node)
    swept = jnp.where(jnp.arange(size) % 2 == 0, forward, backward)
    return jnp.argsort(swept.T, axis=1, stable=True).astype(jnp.int32)


@jax.jit
def ranks_of(orders: Int[Array, "B N"]) -> Float[Array, "B N"]:
    """Keys that give these orders: each node's position."""
    positions = jnp.arange(orders.shape[1], dtype=jnp.float32)
    return jax.vmap(lambda order: jnp.zeros_like(positions).at[order].set(positions))(orders)


@partial(jax.jit, static_argnames="size")
def mutate(
    key: jax.Array, parents: Float[Array, "P N"], count: Int[Array, ""], size: int
) -> Float[Array, "B N"]:
    """Children of random parents: keys jittered within a random stretch, by a random amount."""
    pick, place, width, strength, noise = jax.random.split(key, 5)
    chosen = parents[jax.random.randint(pick, (size,), 0, parents.shape[0])]
    centre = jax.random.uniform(place, (size, 1)) * count
    # Log-uniform: from a few nodes to the whole program, from a swap to a shuffle.
    reach = 4 * (count / 4.0) ** jax.random.uniform(width, (size, 1))
    amount = 2 * (count / 8.0 + 1) ** jax.random.uniform(strength, (size, 1))
    amount = jnp.minimum(amount, reach)
    reach = jnp.where(chosen < count, reach, -1.0)  # padding stays behind
    jitter = jax.random.normal(noise, chosen.shape) * amount
    return chosen + jnp.where(jnp.abs(chosen - centre) <= reach, jitter, 0.0)
