"""The oracle: computes every cost and verdict of a partition slowly and simply.

It follows the definitions alone ("What every figure means" in `jaxpart/README.md`) and shares no
code with what it judges. It uses loops, sets and `math.fsum`, with one function per formula. It
reads the fields of `Graph` and `MCM` and calls none of their methods. Where the definitions leave a
choice, a docstring states the choice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from jaxpart.problem.graph import Graph, Node
from jaxpart.problem.mcm import MCM

Assignment = tuple[int, ...]  # the chip of each node
Link = tuple[int, int]  # (from chip, to chip)

RULES = ("acyclic", "no_skip", "triangle", "memory", "colocation", "fixed_chips")


@dataclasses.dataclass(frozen=True)
class OracleCosts:
    """The costs of one partition, and whether it keeps each rule, even one that is switched off."""

    compute_s: tuple[float, ...]  # per chip, like the next four
    in_s: tuple[float, ...]
    out_s: tuple[float, ...]
    stage_s: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    busy_s: dict[Link, float]  # of every link of the topology
    bottleneck_s: float
    acyclic: bool
    no_skip: bool
    triangle: bool
    memory: bool
    colocation: bool
    fixed_chips: bool
    valid: bool  # keeps colocation, fixed chips and all rules that are switched on


def evaluate(graph: Graph, mcm: MCM, assignment: Iterable[int]) -> OracleCosts:
    """Computes all costs and verdicts of one partition.

    On a chain, an edge to a lower chip is invalid and uses no link. Its tensor still counts in
    `out_s` and `in_s`.

    Raises:
      ValueError: the assignment does not have one chip of the module for each node.
    """
    graph, f = rescaled(graph, mcm), _checked(graph, mcm, assignment)
    chips = range(len(mcm.chips))
    bandwidth = mcm.link_bandwidth
    compute_s, in_s, out_s = [], [], []
    for c in chips:
        compute_s.append(math.fsum(node_seconds(graph, mcm, v, c) for v in nodes_on(f, c)))
        in_s.append(math.fsum(b / bandwidth for b in received_bytes(graph, f, c)))
        out_s.append(math.fsum(b / bandwidth for b in sent_bytes(graph, f, c)))
    stage_s = []
    for parts in zip(compute_s, in_s, out_s, strict=True):
        stage_s.append(max(parts) if mcm.overlap else math.fsum(parts))
    busy_s = {
        link: math.fsum(b / bandwidth for b in carried_bytes(graph, mcm, f, link))
        for link in all_links(mcm)
    }
    verdicts = {rule: keeps(rule, graph, mcm, f) for rule in RULES}
    return OracleCosts(
        compute_s=tuple(compute_s),
        in_s=tuple(in_s),
        out_s=tuple(out_s),
        stage_s=tuple(stage_s),
        memory_bytes=tuple(memory_bytes(graph, mcm, f, c) for c in chips),
        busy_s=busy_s,
        bottleneck_s=max([*stage_s, *busy_s.values()]),
        **verdicts,
        valid=all(verdicts[rule] for rule in rules_on(mcm)),
    )


def all_valid(graph: Graph, mcm: MCM) -> list[Assignment]:
    """All valid partitions in ascending order; tries all C^N, so only for tiny cases."""
    scaled = rescaled(graph, mcm)
    every = itertools.product(range(len(mcm.chips)), repeat=len(graph.nodes))
    return [f for f in every if all(keeps(rule, scaled, mcm, f) for rule in rules_on(mcm))]


def best(graph: Graph, mcm: MCM) -> tuple[float, list[Assignment]] | None:
    """The least bottleneck in seconds of all valid partitions, and all partitions that have it.

    Bottlenecks within a relative 1e-12 are equal: their terms may be added in another order.

    Returns:
      None if no partition is valid.
    """
    times = {f: evaluate(graph, mcm, f).bottleneck_s for f in all_valid(graph, mcm)}
    if not times:
        return None
    least = min(times.values())
    return least, [f for f, t in times.items() if t <= least * (1 + 1e-12)]


def nearest_span(
    graph_edges: Iterable[tuple[int, int]],
    y: Sequence[float],
    weights: Sequence[float],
    num_chips: int,
    pins: Mapping[int, int] | None = None,
    groups: Iterable[Iterable[int]] = (),
    *,
    no_skip: bool = False,
) -> tuple[float, list[Assignment]] | None:
    """The least weighted L1 distance from y to a partition under the span rule.

    The span rule is 0 <= f(v) - f(u) <= 1 on every edge (u, v). The function tries all C^N
    partitions, so it is only for tiny cases.

    Args:
      graph_edges: (producer, consumer) pairs of nodes.
      y: the target, one number per node; it need not be a chip.
      weights: cost of moving each node by one chip, 0 or more.
      num_chips: C.
      pins: node -> its fixed chip.
      groups: the nodes of a group share a chip.
      no_skip: whether the chips in use must be 0 to the highest.

    Returns:
      The distance and all partitions that have it; None if no partition keeps the rules.
    """
    edges, groups = list(graph_edges), [list(group) for group in groups]
    found = []
    for f in itertools.product(range(num_chips), repeat=len(y)):
        if not all(0 <= f[v] - f[u] <= 1 for u, v in edges):
            continue
        if any(f[v] != chip for v, chip in (pins or {}).items()):
            continue
        if any(len({f[v] for v in group}) > 1 for group in groups):
            continue
        if no_skip and not skips_no_chip(f):
            continue
        found.append((math.fsum(w * abs(a - b) for w, a, b in zip(weights, f, y, strict=True)), f))
    if not found:
        return None
    least = min(distance for distance, _ in found)
    return least, [f for distance, f in found if distance <= least + 1e-12 * abs(least)]


# --- the costs ------------------------------------------------------------------------------------


def _checked(graph: Graph, mcm: MCM, assignment: Iterable[int]) -> Assignment:
    f = tuple(int(chip) for chip in assignment)
    if len(f) != len(graph.nodes) or not all(0 <= chip < len(mcm.chips) for chip in f):
        raise ValueError(f"{f}: expected one of {len(mcm.chips)} chips for each node")
    return f


def rescaled(graph: Graph, mcm: MCM) -> Graph:
    """The graph with bytes rescaled to the module's element size, if both state an element size."""
    if mcm.element_bytes is None or graph.element_bytes is None:
        return graph
    ratio = mcm.element_bytes / graph.element_bytes
    nodes = [
        Node(v.name, v.op, v.flops, v.bytes_accessed * ratio, v.seconds, v.colocate, v.pin)
        for v in graph.nodes
    ]
    tensors = [type(k)(k.producer, k.bytes * ratio, k.consumers) for k in graph.tensors]
    weights = [type(w)(w.bytes * ratio, w.consumers) for w in graph.weights]
    return Graph(tuple(nodes), tuple(tensors), tuple(weights), graph.name, mcm.element_bytes)


def edges_of(graph: Graph) -> set[tuple[int, int]]:
    """(producer, consumer) pairs of nodes."""
    return {(k.producer, q) for k in graph.tensors for q in k.consumers}


def nodes_on(f: Sequence[int], c: int) -> list[int]:
    """The nodes on chip c, in the order in which they run."""
    return [v for v, chip in enumerate(f) if chip == c]


def node_seconds(graph: Graph, mcm: MCM, v: int, c: int) -> float:
    """tau(v, c): seconds of node v on chip c."""
    node, chip = graph.nodes[v], mcm.chips[c]
    if node.seconds is not None:
        return node.seconds / chip.speed
    compute = node.flops / chip.peak_flops
    access = node.bytes_accessed / chip.sram_bandwidth
    return max(compute, access) / chip.speed


def destinations(graph: Graph, f: Sequence[int], k: int) -> set[int]:
    """D(k): the chips that tensor k is sent to."""
    tensor = graph.tensors[k]
    return {f[q] for q in tensor.consumers} - {f[tensor.producer]}


def sent_bytes(graph: Graph, f: Sequence[int], c: int) -> list[float]:
    """The bytes of each tensor that chip c sends, once each."""
    return [
        tensor.bytes
        for k, tensor in enumerate(graph.tensors)
        if f[tensor.producer] == c and destinations(graph, f, k)
    ]


def received_bytes(graph: Graph, f: Sequence[int], c: int) -> list[float]:
    """The bytes of each tensor that chip c receives, once each."""
    return [k.bytes for i, k in enumerate(graph.tensors) if c in destinations(graph, f, i)]


def carried_bytes(graph: Graph, mcm: MCM, f: Sequence[int], link: Link) -> list[float]:
    """The bytes of each tensor whose routes use the link, once each."""
    carried = []
    for k, tensor in enumerate(graph.tensors):
        source = f[tensor.producer]
        if any(link in route(mcm, source, d) for d in destinations(graph, f, k)):
            carried.append(tensor.bytes)
    return carried


def all_links(mcm: MCM) -> list[Link]:
    """The links of the topology."""
    chips = range(len(mcm.chips))
    if mcm.topology == "host":
        return []
    if mcm.topology == "chain":
        return [(a, b) for a in chips for b in chips if b == a + 1]
    links = []
    for a, b in itertools.product(chips, chips):
        (row_a, col_a), (row_b, col_b) = _place(mcm, a), _place(mcm, b)
        if abs(row_a - row_b) + abs(col_a - col_b) == 1:
            links.append((a, b))
    return links


def route(mcm: MCM, source: int, target: int) -> list[Link]:
    """The links from one chip to another; none on the host topology or backward on a chain."""
    if mcm.topology == "host":
        return []
    if mcm.topology == "chain":
        return [(c, c + 1) for c in range(source, target)]
    (row, col), (target_row, target_col) = _place(mcm, source), _place(mcm, target)
    cols = mcm.cols or 1
    visited = [source]
    while col != target_col:
        col += 1 if col < target_col else -1
        visited.append(row * cols + col)
    while row != target_row:
        row += 1 if row < target_row else -1
        visited.append(row * cols + col)
    return list(itertools.pairwise(visited))


def _place(mcm: MCM, chip: int) -> tuple[int, int]:
    return divmod(chip, mcm.cols or 1)  # row, column


def memory_bytes(graph: Graph, mcm: MCM, f: Sequence[int], c: int) -> float:
    """M_c: bytes of memory that chip c needs."""
    weights = [w.bytes for w in graph.weights if any(f[q] == c for q in w.consumers)]
    if mcm.memory_model == "weights":
        return math.fsum(weights)
    boundary = [*sent_bytes(graph, f, c), *received_bytes(graph, f, c)]
    return math.fsum([*weights, *boundary, *boundary, peak_bytes(graph, f, c)])


def peak_bytes(graph: Graph, f: Sequence[int], c: int) -> float:
    """The peak of live activations: bytes of tensors made on chip c while a node runs on it."""
    spans = []  # (first node, last node, bytes) of each tensor made on c
    for k in graph.tensors:
        if f[k.producer] == c:
            spans.append((k.producer, max([k.producer, *(q for q in k.consumers if f[q] == c)]), k))
    return max(
        (
            math.fsum(k.bytes for first, last, k in spans if first <= t <= last)
            for t in nodes_on(f, c)
        ),
        default=0.0,
    )


# --- the rules ------------------------------------------------------------------------------------


def rules_on(mcm: MCM) -> list[str]:
    """The rules that a partition must keep on this module; the fastest to check come first."""
    rules = mcm.constraints
    switched = {
        "acyclic": rules.acyclic,
        "no_skip": rules.no_skip,
        "triangle": rules.triangle,
        "memory": rules.memory,
    }
    return ["fixed_chips", "colocation", *(rule for rule, on in switched.items() if on)]


def keeps(rule: str, graph: Graph, mcm: MCM, f: Sequence[int]) -> bool:
    """Whether f keeps one of `RULES`; the graph is rescaled to the module's element size."""
    if rule == "acyclic":
        return all(f[u] <= f[v] for u, v in edges_of(graph))
    if rule == "no_skip":
        return skips_no_chip(f)
    if rule == "triangle":
        return has_no_triangle({(f[u], f[v]) for u, v in edges_of(graph) if f[u] != f[v]})
    if rule == "memory":
        return all(
            memory_bytes(graph, mcm, f, c) <= chip.sram_bytes for c, chip in enumerate(mcm.chips)
        )
    if rule == "colocation":
        pairs = {(v.colocate, f[i]) for i, v in enumerate(graph.nodes) if v.colocate is not None}
        return len(pairs) == len({group for group, _ in pairs})
    if rule == "fixed_chips":
        return all(v.pin is None or v.pin == f[i] for i, v in enumerate(graph.nodes))
    raise ValueError(f"{rule!r} is none of {RULES}")


def skips_no_chip(f: Iterable[int]) -> bool:
    """Whether the chips in use are 0 to the highest."""
    used = set(f)
    return used == set(range(max(used) + 1))


def has_no_triangle(chip_edges: set[Link]) -> bool:
    """Whether no edge a -> b of the chip graph has a longer path from a to b.

    The chip graph may have cycles. Such a path first goes from a to a chip other than b, and never
    returns to a. So it does not use the edge a -> b itself.
    """
    for a, b in chip_edges:
        reached = {x for source, x in chip_edges if source == a and x != b}
        pending = list(reached)
        while pending:
            x = pending.pop()
            if x == b:
                return False
            for source, target in chip_edges:
                if source == x and target != a and target not in reached:
                    reached.add(target)
                    pending.append(target)
    return True


# --- the baseline ---------------------------------------------------------------------------------


def baseline(graph: Graph, mcm: MCM) -> Assignment | None:
    """The compiler's greedy heuristic; None if none of its walks gives a valid partition.

    The definition leaves these choices:

    1. Contracted nodes are walked by Kahn's algorithm, the one with the smallest first node first.
       Without groups this is number order. "Before" means earlier in this walk.
    2. M_c is the memory of chip c if it is closed now: nodes without a chip are on other chips.
    3. The procedure does not depend on the rules that are switched off: cycles are contracted,
       capacities close chips, and traffic keeps them open. The rules only decide which outcome is
       valid.
    4. Targets grow and shrink by repeated multiplication and division.
    """
    graph = rescaled(graph, mcm)
    walk = walking_order(graph)
    chips = range(len(mcm.chips))
    nodes = range(len(graph.nodes))
    sums = [math.fsum(node_seconds(graph, mcm, v, c) for v in nodes) for c in chips]
    first = math.fsum(sums) / len(chips) / len(chips)
    up = itertools.accumulate(range(64), lambda target, _: target * 1.1, initial=first)
    down = itertools.accumulate(range(64), lambda target, _: target / 1.1, initial=first)
    for target in [*up, *list(down)[1:]]:
        f = _greedy_walk(graph, mcm, walk, target)
        if all(keeps(rule, graph, mcm, f) for rule in rules_on(mcm)):
            return f
    return None


def walking_order(graph: Graph) -> list[list[int]]:
    """The nodes of each contracted node, in the order of the greedy walk.

    Nodes are contracted if colocation, or a cycle that it makes, ties them together.
    """
    groups: dict[object, set[int]] = {}
    for v, node in enumerate(graph.nodes):
        label = ("alone", v) if node.colocate is None else ("group", node.colocate)
        groups.setdefault(label, set()).add(v)
    blocks = list(groups.values())
    while True:
        block_of = {v: i for i, block in enumerate(blocks) for v in block}
        before: list[set[int]] = [set() for _ in blocks]
        for u, v in edges_of(graph):
            if block_of[u] != block_of[v]:
                before[block_of[v]].add(block_of[u])
        order: list[int] = []
        placed: set[int] = set()
        waiting = set(block_of.values())
        while ready := [i for i in waiting if before[i] <= placed]:
            first = min(ready, key=lambda i: min(blocks[i]))
            order.append(first)
            placed.add(first)
            waiting.remove(first)
        if not waiting:
            return [sorted(blocks[i]) for i in order]
        # Every waiting contracted node has a predecessor that waits too, so walking backward closes
        # a cycle.
        trail = [min(waiting)]
        while len(set(trail)) == len(trail):
            trail.append(min(before[trail[-1]] & waiting))
        cycle = set(trail[trail.index(trail[-1]) :])
        tied = set().union(*(blocks[i] for i in cycle))
        blocks = [tied, *(block for i, block in enumerate(blocks) if i not in cycle)]


def _greedy_walk(graph: Graph, mcm: MCM, walk: list[list[int]], target: float) -> Assignment:
    position = {v: i for i, block in enumerate(walk) for v in block}
    f = [-1] * len(graph.nodes)  # -1: not placed yet
    c, opened_at = 0, 0

    def traffic_is_over(i: int) -> bool:
        across = [
            k.consumers
            for k in graph.tensors
            if position[k.producer] < opened_at
            and any(position[q] >= opened_at for q in k.consumers)
        ]
        return all(position[q] < i for consumers in across for q in consumers)

    def is_full(block: list[int]) -> bool:
        compute_s = math.fsum(node_seconds(graph, mcm, v, c) for v in nodes_on(f, c))
        if compute_s >= target or any((graph.nodes[v].pin or 0) > c for v in block):
            return True
        with_block = [c if v in block else chip for v, chip in enumerate(f)]
        return memory_bytes(graph, mcm, with_block, c) > mcm.chips[c].sram_bytes

    for i, block in enumerate(walk):
        if c in f and c < len(mcm.chips) - 1 and traffic_is_over(i) and is_full(block):
            c, opened_at = c + 1, i
        for v in block:
            f[v] = c
    return tuple(f)
