"""Does an order of the nodes, cut greedily, keep within a bottleneck? One pass, for a whole batch.

The probe of chains-on-chains partitioning (Pinar and Aykanat, J. Parallel Distrib. Comput. 64,
2004, section 3): every chip takes the longest piece that keeps within the limit, and the order
passes if the chips suffice. It takes the place of the dynamic program of `slicing`, whose work per
order is N * window * C, where many orders are compared with one bottleneck.

Under the triangle rule a piece receives and sends what its two cuts carry. Compute, weights and the
peak of live activations grow with the piece, so that the longest is found by walking on until one
of them is too large and going back to the last cut that was allowed. What its closing cut carries
does not grow, and a cut that nothing may follow closely can be a trap, so a probe may fail where
some cuts would pass: `slicing` is exact, this is a screen. Where it passes, the cuts are there.

Floor per order: N positions, for each an order entry (4 bytes) and the figures of its node (about
20 bytes of a table that stays in cache), and E consumers for what crosses the cuts.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpart.device import DeviceProblem
from jaxpart.problem import Problem

# Shared weights of one node that are counted once per chip.
_MOST_SHARED = 16


@struct.dataclass
class Probed:
    """What B probes found."""

    passes: Bool[Array, " B"]
    covered: Int[Array, " B"]  # nodes that the chips took within the limit; all where it passes
    starts: Int[Array, "N B"]  # its values are the cuts: where pieces start; 0 for padding


@struct.dataclass
class _Piece:
    """The nodes from a cut on, per lane: what grows with them, and what the cut itself carries."""

    start: Int[Array, " B"]
    seconds: Float[Array, "S B"]
    weight_bytes: Float[Array, " B"]
    peak_bytes: Float[Array, " B"]
    cut_s: Float[Array, " B"]
    reach: Int[Array, " B"]  # last position that needs something alive across the cut

    def choose(self, condition: Bool[Array, " B"], other: _Piece) -> _Piece:
        """This piece where the condition holds, else the other."""
        return jax.tree.map(partial(jnp.where, condition), self, other)


@struct.dataclass
class Weights:
    """The weights of each node: the bytes that it alone uses, and the numbers of the others."""

    own_bytes: Float[Array, " N"]
    shared: Int[Array, "N M"]  # W where there are fewer
    shared_bytes: Float[Array, " W+1"]


def can_probe(problem: Problem) -> bool:
    """Whether cuts alone tell what a piece costs: by the triangle rule, and nothing is pinned."""
    rules = problem.mcm.constraints
    return rules.acyclic and rules.triangle and bool((problem.pin < 0).all())


def weights_of(blocks: Problem, padded_nodes: int) -> Weights:
    """The weights of each block, padded, on the device.

    Of more shared weights than `_MOST_SHARED` the smallest count as the node's own: never too
    little.
    """
    uses = np.bincount(blocks.use_weight, minlength=len(blocks.weight_bytes))
    numbers = np.full(len(uses), -1)
    numbers[uses > 1] = np.arange((uses > 1).sum())
    own_bytes = np.zeros(padded_nodes)
    is_shared = uses[blocks.use_weight] > 1
    node, weight = blocks.use_node[is_shared], blocks.use_weight[is_shared]
    # Rank of each shared weight within its node, largest first.
    order = np.lexsort((-blocks.weight_bytes[weight], node))
    node, weight = node[order], weight[order]
    first = np.searchsorted(node, node)
    rank = np.arange(len(node)) - first
    kept = rank < _MOST_SHARED
    columns = int(rank[kept].max(initial=-1)) + 1
    columns = 1 << (columns - 1).bit_length() if columns else 0  # few sizes, few compilations
    count = 1 << int((uses > 1).sum()).bit_length()
    shared = np.full((padded_nodes, columns), count - 1, np.int32)
    shared[node[kept], rank[kept]] = numbers[weight[kept]]
    shared_bytes = np.zeros(count)
    shared_bytes[: (uses > 1).sum()] = blocks.weight_bytes[uses > 1]
    alone = [(blocks.use_node[~is_shared], blocks.use_weight[~is_shared])]
    for v, w in [*alone, (node[~kept], weight[~kept])]:
        np.add.at(own_bytes, v, blocks.weight_bytes[w])
    return Weights(
        jnp.asarray(own_bytes, jnp.float32),
        jnp.asarray(shared),
        jnp.asarray(shared_bytes, jnp.float32),
    )


def chips_of(probed: Probed, order: np.ndarray, lane: int) -> np.ndarray:
    """[N] the chip of each node (padding: of no meaning) in one lane that passes; host arrays."""
    # A piece starts at most where its first position was walked: the cuts are what starts there.
    cuts = np.unique(np.asarray(probed.starts[:, lane]))
    chips = np.empty(len(order), np.int64)
    chips[order] = np.searchsorted(cuts, np.arange(len(order)), side="right") - 1
    return chips


@jax.jit
def probe(
    problem: DeviceProblem,
    weights: Weights,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"] | Float[Array, "N 1"],
    limit_s: Float[Array, " B"],
) -> Probed:
    """Cuts each order greedily so that no stage and no link takes longer than its limit.

    Args:
      problem: of blocks (`Problem.contracted`), one that `can_probe`.
      weights: `weights_of` the same blocks.
      orders: topological orders of the nodes, one a column; padding comes last.
      peak_bytes: per node (not position), what a piece with it takes for live activations; the
        largest counts. `exact.peak_bounds` has two that suit.
      limit_s: one for each order.
    """
    switches = problem.switches
    chips, batch = switches.num_chips, orders.shape[1]
    kinds = problem.node_s.shape[1]
    lane, dtype = jnp.arange(batch), problem.node_s.dtype
    last_at, dead_s = _lifetimes(problem, orders)
    # By position from here on, so that the walk reads whole rows.
    last_at = jnp.take_along_axis(last_at, orders, axis=0)
    change_s = _made_s(problem)[orders] - dead_s
    seconds = jnp.moveaxis(problem.node_s[orders], -1, 0)
    own_bytes = weights.own_bytes[orders]
    peaks = jnp.take_along_axis(jnp.broadcast_to(peak_bytes, orders.shape), orders, axis=0)

    def spent(piece: _Piece, chip: Array) -> Float[Array, " B"]:
        if kinds == 1:
            return piece.seconds[0]
        return piece.seconds[problem.chip_kind[jnp.minimum(chip, chips - 1)], lane]

    def keeps(piece: _Piece, chip: Array, sent_s: Array | float) -> Bool[Array, " B"]:
        """Whether the piece fits on the chip if its closing cut carries `sent_s`."""
        busy_s = spent(piece, chip)
        if not switches.overlap:
            busy_s = busy_s + piece.cut_s + sent_s
        fits = (busy_s <= limit_s) & (sent_s <= limit_s) & (chip < chips)
        if switches.constraints.memory:
            held = piece.weight_bytes
            if switches.memory_model == "full":
                held = held + piece.peak_bytes
                held += 2 * (piece.cut_s + sent_s) * problem.link_bandwidth
            fits &= held <= problem.capacity_bytes[jnp.minimum(chip, chips - 1)]
        return fits

    def visit(p, carry):
        piece, rest, chip, is_alive, covered, starts, cut_s, reach, used_at = carry
        added_s, peak = seconds[:, p], peaks[p]
        piece_bytes = rest_bytes = own_bytes[p]
        for column in range(weights.shared.shape[1]):
            w = weights.shared[orders[p], column]
            before, size = used_at[w, lane], weights.shared_bytes[w]
            piece_bytes = piece_bytes + jnp.where(before < piece.start, size, 0)
            rest_bytes = rest_bytes + jnp.where(before < rest.start, size, 0)
            used_at = used_at.at[w, lane].set(p)
        piece = _grown(piece, added_s, piece_bytes, peak)
        rest = _grown(rest, added_s, rest_bytes, peak)
        # Too large: close at the last cut that was allowed, and go on with the rest.
        is_full = ~keeps(piece, chip, 0.0) & (rest.start > piece.start) & is_alive
        chip = jnp.where(is_full, chip + 1, chip)
        piece = rest.choose(is_full, piece)
        is_alive &= keeps(piece, chip, 0.0)
        covered = jnp.where(is_alive, p + 1, covered)
        starts = starts.at[p].set(piece.start)

        cut_s = jnp.maximum(cut_s + change_s[p], 0)
        reach = jnp.maximum(reach, last_at[p])
        is_allowed = keeps(piece, chip, cut_s) & (piece.reach <= p)
        opened = _opened(jnp.full_like(piece.start, p + 1), cut_s, reach, kinds)
        rest = opened.choose(is_allowed, rest)
        return piece, rest, chip, is_alive, covered, starts, cut_s, reach, used_at

    zeros, none = jnp.zeros((batch,), dtype), jnp.full((batch,), -1, jnp.int32)
    start = _opened(jnp.zeros((batch,), jnp.int32), zeros, none, kinds)
    carry = (
        *(start, start, none + 1, jnp.ones((batch,), bool), none + 1),
        *(jnp.zeros(orders.shape, jnp.int32), zeros, none),
        jnp.full((weights.shared_bytes.shape[0], batch), -1, jnp.int32),
    )
    _, rest, _, is_alive, covered, starts, *_ = lax.fori_loop(0, problem.num_nodes, visit, carry)
    # The last cut closes the last piece; where it may not, one more chip takes the end.
    is_closed = rest.start == problem.num_nodes
    covered = jnp.where(is_closed, covered, jnp.minimum(covered, rest.start))
    return Probed(is_alive & is_closed, covered, starts)


def _opened(start: Array, cut_s: Array, reach: Array, kinds: int) -> _Piece:
    zeros = jnp.zeros_like(cut_s)
    seconds = jnp.zeros((kinds, *cut_s.shape), cut_s.dtype)
    return _Piece(start, seconds, zeros, zeros, cut_s, reach)


def _grown(piece: _Piece, seconds: Array, weight_bytes: Array, peak_bytes: Array) -> _Piece:
    return piece.replace(  # pyright: ignore[reportAttributeAccessIssue]
        seconds=piece.seconds + seconds,
        weight_bytes=piece.weight_bytes + weight_bytes,
        peak_bytes=jnp.maximum(piece.peak_bytes, peak_bytes),
    )


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
