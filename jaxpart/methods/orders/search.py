"""Search over node orders: evolution of topological orders, each cut into pieces.

Where the triangle rule holds and nothing is pinned, thousands of orders are compared with the best
bottleneck by `probe`, and only those that beat it are cut for the least they allow; elsewhere
each is cut optimally by `slicing`.

An order is a vector of keys, one per contracted node; changed keys are made topological by one
sweep along the edges, which drags successors behind (or predecessors before) whatever moved.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import DeviceProblem, bucket_size, lower
from jaxpart.cost.evaluate import evaluate, verify
from jaxpart.cost.host import BoolArray, peak_bounds
from jaxpart.cost.sharding import replicated, split
from jaxpart.methods.orders.probe import Probed, can_probe, chips_of, probe, weights_of
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.methods.orders.starts import keys_of, start_keys
from jaxpart.problem.problem import FloatArray, IntArray
from jaxpart.runtime.state import Search

# Steps of the dynamic program (orders x nodes x window x chips) per batch: a fraction of a second
# on two cores, so that budgets are kept and the user sees something happen.
_BATCH_WORK = 2**29
_MOST_ORDERS = 64
_PARENTS = 16
# Orders per probed batch, as long as their nodes are no more than so many: likewise.
_MOST_LANES = 1024
_LEAST_LANES = 16
_PROBED_ENTRIES = 2**21
_PROBED_STARTS = 2**27
# Nodes that a piece may have: at least so many, or so many times the mean.
_LEAST_WINDOW = 512
_USUAL = 2
# Orders of a batch that are cut for the least they allow, and how closely.
_WINNERS = 4
_RESOLUTION = 1e-5
# A bottleneck counts as better from here on: above the resolution of float32 sums.
_BETTER = 1 - 2e-6


def batch_size(problem: DeviceProblem, window: int) -> int:
    """How many orders are cut per step."""
    per_order = problem.padded_nodes * window * (problem.config.num_chips + 1)
    size = 4
    while size < _MOST_ORDERS and 2 * size * per_order <= _BATCH_WORK:
        size *= 2
    return size


def slice_search(search: Search) -> Generator[None]:
    """Cuts a few orders, then evolves them until the budget is spent.

    Each step changes the keys of good orders within a random stretch of the program.
    """
    search.enter("slicing")
    yield from (_probed if can_probe(search.problem.contracted) else _cut_optimally)(search)


def _probed(search: Search) -> Generator[None]:
    """Evolves orders by how far they get within the best bottleneck."""
    prober = _Prober(search)
    starts = start_keys(search.problem.contracted)
    parents = np.tile(np.arange(prober.padded, dtype=np.float32), (len(starts), 1))
    for row, keys in zip(parents, starts, strict=True):
        row[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    yield from prober.cut(sorted_nodes(parents))
    key, count = jax.random.key(search.seed), search.problem.num_contracted
    parents, step = jnp.asarray(parents), 0
    sweep = split(swept, prober.lanes, (None, 0), 0)
    received = search.received
    while True:
        if search.received is not None and search.received is not received:
            received = search.received
            parents = parents.at[-1, :count].set(keys_of(search.problem, received))
        children = mutate(jax.random.fold_in(key, step), parents, count, prober.lanes)
        children = children.at[: len(parents)].set(parents)
        orders = sorted_nodes(sweep(prober.contracted, children))
        found = prober.probe(orders, np.full(prober.lanes, search.best_s * _BETTER))
        search.samples += prober.lanes
        # The farthest first; among equals children before parents, so that plateaus drift.
        far = np.argsort(-np.asarray(found.covered)[::-1], kind="stable")
        far = (prober.lanes - 1 - far)[:_PARENTS]
        parents = ranks_of(jnp.asarray(orders[far]))
        step += 1
        yield
        winners = far[np.asarray(found.passes)[far]][:_WINNERS]
        if len(winners):
            yield from prober.cut(orders[winners], lanes=winners)


def _is_cautious(lanes: IntArray) -> BoolArray:
    """Half of the orders are cut so that what is found fits, half so that nothing valid is missed.

    Not the halves that are swept forward and backward.
    """
    return lanes // 2 % 2 == 1


class _Prober:
    """Probes of one search: what stays the same from batch to batch."""

    def __init__(self, search: Search) -> None:
        problem = search.problem
        self.search = search
        self.contracted = lower(problem.contracted)
        self.padded = self.contracted.padded_nodes
        # Pieces of several times the mean length are rare where there are many nodes.
        longest = window_for(problem.contracted, min(search.best_s, 4 * problem.mean_load_s))
        usual = bucket_size(_USUAL * problem.num_contracted // problem.num_chips)
        self.window = min(longest, max(usual, _LEAST_WINDOW))
        most = min(
            _PROBED_ENTRIES // self.padded,
            _PROBED_STARTS // (self.padded * self.window),
            (search.budget.samples or 2**30) // 8,
        )
        self.lanes = _LEAST_LANES
        while self.lanes < _MOST_LANES and 2 * self.lanes <= most:
            self.lanes *= 2
        self.contracted = replicated(self.contracted, self.lanes)
        self.weights = replicated(weights_of(problem.contracted, self.padded), self.lanes)
        self._probe = split(probe, self.lanes, (None, None, 1, 1, 0), window=self.window)
        peaks = np.zeros((self.padded, 2), np.float32)
        peaks[: problem.num_contracted] = np.stack(peak_bounds(problem), axis=1)
        self.peaks = jax.device_put(peaks)

    def probe(
        self, orders: IntArray, limits_s: FloatArray, cautious: BoolArray | None = None
    ) -> Probed:
        """Probes [lanes, N] orders; by default half of them cautiously."""
        if cautious is None:
            cautious = _is_cautious(np.arange(len(orders)))
        found = self._probe(
            self.contracted,
            self.weights,
            jnp.asarray(orders.T),
            self.peaks[:, cautious.astype(np.int32)],
            jnp.asarray(limits_s, jnp.float32),
        )
        self.search.start_clock()
        return found

    def cut(self, orders: IntArray, lanes: IntArray | None = None) -> Generator[None]:
        """Offers the cuts of some orders at the least limits that they pass.

        Args:
          orders: [K, N], few.
          lanes: what they were in the batch that they passed in; None: cut them both ways.
        """
        search = self.search
        if lanes is None:
            orders, lanes = np.repeat(orders, 2, axis=0), 2 * np.arange(2 * len(orders))
        each = self.lanes // len(orders)
        row = np.resize(np.repeat(np.arange(len(orders)), each), self.lanes)
        batch, cautious = orders[row], _is_cautious(lanes)[row]
        low = np.full(len(orders), max(search.bound.seconds, 1e-30))
        high = np.full(len(orders), min(search.best_s, self._most_s()))
        high = np.maximum(high, low * (1 + _RESOLUTION))
        step = np.resize(np.tile(np.arange(1, each + 1), len(orders)), self.lanes) / each
        while (high > low * (1 + _RESOLUTION)).any():
            limits_s = low[row] * (high / low)[row] ** step
            found = self.probe(batch, limits_s, cautious)
            search.samples += self.lanes
            passes = np.asarray(found.passes)
            for k in range(len(orders)):
                mine = np.flatnonzero(row == k)
                passed = mine[passes[mine]]
                if len(passed):
                    high[k] = limits_s[passed].min()
                    failed = mine[~passes[mine] & (limits_s[mine] < high[k])]
                    low[k] = limits_s[failed].max(initial=low[k])
                else:
                    low[k] = high[k]  # not even the most: nothing to find
            self._offer(found, batch, passes, limits_s, row)
            yield

    def _offer(
        self,
        found: Probed,
        batch: IntArray,
        passes: BoolArray,
        limits_s: FloatArray,
        row: IntArray,
    ) -> None:
        """Offers the tightest cuts of each order."""
        search, problem = self.search, self.search.problem
        best = [
            mine[np.argmin(limits_s[mine])]
            for k in np.unique(row)
            if len(mine := np.flatnonzero((row == k) & passes))
        ]
        best = sorted(best, key=lambda lane: limits_s[lane])[:_WINNERS]
        if not best:
            return
        count = problem.num_contracted
        columns = [chips_of(found, batch[b, :count], b)[problem.contraction] for b in best]
        assignments = np.stack(columns, axis=1)
        search.offer(assignments)
        # What memory alone forbids, the solver may repair.
        costs = verify(problem, assignments)
        is_lost = ~costs.valid & (costs.bottleneck_s < search.best_s)
        search.repair_candidates = (assignments, costs) if is_lost.any() else None

    def _most_s(self) -> float:
        """Everything on one chip, and all that is ever sent: no limit needs to be higher."""
        contracted = self.search.problem.contracted
        sent_s = float(contracted.tensor_bytes.sum()) / contracted.mcm.link_bandwidth
        return float(contracted.node_s.max(axis=1).sum()) + 2 * sent_s


def _cut_optimally(search: Search) -> Generator[None]:
    """Evolves orders by their best cuts. The first batch holds the program order unchanged."""
    problem = search.problem
    contracted = lower(problem.contracted)
    start_s = search.best_s if search.best is not None else 4 * problem.mean_load_s
    most = max(start_s, search.bound.seconds)
    window = window_for(problem.contracted, most)
    size = batch_size(contracted, window)
    contracted_of = np.zeros(search.device_problem.padded_nodes, np.int32)
    contracted_of[: problem.num_nodes] = problem.contraction
    contracted_of = jax.device_put(contracted_of)
    key = jax.random.key(search.seed)

    contracted, whole = replicated(contracted, size), replicated(search.device_problem, size)
    to_order = split(order_by, size, (None, 0), 0)
    to_chips = split(slice_orders, size, (None, 0, 0), window=window)
    judge = split(evaluate, size, (None, 1))

    # Half of the orders are cut so that what is found fits, half so that nothing valid is missed.
    peaks = np.zeros((2, contracted.padded_nodes), np.float32)
    peaks[1, : problem.num_contracted], peaks[0, : problem.num_contracted] = peak_bounds(problem)
    peaks = jax.device_put(peaks[np.arange(size) // 2 % 2])
    parents = jnp.arange(contracted.padded_nodes, dtype=jnp.float32)[None]
    fitness = np.full(1, np.inf)
    step, received = 0, search.received
    # The program order itself leads the first batch, cut both ways.
    keys = mutate(key, parents, problem.num_contracted, size)
    keys = keys.at[np.array([0, 2 % size])].set(parents[0])
    while True:
        orders = to_order(contracted, keys)
        _, chips = to_chips(contracted, orders, peaks)
        assignments = chips[contracted_of]
        costs = judge(whole, assignments)
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
        if search.received is not None and search.received is not received:
            received = search.received
            parents = parents.at[-1, : problem.num_contracted].set(keys_of(problem, received))
            fitness[-1] = search.best_s
        step += 1
        keys = mutate(jax.random.fold_in(key, step), parents, problem.num_contracted, size)


@jax.jit
def order_by(problem: DeviceProblem, keys: Float[Array, "B N"]) -> Int[Array, "B N"]:
    """The topological orders nearest to the keys: swept along the edges, then sorted."""
    return jnp.argsort(swept(problem, keys), axis=1, stable=True).astype(jnp.int32)


def sorted_nodes(keys: Float[Array, "B N"] | np.ndarray) -> np.ndarray:
    """[B, N] the nodes in ascending order of their keys.

    XLA's sort on a CPU takes four times as long as numpy's, and there the keys are at hand.
    """
    if jax.default_backend() == "cpu":
        return np.argsort(np.asarray(keys), axis=1).astype(np.int32)
    return np.asarray(jnp.argsort(keys, axis=1).astype(jnp.int32))


@jax.jit
def swept(problem: DeviceProblem, keys: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """The keys nearest to these whose ascending order is topological.

    The even rows of a batch are swept forward (a node that moved back drags its successors), the
    odd ones backward (a node that moved forward drags its predecessors).
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

        def incumbent(e, row):
            return jnp.minimum(row, key_of[problem.edge_consumer[e]] - apart)

        start = problem.tensor_edges[problem.node_tensors[v]]
        stop = problem.tensor_edges[problem.node_tensors[v + 1]]
        return key_of.at[v].set(lax.fori_loop(start, stop, incumbent, key_of[v]))

    forward = lax.fori_loop(0, problem.num_nodes, later, by_node)
    backward = lax.fori_loop(0, problem.num_nodes, earlier, by_node)
    keys = jnp.where(jnp.arange(size)[None] % 2 == 0, forward, backward)
    # Padding stays behind whatever moved.
    number = jnp.arange(nodes, dtype=keys.dtype)[:, None]
    return jnp.where(number < problem.num_nodes, keys, 16 * nodes + number).T


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
