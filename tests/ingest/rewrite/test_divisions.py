"""Ways to divide nodes after their graph was rewritten, on cases worked by hand."""

from __future__ import annotations

import pytest

from jaxpart.ingest.rewrite.clone import clone_inputs, drop_dead
from jaxpart.ingest.rewrite.contract import contract
from jaxpart.ingest.rewrite.fuse import fuse
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


def along(axis, *reads, ways=8, join=None, halo=0, weights=()):
    return Division(ways, axis, join, halo, tuple(reads), tuple(weights))


def chain(
    *nodes: tuple[str, float, tuple[Division, ...]], holders: tuple[int, ...] = (1,)
) -> Graph:
    """Each node (op, FLOPs, divisions) feeds the next; `holders` read a weight."""
    last = len(nodes) - 1
    return Graph(
        tuple(
            Node(f"{op}{v}", op, flops, 8, divide=divide)
            for v, (op, flops, divide) in enumerate(nodes)
        ),
        tuple(Tensor(v, 4, (v + 1,) if v < last else ()) for v in range(len(nodes))),
        (Weight(9, holders),),
    )


def group(*nodes):
    """The divisions of the second of two nodes, when all nodes but the first become one."""
    first = ("dot_general", 1, ())
    small = contract(chain(first, *nodes, holders=(1, len(nodes))), [0, *(1 for _ in nodes)]).graph
    return small.nodes[1].divide


def test_a_group_is_divided_along_what_passes_through_all_its_nodes():
    found = group(
        ("dot_general", 9, (along("a", (0, "a")), along("b", ways=12, weights=[(0, "b")]))),
        ("add", 1, (along("b", (1, "b"), ways=18), along("c", (1, "a"), ways=6))),
        ("tanh", 1, (along("b", (2, "b")), along("c", (2, "c")), along("a", (2, "a")))),
    )
    # The last node holds the weight whole, so the group does. b has gcd(12, 18, 8) slices.
    assert found == (along("b", ways=2), along("c", (0, "a"), ways=2))


def test_a_group_is_not_divided_where_a_node_with_work_is_needed_whole():
    def nodes(flops):
        return (
            ("slice", flops, (along("a", (0, "a")),)),
            ("dot_general", 1, (along("b"),)),
        )

    assert group(*nodes(flops=1)) == ()
    assert group(*nodes(flops=0)) == (along("b"),)


def test_a_halo_reaches_through_a_group_only_where_nothing_is_computed_twice():
    rows, halo = along("a", (0, "a")), along("a", (1, "a"), halo=1)
    assert group(("pad", 1, (rows,)), ("conv", 9, (halo,))) == ()
    padded = along("a", (0, "a"), ways=16, halo=2)
    found = group(("pad", 0, (padded,)), ("conv", 9, (halo,)))
    assert found == (along("a", (0, "a"), halo=2),)  # a slice of 8, and two of 16


def test_partial_sums_leave_a_group_alone_or_as_views():
    product = ("dot_general", 9, (along("k", (0, "k"), join="sum"),))
    view, double = ("transpose", 0, ()), ("add", 1, (along("k", (1, "k")),))
    assert group(product, view) == (along("k", (0, "k"), join="sum"),)
    assert group(product, double) == ()
    assert group(product, ("bitcast_convert_type", 0, ())) == ()


def test_a_term_of_a_sum_is_no_whole_value_too():
    # Parts that did all of `e` would each pass it on whole, and the slices would add up to k times.
    nodes = (
        Node("source", "dot_general", 1, 8),
        Node("e", "transpose", 0, 8, divide=(along("r", (0, "r")),)),
        Node("slice", "slice", 0, 8),
        Node("product", "dot_general", 9, 8, divide=(along("r", (1, "r"), join="sum"),)),
    )
    tensors = (Tensor(0, 8, (1,)), Tensor(1, 8, (2, 3)), Tensor(2, 4, ()), Tensor(3, 4, ()))
    assert contract(Graph(nodes, tensors), [0, 1, 1, 1]).graph.nodes[1].divide == ()


def test_a_view_of_a_sum_holds_its_weights_whole():
    by = along("k", (0, "k"), join="sum", weights=[(0, "k")])
    nodes = (("dot_general", 9, (by,)), ("transpose", 0, ()))
    first = ("dot_general", 1, ())
    for holders, weights in [((1,), [(0, "k")]), ((1, 2), [])]:
        graph = contract(chain(first, *nodes, holders=holders), [0, 1, 1]).graph
        assert graph.nodes[1].divide == (along("k", (0, "k"), join="sum", weights=weights),)


def test_every_tensor_that_leaves_a_group_is_cut():
    nodes = (
        Node("product", "dot_general", 9, 8, divide=(along("a"), along("b"))),
        Node("left", "slice", 0, 8, divide=(along("a", (0, "a")), along("b", (0, "b")))),
        Node("right", "slice", 0, 8, divide=(along("a", (0, "a")),)),
    )
    tensors = (Tensor(0, 8, (1, 2)), Tensor(1, 4, ()), Tensor(2, 4, ()))
    (kernel,) = contract(Graph(nodes, tensors), [0, 0, 0]).graph.nodes
    assert kernel.divide == (along("a"),)


def views(*divide: Division, reader: Division) -> tuple[Division, ...]:
    """The divisions of a node after the view that it read was removed."""
    graph = chain(
        ("dot_general", 9, ()),
        ("reshape", 0, divide),
        ("dot_general", 9, (reader,)),
        holders=(2,),
    )
    return fuse(graph).nodes[-1].divide


def test_a_cut_passes_through_a_view_that_is_removed():
    heads = along("h", (0, "h"), ways=12)
    assert views(heads, reader=along("r", (1, "h"), ways=64)) == (along("r", (0, "h"), ways=4),)
    assert views(heads, reader=along("r", (1, "h"), ways=5)) == ()
    assert views(reader=along("r", (1, "h"), ways=64)) == (along("r", ways=64),)


def test_a_tensor_that_is_read_beside_its_view_is_cut_only_along_one_axis():
    nodes = (
        Node("x", "dot_general", 9, 8),
        Node("view", "transpose", 0, 8, divide=(along("a", (0, "a")), along("b", (0, "b")))),
        Node(
            "both",
            "dot_general",
            9,
            8,
            divide=(
                along("a", (0, "a"), (1, "a")),
                along("c", (0, "a"), (1, "b")),
                along("d", (0, "a")),
            ),
        ),
    )
    tensors = (Tensor(0, 4, (1, 2)), Tensor(1, 4, (2,)), Tensor(2, 4, ()))
    assert fuse(Graph(nodes, tensors)).nodes[-1].divide == (
        along("a", (0, "a")),
        along("c"),
        along("d"),
    )


def test_numbers_of_tensors_and_weights_stay_right_when_nodes_vanish():
    nodes = (
        Node("mask", "gt", 1, 4),
        Node("embed", "gather", 0, 100),
        Node("dead", "add", 1, 1),
        Node("first", "add", 100, 100, divide=(along("a", (0, "m"), (1, "a")),)),
        Node("last", "mul", 1, 100, divide=(along("a", (2, "a"), weights=[(2, "w")]),)),
    )
    tensors = (Tensor(0, 4, (3,)), Tensor(1, 50, (2, 3)), Tensor(3, 50, (4,)), Tensor(4, 50, ()))
    graph = Graph(nodes, tensors, (Weight(1, (2,)), Weight(1, (1,)), Weight(1, (4,))))
    assert drop_dead(graph).nodes[-1].divide == (along("a", (2, "a"), weights=[(1, "w")]),)
    # The mask becomes part of its consumer, which reads it no more.
    cloned = clone_inputs(graph)
    assert [node.name for node in cloned.nodes] == ["embed", "first", "last"]
    assert cloned.nodes[1].divide == (along("a", (0, "a")),)
    assert cloned.nodes[2].divide == (along("a", (1, "a"), weights=[(1, "w")]),)


@pytest.mark.parametrize("rewrite", [fuse, drop_dead, clone_inputs])
def test_a_rewrite_of_nothing_keeps_the_ways_to_divide(rewrite):
    graph = chain(
        ("dot_general", 9, (along("a"), along("k", join="sum"))),
        ("dot_general", 9, (along("b", (0, "a"), halo=1, weights=[(0, "b")]),)),
    )
    assert rewrite(graph) == graph
