"""Which nodes of a model the nodes of its graph stand for."""

import numpy as np

from jaxpart.ingest.onnx.importer import from_onnx, import_model
from tests.support.onnx_models import BOOL, FLOAT, body, model, node, numbers, out, value


def by_result(imported):
    """The first result of each node -> the name of the graph's node that stands for it."""
    results = (n.output[0] for n in imported.model.nodes)
    return dict(zip(results, imported.names, strict=True))


def test_each_node_of_the_graph_stands_for_one_of_the_model():
    whole = model(
        [
            node("Transpose", "w", "t"),
            node("MatMul", "x t", "a"),
            node("Identity", "a", "b", name="same"),
            node("Shape", "b", "s", name="shape"),
            node("Reshape", "b s", "c", name="reshape"),
            node("MatMul", "c t", "d"),
            node("Relu", "a", "unread"),
        ],
        [value("x", [2, 10])],
        [out("d")],
        [numbers("w", np.eye(10), np.float32)],
    )

    imported = import_model(whole, "model")

    assert imported.graph == from_onnx(whole)
    assert imported.source is whole
    assert by_result(imported) == {
        "t": None, "a": "MatMul_0", "b": None, "c": "reshape", "d": "MatMul_1",
    }  # fmt: skip
    assert imported.alias == {"b": "a"}


def test_cloned_nodes_stand_for_none():
    whole = model(
        [
            node("Cast", "mask", "m", name="cast", to=FLOAT),
            node("MatMul", "x w", "a", name="a"),
            node("Add", "a m", "b", name="b"),
            node("MatMul", "b w", "c", name="c"),
            node("Add", "c m", "d", name="d"),
        ],
        [value("x", [8, 8]), value("mask", [1, 8], BOOL)],
        [out("d")],
        [numbers("w", np.eye(8), np.float32)],
    )

    names = by_result(import_model(whole, "model"))

    assert names == {"m": None, "a": "a", "b": "b", "c": "c", "d": "d"}


def decided(result, operand, inner):
    """An If on a constant, whose branch uses the same names as any other one."""
    loop_body = body(
        [node("Add", "s t", "next"), node("Identity", "go", "on")],
        [value("i", [], 7), value("go", [], BOOL), value("s", [2])],
        [value("on", [], BOOL), value("next", [2])],
    )
    then = body(
        [
            node("Mul", f"{operand} k", "t", name=f"{inner}/mul"),
            node("Loop", f"three _ {operand}", "r", name=f"{inner}/loop", body=loop_body),
        ],
        [], [out("r")], [numbers("k", [2, 3], np.float32)],
    )  # fmt: skip
    other = body([node("Abs", operand, "r")], [], [out("r")])
    return node("If", "yes", result, then_branch=then, else_branch=other)


def test_branches_that_become_part_of_the_graph_keep_their_values_apart():
    """Bodies within them read the values of their own branch."""
    whole = model(
        [node("MatMul", "x w", "a", name="a"), decided("b", "a", "one"), decided("c", "b", "two")],
        [value("x", [2])],
        [out("c")],
        [numbers("yes", True, bool), numbers("three", 3), numbers("w", np.eye(2), np.float32)],
    )

    imported = import_model(whole, "model")

    names = [node.name for node in imported.graph.nodes]
    assert names == ["a", "one/mul", "one/loop", "two/mul", "two/loop"]
    results = [name for n in imported.model.nodes for name in n.output]
    assert len(results) == len(set(results))
    assert by_result(imported)["c/t"] == "two/mul"
    stored = {tensor.name for tensor in imported.model.proto.graph.initializer}
    assert {"k", "c/k"} <= stored
