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
from jaxpart.ingest.rewrite.lanes import lane_order, renumbered
from jaxpart.ingest.rewrite.parts import Uses, part_node, share
from jaxpart.ingest.rewrite.split import Split
from jaxpart.problem.graph import Graph, Node
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
    added = sum(request.parts - 1 for request in between.values())
    if between:
        requests = _allotted(options, max(room - added, room // 2))
        left = room - _added(requests)
        for v, request in _between(graph, requests).items():
            if request.parts - 1 <= left:
                requests[v] = request
                left -= request.parts - 1
    made = rewrite.split(graph, requests)
    return renumbered(made, _best_order(made, mcm))


def _best_order(made: Split, mcm: MCM) -> list[int]:
    """Band by band, unless one chip that runs everything would need more memory than before."""
    order = lane_order(made)
    peaks = []
    for graph in (made.original, renumbered(made, order).graph):
        problem = Problem.build(graph, mcm)
        peaks.append(segment_peak_bytes(problem, np.ones(problem.num_nodes, bool)))
    return order if peaks[1] <= peaks[0] else list(range(len(order)))


def within_growth(made: Split, mcm: MCM, *, growth: float = GROWTH) -> bool:
    """Whether parts are no more than `split` with this growth allows."""
    added = sum(cut.parts - 1 for cut in made.cuts.values())
    return added <= _room(made.original, mcm, growth)


def _room(graph: Graph, mcm: MCM, growth: float) -> int:
    """How many parts a split may add."""
    return max(int(growth * len(graph.nodes)), NODES_PER_CHIP * mcm.num_chips if growth else 0)


def refine(
    made: Split, mcm: MCM, assignment: Sequence[int], *, most: int = 2
) -> tuple[Split, tuple[int, ...]] | None:
    """Splits further what binds a partition.

    That is the longest divisible node of each chip whose stage is the bottleneck. Where a port or a
    link is, it is the consumer of the largest tensor there that can be read in pieces.

    Args:
      made: the graph as split so far.
      mcm: the module.
      assignment: a partition of `made.graph`.
      most: into how many parts each such node is split.

    Returns:
      The finer split, and the partition carried over: new parts are on the chip of what they are
      parts of. It is for the caller to verify. None if nothing that binds can be split.
    """
    problem = Problem.build(made.graph, mcm)
    f = problem.assignment_of(assignment)
    cuts: dict[int, Request | Cut] = dict(made.cuts)
    changed = False
    for x in _binding(problem, f):
        v = made.whole_of[x]
        finer = None if v is None else _finer(made, v, x, most, mcm)
        if v is not None and finer is not None and cuts.get(v) == made.cuts.get(v):
            cuts[v] = finer
            changed = True
    if not changed:
        return None
    fine = rewrite.split(made.original, cuts, made.relays)
    order, chips = _best_order(fine, mcm), fine.carried(made, assignment)
    return renumbered(fine, order), tuple(chips[x] for x in order)


class _Way(NamedTuple):
    """One way to split a node: by one division."""

    division: int  # position in `Node.divide`
    longest_s: Mapping[int, float]  # number of parts -> seconds of the longest part
    parts: int  # as many as are wanted
    cost_s: float


class _Options:
    """The nodes that are worth splitting, and the best way for each."""

    def __init__(
        self, graph: Graph, mcm: MCM, most: int, load_share: float, memory_share: float
    ) -> None:
        self.graph = graph
        problem = Problem.build(graph, mcm)
        scaled = problem.graph
        node_s = _mean_s(problem)
        self.target_s = problem.mean_load_s * load_share
        uses = Uses.of(scaled)
        partners = _partners(scaled, uses)
        self.node_s = node_s
        self.ways: dict[int, _Way] = {}
        self.is_heavy: dict[int, bool] = {}
        sizes = _Sizes(scaled, uses, mcm)
        capacity = sizes.capacity * memory_share
        for v, node in enumerate(scaled.nodes):
            if not node.divide or node.colocate is not None:
                continue
            heavy = sizes.memory(v, None, 0) > capacity
            wide = TRAFFIC * sizes.traffic_s(v, None, 0) > self.target_s
            if node_s[v] <= self.target_s and not heavy and not wide:
                continue
            ways = [
                way
                for d in range(len(node.divide))
                if (way := self._way(sizes, partners, v, d, most, capacity if heavy else math.inf))
            ]
            if ways:
                self.ways[v] = min(ways, key=lambda way: way.cost_s)
                self.is_heavy[v] = heavy

    def _way(
        self,
        sizes: _Sizes,
        partners: Callable[[int, int], float],
        v: int,
        d: int,
        most: int,
        capacity: float,
    ) -> _Way | None:
        division = sizes.graph.nodes[v].divide[d]
        counts = range(2, min(most, division.ways) + 1)
        cuts = {k: Cut(division, equal_parts(division.ways, division.ways, k)) for k in counts}
        # The first part has the most slices, one between two others the widest halo.
        tried = [(k, part) for k in counts for part in {0, k // 2}]
        seconds = sizes.seconds([sizes.part(v, cuts[k], part) for k, part in tried])
        passed = partners(v, d)
        share_s = TRAFFIC if passed >= _MOSTLY and division.join is None else 0.0
        longest = {1: max(float(self.node_s[v]), share_s * sizes.traffic_s(v, None, 0))}
        for (k, part), part_s in zip(tried, seconds.tolist(), strict=True):
            longest[k] = max(
                longest.get(k, 0.0), part_s, share_s * sizes.traffic_s(v, cuts[k], part)
            )
        memory = {k: sizes.memory(v, cuts.get(k), 0) for k in longest}
        wanted = 1
        for k in counts:
            if longest[wanted] <= self.target_s and memory[wanted] <= capacity:
                break
            lighter = memory[wanted] > capacity and memory[k] < _GAIN * memory[wanted]
            if lighter or longest[k] < _GAIN * longest[wanted]:
                wanted = k
        if wanted == 1 or memory[wanted] > sizes.capacity:
            return None
        cut = cuts[wanted]
        traffic_s = sizes.traffic_s(v, cut, wanted // 2)
        cost = max(longest[wanted], traffic_s, self.target_s)
        if division.join is not None:
            cost += traffic_s
        if memory[wanted] > capacity:
            cost += longest[1]  # a last resort
        return _Way(d, longest, wanted, cost * (1 + _PASSED * (1 - passed)))


class _Sizes:
    """What parts of the nodes of a graph take."""

    def __init__(self, graph: Graph, uses: Uses, mcm: MCM) -> None:
        self.graph, self.uses, self.mcm = graph, uses, mcm
        self.capacity = math.inf  # bytes of the smallest chip
        if mcm.constraints.memory:
            self.capacity = min(chip.sram_bytes for chip in mcm.chips)

    def part(self, v: int, cut: Cut, part: int) -> Node:
        return part_node(self.graph, self.uses, v, cut, part, "part", ())

    def seconds(self, nodes: Iterable[Node]) -> np.ndarray:
        """Mean over the chips of each node's seconds."""
        named = [
            Node(f"{i}", "part", n.flops, n.bytes_accessed, n.seconds) for i, n in enumerate(nodes)
        ]
        graph = Graph(tuple(named), element_bytes=None)
        return _mean_s(Problem.build(graph, self.mcm))

    def received(self, v: int, cut: Cut | None, part: int) -> float:
        """Bytes that a part reads of other nodes' tensors."""
        labels = {} if cut is None else dict(cut.division.reads)
        return sum(
            self.graph.tensors[k].bytes
            if cut is None or labels.get(k) is None
            else share(self.graph.tensors[k].bytes, cut.reads(part))
            for k in self.uses.read[v]
        )

    def sent(self, v: int, cut: Cut | None, part: int) -> float:
        """Bytes of a part's results."""
        results = [self.graph.tensors[k].bytes for k in self.uses.made[v]]
        if cut is None or cut.division.join is not None:
            return sum(results)
        return sum(share(size, cut.range_of(part)) for size in results)

    def traffic_s(self, v: int, cut: Cut | None, part: int) -> float:
        """Seconds of the ports of a chip that runs one part alone."""
        most = max(self.received(v, cut, part), self.sent(v, cut, part))
        return most / self.mcm.link_bandwidth

    def memory(self, v: int, cut: Cut | None, part: int) -> float:
        """Bytes of a chip that runs one part alone."""
        labels = {} if cut is None else dict(cut.division.weights)
        held = sum(
            self.graph.weights[w].bytes
            if cut is None or labels.get(w) is None
            else share(self.graph.weights[w].bytes, cut.range_of(part))
            for w in self.uses.held[v]
        )
        if self.mcm.memory_model == "weights":
            return held
        return held + 2 * self.received(v, cut, part) + 3 * self.sent(v, cut, part)


def _mean_s(problem: Problem) -> np.ndarray:
    """[N] mean over the chips of each node's seconds."""
    return problem.node_s[:, problem.chip_kind].mean(axis=1)


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
        return not heavy, -options.ways[v].longest_s[parts[v]], v

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


def _added(requests: Mapping[int, Request]) -> int:
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


def _finer(made: Split, v: int, x: int, most: int, mcm: MCM) -> Request | Cut | None:
    """How to split node v of the original further, where the new node x is."""
    node = made.original.nodes[v]
    cut = made.cuts.get(v)
    if cut is None:
        options = _Options(made.original, mcm, most, 1e-9, MEMORY_SHARE)
        if v not in options.ways:
            return None
        way = options.ways[v]
        return Request(way.division, min(most, node.divide[way.division].ways), chain=True)
    i = made.parts_of[v].index(x)
    first, last = cut.places[i], cut.places[i + 1]
    if last - first < 2:
        return None
    inner = equal_parts(last - first, last - first, min(most, last - first))[1:-1]
    places = (*cut.places[: i + 1], *(first + place for place in inner), *cut.places[i + 1 :])
    return cut._replace(places=places)
