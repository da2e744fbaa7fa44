"""Bytes that no element size scales: through rescaling, files and rewrites."""

import dataclasses
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpart.errors import CostError
from jaxpart.ingest.rewrite.clone import clone_inputs
from jaxpart.ingest.rewrite.contract import contract
from jaxpart.ingest.rewrite.fuse import fuse
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from tests.support.strategies import random_graph

QUANTISED = Graph(
    (Node("dequantise", "op", 1, 30.0, fixed_bytes=10.0), Node("product", "op", 1, 8.0)),
    (Tensor(0, 20.0, (1,)), Tensor(1, 6.0, (), fixed=True)),
    (Weight(10.0, (0,), fixed=True), Weight(4.0, (1,))),
    "quantised",
    4,
)


def with_fixed(graph, rng):
    """The graph with fixed bytes drawn for its nodes, tensors and weights."""
    replace = msgspec.structs.replace
    share = rng.integers(0, 3, len(graph.nodes)) / 2
    nodes = (
        replace(v, fixed_bytes=float(v.bytes_accessed * s), op="add", seconds=None)
        for v, s in zip(graph.nodes, share, strict=True)
    )
    tensors = (replace(k, fixed=bool(rng.integers(2))) for k in graph.tensors)
    weights = (replace(w, fixed=bool(rng.integers(2))) for w in graph.weights)
    return dataclasses.replace(
        graph, nodes=tuple(nodes), tensors=tuple(tensors), weights=tuple(weights), element_bytes=4
    )


def test_only_bytes_of_floats_are_scaled():
    small = QUANTISED.rescaled(1)

    assert [node.bytes_accessed for node in small.nodes] == [10 + 20 / 4, 2.0]
    assert [node.fixed_bytes for node in small.nodes] == [10.0, 0.0]
    assert [tensor.bytes for tensor in small.tensors] == [5.0, 6.0]
    assert [weight.bytes for weight in small.weights] == [10.0, 1.0]
    assert small.rescaled(4) == QUANTISED


def test_files_keep_what_is_fixed_and_older_files_have_nothing_fixed(tmp_path):
    QUANTISED.save(tmp_path / "graph.json")
    text = (tmp_path / "graph.json").read_text()
    assert Graph.load(tmp_path / "graph.json") == QUANTISED
    assert text.count('"fixed":true') == 2
    assert text.count("fixed_bytes") == 1

    plain = re.sub(r',"fixed":true|,"fixed_bytes":10', "", text)
    (tmp_path / "old.json").write_text(plain)
    old = Graph.load(tmp_path / "old.json")
    assert not any(value.fixed for value in (*old.tensors, *old.weights))
    assert old.sha256 != QUANTISED.sha256


def test_more_fixed_bytes_than_bytes_are_refused():
    with pytest.raises(CostError, match=r"node 0 \('a'\): fixed_bytes is 3.0, expected 0 to"):
        Graph((Node("a", "op", 1, 2.0, fixed_bytes=3.0),))


@given(st.integers(0, 2**32 - 1), st.sampled_from([fuse, clone_inputs, None]))
def test_rewrites_and_rescaling_commute_in_what_is_sent_and_held(seed, rewrite):
    rng = np.random.default_rng(seed)
    graph = with_fixed(random_graph(rng, pins=False), rng)
    if rewrite is None:
        groups = np.sort(rng.integers(0, 4, len(graph.nodes))).tolist()
        first, later = contract(graph, groups).graph, contract(graph.rescaled(1), groups).graph
    else:
        first, later = rewrite(graph), rewrite(graph.rescaled(1))

    small = first.rescaled(1)

    assert [k.fixed for k in small.tensors] == [k.fixed for k in later.tensors]
    assert [k.bytes for k in small.tensors] == pytest.approx([k.bytes for k in later.tensors])
    assert [w.bytes for w in small.weights] == pytest.approx([w.bytes for w in later.weights])
    assert all(v.fixed_bytes <= v.bytes_accessed * (1 + 1e-9) for v in first.nodes)


def test_a_kernel_leaves_out_what_stays_inside_of_both_kinds_of_bytes():
    """add -> neg: the tensor between them, 6 fixed bytes, is neither read nor written any more."""
    nodes = (
        Node("add", "add", 1, 16.0, fixed_bytes=6.0),
        Node("neg", "neg", 1, 9.0, fixed_bytes=6),
    )
    tensors = (Tensor(0, 6.0, (1,), fixed=True), Tensor(1, 3.0, ()))
    graph = Graph(nodes, tensors, (), "chain", 4)

    (kernel,) = fuse(graph).nodes

    assert (kernel.bytes_accessed, kernel.fixed_bytes) == (16.0 + 9.0 - 2 * 6.0, 0.0)
