"""The probe: can an order be cut so that no stage and no link exceeds a limit? For many orders.

Source: chains-on-chains partitioning (Pinar and Aykanat, J. Parallel Distrib. Comput. 64, 2004,
section 3). For the first j nodes of an order the probe keeps one number: how few chips can hold
them within the limit.

    chips_needed[j] = 1 + min of chips_needed[i] over i < j where segment [i, j) is within the limit

The work per order is N * window. The dynamic program of `slicing.py` finds the least bottleneck and
does C times as much work. The probe is therefore the right tool to compare many orders with one
bottleneck.

The probe sees the same costs as `slicing.py`:

- If an order passes, its cuts keep the limit as far as `slicing.py` sees it.
- If all chips are alike and an order fails, it has no such cuts (with at most `window` nodes in a
  segment, and with the bytes of `weights_of`).
- If chips differ, the fewest chips are not always the best ones, and the probe may miss cuts.

Under the triangle rule a segment receives and sends exactly what its two cuts carry. The start of a
segment is then described by a few numbers. They are kept in a ring of the last `window` cuts, with
one column per order.

Least possible work per order: N * window starts with about five numbers each (20 bytes, in cache)
and as many comparisons, and a few gathers for each of N nodes and E edges.
"""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.chunks import in_chunks
from jaxpart.cost.device import DeviceProblem
from jaxpart.methods.orders import probe_by_arrays
from jaxpart.methods.orders.weights import Weights
from jaxpart.problem.problem import Problem


@struct.dataclass
class Probed:
    """The results of B probes."""

    passes: Bool[Array, " B"]  # whether all nodes fit within the limit
    covered: Int[Array, " B"]  # how many nodes at the front of the order fit within the limit
    before: Int[Array, "N B"]  # start of the segment that ends after each position; -1: none


def can_probe(problem: Problem) -> bool:
    """Whether the probe works: the triangle rule is on, and no node has a fixed chip.

    Then the cost of a segment depends on its two cuts alone.
    """
    rules = problem.mcm.constraints
    return rules.acyclic and rules.triangle and bool((problem.fixed_chip < 0).all())


def chips_of(probed: Probed, order: np.ndarray, lane: int) -> np.ndarray:
    """[M] the chip of each node according to one lane that passes. Works on host arrays.

    Args:
      probed: the results of `probe`.
      order: [M] the nodes in the order of this lane, without padding.
      lane: the column of the batch.
    """
    # Indexed on the host: on an accelerator a program for it would wait for the next step.
    before = np.asarray(probed.before)[:, lane]
    cuts, j = [], len(order)
    while j > 0:
        j = int(before[j - 1])
        cuts.append(j)
    chips = np.empty(len(order), np.int64)
    chips[order] = np.searchsorted(cuts[::-1], np.arange(len(order)), side="right") - 1
    return chips


@struct.dataclass
class _Starts:
    """The last W = `window` cuts, each as the start of a segment that grows."""

    # Of cut i: (C + 1 - chips_needed[i]) * (N + 1) + i. Fewer chips, then later cuts, are larger.
    code: Int[Array, "W B"]  # -1: no start
    reach: Int[Array, "W B"]  # last position that consumes a tensor alive across the cut
    seconds: Float[Array, "S W B"]  # the cut's traffic (without overlap) - all compute before it
    held_bytes: Float[Array, "W B"]  # buffers of the cut - all own weights before it
    shared_bytes: Float[Array, "W B"]  # shared weights of the segment
    peak_bytes: Float[Array, "W B"]  # live activations of the segment


@partial(jax.jit, static_argnames="window")
def probe(
    problem: DeviceProblem,
    weights: Weights,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"] | Float[Array, "N 1"],
    limit_s: Float[Array, " B"],
    window: int,
) -> Probed:
    """Tests whether each order can be cut so that no stage and no link exceeds its limit.

    Args:
      problem: the contracted problem (`Problem.contracted`), padded to N; `can_probe` is true.
      weights: `weights_of` the same problem.
      orders: topological orders of the contracted nodes, one per column; padding comes last.
      peak_bytes: per node (not per position), a bound in bytes on the live activations of a segment
        that has this node; the largest in a segment counts. `peak_bounds` in `cost/host.py` gives a
        lower and an upper bound.
      limit_s: the limit of each order, seconds.
      window: the largest number of nodes in a segment.
    """
    config = problem.config
    chex.assert_shape(orders, (problem.padded_nodes, None))
    chips, (size, batch) = config.num_chips, orders.shape
    chex.assert_shape(limit_s, (batch,))
    if problem.tables is not None:
        return _by_arrays(problem, weights, orders, peak_bytes, limit_s, window)
    kinds = problem.node_s.shape[1]
    rules = config.constraints
    lane, dtype = jnp.arange(batch), problem.node_s.dtype
    last_at, dead_s = _lifetimes(problem, orders)
    # From here on these are indexed by position, so that the loop reads whole rows.
    last_at = jnp.take_along_axis(last_at, orders, axis=0)
    change_s = _made_s(problem)[orders] - dead_s
    seconds = jnp.moveaxis(problem.node_s[orders], -1, 0)
    own_bytes = weights.own_bytes[orders]
    peaks = jnp.take_along_axis(jnp.broadcast_to(peak_bytes, orders.shape), orders, axis=0)
    has_peaks = rules.memory and config.memory_model == "full"
    has_shared = rules.memory and weights.shared.shape[1] > 0

    def visit(p, carry):
        starts, load_s, held, cut_s, reach, used_at, covered, before = carry
        shared_bytes, ring_peaks = starts.shared_bytes, starts.peak_bytes
        if has_shared:
            # The weight is new to each segment that starts after its previous use.
            start = starts.code % (size + 1)
            for column in range(weights.shared.shape[1]):
                w = weights.shared[orders[p], column]
                is_new = used_at[w, lane][None] < start
                shared_bytes += jnp.where(is_new, weights.shared_bytes[w][None], 0)
                used_at = used_at.at[w, lane].set(p)
        if has_peaks:
            ring_peaks = jnp.maximum(ring_peaks, peaks[p][None])
        load_s = load_s + seconds[:, p]
        held = held + own_bytes[p]
        cut_s = jnp.maximum(cut_s + change_s[p], 0)
        reach = jnp.maximum(reach, last_at[p])

        # A segment that starts at cut i runs on chip chips_needed[i].
        chip = jnp.clip(chips + 1 - starts.code // (size + 1), 0, chips - 1)
        if kinds == 1:
            stage_s = starts.seconds[0] + load_s
        else:
            kind = problem.chip_kind[chip]
            of_kinds = starts.seconds + load_s[:, None]
            stage_s = jnp.take_along_axis(of_kinds, kind[None], axis=0)[0]
        if not config.overlap:
            stage_s += cut_s[None]
        fits = (stage_s <= limit_s[None]) & (starts.reach <= p) & (cut_s <= limit_s)[None]
        if rules.memory:
            bytes_held = starts.held_bytes + held[None] + shared_bytes
            if has_peaks:
                bytes_held += ring_peaks + (2 * cut_s * problem.link_bandwidth)[None]
            capacity = problem.capacity_bytes
            fits &= bytes_held <= (capacity[0] if kinds == 1 else capacity[chip])
        best = jnp.max(jnp.where(fits, starts.code, -1), axis=0)
        found = best >= 0
        covered = jnp.where(found, p + 1, covered)
        before = before.at[p].set(jnp.where(found, best % (size + 1), -1))

        # The new cut needs one chip more than the best start. It is a start if a chip is left.
        left = best // (size + 1) - 1
        code = jnp.where(found & (left > 1), left * (size + 1) + p + 1, -1)
        cut_bytes = 2 * cut_s * problem.link_bandwidth if has_peaks else 0.0
        opened = _Starts(
            code=code,
            reach=reach,
            seconds=-load_s if config.overlap else cut_s[None] - load_s,
            held_bytes=cut_bytes - held,
            shared_bytes=jnp.zeros_like(cut_s),
            peak_bytes=jnp.zeros_like(cut_s),
        )
        starts = starts.replace(shared_bytes=shared_bytes, peak_bytes=ring_peaks)
        starts = _with_row(starts, (p + 1) % window, opened)
        return starts, load_s, held, cut_s, reach, used_at, covered, before

    zeros, none = jnp.zeros((batch,), dtype), jnp.full((batch,), -1, jnp.int32)
    ring = jnp.zeros((window, batch), dtype)
    empty = jnp.full((window, batch), -1, jnp.int32)
    starts = _Starts(
        code=empty.at[0].set((chips + 1) * (size + 1)),
        reach=empty,
        seconds=jnp.zeros((kinds, window, batch), dtype),
        held_bytes=ring,
        shared_bytes=ring,
        peak_bytes=ring,
    )
    used_at = jnp.full((weights.shared_bytes.shape[0], batch), -1, jnp.int32)
    load_s = jnp.zeros((kinds, batch), dtype)
    before = jnp.full(orders.shape, -1, jnp.int32)
    carry = (starts, load_s, zeros, zeros, none, used_at, none + 1, before)
    *_, covered, before = lax.fori_loop(0, problem.num_nodes, visit, carry)
    return Probed(covered == problem.num_nodes, covered, before)


def _by_arrays(
    problem: DeviceProblem,
    weights: Weights,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"] | Float[Array, "N 1"],
    limit_s: Float[Array, " B"],
    window: int,
) -> Probed:
    """`probe` where programs compute on whole arrays."""

    def run(batch: tuple[Array, Array, Array]) -> Array:
        return probe_by_arrays.last_starts(problem, weights, *batch, window)

    batch = (orders, jnp.broadcast_to(peak_bytes, orders.shape), limit_s)
    before = in_chunks(problem, run, batch, probe_by_arrays.order_bytes(problem, weights, window))
    end = jnp.arange(1, orders.shape[0] + 1, dtype=jnp.int32)[:, None]
    covered = jnp.max(jnp.where(before >= 0, end, 0), axis=0)
    return Probed(covered == problem.num_nodes, covered, before)


def _with_row(starts: _Starts, row: Array, opened: _Starts) -> _Starts:
    """The ring with one row replaced by a new cut."""

    def put(ring: Array, values: Array) -> Array:
        if ring.ndim == 3:
            return ring.at[:, row].set(values)
        return ring.at[row].set(values)

    return jax.tree.map(put, starts, opened)


def _lifetimes(
    problem: DeviceProblem, orders: Int[Array, "N B"]
) -> tuple[Int[Array, "N B"], Float[Array, "N B"]]:
    """When tensors are consumed for the last time.

    Returns:
      Per node, the last position that consumes one of its tensors (-1: none). Per position, the
      transfer seconds of the tensors that have their last consumer there.
    """
    nodes, batch = orders.shape
    lane = jnp.arange(batch)[None]
    at = jnp.arange(nodes, dtype=jnp.int32)[:, None]
    position = jnp.zeros_like(orders).at[orders, lane].set(at)
    size_s = problem.tensor_bytes / problem.link_bandwidth

    def visit(k, carry):
        last_at, ends_at = carry

        def follow(e, last):
            return jnp.maximum(last, position[problem.edge_consumer[e]])

        start, stop = problem.tensor_edges[k], problem.tensor_edges[k + 1]
        last = lax.fori_loop(start, stop, follow, jnp.full((batch,), -1, jnp.int32))
        v = problem.tensor_producer[k]
        return last_at.at[v].max(last), ends_at.at[k].set(last)

    nowhere = jnp.full(orders.shape, -1, jnp.int32)
    last_at, ends_at = lax.fori_loop(0, problem.num_tensors, visit, (nowhere, nowhere))
    # A tensor without consumers crosses no cut.
    amount = jnp.where(ends_at >= 0, size_s[:, None], 0)
    dead_s = jnp.zeros(orders.shape, size_s.dtype).at[jnp.maximum(ends_at, 0), lane].add(amount)
    return last_at, dead_s


def _made_s(problem: DeviceProblem) -> Float[Array, " N"]:
    """Per node, the transfer seconds of the tensors that it makes and that have a consumer."""
    has_consumer = problem.tensor_edges[1:] > problem.tensor_edges[:-1]
    size_s = jnp.where(has_consumer, problem.tensor_bytes / problem.link_bandwidth, 0)
    return jnp.zeros_like(size_s).at[problem.tensor_producer].add(size_s)
