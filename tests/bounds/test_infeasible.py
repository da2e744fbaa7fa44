"""Reasons why no partition is valid, beside all partitions of small problems."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support.oracle import all_valid
from tests.support.strategies import graphs, mcms

MIB = 2**20


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_partition_is_valid_where_there_is_a_reason(data):
    mcm = data.draw(mcms(max_chips=3))
    graph = data.draw(graphs(max_nodes=5, max_chips=len(mcm.chips)))
    reason = why_infeasible(Problem.build(graph, mcm))
    event("none" if reason is None else reason.split()[1])
    if reason is not None:
        assert not all_valid(graph, mcm)


def pair(tensor_bytes: float, weight_bytes: float) -> Graph:
    nodes = (Node("a", "op", 1.0, 1.0), Node("b", "op", 1.0, 1.0))
    return Graph(nodes, (Tensor(0, tensor_bytes, (1,)),), (Weight(weight_bytes, (1,)),), "pair", 1)


@pytest.mark.parametrize(
    ("tensor_mib", "weight_mib", "reason"),
    [
        (33, 0, "'a' reads and writes tensors of 33.0 MiB beside 0.0 MiB of weights on its chip"),
        (1, 31.5, "'b' reads and writes tensors of 1.0 MiB beside 31.5 MiB of weights"),
        (1, 33, "the weights of 'b' take 33.0 MiB, the largest chip has 32.0 MiB"),
        (1, 31, None),
    ],
)
def test_what_one_node_needs_at_once_is_a_reason(tensor_mib, weight_mib, reason):
    graph, mcm = pair(tensor_mib * MIB, weight_mib * MIB), load_mcm("mcm4")
    found = why_infeasible(Problem.build(graph, mcm))
    assert (found is None) == bool(all_valid(graph, mcm)) == (reason is None)
    assert found is None or (reason is not None and found.startswith(reason))


def test_tensors_do_not_count_where_weights_alone_take_memory():
    mcm = dataclasses.replace(load_mcm("mcm4"), memory_model="weights")
    assert why_infeasible(Problem.build(pair(33 * MIB, 0), mcm)) is None
