"""Fusing against cases worked by hand, and against what no fusion may change."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from jaxpart.ingest.rewrite.fuse import fuse
from jaxpart.problem.graph import Graph, Node, Tensor, Weight

OPS = ("dot_general", "add", "reshape", "slice", "reduce_sum", "gather", "broadcast_in_dim")
FREE = {"reshape", "slice", "broadcast_in_dim"}  # layout: no FLOPs


@st.composite
def traces(draw) -> Graph:
    """Random traces of up to 14 nodes: few producers each, as real ones have."""
    count = draw(st.integers(1, 14))
    nodes = []
    for v in range(count):
        op = draw(st.sampled_from(OPS))
        flops = 0 if op in FREE else draw(st.integers(0, 50))
        pin = draw(st.sampled_from([None] * 9 + [1]))
        nodes.append(Node(f"n{v}", op, flops, draw(st.integers(0, 99)), pin=pin))
    consumers = [[set()] for _ in nodes]
    for v in range(1, count):
        for _ in range(draw(st.integers(0, 2))):
            u = draw(st.integers(max(0, v - 4), v - 1))
            if draw(st.integers(0, 5)) == 0:
                consumers[u].append(set())
            draw(st.sampled_from(consumers[u])).add(v)
    tensors = [
        Tensor(u, draw(st.integers(1, 9)), tuple(sorted(users)))
        for u, made in enumerate(consumers)
        for users in made
    ]
    weights = [
        Weight(draw(st.integers(0, 9)), tuple(draw(st.sets(st.integers(0, count - 1), min_size=1))))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return Graph(tuple(nodes), tuple(tensors), tuple(weights), "trace", 1)


@given(traces())
@settings(deadline=None, max_examples=300)
def test_fusing_keeps_flops_and_weights_and_invents_no_transfer(graph):
    small = fuse(graph)
    assert small.total_flops == graph.total_flops
    assert sorted(w.bytes for w in small.weights) == sorted(w.bytes for w in graph.weights)
    assert {node.name for node in small.nodes} <= {node.name for node in graph.nodes}
    assert sum(v.bytes_accessed for v in small.nodes) <= sum(v.bytes_accessed for v in graph.nodes)
    assert {v.name: v.pin for v in small.nodes if v.pin is not None} == {
        v.name: v.pin for v in graph.nodes if v.pin is not None
    }
    # every tensor left is one of the trace, or was: a view takes the size of what it shows
    sizes = {k.bytes for k in graph.tensors}
    assert all(tensor.bytes in sizes for tensor in small.tensors)
    assert small.num_edges <= graph.num_edges


def chain(*ops: str, weights: tuple[Weight, ...] = ()) -> Graph:
    """Each operation feeds the next by 4 bytes and accesses the 8 bytes of its two tensors."""
    nodes = tuple(Node(f"{op}_{v}", op, 10 * (op not in FREE), 8) for v, op in enumerate(ops))
    last = len(ops) - 1
    tensors = tuple(Tensor(v, 4, (v + 1,) if v < last else ()) for v in range(len(ops)))
    return Graph(nodes, tensors, weights, "chain", 1)


def test_what_follows_a_product_elementwise_joins_it_with_its_weights():
    fused = fuse(chain("dot_general", "add", "max", "dot_general", weights=(Weight(3, (1,)),)))
    assert [node.name for node in fused.nodes] == ["dot_general_0", "dot_general_3"]
    assert fused.nodes[0].flops == 30
    # three nodes of 8 bytes, less two tensors that are neither written nor read any more
    assert fused.nodes[0].bytes_accessed == 8
    assert fused.weights == (Weight(3, (0,)),)
    assert fused.tensors == (Tensor(0, 4, (1,)), Tensor(1, 4, ()))


def test_a_residual_addition_starts_a_kernel_of_its_own():
    nodes = tuple(
        Node(op + str(v), op, 1, 8) for v, op in enumerate(["conv", "conv", "add", "max"])
    )
    tensors = (Tensor(0, 4, (1, 2)), Tensor(1, 4, (2,)), Tensor(2, 4, (3,)), Tensor(3, 4, ()))
    fused = fuse(Graph(nodes, tensors, (), "residual", 1))
    assert [node.name for node in fused.nodes] == ["conv0", "conv1", "add2"]
    assert fused.tensors == (Tensor(0, 4, (1, 2)), Tensor(1, 4, (2,)), Tensor(2, 4, ()))


def test_a_gate_on_its_own_input_joins_what_makes_that():
    nodes = tuple(Node(op, op, 1, 8) for op in ("dot_general", "logistic", "mul", "conv"))
    tensors = (Tensor(0, 4, (1, 2)), Tensor(1, 4, (2,)), Tensor(2, 4, (3,)), Tensor(3, 4, ()))
    fused = fuse(Graph(nodes, tensors, (), "swish", 1))
    assert [node.name for node in fused.nodes] == ["dot_general", "conv"]


def test_the_parts_of_one_product_join_it_and_go_their_own_ways():
    ops = ("dot_general", "slice", "slice", "conv", "conv")
    nodes = tuple(Node(f"{op}{v}", op, op != "slice", 8) for v, op in enumerate(ops))
    tensors = (
        Tensor(0, 8, (1, 2)),
        Tensor(1, 4, (3,)),
        Tensor(2, 4, (4,)),
        Tensor(3, 1, ()),
        Tensor(4, 1, ()),
    )
    fused = fuse(Graph(nodes, tensors, (), "gates", 1))
    assert [node.name for node in fused.nodes] == ["dot_general0", "conv3", "conv4"]
    assert fused.tensors[:2] == (Tensor(0, 4, (1,)), Tensor(0, 4, (2,)))


def test_a_part_stays_where_the_whole_has_another_consumer():
    nodes = tuple(
        Node(f"{op}{v}", op, 0, 8) for v, op in enumerate(["dot_general", "slice", "conv"])
    )
    tensors = (Tensor(0, 8, (1, 2)), Tensor(1, 4, ()), Tensor(2, 4, ()))
    assert len(fuse(Graph(nodes, tensors, (), "part", 1)).nodes) == 3


def test_across_a_broadcast_the_small_tensor_moves():
    nodes = (
        Node("sum", "reduce_sum", 5, 10),
        Node("spread", "broadcast_in_dim", 0, 102),
        Node("product", "dot_general", 7, 120),
        Node("other", "dot_general", 7, 120),
    )
    tensors = (Tensor(0, 2, (1,)), Tensor(1, 100, (2, 3)), Tensor(2, 9, ()), Tensor(3, 9, ()))
    fused = fuse(Graph(nodes, tensors, (), "broadcast", 1))
    assert [node.name for node in fused.nodes] == ["sum", "product", "other"]
    assert fused.tensors[0] == Tensor(0, 2, (1, 2))
    assert [node.bytes_accessed for node in fused.nodes] == [10, 22, 22]


def test_work_on_an_input_joins_its_only_consumer_and_squares_join_their_sum():
    fused = fuse(chain("convert_element_type", "dot_general", "reduce_max"))
    assert [node.name for node in fused.nodes] == ["dot_general_1", "reduce_max_2"]
    nodes = tuple(Node(op, op, 1, 8) for op in ("conv", "square", "reduce_sum", "sub"))
    tensors = (Tensor(0, 4, (1, 3)), Tensor(1, 4, (2,)), Tensor(2, 1, (3,)), Tensor(3, 4, ()))
    variance = fuse(Graph(nodes, tensors, (), "variance", 1))
    assert [node.op for node in variance.nodes] == ["conv", "reduce_sum", "sub"]


@pytest.mark.parametrize("fixed", [{"pin": 0}, {"colocate": 3}, {"seconds": 1.0}])
def test_fixed_colocated_and_profiled_nodes_join_nothing(fixed):
    nodes = (Node("a", "conv", 1, 8), Node("b", "max", 1, 8, **fixed), Node("c", "max", 1, 8))
    tensors = (Tensor(0, 4, (1,)), Tensor(1, 4, (2,)), Tensor(2, 4, ()))
    assert len(fuse(Graph(nodes, tensors, (), "fixed", 1)).nodes) == 3
