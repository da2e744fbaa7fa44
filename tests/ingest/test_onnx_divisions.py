"""The ways to divide nodes of ONNX graphs: labels that hold across the graph, and weights."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from jaxpart.ingest.onnx.constant_values import constant_values
from jaxpart.ingest.onnx.divisions.nodes import held_weights
from jaxpart.ingest.onnx.divisions.table import RULES
from jaxpart.ingest.onnx.importer import from_onnx
from jaxpart.ingest.onnx.model import prepare
from jaxpart.ingest.onnx.sizes import counter
from jaxpart.problem.graph import Graph
from tests.ingest import (
    test_onnx_divisions_contrib,
    test_onnx_divisions_elementwise,
    test_onnx_divisions_layout,
    test_onnx_divisions_products,
)
from tests.support.onnx_models import (
    BOOL,
    INT64,
    body,
    model,
    node,
    numbers,
    out,
    stored,
    value,
)

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def division(graph: Graph, name: str, axis: str | None = None, join: str | None = None):
    """The division of a node along an axis; without one, the only one with that join."""
    (v,) = (v for v in graph.nodes if v.name == name)
    (found,) = (d for d in v.divide if d.join == join and axis in (None, d.axis))
    return found


def weights_of(graph: Graph, name: str):
    """Bytes of each weight that a node reads -> the label of each division that cuts it."""
    (v,) = (i for i, found in enumerate(graph.nodes) if found.name == name)
    return {
        weight.bytes: [dict(d.weights).get(w) for d in graph.nodes[v].divide]
        for w, weight in enumerate(graph.weights)
        if v in weight.consumers
    }


def perceptron():
    nodes = [
        node("MatMul", "x w", "a", name="up"),
        node("Add", "a b", "c", name="bias"),
        node("Relu", "c", "d", name="relu"),
        node("MatMul", "d v", "y", name="down"),
    ]
    held = [stored("w", 16, 32), stored("b", 32), stored("v", 32, 16)]
    return from_onnx(model(nodes, [value("x", (8, 16))], [out()], held))


def test_the_columns_of_one_product_are_what_the_next_one_sums_over():
    graph = perceptron()
    hidden = division(graph, "down", join="sum").axis

    assert [d.ways for name in ("up", "bias", "relu") for d in [division(graph, name, hidden)]] == [
        *(32, 32, 32)
    ]
    assert division(graph, "down", join="sum").ways == 32
    assert division(graph, "down", join="sum").reads == ((2, hidden),)
    assert division(graph, "bias", hidden).reads == ((0, hidden),)
    assert weights_of(graph, "up")[16 * 32 * 4].count(hidden) == 1
    assert weights_of(graph, "bias")[32 * 4] == [None, hidden]
    assert weights_of(graph, "down")[32 * 16 * 4].count(hidden) == 1


def test_rows_pass_through_a_whole_perceptron_and_every_part_holds_all_weights():
    graph = perceptron()
    rows = graph.nodes[0].divide[0].axis

    for v in graph.nodes:
        along = division(graph, v.name, rows)
        assert along.ways == 8
        assert along.weights == ()
        assert [label for _, label in along.reads] == ([rows] if v.name != "up" else [])


HEADS, LENGTH, WIDTH = 3, 5, 12


def attention():
    def projected(name):
        return [
            node("MatMul", f"x w{name}", f"p{name}", name=f"project_{name}"),
            node("Reshape", f"p{name} split", f"s{name}", name=f"split_{name}"),
            node("Transpose", f"s{name}", name, name=f"turn_{name}", perm=PERMUTATIONS[name]),
        ]

    nodes = [
        *(made for name in "qkv" for made in projected(name)),
        node("MatMul", "q k", "scores", name="scores"),
        node("Div", "scores root", "scaled", name="scale"),
        node("Softmax", "scaled", "shares", name="softmax"),
        node("MatMul", "shares v", "mixed", name="mix"),
        node("Transpose", "mixed", "back", name="turn_back", perm=[0, 2, 1, 3]),
        node("Reshape", "back join", "joined", name="join"),
        node("MatMul", "joined wo", "y", name="project"),
    ]
    held = [stored(f"w{name}", WIDTH, WIDTH) for name in "qkvo"]
    held += [
        numbers("split", [1, LENGTH, HEADS, WIDTH // HEADS]),
        numbers("join", [1, LENGTH, WIDTH]),
    ]
    held += [numbers("root", 2.0, np.float32)]
    return from_onnx(model(nodes, [value("x", (1, LENGTH, WIDTH))], [out()], held))


PERMUTATIONS = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}


def test_heads_pass_through_attention_from_the_projections_to_the_last_sum():
    graph = attention()
    heads = division(graph, "project", join="sum").axis
    ways = {v.name: d.ways for v in graph.nodes for d in v.divide if d.axis == heads}

    assert ways.keys() == {v.name for v in graph.nodes}
    assert {ways[name] for name in ways if name.startswith("project")} == {WIDTH}
    assert {ways[name] for name in ways if not name.startswith("project")} == {HEADS}
    for name in ("project_q", "project_k", "project_v"):
        assert weights_of(graph, name)[WIDTH * WIDTH * 4].count(heads) == 1
    for name in ("scores", "mix"):
        assert {label for _, label in division(graph, name, heads).reads} == {heads}


def test_no_tensor_is_cut_along_two_axes_of_one_label():
    graph = attention()

    for v in graph.nodes:
        assert len({d.axis for d in v.divide}) == len(v.divide), v.name
    # Queries and keys come from the same positions, and only one of them keeps their label.
    positions = {d.axis for d in graph.nodes[0].divide} & {
        d.axis for v in graph.nodes if v.name == "scores" for d in v.divide
    }
    assert len(positions) == 2  # those positions, and the heads


def test_labels_are_the_same_in_every_import():
    assert attention().nodes == attention().nodes


def single(nodes, held, shape=(4, 16)):
    return from_onnx(model(nodes, [value("x", shape)], [out()], held))


@pytest.mark.parametrize(
    ("made", "held", "cut"),
    [
        (node("Transpose", "w", "m", perm=[1, 0]), stored("w", 32, 16), True),
        (node("Unsqueeze", "w zero", "m"), stored("w", 16, 32), True),
        (node("Reshape", "w shape", "m"), stored("w", 16, 4, 8), True),
        (node("Reshape", "w shape", "m"), stored("w", 8, 2, 32), True),
        (node("Mul", "w w", "m"), stored("w", 16, 32), True),
        # The columns of the product are nothing that is one run of an axis of the weight.
        (node("Reshape", "w shape", "m"), stored("w", 16 * 32), False),
        (node("Softmax", "w", "m"), stored("w", 16, 32), False),
    ],
)
def test_a_part_holds_its_share_of_a_weight_that_is_folded_if_it_is_one_of_an_axis(made, held, cut):
    graph = single(
        [made, node("MatMul", "x m", "y", name="product")],
        [held, numbers("zero", [0]), numbers("shape", [16, 32])],
    )
    by_columns = graph.nodes[0].divide[-2]

    assert [v.name for v in graph.nodes] == ["product"]
    assert by_columns.ways == 32
    assert (len(by_columns.weights) == 1) == cut


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((6, 4), node("Transpose", "w", "m")),
        ((6, 4, 2), node("Transpose", "w", "m", perm=[2, 0, 1])),
        ((6, 4), node("Reshape", "w shape", "m")),
        ((2, 3, 4), node("Reshape", "w shape", "m")),
        ((2, 12), node("Reshape", "w shape", "m")),
        ((24,), node("Reshape", "w shape", "m")),
        ((12, 1, 2), node("Squeeze", "w one", "m")),
        ((6, 4), node("Unsqueeze", "w one", "m")),
        ((6, 4), node("Slice", "w one five", "m")),
        ((6, 4), node("Concat", "w w", "m", axis=1)),
        ((6, 4), node("Neg", "w", "m")),
        ((6, 4), node("Pad", "w pads", "m")),
    ],
)
def test_slices_of_a_folded_value_are_made_of_the_slices_of_its_weight(shape, made):
    given = {"shape": [4, 6], "one": [1], "five": [5], "pads": [0, 0, 0, 1]}
    held = [numbers(name, content) for name, content in given.items()]
    weight = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    whole = model([made], [value("w", shape)], [out("m")], held, opset=17)
    (made_of,) = ReferenceEvaluator(whole).run(None, {"w": weight})
    folded = np.asarray(made_of)
    inner = [made, node("Add", "x m", "y")]
    prepared = prepare(
        model(inner, [value("x", folded.shape)], [out()], [*held, stored("w", *shape)]), "m", {}
    )
    constants = constant_values(prepared, {}, counter(None), {})
    (found,) = held_weights(prepared, {}, constants, {"w": 7}, "m")["m"]

    assert found.weight == 7
    assert any(axis is not None for axis in found.axes)
    for dim, axis in enumerate(found.axes):
        if axis is None:
            continue
        count = np.gcd(folded.shape[dim], weight.shape[axis])
        assert count > 1
        for ours, theirs in zip(
            np.split(folded, count, dim), np.split(weight, count, axis), strict=True
        ):
            assert set(np.abs(ours).flat) - {0} <= set(theirs.flat)


def test_a_weight_that_is_read_along_two_axes_is_held_whole():
    graph = single(
        [node("Transpose", "w", "t"), node("MatMul", "w t", "m"), node("MatMul", "x m", "y")],
        [stored("w", 16, 32)],
    )

    assert [d.weights for d in graph.nodes[0].divide] == [()] * 3


def test_a_quantised_weight_is_cut_with_its_scales():
    graph = single(
        [
            node("DequantizeLinear", "w s", "m", axis=1),
            node("MatMul", "x m", "y", name="product"),
        ],
        [stored("w", 16, 32, dtype=np.int8), stored("s", 32)],
    )
    columns = division(graph, "product", graph.nodes[0].divide[1].axis)

    assert weights_of(graph, "product")[32 * 4] == [None, columns.axis, None]
    assert weights_of(graph, "product")[16 * 32][1] == columns.axis


def test_a_cut_passes_through_what_does_nothing():
    nodes = [
        node("MatMul", "x w", "a", name="up"),
        node("Identity", "a", "b"),
        node("Dropout", "b", "c"),
        node("Relu", "c", "y", name="relu"),
    ]
    graph = single(nodes, [stored("w", 16, 32)])

    assert [v.name for v in graph.nodes] == ["up", "relu"]
    assert {d.axis for d in graph.nodes[0].divide if not d.join} == {
        d.axis for d in graph.nodes[1].divide
    }


def test_rows_of_an_embedding_are_shared_out_with_a_sum_and_those_of_a_tensor_are_not():
    nodes = [
        node("Gather", "table i", "e", name="embed"),
        node("Relu", "e", "r", name="relu"),
        node("Gather", "r first", "y", name="first"),
    ]
    held = [stored("table", 50, 8), numbers("first", [0])]
    graph = from_onnx(model(nodes, [value("i", (6,), INT64)], [out()], held))
    rows = division(graph, "embed", join="sum")

    assert rows.ways == 50
    assert rows.weights == ((0, rows.axis),)
    assert rows.reads == ()
    assert [d.join for d in graph.nodes[2].divide] == [None]


def test_a_result_that_nothing_reads_is_in_the_way_of_no_cut():
    def pooled(outputs):
        nodes = [node("MaxPool", "x", "y i", name="pool", kernel_shape=[2])]
        return from_onnx(model(nodes, [value("x", (2, 3, 8))], outputs)).nodes[0].divide

    assert [d.ways for d in pooled([out()])] == [2, 3, 7]
    assert pooled([out(), out("i", INT64)]) == ()


def test_loops_conditions_and_unknown_operators_are_left_whole():
    then = body([node("Relu", "x", "a")], [], [value("a", (4, 16))])
    other = body([node("Neg", "x", "b")], [], [value("b", (4, 16))])
    nodes = [
        node("If", "c", "d", then_branch=then, else_branch=other),
        node("Strange", "d", "y", domain="com.microsoft"),
    ]
    outputs = [value("y", (4, 16))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = from_onnx(model(nodes, [value("x", (4, 16)), value("c", (), BOOL)], outputs))

    assert [v.divide for v in graph.nodes] == [(), ()]


@pytest.mark.parametrize("name", ["bvlc_alexnet", "resnet50", "shufflenet"])
def test_all_work_and_weights_of_the_light_models_can_be_divided(name):
    graph = from_onnx(LIGHT / f"light_{name}.onnx")
    divided = {w for v in graph.nodes for d in v.divide for w, label in d.weights if label}

    assert sum(v.flops for v in graph.nodes if v.divide) > 0.9999 * graph.total_flops
    assert sum(graph.weights[w].bytes for w in divided) == graph.weight_bytes


def test_the_rule_of_every_operator_is_run_in_parts():
    families = (
        test_onnx_divisions_contrib,
        test_onnx_divisions_elementwise,
        test_onnx_divisions_layout,
        test_onnx_divisions_products,
    )
    run = {(case.domain, case.op) for family in families for case in family.CASES}

    assert RULES.keys() - run == set()
