"""The width of a graph against every set of its nodes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.structure import width


def _graph(count: int, edges: set[tuple[int, int]]) -> Graph:
    nodes = tuple(Node(f"v{v}", "op", 1.0, 1.0) for v in range(count))
    after = [tuple(v for v in range(count) if (u, v) in edges) for u in range(count)]
    tensors = tuple(Tensor(u, 1.0, consumers) for u, consumers in enumerate(after) if consumers)
    return Graph(nodes, tensors, (), "test", 1)


def _largest_antichain(count: int, edges: set[tuple[int, int]]) -> int:
    is_before = np.zeros((count, count), np.bool_)
    for u, v in edges:
        is_before[u, v] = True
    for w in range(count):
        is_before |= is_before[:, [w]] & is_before[[w], :]
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(count), size) for size in range(1, count + 1)
    )
    return max(len(s) for s in sets if not is_before[np.ix_(s, s)].any())


@pytest.mark.parametrize("seed", range(40))
def test_width_is_that_of_the_largest_set_of_nodes_without_order(seed):
    rng = np.random.default_rng(seed)
    count, density = int(rng.integers(1, 10)), rng.random()
    pairs = itertools.combinations(range(count), 2)
    edges = {pair for pair in pairs if rng.random() < density}
    assert width(_graph(count, edges)) == _largest_antichain(count, edges)


def test_paths_of_a_cover_may_share_a_node():
    # Two producers, one node that all pass, two consumers: paths apart would number three.
    assert width(_graph(5, {(0, 2), (1, 2), (2, 3), (2, 4)})) == 2


def test_layers_that_are_fully_joined_are_as_wide_as_the_widest_of_them():
    sizes = (3, 40, 25, 60, 1)
    ends = np.cumsum((0, *sizes))
    layers = [range(a, b) for a, b in itertools.pairwise(ends.tolist())]
    edges = {
        pair for one, two in itertools.pairwise(layers) for pair in itertools.product(one, two)
    }
    assert width(_graph(sum(sizes), edges)) == 60
