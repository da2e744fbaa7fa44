"""Probes the orders of one search: many orders at one limit, or a few orders at many limits."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.batch import batch_within
from jaxpart.cost.device import bucket_size, lower
from jaxpart.cost.evaluate import verify
from jaxpart.cost.host import BoolArray, peak_bounds
from jaxpart.cost.sharding import replicated, split
from jaxpart.methods.orders.probe import Probed, chips_of, probe
from jaxpart.methods.orders.slicing import window_for
from jaxpart.methods.orders.weights import weights_of
from jaxpart.problem.problem import FloatArray, IntArray
from jaxpart.runtime.state import Search

# The batch sizes for a CPU keep a batch within a fraction of a second on two cores, so that budgets
# hold and the user sees progress.

# Most orders per probed batch on a CPU.
_MOST_LANES = 1024
# Fewest orders per probed batch.
_LEAST_LANES = 16
# Most entries of a probed batch on a CPU: orders * nodes.
_PROBED_ENTRIES = 2**21
# Most steps of a probed batch on a CPU: orders * nodes * window.
_PROBED_STARTS = 2**27
# Least window of the probe, in nodes.
_LEAST_WINDOW = 512
# Window of the probe, in mean segment lengths, if that is larger.
_WINDOW_PER_MEAN = 2
# Most orders of a batch that are cut at the least limit that they pass.
MOST_WINNERS = 4
# Relative tolerance of that limit.
_RESOLUTION = 1e-5
# Bytes that a search of orders keeps for each node of an order: keys, orders, starts of segments.
ENTRY_BYTES = 32


def lane_roles(lanes: Any) -> tuple[Any, Any]:
    """How a batch treats each order, by the number of its lane (the place of the order in it).

    Four neighbouring lanes have all four combinations of two roles.

    1. Sweep direction: `swept` sweeps even lanes forward and odd lanes backward.
    2. Peak bound: lanes 0, 1, 4, 5, ... are the first pairs, lanes 2, 3, 6, 7, ... the second
       pairs. One kind of pair is cut with the upper peak bound, so that all cuts found fit in
       memory; the other kind with the lower peak bound, so that no valid cuts are missed.
       `Prober` takes the upper bound for second pairs, `_cut_optimally` for first pairs.

    Args:
      lanes: [B] lane numbers, a numpy or JAX array.

    Returns:
      [B] bool each: whether a lane is swept forward, and whether it is in a second pair.
    """
    return lanes % 2 == 0, lanes // 2 % 2 == 1


class Prober:
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
        with search.compiling():  # the device may be asked, which compiles
            self.lanes = _lanes(search, self.padded, self.window)
        self.contracted = replicated(self.contracted, self.lanes)
        self.weights = replicated(weights_of(problem.contracted, self.padded), self.lanes)
        self._probe = split(probe, self.lanes, (None, None, 1, 1, 0), window=self.window)
        peaks = np.zeros((self.padded, 2), np.float32)
        peaks[: problem.num_contracted] = np.stack(peak_bounds(problem), axis=1)
        self.peaks = jax.device_put(peaks)

    def probe(
        self, orders: jax.Array, limits_s: FloatArray, cautious: BoolArray | None = None
    ) -> Probed:
        """Starts the probe of a batch of orders on the device.

        Args:
          orders: [N, lanes].
          limits_s: [lanes] the limit of each order, seconds.
          cautious: [lanes] whether to probe with the upper peak bound; None: as in `lane_roles`.
        """
        if cautious is None:
            _, cautious = lane_roles(np.arange(self.lanes))
        found = self._probe(
            self.contracted,
            self.weights,
            orders,
            self.peaks[:, np.asarray(cautious, np.int32)],
            jnp.asarray(limits_s, jnp.float32),
        )
        self.search.device_time.given("slicing", found.passes)
        self.search.start_clock()
        return found

    def cut(
        self,
        orders: IntArray,
        lanes: IntArray | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Generator[None]:
        """Offers the cuts of a few orders at the least limit that each passes.

        Each batch probes every order at many limits between a failed and a passed one, and narrows
        that interval. So the host must look at a batch before it can start the next one.

        Args:
          orders: [K, N].
          lanes: [K] the lanes in which the orders passed; each is probed again with the same peak
            bound. None: each order is probed with both peak bounds.
          meanwhile: starts other work on the device; called before the host waits for a batch.

        Yields:
          None after every batch.
        """
        search = self.search
        if lanes is None:
            # Even lanes alternate between a first and a second pair.
            orders, lanes = np.repeat(orders, 2, axis=0), 2 * np.arange(2 * len(orders))
        each = self.lanes // len(orders)
        row = np.resize(np.repeat(np.arange(len(orders)), each), self.lanes)
        batch, cautious = jnp.asarray(orders.T)[:, row], lane_roles(lanes)[1][row]
        low = np.full(len(orders), max(search.bound.seconds, 1e-30))
        high = np.full(len(orders), min(search.best_s, self._highest_limit_s()))
        high = np.maximum(high, low * (1 + _RESOLUTION))
        step = np.resize(np.tile(np.arange(1, each + 1), len(orders)), self.lanes) / each
        while (high > low * (1 + _RESOLUTION)).any():
            limits_s = low[row] * (high / low)[row] ** step
            found = self.probe(batch, limits_s, cautious)
            meanwhile()
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
            self._offer(found, orders, passes, limits_s, row)
            yield

    def _offer(
        self,
        found: Probed,
        orders: IntArray,
        passes: BoolArray,
        limits_s: FloatArray,
        row: IntArray,
    ) -> None:
        """Offers the cuts of each order at the least limit that it passed.

        Args:
          found: the results of the batch.
          orders: [K, N].
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
        best = sorted(best, key=lambda lane: limits_s[lane])[:MOST_WINNERS]
        if not best:
            return
        count = problem.num_contracted
        columns = [chips_of(found, orders[row[b], :count], b) for b in best]
        assignments = np.stack(columns, axis=1)[problem.contraction]
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


def _lanes(search: Search, padded: int, window: int) -> int:
    """Orders per probed batch: a power of two, on each of the devices that share it.

    Args:
      search: its budget in samples has at least eight batches, if these are not the smallest.
      padded: nodes of an order, with padding.
      window: that of the probe.
    """
    most = min(_PROBED_ENTRIES // padded, _PROBED_STARTS // (padded * window), _MOST_LANES)
    lanes = _LEAST_LANES
    while 2 * lanes <= most:
        lanes *= 2
    lanes = batch_within(search.device_problem, lanes, ENTRY_BYTES * padded)
    while lanes > _LEAST_LANES and lanes > (search.budget.max_samples or 2**30) // 8:
        lanes //= 2
    return lanes
