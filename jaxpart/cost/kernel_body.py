"""What one program of the kernel does: it walks the nodes for one tile of candidates.

The nodes are walked once, in number order. At a node, the tensors that it makes are settled: which
chips they go to and which consumer on the node's own chip is the last. A consumer has a higher
number than its producer, so at a node all tensors that end there are settled, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxpart.cost.chip_sets import WORD
from jaxpart.cost.kernel_sets import (
    Lanes,
    Row,
    Set,
    Shape,
    added,
    below,
    bits,
    has_any,
    less,
    meets,
    no_chips,
    no_lanes,
    of_set,
    sums,
    union,
    zeros,
)


class Refs(NamedTuple):
    """The memory of one program: tables (scalars, but for `links`), the tile, and what is written.

    The letters are those of `DeviceProblem`.
    """

    counts: Any  # nodes and weights
    node_s: Any  # [N * S]
    kind_sets: Any  # [S * words] the chips of each kind
    fixed_chip: Any
    group_head: Any
    node_tensors: Any
    tensor_edges: Any
    tensor_bytes: Any
    edge_consumer: Any
    node_in_edges: Any
    in_edge_tensor: Any
    weight_uses: Any
    weight_bytes: Any
    use_node: Any
    links: Any  # [lanes, planes * 2 * words] of each chip of a mesh, two sets a plane: `link_sets`
    labels: Any  # [N, T] the tile; int8 on a GPU
    sums: Any  # [5 + planes, lanes, T] out: compute_s, received, sent, weights, peak, links
    flags: Any  # [4 + words, T] out: see `walk`
    last: Any  # [K, T] between: the last consumer of each tensor on its producer's chip, or -1
    sends: Any  # [words * lanes, T] between: the other chips that each chip sends to


class _State(NamedTuple):
    compute_s: Lanes
    live: Lanes
    peak: Lanes
    sent: Lanes
    received: Lanes
    links: list[Lanes]  # for each plane
    sends: list[Set]  # for each group, words of [lanes, T]
    used: Set
    lowest: Row  # of chip steps along edges
    apart: Row  # not 0: a colocated node is elsewhere
    misplaced: Row  # not 0: a fixed chip is not kept


class _Links(NamedTuple):
    """Of each plane and group of a mesh, words [lanes, 1] of two sets of chips: `link_sets`."""

    sources: list[list[Set]]
    targets: list[list[Set]]


class _Place(NamedTuple):
    """Where a node is."""

    chip: Row
    own: Set  # that chip alone
    here: Lanes  # 1 on the lane of that chip, else 0
    masks: Lanes  # likewise, all bits or none
    below: Set  # the chips before that chip
    targets: list[list[Set]]  # those of `_Links`, of links that tensors made there may load


class _Tensor(NamedTuple):
    reached: Set
    last: Row
    highest: Row  # the highest chip, the producer's included
    lowest: Row


def walk(shape: Shape, refs: Refs) -> None:
    """Computes the amounts of one tile."""
    state = _walk_nodes(shape, refs)
    weights = _weight_bytes(shape, refs)
    for i, lanes in enumerate(
        [state.compute_s, state.received, state.sent, weights, state.peak, *state.links]
    ):
        for g in shape.words:
            refs.sums[i, pl.ds(shape.first_lane[g], shape.group_lanes[g]), :] = lanes[g]
    detours = _detours(shape, refs, state.sends)
    # The flags: the lowest step along an edge, then rows that are 0 where a rule holds, and the
    # chips in use.
    for i, row in enumerate([state.lowest, detours, state.apart, state.misplaced, *state.used]):
        refs.flags[pl.ds(i, 1), :] = row


def _walk_nodes(shape: Shape, refs: Refs) -> _State:
    chips = [
        lax.broadcasted_iota(jnp.int32, (lanes, 1), 0) + g * WORD
        for g, lanes in enumerate(shape.group_lanes)
    ]

    planes = range(0 if shape.is_chain else shape.planes)
    links = _Links(*([_link_sets(shape, refs, p, end) for p in planes] for end in (0, 1)))

    def visit(v: Any, state: _State) -> _State:
        chip = _row(refs.labels, v)
        own = bits(shape, chip)
        here = [chip == lanes for lanes in chips]
        masks = [jnp.where(h, -1, 0) for h in here]
        here = [jnp.where(h, 1.0, 0.0) for h in here]
        place = _Place(chip, own, here, masks, below(shape, chip), _open(links, own))
        state, made, kept = _settle(shape, refs, v, place, state)
        seconds = _seconds(shape, refs, v, own)
        head, fixed = _row(refs.labels, refs.group_head[v]), refs.fixed_chip[v]
        state = state._replace(
            compute_s=added(state.compute_s, here, seconds),
            used=union(state.used, own),
            apart=state.apart | (chip ^ head),
            misplaced=state.misplaced | jnp.where(fixed < 0, 0, chip ^ fixed),
        )
        if not shape.counts_live:
            return state
        _wait(shape)

        def free(i: Any, freed: Row) -> Row:
            k = refs.in_edge_tensor[i]
            return freed + jnp.where(_row(refs.last, k) == v, refs.tensor_bytes[k], 0.0)

        ends = lax.fori_loop(
            refs.node_in_edges[v], refs.node_in_edges[v + 1], free, zeros(shape, jnp.float32)
        )
        # A peak is no lower than what lives now, so a lane that the node is not on does not change.
        peak = map(jnp.maximum, state.peak, added(state.live, here, made))
        return state._replace(peak=list(peak), live=added(state.live, here, kept - ends))

    nothing = _State(
        *(no_lanes(shape) for _ in range(5)),
        links=[no_lanes(shape) for _ in range(shape.planes)],
        sends=[
            [jnp.zeros((n, shape.tile), jnp.int32) for _ in shape.words] for n in shape.group_lanes
        ],
        used=no_chips(shape),
        lowest=zeros(shape, jnp.int32),
        apart=zeros(shape, jnp.int32),
        misplaced=zeros(shape, jnp.int32),
    )
    return lax.fori_loop(0, refs.counts[0], visit, nothing)


def _settle(
    shape: Shape, refs: Refs, v: Any, place: _Place, state: _State
) -> tuple[_State, Any, Row]:
    """Settles the tensors that node v makes.

    Returns:
      The state; bytes that v makes; and those of them with a consumer on its chip [1, T].
    """
    chip, own, here = place.chip, place.own, place.here

    def settle(k: Any, carry: tuple[_State, Any, Row]) -> tuple[_State, Any, Row]:
        state, made, kept = carry

        def reach(e: Any, tensor: _Tensor) -> _Tensor:
            consumer = refs.edge_consumer[e]
            target = _row(refs.labels, consumer)
            return _Tensor(
                union(tensor.reached, bits(shape, target)),
                jnp.where(target == chip, consumer, tensor.last),
                jnp.maximum(tensor.highest, target),
                jnp.minimum(tensor.lowest, target - chip),
            )

        start = _Tensor(no_chips(shape), zeros(shape, jnp.int32) - 1, chip, state.lowest)
        first, end = refs.tensor_edges[k], refs.tensor_edges[k + 1]
        reached, last, highest, lowest = lax.fori_loop(first, end, reach, start)
        size = refs.tensor_bytes[k]
        if shape.counts_live:
            refs.last[pl.ds(k, 1), :] = last
        away = less(reached, own)
        carries = [
            [jnp.where(meets(away, targets), size, 0.0) for targets in plane]
            for plane in place.targets
        ]
        if shape.is_chain:
            carries = [of_set(shape, less(below(shape, highest), place.below), size)]
        state = state._replace(
            sent=added(state.sent, here, jnp.where(has_any(away), size, 0.0)),
            received=sums(state.received, of_set(shape, away, size)),
            links=[sums(*plane) for plane in zip(state.links, carries, strict=True)],
            sends=[
                [s | (mask & a) for s, a in zip(sets, away, strict=True)]
                for sets, mask in zip(state.sends, place.masks, strict=True)
            ],
            lowest=lowest,
        )
        return state, made + size, kept + jnp.where(last >= 0, size, 0.0)

    first, end = refs.node_tensors[v], refs.node_tensors[v + 1]
    start = (state, jnp.float32(0), zeros(shape, jnp.float32))
    return lax.fori_loop(first, end, settle, start)


def _seconds(shape: Shape, refs: Refs, v: Any, own: Set) -> Any:
    """Seconds of node v, on the kind of its chip: a number if there is one kind, else [1, T]."""
    if shape.kinds == 1:
        return refs.node_s[v]

    def choose(s: Any, seconds: Row) -> Row:
        kind = [refs.kind_sets[s * len(shape.words) + w] for w in shape.words]
        return jnp.where(meets(own, kind), refs.node_s[v * shape.kinds + s], seconds)

    return lax.fori_loop(0, shape.kinds, choose, zeros(shape, jnp.float32))


def _weight_bytes(shape: Shape, refs: Refs) -> Lanes:
    """Bytes of weights per chip. Every chip with a consumer of a weight holds one copy."""

    def visit(w: Any, held: Lanes) -> Lanes:
        def hold(u: Any, holders: Set) -> Set:
            return union(holders, bits(shape, _row(refs.labels, refs.use_node[u])))

        first, end = refs.weight_uses[w], refs.weight_uses[w + 1]
        holders = lax.fori_loop(first, end, hold, no_chips(shape))
        return sums(held, of_set(shape, holders, refs.weight_bytes[w]))

    return lax.fori_loop(0, refs.counts[1], visit, no_lanes(shape))


def _detours(shape: Shape, refs: Refs, sends: list[Set]) -> Row:
    """Not 0 where a chip sends to a chip that it also reaches through others.

    Chips are visited from the last to the first, and the sets that they reach replace those that
    they send to. It is right for candidates with acyclic dataflow.
    """
    total = sum(shape.group_lanes)
    for g in shape.words:
        for w in shape.words:
            rows = pl.ds(w * total + shape.first_lane[g], shape.group_lanes[g])
            refs.sends[rows, :] = sends[g][w]

    def place(c: Any, g: int, w: int) -> Any:
        """Where word w of the set of chip c in group g stands."""
        return w * total + shape.first_lane[g] + c - g * WORD

    found = zeros(shape, jnp.int32)
    for g in reversed(shape.words):
        end = min(shape.num_chips, (g + 1) * WORD)

        def visit(step: Any, found: Row, g: int = g, end: int = end) -> Row:
            chip = end - 1 - step
            _wait(shape)
            direct = [_row(refs.sends, place(chip, g, w)) for w in shape.words]
            beyond = no_chips(shape)
            for h in shape.words[g:]:

                def join(c: Any, beyond: Set, h: int = h) -> Set:
                    is_next = ((direct[h] >> (c - h * WORD)) & 1) != 0
                    sets = [_row(refs.sends, place(c, h, w)) for w in shape.words]
                    return [b | jnp.where(is_next, s, 0) for b, s in zip(beyond, sets, strict=True)]

                last = min(shape.num_chips, (h + 1) * WORD)
                beyond = lax.fori_loop(jnp.maximum(chip + 1, h * WORD), last, join, beyond)
            _wait(shape)  # until all threads have read what is replaced now
            for w in shape.words:
                refs.sends[pl.ds(place(chip, g, w), 1), :] = direct[w] | beyond[w]
                found |= direct[w] & beyond[w]
            return found

        found = lax.fori_loop(0, end - g * WORD, visit, found)
    return found


def _wait(shape: Shape) -> None:
    """Rows that threads of this program have stored are seen by all its threads from here on."""
    if shape.has_barrier:
        plgpu.debug_barrier()


def _row(ref: Any, i: Any) -> Row:
    return ref[pl.ds(i, 1), :].astype(jnp.int32)


def _link_sets(shape: Shape, refs: Refs, plane: int, end: int) -> list[Set]:
    """One of the two sets of the links of a plane, for each group of chips."""
    column = (2 * plane + end) * len(shape.words)
    groups = [pl.ds(shape.first_lane[g], shape.group_lanes[g]) for g in shape.words]
    return [[refs.links[rows, pl.ds(column + w, 1)] for w in shape.words] for rows in groups]


def _open(links: _Links, own: Set) -> list[list[Set]]:
    """The targets of links that tensors from a chip may load; no targets for the others."""
    return [
        [
            [jnp.where(meets(own, sources), word, 0) for word in targets]
            for sources, targets in zip(*plane, strict=True)
        ]
        for plane in zip(*links, strict=True)
    ]
