"""The amounts of a batch, by loops over rows: the form for a CPU.

A batch of assignments is [N, B] with the batch last, in the smallest integer type that holds a chip
number. The chips of one node over all candidates are therefore one contiguous row. The code loops
over edges, nodes or uses of weights, and each loop body works on rows of B candidates. A row fits a
cache, and a loop never visits the padding.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.cost.amounts import Amounts
from jaxpart.cost.chip_sets import WORD, chip_bit, num_words
from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.links import link_loads
from jaxpart.cost.rows import add_row, add_up, flat_position, set_row


def amounts(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Amounts:
    """The amounts of a batch; the arguments are those of `evaluate`."""
    traffic = _traffic(problem, assignment)
    nodes = _node_rules(problem, assignment)
    peak = jnp.zeros_like(traffic.sent)
    if problem.config.memory_model == "full":
        peak = _peak_bytes(problem, assignment, traffic)
    # A candidate of span 1 keeps the triangle rule, and one with backward dataflow fails it.
    is_settled = traffic.span | ~traffic.acyclic
    return Amounts(
        compute_s=_compute_s(problem, assignment),
        received=traffic.received,
        sent=traffic.sent,
        link=traffic.link,
        weights=_weight_bytes(problem, assignment),
        peak=peak,
        used=nodes.used,
        acyclic=traffic.acyclic,
        triangle=traffic.acyclic & _triangle(problem, assignment, is_settled),
        colocation=nodes.colocation,
        fixed_chips=nodes.fixed_chips,
    )


@struct.dataclass
class _Traffic:
    received: Float[Array, "C B"]  # bytes; a tensor counts once per receiving chip
    sent: Float[Array, "C B"]  # bytes; a tensor counts once
    link: Float[Array, "L B"]  # bytes; a tensor counts once per link
    kept: Float[Array, "N B"]  # bytes that a node makes for consumers on its own chip
    freed: Float[Array, "N B"]  # bytes made on its chip for which it is the last consumer
    acyclic: Bool[Array, " B"]
    span: Bool[Array, " B"]  # every edge goes to the same chip or the next


def _traffic(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> _Traffic:
    """Computes the traffic in a few walks over the edges.

    The edges of a tensor are adjacent and sorted by consumer, so a walk from the last edge to the
    first meets the last consumer first. Each walk carries one or two arrays: XLA then updates them
    in place, and a step costs a tenth of one that carries them all.
    """
    sizes, chips = problem.tensor_bytes, problem.config.num_chips
    departures, kept, freed = _locality(problem, assignment)
    sent = add_up(departures, problem.num_tensors, chips, lambda k, _: sizes[k])
    acyclic, span = _directions(problem, assignment)
    return _Traffic(
        received=add_up(
            _arrivals(problem, assignment),
            problem.num_edges,
            chips,
            lambda e, _: sizes[problem.edge_tensor[e]],
        ),
        sent=sent,
        link=link_loads(problem, assignment, departures, sent),
        kept=kept,
        freed=freed,
        acyclic=acyclic,
        span=span,
    )


def _arrivals(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Int[Array, "E B"]:
    """The chip on which a tensor arrives by each edge, or -1 if it is on that chip already."""
    chips, batch = problem.config.num_chips, assignment.shape[1]

    def visit(step, carry):
        arrivals, seen = carry
        e = problem.num_edges - 1 - step
        source = assignment[problem.edge_producer[e]]
        target = assignment[problem.edge_consumer[e]]
        begins = e + 1 == problem.tensor_edges[problem.edge_tensor[e] + 1]
        seen = jnp.where(begins, 0, seen)
        bit = chip_bit(target, chips)
        is_new = jnp.all((seen & bit) == 0, axis=0) & (source != target)
        return set_row(arrivals, e, jnp.where(is_new, target, -1)), seen | bit

    nowhere = jnp.full((problem.edge_tensor.shape[0], batch), -1, problem.config.chip_dtype)
    seen = jnp.zeros((num_words(chips), batch), jnp.uint32)
    return lax.fori_loop(0, problem.num_edges, visit, (nowhere, seen))[0]


def _locality(
    problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> tuple[Int[Array, "K B"], Float[Array, "N B"], Float[Array, "N B"]]:
    """What stays on its chip.

    Returns:
      The chip that sends each tensor, or -1 if no chip does; and `kept` and `freed` of `_Traffic`.
    """
    batch, sizes = assignment.shape[1], problem.tensor_bytes
    false = jnp.zeros((batch,), bool)

    def edge(step):
        e = problem.num_edges - 1 - step
        k, consumer = problem.edge_tensor[e], problem.edge_consumer[e]
        source = assignment[problem.edge_producer[e]]
        return k, e + 1 == problem.tensor_edges[k + 1], source, source == assignment[consumer]

    def depart(step, carry):
        departures, is_sent = carry
        k, begins, source, is_local = edge(step)
        is_sent = (is_sent & ~begins) | ~is_local
        return set_row(departures, k, jnp.where(is_sent, source, -1)), is_sent

    def keep(step, carry):
        kept, freed, is_kept = carry
        k, begins, _, is_local = edge(step)
        e = problem.num_edges - 1 - step
        before = is_kept & ~begins
        is_kept = before | is_local
        ends, producer = e == problem.tensor_edges[k], problem.tensor_producer[k]
        kept = add_row(kept, producer, jnp.where(ends & is_kept, sizes[k], 0))
        consumer = problem.edge_consumer[e]
        freed = add_row(freed, consumer, jnp.where(is_local & ~before, sizes[k], 0))
        return kept, freed, is_kept

    nowhere = jnp.full((sizes.shape[0], batch), -1, problem.config.chip_dtype)
    nothing = jnp.zeros(assignment.shape, sizes.dtype)
    departures, _ = lax.fori_loop(0, problem.num_edges, depart, (nowhere, false))
    kept, freed, _ = lax.fori_loop(0, problem.num_edges, keep, (nothing, nothing, false))
    return departures, kept, freed


def _directions(
    problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """Whether every edge goes forward; and whether every edge goes to the same chip or the next."""

    def visit(e, carry):
        acyclic, span = carry
        step = assignment[problem.edge_consumer[e]] - assignment[problem.edge_producer[e]]
        return acyclic & (step >= 0), span & (step >= 0) & (step <= 1)

    true = jnp.ones((assignment.shape[1],), bool)
    return lax.fori_loop(0, problem.num_edges, visit, (true, true))


@struct.dataclass
class _Nodes:
    used: UInt32[Array, "words B"]  # the set of chips in use
    colocation: Bool[Array, " B"]
    fixed_chips: Bool[Array, " B"]


def _node_rules(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> _Nodes:
    """Finds the chips in use and checks colocation and fixed chips."""
    chips, batch = problem.config.num_chips, assignment.shape[1]

    def visit(v, nodes):
        chip = assignment[v]
        return _Nodes(
            nodes.used | chip_bit(chip, chips),
            nodes.colocation & (assignment[problem.group_head[v]] == chip),
            nodes.fixed_chips & ((problem.fixed_chip[v] < 0) | (chip == problem.fixed_chip[v])),
        )

    true = jnp.ones((batch,), bool)
    nothing = jnp.zeros((num_words(chips), batch), jnp.uint32)
    return lax.fori_loop(0, problem.num_nodes, visit, _Nodes(nothing, true, true))


def _compute_s(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Float[Array, "C B"]:
    """Compute seconds of each chip."""

    def seconds(v, chip):
        if problem.node_s.shape[1] == 1:
            return problem.node_s[v, 0]
        return problem.node_s[v][problem.chip_kind[chip]]

    return add_up(assignment, problem.num_nodes, problem.config.num_chips, seconds)


def _peak_bytes(
    problem: DeviceProblem, assignment: Int[Array, "N B"], traffic: _Traffic
) -> Float[Array, "C B"]:
    """Peak bytes of live activations per chip. A chip runs its nodes in number order."""
    chips, batch = problem.config.num_chips, assignment.shape[1]
    made = jnp.zeros(problem.padded_nodes, problem.tensor_bytes.dtype)
    made = made.at[problem.tensor_producer].add(problem.tensor_bytes)

    def visit(v, carry):
        live, peak = carry
        at = flat_position(assignment[v].astype(jnp.int32))
        before = live.at[at].get(mode="promise_in_bounds")
        peak = peak.at[at].max(before + made[v], unique_indices=True, mode="promise_in_bounds")
        after = before + traffic.kept[v] - traffic.freed[v]
        return live.at[at].set(after, unique_indices=True, mode="promise_in_bounds"), peak

    zeros = jnp.zeros((chips * batch,), made.dtype)
    peak = lax.fori_loop(0, problem.num_nodes, visit, (zeros, zeros))[1]
    return peak.reshape(chips, batch)


def _weight_bytes(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Float[Array, "C B"]:
    """Bytes of weights per chip. Every chip with a consumer of a weight holds one copy."""
    chips, batch = problem.config.num_chips, assignment.shape[1]

    def visit(u, carry):
        copies, seen = carry
        chip = assignment[problem.use_node[u]]
        begins = u == problem.weight_uses[problem.use_weight[u]]
        seen = jnp.where(begins, 0, seen)
        bit = chip_bit(chip, chips)
        is_new = jnp.all((seen & bit) == 0, axis=0)
        return set_row(copies, u, jnp.where(is_new, chip, -1)), seen | bit

    uses = problem.weight_uses[problem.num_weights]
    copies = jnp.full((problem.use_node.shape[0], batch), -1, problem.config.chip_dtype)
    seen = jnp.zeros((num_words(chips), batch), jnp.uint32)
    copies = lax.fori_loop(0, uses, visit, (copies, seen))[0]
    return add_up(copies, uses, chips, lambda u, _: problem.weight_bytes[problem.use_weight[u]])


def _triangle(
    problem: DeviceProblem, assignment: Int[Array, "N B"], is_settled: Bool[Array, " B"]
) -> Bool[Array, " B"]:
    """Whether no edge a -> b of the chip graph has a longer path from a to b.

    If every edge of a candidate stays on its chip or goes to the next, the chip graph has no edges
    other than c -> c + 1, and the rule holds. Reachability of chips is computed only where the
    batch has a candidate that is not settled.

    Args:
      problem: padded to N nodes.
      assignment: [N, B] chips.
      is_settled: [B] candidates that need no check: span 1, or dataflow that is not acyclic.

    Returns:
      [B] the verdicts, right for every candidate with acyclic dataflow.
    """
    chips, batch = problem.config.num_chips, assignment.shape[1]
    words = num_words(chips)
    lane = jnp.arange(batch)

    def check(_):
        def join(e, adjacent):
            source = assignment[problem.edge_producer[e]].astype(jnp.int32)
            target = assignment[problem.edge_consumer[e]].astype(jnp.int32)
            bit = jnp.where((source == target)[None], 0, chip_bit(target, chips))
            return adjacent.at[source, :, lane].set(adjacent[source, :, lane] | bit.T)

        adjacent = jnp.zeros((chips, words, batch), jnp.uint32)
        adjacent = lax.fori_loop(0, problem.num_edges, join, adjacent)

        def close(step, carry):
            reachable, holds = carry
            chip = chips - 1 - step
            direct = adjacent[chip]  # [words, B]
            number = jnp.arange(chips)
            is_next = (direct[number // WORD] >> (number % WORD).astype(jnp.uint32)[:, None]) & 1
            beyond = lax.reduce(
                jnp.where((is_next == 1)[:, None], reachable, jnp.uint32(0)),
                jnp.uint32(0),
                lax.bitwise_or,
                (0,),
            )
            holds &= jnp.all((direct & beyond) == 0, axis=0)
            return reachable.at[chip].set(direct | beyond), holds

        start = (jnp.zeros_like(adjacent), jnp.ones((batch,), bool))
        return lax.fori_loop(0, chips, close, start)[1]

    return lax.cond(jnp.all(is_settled), lambda _: jnp.ones((batch,), bool), check, None)
