"""The probe by operations on whole arrays: the form for a GPU or TPU.

A start of a segment depends on earlier starts, so N positions cannot be treated at once. They are
treated in blocks of 8; the depth is N / 8 steps of about eight kernels:

1. Starts before the block: one reduction over the window for all 8 ends.
2. Starts inside the block: which of their segments are within the limit does not depend on the
   starts that are found (except for the kind of chip). It is worked out for all blocks at once,
   before the loop, as one bit for each pair of cuts. In the loop, one kernel walks over the 28
   pairs of a block.

Prefix sums are added in the order of positions, as in `probe.py`, but 32 of them in one kernel.
Both forms therefore compare the same numbers.

Least possible work per order: N * window / 8 starts of about 20 bytes are read, and N * window of
them compared. That is 2.7 GB and 13 G operations for 4,096 orders of BERT-large on `mcm36`, about
1 ms of an H100. Predicted are 12 ms, of which 2,300 launches take 7.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.device import DeviceProblem
from jaxpart.methods.orders.lifetimes import along, lifetimes, previous_of_each
from jaxpart.methods.orders.prefixes import prefixes
from jaxpart.methods.orders.weights import Weights

_BLOCK = 8  # positions of one step; it divides all bucket sizes


@struct.dataclass
class _Starts:
    """X cuts as starts of segments."""

    reach: Int[Array, "X B"]  # last position that consumes a tensor alive across the cut
    seconds: Float[Array, "S X B"]  # the cut's traffic (without overlap) - all compute before it
    held_bytes: Float[Array, "X B"]  # buffers of the cut - all own weights before it


@struct.dataclass
class _Ends:
    """X cuts as ends of segments, each with the node before it."""

    load_s: Float[Array, "S X B"]  # all compute before the cut
    cut_s: Float[Array, "X B"]  # transfer seconds of the tensors that cross it
    held_bytes: Float[Array, "X B"]  # all own weights before it
    peak_bytes: Float[Array, "X B"] | None  # of the node
    shared_bytes: Float[Array, "R X B"]  # of the node's shared weights
    used_at: Int[Array, "R X B"]  # last position before the node that uses each; -1: none


@struct.dataclass
class _Grown:
    """Figures of segments that grow with their last node."""

    shared_bytes: Float[Array, "X B"] | None  # shared weights; None if there are none
    peak_bytes: Float[Array, "X B"] | None  # live activations; None if they do not count

    def joined(self, start: Array, end: _Ends, is_inside: Any = True) -> _Grown:
        """The figures after one node joins.

        Args:
          start: [X, 1] the cuts at which the segments start.
          end: the cut behind the node.
          is_inside: [X, 1] whether the segment starts before the node.
        """
        shared, peak = self.shared_bytes, self.peak_bytes
        if shared is not None:
            for column in range(end.shared_bytes.shape[0]):
                # The weight is new to each segment that starts after its previous use.
                is_new = (end.used_at[column] < start) & is_inside
                shared += jnp.where(is_new, end.shared_bytes[column], 0)
        if peak is not None:
            assert end.peak_bytes is not None
            peak = jnp.where(is_inside, jnp.maximum(peak, end.peak_bytes), peak)
        return _Grown(shared, peak)


def last_starts(
    problem: DeviceProblem,
    weights: Weights,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"],
    limit_s: Float[Array, " B"],
    window: int,
) -> Int[Array, "N B"]:
    """The start of the segment that ends after each position; -1: there is none.

    The arguments are those of `probe`.
    """
    config = problem.config
    size, batch = orders.shape
    radix, chips, kinds = size + 1, config.num_chips, problem.node_s.shape[1]
    starts, ends = _cuts(problem, weights, orders, peak_bytes)
    limit_s = limit_s[None]
    words = _inside_blocks(problem, starts, ends, limit_s, window)
    # Rows in front of the first cut, so that no window starts below 0.
    front = ((0, 0), (window - 1, 0), (0, 0))
    reach, held = jnp.pad(starts.reach, front[1:]), jnp.pad(starts.held_bytes, front[1:])
    seconds = jnp.pad(starts.seconds, front)
    age = jnp.arange(window)[:, None]

    def code_of(best: Int[Array, "X B"], cut: Array) -> Int[Array, "X B"]:
        """The code of a cut as a start (`probe.py`), from the best code of the starts before it."""
        # It needs one chip more than the best start. It is a start if a chip is left.
        left = best // radix - 1
        return jnp.where((best >= 0) & (left > 1), left * radix + cut, -1)

    def kind_of(code: Int[Array, "X B"]) -> Int[Array, "X B"] | None:
        """The kind of chip that a segment runs on, from the code of its start."""
        if kinds == 1:
            return None
        return problem.chip_kind[jnp.clip(chips + 1 - code // radix, 0, chips - 1)]

    def best_before(first: Array, best: Array, grown: _Grown, end: _Ends) -> tuple[Array, ...]:
        """For each end of a block, the best code of the starts up to cut `first`."""
        cut = first + 1 - window + age
        code = code_of(lax.dynamic_slice_in_dim(best, first, window), cut)
        kind = kind_of(code)
        start = _Starts(
            lax.dynamic_slice_in_dim(reach, first, window),
            lax.dynamic_slice_in_dim(seconds, first, window, axis=1),
            lax.dynamic_slice_in_dim(held, first, window),
        )
        capacity = _capacity(problem)
        capacity = capacity[:, None, None] if kind is None else capacity[kind][None]
        found = []
        for r in range(_BLOCK):
            one = _rows(end, r)
            grown = grown.joined(cut, one)
            stage_s = _of_kind(start.seconds, kind) + _of_kind(one.load_s, kind)
            fits = _fits(problem, start, first + r, one, grown, limit_s, stage_s, capacity)[0]
            # An end further on has lost the oldest starts.
            found.append(jnp.where(fits & (age >= r), code, -1))
        return _maxima(found)

    def visit(carry: tuple[Array, Array, _Grown], block: tuple[_Ends, Array]) -> Any:
        first, best, grown = carry
        end, word = block
        rows, codes, masks = list(best_before(first, best, grown, end)), [], []
        for r in range(_BLOCK):
            for s in range(r):
                is_within = (masks[s] >> (r - s - 1)) & 1 == 1
                rows[r] = jnp.maximum(rows[r], jnp.where(is_within, codes[s], -1))
            codes.append(code_of(rows[r], first + r + 1))
            masks.append(_of_kind(word[:, r : r + 1], kind_of(codes[r][None]))[0, 0])
        best = lax.dynamic_update_slice_in_dim(best, jnp.stack(rows), first + window, 0)
        return (first + _BLOCK, best, _with_block(grown, first, end, window)), None

    best = jnp.full((window + size, batch), -1, jnp.int32)
    best = best.at[window - 1].set((chips + 2) * radix)
    carry = (jnp.int32(0), best, _no_growth(ends, (window, batch)))
    _, best, _ = lax.scan(visit, carry, _in_blocks((ends, words)))[0]
    best = best[window:]
    is_found = (best >= 0) & (jnp.arange(size) < problem.num_nodes)[:, None]
    return jnp.where(is_found, best % radix, -1)


def order_bytes(problem: DeviceProblem, weights: Weights, window: int) -> int:
    """Bytes of temporary arrays for each order, about."""
    kinds, shared = problem.node_s.shape[1], weights.shared.shape[1]
    return 4 * ((14 + 4 * kinds + 6 * shared) * problem.padded_nodes + (8 + kinds) * window)


def _cuts(
    problem: DeviceProblem,
    weights: Weights,
    orders: Int[Array, "N B"],
    peak_bytes: Float[Array, "N B"],
) -> tuple[_Starts, _Ends]:
    """All cuts as starts (0 to N) and as ends (1 to N)."""
    config = problem.config
    lives = lifetimes(problem, orders)
    has_peaks = config.constraints.memory and config.memory_model == "full"
    change_s = lives.made_s[orders] - along(lives.dead_s, orders)
    rows = [problem.node_s[:, kind][orders] for kind in range(problem.node_s.shape[1])]
    sums = prefixes(jnp.stack([*rows, weights.own_bytes[orders], change_s], axis=1))
    load_s, held, cut_s = sums[:, :-2].swapaxes(0, 1), sums[:, -2], sums[:, -1]
    reach = lax.cummax(along(lives.last_at, orders))
    columns = weights.shared.shape[1] if config.constraints.memory else 0
    shared = weights.shared[:, :columns]
    used_at = jnp.zeros((*shared.shape, orders.shape[1]), jnp.int32)
    if columns:
        at = jnp.repeat(lives.position, columns, axis=0)
        used_at = previous_of_each(shared.reshape(-1), at, jnp.full_like(at, -1))
        used_at = along(used_at.reshape(*shared.shape, -1), orders)
    shared_bytes = jnp.broadcast_to(weights.shared_bytes[shared][..., None], used_at.shape)
    ends = _Ends(
        load_s=load_s,
        cut_s=cut_s,
        held_bytes=held,
        peak_bytes=along(peak_bytes, orders) if has_peaks else None,
        shared_bytes=along(shared_bytes, orders).swapaxes(0, 1),
        used_at=used_at.swapaxes(0, 1),
    )
    buffers = 2 * cut_s * problem.link_bandwidth if has_peaks else 0.0
    seconds = -load_s if config.overlap else cut_s[None] - load_s
    starts = _Starts(
        reach=_after_zero(reach, -1),
        seconds=_after_zero(seconds, 0, 1),
        held_bytes=_after_zero(buffers - held, 0),
    )
    return starts, ends


def _fits(
    problem: DeviceProblem,
    start: _Starts,
    last: Array,
    end: _Ends,
    grown: _Grown,
    limit_s: Float[Array, "1 B"],
    stage_s: Float[Array, "S X B"],
    capacity: Float[Array, "S X B"],
) -> Bool[Array, "S X B"]:
    """Whether segments are within the limit.

    Args:
      problem: says which rules are on.
      start: their starts.
      last: the position of their last node.
      end: the cut behind it.
      grown: the figures that grow.
      limit_s: of each order, seconds.
      stage_s: their compute on each kind of chip, and without overlap what they receive.
      capacity: bytes of each kind of chip.
    """
    config = problem.config
    if not config.overlap:
        stage_s = stage_s + end.cut_s[None]
    fits = (stage_s <= limit_s[None]) & ((start.reach <= last) & (end.cut_s <= limit_s))[None]
    if config.constraints.memory:
        held = start.held_bytes + end.held_bytes
        if grown.shared_bytes is not None:
            held += grown.shared_bytes
        if grown.peak_bytes is not None:
            held += grown.peak_bytes + 2 * end.cut_s * problem.link_bandwidth
        fits &= held[None] <= capacity
    return fits


def _inside_blocks(
    problem: DeviceProblem,
    starts: _Starts,
    ends: _Ends,
    limit_s: Float[Array, "1 B"],
    window: int,
) -> UInt32[Array, "S N B"]:
    """For cuts 1 to N as starts, which of the next ends of the block are within the limit.

    Bit d stands for the segment of d + 1 nodes. It is worked out for each kind of chip.
    """
    size = ends.cut_s.shape[0]
    start = _Starts(starts.reach[1:], starts.seconds[:, 1:], starts.held_bytes[1:])
    grown = _no_growth(ends, start.held_bytes.shape)
    number = jnp.arange(1, size + 1)[:, None]
    capacity = _capacity(problem)[:, None, None]
    words = jnp.zeros(start.seconds.shape, jnp.uint32)
    for d in range(min(window, _BLOCK - 1)):
        # Row i is the end after d + 1 nodes more. It does not matter what lies behind the last one.
        end = _shifted(ends, d + 1)
        grown = grown.joined(number, end)
        stage_s = start.seconds + end.load_s
        fits = _fits(problem, start, number + d, end, grown, limit_s, stage_s, capacity)
        words |= fits.astype(jnp.uint32) << d
    return words


def _no_growth(ends: _Ends, shape: tuple[int, ...]) -> _Grown:
    """The figures of segments without nodes."""
    zeros = jnp.zeros(shape, ends.held_bytes.dtype)
    has_shared, has_peaks = ends.shared_bytes.shape[0] > 0, ends.peak_bytes is not None
    return _Grown(zeros if has_shared else None, zeros if has_peaks else None)


def _with_block(grown: _Grown, first: Array, end: _Ends, window: int) -> _Grown:
    """The figures of the starts before the next block."""

    def extended(values: Array | None) -> Array | None:
        return None if values is None else jnp.pad(values, ((0, _BLOCK), (0, 0)))

    grown = _Grown(extended(grown.shared_bytes), extended(grown.peak_bytes))
    start = first + 1 - window + jnp.arange(window + _BLOCK)[:, None]
    for r in range(_BLOCK):
        grown = grown.joined(start, _rows(end, r), start <= first + r)
    cut = [None if v is None else v[_BLOCK:] for v in (grown.shared_bytes, grown.peak_bytes)]
    return _Grown(*cut)


def _maxima(rows: list[Int[Array, "W B"]]) -> tuple[Array, ...]:
    """The maximum of each array along its first axis: one kernel that reads all of them."""

    def larger(one: Any, two: Any) -> Any:
        return tuple(map(jnp.maximum, one, two))

    return tuple(lax.reduce(tuple(rows), (jnp.int32(-1),) * len(rows), larger, (0,)))


def _of_kind(values: Array, kind: Int[Array, "X B"] | None) -> Array:
    """[1, X, B] the values of each kind, from [S, X or 1, B]; None: there is only one kind."""
    if kind is None:
        return values
    if values.shape[1] == 1:
        values = jnp.take_along_axis(values[:, 0], kind, axis=0, mode="promise_in_bounds")
        return values[None]
    return jnp.take_along_axis(values, kind[None], axis=0, mode="promise_in_bounds")


def _capacity(problem: DeviceProblem) -> Float[Array, " S"]:
    """Bytes of each kind of chip."""
    capacity = jnp.zeros(problem.node_s.shape[1], problem.capacity_bytes.dtype)
    return capacity.at[problem.chip_kind].set(problem.capacity_bytes)


def _after_zero(values: Array, first: float, axis: int = 0) -> Array:
    """Values at cuts 1 to N, and one for cut 0 in front of them."""
    zero = jnp.full_like(lax.slice_in_dim(values, 0, 1, axis=axis), first)
    return jnp.concatenate([zero, values], axis=axis)


def _rows(end: _Ends, r: int) -> _Ends:
    """One end of a block, with an axis X of length 1."""
    return jax.tree.map(lambda values: values[..., r : r + 1, :], end)


def _shifted(ends: _Ends, rows: int) -> _Ends:
    """Each row becomes the end `rows` later; zeros come in behind."""

    def shifted(values: Array) -> Array:
        return jnp.pad(values[..., rows:, :], (*((0, 0),) * (values.ndim - 2), (0, rows), (0, 0)))

    return jax.tree.map(shifted, ends)


def _in_blocks(tree: Any) -> Any:
    """[..., N, B] as [blocks, ..., 8, B]."""

    def parted(values: Array) -> Array:
        *outer, size, batch = values.shape
        blocks = values.reshape(*outer, size // _BLOCK, _BLOCK, batch)
        return jnp.moveaxis(blocks, -3, 0)

    return jax.tree.map(parted, tree)
