"""ONNX constants that masks and position factors meet, and parameters that look like them."""

import numpy as np
import pytest

from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import BOOL, FLOAT, INT64, far, model, node, numbers, out, value


def layers(count, use, size=128):
    """Layers of a matrix product; `use(i, name)` gives the nodes behind it, the last makes h{i}."""
    nodes, previous = [], "x"
    for i in range(count):
        nodes += [node("MatMul", f"{previous} w{i}", f"a{i}"), *use(i, f"a{i}")]
        previous = f"h{i}"
    nodes.append(node("Relu", previous, "y"))
    return nodes, [far(f"w{i}", size, size) for i in range(count)]


def consumers(graph, size):
    """Operators that use the weights of `size` bytes."""
    return [[graph.nodes[v].op for v in w.consumers] for w in graph.weights if w.bytes == size]


def widest(graph):
    return max(len(k.consumers) for k in graph.tensors)


def masked(size, count=3):
    """Layers with a padding mask as PyTorch 2.14 exports it: it meets two constants."""
    nodes, stored = layers(count, lambda i, a: [node("Add", f"{a} bias", f"h{i}")], size)
    mask = [
        node("Cast", "mask", "m0", to=BOOL),
        node("GatherND", "m0 places", "m1"),
        node("And", "all m1", "m2"),
        node("Where", "m2 zero low", "bias"),
    ]
    places = np.stack([np.zeros((1, size)), np.arange(size).reshape(1, size)], -1)
    stored += [numbers("places", places), numbers("all", np.ones((size, size)), bool)]
    stored += [numbers("zero", 0, np.float32), numbers("low", -1e9, np.float32)]
    inputs = [value("x", [size, size]), value("mask", [1, size], INT64)]
    return model([*mask, *nodes], inputs, [out()], stored)


@pytest.mark.parametrize("size", [8, 128])  # constants of 1 KiB at most, and more
def test_a_mask_is_cloned_whatever_the_size_of_its_constants(size):
    graph = from_onnx(masked(size))

    assert [v.op for v in graph.nodes] == ["MatMul", "Add"] * 3 + ["Relu"]
    assert widest(graph) == 1
    if size == 128:  # every layer holds the constants: 128 pairs of int64, 128 x 128 truth values
        assert consumers(graph, 128 * 2 * 8) == [["Add"] * 3]
        assert consumers(graph, 128 * 128) == [["Add"] * 3]


def test_frequencies_of_rotary_positions_are_cloned():
    # Positions times 128 frequencies, an outer product, then the cosine.
    nodes, stored = layers(3, lambda i, a: [node("Mul", f"{a} cos", f"h{i}")])
    factors = [
        node("Cast", "positions", "p", to=FLOAT),
        node("MatMul", "p frequencies", "angles"),
        node("Cos", "angles", "cos"),
    ]
    stored.append(far("frequencies", 1, 128))
    inputs = [value("x", [4, 128, 128]), value("positions", [128, 1], INT64)]

    graph = from_onnx(model([*factors, *nodes], inputs, [out()], stored))

    assert [v.op for v in graph.nodes] == ["MatMul", "Mul"] * 3 + ["Relu"]
    assert consumers(graph, 512) == [["Mul"] * 3]


def test_a_table_of_rotary_factors_is_looked_up_in_each_layer():
    nodes, stored = layers(3, lambda i, a: [node("Mul", f"{a} cos", f"h{i}")])
    stored.append(far("table", 512, 128))
    inputs = [value("x", [128, 128]), value("positions", [128], INT64)]

    graph = from_onnx(
        model([node("Gather", "table positions", "cos"), *nodes], inputs, [out()], stored)
    )

    assert [v.op for v in graph.nodes] == ["MatMul", "Mul"] * 3 + ["Relu"]
    assert consumers(graph, 512 * 128 * 4) == [["Mul"] * 3]


def test_an_embedding_stays_a_node_with_its_table():
    nodes = [
        node("Gather", "words ids", "e"),
        node("Gather", "places positions", "p"),
        node("Add", "e p", "s"),
        node("LayerNormalization", "s scale", "n"),
        *(node("MatMul", f"n w{i}", f"h{i}") for i in range(3)),
        node("Add", "n h0", "r0"),
        node("Add", "r0 h1", "r1"),
        node("Add", "r1 h2", "y"),
    ]
    stored = [far("words", 3000, 64), far("places", 500, 64), far("scale", 64)]
    stored += [far(f"w{i}", 64, 64) for i in range(3)]
    inputs = [value("ids", [32], INT64), value("positions", [32], INT64)]

    graph = from_onnx(model(nodes, inputs, [out()], stored))

    assert [v.op for v in graph.nodes] == [n.op_type for n in nodes]
    assert consumers(graph, 3000 * 64 * 4) == [["Gather"]]
    assert consumers(graph, 64 * 4) == [["LayerNormalization"]]


def test_tables_of_a_recommender_are_not_gathered_on_one_chip():
    # Each table is looked up once, beside a network on other features.
    nodes = [node("MatMul", "x w", "m")]
    nodes += [node("Gather", f"t{i} ids{i}", f"e{i}") for i in range(3)]
    nodes.append(node("Concat", "m e0 e1 e2", "y", axis=1))
    stored = [far("w", 16, 16), *(far(f"t{i}", 10 * (i + 1), 16) for i in range(3))]
    inputs = [value("x", [8, 16]), *(value(f"ids{i}", [8], INT64) for i in range(3))]

    graph = from_onnx(model(nodes, inputs, [out()], stored))

    assert [v.op for v in graph.nodes] == ["MatMul", "Gather", "Gather", "Gather", "Concat"]


def test_a_normalisation_of_the_input_is_no_side_chain():
    nodes = [node("LayerNormalization", "x scale", "n")]
    nodes += [node("MatMul", f"n w{i}", f"h{i}") for i in range(3)]
    nodes += [node("Sum", "h0 h1 h2 n", "y")]
    stored = [far("scale", 64), *(far(f"w{i}", 64, 64) for i in range(3))]

    graph = from_onnx(model(nodes, [value("x", [64, 64])], [out()], stored))

    assert [v.op for v in graph.nodes] == [n.op_type for n in nodes]


def test_what_a_matrix_product_or_a_convolution_makes_of_an_input_is_never_cloned():
    # A time embedding: the second product is no outer product.
    nodes, stored = layers(3, lambda i, a: [node("Add", f"{a} t", f"h{i}")])
    inputs = [value("x", [128, 128]), value("time", [1, 128])]
    stored.append(far("u", 128, 128))

    graph = from_onnx(model([node("MatMul", "time u", "t"), *nodes], inputs, [out()], stored))

    assert [v.op for v in graph.nodes].count("MatMul") == 4
    assert widest(graph) == 3
