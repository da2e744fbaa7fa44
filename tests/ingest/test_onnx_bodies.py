"""ONNX models: branches, loops and functions, which are opened or are one node."""

from onnx import helper

from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import (
    BOOL,
    INT64,
    body,
    edges,
    model,
    node,
    numbers,
    out,
    stored,
    value,
)


def test_a_branch_is_one_node_that_costs_as_much_as_its_costlier_side():
    big = body([node("MatMul", "x w", "t")], [], [value("t", [4, 4])])
    small = body([node("Relu", "x", "e")], [], [value("e", [4, 4])])
    either = [
        node("Relu", "x0", "x"),
        node("If", "which", "y", then_branch=big, else_branch=small),
    ]
    inputs = [value("x0", [4, 4]), value("which", [], BOOL)]

    graph = from_onnx(model(either, inputs, [value("y", [4, 4])], [stored("w", 4, 4)]))

    assert [v.op for v in graph.nodes] == ["Relu", "If"]
    assert graph.nodes[1].flops == 2 * 4**3
    assert graph.nodes[1].bytes_accessed == 1 + 3 * 64  # what its sides capture is read
    assert edges(graph) == {("Relu_0", "If_0")}
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(64, (1,))]


def test_a_branch_that_shapes_decide_is_opened():
    # As PyTorch exports squeeze: the last dimension goes where it is 1.
    squeeze = body([node("Squeeze", "x axes", "t")], [], [out("t")])
    keep = body([node("Mul", "x w", "e")], [], [out("e")])
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape last", "size"),
        node("Equal", "size one", "is_one"),
        node("If", "is_one", "b", then_branch=squeeze, else_branch=keep),
        node("Relu", "b", "y"),
    ]
    constants = [numbers("last", 1), numbers("one", 1), numbers("axes", [1]), stored("w", 5)]

    one = from_onnx(model(nodes, [value("x", [4, 1])], [out()], constants))
    five = from_onnx(model(nodes, [value("x", [4, 5])], [out()], constants))

    assert [v.op for v in one.nodes] == ["Squeeze", "Relu"]
    assert [v.op for v in five.nodes] == ["Mul", "Relu"]
    assert (one.weight_bytes, five.weight_bytes) == (0, 20)


def loop(trips):
    step = body(
        [node("MatMul", "h u", "next"), node("Identity", "go", "still")],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [4, 4])],
        [value("still", [], BOOL), value("next", [4, 4])],
        [stored("u", 4, 4)],
    )
    return model(
        [node("Loop", "trips _ x", "y", body=step)],
        [value("x", [4, 4])],
        [value("y", [4, 4])],
        [numbers("trips", trips)],
    )


def test_a_loop_is_one_node_that_costs_its_trips():
    graph = from_onnx(loop(7))

    assert [v.op for v in graph.nodes] == ["Loop"]
    assert graph.nodes[0].flops == 7 * 2 * 4**3
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(64, (0,))]


def test_a_scan_is_one_node_that_costs_its_steps():
    step = body([node("Add", "s e", "t")], [value("s", [4]), value("e", [4])], [value("t", [4])])
    scan = node("Scan", "s0 x", "y", body=step, num_scan_inputs=1)

    graph = from_onnx(model([scan], [value("s0", [4]), value("x", [9, 4])], [value("y", [4])]))

    assert graph.nodes[0].flops == 9 * 4


def test_an_if_whose_condition_is_known_is_opened_though_all_shapes_are_known():
    product = body([node("MatMul", "x w", "t")], [], [value("t", [4, 4])])
    keep = body([node("Relu", "x", "e")], [], [value("e", [4, 4])])
    nodes = [
        node("Shape", "x", "shape"),
        node("Size", "shape", "rank"),
        node("Equal", "rank three", "is_three"),
        node("If", "is_three", "y", then_branch=product, else_branch=keep),
    ]
    constants = [stored("w", 4, 4), numbers("three", 3)]

    graph = from_onnx(model(nodes, [value("x", [4, 4])], [value("y", [4, 4])], constants))

    assert [(v.op, v.flops) for v in graph.nodes] == [("Relu", 16)]
    assert not graph.weights


def test_an_if_in_a_body_costs_the_side_that_a_constant_takes():
    product = body([node("MatMul", "h h", "t")], [], [value("t", [4, 4])])
    keep = body([node("Relu", "h", "e")], [], [value("e", [4, 4])])
    step = body(
        [
            node("If", "no", "next", then_branch=product, else_branch=keep),
            node("Identity", "go", "still"),
        ],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [4, 4])],
        [value("still", [], BOOL), value("next", [4, 4])],
    )
    looped = node("Loop", "trips _ x", "y", body=step)
    constants = [numbers("trips", 3), numbers("no", False, bool)]

    graph = from_onnx(model([looped], [value("x", [4, 4])], [value("y", [4, 4])], constants))

    assert [v.flops for v in graph.nodes] == [3 * 16]


def test_sizes_in_bodies_are_computed_from_constants_around_them():
    def side(name):
        wide = [node("Mul", "two three", f"n{name}"), node("Expand", f"x n{name}", name)]
        return body(wide, [], [out(name)], [numbers("three", [3])])

    either = node("If", "c", "y", then_branch=side("t"), else_branch=side("e"))
    inputs = [value("x", [1]), value("c", [], BOOL)]

    graph = from_onnx(model([either], inputs, [out()], [numbers("two", [2])]))

    assert [k.bytes for k in graph.tensors] == [4 * 6]


def test_rows_of_a_size_that_a_body_computes_are_counted():
    step = body(
        [
            node("Abs", "five", "n"),
            node("Expand", "h n", "row"),
            node("ReduceSum", "row", "s", keepdims=0),
            node("Add", "h s", "next"),
            node("Identity", "go", "still"),
        ],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [1])],
        [value("still", [], BOOL), value("next", [1]), out("row")],
    )
    looped = node("Loop", "three _ x", "last rows", body=step)
    constants = [numbers("three", 3), numbers("five", [-5])]

    graph = from_onnx(model([looped], [value("x", [1])], [out("rows")], constants))

    assert [k.bytes for k in graph.tensors] == [4 * 3 * 5]
    assert graph.nodes[0].flops == 3 * (4 + 1)  # a sum of five and an addition


def test_a_branch_in_a_body_reads_the_sizes_around_both():
    wide = [node("Expand", "h five", "t")]
    either = node(
        "If", "go", "row", then_branch=body(wide, [], [out("t")]),
        else_branch=body([node("Concat", "h h h h h", "e", axis=0)], [], [value("e", [5])]),
    )  # fmt: skip
    step = body(
        [either, node("Relu", "h", "next"), node("Identity", "go", "still")],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [1])],
        [value("still", [], BOOL), value("next", [1]), out("row")],
    )
    looped = node("Loop", "three _ x", "last rows", body=step)
    constants = [numbers("three", 3), numbers("five", [5])]

    graph = from_onnx(model([looped], [value("x", [1])], [out("rows")], constants))

    assert [k.bytes for k in graph.tensors] == [4 * 3 * 5]


def test_a_local_function_is_opened():
    twice = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [node("Add", "a a", "b")],
        [helper.make_opsetid("", 18)],
    )
    caller = node("Twice", "x", "y", domain="local")

    graph = from_onnx(model([caller], [value("x", [3])], [value("y", [3])], functions=[twice]))

    assert [v.op for v in graph.nodes] == ["Add"]


def test_the_model_given_stays_as_it_was():
    given = loop(3)
    before = given.SerializeToString(deterministic=True)

    from_onnx(given)

    assert given.SerializeToString(deterministic=True) == before
