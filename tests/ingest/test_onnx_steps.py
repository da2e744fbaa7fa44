"""ONNX operators that run in steps: bytes are counted per step, as FLOPs are."""

import pytest
from onnx import TensorProto

from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import BOOL, INT64, body, far, model, node, numbers, out, value


def recurrent(op, gates, steps, **attributes):
    """One recurrent layer: batch 2, 5 inputs, 6 units."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    stored = [far("w", directions, gates * 6, 5), far("r", directions, gates * 6, 6)]
    stored.append(far("b", directions, 2 * gates * 6))
    shape = [2, steps, 5] if attributes.get("layout") else [steps, 2, 5]
    layer = node(op, "x w r b", "y", hidden_size=6, **attributes)
    return from_onnx(model([layer], [value("x", shape)], [out()], stored)).nodes[0]


@pytest.mark.parametrize(("op", "gates", "states"), [("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)])
@pytest.mark.parametrize("layout", [0, 1])
def test_recurrent_layers_read_weights_and_states_at_each_step(op, gates, states, layout):
    (one, many) = (recurrent(op, gates, steps, layout=layout) for steps in (1, 64))

    weights = 4 * (gates * 6 * (5 + 6) + 2 * gates * 6)
    row = 4 * 2 * (5 + 6)  # an element of both sequences, for the whole batch
    state = 4 * 2 * 6
    assert one.bytes_accessed == weights + row
    assert many.bytes_accessed == 64 * (weights + row) + 63 * 2 * states * state
    assert many.flops == 64 * one.flops


def test_both_directions_read_weights_of_their_own():
    one, both = (
        recurrent("GRU", 3, 10, direction=direction) for direction in ("forward", "bidirectional")
    )

    read = 4 * 10 * 2 * 5  # the sequence is read once
    assert both.bytes_accessed - read == 2 * (one.bytes_accessed - read)


def loop(trips, stored=True):
    """A product with a weight of 4 x 4 that is stored in the body or captured, `trips` times."""
    step = body(
        [node("MatMul", "h u", "next"), node("Identity", "go", "still")],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [4, 4])],
        [value("still", [], BOOL), value("next", [4, 4])],
        [far("u", 4, 4)] if stored else [],
    )
    constants = [numbers("trips", trips), *([] if stored else [far("u", 4, 4)])]
    return model(
        [node("Loop", "trips _ x", "y", body=step)],
        [value("x", [4, 4])],
        [value("y", [4, 4])],
        constants,
    )


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("trips", [7, 65])
def test_a_loop_reads_the_weights_of_its_body_at_each_trip(trips, stored):
    graph = from_onnx(loop(trips, stored))

    assert graph.nodes[0].bytes_accessed == trips * 3 * 64  # operand, weight, result
    assert [w.bytes for w in graph.weights] == [64]


def test_no_loop_accesses_less_than_its_operands_and_results():
    graph = from_onnx(loop(1))

    assert graph.nodes[0].bytes_accessed == 8 + 64 + 64 + 64  # trips, operand, weight, result


def test_a_quantised_weight_that_a_loop_captures_is_read_in_its_own_type():
    step = body(
        [node("MatMul", "h u", "next"), node("Identity", "go", "still")],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [4, 4])],
        [value("still", [], BOOL), value("next", [4, 4])],
    )
    nodes = [
        node("Cast", "q", "u", to=TensorProto.FLOAT),
        node("Loop", "trips _ x", "y", body=step),
    ]
    stored = [numbers("trips", 10), far("q", 4, 4, dtype=TensorProto.INT8)]

    graph = from_onnx(model(nodes, [value("x", [4, 4])], [value("y", [4, 4])], stored))

    assert graph.nodes[0].bytes_accessed == 10 * (64 + 16 + 64)
    assert graph.nodes[0].fixed_bytes == 10 * 16


def scan(shape, opset, **attributes):
    step = body([node("Add", "s e", "t")], [value("s", [4]), value("e", [4])], [value("t", [4])])
    state = [4] if opset > 8 else [shape[0], 4]
    operands = "s0 x" if opset > 8 else "_ s0 x"
    layer = node("Scan", operands, "y", body=step, num_scan_inputs=1, **attributes)
    inputs = [value("s0", state), value("x", shape)]
    return from_onnx(model([layer], inputs, [value("y", state)], opset=opset)).nodes[0]


def test_a_scan_counts_its_steps_along_its_axis():
    assert (scan([9, 4], 17).flops, scan([9, 4], 17).bytes_accessed) == (36, 9 * 48)
    assert scan([4, 9], 17, scan_input_axes=[1]).flops == 36


def test_a_scan_of_opset_8_has_the_batch_before_the_steps():
    assert scan([3, 9, 4], 8).flops == 3 * 9 * 4


def test_a_branch_reads_the_tensors_of_the_side_that_is_counted():
    side = body([node("MatMul", "x u", "t")], [], [value("t", [4, 4])], [far("u", 4, 4)])
    other = body([node("Add", "x v", "e")], [], [value("e", [4, 4])], [far("v", 4, 4)])
    either = node("If", "which", "y", then_branch=side, else_branch=other)
    inputs = [value("x", [4, 4]), value("which", [], BOOL)]

    graph = from_onnx(model([either], inputs, [value("y", [4, 4])]))

    assert graph.nodes[0].bytes_accessed == 3 * 64
    assert [w.bytes for w in graph.weights] == [64, 64]  # the chip holds both


@pytest.mark.parametrize(
    ("opset", "operands", "attributes", "flops"),
    [
        (17, "x", {"axis": 2}, 5 * 2 * 8 * 16 * 4),
        (17, "x", {}, 5 * 2 * 16 * 8 * 3),  # the axis is 1
        (20, "x _ axis", {}, 5 * 2 * 8 * 16 * 4),
        (20, "x", {}, 5 * 2 * 8 * 16 * 4),  # the axis is the last but one
        (20, "x _ first", {}, 5 * 2 * 16 * 8 * 3),
        (20, "x _ axis", {"onesided": 1}, 5 * 2 * 8 * 16 * 4 / 2),
        (20, "x length axis", {}, 5 * 2 * 8 * 32 * 5),
    ],
)
def test_a_fourier_transform_counts_along_its_axis(opset, operands, attributes, flops):
    stored = [numbers("axis", 2), numbers("first", 1), numbers("length", 32)]

    graph = from_onnx(
        model(
            [node("DFT", operands, "y", **attributes)],
            [value("x", [2, 8, 16, 1])],
            [out()],
            stored,
            opset=opset,
        )
    )

    assert graph.nodes[0].flops == flops
