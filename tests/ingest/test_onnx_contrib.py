"""Operators that ONNX Runtime adds to ONNX: shapes, FLOPs and bytes.

The shapes are those that onnxruntime 1.32 returned for the same nodes.
"""

import warnings

import pytest
from onnx import TensorProto, helper

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.importer import from_onnx
from jaxpart.ingest.onnx.model import prepare
from tests.support.onnx_models import FLOAT, INT64, far, model, node, numbers, out, value

INT32, UINT8 = TensorProto.INT32, TensorProto.UINT8
MICROSOFT = "com.microsoft"


def x(*shape, dtype: int = FLOAT):
    return ("input", shape, dtype)


def w(*shape, dtype: int = FLOAT):
    return ("weight", shape, dtype)


def i32(*values):
    return ("numbers", values, INT32)


def whole(op, operands, results, attributes):
    """A model of one node of the domain; None: the operand is absent."""
    names, inputs, stored = [], [], []
    for position, operand in enumerate(operands):
        names.append("_" if operand is None else f"i{position}")
        if operand is None:
            continue
        kind, shape, dtype = operand
        if kind == "input":
            inputs.append(value(f"i{position}", shape, dtype))
        elif kind == "weight":
            stored.append(far(f"i{position}", *shape, dtype=dtype))
        else:
            stored.append(numbers(f"i{position}", shape, "int32"))
    made = node(op, " ".join(names), results, domain=MICROSOFT, **attributes)
    outputs = [helper.make_empty_tensor_value_info(name) for name in made.output if name]
    return model([made], inputs, outputs, stored, opset=17)


SCORE = 6  # FLOPs of a score beside the products: scaling and softmax
# Operator, operands, results, attributes; shapes of the results; FLOPs.
CASES = [
    # 2 x 5 rows of 16, 4 heads of 4; 3 keys of the past. Product with bias, scores, values.
    (
        "Attention",
        [x(2, 5, 16), w(16, 48), w(48), None, x(2, 2, 4, 3, 4)],
        "o p",
        {"num_heads": 4},
        [(2, 5, 16), (2, 2, 4, 8, 4)],
        10 * 48 * (2 * 16 + 1) + 2 * 4 * 5 * 8 * (8 + 8 + SCORE),
    ),
    (
        "Attention",
        [x(2, 5, 16), w(16, 56), w(56)],
        "o",
        {"num_heads": 4, "qkv_hidden_sizes": [16, 16, 24]},
        [(2, 5, 24)],
        10 * 56 * 33 + 2 * 4 * 5 * 5 * (8 + 12 + SCORE),
    ),
    (
        "QAttention",
        [x(2, 5, 16), w(16, 48, dtype=UINT8), w(48), w(), w()],
        "o",
        {"num_heads": 4},
        [(2, 5, 16)],
        10 * 48 * 33 + 2 * 4 * 5 * 5 * (8 + 8 + SCORE),
    ),
    (
        "MultiHeadAttention",
        [x(2, 5, 16), x(2, 7, 16), x(2, 7, 24)],
        "o",
        {"num_heads": 4},
        [(2, 5, 24)],
        2 * 4 * 5 * 7 * (8 + 12 + SCORE),
    ),
    (
        "MultiHeadAttention",
        [x(2, 1, 16)] * 3 + [None] * 3 + [x(2, 4, 3, 4)] * 2,
        "o k v",
        {"num_heads": 4},
        [(2, 1, 16), (2, 4, 4, 4), (2, 4, 4, 4)],
        2 * 4 * 1 * 4 * (8 + 8 + SCORE),
    ),
    # Keys and values have 2 heads of 8 for 4 heads of queries.
    (
        "GroupQueryAttention",
        [x(2, 1, 32), x(2, 1, 16), x(2, 1, 16), *[x(2, 2, 3, 8)] * 2, i32(3, 3), i32(4)],
        "o k v",
        {"num_heads": 4, "kv_num_heads": 2},
        [(2, 1, 32), (2, 2, 4, 8), (2, 2, 4, 8)],
        2 * 4 * 1 * 4 * (16 + 16 + SCORE),
    ),
    # Query, key and value are packed, and turned by their positions.
    (
        "GroupQueryAttention",
        [
            *(x(2, 5, 64), None, None, *[x(2, 2, 0, 8)] * 2),
            *(i32(4, 4), i32(5), *[w(16, 4)] * 2),
        ],
        "o k v",
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
        [(2, 5, 32), (2, 2, 5, 8), (2, 2, 5, 8)],
        2 * 4 * 5 * 5 * (16 + 16 + SCORE) + 3 * 2 * 5 * 8 * (4 + 2),
    ),
    (
        "SkipLayerNormalization",
        [x(2, 5, 16), x(2, 5, 16), w(16), w(16), w(16)],
        "o _ _ s",
        {},
        [(2, 5, 16)] * 2,
        160 * (7 + 2),
    ),
    (
        "SkipSimplifiedLayerNormalization",
        [x(2, 5, 16), x(2, 5, 16), w(16)],
        "o _ _ s",
        {},
        [(2, 5, 16)] * 2,
        160 * (4 + 1),
    ),
    (
        "EmbedLayerNormalization",
        [
            *[x(2, 5, dtype=INT32)] * 2,
            *(w(50, 16), w(20, 16), w(2, 16), w(16), w(16)),
        ],
        "o m s",
        {},
        [(2, 5, 16), (2,), (2, 5, 16)],
        160 * (7 + 2),
    ),
    ("FastGelu", [x(2, 5, 16), w(16)], "o", {}, [(2, 5, 16)], 160 * (9 + 1)),
    ("BiasGelu", [x(2, 5, 16), w(16)], "o", {}, [(2, 5, 16)], 160 * (5 + 1)),
    ("QuickGelu", [x(2, 5)], "o", {}, [(2, 5)], 10 * 3),
    (
        "RotaryEmbedding",
        [x(2, 4, 5, 8), x(2, 5, dtype=INT64), *[w(16, 4)] * 2],
        "o",
        {},
        [(2, 4, 5, 8)],
        320 * 3,
    ),
    (
        "FusedMatMul",
        [x(2, 3, 4), x(2, 5, 4)],
        "o",
        {"transB": 1, "alpha": 0.5},
        [(2, 3, 5)],
        30 * (2 * 4 + 1),
    ),
    ("FusedMatMul", [x(4, 3), x(4, 5)], "o", {"transA": 1}, [(3, 5)], 15 * 2 * 4),
    (
        "FusedMatMul",
        [x(4, 2, 3, 5), x(2, 3, 5, 6)],
        "o",
        {"transBatchA": 1},
        [(2, 3, 4, 6)],
        144 * 2 * 5,
    ),
    # A border of one: 6 * 3 - 2 = 16 taps on each axis read real data.
    (
        "FusedConv",
        [x(1, 4, 6, 6), w(8, 4, 3, 3), w(8)],
        "o",
        {"activation": "Relu", "pads": [1] * 4},
        [(1, 8, 6, 6)],
        2 * 8 * 4 * 16**2 + 2 * 288,
    ),
    (
        "FusedGemm",
        [x(3, 4), w(5, 4), w(5)],
        "o",
        {"transB": 1, "activation": "Relu"},
        [(3, 5)],
        15 * (2 * 4 + 2),
    ),
    (
        "MatMulNBits",
        [x(2, 3, 64), w(10, 2, 16, dtype=UINT8), w(20)],
        "o",
        {"K": 64, "N": 10, "bits": 4, "block_size": 32},
        [(2, 3, 10)],
        60 * 2 * 64,
    ),
    (
        "DynamicQuantizeMatMul",
        [x(2, 3, 8), w(8, 6, dtype=UINT8), w()],
        "o",
        {},
        [(2, 3, 6)],
        36 * 2 * 8,
    ),
    (
        "MatMulIntegerToFloat",
        [x(2, 3, 8, dtype=UINT8), w(8, 6, dtype=UINT8), w(), w()],
        "o",
        {},
        [(2, 3, 6)],
        36 * 2 * 8,
    ),
    (
        "GatherBlockQuantized",
        [w(20, 32, dtype=UINT8), x(1, 3, dtype=INT64), w(20, 2)],
        "o",
        {"block_size": 32, "bits": 4, "quantize_axis": 1},
        [(1, 3, 64)],
        192 * 2,
    ),
]


@pytest.mark.parametrize(("op", "operands", "results", "attributes", "shapes", "flops"), CASES)
def test_common_operators_count_by_their_definition(
    op, operands, results, attributes, shapes, flops
):
    described = whole(op, operands, results, attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare(described, "model", {})
        graph = from_onnx(described)

    assert [prepared.arrays[name].shape for name in prepared.outputs] == shapes
    assert [(v.op, v.flops) for v in graph.nodes] == [(op, flops)]


def test_packed_weights_are_read_as_they_are_stored():
    graph = from_onnx(
        whole(
            "MatMulNBits",
            [x(1, 64), w(10, 2, 16, dtype=UINT8), w(20)],
            "o",
            {"K": 64, "N": 10, "bits": 4, "block_size": 32},
        )
    )

    assert graph.nodes[0].fixed_bytes == 10 * 64 / 2
    assert graph.nodes[0].bytes_accessed == 10 * 64 / 2 + 4 * (64 + 20 + 10)


def test_embeddings_read_the_rows_that_they_look_up():
    operands = [*[x(1, 5, dtype=INT32)] * 2, w(50, 16), w(20, 16), w(2, 16), w(16), w(16)]

    graph = from_onnx(whole("EmbedLayerNormalization", operands, "o", {}))

    rows = 5 + 5 + 2  # words, positions, and all segments
    assert graph.nodes[0].bytes_accessed == 4 * (5 + 5 + 16 * (rows + 2 + 5))


def test_shapes_go_on_behind_such_operators():
    # As ONNX Runtime writes an encoder: no shape is stated between input and output.
    nodes, stored, previous = [], [], "x"
    for i in range(4):
        nodes += [
            node("Attention", f"{previous} q{i} b{i}", f"a{i}", domain=MICROSOFT, num_heads=4),
            node("MatMul", f"a{i} o{i}", f"p{i}"),
            node("SkipLayerNormalization", f"p{i} {previous} s{i}", f"n{i}", domain=MICROSOFT),
            node("Transpose", f"n{i}", f"t{i}", perm=[0, 2, 1]),
            node("Transpose", f"t{i}", f"u{i}", perm=[0, 2, 1]),
            node("BiasGelu", f"u{i} s{i}", f"g{i}", domain=MICROSOFT),
        ]
        stored += [far(f"q{i}", 16, 48), far(f"b{i}", 48), far(f"o{i}", 16, 16), far(f"s{i}", 16)]
        previous = f"g{i}"
    nodes.append(node("Identity", previous, "y"))

    graph = from_onnx(model(nodes, [value("x", [1, 6, 16])], [out()], stored))

    assert [v.op for v in graph.nodes] == [n.op_type for n in nodes[:-1]]
    assert {k.bytes for k in graph.tensors} == {4 * 6 * 16}


def test_operands_that_do_not_fit_are_refused_by_their_node():
    wrong = whole("FusedMatMul", [x(2, 3), x(4, 5)], "o", {})

    with pytest.raises(FileFormatError, match=r"FusedMatMul\): its operands do not fit"):
        from_onnx(wrong)


def test_other_operators_are_named_and_the_warning_says_what_hangs_on_them():
    mixture = node("MoE", "x r", "y", domain=MICROSOFT)
    described = model([mixture], [value("x", [4, 8])], [value("y", [4, 8])], [far("r", 8, 8)])

    with pytest.warns(UserWarning, match=r"com\.microsoft\.MoE; .*the figures hang on it"):
        from_onnx(described)


def test_an_operator_with_a_body_in_the_model_is_opened():
    twice = helper.make_function(
        MICROSOFT, "MoE", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 18)]
    )
    caller = node("MoE", "x", "y", domain=MICROSOFT)

    graph = from_onnx(model([caller], [value("x", [3])], [out()], functions=[twice]))

    assert [v.op for v in graph.nodes] == ["Add"]
