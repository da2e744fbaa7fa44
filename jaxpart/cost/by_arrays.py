"""The amounts of a batch, by operations on whole arrays: the form for a GPU or TPU.

Every step is one fused kernel over all rows and all candidates, so the depth does not grow with
nodes, edges or tensors. The letters are those of `by_rows.py`, which has the same meaning.

- The chips of a tensor's consumers are a set of bits: a segmented union (`tables.py`).
- A sum per chip compares each row with each chip and reduces; the comparison is never stored. There
  is no scatter: float32 scatter-add into few segments is broken on a GPU with jaxlib 0.10.2 to
  0.11.0 (hundreds of times slower).
- Live activations of a chip are a running sum over its nodes. Nodes are cut into blocks: sums per
  block and chip, a running sum of these over the blocks, and inside a block all pairs of nodes.
- Reachability of chips is squared log2(C) times.
"""

from __future__ import annotations

import operator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.amounts import Amounts
from jaxpart.cost.chip_sets import chip_bit, has_chip, highest_chip, num_words, union
from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.links import in_link_order
from jaxpart.cost.tables import Tables, reduce_segments, take

Sets = UInt32[Array, "K words B"]


def amounts(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Amounts:
    """The amounts of a batch; the arguments are those of `evaluate`."""
    config, tables = problem.config, _tables(problem)
    chips, f = config.num_chips, assignment
    is_real = (jnp.arange(problem.padded_nodes) < problem.num_nodes)[:, None]

    # Which chips each tensor goes to, besides its producer's.
    source = take(f, problem.tensor_producer)
    reached = reduce_segments(
        lambda e: chip_bit(take(f, problem.edge_consumer[e]), chips),
        tables.tensor_edges,
        operator.or_,
        0,
    )
    own = chip_bit(source, chips)
    away = reached & ~own
    is_kept = jnp.any(reached & own != 0, axis=1)
    is_sent = jnp.any(away != 0, axis=1)
    size = problem.tensor_bytes[:, None]

    peak = jnp.zeros((chips, f.shape[1]), size.dtype)
    if config.memory_model == "full":
        peak = _peak_bytes(problem, f, is_kept)
    holders = reduce_segments(
        lambda u: chip_bit(take(f, problem.use_node[u]), chips),
        tables.weight_uses,
        operator.or_,
        0,
    )
    from_chip, to_chip = take(f, problem.edge_producer), take(f, problem.edge_consumer)
    acyclic = jnp.all(from_chip <= to_chip, axis=0)
    is_settled = jnp.all(to_chip - from_chip <= 1, axis=0) | ~acyclic
    bits = jnp.where(is_real[..., None], chip_bit(f, chips), jnp.uint32(0))
    return Amounts(
        compute_s=_compute_s(problem, f),
        received=_sums_of_sets(away, size, chips),
        sent=_sums(jnp.where(is_sent, size, 0), source, chips),
        link=_link_bytes(problem, source, reached, away),
        weights=_sums_of_sets(holders, problem.weight_bytes[:, None], chips),
        peak=peak,
        used=union(bits, 0),
        acyclic=acyclic,
        triangle=acyclic & _triangle(chips, source, away, is_settled),
        colocation=jnp.all(take(f, problem.group_head) == f, axis=0),
        fixed_chips=jnp.all(
            (problem.fixed_chip[:, None] < 0) | (f == problem.fixed_chip[:, None]), axis=0
        ),
    )


def candidate_bytes(problem: DeviceProblem) -> int:
    """Bytes of temporary arrays for each candidate, about."""
    config, nodes = problem.config, problem.padded_nodes
    sets = 4 * num_words(config.num_chips) * (3 * nodes + 2 * config.num_chips)
    live = 4 * (4 * nodes + config.num_chips * -(-nodes // _block(config.num_chips)))
    return sets + live + (nodes * config.num_chips if config.topology == "mesh" else 0)


def _tables(problem: DeviceProblem) -> Tables:
    assert problem.tables is not None
    return problem.tables


def _sums(
    amount: Float[Array, "M B"], chip: Int[Array, "M B"], num_chips: int
) -> Float[Array, "C B"]:
    """Sums per chip of what each row adds to its chip."""
    here = jnp.arange(num_chips, dtype=chip.dtype)[:, None, None]
    return jnp.sum(jnp.where(chip[None] == here, amount[None], 0), axis=1)


def _sums_of_sets(sets: Sets, amount: Float[Array, "K 1"], num_chips: int) -> Float[Array, "C B"]:
    """Sums per chip of what each row adds to every chip of its set."""
    return jnp.sum(jnp.where(has_chip(sets, num_chips), amount[:, None], 0), axis=0)


def _compute_s(problem: DeviceProblem, f: Int[Array, "N B"]) -> Float[Array, "C B"]:
    """Compute seconds of each chip."""
    here = jnp.arange(problem.config.num_chips, dtype=f.dtype)[:, None, None]
    seconds = problem.node_s[:, problem.chip_kind].T[:, :, None]  # [C, N, 1]
    return jnp.sum(jnp.where(f[None] == here, seconds, 0), axis=1)


def _link_bytes(
    problem: DeviceProblem, source: Int[Array, "K B"], reached: Sets, away: Sets
) -> Float[Array, "L B"]:
    """Bytes on each link, in the order of `MCM.links`."""
    config, size = problem.config, problem.tensor_bytes[:, None]
    if config.topology == "host":
        return jnp.zeros((0, source.shape[1]), size.dtype)
    if config.topology == "chain":
        link = jnp.arange(config.num_chips - 1)[:, None, None]
        carries = (source[None] <= link) & (link < highest_chip(reached)[None])
        return jnp.sum(jnp.where(carries, size[None], 0), axis=1)
    present = has_chip(away, config.num_chips)
    present = present.reshape(-1, config.rows, config.cols, source.shape[1])  # [K, rows, cols, B]
    row0, col0 = source // config.cols, source % config.cols
    row0, col0 = row0[:, None, None], col0[:, None, None]
    row = jnp.arange(config.rows, dtype=source.dtype)[None, :, None, None]
    col = jnp.arange(config.cols, dtype=source.dtype)[None, None, :, None]
    in_col = jnp.any(present, axis=1, keepdims=True)
    high_col = jnp.max(jnp.where(in_col, col, col0), axis=2, keepdims=True)
    low_col = jnp.min(jnp.where(in_col, col, col0), axis=2, keepdims=True)
    high_row = jnp.max(jnp.where(present, row, row0), axis=1, keepdims=True)
    low_row = jnp.min(jnp.where(present, row, row0), axis=1, keepdims=True)
    used = [
        (row == row0) & (col >= col0) & (col < jnp.maximum(high_col, col0)),
        (row == row0) & (col < col0) & (col >= jnp.minimum(low_col, col0)),
        (row >= row0) & (row < jnp.maximum(high_row, row0)),
        (row < row0) & (row >= jnp.minimum(low_row, row0)),
    ]
    loads = [jnp.sum(jnp.where(u, size[:, None, None], 0), axis=0) for u in used]
    return in_link_order(config, jnp.stack(loads))


def _block(num_chips: int) -> int:
    """Nodes of a block of `_peak_bytes`; sums per block and chip are fewer with longer blocks."""
    return 32 if num_chips <= 64 else 64


def _peak_bytes(
    problem: DeviceProblem, f: Int[Array, "N B"], is_kept: Bool[Array, "K B"]
) -> Float[Array, "C B"]:
    """Peak bytes of live activations per chip. A chip runs its nodes in number order."""
    tables, chips, batch = _tables(problem), problem.config.num_chips, f.shape[1]
    size = problem.tensor_bytes
    nothing = jnp.int32(-1)

    def local_consumer(e: Array) -> Array:
        consumer = problem.edge_consumer[e]
        is_local = take(f, consumer) == take(f, problem.edge_producer[e])
        return jnp.where(is_local, consumer[:, None], nothing)

    last = reduce_segments(local_consumer, tables.tensor_edges, jnp.maximum, nothing)

    def freed(i: Array) -> Array:
        k = problem.in_edge_tensor[i]
        is_last = take(last, k) == tables.in_edge_consumer[i][:, None]
        return jnp.where(is_last, size[k][:, None], 0)

    def kept(k: Array) -> Array:
        return jnp.where(take(is_kept, k), size[k][:, None], 0)

    change = reduce_segments(kept, tables.node_tensors, operator.add, 0)
    change -= reduce_segments(freed, tables.node_in_edges, operator.add, 0)
    made = reduce_segments(lambda k: size[k][:, None], tables.node_tensors, operator.add, 0)

    block = _block(chips)
    on, change = f.reshape(-1, block, batch), change.reshape(-1, block, batch)
    here = jnp.arange(chips, dtype=f.dtype)[:, None, None]
    of_block = jnp.sum(jnp.where(on[:, None] == here[None], change[:, None], 0), axis=2)
    before = jnp.cumsum(of_block, axis=0) - of_block  # [blocks, C, B]
    live = jnp.take_along_axis(before, on.astype(jnp.int32), axis=1, mode="promise_in_bounds")
    order = jnp.arange(block)
    earlier = (order[:, None] > order[None])[None, :, :, None]
    together = earlier & (on[:, :, None] == on[:, None])  # [blocks, node, earlier node, B]
    live += jnp.sum(jnp.where(together, change[:, None], 0), axis=2)
    live = live.reshape(f.shape) + made
    live = jnp.where((jnp.arange(f.shape[0]) < problem.num_nodes)[:, None], live, 0)
    return jnp.max(jnp.where(f[None] == here, live[None], 0), axis=1)


def _triangle(
    chips: int, source: Int[Array, "K B"], away: Sets, is_settled: Bool[Array, " B"]
) -> Bool[Array, " B"]:
    """Whether no edge a -> b of the chip graph has a longer path from a to b.

    Args:
      chips: C.
      source: [K, B] the producer's chip of each tensor.
      away: the other chips that the tensor goes to.
      is_settled: [B] candidates that need no check: span 1, or dataflow that is not acyclic.

    Returns:
      [B] the verdicts, right for every candidate with acyclic dataflow.
    """

    def compose(first: Sets, then: Sets) -> Sets:
        """The chips that two steps lead to: one of `first`, one of `then`; both [C, words, B]."""
        is_next = has_chip(first, chips)  # [C, C, B]
        return union(jnp.where(is_next[:, :, None], then[None], jnp.uint32(0)), 1)

    def check(_: None) -> Bool[Array, " B"]:
        here = jnp.arange(chips, dtype=source.dtype)[:, None, None, None]
        leaves = source[None, :, None] == here
        adjacent = union(jnp.where(leaves, away[None], jnp.uint32(0)), 1)
        reachable = adjacent
        # A path has C - 1 steps at most, and one of them is in `adjacent`.
        for _step in range(max(0, chips - 3).bit_length()):
            reachable |= compose(reachable, reachable)
        return jnp.all(adjacent & compose(adjacent, reachable) == 0, axis=(0, 1))

    true = jnp.ones_like(is_settled)
    return lax.cond(jnp.all(is_settled), lambda _: true, check, None)
