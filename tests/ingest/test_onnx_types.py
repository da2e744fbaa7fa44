"""ONNX types: integers and quantised values keep the bits of their own type."""

import math

import pytest
from onnx import TensorProto

from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import FLOAT, INT64, far, model, node, numbers, out, value

FLOAT16 = TensorProto.FLOAT16


def quantised_product(dtype, rows, columns):
    nodes = [node("DequantizeLinear", "w s", "d"), node("MatMul", "x d", "y")]
    stored = [far("w", rows, columns, dtype=dtype), numbers("s", 0.5, float)]
    stored[1].CopyFrom(numbers("s", 0.5, "float32"))  # type: ignore[arg-type]
    return model(nodes, [value("x", [2, rows])], [out()], stored, opset=23)


@pytest.mark.parametrize(
    ("dtype", "held"),
    [
        (TensorProto.INT8, 15),
        (TensorProto.UINT8, 15),
        (TensorProto.INT4, 8),  # 15 elements of half a byte, rounded up
        (TensorProto.UINT4, 8),
        (TensorProto.FLOAT8E4M3FN, 15),
        (TensorProto.FLOAT4E2M1, 8),
    ],
)
def test_a_quantised_weight_keeps_its_bytes_at_every_element_size(dtype, held):
    traced = from_onnx(quantised_product(dtype, 3, 5))
    small = from_onnx(quantised_product(dtype, 3, 5), element_bytes=1)

    # The floats: the operand [2, 3], the scale and the result [2, 5].
    for graph, floats in ((traced, 4 * 17), (traced.rescaled(1), 17), (small, 17)):
        (weight,) = graph.weights
        assert (weight.bytes, weight.fixed) == (held, True)
        assert graph.nodes[0].fixed_bytes == held
        assert graph.nodes[0].bytes_accessed == floats + held


def test_layers_too_large_for_a_chip_stay_so_on_a_module_that_computes_in_bytes():
    graph = from_onnx(quantised_product(TensorProto.INT8, 6400, 6400)).rescaled(1)

    assert graph.weights[0].bytes == 6400**2 > 32 * 2**20


@pytest.mark.parametrize("dtype", [TensorProto.INT8, TensorProto.BFLOAT16, FLOAT16])
def test_a_weight_that_is_cast_is_read_in_its_own_type(dtype):
    nodes = [node("Cast", "w", "c", to=FLOAT), node("MatMul", "x c", "y")]
    stored = [far("w", 64, 64, dtype=dtype)]

    graph = from_onnx(model(nodes, [value("x", [1, 64])], [out()], stored))

    width = 1 if dtype == TensorProto.INT8 else 2
    assert graph.weight_bytes == width * 64**2
    assert graph.nodes[0].bytes_accessed == 4 * 2 * 64 + width * 64**2
    assert graph.nodes[0].fixed_bytes == (64**2 if dtype == TensorProto.INT8 else 0)


def test_rows_of_a_cast_table_are_read_in_its_own_type():
    nodes = [node("Cast", "w", "c", to=FLOAT), node("Gather", "c ids", "y")]
    stored = [far("w", 1000, 8, dtype=TensorProto.INT8)]

    graph = from_onnx(model(nodes, [value("ids", [5], INT64)], [out()], stored))

    assert graph.nodes[0].bytes_accessed == 5 * 8 + 5 * 8 + 5 * 8 * 4  # rows, indices, result
    assert graph.nodes[0].fixed_bytes == 5 * 8 + 5 * 8


def test_rows_of_a_broadcast_constant_are_no_smaller_than_what_it_is_made_of():
    nodes = [node("Expand", "w shape", "e"), node("Gather", "e ids", "y")]
    stored = [far("w", 1, 300), numbers("shape", [1000, 300])]

    graph = from_onnx(model(nodes, [value("ids", [5], INT64)], [out()], stored))

    read = 300 * 4 + 2 * 8  # the row, and the shape that it is expanded to
    assert graph.nodes[0].bytes_accessed == read + 5 * 8 + 5 * 300 * 4


def test_tensors_of_integers_and_truth_values_are_fixed():
    nodes = [
        node("Greater", "x zero", "g"),
        node("Cast", "g", "i", to=INT64),
        node("Cast", "i", "f", to=FLOAT),
        node("Relu", "f", "y"),
    ]
    graph = from_onnx(
        model(nodes, [value("x", [6])], [out()], [numbers("zero", 0, "float32")])  # type: ignore[arg-type]
    )

    kinds = {graph.nodes[k.producer].name: (k.bytes, k.fixed) for k in graph.tensors}
    assert kinds == {
        "Greater_0": (6, True),
        "Cast_0": (48, True),
        "Cast_1": (24, False),
        "Relu_0": (24, False),
    }
    assert [v.fixed_bytes for v in graph.nodes] == [6, 54, 48, 0]
    assert [k.bytes for k in graph.rescaled(2).tensors] == [6, 48, 12, 12]


def test_bytes_of_odd_counts_are_whole_for_every_tensor():
    halves = [far(f"w{i}", 3, 3, dtype=TensorProto.INT4) for i in range(3)]
    nodes = [node("DequantizeLinear", f"w{i} s", f"d{i}") for i in range(3)]
    nodes += [node("MatMul", f"{'xab'[i]} d{i}", "aby"[i]) for i in range(3)]
    stored = [*halves, numbers("s", 0.5, "float32")]  # type: ignore[arg-type]

    graph = from_onnx(model(nodes, [value("x", [1, 3])], [out()], stored, opset=23))

    assert [w.bytes for w in graph.weights] == [math.ceil(9 / 2)] * 3
