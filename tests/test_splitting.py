"""Which operations are split: what is too large for a chip's share, by the way that costs least."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

import jaxpart
from jaxpart.datasets import shipped
from jaxpart.errors import InputError
from jaxpart.ingest.rewrite.relays import relayed
from jaxpart.ingest.rewrite.split import split
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.graphs import OUT, ROWS, layers
from tests.support.strategies import divided_graphs, mcms


def test_the_longest_operation_is_split_into_as_few_parts_as_serve():
    graph, mcm = layers(), load_mcm("mcm8")
    problem = Problem.build(graph, mcm)

    made = jaxpart.split(graph, mcm)

    target = problem.mean_load_s / 2
    after = Problem.build(made.graph, mcm)
    assert after.node_s.max() <= target
    slice_s = problem.node_s[3, 0] / 64
    fewest = next(k for k in range(1, 65) if -(-64 // k) * slice_s <= target)
    assert made.cuts[3].parts == fewest
    assert made.cuts[3].division.axis == ROWS  # the cut passes through, and nothing is read twice
    assert made.graph.total_flops == graph.total_flops


def test_no_operation_has_more_parts_than_allowed():
    made = jaxpart.split(layers(), load_mcm("mcm36"), most=3)

    assert max(cut.parts for cut in made.cuts.values()) == 3


def test_a_weight_that_no_chip_can_hold_is_divided():
    graph = layers()
    weights = list(graph.weights)
    weights[5] = Weight(80 * 2**20, (5,))
    graph = dataclasses.replace(graph, weights=tuple(weights))

    made = jaxpart.split(graph, load_mcm("mcm8"))

    assert made.cuts[5].division.axis == f"{OUT}5"
    assert max(weight.bytes for weight in made.graph.weights) <= 16 * 2**20


def test_what_is_read_whole_by_every_part_is_left_alone_if_parts_are_no_shorter():
    division = Division(8, "a", reads=((0, None),))
    nodes = (Node("small", "op", 1, 1e6), Node("reader", "op", 1, 9e6, divide=(division,)))
    graph = Graph(nodes, (Tensor(0, 9e6, (1,)),), (), "reader", 1)

    assert not jaxpart.split(graph, load_mcm("mcm36")).cuts


def test_a_graph_that_cannot_be_divided_stays_as_it_is():
    graph = shipped.load("gpt2")
    graph = dataclasses.replace(
        graph, nodes=tuple(Node(v.name, v.op, v.flops, v.bytes_accessed) for v in graph.nodes)
    )

    made = jaxpart.split(graph, load_mcm("mcm36"))

    assert made.graph == graph


def test_the_graph_grows_within_its_limit():
    graph = layers(60)

    made = jaxpart.split(graph, load_mcm("mcm4"), load_share=0.01, most=64)

    assert len(graph.nodes) < len(made.graph.nodes) <= len(graph.nodes) * 4 / 3


@given(divided_graphs(max_nodes=10), mcms())
@settings(max_examples=60)
def test_any_graph_is_split_within_the_rules_of_splits(graph, mcm):
    if any(node.pin is not None and node.pin >= mcm.num_chips for node in graph.nodes):
        return
    made = jaxpart.split(graph, mcm)

    assert sum(made.graph.nodes[x].flops for parts in made.parts_of for x in parts) == sum(
        node.flops for node in graph.nodes
    )
    assert made.graph.weight_bytes == graph.weight_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": 1}, "split: at most 1 parts, expected 2 or more"),
        ({"load_share": 0}, "split: load_share is 0, expected a positive number"),
        ({"memory_share": float("nan")}, "memory_share is nan, expected a positive number"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        jaxpart.split(layers(), load_mcm("mcm8"), **options)


def test_what_binds_is_split_further_and_the_partition_carried_over():
    graph, mcm = layers(), load_mcm("mcm8")
    made = jaxpart.split(graph, mcm, most=2)
    f = [min(7, x) for x in range(len(made.graph.nodes))]
    before = oracle.evaluate(made.graph, mcm, f)
    bound = before.stage_s.index(before.bottleneck_s)

    refined = jaxpart.refine(made, mcm, f)

    assert refined is not None
    fine, chips = refined
    assert fine.cuts[3].parts == made.cuts[3].parts + 1
    assert len(chips) == len(fine.graph.nodes)
    after = oracle.evaluate(fine.graph, mcm, chips)
    assert after.acyclic
    assert after.compute_s[bound] == pytest.approx(before.compute_s[bound])


@pytest.mark.parametrize(
    ("most", "most_parts", "parts"), [(4, 4, 4), (4, 3, 3), (4, 2, 2), (2, 9, 3)]
)
def test_no_operation_is_refined_into_more_parts_than_allowed(most, most_parts, parts):
    graph, mcm = layers(), load_mcm("mcm8")
    made = jaxpart.split(graph, mcm, most=2)
    f = [min(7, x) for x in range(len(made.graph.nodes))]

    refined = jaxpart.refine(made, mcm, f, most=most, most_parts=most_parts)

    if parts == made.cuts[3].parts:
        assert refined is None
    else:
        assert refined is not None
        assert refined[0].cuts[3].parts == parts
    whole = jaxpart.refine(split(graph, {}), mcm, range(len(graph.nodes)), most=4, most_parts=parts)
    assert whole is not None
    assert max(cut.parts for cut in whole[0].cuts.values()) == min(parts, 4)


def test_where_a_link_binds_the_reader_of_its_largest_tensor_is_split():
    graph, mcm = layers(), load_mcm("mcm8")
    tensors = list(graph.tensors)
    tensors[4] = Tensor(4, 10**6, (5,))
    graph = dataclasses.replace(graph, tensors=tuple(tensors))

    refined = jaxpart.refine(split(graph, {}), mcm, [0, 0, 0, 0, 0, 2, 2, 2])

    assert refined is not None
    assert refined[0].cuts[5].division.axis == ROWS
    assert refined[1] == (0, 0, 0, 0, 0, 2, 2, 2, 2)


def test_nothing_is_refined_where_what_binds_cannot_be_split():
    nodes = (Node("n0", "op", 1e9, 10), Node("n1", "op", 1, 10))
    graph = Graph(nodes, (Tensor(0, 10, (1,)),), (), "pair", 1)
    mcm = load_mcm("mcm4")

    assert jaxpart.refine(jaxpart.split(graph, mcm), mcm, [0, 1]) is None


def test_a_divided_path_uses_the_chips_once_it_is_relayed():
    graph, mcm = layers(), load_mcm("mcm8")
    made = jaxpart.split(graph, mcm)
    problem = Problem.build(made.graph, mcm)
    # A cut of the node order into equal loads.
    begun = np.cumsum(problem.node_s[:, 0]) - problem.node_s[:, 0] / 2
    f = np.minimum(7, (begun / problem.node_s.sum() * 8).astype(int))

    after, chips = relayed(made, f.tolist())

    costs = oracle.evaluate(after.graph, mcm, chips)
    assert costs.valid
    assert costs.bottleneck_s < 0.4 * Problem.build(graph, mcm).node_s.max()
