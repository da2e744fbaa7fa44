"""Cuts a node order optimally into segments, by dynamic programming.

For a fixed topological order, a partition is a set of cuts. Let `best[j, c]` be the least
bottleneck of the first j nodes on the first c chips. Then

    best[j, c] = min over i < j of max(best[i, c - 1], stage(i, j, chip c - 1)),

where segment [i, j) has at most `window` nodes.

Traffic of a segment: with the triangle rule on, a tensor that is alive across one cut must be
consumed before the next cut. A segment then receives and sends exactly what its two cuts carry.
With the rule off, both amounts depend on both cuts; they are summed along the window.

Exact here: compute, traffic, chain links, weights, boundary buffers, fixed chips, unlike chips.
Not exact:

- Mesh links without the triangle rule are ignored.
- The peak of live activations is replaced by the largest of one number per node, because a chip
  runs its nodes in number order, whatever order is cut. `peak_bounds` in `cost/host.py` has two
  such numbers. With the lower bound no valid cuts are missed; with the upper bound all cuts found
  fit. `cost/evaluate.py` decides.

Work per order: N * window * C steps of one max and one min. Memory: the [N, C] table alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.chunks import in_chunks
from jaxpart.cost.device import DeviceProblem, bucket_size
from jaxpart.methods.orders import lifetimes, slicing_by_arrays
from jaxpart.problem.problem import Problem


@struct.dataclass
class _Segments:
    """The data of one order that the dynamic program reads.

    Position p is that of the p-th node; cut i lies before position i. Arrays over cuts have N + 1
    entries. W is `window`, S the number of kinds of chips.
    """

    load_s: Float[Array, "N+1 S"]  # prefix sums of compute
    cut_s: Float[Array, " N+1"]  # transfer time of the tensors that cross the cut, each once
    reach: Int[Array, " N+1"]  # last position that consumes a tensor alive across the cut
    weight_bytes: Float[Array, " N+1"]  # prefix sums of weights; 0 where `shared_bytes` is used
    peak_bytes: Float[Array, " N"]  # bound on live activations of the node at each position
    first_chip: Int[Array, " N+1"]  # fewest chips before the cut, due to fixed chips before it
    last_chip: Int[Array, " N+1"]  # most chips before the cut, due to fixed chips after it
    # What segment [i, q] gains when position q joins it, indexed [q, q - i].
    shared_bytes: Float[Array, "N W"] | None  # weights; None if no weight has several consumers
    in_s: Float[Array, "N W"] | None  # None with the triangle rule on
    out_s: Float[Array, "N W"] | None  # likewise


@partial(jax.jit, static_argnames="window")
def slice_orders(
    problem: DeviceProblem,
    orders: Int[Array, "B N"],
    peak_bytes: Float[Array, "B N"],
    window: int,
) -> tuple[Float[Array, " B"], Int[Array, "N B"]]:
    """The best cuts of each order.

    Args:
      problem: the contracted problem (`Problem.contracted`), padded to N.
      orders: topological orders of the contracted nodes; padding comes last, in any order.
      peak_bytes: per node (not per position), a bound in bytes on the live activations of a segment
        that has this node; the largest in a segment counts.
      window: the largest number of nodes in a segment.

    Returns:
      The bottleneck of each order in seconds, as far as this file is exact (inf: no cuts found),
      and the chips of the contracted nodes.
    """
    chex.assert_shape([orders, peak_bytes], (None, problem.padded_nodes))
    if problem.tables is not None:

        def run(batch: tuple[Array, Array]) -> tuple[Array, Array]:
            return slicing_by_arrays.cut(problem, *batch, window)

        order_bytes = slicing_by_arrays.order_bytes(problem, window)
        return in_chunks(problem, run, (orders.T, peak_bytes.T), order_bytes)
    bottleneck_s, chips = jax.vmap(partial(_slice, problem, window=window))(orders, peak_bytes)
    return bottleneck_s, chips.T.astype(problem.config.chip_dtype)


def window_for(problem: Problem, bottleneck_s: float, most: int = 2048) -> int:
    """The most nodes that a segment of the program order can have, rounded up to a bucket size.

    Args:
      problem: the contracted problem.
      bottleneck_s: the limit in seconds on the compute of a segment, on the fastest kind of chip; a
        segment with more cannot be part of a better partition.
      most: the largest window, in nodes; it bounds work and memory. Longer segments are ignored.
    """
    fastest = problem.node_s.min(axis=1)
    prefix = np.concatenate([[0], np.cumsum(fastest)])
    stop = np.searchsorted(prefix, prefix[:-1] + bottleneck_s * (1 + 1e-9), side="right") - 1
    longest = int((stop - np.arange(problem.num_nodes)).max())
    return min(bucket_size(max(longest, 1) + 8), most)


def _slice(
    problem: DeviceProblem, order: Int[Array, " N"], peak_bytes: Float[Array, " N"], *, window: int
) -> tuple[Float[Array, ""], Int[Array, " N"]]:
    """`slice_orders` for one order."""
    config = problem.config
    size, chips = order.shape[0], config.num_chips
    rules = config.constraints
    segments = _segments(problem, order, peak_bytes, window)
    dtype = problem.node_s.dtype

    # Arrays over cuts get `window` more entries in front, so that no window starts below 0.
    load, cut = _pad(segments.load_s, window, 0), _pad(segments.cut_s, window, 0)
    reach = _pad(segments.reach, window, size)
    weights = _pad(segments.weight_bytes, window, 0)
    best = jnp.full((size + 1 + window, chips + 1), jnp.inf, dtype)
    # Before the first node no chip is used. If chips may be skipped, the first ones may be idle, up
    # to the lowest fixed chip.
    idle = jnp.arange(chips + 1) <= (0 if rules.no_skip else segments.last_chip[0])
    best = best.at[window].set(jnp.where(idle, 0.0, jnp.inf))

    kinds = problem.node_s.shape[1]
    capacity = jnp.zeros((kinds,), dtype).at[problem.chip_kind].set(problem.capacity_bytes)

    def stages(j: Array, sums: _Sums) -> Float[Array, "window S"]:
        """Stages, on each kind of chip, of the segments that end at cut j, earliest start first.

        Infinite where a segment is forbidden.
        """
        compute = segments.load_s[j][None] - _rows(load, j, window)  # [W, S]
        received, sent = sums.in_s, sums.out_s
        cut_in, cut_out = _rows(cut, j, window), segments.cut_s[j]
        allowed = jnp.ones((window,), bool)
        if rules.triangle:
            received, sent = cut_in, jnp.broadcast_to(cut_out, (window,))
            allowed &= _rows(reach, j, window) < j
        if config.overlap:
            stage = jnp.maximum(compute, jnp.maximum(received, sent)[:, None])
        else:
            stage = compute + (received + sent)[:, None]
        if config.topology == "chain":
            stage = jnp.maximum(stage, jnp.maximum(cut_in, cut_out)[:, None])
        stage = jnp.where(allowed[:, None], stage, jnp.inf)
        if not rules.memory:
            return stage
        held = segments.weight_bytes[j] - _rows(weights, j, window) + sums.shared_bytes
        if config.memory_model == "full":
            held += 2 * (received + sent) * problem.link_bandwidth + sums.peak_bytes
        return jnp.where(held[:, None] <= capacity[None], stage, jnp.inf)

    def on_chips(stage: Float[Array, "window S"]) -> Float[Array, "window C"]:
        return stage if kinds == 1 else stage[:, problem.chip_kind]

    def fits(j: Array) -> Bool[Array, " C+1"]:
        used = jnp.arange(chips + 1)
        return (used >= segments.first_chip[j]) & (used <= segments.last_chip[j])

    def advance(j, carry):
        best, sums = carry
        sums = sums.grown(segments, j - 1)
        before = _rows(best, j, window)[:, :-1]
        after = jnp.min(jnp.maximum(before, on_chips(stages(j, sums))), axis=0)
        after = jnp.concatenate([jnp.full((1,), jnp.inf, dtype), after])
        after = jnp.where(fits(j), after, jnp.inf)
        if not rules.no_skip:
            after = jnp.where(fits(j), lax.cummin(after), jnp.inf)
        return best.at[j + window].set(after), sums

    start = _Sums.zero(segments, window, dtype)
    best, _ = lax.fori_loop(1, problem.num_nodes + 1, advance, (best, start))

    def read_back(step, carry):
        """The cut before chip c, given the cut j after it; it is j where chip c is idle."""
        j, cuts = carry
        c = chips - 1 - step
        before = _rows(best, j, window)[:, c]
        stage = stages(j, _Sums.at(segments, j, window))[:, problem.chip_kind[c]]
        choice = jnp.maximum(before, stage)
        is_idle = (c >= used) | (best[j + window, c] <= jnp.min(choice))
        j = jnp.where(is_idle, j, j - window + jnp.argmin(choice))
        return j, cuts.at[c].set(j)

    last = best[problem.num_nodes + window]
    used = jnp.argmin(last)  # the first minimum: fewest chips at equal bottleneck
    cuts = jnp.zeros((chips,), jnp.int32)
    _, cuts = lax.fori_loop(0, chips, read_back, (problem.num_nodes, cuts))
    chip_at = jnp.searchsorted(cuts, jnp.arange(size), side="right") - 1
    chip_at = jnp.clip(chip_at, 0, jnp.maximum(used - 1, 0))
    return last[used], jnp.zeros_like(order).at[order].set(chip_at.astype(order.dtype))


@struct.dataclass
class _Sums:
    """Sums over each of the W segments that end at one cut, earliest start first.

    A sum that the problem does not need stays 0.
    """

    shared_bytes: Float[Array, " W"]
    peak_bytes: Float[Array, " W"]
    in_s: Float[Array, " W"]
    out_s: Float[Array, " W"]

    @classmethod
    def zero(cls, segments: _Segments, window: int, dtype: Any) -> _Sums:
        zeros = jnp.zeros((window,), dtype)
        return cls(zeros, zeros, zeros, zeros)

    def grown(self, segments: _Segments, q: Array) -> _Sums:
        """The sums at the next cut: position q joins every segment, and segment [q, q] is new."""

        def join(values: Array, increments: Array | None) -> Array:
            if increments is None:
                return values
            return jnp.roll(values, -1).at[-1].set(0) + increments[q][::-1]

        peak = jnp.maximum(jnp.roll(self.peak_bytes, -1).at[-1].set(0), segments.peak_bytes[q])
        return _Sums(
            join(self.shared_bytes, segments.shared_bytes),
            peak,
            join(self.in_s, segments.in_s),
            join(self.out_s, segments.out_s),
        )

    @classmethod
    def at(cls, segments: _Segments, j: Array, window: int) -> _Sums:
        """The sums of the segments that end at cut j, computed from scratch."""

        def total(increments: Array | None) -> Array:
            if increments is None:
                return jnp.zeros((window,), segments.load_s.dtype)
            # Position q = j - 1 - t joins the segment that starts at i, d = j - 1 - i positions
            # before the last one.
            t, d = jnp.arange(window)[:, None], jnp.arange(window)[None, :]
            terms = _rows(_pad(increments, window, 0), j, window)[::-1][t, d - t]
            return jnp.sum(jnp.where(d >= t, terms, 0), axis=0)[::-1]

        peak = lax.cummax(_rows(_pad(segments.peak_bytes, window, 0), j, window), reverse=True)
        return cls(total(segments.shared_bytes), peak, total(segments.in_s), total(segments.out_s))


def _segments(
    problem: DeviceProblem, order: Int[Array, " N"], peak_bytes: Float[Array, " N"], window: int
) -> _Segments:
    """Collects the data of one order."""
    config = problem.config
    size, chips = order.shape[0], config.num_chips
    bandwidth = problem.link_bandwidth
    position = jnp.zeros_like(order).at[order].set(jnp.arange(size, dtype=order.dtype))
    made_at = position[problem.tensor_producer]
    edge_at = position[problem.edge_consumer]
    last_at = made_at.at[problem.edge_tensor].max(edge_at)
    size_s = problem.tensor_bytes / bandwidth

    zeros = jnp.zeros((size + 1,), size_s.dtype)
    # A tensor crosses the cuts made_at + 1 .. last_at.
    crossing = zeros.at[made_at + 1].add(size_s).at[last_at + 1].add(-size_s)
    reach = jnp.full((size + 1,), -1, order.dtype).at[made_at + 1].max(last_at)
    load = jnp.cumsum(problem.node_s[order], axis=0)
    fixed = problem.fixed_chip[order]
    before = lax.cummax(fixed)  # the highest fixed chip up to each position; -1: none
    behind = lax.cummin(jnp.where(fixed < 0, chips, fixed), reverse=True)

    weight_prefix, shared, in_s, out_s = zeros, None, None, None
    used_at = position[problem.use_node]
    if config.shared_weights:
        previous = lifetimes.previous(problem.use_weight, used_at, jnp.full_like(used_at, -1))
        shared = _joined(used_at, previous, problem.weight_bytes[problem.use_weight], size, window)
    else:
        added = zeros.at[used_at + 1].add(problem.weight_bytes[problem.use_weight])
        weight_prefix = jnp.cumsum(added)
    if not config.constraints.triangle:
        edge_s = size_s[problem.edge_tensor]
        previous = lifetimes.previous(problem.edge_tensor, edge_at, made_at[problem.edge_tensor])
        in_s = _joined(edge_at, previous, edge_s, size, window)
        # A segment sends a tensor from the moment its producer joins until its last consumer
        # joins. A tensor without consumers is never sent.
        is_sent = last_at > made_at
        never = jnp.full_like(made_at, -1)
        out_s = _joined(made_at, never, jnp.where(is_sent, size_s, 0), size, window)
        dead = jnp.zeros((size, window), size_s.dtype)
        age = last_at - made_at
        dead = dead.at[last_at, jnp.minimum(age, window - 1)].add(
            jnp.where(is_sent & (age < window), size_s, 0)
        )
        out_s -= jnp.cumsum(dead, axis=1)
    return _Segments(
        load_s=jnp.concatenate([jnp.zeros_like(load[:1]), load]),
        cut_s=jnp.maximum(jnp.cumsum(crossing), 0),
        reach=lax.cummax(reach),
        weight_bytes=weight_prefix,
        peak_bytes=peak_bytes[order],
        first_chip=jnp.concatenate([jnp.zeros_like(before[:1]), before + 1]),
        last_chip=jnp.concatenate([behind, jnp.full_like(behind[:1], chips)]),
        shared_bytes=shared,
        in_s=in_s,
        out_s=out_s,
    )


def _joined(
    at: Array, previous: Array, amount: Array, size: int, window: int
) -> Float[Array, "N W"]:
    """What position q adds to the segment that starts d positions before it, at [q, d].

    It is the sum over the entries at q whose previous entry lies before that start.
    """
    reach = jnp.minimum(at - previous, window)
    table = jnp.zeros((size, window), amount.dtype)
    table = table.at[at, reach - 1].add(jnp.where(reach > 0, amount, 0))
    return lax.cumsum(table, axis=1, reverse=True)


def _pad(values: Array, window: int, fill: float) -> Array:
    """Puts `window` entries of value `fill` in front of an array."""
    edge = jnp.full((window, *values.shape[1:]), fill, values.dtype)
    return jnp.concatenate([edge, values])


def _rows(values: Array, j: Array, window: int) -> Array:
    """The entries of the `window` cuts before cut j, from an array that `_pad` has padded."""
    return lax.dynamic_slice_in_dim(values, j, window)
