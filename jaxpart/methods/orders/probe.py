"""Do some cuts of an order keep within a bottleneck? One pass, for a whole batch of orders.

The probe of chains-on-chains partitioning (Pinar and Aykanat, J. Parallel Distrib. Comput. 64,
2004, section 3). Of the first j nodes only the fewest chips that take them within the limit count,

    fewest[j] = 1 + min over i < j, [i, j) within the limit, of fewest[i],

so that the work per order is N * window, where the dynamic program of `slicing` does C times as
much for the least bottleneck: the thing to ask where many orders are compared with one bottleneck.
Sees what `slicing` sees, and is as exact where chips are alike; where they are not, fewest chips
need not be the best ones, and it may miss cuts. What passes, passes.

Under the triangle rule a piece receives and sends what its two cuts carry, so that a start is a
handful of figures, kept in a ring of the last `window` cuts, orders side by side.

Floor per order: N * window starts of about five figures (20 bytes, in cache) and as many
comparisons, and a few gathers for each of N nodes and E edges.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.cost.device import DeviceProblem
from jaxpart.problem.problem import Problem

# Shared weights of one node that are counted once per chip.
_MOST_SHARED = 16


@struct.dataclass
class Probed:
    """What B probes found."""

    passes: Bool[Array, " B"]
    covered: Int[Array, " B"]  # nodes that the chips can take within the limit
    before: Int[Array, "N B"]  # of the piece that ends behind each position, the start; -1: none


@struct.dataclass
class Weights:
    """The weights of each node: the bytes that it alone uses, and the numbers of the others."""

    own_bytes: Float[Array, " N"]
    shared: Int[Array, "N M"]  # W where there are fewer
    shared_bytes: Float[Array, " W+1"]


def can_probe(problem: Problem) -> bool:
    """Whether cuts alone tell what a piece costs: by the triangle rule, and nothing is pinned."""
    rules = problem.mcm.constraints
    return rules.acyclic and rules.triangle and bool((problem.fixed_chip < 0).all())


def weights_of(contracted: Problem, padded_nodes: int) -> Weights:
    """The weights of each contracted node, padded, on the device.

    Of more shared weights than `_MOST_SHARED` the smallest count as the node's own: never too
    little.
    """
    shared_weights = contracted.is_shared_weight
    shared_count = int(shared_weights.sum())
    numbers = np.full(len(shared_weights), -1)
    numbers[shared_weights] = np.arange(shared_count)
    own_bytes = np.zeros(padded_nodes)
    is_shared = shared_weights[contracted.use_weight]
    node, weight = contracted.use_node[is_shared], contracted.use_weight[is_shared]
    # Rank of each shared weight within its node, largest first.
    order = np.lexsort((-contracted.weight_bytes[weight], node))
    node, weight = node[order], weight[order]
    first = np.searchsorted(node, node)
    rank = np.arange(len(node)) - first
    kept = rank < _MOST_SHARED
    columns = int(rank[kept].max(initial=-1)) + 1
    columns = 1 << (columns - 1).bit_length() if columns else 0  # few sizes, few compilations
    count = 1 << shared_count.bit_length()
    shared = np.full((padded_nodes, columns), count - 1, np.int32)
    shared[node[kept], rank[kept]] = numbers[weight[kept]]
    shared_bytes = np.zeros(count)
    shared_bytes[:shared_count] = contracted.weight_bytes[shared_weights]
    alone = [(contracted.use_node[~is_shared], contracted.use_weight[~is_shared])]
    for v, w in [*alone, (node[~kept], weight[~kept])]:
        np.add.at(own_bytes, v, contracted.weight_bytes[w])
    return Weights(
        jnp.asarray(own_bytes, jnp.float32),
        jnp.asarray(shared),
        jnp.asarray(shared_bytes, jnp.float32),
    )


def chips_of(probed: Probed, order: np.ndarray, lane: int) -> np.ndarray:
    """[N] the chip of each node (padding: of no meaning) in one lane that passes; host arrays."""
    before = np.asarray(probed.before[:, lane])
    cuts, j = [], len(order)
    while j > 0:
        j = int(before[j - 1])
        cuts.append(j)
    chips = np.empty(len(order), np.int64)
    chips[order] = np.searchsorted(cuts[::-1], np.arange(len(order)), side="right") - 1
    return chips


@struct.dataclass
class _Starts:
    """The last cuts, as starts of a piece that grows."""

    code: Int[Array, "W B"]  # more for fewer chips, then for later cuts; -1: none
    reach: Int[Array, "W B"]  # last position that needs something alive across the cut
    seconds: Float[Array, "S W B"]  # of the cut, less all compute before it
    held_bytes: Float[Array, "W B"]  # of what the cut brings, less all weights before it
    shared_bytes: Float[Array, "W B"]  # weights of the piece that other nodes use too
    peak_bytes: Float[Array, "W B"]  # of the piece


@partial(jax.jit, static_argnames="window")
def probe(
    problem: DeviceProblem,
    weights: Weights,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"] | Float[Array, "N 1"],
    limit_s: Float[Array, " B"],
    window: int,
) -> Probed:
    """Whether each order can be cut so that no stage and no link takes longer than its limit.

    Args:
      problem: of contracted nodes (`Problem.contracted`), one that `can_probe`.
      weights: `weights_of` the same blocks.
      orders: topological orders of the nodes, one a column; padding comes last.
      peak_bytes: per node (not position), what a piece with it takes for live activations; the
        largest counts. `exact.peak_bounds` has two that suit.
      limit_s: one for each order.
      window: the most nodes that a piece may have.
    """
    config = problem.config
    chips, (size, batch) = config.num_chips, orders.shape
    kinds = problem.node_s.shape[1]
    rules = config.constraints
    lane, dtype = jnp.arange(batch), problem.node_s.dtype
    last_at, dead_s = _lifetimes(problem, orders)
    # By position from here on, so that the walk reads whole rows.
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
            # A weight that is used here counts for the pieces that start behind its last use.
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

        # The chip of a piece is the one after the fewest that its start takes.
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

        # One chip more than the best start, for as long as there are some.
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


def _with_row(starts: _Starts, row: Array, opened: _Starts) -> _Starts:
    """Puts one cut into the ring."""

    def put(ring: Array, values: Array) -> Array:
        if ring.ndim == 3:
            return ring.at[:, row].set(values)
        return ring.at[row].set(values)

    return jax.tree.map(put, starts, opened)


def _lifetimes(
    problem: DeviceProblem, orders: Int[Array, "N B"]
) -> tuple[Int[Array, "N B"], Float[Array, "N B"]]:
    """Per node the last position that consumes from it (-1: none), and per position the seconds of
    what is not needed after it."""
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
    # Tensors without consumers cross no cut.
    amount = jnp.where(ends_at >= 0, size_s[:, None], 0)
    dead_s = jnp.zeros(orders.shape, size_s.dtype).at[jnp.maximum(ends_at, 0), lane].add(amount)
    return last_at, dead_s


def _made_s(problem: DeviceProblem) -> Float[Array, " N"]:
    """Per node the seconds of what it makes that anything consumes."""
    has_consumer = problem.tensor_edges[1:] > problem.tensor_edges[:-1]
    size_s = jnp.where(has_consumer, problem.tensor_bytes / problem.link_bandwidth, 0)
    return jnp.zeros_like(size_s).at[problem.tensor_producer].add(size_s)
