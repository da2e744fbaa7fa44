"""The cost model as a compiled scalar loop, the reference for the speed of the batched one.

One thread computes one candidate after the other in float64, with every cost and verdict of
`evaluate` in `jaxpart/cost/evaluate.py`. The code has no optimisation for special hardware. For
each candidate it walks once over the nodes, their tensors and the consumers of these; its sums per
chip stay in the nearest cache. Only `inner_loops.py` uses it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from jaxpart.problem.problem import Problem


class Tables(NamedTuple):
    """A problem as flat arrays for the loop.

    It has N nodes, C chips of S kinds, K tensors, E edges, W weights, U uses of weights and L
    links. Tensors are sorted by producer, edges by tensor and then by consumer, uses by weight. An
    array of offsets has the range [offsets[i], offsets[i + 1]) of i.
    """

    node_s: NDArray[np.float64]  # [N, S] seconds
    chip_kind: NDArray[np.uint16]  # [C]
    group_head: NDArray[np.uint32]  # [N] first node of its colocation group, or itself
    fixed_chip: NDArray[np.int32]  # [N] fixed chip; -1: none
    node_tensors: NDArray[np.uint32]  # [N + 1] offsets of the tensors of each node
    tensor_bytes: NDArray[np.float64]  # [K]
    tensor_edges: NDArray[np.uint32]  # [K + 1] offsets
    consumer: NDArray[np.uint32]  # [E]
    weight_bytes: NDArray[np.float64]  # [W]
    weight_uses: NDArray[np.uint32]  # [W + 1] offsets
    use_node: NDArray[np.uint32]  # [U]
    capacity_bytes: NDArray[np.float64]  # [C]
    route_start: NDArray[np.uint32]  # [C * C + 1] offsets; a * C + b: from chip a to b
    route_link: NDArray[np.uint32]  # links of all routes of a mesh; else empty
    num_links: int
    bandwidth: float  # bytes/s
    is_chain: bool
    overlap: bool
    full_memory: bool
    rules: tuple[bool, bool, bool, bool]  # acyclic, no_skip, triangle, memory


class Figures(NamedTuple):
    """The content of `Costs` in `jaxpart/cost/evaluate.py`, with the batch axis first."""

    bottleneck_s: NDArray[np.float64]  # [B]
    compute_s: NDArray[np.float64]  # [B, C]
    in_s: NDArray[np.float64]  # [B, C]
    out_s: NDArray[np.float64]  # [B, C]
    stage_s: NDArray[np.float64]  # [B, C]
    link_s: NDArray[np.float64]  # [B, L]
    memory_bytes: NDArray[np.float64]  # [B, C]
    chips_used: NDArray[np.int32]  # [B]
    sent_bytes: NDArray[np.float64]  # [B]
    acyclic: NDArray[np.bool_]  # [B]
    no_skip: NDArray[np.bool_]  # [B]
    triangle: NDArray[np.bool_]  # [B]
    memory: NDArray[np.bool_]  # [B]
    colocation: NDArray[np.bool_]  # [B]
    fixed_chips: NDArray[np.bool_]  # [B]
    valid: NDArray[np.bool_]  # [B]


def tables(problem: Problem) -> Tables:
    """Makes the flat arrays of a problem for `evaluate`."""
    mcm, chips = problem.mcm, problem.num_chips
    by_producer = np.argsort(problem.tensor_producer, kind="stable")
    rank = np.argsort(by_producer, kind="stable")
    tensor = rank[problem.edge_tensor]
    edge_order = np.lexsort((problem.edge_consumer, tensor))
    head = np.arange(problem.num_nodes)
    first: dict[int, int] = {}
    for v in np.flatnonzero(problem.colocate >= 0).tolist():
        head[v] = first.setdefault(int(problem.colocate[v]), v)
    number = {link: position for position, link in enumerate(mcm.links)}
    routes = [
        [number[link] for link in mcm.route(a, b)] if mcm.topology == "mesh" and a != b else []
        for a in range(chips)
        for b in range(chips)
    ]
    rules = mcm.constraints
    return Tables(
        node_s=problem.node_s,
        chip_kind=problem.chip_kind.astype(np.uint16),
        group_head=head.astype(np.uint32),
        fixed_chip=problem.fixed_chip.astype(np.int32),
        node_tensors=_offsets(problem.tensor_producer, problem.num_nodes),
        tensor_bytes=problem.tensor_bytes[by_producer],
        tensor_edges=_offsets(tensor, problem.num_tensors),
        consumer=problem.edge_consumer[edge_order].astype(np.uint32),
        weight_bytes=problem.weight_bytes,
        weight_uses=_offsets(problem.use_weight, len(problem.weight_bytes)),
        use_node=problem.use_node.astype(np.uint32),
        capacity_bytes=problem.capacity_bytes,
        route_start=np.cumsum([0, *map(len, routes)]).astype(np.uint32),
        route_link=np.array([link for route in routes for link in route], np.uint32),
        num_links=len(mcm.links),
        bandwidth=float(mcm.link_bandwidth),
        is_chain=mcm.topology == "chain",
        overlap=mcm.overlap,
        full_memory=mcm.memory_model == "full",
        rules=(rules.acyclic, rules.no_skip, rules.triangle, rules.memory),
    )


def evaluate(table: Tables, assignments: NDArray[np.integer]) -> Figures:
    """Computes all costs and verdicts.

    Args:
      table: the problem.
      assignments: [B, N] chips.
    """
    batch, chips = len(assignments), len(table.capacity_bytes)

    per_chip = np.zeros((5, batch, chips))
    verdicts = np.zeros((7, batch), np.bool_)
    figures = Figures(
        bottleneck_s=np.zeros(batch),
        compute_s=per_chip[0],
        in_s=per_chip[1],
        out_s=per_chip[2],
        stage_s=per_chip[3],
        link_s=np.zeros((batch, table.num_links)),
        memory_bytes=per_chip[4],
        chips_used=np.zeros(batch, np.int32),
        sent_bytes=np.zeros(batch),
        acyclic=verdicts[0],
        no_skip=verdicts[1],
        triangle=verdicts[2],
        memory=verdicts[3],
        colocation=verdicts[4],
        fixed_chips=verdicts[5],
        valid=verdicts[6],
    )
    _evaluate(table, np.ascontiguousarray(assignments, np.uint16), figures)
    return figures


@njit
def _evaluate(t, assignments, out):  # pragma: no cover - compiled
    """Fills the arrays of `out`, one candidate after the other."""
    chips = len(t.capacity_bytes)
    nodes = len(t.fixed_chip)
    stamp = np.zeros(chips, np.int64)  # tick of the last tensor or weight seen on each chip
    link_stamp = np.zeros(t.num_links, np.int64)
    tick = 0
    is_mesh = len(t.route_link) > 0
    live, peak, dying = np.zeros(chips), np.zeros(chips), np.zeros(nodes)
    words = (chips + 63) // 64
    adjacent = np.zeros((chips, words), np.uint64)
    reachable = np.zeros((chips, words), np.uint64)
    steps = np.zeros(chips + 1)  # differences of the loads of a chain's links
    used = np.zeros(chips, np.bool_)
    for b in range(len(assignments)):
        f = assignments[b]
        compute, received, sent = out.compute_s[b], out.in_s[b], out.out_s[b]
        link, memory, stage = out.link_s[b], out.memory_bytes[b], out.stage_s[b]
        live[:], peak[:], used[:], steps[:] = 0.0, 0.0, False, 0.0
        acyclic = span = colocation = keeps_fixed = True
        for v in range(nodes):
            a = f[v]
            compute[a] += t.node_s[v, t.chip_kind[a]]
            used[a] = True
            colocation &= f[t.group_head[v]] == a
            keeps_fixed &= (t.fixed_chip[v] < 0) | (t.fixed_chip[v] == a)
            for k in range(t.node_tensors[v], t.node_tensors[v + 1]):
                size = t.tensor_bytes[k]
                tick += 1
                last, reach, is_sent = v, a, False
                for e in range(t.tensor_edges[k], t.tensor_edges[k + 1]):
                    q = t.consumer[e]
                    c = f[q]
                    if c == a:
                        last = q  # consumers are in ascending order
                    elif stamp[c] != tick:
                        stamp[c] = tick
                        is_sent = True
                        received[c] += size
                        acyclic &= c > a
                        span &= c == a + 1
                        reach = max(reach, c)
                        if is_mesh:
                            route = a * chips + c
                            for r in range(t.route_start[route], t.route_start[route + 1]):
                                hop = t.route_link[r]
                                if link_stamp[hop] != tick:
                                    link_stamp[hop] = tick
                                    link[hop] += size
                if is_sent:
                    sent[a] += size
                    steps[a] += size
                    steps[reach] -= size
                live[a] += size
                dying[last] += size
            peak[a] = max(peak[a], live[a])
            live[a] -= dying[v]
            dying[v] = 0.0
        if t.is_chain:
            load = 0.0
            for c in range(chips - 1):
                load += steps[c]
                link[c] = load
        for w in range(len(t.weight_bytes)):
            tick += 1
            for u in range(t.weight_uses[w], t.weight_uses[w + 1]):
                c = f[t.use_node[u]]
                if stamp[c] != tick:
                    stamp[c] = tick
                    memory[c] += t.weight_bytes[w]
        worst, fits, count, highest, total = 0.0, True, 0, 0, 0.0
        for c in range(chips):
            if t.full_memory:
                memory[c] += 2 * (sent[c] + received[c]) + peak[c]
            fits &= memory[c] <= t.capacity_bytes[c]
            total += sent[c]
            received[c] /= t.bandwidth
            sent[c] /= t.bandwidth
            if t.overlap:
                stage[c] = max(compute[c], received[c], sent[c])
            else:
                stage[c] = compute[c] + received[c] + sent[c]
            worst = max(worst, stage[c])
            if used[c]:
                count += 1
                highest = c
        for hop in range(t.num_links):
            link[hop] /= t.bandwidth
            worst = max(worst, link[hop])
        triangle = acyclic
        if acyclic and not span:
            triangle = _is_reduced(t, f, adjacent, reachable)
        no_skip = count == highest + 1
        out.bottleneck_s[b], out.chips_used[b], out.sent_bytes[b] = worst, count, total
        out.acyclic[b], out.no_skip[b], out.triangle[b] = acyclic, no_skip, triangle
        out.memory[b], out.colocation[b], out.fixed_chips[b] = fits, colocation, keeps_fixed
        out.valid[b] = (
            colocation
            and keeps_fixed
            and (acyclic or not t.rules[0])
            and (no_skip or not t.rules[1])
            and (triangle or not t.rules[2])
            and (fits or not t.rules[3])
        )


@njit
def _is_reduced(t, f, adjacent, reachable):  # pragma: no cover - compiled
    """Whether the acyclic chip graph is its own transitive reduction.

    Sets of chips are bits of 64-bit words. `adjacent` and `reachable` [C, words] are overwritten.
    """
    chips, words = adjacent.shape
    one = np.uint64(1)
    adjacent[:] = 0
    for v in range(len(t.fixed_chip)):
        a = f[v]
        for e in range(t.tensor_edges[t.node_tensors[v]], t.tensor_edges[t.node_tensors[v + 1]]):
            c = f[t.consumer[e]]
            if c != a:
                adjacent[a, c >> 6] |= one << np.uint64(c & 63)
    holds = True
    for a in range(chips - 1, -1, -1):
        reachable[a] = 0
        for c in range(a + 1, chips):
            if adjacent[a, c >> 6] >> np.uint64(c & 63) & one:
                for w in range(words):
                    reachable[a, w] |= reachable[c, w]
        for w in range(words):
            if reachable[a, w] & adjacent[a, w]:
                holds = False
            reachable[a, w] |= adjacent[a, w]
    return holds


def _offsets(owner: NDArray[np.integer], count: int) -> NDArray[np.uint32]:
    """[count + 1] offsets of the entries of each owner, in an array sorted by owner."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))]).astype(np.uint32)
