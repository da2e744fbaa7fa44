"""The shipped BERT-large against the published figures (Devlin et al., NAACL 2019)."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest

from jaxpart.problem.graph import Graph

FILE = Path(__file__).parents[2] / "data" / "graphs" / "bert-large.json.gz"
LAYERS, WIDTH, INNER, HEADS, TOKENS, WORDS = 24, 1024, 4096, 16, 384, 30522


@pytest.fixture(scope="module")
def bert() -> Graph:
    return Graph.load(FILE)


def test_parameters_are_the_published_340_million(bert):
    layer = 4 * (WIDTH + 1) * WIDTH + (WIDTH + 1) * INNER + (INNER + 1) * WIDTH + 4 * WIDTH
    embeddings = (WORDS + 512 + 2 + 2) * WIDTH
    pooler = (WIDTH + 1) * WIDTH
    # int8: one byte a parameter
    assert bert.weight_bytes == embeddings + LAYERS * layer + pooler
    assert bert.weight_bytes == pytest.approx(340e6, rel=0.02)
    assert bert.element_bytes == 1


def test_matrix_products_are_those_of_the_published_architecture(bert):
    layer = 2 * TOKENS * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    attention = 2 * (2 * TOKENS * TOKENS * WIDTH)
    products = sum(node.flops for node in bert.nodes if node.op == "dot_general")
    assert products == LAYERS * (layer + attention) + 2 * WIDTH * WIDTH


def test_total_flops_are_about_two_per_parameter_and_token(bert):
    # Lookups of embeddings do no FLOPs, attention adds its own: 5 % below 2 * 340M * 384.
    assert bert.total_flops == pytest.approx(2 * 340e6 * TOKENS, rel=0.06)
    # XLA's analysis of the same program, its 62 FLOPs per erfc counted as one: 247.2 GFLOP.
    assert bert.total_flops == pytest.approx(247.2e9, rel=1e-3)


def test_the_graph_has_about_as_many_nodes_as_the_papers(bert):
    assert 1700 <= len(bert.nodes) <= 2200


def test_the_graph_is_connected(bert):
    graph = networkx.Graph((k.producer, q) for k in bert.tensors for q in k.consumers)
    assert len(graph) == len(bert.nodes)
    assert networkx.is_connected(graph)


def test_no_edge_is_longer_than_a_layer(bert):
    longest = max(k.consumers[-1] - k.producer for k in bert.tensors if k.consumers)
    assert longest < len(bert.nodes) / LAYERS


def test_the_word_table_is_one_weight_of_one_lookup_that_touches_its_rows_alone(bert):
    (table,) = [w for w in bert.weights if w.bytes == WORDS * WIDTH]
    (lookup,) = table.consumers
    assert bert.nodes[lookup].op == "gather"
    assert bert.nodes[lookup].bytes_accessed == 2 * TOKENS * WIDTH + 4 * TOKENS


def test_saving_it_again_gives_the_same_bytes(bert, tmp_path):
    copy = tmp_path / FILE.name
    bert.save(copy)
    assert copy.read_bytes() == FILE.read_bytes()
