"""Segments of whole-array programs: short and long ones, and what a hub costs."""

import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.device import lower
from jaxpart.cost.tables import reduce_segments, segments
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.problem import Problem
from tests.support.modules import THREE_CHIPS


def star(leaves: int, inward: bool) -> Graph:
    """A node that feeds all others, or that is fed by all others."""
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(leaves + 1))
    if inward:
        tensors = tuple(Tensor(v, 1.0, (leaves,)) for v in range(leaves))
    else:
        tensors = (Tensor(0, 1.0, tuple(range(1, leaves + 1))),)
    return Graph(nodes, tensors, (), "star", 1)


def test_segments_of_any_length_are_reduced_as_numpy_does():
    lengths = [0, 1, 8, 9, 64, 65, 0, 600, 3]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = np.random.default_rng(0).integers(-99, 99, (sum(lengths), 2))

    found = reduce_segments(
        lambda i: jnp.asarray(rows)[i], segments(bounds, len(rows)), operator.add, 0
    )

    expected = [rows[a:b].sum(axis=0) for a, b in itertools.pairwise(bounds)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("inward", [False, True])
def test_the_tables_of_a_star_grow_as_its_edges_do(inward):
    def table_bytes(leaves):
        tables = lower(Problem.build(star(leaves, inward), THREE_CHIPS), form="arrays").tables
        assert tables is not None
        whole: list[jax.Array] = jax.tree.leaves(tables.replace(distance=None))  # pyright: ignore
        return sum(leaf.nbytes for leaf in whole)

    few, many = table_bytes(1000), table_bytes(5000)

    assert many < 6.5 * few  # 6,144 padded nodes in place of 1,024
    assert many < 1000 * 5000
