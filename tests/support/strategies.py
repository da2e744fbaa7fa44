"""Random graphs, modules and partitions, by hypothesis or by a numpy generator.

The code is the same for both. It needs only a function that picks an integer between two bounds,
which hypothesis or numpy provides. Byte counts and FLOPs are multiples of 125, and rates are 1000
times a power of two. So sums of bytes and seconds are exact in float64, and tests can compare them
exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import numpy as np
from hypothesis import strategies as st

from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip, Constraints

Pick = Callable[[int, int], int]  # an integer from low to high, both included
T = TypeVar("T")

TOPOLOGIES = ("chain", "host", "mesh")
_RATES = (1000.0, 500.0, 2000.0)  # FLOP/s and bytes/s
_CAPACITIES = (1e6, 8000.0, 4000.0, 2000.0, 1000.0)  # bytes, from large to binding


def random_graph(
    rng: np.random.Generator,
    max_nodes: int = 8,
    max_chips: int = 3,
    *,
    num_nodes: int | None = None,
    num_tensors: int | None = None,
    num_weights: int | None = None,
    shared_weights: bool = True,
    colocation: bool = True,
    pins: bool = True,
) -> Graph:
    """Makes a random graph.

    Args:
      rng: the generator.
      max_nodes: most nodes, if `num_nodes` is None.
      max_chips: fixed chips are below it.
      num_nodes, num_tensors, num_weights: exact counts, so that arrays keep their shapes in a loop;
        the number of edges still varies. None: random.
      shared_weights: whether a weight may have several consumers.
      colocation, pins: whether there may be groups, and fixed chips.
    """
    return _graph(
        _of_numpy(rng),
        max_nodes,
        max_chips,
        (num_nodes, num_tensors, num_weights),
        shared_weights=shared_weights,
        colocation=colocation,
        pins=pins,
    )


@st.composite
def graphs(
    draw: st.DrawFn,
    max_nodes: int = 8,
    max_chips: int = 3,
    *,
    shared_weights: bool = True,
    colocation: bool = True,
    pins: bool = True,
) -> Graph:
    """Graphs; the arguments are those of `random_graph`."""
    return _graph(
        _of_hypothesis(draw),
        max_nodes,
        max_chips,
        (None, None, None),
        shared_weights=shared_weights,
        colocation=colocation,
        pins=pins,
    )


def random_divided_graph(rng: np.random.Generator, max_nodes: int = 8) -> Graph:
    """Makes a random graph whose nodes can be divided; none is profiled for certain."""
    pick = _of_numpy(rng)
    return _divided(pick, random_graph(rng, max_nodes, colocation=False))


@st.composite
def divided_graphs(draw: st.DrawFn, max_nodes: int = 8) -> Graph:
    """Graphs whose nodes can be divided: along up to three axes, with sums and halos."""
    return _divided(_of_hypothesis(draw), draw(graphs(max_nodes, colocation=False)))


def random_mcm(
    rng: np.random.Generator,
    max_chips: int = 4,
    *,
    num_chips: int | None = None,
    topology: str | None = None,
) -> MCM:
    """Makes a random module with 1 to `max_chips` chips, unless the number is given."""
    return _mcm(_of_numpy(rng), max_chips, num_chips, topology)


@st.composite
def mcms(
    draw: st.DrawFn,
    max_chips: int = 4,
    *,
    num_chips: int | None = None,
    topology: str | None = None,
) -> MCM:
    """Modules; the arguments are those of `random_mcm`."""
    return _mcm(_of_hypothesis(draw), max_chips, num_chips, topology)


def random_assignment(rng: np.random.Generator, graph: Graph, mcm: MCM) -> tuple[int, ...]:
    """Makes a random partition, valid or not.

    Its chips ascend in number order, rise by at most one per edge, or are uniform.
    """
    return _assignment(_of_numpy(rng), graph, mcm)


@st.composite
def assignments(draw: st.DrawFn, graph: Graph, mcm: MCM) -> tuple[int, ...]:
    """Partitions of `graph`, as `random_assignment` makes them."""
    return _assignment(_of_hypothesis(draw), graph, mcm)


def _of_numpy(rng: np.random.Generator) -> Pick:
    return lambda low, high: int(rng.integers(low, high + 1))


def _of_hypothesis(draw: st.DrawFn) -> Pick:
    return lambda low, high: draw(st.integers(low, high))


def _chance(pick: Pick, percent: int) -> bool:
    return pick(0, 99) >= 100 - percent  # hypothesis shrinks to 0, so to False


def _one_of(pick: Pick, options: Sequence[T]) -> T:
    return options[pick(0, len(options) - 1)]


def _amount(pick: Pick, most: int) -> int:
    """Zero (in one case of six) or a positive multiple of 125 up to `most`."""
    return 0 if pick(0, 5) == 0 else 125 * pick(1, most // 125)


def _graph(
    pick: Pick,
    max_nodes: int,
    max_chips: int,
    counts: tuple[int | None, int | None, int | None],
    *,
    shared_weights: bool,
    colocation: bool,
    pins: bool,
) -> Graph:
    num_nodes, num_tensors, num_weights = counts
    n = num_nodes if num_nodes is not None else pick(1, max_nodes)
    num_tensors = num_tensors if num_tensors is not None else pick(0, 2 * n)
    num_weights = num_weights if num_weights is not None else pick(0, n)
    profiled = _chance(pick, 30)
    reach = pick(1, n)  # small: like a path; large: edges may skip many nodes
    chip_of = _pins(pick, n, max_chips) if pins and _chance(pick, 25) else [None] * n
    group_of = _groups(pick, n) if colocation and _chance(pick, 35) else [None] * n
    pin_of_group = {
        g: chip for g, chip in zip(group_of, chip_of, strict=True) if None not in (g, chip)
    }
    nodes = []
    for v in range(n):
        group, chip = group_of[v], chip_of[v]
        if group is not None and chip is not None:
            chip = pin_of_group[group]
        costs = (_amount(pick, 1000), _amount(pick, 1000))
        seconds = _amount(pick, 1000) / 1000 if profiled and _chance(pick, 60) else None
        nodes.append(Node(f"n{v}", "op", *costs, seconds, group, chip))
    tensors = []
    for _ in range(num_tensors):
        u = pick(0, n - 1)
        last = min(n - 1, u + reach)
        consumers = {pick(u + 1, last) for _ in range(pick(0, 3))} if u < last else set()
        tensors.append(Tensor(u, _amount(pick, 750), tuple(sorted(consumers))))
    weights = []
    for _ in range(num_weights):
        users = {pick(0, n - 1) for _ in range(pick(0, 3) if shared_weights else 1)}
        weights.append(Weight(_amount(pick, 1000), tuple(sorted(users))))
    element_bytes = _one_of(pick, (4, 1, None))
    return Graph(tuple(nodes), tuple(tensors), tuple(weights), "random", element_bytes)


def _divided(pick: Pick, graph: Graph) -> Graph:
    axes = ("a", "b", "c")
    read: list[list[int]] = [[] for _ in graph.nodes]
    held: list[list[int]] = [[] for _ in graph.nodes]
    for k, tensor in enumerate(graph.tensors):
        for q in tensor.consumers:
            read[q].append(k)
    for w, weight in enumerate(graph.weights):
        for q in weight.consumers:
            held[q].append(w)

    def labels(numbers: Sequence[int]) -> tuple[tuple[int, str | None], ...]:
        chosen = [(number, _one_of(pick, (*axes[:2], None, ""))) for number in numbers]
        return tuple((number, label) for number, label in chosen if label != "")

    nodes = []
    for v, node in enumerate(graph.nodes):
        divide = tuple(
            Division(
                ways=_one_of(pick, (2, 3, 4, 6, 8)),
                axis=axis,
                join="sum" if _chance(pick, 30) else None,
                halo=_one_of(pick, (0, 0, 0, 1, 0.5)),
                reads=labels(read[v]),
                weights=labels(held[v]),
            )
            for axis in axes[: pick(0, 3)]
        )
        nodes.append(msgspec.structs.replace(node, divide=divide))
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _pins(pick: Pick, n: int, max_chips: int) -> list[int | None]:
    return [pick(0, max_chips - 1) if _chance(pick, 20) else None for _ in range(n)]


def _groups(pick: Pick, n: int) -> list[int | None]:
    # Group numbers need not be consecutive.
    return [_one_of(pick, (3, 7)) if _chance(pick, 40) else None for _ in range(n)]


def _mcm(pick: Pick, max_chips: int, num_chips: int | None, topology: str | None) -> MCM:
    topology = topology if topology is not None else _one_of(pick, TOPOLOGIES)
    count = num_chips if num_chips is not None else pick(1, max_chips)
    rows = cols = None
    if topology == "mesh":
        rows = _one_of(pick, [d for d in range(1, count + 1) if count % d == 0])
        cols = count // rows
    chips = [_chip(pick)] * count
    if _chance(pick, 40):
        chips = [_chip(pick) for _ in range(count)]
    acyclic = topology == "chain" or not _chance(pick, 25)
    rules = Constraints(
        acyclic=acyclic,
        no_skip=not _chance(pick, 25),
        triangle=acyclic and not _chance(pick, 35),
        memory=not _chance(pick, 25),
    )
    return MCM(
        "random",
        topology,  # pyright: ignore[reportArgumentType]
        tuple(chips),
        _one_of(pick, _RATES),
        overlap=not _chance(pick, 50),
        memory_model="weights" if _chance(pick, 35) else "full",
        constraints=rules,
        element_bytes=_one_of(pick, (None, 1, 4)),
        rows=rows,
        cols=cols,
    )


def _chip(pick: Pick) -> Chip:
    return Chip(
        peak_flops=_one_of(pick, _RATES),
        sram_bandwidth=_one_of(pick, _RATES),
        sram_bytes=_one_of(pick, _CAPACITIES),
        speed=_one_of(pick, (1.0, 2.0, 0.5)),
    )


def _assignment(pick: Pick, graph: Graph, mcm: MCM) -> tuple[int, ...]:
    n, last = len(graph.nodes), len(mcm.chips) - 1
    kind = pick(0, 2)
    if kind == 2:
        f = [pick(0, last) for _ in range(n)]
    elif kind == 1:  # at most one chip after the last producer: parallel branches
        f = []
        for v in range(n):
            producers = [k.producer for k in graph.tensors if v in k.consumers]
            f.append(min(last, max((f[u] for u in producers), default=0) + pick(0, 1)))
    else:
        f, chip = [], 0
        for _ in range(n):
            chip = min(last, chip + pick(0, 1))
            f.append(chip)
    if _chance(pick, 70):  # usually, keep the fixed chips and groups
        f = [
            f[v] if node.pin is None else min(last, node.pin) for v, node in enumerate(graph.nodes)
        ]
        chip_of = {node.colocate: f[v] for v, node in enumerate(graph.nodes)}
        chip_of |= {
            node.colocate: f[v] for v, node in enumerate(graph.nodes) if node.pin is not None
        }
        f = [
            f[v] if g is None else chip_of[g] for v, g in enumerate(v.colocate for v in graph.nodes)
        ]
    return tuple(f)
