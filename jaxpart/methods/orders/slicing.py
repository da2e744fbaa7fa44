"""Cuts an order of the nodes optimally: the best contiguous pieces, by dynamic programming.

For a fixed topological order a partition is a set of cuts. With `best[j, c]` the least bottleneck
of the first j nodes on the first c chips,

    best[j, c] = min over i < j of max(best[i, c - 1], stage(i, j, chip c - 1)),

where the piece [i, j) has at most `window` nodes. Under the triangle rule, what is alive across one
cut must be consumed before the next (`span`), so a piece receives and sends exactly what its two
cuts carry; without it both depend on both cuts and are accumulated along the window.

Seen exactly: compute, traffic, chain links, weights, boundary buffers, pins, unlike chips. Not
seen: mesh links without the triangle rule, and the peak of live activations, for which the largest
of a figure per node stands (a chip runs nodes in number order, whatever order is cut).
`exact.peak_bounds` has one figure that is never too high, so that no valid cuts are missed, and one
that is never too low, so that what is found fits. `cost.evaluate` decides.

Work per order: N * window * C max-min steps, no memory beyond the [N, C] table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.device import DeviceProblem, bucket_size
from jaxpart.problem.problem import Problem


@struct.dataclass
class _Segments:
    """What the dynamic program reads of one order; position p is the p-th node, cut i is before it.

    Arrays over cuts have N + 1 entries. Traffic in seconds, memory in bytes.
    """

    load_s: Float[Array, "N+1 S"]  # prefix sums
    cut_s: Float[Array, " N+1"]  # what crosses the cut, each tensor once
    reach: Int[Array, " N+1"]  # last position that needs something alive across the cut
    weight_bytes: Float[Array, " N+1"]  # prefix sums of weights with one consumer
    peak_bytes: Float[Array, " N"]  # of the node at each position
    first_chip: Int[Array, " N+1"]  # fewest chips before the cut, for fixed chips before it
    last_chip: Int[Array, " N+1"]  # most chips before the cut, for fixed chips after it
    # Increments of a piece [i, q] when position q joins it, indexed [q, q - i].
    shared_bytes: Float[Array, "N W"] | None  # weights, where any has several consumers
    in_s: Float[Array, "N W"] | None  # only without the span rule
    out_s: Float[Array, "N W"] | None


@partial(jax.jit, static_argnames="window")
def slice_orders(
    problem: DeviceProblem,
    orders: Int[Array, "B N"],
    peak_bytes: Float[Array, "B N"],
    window: int,
) -> tuple[Float[Array, " B"], Int[Array, "N B"]]:
    """The best cuts of each order.

    Args:
      problem: of contracted nodes (`Problem.contracted`), padded to N.
      orders: topological orders of the nodes; padding comes last, in any order.
      peak_bytes: per node, what a piece with it takes for live activations; the largest counts.
      window: the most nodes that a piece may have.

    Returns:
      bottleneck in seconds as far as seen here (inf: no cuts found), and assignments, batch last.
    """
    bottleneck_s, chips = jax.vmap(partial(_slice, problem, window=window))(orders, peak_bytes)
    return bottleneck_s, chips.T.astype(problem.config.chip_dtype)


def window_for(problem: Problem, bottleneck_s: float, most: int = 2048) -> int:
    """The most nodes that a piece of the program order can have within `bottleneck_s`, as a bucket.

    Args:
      problem: of blocks.
      bottleneck_s: pieces with more compute than this cannot be in a better partition.
      most: memory bound; longer pieces are not looked at.
    """
    fastest = problem.node_s.min(axis=1)
    prefix = np.concatenate([[0], np.cumsum(fastest)])
    stop = np.searchsorted(prefix, prefix[:-1] + bottleneck_s * (1 + 1e-9), side="right") - 1
    longest = int((stop - np.arange(problem.num_nodes)).max())
    return min(bucket_size(max(longest, 1) + 8), most)


def _slice(
    problem: DeviceProblem, order: Int[Array, " N"], peak_bytes: Float[Array, " N"], *, window: int
) -> tuple[Float[Array, ""], Int[Array, " N"]]:
    config = problem.config
    size, chips = order.shape[0], config.num_chips
    rules = config.constraints
    segments = _segments(problem, order, peak_bytes, window)
    dtype = problem.node_s.dtype

    # Everything over cuts gets `window` entries in front, so that a window never starts below 0.
    load, cut = _pad(segments.load_s, window, 0), _pad(segments.cut_s, window, 0)
    reach = _pad(segments.reach, window, size)
    weights = _pad(segments.weight_bytes, window, 0)
    best = jnp.full((size + 1 + window, chips + 1), jnp.inf, dtype)
    # Before the first node no chip is used; where chips may be skipped, any number may be idle.
    idle = jnp.arange(chips + 1) <= (0 if rules.no_skip else segments.last_chip[0])
    best = best.at[window].set(jnp.where(idle, 0.0, jnp.inf))

    kinds = problem.node_s.shape[1]
    capacity = jnp.zeros((kinds,), dtype).at[problem.chip_kind].set(problem.capacity_bytes)

    def stages(j: Array, sums: _Sums) -> Float[Array, "window S"]:
        """Stage on each kind of chip of the pieces that end at cut j, earliest start first.

        Infinite where such a piece is forbidden.
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
        """The cut before chip c, given the cut j behind it; no movement where chip c is idle."""
        j, cuts = carry
        c = chips - 1 - step
        before = _rows(best, j, window)[:, c]
        stage = stages(j, _Sums.at(segments, j, window))[:, problem.chip_kind[c]]
        choice = jnp.maximum(before, stage)
        is_idle = (c >= used) | (best[j + window, c] <= jnp.min(choice))
        j = jnp.where(is_idle, j, j - window + jnp.argmin(choice))
        return j, cuts.at[c].set(j)

    last = best[problem.num_nodes + window]
    used = jnp.argmin(last)  # the first: fewer chips at equal bottleneck
    cuts = jnp.zeros((chips,), jnp.int32)
    _, cuts = lax.fori_loop(0, chips, read_back, (problem.num_nodes, cuts))
    chip_at = jnp.searchsorted(cuts, jnp.arange(size), side="right") - 1
    chip_at = jnp.clip(chip_at, 0, jnp.maximum(used - 1, 0))
    return last[used], jnp.zeros_like(order).at[order].set(chip_at.astype(order.dtype))


@struct.dataclass
class _Sums:
    """Of the pieces that end at one cut, earliest start first; zeros where nothing is summed."""

    shared_bytes: Float[Array, " W"]
    peak_bytes: Float[Array, " W"]
    in_s: Float[Array, " W"]
    out_s: Float[Array, " W"]

    @classmethod
    def zero(cls, segments: _Segments, window: int, dtype: Any) -> _Sums:
        zeros = jnp.zeros((window,), dtype)
        return cls(zeros, zeros, zeros, zeros)

    def grown(self, segments: _Segments, q: Array) -> _Sums:
        """The same pieces and the new one [q, q], once position q has joined them."""

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
        """From scratch, for the pieces that end at cut j."""

        def total(increments: Array | None) -> Array:
            if increments is None:
                return jnp.zeros((window,), segments.load_s.dtype)
            # Position q = j - 1 - t joins the piece that starts d = j - 1 - i before the end.
            t, d = jnp.arange(window)[:, None], jnp.arange(window)[None, :]
            terms = _rows(_pad(increments, window, 0), j, window)[::-1][t, d - t]
            return jnp.sum(jnp.where(d >= t, terms, 0), axis=0)[::-1]

        peak = lax.cummax(_rows(_pad(segments.peak_bytes, window, 0), j, window), reverse=True)
        return cls(total(segments.shared_bytes), peak, total(segments.in_s), total(segments.out_s))


def _segments(
    problem: DeviceProblem, order: Int[Array, " N"], peak_bytes: Float[Array, " N"], window: int
) -> _Segments:
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
    pins = problem.fixed_chip[order]
    before = lax.cummax(pins)  # the highest pin up to each position; -1 without
    behind = lax.cummin(jnp.where(pins < 0, chips, pins), reverse=True)

    weight_prefix, shared, in_s, out_s = zeros, None, None, None
    used_at = position[problem.use_node]
    if config.shared_weights:
        previous = _previous(problem.use_weight, used_at, jnp.full_like(used_at, -1))
        shared = _joined(used_at, previous, problem.weight_bytes[problem.use_weight], size, window)
    else:
        added = zeros.at[used_at + 1].add(problem.weight_bytes[problem.use_weight])
        weight_prefix = jnp.cumsum(added)
    if not config.constraints.triangle:
        edge_s = size_s[problem.edge_tensor]
        previous = _previous(problem.edge_tensor, edge_at, made_at[problem.edge_tensor])
        in_s = _joined(edge_at, previous, edge_s, size, window)
        # Sent once its producer joins and anything is left to send to; no more with its last
        # consumer.
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


def _previous(owner: Array, at: Array, first: Array) -> Array:
    """For each entry the position of its owner's entry before it; `first` for the earliest."""
    entry = jnp.arange(owner.shape[0], dtype=jnp.int32)
    owners, positions, entries = lax.sort((owner, at, entry), num_keys=2)
    is_same = jnp.concatenate([jnp.zeros((1,), bool), owners[1:] == owners[:-1]])
    before = jnp.where(is_same, jnp.roll(positions, 1), first[entries])
    return jnp.zeros_like(at).at[entries].set(before)


def _joined(
    at: Array, previous: Array, amount: Array, size: int, window: int
) -> Float[Array, "N W"]:
    """[q, d]: what position q adds to the piece that starts d before it: the entries at q whose
    previous one lies before that start."""
    reach = jnp.minimum(at - previous, window)
    table = jnp.zeros((size, window), amount.dtype)
    table = table.at[at, reach - 1].add(jnp.where(reach > 0, amount, 0))
    return lax.cumsum(table, axis=1, reverse=True)


def _pad(values: Array, window: int, fill: float) -> Array:
    edge = jnp.full((window, *values.shape[1:]), fill, values.dtype)
    return jnp.concatenate([edge, values])


def _rows(values: Array, j: Array, window: int) -> Array:
    """The entries of the `window` cuts before cut j, from an array padded by `window` in front."""
    return lax.dynamic_slice_in_dim(values, j, window)
