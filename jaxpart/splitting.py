"""Which operations are split, and how far, for a module: `split`, and `refine` after a search."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxpart.cost.host import loads, segment_peak_bytes, stage_s_of
from jaxpart.errors import InputError
from jaxpart.ingest.rewrite import split as rewrite
from jaxpart.ingest.rewrite.cuts import Cut, Request, equal_parts
from jaxpart.ingest.rewrite.estimates import estimates
from jaxpart.ingest.rewrite.lanes import lane_order, renumbered
from jaxpart.ingest.rewrite.split import Split
from jaxpart.ingest.rewrite.uses import Uses
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem

MOST_PARTS = 16
LOAD_SHARE = 0.5  # of the mean load: what is longer is split
MEMORY_SHARE = 0.5  # of the smallest chip's memory: what is larger is split
GROWTH = 1 / 3  # most nodes that are added, as a share of the graph's
# A graph of few nodes may grow by more, since its parts cannot fill the chips otherwise.
NODES_PER_CHIP = 2
TRAFFIC = 1.0  # seconds of a port for its tensors that count as one second of work
_MOSTLY = 0.5  # of its bytes, from which on a cut passes through
_PASSED = 0.25  # how much a cut that passes through to all neighbours is preferred
_GAIN = 0.98  # a further part that shortens the longest one by less is not worth it


def split(
    graph: Graph,
    mcm: MCM,
    *,
    most: int = MOST_PARTS,
    load_share: float = LOAD_SHARE,
    memory_share: float = MEMORY_SHARE,
    growth: float = GROWTH,
) -> Split:
    """Splits the operations of a graph that are too large for a chip's share.

    An operation is split if it takes longer than a share of the mean load, or if its weights or
    what it reads and writes fill more than a share of a chip's memory: into as few parts as bring
    each below. The longest are split first, until the graph has grown by its limit. Of the ways to
    divide an operation, one is taken whose parts are short, receive and send little, fit the
    memory, and whose cut passes through to neighbours. Where it mostly does, an operation whose
    tensors keep a link busy for longer than that share is split too: they then stay on their chips.
    Small operations between two that are cut along one axis are cut with them.

    The nodes are in the order of `lane_order`, unless one chip that runs the whole graph would need
    more memory so. Cuts of this order break the triangle rule where parts of one operation fill
    several chips; `relayed` mends any partition without it.

    Args:
      graph: the graph; only nodes with `divide` can be split.
      mcm: the module.
      most: most parts of an operation.
      load_share: of the mean load.
      memory_share: of the memory of the smallest chip.
      growth: most nodes that are added, as a share of the graph's; two for each chip if that is
        more.

    Raises:
      InputError: `most` is below 2, or a share is not positive.
    """
    if most < 2:
        raise InputError(f"split: at most {most} parts, expected 2 or more")
    for name, value in (("load_share", load_share), ("memory_share", memory_share)):
        if not value > 0:
            raise InputError(f"split: {name} is {value}, expected a positive number")
    room = _room(graph, mcm, growth)
    options = _Options(graph, mcm, most, load_share, memory_share)
    requests = _allotted(options, room)
    between = _between(graph, requests)
    if between:
        requests = _allotted(options, max(room - _added(between), room // 2))
        left = room - _added(requests)
        for v, request in _between(graph, requests).items():
            if request.parts - 1 <= left:
                requests[v] = request
                left -= request.parts - 1
    return _best_ordered(rewrite.split(graph, requests), mcm)[0]


def _best_ordered(made: Split, mcm: MCM) -> tuple[Split, list[int]]:
    """The split in the order of `lane_order`, and that order.

    It stays as it is if one chip that runs everything would need more memory than before.
    """
    order = lane_order(made)
    ordered = renumbered(made, order)
    peaks = []
    for graph in (made.original, ordered.graph):
        problem = Problem.build(graph, mcm)
        peaks.append(segment_peak_bytes(problem, np.ones(problem.num_nodes, bool)))
    return (ordered, order) if peaks[1] <= peaks[0] else (made, list(range(len(order))))


def within_growth(made: Split, mcm: MCM, *, growth: float = GROWTH) -> bool:
    """Whether parts are no more than `split` with this growth allows."""
    return _added(made.cuts) <= _room(made.original, mcm, growth)


def _room(graph: Graph, mcm: MCM, growth: float) -> int:
    """How many parts a split may add."""
    return max(int(growth * len(graph.nodes)), NODES_PER_CHIP * mcm.num_chips if growth else 0)


def refine(
    made: Split,
    mcm: MCM,
    assignment: Sequence[int],
    *,
    most: int = 2,
    most_parts: int | None = None,
) -> tuple[Split, tuple[int, ...]] | None:
    """Splits further what binds a partition.

    That is the longest divisible node of each chip whose stage is the bottleneck. Where a port or a
    link is, it is the consumer of the largest tensor there that can be read in pieces.

    Args:
      made: the graph as split so far.
      mcm: the module.
      assignment: a partition of `made.graph`.
      most: into how many parts each such node is split; fewer where `most_parts` allows no more.
      most_parts: most parts of an operation of the original graph; None: any number.

    Returns:
      The finer split, and the partition carried over: new parts are on the chip of what they are
      parts of. It is for the caller to verify. None if nothing that binds can be split.
    """
    problem = Problem.build(made.graph, mcm)
    binding = [
        (v, x)
        for x in _binding(problem, problem.assignment_of(assignment))
        if (v := made.whole_of[x]) is not None
    ]
    uncut = [v for v, _ in binding if v not in made.cuts]
    whole = _requested(made.original, mcm, uncut, most) if uncut else {}
    cuts: dict[int, Request | Cut] = dict(made.cuts)
    changed = False
    for v, x in binding:
        if cuts.get(v) != made.cuts.get(v):
            continue  # another part of it binds too
        cut = made.cuts.get(v)
        room = most
        if most_parts is not None:
            room = min(most, most_parts - (0 if cut is None else cut.parts - 1))
        if cut is not None:
            finer = _finer(cut, made.parts_of[v].index(x), room)
        else:
            finer = whole[v]._replace(parts=min(whole[v].parts, room)) if v in whole else None
        if finer is not None and room > 1:
            cuts[v] = finer
            changed = True
    if not changed:
        return None
    fine = rewrite.split(made.original, cuts)
    chips = fine.carried(made, assignment)
    ordered, order = _best_ordered(fine, mcm)
    return ordered, tuple(chips[x] for x in order)


class _Way(NamedTuple):
    """One way to split a node: by one division."""

    division: int  # position in `Node.divide`
    longest_s: Sequence[float]  # by number of parts, from 1 on: seconds of the longest part
    parts: int  # as many as are wanted
    cost_s: float


class _Options:
    """The nodes that are worth splitting, and the best way for each.

    Attributes:
      ways: by node.
      is_heavy: by node, whether it is too large for its share of a chip's memory.
    """

    def __init__(
        self,
        graph: Graph,
        mcm: MCM,
        most: int,
        load_share: float,
        memory_share: float,
        among: Iterable[int] | None = None,
    ) -> None:
        """Looks at all nodes of a graph, or `among` some; the rest as for `split`."""
        problem = Problem.build(graph, mcm)
        scaled = problem.graph
        target_s = problem.mean_load_s * load_share
        uses = Uses.of(scaled)
        partners = _partners(scaled, uses)
        most_bytes = math.inf  # of the smallest chip
        if mcm.constraints.memory:
            most_bytes = min(chip.sram_bytes for chip in mcm.chips)
        capacity = most_bytes * memory_share
        pairs = [
            (v, d)
            for v in (range(len(scaled.nodes)) if among is None else sorted(set(among)))
            for d in range(len(scaled.nodes[v].divide))
            if scaled.nodes[v].colocate is None
        ]
        divided = [(v, scaled.nodes[v].divide[d]) for v, d in pairs]
        takes = estimates(scaled, uses, mcm, divided, most)
        self.ways: dict[int, _Way] = {}
        self.is_heavy: dict[int, bool] = {}
        for i, (v, d) in enumerate(pairs):
            heavy = takes.memory[i, 0] > capacity
            wide = TRAFFIC * takes.traffic_s[i, 0] > target_s
            if takes.seconds[i, 0] <= target_s and not heavy and not wide:
                continue
            division = scaled.nodes[v].divide[d]
            passed = partners(v, d)
            seconds = takes.seconds[i, : division.ways]
            if passed >= _MOSTLY and division.join is None:
                seconds = np.maximum(seconds, TRAFFIC * takes.traffic_s[i, : division.ways])
            longest, memory = seconds.tolist(), takes.memory[i].tolist()
            limit = capacity if heavy else math.inf
            wanted = _wanted(longest, memory, target_s, limit)
            if wanted == 1 or memory[wanted - 1] > most_bytes:
                continue
            traffic_s = float(takes.middle_s[i, wanted - 1])
            cost_s = max(longest[wanted - 1], traffic_s, target_s)
            if division.join is not None:
                cost_s += traffic_s
            if memory[wanted - 1] > limit:
                cost_s += longest[0]  # a last resort
            cost_s *= 1 + _PASSED * (1 - passed)
            if v not in self.ways or cost_s < self.ways[v].cost_s:
                self.ways[v] = _Way(d, longest, wanted, cost_s)
                self.is_heavy[v] = heavy


def _wanted(
    longest: Sequence[float], memory: Sequence[float], target_s: float, limit: float
) -> int:
    """As few parts as serve; arguments are by number of parts, from 1 on."""
    wanted = 1
    for k in range(2, len(longest) + 1):
        size = memory[wanted - 1]
        if longest[wanted - 1] <= target_s and size <= limit:
            break
        lighter = size > limit and memory[k - 1] < _GAIN * size
        if lighter or longest[k - 1] < _GAIN * longest[wanted - 1]:
            wanted = k
    return wanted


def _partners(graph: Graph, uses: Uses) -> Callable[[int, int], float]:
    """The share of a node's bytes in and out that neighbours can be cut with along one axis."""
    written = [{d.axis for d in node.divide if d.join is None} for node in graph.nodes]  # by node
    read: list[set[str]] = [set() for _ in graph.tensors]
    for node in graph.nodes:
        for division in node.divide:
            for k, label in division.reads:
                if label is not None:
                    read[k].add(label)

    def passed(v: int, d: int) -> float:
        division = graph.nodes[v].divide[d]
        labels = dict(division.reads)
        total = through = 0.0
        for k in uses.read[v]:
            tensor = graph.tensors[k]
            total += tensor.bytes
            if labels.get(k) in written[tensor.producer]:
                through += tensor.bytes
        for k in uses.made[v]:
            total += graph.tensors[k].bytes
            if division.join is None and division.axis in read[k]:
                through += graph.tensors[k].bytes
        return through / total if total else 0.0

    return passed


def _allotted(options: _Options, room: int) -> dict[int, Request]:
    """Gives parts to the nodes, one at a time to the one whose parts are longest."""
    parts = dict.fromkeys(options.ways, 1)

    def entry(v: int) -> tuple[bool, float, int]:
        # What fits no chip comes first.
        heavy = options.is_heavy[v] and parts[v] < options.ways[v].parts
        return not heavy, -options.ways[v].longest_s[parts[v] - 1], v

    queue = [entry(v) for v in options.ways]
    heapq.heapify(queue)
    left = room
    while queue and left:
        v = heapq.heappop(queue)[2]
        if parts[v] < options.ways[v].parts:
            parts[v] += 1
            left -= 1
            heapq.heappush(queue, entry(v))
    return {v: Request(options.ways[v].division, k, chain=True) for v, k in parts.items() if k > 1}


def _added(requests: Mapping[int, Request] | Mapping[int, Cut]) -> int:
    return sum(request.parts - 1 for request in requests.values())


def _between(graph: Graph, requests: Mapping[int, Request]) -> dict[int, Request]:
    """Nodes between two that are cut along one axis, with as many parts as these have."""
    uses = Uses.of(graph)

    def axis_of(v: int) -> str | None:
        if v not in requests:
            return None
        division = graph.nodes[v].divide[int(requests[v].division)]
        return division.axis if division.join is None else None

    fed: list[dict[str, int]] = [{} for _ in graph.nodes]  # axis -> parts of what it reads so
    for v, node in enumerate(graph.nodes):
        for division in node.divide:
            if division.join is not None or node.colocate is not None:
                continue
            for k, label in division.reads:
                u = graph.tensors[k].producer
                if label is None:
                    continue
                parts = requests[u].parts if axis_of(u) == label else 0
                if u not in requests:
                    parts = fed[u].get(label, 0)
                if parts and division.axis == label:
                    fed[v][label] = max(fed[v].get(label, 0), min(parts, division.ways))
    wanted: list[set[str]] = [set() for _ in graph.tensors]  # axes along which it is read in parts
    found: dict[int, Request] = {}
    for v in reversed(range(len(graph.nodes))):
        node = graph.nodes[v]
        if v in requests:
            chosen = node.divide[int(requests[v].division)]
        else:
            axes = {label for k in uses.made[v] for label in wanted[k]}
            both = [axis for axis in fed[v] if axis in axes and fed[v][axis] > 1]
            if not both:
                continue
            d, chosen = next(
                (d, one)
                for d, one in enumerate(node.divide)
                if one.axis == both[0] and one.join is None
            )
            found[v] = Request(d, min(fed[v][both[0]], chosen.ways))
        for k, label in chosen.reads:
            if label is not None:
                wanted[k].add(label)
    return dict(sorted(found.items()))


def _binding(problem: Problem, f: np.ndarray) -> list[int]:
    """Nodes whose division can relieve the bottleneck."""
    load = loads(problem, f)
    stages = stage_s_of(problem, load)
    link_s = load.link_bytes / problem.mcm.link_bandwidth
    worst = max(stages.max(), link_s.max(initial=0.0))
    node_s = problem.node_s[np.arange(problem.num_nodes), problem.chip_kind[f]]
    divisible = np.array([bool(node.divide) for node in problem.graph.nodes])
    found: list[int] = []
    for c in np.flatnonzero(stages >= worst * (1 - 1e-9)):
        here = np.flatnonzero((f == c) & divisible)
        if load.compute_s[c] >= worst * (1 - 1e-9) and len(here):
            found.append(int(here[np.argmax(node_s[here])]))
    if found:
        return found
    # A port or a link: whoever reads the largest tensor that goes through it.
    source, target = f[problem.edge_producer], f[problem.edge_consumer]
    if stages.max() >= worst * (1 - 1e-9):
        c = int(stages.argmax())
        crossing = (source != target) & ((source == c) | (target == c))
    else:
        link = problem.mcm.links[int(link_s.argmax())]
        pairs = list(zip(source.tolist(), target.tolist(), strict=True))
        through = {(a, b): a != b and link in problem.mcm.route(a, b) for a, b in set(pairs)}
        crossing = np.array([through[pair] for pair in pairs], bool)
    edges = np.flatnonzero(crossing)
    for e in edges[np.argsort(-problem.tensor_bytes[problem.edge_tensor[edges]])]:
        k, q = int(problem.edge_tensor[e]), int(problem.edge_consumer[e])
        if any(dict(d.reads).get(k) is not None for d in problem.graph.nodes[q].divide):
            return [q]
    return []


def _requested(graph: Graph, mcm: MCM, nodes: Sequence[int], most: int) -> dict[int, Request]:
    """How to split those of some whole nodes that can be split to advantage."""
    options = _Options(graph, mcm, most, 1e-9, MEMORY_SHARE, nodes)
    found = {}
    for v, way in options.ways.items():
        parts = min(most, graph.nodes[v].divide[way.division].ways)
        found[v] = Request(way.division, parts, chain=True)
    return found


def _finer(cut: Cut, part: int, most: int) -> Cut | None:
    """The cut with one part split further, into at most so many; None if it has but one slice."""
    first, last = cut.places[part], cut.places[part + 1]
    parts = min(most, last - first)
    if parts < 2:
        return None
    inner = equal_parts(last - first, last - first, parts)[1:-1]
    places = (*cut.places[: part + 1], *(first + x for x in inner), *cut.places[part + 1 :])
    return cut._replace(places=places)
