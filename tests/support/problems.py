"""Small problems and their optimum by brute force, for tests."""

import dataclasses
import itertools
import math

import numpy as np

from jaxpart.bounds.ideals.lattice import enumerate_ideals
from jaxpart.bounds.ideals.pairs import Ideals, with_figures
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, PRESETS, Chip, Constraints
from jaxpart.problem.problem import Problem
from jaxpart.solvers.minimum_cut import nearest_span
from tests.support import oracle
from tests.support.strategies import random_graph, random_mcm


def instance(topology, overlap, no_skip, triangle, memory, memory_model, seed) -> Problem:
    """A tiny random problem with these rules and cost model; dataflow is acyclic."""
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 3, topology=topology)
    rules = Constraints(acyclic=True, no_skip=no_skip, triangle=triangle, memory=memory)
    mcm = dataclasses.replace(mcm, overlap=overlap, memory_model=memory_model, constraints=rules)
    return Problem.build(random_graph(rng, 6, mcm.num_chips), mcm)


def rising(problem: Problem):
    """All partitions that keep dataflow, fixed chips and colocation."""
    nodes, chips = problem.graph.nodes, problem.num_chips
    before = [[u for u, q in problem.node_pairs.tolist() if q == v] for v in range(len(nodes))]

    def extended(f):
        v = len(f)
        if v == len(nodes):
            yield f
            return
        mates = [f[u] for u in range(v) if nodes[u].colocate == nodes[v].colocate is not None]
        for c in range(max((f[u] for u in before[v]), default=0), chips):
            if nodes[v].pin in (None, c) and all(c == mate for mate in mates):
                yield from extended((*f, c))

    return extended(())


def optimum_s(problem: Problem) -> float:
    """The least bottleneck in seconds of all valid partitions; inf if there is none."""
    graph, mcm = problem.graph, problem.mcm
    rules = [rule for rule in oracle.rules_on(mcm) if rule not in ("acyclic", "fixed_chips")]
    return min(
        (
            oracle.evaluate(graph, mcm, f).bottleneck_s
            for f in rising(problem)
            if all(oracle.keeps(rule, graph, mcm, f) for rule in rules)
        ),
        default=math.inf,
    )


_WAYS = 256  # at least the number of ways to cut 7 contracted nodes into 4 chips


def every_slicing(problem: Problem) -> np.ndarray:
    """[N, P] all ways to cut the program order of the contracted nodes; chips may be skipped."""
    contracted, chips = problem.num_contracted, problem.num_chips
    ways = itertools.combinations_with_replacement(range(chips), contracted)
    columns = np.array(list(ways)).T  # one row per contracted node; chips ascend along a column
    # Columns are repeated up to a fixed number, so that all graphs share one compiled program.
    columns = np.resize(columns.T, (_WAYS, contracted)).T
    return columns[problem.contraction]


def keeps_span(problem: Problem, assignments: np.ndarray) -> np.ndarray:
    """[P] whether no edge goes further than to the next chip."""
    step = assignments[problem.edge_consumer] - assignments[problem.edge_producer]
    return np.all(step <= 1, axis=0, keepdims=False) & np.ones(assignments.shape[1], bool)


def layered(num_nodes=400, num_chips=36, seed=0):
    """A deep graph with side branches, and a valid partition that is even in node numbers."""
    rng = np.random.default_rng(seed)
    consumers = [set() for _ in range(num_nodes)]
    for v in range(1, num_nodes):
        for _ in range(1 + int(rng.integers(2))):
            consumers[max(0, v - 1 - int(rng.integers(6)) * int(rng.integers(2)))].add(v)
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(num_nodes))
    tensors = tuple(Tensor(u, 1.0, tuple(ends)) for u, ends in enumerate(consumers))
    problem = Problem.build(Graph(nodes, tensors), PRESETS["mcm36"]())
    f = nearest_span(problem, np.arange(num_nodes) * num_chips // num_nodes)
    assert f is not None
    return problem, f


def parallel_branches(capacity):
    """Two branches between a source and a sink, on a chain of four chips of this capacity."""
    nodes = tuple(Node(name, "op", 0.0, 0.0, seconds=1.0) for name in ("a", "b", "c", "d"))
    tensors = (Tensor(0, 1.0, (1, 2)), Tensor(1, 1.0, (3,)), Tensor(2, 1.0, (3,)))
    weights = tuple(Weight(10.0, (v,)) for v in range(4))
    mcm = MCM("four", "chain", (Chip(1.0, 1.0, capacity),) * 4, 1e3)
    return Problem.build(Graph(nodes, tensors, weights, element_bytes=None), mcm)


def deep_graph_with_little_memory():
    """A path of 60 nodes whose weights fill four chips to 85%."""
    rng = np.random.default_rng(3)
    nodes = tuple(Node(f"n{v}", "op", 0.0, 0.0, seconds=1.0) for v in range(60))
    tensors = tuple(Tensor(v, 1.0, (v + 1,)) for v in range(59))
    weights = tuple(Weight(float(rng.integers(50, 150)), (v,)) for v in range(60))
    total = sum(w.bytes for w in weights)
    chips = (Chip(1.0, 1.0, total / 4 / 0.85),) * 4
    graph = Graph(nodes, tensors, weights, element_bytes=None)
    return Problem.build(graph, MCM("tight", "chain", chips, 1e3))


def list_ideals(problem: Problem, limit: int) -> Ideals | None:
    """All ideals of the contracted nodes, with figures; None if there are more than `limit`."""
    found = enumerate_ideals(problem, limit)
    return None if found is None else with_figures(problem, found)
