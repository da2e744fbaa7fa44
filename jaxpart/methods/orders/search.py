"""Search over node orders: evolution of topological orders, each cut into segments.

There are two ways to score an order:

- With the triangle rule on and no fixed chips, `probe.py` compares thousands of orders with the
  incumbent. Only orders that beat it are cut at the least bottleneck that they allow.
- Otherwise `slicing.py` cuts each order optimally.

An order is a vector of keys, one per contracted node; nodes run in ascending order of their keys.
After a mutation, one sweep along the edges makes the keys topological again (`swept`).
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import DeviceProblem, bucket_size, lower
from jaxpart.cost.evaluate import evaluate, verify
from jaxpart.cost.host import BoolArray, peak_bounds
from jaxpart.cost.sharding import replicated, split
from jaxpart.methods.orders import sweeping_by_arrays
from jaxpart.methods.orders.probe import Probed, can_probe, chips_of, probe
from jaxpart.methods.orders.slicing import slice_orders, window_for
from jaxpart.methods.orders.starts import keys_of, start_keys
from jaxpart.methods.orders.weights import weights_of
from jaxpart.problem.problem import FloatArray, IntArray
from jaxpart.runtime.state import Search

# All batch sizes below keep a batch within a fraction of a second on two cores, so that budgets
# hold and the user sees progress.

# Most steps of the dynamic program per batch: orders * nodes * window * chips.
_BATCH_WORK = 2**29
# Most orders per batch of the dynamic program.
_MOST_ORDERS = 64
# Orders that survive a step.
_PARENTS = 16
# Most orders per probed batch.
_MOST_LANES = 1024
# Fewest orders per probed batch.
_LEAST_LANES = 16
# Most entries of a probed batch: orders * nodes.
_PROBED_ENTRIES = 2**21
# Most steps of a probed batch: orders * nodes * window.
_PROBED_STARTS = 2**27
# Least window of the probe, in nodes.
_LEAST_WINDOW = 512
# Window of the probe, in mean segment lengths, if that is larger.
_WINDOW_PER_MEAN = 2
# Most orders of a batch that are cut at the least limit that they pass.
_WINNERS = 4
# Relative tolerance of that limit.
_RESOLUTION = 1e-5
# Share of the best bottleneck that counts as better; the margin exceeds the error of float32 sums.
_BETTER = 1 - 2e-6


def batch_size(problem: DeviceProblem, window: int) -> int:
    """How many orders the dynamic program cuts per step: 4 to `_MOST_ORDERS`, a power of two."""
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


def _probed(search: Search) -> Generator[None]:
    """Evolves orders; the fitness is how many nodes fit within the best bottleneck (`covered`)."""
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
        # Best first. At a tie children come before parents, which have the first lanes: the search
        # then drifts along a plateau.
        far = np.argsort(-np.asarray(found.covered)[::-1], kind="stable")
        far = (prober.lanes - 1 - far)[:_PARENTS]
        parents = ranks_of(jnp.asarray(orders[far]))
        step += 1
        yield
        winners = far[np.asarray(found.passes)[far]][:_WINNERS]
        if len(winners):
            yield from prober.cut(orders[winners], lanes=winners)


def _lane_roles(lanes: Any) -> tuple[Any, Any]:
    """How a batch treats each order, by the number of its lane (the place of the order in it).

    Four neighbouring lanes have all four combinations of two roles.

    1. Sweep direction: `swept` sweeps even lanes forward and odd lanes backward.
    2. Peak bound: lanes 0, 1, 4, 5, ... are the first pairs, lanes 2, 3, 6, 7, ... the second
       pairs. One kind of pair is cut with the upper peak bound, so that all cuts found fit in
       memory; the other kind with the lower peak bound, so that no valid cuts are missed.
       `_Prober` takes the upper bound for second pairs, `_cut_optimally` for first pairs.

    Args:
      lanes: [B] lane numbers, a numpy or JAX array.

    Returns:
      [B] bool each: whether a lane is swept forward, and whether it is in a second pair.
    """
    return lanes % 2 == 0, lanes // 2 % 2 == 1


class _Prober:
    """Probes orders for one search; holds what is the same for all batches."""

    def __init__(self, search: Search) -> None:
        problem = search.problem
        self.search = search
        self.contracted = lower(problem.contracted)
        self.padded = self.contracted.padded_nodes
        # In large graphs, segments of several times the mean length are rare.
        longest = window_for(problem.contracted, min(search.best_s, 4 * problem.mean_load_s))
        usual = bucket_size(_WINDOW_PER_MEAN * problem.num_contracted // problem.num_chips)
        self.window = min(longest, max(usual, _LEAST_WINDOW))
        most = min(
            _PROBED_ENTRIES // self.padded,
            _PROBED_STARTS // (self.padded * self.window),
            (search.budget.max_samples or 2**30) // 8,
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
        """Probes a batch of orders.

        Args:
          orders: [lanes, N].
          limits_s: [lanes] the limit of each order, seconds.
          cautious: [lanes] whether to probe with the upper peak bound; None: as in `_lane_roles`.
        """
        if cautious is None:
            _, cautious = _lane_roles(np.arange(len(orders)))
        found = self._probe(
            self.contracted,
            self.weights,
            jnp.asarray(orders.T),
            self.peaks[:, np.asarray(cautious, np.int32)],
            jnp.asarray(limits_s, jnp.float32),
        )
        self.search.start_clock()
        return found

    def cut(self, orders: IntArray, lanes: IntArray | None = None) -> Generator[None]:
        """Offers the cuts of a few orders at the least limit that each passes.

        Each batch probes every order at many limits between a failed and a passed one, and narrows
        that interval.

        Args:
          orders: [K, N].
          lanes: [K] the lanes in which the orders passed; each is probed again with the same peak
            bound. None: each order is probed with both peak bounds.

        Yields:
          None after every batch.
        """
        search = self.search
        if lanes is None:
            # Even lanes alternate between a first and a second pair.
            orders, lanes = np.repeat(orders, 2, axis=0), 2 * np.arange(2 * len(orders))
        each = self.lanes // len(orders)
        row = np.resize(np.repeat(np.arange(len(orders)), each), self.lanes)
        batch, cautious = orders[row], _lane_roles(lanes)[1][row]
        low = np.full(len(orders), max(search.bound.seconds, 1e-30))
        high = np.full(len(orders), min(search.best_s, self._highest_limit_s()))
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
                    low[k] = high[k]  # the highest limit fails too: no cuts to find
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
        """Offers the cuts of each order at the least limit that it passed.

        Args:
          found: the results of the batch.
          batch: [lanes, N] orders.
          passes: [lanes] `found.passes` on the host.
          limits_s: [lanes] seconds.
          row: [lanes] which of the K orders each lane has.
        """
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
        # SCIP may repair a partition that is faster than the incumbent but does not fit in memory.
        costs = verify(problem, assignments)
        is_lost = ~costs.valid & (costs.bottleneck_s < search.best_s)
        search.repair_candidates = (assignments, costs) if is_lost.any() else None

    def _highest_limit_s(self) -> float:
        """Seconds that no stage exceeds: all compute on one chip, all tensors sent and received."""
        contracted = self.search.problem.contracted
        sent_s = float(contracted.tensor_bytes.sum()) / contracted.mcm.link_bandwidth
        return float(contracted.node_s.max(axis=1).sum()) + 2 * sent_s


def _cut_optimally(search: Search) -> Generator[None]:
    """Evolves orders; the fitness is the bottleneck of their optimal cuts."""
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

    peaks = np.zeros((2, contracted.padded_nodes), np.float32)
    peaks[1, : problem.num_contracted], peaks[0, : problem.num_contracted] = peak_bounds(problem)
    _, is_second_pair = _lane_roles(np.arange(size))
    peaks = jax.device_put(peaks[is_second_pair.astype(np.int32)])
    parents = jnp.arange(contracted.padded_nodes, dtype=jnp.float32)[None]
    fitness = np.full(1, np.inf)
    step, received = 0, search.received
    # The first batch has the unchanged program order in two lanes, one for each peak bound.
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
        # The best of parents and children survive. At a tie children come first, so that the search
        # drifts along a plateau.
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
    """Topological orders near the keys: `swept`, then sorted; padding comes last.

    Args:
      problem: the contracted problem, padded to N.
      keys: one row per order.
    """
    return jnp.argsort(swept(problem, keys), axis=1, stable=True).astype(jnp.int32)


def sorted_nodes(keys: Float[Array, "B N"] | np.ndarray) -> np.ndarray:
    """[B, N] the nodes in ascending order of their keys, on the host.

    On a CPU, numpy sorts four times as fast as XLA, and the keys need no transfer.
    """
    if jax.default_backend() == "cpu":
        return np.argsort(np.asarray(keys), axis=1).astype(np.int32)
    return np.asarray(jnp.argsort(keys, axis=1).astype(jnp.int32))


@jax.jit
def swept(problem: DeviceProblem, keys: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Changes keys as little as one sweep allows, so that their ascending order is topological.

    A forward sweep raises the keys of successors: a node that moved back drags its successors
    along. A backward sweep lowers the keys of predecessors. `_lane_roles` says which rows are swept
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
    is_forward, _ = _lane_roles(jnp.arange(size)[None])
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
