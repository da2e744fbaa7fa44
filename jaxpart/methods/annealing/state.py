"""The data of annealing moves: which chips may feed which, and the load of each chip.

How moves keep the triangle rule:

1. A chip graph that keeps the triangle rule still keeps it after it loses edges, because it then
   has fewer paths.
2. Take one fixed chip graph that is its own transitive reduction. A move that keeps every edge of
   the model within this chip graph therefore keeps the triangle rule.
3. This chip graph is the row of chips 0 -> 1 -> 2 ..., or the chip graph of the start with edges
   added as long as it stays its own transitive reduction (`chip_graph_of`).

With the triangle rule off, every chip may feed every later chip. With acyclic dataflow off, every
chip may feed every other chip.
"""

from __future__ import annotations

import dataclasses
import operator

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, UInt32
from numpy.typing import NDArray

from jaxpart.cost.device import DeviceProblem, Form, lower
from jaxpart.cost.evaluate import Costs
from jaxpart.cost.tables import reduce_segments, take
from jaxpart.errors import InputError
from jaxpart.methods.annealing.neighbours import Neighbours, neighbours_of
from jaxpart.methods.orders.weights import Weights, weights_of
from jaxpart.problem.problem import IntArray, Problem

BoolMatrix = NDArray[np.bool_]
WORD = 32  # bits in a word of a chip set
# Most edges that are tried when a chip graph is enlarged.
_MOST_TRIED = 2000


@struct.dataclass
class Moves:
    """A problem prepared for moves: its contracted nodes, and its chip graph as sets of chips."""

    nodes: DeviceProblem  # for `evaluate`, which decides validity and costs
    contracted: DeviceProblem  # its nodes are the ones that move
    weights: Weights  # of the contracted nodes
    # Transfer seconds of each contracted node if all its consumers are on another chip.
    sent_s: Float[Array, " N"]
    after: UInt32[Array, "words C"]  # chips that chip c may feed, itself included
    before: UInt32[Array, "words C"]  # chips that may feed chip c, itself included
    is_row: bool = struct.field(pytree_node=False)  # each chip may feed only the next one
    by_order: bool = struct.field(pytree_node=False)  # data never flows to a lower chip
    # With neighbours, programs compute on whole arrays; without, by loops over rows of chains.
    neighbours: Neighbours | None = None

    @property
    def near(self) -> Neighbours:
        """The neighbours, in programs that compute on whole arrays."""
        assert self.neighbours is not None
        return self.neighbours


@struct.dataclass
class Tables:
    """The load of the chips and links of B chains, updated by every accepted move.

    L is the number of links in the table, W the number of shared weights, padded.
    """

    compute_s: Float[Array, "C B"]
    in_s: Float[Array, "C B"]
    out_s: Float[Array, "C B"]
    link_s: Float[Array, "L B"]  # L is 0 unless `has_links`
    memory_bytes: Float[Array, "C B"]  # with the peak of live activations of the last `evaluate`
    contracted_on: Int[Array, "C B"]  # number of contracted nodes on each chip
    # Contracted nodes on each chip that use each shared weight. The last weight stands for none,
    # and its row means nothing.
    weight_uses: Int[Array, "W C B"]


@struct.dataclass
class Change:
    """The change in traffic that a move makes in each of B chains, seconds."""

    in_from: Float[Array, " B"]  # received by the source
    in_to: Float[Array, " B"]  # received by the target
    out_from: Float[Array, " B"]  # sent by the source
    out_to: Float[Array, " B"]  # sent by the target
    # Sent by the chips of its producers. By loops over rows it is empty on a row of chips, where
    # `out_from` and `out_to` hold it.
    out_s: Float[Array, "C B"]
    link_s: Float[Array, "L B"]


def moves_of(problem: Problem, chip_graph: BoolMatrix, form: Form | None = None) -> Moves:
    """Prepares a problem for moves that keep every edge within a chip graph.

    Args:
      problem: the problem, not on a mesh.
      chip_graph: [C, C] whether chip a may feed chip b, at [a, b]; see `chip_graph_of`.
      form: of the programs that get these moves (`lower`). Both forms accept the same moves.

    Raises:
      InputError: the module is a mesh; moves do not follow its routes.
    """
    mcm = problem.mcm
    if mcm.topology == "mesh":
        raise InputError(
            f"{mcm.name}: moves follow the links of a chain or of none (host), not of a mesh"
        )
    nodes, contracted = lower(problem, form=form), lower(problem.contracted, form=form)
    weights = weights_of(problem.contracted, contracted.padded_nodes)
    near = None
    if contracted.tables is not None:
        near = neighbours_of(contracted, np.asarray(weights.shared), len(weights.shared_bytes))
    nothing = jnp.zeros((0, problem.num_chips), jnp.uint32)
    moves = Moves(
        nodes=nodes,
        contracted=contracted,
        weights=weights,
        sent_s=jnp.asarray(_sent_s(contracted)),
        after=nothing,
        before=nothing,
        is_row=False,
        by_order=mcm.constraints.acyclic,
        neighbours=near,
    )
    return rejoined(moves, chip_graph)


def _sent_s(contracted: DeviceProblem) -> NDArray[np.float32]:
    """`Moves.sent_s`, on the host: a program for an accelerator must not scatter and add floats."""
    bounds, producer = np.asarray(contracted.tensor_edges), np.asarray(contracted.tensor_producer)
    # This is how XLA divides an array by a number: the price of a move has the same rounding.
    size_s = np.asarray(contracted.tensor_bytes) * (1 / np.asarray(contracted.link_bandwidth))
    size_s = np.where(np.diff(bounds) > 0, size_s, np.float32(0))
    sent_s = np.zeros(contracted.padded_nodes, np.float32)
    np.add.at(sent_s, producer, size_s)
    return sent_s


def rejoined(moves: Moves, chip_graph: BoolMatrix) -> Moves:
    """The same moves within another chip graph [C, C]."""
    joined = chip_graph | np.eye(len(chip_graph), dtype=bool)
    return dataclasses.replace(
        moves,
        after=jnp.asarray(_words(joined)),
        before=jnp.asarray(_words(joined.T)),
        is_row=bool((chip_graph == np.eye(len(chip_graph), k=1, dtype=bool)).all()),
    )


def chip_graph_of(problem: Problem, start: IntArray, rng: np.random.Generator) -> BoolMatrix:
    """[C, C] a chip graph that contains the chip graph of a valid partition.

    With the triangle rule on, this is the row of chips if possible, else the chip graph of the
    partition enlarged at random. With a rule off, it has all edges that the other rules allow.

    Args:
      problem: the problem.
      start: [N] the valid partition.
      rng: draws the edges that are tried.
    """
    chips, rules = problem.num_chips, problem.mcm.constraints
    if not rules.acyclic:
        return ~np.eye(chips, dtype=bool)
    if not rules.triangle:
        return np.triu(np.ones((chips, chips), bool), 1)
    pairs = start[problem.node_pairs]
    graph = np.zeros((chips, chips), bool)
    graph[pairs[:, 0], pairs[:, 1]] = True
    np.fill_diagonal(graph, False)
    row = np.eye(chips, k=1, dtype=bool)
    return row if not (graph & ~row).any() else _enlarged(graph, rng)


def _enlarged(graph: BoolMatrix, rng: np.random.Generator) -> BoolMatrix:
    """Adds random edges while the chip graph stays its own transitive reduction.

    Edge a -> b is not added if b is reachable from a already, or if some edge x -> y has a path
    from x to a and one from b to y: there would then be a second, longer path from x to y.
    """
    chips = len(graph)
    graph, reaches = graph.copy(), np.eye(chips, dtype=bool)
    for a in range(chips)[::-1]:
        reaches[a] |= reaches[graph[a]].any(axis=0)
    candidates = np.argwhere(np.triu(np.ones_like(graph), 1))
    # Pairs of near chips tend to come first: they are more likely to exchange data.
    distance = candidates[:, 1] - candidates[:, 0]
    order = np.argsort(distance * rng.exponential(size=len(distance)), kind="stable")
    for a, b in candidates[order[:_MOST_TRIED]]:
        if reaches[a, b] or graph[np.ix_(reaches[:, a], reaches[b])].any():
            continue
        graph[a, b] = True
        reaches |= reaches[:, a][:, None] & reaches[b][None]
    return graph


def _words(sets: BoolMatrix) -> NDArray[np.uint32]:
    """[words, C] the rows of a [C, C] matrix as sets of chips, `WORD` chips in a word."""
    chips = len(sets)
    words = np.zeros((-(-chips // WORD), chips), np.uint32)
    for c in range(chips):
        words[c // WORD] |= sets[:, c].astype(np.uint32) << np.uint32(c % WORD)
    return words


def tables_of(moves: Moves, labels: Int[Array, "N B"], costs: Costs) -> Tables:
    """The tables of B partitions.

    Args:
      moves: the problem.
      labels: chips of contracted nodes.
      costs: what `evaluate` says of these partitions.
    """
    contracted, rules = moves.contracted, moves.contracted.config.constraints
    chips, batch = costs.compute_s.shape
    lane = jnp.arange(batch)

    def count(v, contracted_on):
        return contracted_on.at[labels[v].astype(jnp.int32), lane].add(1, unique_indices=True)

    def use(v, uses):
        chip = labels[v].astype(jnp.int32)
        for column in range(moves.weights.shared.shape[1]):
            uses = uses.at[moves.weights.shared[v, column], chip, lane].add(jnp.int16(1))
        return uses

    contracted_on = jnp.zeros((chips, batch), jnp.int32)
    if rules.no_skip:
        if moves.neighbours is None:
            contracted_on = lax.fori_loop(0, contracted.num_nodes, count, contracted_on)
        else:
            contracted_on = _counted_at_once(moves, labels)
    held = moves.weights.shared_bytes.shape[0] if rules.memory else 0
    uses = jnp.zeros((held, chips, batch), jnp.int16)
    if held and moves.weights.shared.shape[1]:
        if moves.neighbours is None:
            uses = lax.fori_loop(0, contracted.num_nodes, use, uses)
        else:
            uses = uses_on(moves, labels, jnp.arange(chips))
    link_s = costs.link_s if has_links(moves) else costs.link_s[:0]
    return Tables(
        costs.compute_s, costs.in_s, costs.out_s, link_s, costs.memory_bytes, contracted_on, uses
    )


def _counted_at_once(moves: Moves, labels: Int[Array, "N B"]) -> Int[Array, "C B"]:
    """How many contracted nodes are on each chip: each label is compared with each chip."""
    contracted = moves.contracted
    is_real = (jnp.arange(labels.shape[0]) < contracted.num_nodes)[:, None]
    chip = jnp.arange(contracted.config.num_chips, dtype=labels.dtype)[:, None, None]
    return jnp.sum(is_real[None] & (labels[None] == chip), axis=1, dtype=jnp.int32)


def uses_on(
    moves: Moves, labels: Int[Array, "N B"], chips: Int[Array, " C"]
) -> Int[Array, "W C B"]:
    """How many users each shared weight has on each of some chips; the last weight has none."""
    chip = chips.astype(labels.dtype)[:, None]

    def on_chips(u: Array) -> Array:
        return (take(labels, take(moves.near.user, u))[:, None] == chip[None]).astype(jnp.int16)

    return reduce_segments(on_chips, moves.near.users, operator.add, 0)


def chip_column(count: int) -> Int[Array, "count 1"]:
    """The numbers 0 to count - 1 as a column, to compare with rows of B chains."""
    return jnp.arange(count, dtype=jnp.int32)[:, None]


def has_links(moves: Moves) -> bool:
    """Whether links need a table: on a row of chips, a link carries what its chip sends."""
    return moves.contracted.config.topology == "chain" and not moves.is_row
