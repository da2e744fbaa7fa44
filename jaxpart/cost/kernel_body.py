"""What one program of the kernel does: it walks the nodes for one tile of candidates.

Rows are [1, T] int32, one number for each of T candidates. Chips are lanes in groups of at most 32,
one group for each word of a set of chips; an array over chips is a list of [lanes, T], one for each
group. A set of chips is a list of rows, one for each word. Nothing is scattered: a sum per chip
adds to all lanes, and zero to the lanes of other chips.

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

Row = Any  # [1, T]
Set = list[Row]  # one row for each word
Lanes = list[Any]  # [lanes, T] for each group of chips


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


class Shape(NamedTuple):
    """The static shape of a program."""

    num_chips: int
    group_lanes: tuple[int, ...]  # lanes of each group of chips
    planes: int  # links of each chip: 0 with a host, 1 on a chain, 4 on a mesh
    kinds: int  # S
    counts_live: bool  # whether live activations are counted
    has_barrier: bool  # whether a thread sees a row of another one only behind a barrier
    tile: int  # T

    @property
    def is_chain(self) -> bool:
        """Whether links join neighbours alone, in one direction."""
        return self.planes == 1

    @property
    def words(self) -> range:
        """The words of a set; of each, the chips are one group of lanes."""
        return range(len(self.group_lanes))

    @property
    def first_lane(self) -> list[int]:
        """The first lane of each group, in arrays of all lanes."""
        return [sum(self.group_lanes[:g]) for g in self.words]


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
    # The flags: the lowest step along an edge, then rows that are 0 where a rule holds.
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
        own = _bits(shape, chip)
        here = [chip == lanes for lanes in chips]
        masks = [jnp.where(h, -1, 0) for h in here]
        here = [jnp.where(h, 1.0, 0.0) for h in here]
        place = _Place(chip, own, here, masks, _below(shape, chip), _open(links, own))
        state, made, kept = _settle(shape, refs, v, place, state)
        seconds = _seconds(shape, refs, v, own)
        head, fixed = _row(refs.labels, refs.group_head[v]), refs.fixed_chip[v]
        state = state._replace(
            compute_s=_added(state.compute_s, here, seconds),
            used=_union(state.used, own),
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
            refs.node_in_edges[v], refs.node_in_edges[v + 1], free, _zeros(shape, jnp.float32)
        )
        # A peak is no lower than what lives now, so a lane that the node is not on does not change.
        peak = map(jnp.maximum, state.peak, _added(state.live, here, made))
        return state._replace(peak=list(peak), live=_added(state.live, here, kept - ends))

    nothing = _State(
        *(_no_lanes(shape) for _ in range(5)),
        links=[_no_lanes(shape) for _ in range(shape.planes)],
        sends=[
            [jnp.zeros((n, shape.tile), jnp.int32) for _ in shape.words] for n in shape.group_lanes
        ],
        used=_no_chips(shape),
        lowest=_zeros(shape, jnp.int32),
        apart=_zeros(shape, jnp.int32),
        misplaced=_zeros(shape, jnp.int32),
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
                _union(tensor.reached, _bits(shape, target)),
                jnp.where(target == chip, consumer, tensor.last),
                jnp.maximum(tensor.highest, target),
                jnp.minimum(tensor.lowest, target - chip),
            )

        start = _Tensor(_no_chips(shape), _zeros(shape, jnp.int32) - 1, chip, state.lowest)
        first, end = refs.tensor_edges[k], refs.tensor_edges[k + 1]
        reached, last, highest, lowest = lax.fori_loop(first, end, reach, start)
        size = refs.tensor_bytes[k]
        if shape.counts_live:
            refs.last[pl.ds(k, 1), :] = last
        away = _less(reached, own)
        carries = [
            [jnp.where(_meets(away, targets), size, 0.0) for targets in plane]
            for plane in place.targets
        ]
        if shape.is_chain:
            carries = [_of_set(shape, _less(_below(shape, highest), place.below), size)]
        state = state._replace(
            sent=_added(state.sent, here, jnp.where(_any(away), size, 0.0)),
            received=_sums(state.received, _of_set(shape, away, size)),
            links=[_sums(*plane) for plane in zip(state.links, carries, strict=True)],
            sends=[
                [s | (mask & a) for s, a in zip(sets, away, strict=True)]
                for sets, mask in zip(state.sends, place.masks, strict=True)
            ],
            lowest=lowest,
        )
        return state, made + size, kept + jnp.where(last >= 0, size, 0.0)

    first, end = refs.node_tensors[v], refs.node_tensors[v + 1]
    start = (state, jnp.float32(0), _zeros(shape, jnp.float32))
    return lax.fori_loop(first, end, settle, start)


def _seconds(shape: Shape, refs: Refs, v: Any, own: Set) -> Any:
    """Seconds of node v, on the kind of its chip: a number if there is one kind, else [1, T]."""
    if shape.kinds == 1:
        return refs.node_s[v]

    def choose(s: Any, seconds: Row) -> Row:
        kind = [refs.kind_sets[s * len(shape.words) + w] for w in shape.words]
        return jnp.where(_meets(own, kind), refs.node_s[v * shape.kinds + s], seconds)

    return lax.fori_loop(0, shape.kinds, choose, _zeros(shape, jnp.float32))


def _weight_bytes(shape: Shape, refs: Refs) -> Lanes:
    """Bytes of weights per chip. Every chip with a consumer of a weight holds one copy."""

    def visit(w: Any, held: Lanes) -> Lanes:
        def hold(u: Any, holders: Set) -> Set:
            return _union(holders, _bits(shape, _row(refs.labels, refs.use_node[u])))

        first, end = refs.weight_uses[w], refs.weight_uses[w + 1]
        holders = lax.fori_loop(first, end, hold, _no_chips(shape))
        return _sums(held, _of_set(shape, holders, refs.weight_bytes[w]))

    return lax.fori_loop(0, refs.counts[1], visit, _no_lanes(shape))


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

    found = _zeros(shape, jnp.int32)
    for g in reversed(shape.words):
        end = min(shape.num_chips, (g + 1) * WORD)

        def visit(step: Any, found: Row, g: int = g, end: int = end) -> Row:
            chip = end - 1 - step
            _wait(shape)
            direct = [_row(refs.sends, place(chip, g, w)) for w in shape.words]
            beyond = _no_chips(shape)
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


def _zeros(shape: Shape, dtype: Any) -> Row:
    return jnp.zeros((1, shape.tile), dtype)


def _no_chips(shape: Shape) -> Set:
    return [_zeros(shape, jnp.int32) for _ in shape.words]


def _no_lanes(shape: Shape) -> Lanes:
    return [jnp.zeros((lanes, shape.tile), jnp.float32) for lanes in shape.group_lanes]


def _bits(shape: Shape, chip: Row) -> Set:
    """The set that holds only the given chip."""
    bit = jnp.left_shift(1, chip & (WORD - 1))
    if len(shape.words) == 1:
        return [bit]
    return [jnp.where(chip >> 5 == w, bit, 0) for w in shape.words]


def _below(shape: Shape, chip: Row) -> Set:
    """The chips below a chip."""
    rest = jnp.left_shift(1, chip & (WORD - 1)) - 1
    if len(shape.words) == 1:
        return [rest]
    word = chip >> 5
    return [jnp.where(word == w, rest, jnp.where(word > w, -1, 0)) for w in shape.words]


def _of_set(shape: Shape, chips: Set, amount: Any) -> Lanes:
    """An amount on the lanes of a set of chips, 0 on the others."""
    numbers = [lax.broadcasted_iota(jnp.int32, (lanes, 1), 0) for lanes in shape.group_lanes]
    return [
        jnp.where((word & jnp.left_shift(1, number)) != 0, amount, 0.0)
        for word, number in zip(chips, numbers, strict=True)
    ]


def _link_sets(shape: Shape, refs: Refs, plane: int, end: int) -> list[Set]:
    """One of the two sets of the links of a plane, for each group of chips."""
    column = (2 * plane + end) * len(shape.words)
    groups = [pl.ds(shape.first_lane[g], shape.group_lanes[g]) for g in shape.words]
    return [[refs.links[rows, pl.ds(column + w, 1)] for w in shape.words] for rows in groups]


def _open(links: _Links, own: Set) -> list[list[Set]]:
    """The targets of links that tensors from a chip may load; no targets for the others."""
    return [
        [
            [jnp.where(_meets(own, sources), word, 0) for word in targets]
            for sources, targets in zip(*plane, strict=True)
        ]
        for plane in zip(*links, strict=True)
    ]


def _union(one: Set, other: Set) -> Set:
    return [a | b for a, b in zip(one, other, strict=True)]


def _less(one: Set, other: Set) -> Set:
    return [a & ~b for a, b in zip(one, other, strict=True)]


def _meets(one: Set, other: Set) -> Any:
    """Whether two sets have a chip in common."""
    return _any([a & b for a, b in zip(one, other, strict=True)])


def _any(words: Set) -> Any:
    """Whether a set has a chip."""
    whole = words[0]
    for word in words[1:]:
        whole = whole | word
    return whole != 0


def _added(sums: Lanes, here: Lanes, amount: Any) -> Lanes:
    """Sums per chip, with an amount more where `here` is 1."""
    return [s + h * amount for s, h in zip(sums, here, strict=True)]


def _sums(one: Lanes, other: Lanes) -> Lanes:
    return [a + b for a, b in zip(one, other, strict=True)]
