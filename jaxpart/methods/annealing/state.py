"""What annealing moves work on: which chips may feed which, what each chip carries, the chains.

A partition that keeps the triangle rule keeps it as long as its chip graph loses edges: fewer
edges, fewer paths. So moves stay valid that keep every edge of the model within one *chip graph*
that is its own transitive reduction: the row of chips 0 -> 1 -> ... (span one), or the chip graph
of the partition to start from and what can be added to it. Where the triangle rule is off, every
chip feeds every later one, and without dataflow any chip any other.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt32
from numpy.typing import NDArray

from jaxpart.cost.device import DeviceProblem, lower
from jaxpart.cost.evaluate import Costs
from jaxpart.errors import InputError
from jaxpart.methods.orders.probe import Weights, weights_of
from jaxpart.problem.problem import IntArray, Problem

BoolMatrix = NDArray[np.bool_]
WORD = 32  # bits of a word of a chip set
# Edges that are tried out to make a chip graph larger.
_MOST_TRIED = 2000


@struct.dataclass
class Moves:
    """A problem, ready for moves: its contracted nodes, and the chips that an edge may join."""

    nodes: DeviceProblem  # decides what is valid and what it costs
    contracted: DeviceProblem  # what moves
    weights: Weights  # of the contracted nodes
    after: UInt32[Array, "words C"]  # chips that chip c may feed, itself included
    before: UInt32[Array, "words C"]  # chips that may feed chip c, itself included
    is_row: bool = struct.field(pytree_node=False)  # chips feed the next one alone
    by_order: bool = struct.field(pytree_node=False)  # data flows to higher chips alone


@struct.dataclass
class Tables:
    """What the chips of B chains carry, kept up to date move by move."""

    compute_s: Float[Array, "C B"]
    in_s: Float[Array, "C B"]
    out_s: Float[Array, "C B"]
    link_s: Float[Array, "L B"]  # none where links are what chips send
    memory_bytes: Float[Array, "C B"]  # with the peak of the last evaluation
    contracted_on: Int[Array, "C B"]
    weight_uses: Int[Array, "W C B"]  # contracted nodes on each chip that use each shared weight


def moves_of(problem: Problem, chip_graph: BoolMatrix) -> Moves:
    """Moves that keep every edge within `chip_graph` [C, C] (who feeds whom; see `chip_graph_of`).

    Raises:
      InputError: the module is a mesh, whose routes moves do not follow.
    """
    mcm = problem.mcm
    if mcm.topology == "mesh":
        raise InputError(
            f"{mcm.name}: moves follow the links of a chain or of none (host), not of a mesh"
        )
    nodes = lower(problem)
    contracted = lower(problem.contracted)
    chips = problem.num_chips
    row = np.eye(chips, k=1, dtype=bool)
    joined = chip_graph | np.eye(chips, dtype=bool)
    return Moves(
        nodes=nodes,
        contracted=contracted,
        weights=weights_of(problem.contracted, contracted.padded_nodes),
        after=jnp.asarray(_words(joined)),
        before=jnp.asarray(_words(joined.T)),
        is_row=bool((chip_graph == row).all()),
        by_order=problem.mcm.constraints.acyclic,
    )


def chip_graph_of(problem: Problem, start: IntArray, rng: np.random.Generator) -> BoolMatrix:
    """[C, C] a chip graph that holds that of the valid partition `start` [N], large at random.

    The row of chips where that holds it.
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
    """Adds edges at random, as long as no edge has a longer path beside it."""
    chips = len(graph)
    graph, reaches = graph.copy(), np.eye(chips, dtype=bool)
    for a in range(chips)[::-1]:
        reaches[a] |= reaches[graph[a]].any(axis=0)
    candidates = np.argwhere(np.triu(np.ones_like(graph), 1))
    # Near chips first, about: they are the likelier neighbours.
    distance = candidates[:, 1] - candidates[:, 0]
    order = np.argsort(distance * rng.exponential(size=len(distance)), kind="stable")
    for a, b in candidates[order[:_MOST_TRIED]]:
        if reaches[a, b] or graph[np.ix_(reaches[:, a], reaches[b])].any():
            continue
        graph[a, b] = True
        reaches |= reaches[:, a][:, None] & reaches[b][None]
    return graph


def _words(sets: BoolMatrix) -> NDArray[np.uint32]:
    """[words, C] the rows of a [C, C] matrix as sets of chips."""
    chips = len(sets)
    words = np.zeros((-(-chips // WORD), chips), np.uint32)
    for c in range(chips):
        words[c // WORD] |= sets[:, c].astype(np.uint32) << np.uint32(c % WORD)
    return words


def tables_of(moves: Moves, labels: Int[Array, "N B"], costs: Costs) -> Tables:
    """Tables of the partitions of contracted nodes `labels`, from their `costs`."""
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

    from jax import lax

    contracted_on = jnp.zeros((chips, batch), jnp.int32)
    if rules.no_skip:
        contracted_on = lax.fori_loop(0, contracted.num_nodes, count, contracted_on)
    held = moves.weights.shared_bytes.shape[0] if rules.memory else 0
    uses = jnp.zeros((held, chips, batch), jnp.int16)
    if held and moves.weights.shared.shape[1]:
        uses = lax.fori_loop(0, contracted.num_nodes, use, uses)
    link_s = costs.link_s if has_links(moves) else costs.link_s[:0]
    return Tables(
        costs.compute_s, costs.in_s, costs.out_s, link_s, costs.memory_bytes, contracted_on, uses
    )


def chip_column(count: int) -> Int[Array, "count 1"]:
    """0 to count - 1, to be set beside rows of chains."""
    return jnp.arange(count, dtype=jnp.int32)[:, None]


def has_links(moves: Moves) -> bool:
    """Whether links carry more than what each chip sends to the next."""
    return moves.contracted.config.topology == "chain" and not moves.is_row
