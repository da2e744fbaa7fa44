"""Cutting orders by operations on whole arrays: the form for a GPU or TPU.

The table `best[j, c]` of `slicing.py` needs only its column c - 1 for column c. All cuts j of all
orders are therefore treated at once, and the depth is the number of chips, not of nodes:

1. Prefix sums along each order, as many kernels as it takes.
2. The stage of every segment: a loop over lengths, 8 of them in one kernel. It is stored, because
   every chip needs it again.
3. One step per chip: the least over the window, one kernel on a GPU.
4. One step per chip to read back the cuts.

Orders are taken in chunks, so that the stages fit in memory.

Least possible work: N * window stages per order, and C maxima and minima of each: for 4,096 orders
of BERT-large on `mcm36` (window 128) 65 G operations, 5 ms of an H100. Step 3 reads the stages C
times, 155 GB in 46 ms. That is most of the 63 ms predicted; launches take 6. Blocks of positions
that treat all chips at once would read less, but be N / 8 steps deep; batches of 64 are more usual,
and wait for the launches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpart.cost import stage
from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.tables import Segments, reduce_segments, take
from jaxpart.methods.orders.lifetimes import (
    Lifetimes,
    along,
    lifetimes,
    previous_of_each,
    tables_of,
)

# Lengths of segments in one kernel: when stages are computed, and when they are compared.
_UNROLL = 8
_LENGTHS = 32


@struct.dataclass
class _Cuts:
    """The data of B orders, with the meanings of `_Segments` in `slicing.py`."""

    load_s: Float[Array, "S N+1 B"]
    cut_s: Float[Array, "N+1 B"]
    reach: Int[Array, "N+1 B"]
    weight_bytes: Float[Array, "N+1 B"]
    peak_bytes: Float[Array, "N B"]
    first_chip: Int[Array, "N+1 B"]
    last_chip: Int[Array, "N+1 B"]


@struct.dataclass
class _Gains:
    """What segments of each length gain with their last node, by node: [W, N, B].

    Row d belongs to the segments that start d positions before the node. A gain that the problem
    does not need is None.
    """

    shared_bytes: Float[Array, "W N B"] | None
    in_s: Float[Array, "W N B"] | None
    out_s: Float[Array, "W N B"] | None


def cut(
    problem: DeviceProblem,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"],
    window: int,
) -> tuple[Float[Array, " B"], Int[Array, "N B"]]:
    """The best cuts of each order: the bottleneck, and the chip of each node.

    The arguments are those of `slice_orders`, with the batch last.
    """
    rules, chips = problem.config.constraints, problem.config.num_chips
    size, batch = orders.shape
    lives = lifetimes(problem, orders)
    cuts = _cuts(problem, orders, peak_bytes, lives)
    stages = _stages(problem, cuts, _gains(problem, lives, window), orders, window)
    lane = jnp.arange(batch)
    none = jnp.full((1, batch), jnp.inf, cuts.cut_s.dtype)

    def start(used: Array) -> Array:
        """Before the first node no chip is used, unless chips may be skipped."""
        most = 0 if rules.no_skip else cuts.last_chip[:1]
        return jnp.where(used <= most, 0.0, none)

    def one_more(carry: tuple[Array, Array], chip: Array) -> Any:
        """The bottlenecks of all cuts with one chip more."""
        before, least = carry
        kind = problem.chip_kind[chip]
        after = _chosen(before[:-1], stages, kind, tpu=_least_by_end, default=_least_by_start)
        fits = (chip + 1 >= cuts.first_chip[1:]) & (chip + 1 <= cuts.last_chip[1:])
        after = jnp.where(fits, after, jnp.inf)
        if not rules.no_skip:
            least = jnp.minimum(least, after)
            after = jnp.where(fits, least, jnp.inf)
        after = jnp.concatenate([start(chip + 1), after])
        return (after, least), after

    is_by_end = _is_by_end()
    nowhere = jnp.full((size, batch), jnp.inf, none.dtype)
    first = jnp.concatenate([start(jnp.int32(0)), nowhere])
    _, best = lax.scan(one_more, (first, nowhere), jnp.arange(chips))
    best = jnp.concatenate([first[None], best])  # [C + 1, N + 1, B]
    last = take(best.swapaxes(0, 1), problem.num_nodes)
    used = jnp.argmin(last, axis=0).astype(jnp.int32)  # fewest chips at equal bottleneck
    length = jnp.arange(window, 0, -1, dtype=jnp.int32)[:, None]

    def read_back(j: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        """The cut before a chip, given the cut j after it; it is j where the chip is idle."""
        chip, before = step
        i = jnp.maximum(j[None] - length, 0)
        kind = problem.chip_kind[chip]
        row = jnp.where(is_by_end, jnp.maximum(j[None] - 1, 0), i)
        stage_s = stages.at[length - 1, kind, row, lane[None]].get(mode="promise_in_bounds")
        earlier = jnp.take_along_axis(before, i, axis=0, mode="promise_in_bounds")
        choice = jnp.where(length <= j[None], jnp.maximum(earlier, stage_s), jnp.inf)
        now = jnp.take_along_axis(before, j[None], axis=0, mode="promise_in_bounds")[0]
        is_idle = (chip >= used) | (now <= jnp.min(choice, axis=0))
        longest = jnp.argmin(choice, axis=0).astype(jnp.int32)
        j = jnp.where(is_idle, j, j - window + longest)
        return j, j

    end = jnp.broadcast_to(problem.num_nodes, (batch,))
    _, starts = lax.scan(read_back, end, (jnp.arange(chips), best[:-1]), reverse=True)
    number = jnp.arange(size, dtype=jnp.int32)[:, None]
    chip_at = jnp.sum((starts[:, None] <= number[None]).astype(jnp.int32), axis=0) - 1
    chip_at = jnp.clip(chip_at, 0, jnp.maximum(used - 1, 0)[None])
    chip = jnp.take_along_axis(chip_at, lives.position, axis=0, mode="promise_in_bounds")
    return jnp.min(last, axis=0), chip.astype(problem.config.chip_dtype)


def order_bytes(problem: DeviceProblem, window: int) -> int:
    """Bytes of temporary arrays for each order, about."""
    config, nodes = problem.config, problem.padded_nodes
    gains = config.shared_weights + 2 * (not config.constraints.triangle)
    rows = (problem.node_s.shape[1] + gains) * window + config.num_chips + 24
    return 4 * nodes * rows


def _cuts(
    problem: DeviceProblem,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"],
    lives: Lifetimes,
) -> _Cuts:
    """Collects the data of the orders."""
    config, tables = problem.config, tables_of(problem)
    chips = config.num_chips
    fixed = problem.fixed_chip[orders]
    before = lax.cummax(fixed)  # the highest fixed chip up to each position; -1: none
    behind = lax.cummin(jnp.where(fixed < 0, chips, fixed), reverse=True)
    load_s = jnp.moveaxis(problem.node_s[orders], -1, 0)
    cut_s = jnp.cumsum(lives.made_s[orders] - along(lives.dead_s, orders), axis=0)
    weights = jnp.zeros_like(cut_s)
    if not config.shared_weights:
        uses = tables.by_user
        own = reduce_segments(
            lambda i: problem.weight_bytes[problem.use_weight[uses[i]]][:, None],
            tables.node_uses,
            operator.add,
            0,
        )[:, 0]
        weights = jnp.cumsum(own[orders], axis=0)
    return _Cuts(
        load_s=_from_zero(jnp.cumsum(load_s, axis=1), 0, 1),
        cut_s=_from_zero(jnp.maximum(cut_s, 0), 0),
        reach=_from_zero(lax.cummax(along(lives.last_at, orders)), -1),
        weight_bytes=_from_zero(weights, 0),
        peak_bytes=along(peak_bytes, orders),
        first_chip=_from_zero(before + 1, 0),
        last_chip=jnp.concatenate([behind, jnp.full_like(behind[:1], chips)]),
    )


def _gains(problem: DeviceProblem, lives: Lifetimes, window: int) -> _Gains:
    """What segments gain with each node, from the entries of the node: its uses, edges, tensors."""
    config, tables = problem.config, tables_of(problem)
    position = lives.position
    age = jnp.arange(window, dtype=jnp.int32)[None, :, None]

    def gain(entries: Any, segments: Segments, counts: Any) -> Float[Array, "W N B"]:
        """Sums the entries of each node that count for a segment.

        Args:
          entries: takes numbers of entries [Q] to their nodes, a position [Q, B] and their amounts.
          segments: the entries of each node.
          counts: compares that position with the start of the segment.
        """

        def rows(i: Array) -> Float[Array, "Q W B"]:
            node, at, amount = entries(i)
            start = take(position, node)[:, None] - age
            return jnp.where(counts(at[:, None], start), amount[:, None, None], 0)

        return reduce_segments(rows, segments, operator.add, 0).swapaxes(0, 1)

    shared = in_s = out_s = None
    if config.shared_weights:
        used_at = take(position, problem.use_node)
        before = previous_of_each(problem.use_weight, used_at, jnp.full_like(used_at, -1))

        def use(i: Array) -> tuple[Array, Array, Array]:
            u = tables.by_user[i]
            return problem.use_node[u], take(before, u), problem.weight_bytes[problem.use_weight[u]]

        # A weight is new to a segment that starts after its previous use.
        shared = gain(use, tables.node_uses, operator.lt)
    if not config.constraints.triangle:
        # Edges are sorted by consumer here.
        k, v = problem.in_edge_tensor, tables.in_edge_consumer
        size_s = (problem.tensor_bytes / problem.link_bandwidth)[k]
        made_at = take(take(position, problem.tensor_producer), k)
        arrived_at = previous_of_each(k, take(position, v), made_at)
        is_last = take(lives.ends_at, k) == take(position, v)
        ended_at = jnp.where(is_last, made_at, -1)
        edges = tables.node_in_edges
        in_s = gain(lambda i: (v[i], take(arrived_at, i), size_s[i]), edges, operator.lt)
        # A segment sends a tensor from the moment its producer joins until its last consumer joins.
        lost_s = gain(lambda i: (v[i], take(ended_at, i), size_s[i]), edges, operator.ge)
        out_s = lives.made_s[None, :, None] - lost_s
    return _Gains(shared, in_s, out_s)


def _stages(
    problem: DeviceProblem,
    cuts: _Cuts,
    gains: _Gains,
    orders: Int[Array, "N B"],
    window: int,
) -> Float[Array, "W S N B"]:
    """Stages on each kind of chip; row d has the segments of d + 1 nodes.

    They are sorted by start, or by their ends 1 to N (`_is_by_end`). Infinite where a segment is
    forbidden, and where none starts or ends.
    """
    config = problem.config
    rules = config.constraints
    size, batch = orders.shape
    capacity = jnp.zeros(problem.node_s.shape[1], problem.capacity_bytes.dtype)
    capacity = capacity.at[problem.chip_kind].set(problem.capacity_bytes)[:, None, None]
    number = jnp.arange(size, dtype=jnp.int32)[:, None]

    def behind(values: Array, length: Array, axis: int = 0) -> Array:
        """The entries `length` further on; behind the last one come zeros."""
        pads = [(0, 0)] * values.ndim
        pads[axis] = (0, window)
        return lax.dynamic_slice_in_dim(jnp.pad(values, pads), length, size, axis)

    is_by_end = _is_by_end()
    node = jnp.pad(orders, ((0, window), (0, 0)))

    def step(grown: tuple[Array, _Gains], d: Array) -> tuple[Any, Array]:
        """The segments of d + 1 nodes, from those of d nodes."""
        peak, sums = grown
        peak = jnp.maximum(peak, behind(cuts.peak_bytes, d))
        last = lax.dynamic_slice_in_dim(node, d, size)

        def joined(total: Array | None, gain: Array | None) -> Array | None:
            if total is None or gain is None:
                return None
            row = lax.dynamic_index_in_dim(gain, d, keepdims=False)
            return total + along(row, last)

        sums = _Gains(
            joined(sums.shared_bytes, gains.shared_bytes),
            joined(sums.in_s, gains.in_s),
            joined(sums.out_s, gains.out_s),
        )
        compute = behind(cuts.load_s, d + 1, 1) - cuts.load_s[:, :-1]
        cut_in, cut_out = cuts.cut_s[:-1], behind(cuts.cut_s, d + 1)
        received, sent = (cut_in, cut_out) if rules.triangle else (sums.in_s, sums.out_s)
        assert received is not None
        assert sent is not None
        allowed = number + d < size
        if rules.triangle:
            allowed &= cuts.reach[:-1] <= number + d
        busy = stage.stage_s(config.overlap, compute, received[None], sent[None])
        if config.topology == "chain":
            busy = jnp.maximum(busy, jnp.maximum(cut_in, cut_out)[None])
        allowed = allowed[None]
        if rules.memory:
            held = behind(cuts.weight_bytes, d + 1) - cuts.weight_bytes[:-1]
            if sums.shared_bytes is not None:
                held += sums.shared_bytes
            if config.memory_model == "full":
                held += 2 * (received + sent) * problem.link_bandwidth + peak
            allowed &= held[None] <= capacity
        busy = jnp.where(allowed, busy, jnp.inf)
        busy = jnp.pad(busy, ((0, 0), (window, 0), (0, 0)), constant_values=jnp.inf)
        later = jnp.where(is_by_end, d, 0)
        return (peak, sums), lax.dynamic_slice_in_dim(busy, window - later, size, axis=1)

    zeros = jnp.zeros((size, batch), cuts.cut_s.dtype)
    sums = jax.tree.map(lambda _: zeros, gains)
    return lax.scan(step, (zeros, sums), jnp.arange(window), unroll=_UNROLL)[1]


def _least_by_start(
    before: Float[Array, "N B"], stages: Float[Array, "W S N B"], kind: Array
) -> Float[Array, "N B"]:
    """The least bottleneck up to cuts 1 to N, from stages by start, in one kernel.

    Row d has the segments of d + 1 nodes, so it moves d places. With rows that are one place
    shorter, each row of the same numbers begins one place later than the one before it. So no index
    has to be read.

    Args:
      before: the least bottleneck up to cuts 0 to N - 1, on the chips before.
      stages: of all segments.
      kind: of the chip of the last segment.
    """
    window, _, size, batch = stages.shape
    stage_s = lax.dynamic_index_in_dim(stages, kind, axis=1, keepdims=False)
    longer = jnp.maximum(before[None], stage_s)
    longer = jnp.pad(longer, ((0, 0), (0, window), (0, 0)), constant_values=jnp.inf)
    flat = longer.reshape(window * (size + window), batch)[: window * (size + window - 1)]
    return jnp.min(flat.reshape(window, size + window - 1, batch)[:, :size], axis=0)


def _least_by_end(
    before: Float[Array, "N B"], stages: Float[Array, "W S N B"], kind: Array
) -> Float[Array, "N B"]:
    """`_least_by_start` from stages by end, in a loop over lengths."""
    window, _, size, batch = stages.shape
    starts = jnp.pad(before, ((window, 0), (0, 0)), constant_values=jnp.inf)

    def longer(least: Array, d: Array) -> tuple[Array, None]:
        start = lax.dynamic_slice_in_dim(starts, window - d, size)
        stage_s = lax.dynamic_slice(stages, (d, kind, 0, 0), (1, 1, size, batch))[0, 0]
        return jnp.minimum(least, jnp.maximum(start, stage_s)), None

    none = jnp.full((size, batch), jnp.inf, stages.dtype)
    return lax.scan(longer, none, jnp.arange(window), unroll=_LENGTHS)[0]


def _is_by_end() -> Array:
    """Whether stages are sorted by end.

    A TPU moves whole blocks of rows. To move the rows of each length by another distance, it writes
    all of them anew, several times for each chip. So there they are moved once, when they are made.
    """
    return _chosen(tpu=lambda: jnp.bool_(True), default=lambda: jnp.bool_(False))


def _chosen(*arguments: Any, tpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """One of two functions, by the device that the program is compiled for."""
    return lax.platform_dependent(*arguments, tpu=tpu, default=default)


def _from_zero(values: Array, first: float, axis: int = 0) -> Array:
    """Values at cuts 1 to N, and one for cut 0 in front of them."""
    zero = jnp.full_like(lax.slice_in_dim(values, 0, 1, axis=axis), first)
    return jnp.concatenate([zero, values], axis=axis)
