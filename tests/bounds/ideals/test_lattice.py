"""The lattice of ideals against all subsets, on graphs that fit one window and on long ones."""

import numpy as np
import pytest

from jaxpart.bounds.ideals.lattice import count, enumerate_ideals, prefixes
from jaxpart.problem.problem import Problem
from tests.support.graphs import diamonds
from tests.support.modules import MODULES
from tests.support.strategies import random_graph


def as_set(row: np.ndarray, contracted: int) -> frozenset[int]:
    return frozenset(v for v in range(contracted) if int(row[v // 64]) >> (v % 64) & 1)


def down_sets(problem: Problem) -> set[frozenset[int]]:
    pairs, contracted = problem.contracted_pairs.tolist(), problem.num_contracted
    subsets = (
        frozenset(v for v in range(contracted) if s >> v & 1) for s in range(1 << contracted)
    )
    return {s for s in subsets if all(v not in s or u in s for u, v in pairs)}


def test_ideals_and_covers_are_those_of_all_subsets():
    rng = np.random.default_rng(0)
    for _ in range(40):
        problem = Problem.build(random_graph(rng, max_nodes=9, pins=False), MODULES["chain"])
        lattice = enumerate_ideals(problem, 10_000)
        assert lattice is not None
        contracted = problem.num_contracted
        found = [as_set(row, contracted) for row in lattice.members()]
        expected = down_sets(problem)
        assert len(found) == len(expected)
        assert set(found) == expected
        assert [len(ideal) for ideal in found] == sorted(len(ideal) for ideal in found)
        covers = {
            (found[x], found[y], v)
            for x, y, v in zip(lattice.below, lattice.above, lattice.added, strict=True)
        }
        assert len(covers) == len(lattice.below)
        assert covers == {
            (x, x | {v}, v)
            for x in expected
            for v in range(contracted)
            if v not in x and x | {v} in expected
        }
        for layer in range(contracted + 1):
            start, end = lattice.layer_start[layer : layer + 2]
            assert {len(ideal) for ideal in found[start:end]} == {layer}
            links = slice(lattice.cover_start[layer], lattice.cover_start[layer + 1])
            assert all(len(found[x]) == layer for x in lattice.below[links])


@pytest.mark.parametrize("far", [False, True])
def test_windows_of_long_graphs_are_the_ideals(far):
    length = (
        150  # 600 contracted nodes, ten words; windows are one or two wide, unless a tensor is far
    )
    problem = diamonds(length, far)
    lattice = enumerate_ideals(problem, 10_000)
    assert lattice is not None
    assert len(lattice) == 1 + 5 * length
    assert (lattice.window.shape[1] <= 2) == (not far)
    expected = {frozenset()}
    for i in range(length):
        before, a = frozenset(range(4 * i)), 4 * i
        for inside in ((a,), (a, a + 1), (a, a + 2), (a, a + 1, a + 2), (a, a + 1, a + 2, a + 3)):
            expected.add(before | frozenset(inside))
    found = [as_set(row, 4 * length) for row in lattice.members()]
    assert set(found) == expected
    contracted = problem.contracted
    needed, load_s = lattice.needed_members(), lattice.sums(contracted.node_s)
    for i, ideal in enumerate(found):
        crossing, targets = 0.0, set()
        for k in range(contracted.num_tensors):
            consumers = set(contracted.edge_consumer[contracted.edge_tensor == k].tolist())
            if contracted.tensor_producer[k] in ideal and not consumers <= ideal:
                crossing += contracted.tensor_bytes[k]
                targets |= consumers - ideal
        assert lattice.cut_bytes[i] == crossing
        assert as_set(needed[i], 4 * length) == targets
        np.testing.assert_allclose(
            load_s[i], contracted.node_s[sorted(ideal)].sum(axis=0), atol=1e-20
        )


def test_more_than_the_limit_are_not_counted_or_listed():
    problem = diamonds(1000)  # several walks, and no look for an antichain
    assert count(problem, 5001) == 5001
    assert count(problem, 5000) is None
    assert enumerate_ideals(problem, 5000) is None
    assert enumerate_ideals(problem, 5001, give_up=lambda: True) is None


def test_prefixes_are_the_ideals_of_the_program_order():
    problem = diamonds(40)
    lattice = prefixes(problem)
    found = [as_set(row, problem.num_contracted) for row in lattice.members()]
    assert found == [frozenset(range(i)) for i in range(problem.num_contracted + 1)]
    assert lattice.is_total_order
    every = enumerate_ideals(problem, 10_000)
    assert every is not None
    assert not every.is_total_order
    cut_of = dict(
        zip(
            [as_set(row, problem.num_contracted) for row in every.members()],
            every.cut_bytes,
            strict=True,
        )
    )
    assert [cut_of[ideal] for ideal in found] == list(lattice.cut_bytes)
