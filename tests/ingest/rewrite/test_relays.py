"""Copies on the chips between: the triangle rule holds, and everybody reads what it read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpart.errors import InputError
from jaxpart.ingest.rewrite.cuts import Request
from jaxpart.ingest.rewrite.relays import relayed
from jaxpart.ingest.rewrite.split import split
from jaxpart.problem.graph import Graph, Node, Tensor
from tests.support import oracle, part_execution
from tests.support.strategies import divided_graphs, mcms


def rising(edges: set[tuple[int, int]], steps: list[int], last: int) -> list[int]:
    """Chips that never fall along an edge."""
    chips: list[int] = []
    for v, step in enumerate(steps):
        below = max((chips[u] for u, w in edges if w == v), default=0)
        chips.append(min(last, below + step))
    return chips


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_a_relayed_partition_keeps_the_triangle_rule(graph, data):
    mcm = data.draw(mcms(max_chips=6, topology="chain"))
    steps = data.draw(
        st.lists(st.integers(0, 2), min_size=len(graph.nodes), max_size=len(graph.nodes))
    )
    f = rising(oracle.edges_of(graph), steps, len(mcm.chips) - 1)
    made = split(graph, {})
    before = oracle.evaluate(graph, mcm, f)

    after_split, chips = relayed(made, f)

    after = oracle.evaluate(after_split.graph, mcm, chips)
    assert after.triangle
    assert after.acyclic
    assert after.no_skip == before.no_skip
    assert after_split.graph.total_flops == graph.total_flops
    assert after_split.graph.weight_bytes == graph.weight_bytes
    place = {
        after_split.whole_of[x]: x for x in range(len(chips)) if after_split.whole_of[x] is not None
    }
    assert [chips[place[v]] for v in range(len(f))] == f
    added = [after_split.graph.nodes[x] for x in after_split.passes]
    assert all((node.op, node.flops) == ("copy", 0) for node in added)
    assert len({chips[x] for x in after_split.passes}) == len(added)
    assert bool(added) != before.triangle

    # Data goes between no other chips than before.
    def pairs(graph, f):
        return {(f[u], f[v]) for u, v in oracle.edges_of(graph) if f[u] != f[v]}

    assert pairs(after_split.graph, chips) <= pairs(graph, f)
    if {(c, c + 1) for c in range(max(f))} <= pairs(graph, f):
        busy = [before.busy_s[link] for link in sorted(before.busy_s)]
        assert [after.busy_s[link] for link in sorted(after.busy_s)] == pytest.approx(busy)


def test_what_is_relayed_computes_what_the_whole_computes():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        program = part_execution.random_program(rng)
        expected = part_execution.run(program)
        requests = {v: Request(0, 2) for v, node in enumerate(program.graph.nodes) if node.divide}
        made = split(program.graph, requests if seed % 2 else {})
        edges = oracle.edges_of(made.graph)
        f = rising(edges, rng.integers(0, 3, len(made.graph.nodes)).tolist(), 6)
        once, _ = relayed(made, f)
        again = split(
            once.graph,
            {v: Request(0, 2) for v, node in enumerate(once.graph.nodes) if node.divide},
        )

        for splits in [(once,), (once, again)]:
            for ours, theirs in zip(part_execution.run(program, *splits), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def path(count: int) -> Graph:
    """A path whose first node also feeds the last."""
    nodes = tuple(Node(f"n{v}", "op", 1, 10) for v in range(count))
    tensors = [Tensor(v, 10, (v + 1,)) for v in range(count - 1)]
    return Graph(nodes, (*tensors, Tensor(0, 30, (count - 1,))), (), "path", 1)


def test_a_short_cut_is_handed_on_by_every_chip_between():
    made, chips = relayed(split(path(4), {}), [0, 1, 2, 3])

    names = [node.name for node in made.graph.nodes]
    assert names == ["n0", "relay1", "n1", "relay2", "n2", "n3"]
    assert chips == (0, 1, 1, 2, 2, 3)
    assert oracle.edges_of(made.graph) == {(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5)}
    assert made.graph.nodes[1].bytes_accessed == 60
    assert made.passes == (1, 3)


def test_nothing_is_added_where_nothing_takes_a_short_cut():
    made = split(path(2), {})

    assert relayed(made, [0, 1]) == (made, (0, 1))


def test_a_partition_that_runs_backward_is_refused():
    with pytest.raises(InputError, match="data flows to a lower chip"):
        relayed(split(path(2), {}), [1, 0])
    with pytest.raises(InputError, match="assignment has 1 entries, expected 2"):
        relayed(split(path(2), {}), [1])


def test_a_relayed_split_is_for_its_partition_alone():
    made, chips = relayed(split(path(4), {}), [0, 1, 2, 3])

    for refused in (made.extended, made.joined):
        with pytest.raises(InputError, match="has copies for one partition"):
            refused(chips)
