"""The cost model and the constraints, for a batch of partitions. The one place where both stand.

A batch of assignments is `[N, B]`, batch last, in the smallest integer that holds a chip number:
the chips of one node over all candidates are one contiguous row. Everything is a loop over tensors,
weights or nodes whose body works on rows of B candidates; per-chip sums are `[C, B]`.

`evaluate` runs in the dtype of its problem: float32 screens thousands on the device, float64
decides (`verify`). Definitions: README, "What every figure means"; Xie et al. (MLSys 2022), section
3.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxpart.device import DeviceProblem, lower, pad_assignments
from jaxpart.links import Links, add_at, chip_column
from jaxpart.problem import Problem

_WORD = 32  # bits of a word of a chip set
_VERIFIED = 4  # candidates that `verify` looks at in one go at least


@struct.dataclass
class Costs:
    """The figures of B candidates on C chips and L links (in the order of `MCM.links`)."""

    bottleneck_s: Float[Array, " B"]
    compute_s: Float[Array, "C B"]
    in_s: Float[Array, "C B"]
    out_s: Float[Array, "C B"]
    stage_s: Float[Array, "C B"]
    link_s: Float[Array, "L B"]
    memory_bytes: Float[Array, "C B"]
    chips_used: Int[Array, " B"]
    sent_bytes: Float[Array, " B"]
    # Verdicts, whether the rule is switched on or not. A candidate whose data flows backward fails
    # the triangle rule too: the rule is about acyclic chip graphs.
    acyclic: Bool[Array, " B"]
    no_skip: Bool[Array, " B"]
    triangle: Bool[Array, " B"]
    memory: Bool[Array, " B"]
    colocation: Bool[Array, " B"]
    pins: Bool[Array, " B"]
    valid: Bool[Array, " B"]  # every rule that is on, colocation and pins


@jax.jit
def evaluate(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Costs:
    """Costs and verdicts of a batch.

    Args:
      problem: padded to N nodes.
      assignment: chips 0..C-1; rows of padding nodes are ignored.
    """
    switches = problem.switches
    rules = switches.constraints
    traffic = _traffic(problem, assignment)
    nodes = _sweep_nodes(problem, assignment, traffic.last_local)
    memory = _weight_bytes(problem, assignment)
    if switches.memory_model == "full":
        memory += 2 * (traffic.sent + traffic.received) + nodes.peak
    in_s = traffic.received / problem.link_bandwidth
    out_s = traffic.sent / problem.link_bandwidth
    link_s = traffic.link / problem.link_bandwidth
    if switches.overlap:
        stage_s = jnp.maximum(nodes.compute, jnp.maximum(in_s, out_s))
    else:
        stage_s = nodes.compute + in_s + out_s
    bottleneck_s = jnp.max(stage_s, axis=0)
    if link_s.shape[0]:
        bottleneck_s = jnp.maximum(bottleneck_s, jnp.max(link_s, axis=0))

    chips_used = jnp.sum(nodes.used, axis=0, dtype=jnp.int32)
    highest = jnp.max(jnp.where(nodes.used, chip_column(switches.num_chips), 0), axis=0)
    no_skip = chips_used == highest + 1
    memory_ok = jnp.all(memory <= problem.capacity_bytes[:, None], axis=0)
    # Where data flows backward the verdict stands already: nothing is left to check.
    is_settled = traffic.span | ~traffic.acyclic
    triangle = traffic.acyclic & _triangle(problem, assignment, is_settled)
    true = jnp.ones_like(no_skip)
    valid = (
        nodes.colocation
        & nodes.pins
        & (traffic.acyclic if rules.acyclic else true)
        & (no_skip if rules.no_skip else true)
        & (triangle if rules.triangle else true)
        & (memory_ok if rules.memory else true)
    )
    return Costs(
        bottleneck_s=bottleneck_s,
        compute_s=nodes.compute,
        in_s=in_s,
        out_s=out_s,
        stage_s=stage_s,
        link_s=link_s,
        memory_bytes=memory,
        chips_used=chips_used,
        sent_bytes=jnp.sum(traffic.sent, axis=0),
        acyclic=traffic.acyclic,
        no_skip=no_skip,
        triangle=triangle,
        memory=memory_ok,
        colocation=nodes.colocation,
        pins=nodes.pins,
        valid=valid,
    )


def verify(problem: Problem, assignments: np.ndarray) -> Costs:
    """Exact costs and verdicts on the host, in float64: what decides.

    Args:
      problem: the host problem.
      assignments: [N, B] chips 0..C-1 of the real nodes.

    Returns:
      numpy arrays of shapes [C, B], [L, B] and [B].
    """
    batch = assignments.shape[1]
    size = _VERIFIED  # batches of a few sizes, so that few programs are compiled
    while size < batch:
        size *= 4
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        lowered = _lowered_exactly(problem)
        padded = pad_assignments(lowered, np.pad(assignments, ((0, 0), (0, size - batch))))
        costs = evaluate(lowered, jnp.asarray(padded))
        return jax.tree.map(lambda figure: np.asarray(figure)[..., :batch], costs)


@functools.lru_cache(maxsize=4)
def _lowered_exactly(problem: Problem) -> DeviceProblem:
    return lower(problem, jnp.float64)


@struct.dataclass
class _Traffic:
    received: Float[Array, "C B"]  # bytes, each tensor once per chip
    sent: Float[Array, "C B"]  # bytes, each tensor once
    link: Float[Array, "L B"]  # bytes, each tensor once per link
    last_local: Int[Array, "K B"]  # the node after which a tensor is dead on its producer's chip
    acyclic: Bool[Array, " B"]
    span: Bool[Array, " B"]  # every edge goes to the same chip or the next


def _traffic(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> _Traffic:
    """Walks the tensors, and the consumers of each, with the set of chips seen so far."""
    switches = problem.switches
    chips, batch = switches.num_chips, assignment.shape[1]
    dtype = problem.tensor_bytes.dtype
    links = Links(problem, batch)
    zeros = jnp.zeros((chips, batch), dtype)

    def visit_tensor(k, carry):
        received, sent, link, last_local, acyclic, span = carry
        producer, size = problem.tensor_producer[k], problem.tensor_bytes[k]
        source = assignment[producer].astype(jnp.int32)

        def visit_edge(e, carry):
            received, seen, reach, last, acyclic, span = carry
            consumer = problem.edge_consumer[e]
            target = assignment[consumer].astype(jnp.int32)
            bit = _chip_bit(target, chips)
            is_new = jnp.all((seen & bit) == 0, axis=0) & (target != source)
            received = add_at(received, target, jnp.where(is_new, size, 0))
            return (
                received,
                seen | bit,
                links.extend(reach, source, target),
                jnp.where(target == source, consumer, last),
                acyclic & (target >= source),
                span & (target - source <= 1) & (target >= source),
            )

        seen = jnp.zeros((-(-chips // _WORD), batch), jnp.uint32)
        last = jnp.full((batch,), producer, jnp.int32)
        carry = (received, seen, links.begin(source), last, acyclic, span)
        received, seen, reach, last, acyclic, span = lax.fori_loop(
            problem.tensor_edges[k], problem.tensor_edges[k + 1], visit_edge, carry
        )
        is_sent = jnp.any(seen & ~_chip_bit(source, chips), axis=0)
        sent = add_at(sent, source, jnp.where(is_sent, size, 0))
        link = links.finish(link, reach, source, size)
        return received, sent, link, last_local.at[k].set(last), acyclic, span

    true = jnp.ones((batch,), bool)
    last_local = jnp.zeros((problem.tensor_bytes.shape[0], batch), jnp.int32)
    carry = (zeros, zeros, links.zeros(), last_local, true, true)
    received, sent, link, last_local, acyclic, span = lax.fori_loop(
        0, problem.num_tensors, visit_tensor, carry
    )
    return _Traffic(received, sent, links.loads(link), last_local, acyclic, span)


@struct.dataclass
class _Nodes:
    compute: Float[Array, "C B"]  # seconds
    peak: Float[Array, "C B"]  # bytes of live activations
    used: Bool[Array, "C B"]
    colocation: Bool[Array, " B"]
    pins: Bool[Array, " B"]


def _sweep_nodes(
    problem: DeviceProblem, assignment: Int[Array, "N B"], last_local: Int[Array, "K B"]
) -> _Nodes:
    """Walks the nodes in number order, the order in which a chip runs them.

    A tensor lives on its producer's chip from its producer to its last consumer there.
    """
    switches = problem.switches
    chips, batch = switches.num_chips, assignment.shape[1]
    with_peak = switches.memory_model == "full"
    zeros = jnp.zeros((chips, batch), problem.node_s.dtype)

    def visit(v, carry):
        compute, live, peak, used, colocation, pins = carry
        chip = assignment[v].astype(jnp.int32)
        if problem.node_s.shape[1] == 1:
            seconds = problem.node_s[v, 0]
        else:
            seconds = problem.node_s[v][problem.chip_kind[chip]]
        compute = add_at(compute, chip, jnp.broadcast_to(seconds, (batch,)))
        used = used.at[chip, jnp.arange(batch)].set(True)
        colocation &= assignment[problem.group_head[v]] == assignment[v]
        pins &= (problem.pin[v] < 0) | (chip == problem.pin[v])
        if not with_peak:
            return compute, live, peak, used, colocation, pins

        def make(k, made_and_dead):
            made, dead = made_and_dead
            size = problem.tensor_bytes[k]
            return made + size, dead + jnp.where(last_local[k] == v, size, 0)

        def consume(e, dead):
            k = problem.in_edge_tensor[e]
            return dead + jnp.where(last_local[k] == v, problem.tensor_bytes[k], 0)

        nothing = jnp.zeros((batch,), zeros.dtype)
        made, dead = lax.fori_loop(
            problem.node_tensors[v],
            problem.node_tensors[v + 1],
            make,
            (jnp.zeros((), zeros.dtype), nothing),
        )
        dead = lax.fori_loop(problem.node_in_edges[v], problem.node_in_edges[v + 1], consume, dead)
        lane = jnp.arange(batch)
        now = live[chip, lane] + made
        peak = peak.at[chip, lane].max(now)
        live = live.at[chip, lane].set(now - dead)
        return compute, live, peak, used, colocation, pins

    true = jnp.ones((batch,), bool)
    unused = jnp.zeros((chips, batch), bool)
    compute, _, peak, used, colocation, pins = lax.fori_loop(
        0, problem.num_nodes, visit, (zeros, zeros, zeros, unused, true, true)
    )
    return _Nodes(compute, peak, used, colocation, pins)


def _weight_bytes(problem: DeviceProblem, assignment: Int[Array, "N B"]) -> Float[Array, "C B"]:
    """Bytes of weights per chip: one copy on every chip with a consumer."""
    chips, batch = problem.switches.num_chips, assignment.shape[1]

    def visit_weight(w, held):
        def visit_use(u, carry):
            held, seen = carry
            chip = assignment[problem.use_node[u]].astype(jnp.int32)
            bit = _chip_bit(chip, chips)
            is_new = jnp.all((seen & bit) == 0, axis=0)
            return add_at(held, chip, jnp.where(is_new, problem.weight_bytes[w], 0)), seen | bit

        seen = jnp.zeros((-(-chips // _WORD), batch), jnp.uint32)
        start, stop = problem.weight_uses[w], problem.weight_uses[w + 1]
        return lax.fori_loop(start, stop, visit_use, (held, seen))[0]

    zeros = jnp.zeros((chips, batch), problem.weight_bytes.dtype)
    return lax.fori_loop(0, problem.num_weights, visit_weight, zeros)


def _triangle(
    problem: DeviceProblem, assignment: Int[Array, "N B"], is_settled: Bool[Array, " B"]
) -> Bool[Array, " B"]:
    """Whether no edge of the chip graph has a longer path beside it; for acyclic candidates.

    A candidate whose edges all stay or go to the next chip has a path for a chip graph: nothing to
    check. Only a batch with others in it pays for reachability.
    """
    chips, batch = problem.switches.num_chips, assignment.shape[1]
    words = -(-chips // _WORD)
    lane = jnp.arange(batch)

    def check(_):
        def join(e, adjacent):
            source = assignment[problem.edge_producer[e]].astype(jnp.int32)
            target = assignment[problem.edge_consumer[e]].astype(jnp.int32)
            bit = jnp.where((source == target)[None], 0, _chip_bit(target, chips))
            return adjacent.at[source, :, lane].set(adjacent[source, :, lane] | bit.T)

        adjacent = jnp.zeros((chips, words, batch), jnp.uint32)
        adjacent = lax.fori_loop(0, problem.num_edges, join, adjacent)

        def close(step, carry):
            reachable, holds = carry
            chip = chips - 1 - step
            direct = adjacent[chip]  # [words, B]
            number = jnp.arange(chips)
            is_next = (direct[number // _WORD] >> (number % _WORD).astype(jnp.uint32)[:, None]) & 1
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


def _chip_bit(chip: Int[Array, " B"], chips: int) -> UInt32[Array, "words B"]:
    """The set of one chip per candidate, as 32-bit words."""
    word = chip_column(-(-chips // _WORD))
    bit = jnp.uint32(1) << (chip % _WORD).astype(jnp.uint32)
    return jnp.where(word == (chip // _WORD)[None], bit[None], jnp.uint32(0))
