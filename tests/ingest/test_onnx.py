"""ONNX models: what becomes a node, a weight, a tensor, and what it costs."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from jaxpart.errors import InputError
from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import (
    FLOAT,
    INT64,
    model,
    node,
    numbers,
    out,
    stored,
    value,
)

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
LIGHT = sorted(path.stem.removeprefix("light_") for path in DATA.glob("light/light_*.onnx"))


def single(op, shape, *operands, outputs="y", dtype=FLOAT, opset=17, **attributes):
    """The graph of one node on an input `x` and stored tensors."""
    names = " ".join(["x", *(tensor.name for tensor in operands)])
    body = [node(op, names, outputs, **attributes)]
    return from_onnx(model(body, [value("x", shape)], [out(dtype=dtype)], operands, opset=opset))


# Parameters (M) of the published models with the running statistics of their normalisations, and
# multiply-adds (G) as published, which count padding as data.
PUBLISHED = {
    "bvlc_alexnet": (60.965, 0.655),
    "densenet121": (8.146, 2.83),
    "inception_v1": (6.999, 1.43),
    "inception_v2": (11.235, 2.0),
    "resnet50": (25.610, 4.09),
    "shufflenet": (1.420, 0.137),
    "squeezenet": (1.2355, 0.349),
    "vgg19": (143.667, 19.63),
    "zfnet512": (87.25, 1.48),
}


@pytest.mark.parametrize("name", LIGHT)
def test_light_models_have_the_published_parameters_and_work(name):
    graph = from_onnx(DATA / "light" / f"light_{name}.onnx")
    parameters, multiply_adds = PUBLISHED[name]

    assert graph.name == f"light_{name}"
    assert graph.element_bytes == 4
    assert graph.weight_bytes / 4e6 == pytest.approx(parameters, rel=1e-3)
    # Without padding there is less to do; activations and normalisations are a little more.
    assert 0.9 < graph.total_flops / (2e9 * multiply_adds) < 1.03
    assert {"ConstantOfShape", "Dropout", "Unsqueeze"}.isdisjoint(v.op for v in graph.nodes)


def test_all_nine_light_models_are_there():
    assert sorted(PUBLISHED) == LIGHT


def test_small_models_of_the_onnx_package_are_read_or_refused_with_one_clear_line():
    read, refused = 0, []
    for path in sorted(DATA.glob("*/*/model.onnx")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # operators without a rule
                read += len(from_onnx(path).nodes) > 0
        except InputError as error:
            refused.append((path, str(error)))
    assert read >= 130
    assert 0 < len(refused) <= 10
    for path, message in refused:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message


def test_a_node_is_named_as_in_the_model_and_names_are_made_unique():
    chain = [node("Relu", "x", "a", name="act"), node("Relu", "a", "b", name="act")]
    chain += [node("Relu", "b", "c"), node("Exp", "c", "y", name="Relu_0")]

    graph = from_onnx(model(chain, [value("x", [2])], [out()]))

    assert [v.name for v in graph.nodes] == ["act", "act_0", "Relu_1", "Relu_0"]
    assert [v.op for v in graph.nodes] == ["Relu", "Relu", "Relu", "Exp"]


def test_costs_of_a_matrix_product_are_those_of_its_shapes():
    graph = single("MatMul", [3, 4], stored("w", 4, 5))

    (product,) = graph.nodes
    assert product.flops == 2 * 3 * 4 * 5
    assert product.bytes_accessed == 4 * (12 + 20 + 15)
    assert [(k.bytes, k.consumers) for k in graph.tensors] == [(60, ())]
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(80, (0,))]


LSTM_W, LSTM_R, LSTM_B = stored("w", 1, 24, 5), stored("r", 1, 24, 6), stored("b", 1, 48)
# fmt: off
FLOPS = [
    ("Gemm", [3, 4], [stored("w", 5, 4), stored("b", 5)], {"transB": 1}, 2 * 60 + 15),
    ("MatMul", [2, 7, 3, 4], [stored("w", 4, 5)], {}, 2 * 2 * 7 * 3 * 4 * 5),
    ("Einsum", [2, 3, 4], [stored("w", 4, 5)], {"equation": "bij,jk->bik"}, 2 * 2 * 3 * 4 * 5),
    ("Einsum", [2, 3, 4], [stored("w", 4, 5)], {"equation": "...ij,jk->...ik"}, 2 * 2 * 3 * 4 * 5),
    # 3x3 on 6x6 without padding: 4x4 positions.
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 4, 3, 3)], {}, 2 * 8 * 4 * 9 * 16),
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 4, 3, 3), stored("b", 8)], {}, 2 * 8 * 4 * 9 * 16 + 128),
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 2, 3, 3)], {"group": 2}, 2 * 8 * 2 * 9 * 16),
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 4, 3, 3)], {"strides": [3, 3]}, 2 * 8 * 4 * 9 * 4),
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 4, 3, 3)], {"dilations": [2, 2]}, 2 * 8 * 4 * 9 * 4),
    # With a border of one, each axis has 6 * 3 - 2 taps on real data.
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 4, 3, 3)], {"pads": [1] * 4}, 2 * 8 * 4 * 16**2),
    ("Conv", [1, 4, 6, 6], [stored("w", 8, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}, 2 * 32 * 16**2),
    ("ConvTranspose", [1, 4, 6, 6], [stored("w", 4, 8, 3, 3)], {"strides": [2, 2]}, 2 * 32 * 324),
    # Cropped by one on both sides, each axis loses two of its 18 taps.
    ("ConvTranspose", [1, 4, 6, 6], [stored("w", 4, 8, 3, 3)], {"pads": [1] * 4}, 2 * 32 * 16**2),
    ("MaxPool", [1, 4, 6, 6], [], {"kernel_shape": [3, 3], "strides": [3, 3]}, 8 * 16),
    ("AveragePool", [1, 4, 6, 6], [], {"kernel_shape": [3, 3], "strides": [3, 3]}, 9 * 16),
    ("GlobalAveragePool", [1, 4, 6, 6], [], {}, 144),
    ("ReduceMax", [4, 10], [], {"axes": [1]}, 36),
    ("ReduceMean", [4, 10], [], {"axes": [1]}, 40),
    ("ReduceSum", [4, 10], [numbers("axes", [1])], {}, 36),
    ("Softmax", [4, 10], [], {}, 200),
    ("BatchNormalization", [1, 4, 6, 6], [stored(n, 4) for n in "sbmv"], {}, 2 * 144),
    ("LayerNormalization", [4, 10], [stored("s", 10), stored("b", 10)], {}, 280),
    ("LRN", [1, 4, 6, 6], [], {"size": 5}, 9 * 144),
    ("Relu", [4, 10], [], {}, 40),
    ("Add", [4, 10], [stored("b", 10)], {}, 40),
    ("Sum", [4, 10], [stored("b", 10), stored("c", 10)], {}, 80),
    ("Transpose", [4, 10], [], {}, 0),
    ("Reshape", [4, 10], [numbers("to", [5, -1])], {}, 0),
    ("Gather", [4, 10], [numbers("which", [1, 1])], {}, 0),
    ("CumSum", [4, 10], [numbers("axis", 1)], {}, 36),
    # Per step and gate: 6 units by 5 inputs and 6 states, one sum, two biases; 9 for the cell.
    ("LSTM", [7, 2, 5], [LSTM_W, LSTM_R, LSTM_B], {"hidden_size": 6},
     7 * 2 * 6 * (4 * (2 * 11 + 3) + 9)),
    ("GRU", [7, 2, 5], [stored("w", 1, 18, 5), stored("r", 1, 18, 6)], {"hidden_size": 6},
     7 * 2 * 6 * (3 * (2 * 11 + 1) + 8)),
    ("RNN", [7, 2, 5], [stored("w", 2, 6, 5), stored("r", 2, 6, 6)],
     {"hidden_size": 6, "direction": "bidirectional"}, 7 * 2 * 2 * 6 * (2 * 11 + 1 + 1)),
]
# fmt: on


@pytest.mark.parametrize(("op", "shape", "operands", "attributes", "flops"), FLOPS)
def test_flops_follow_from_shapes(op, shape, operands, attributes, flops):
    graph = single(op, shape, *operands, **attributes)

    assert [v.op for v in graph.nodes] == [op]
    assert graph.nodes[0].flops == flops


def test_reading_from_a_table_touches_only_what_is_read():
    graph = single("Gather", [1000, 8], numbers("which", [3, 5]))

    assert graph.nodes[0].bytes_accessed == 2 * 8 * 4 + 2 * 8 + 2 * 8 * 4


def test_writing_into_a_table_touches_only_what_is_written():
    graph = single("ScatterND", [1000, 8], numbers("at", [[3], [5]]), stored("new", 2, 8))

    assert graph.nodes[0].bytes_accessed == 64 + 16 + 64 + 64


def test_a_weight_that_several_nodes_use_is_one():
    tied = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]

    graph = from_onnx(model(tied, [value("x", [3, 4])], [out()], [stored("w", 4, 4)]))

    assert [(w.bytes, w.consumers) for w in graph.weights] == [(64, (0, 1))]


def test_what_is_computed_from_weights_alone_vanishes_and_its_user_holds_the_weight():
    folded = [node("Transpose", "w", "t"), node("Mul", "t scale", "u"), node("MatMul", "x u", "y")]

    graph = from_onnx(
        model(
            folded,
            [value("x", [3, 4])],
            [out()],
            [stored("w", 5, 4), numbers("scale", 2, np.float32)],
        )
    )

    assert [v.op for v in graph.nodes] == ["MatMul"]
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(80, (0,))]


def test_a_dequantized_weight_is_held_and_read_in_eight_bits():
    quantized = [node("DequantizeLinear", "w s", "d"), node("MatMul", "x d", "y")]
    weights = [stored("w", 64, 64, dtype=np.int8), numbers("s", 0.5, np.float32)]

    graph = from_onnx(model(quantized, [value("x", [3, 64])], [out()], weights))

    assert [w.bytes for w in graph.weights] == [64 * 64]
    assert graph.nodes[0].bytes_accessed == 4 * 2 * 3 * 64 + 64 * 64 + 4


@pytest.mark.parametrize(
    "maker",
    [
        node("ConstantOfShape", "shape", "w"),
        node("RandomUniform", "", "w", shape=[70000, 70000]),
        node("RandomNormal", "", "w", shape=[70000, 70000]),
    ],
    ids=lambda maker: maker.op_type,
)
def test_large_constants_made_of_nothing_are_weights_and_never_exist(maker):
    graph = from_onnx(
        model(
            [maker, node("MatMul", "x w", "y")],
            [value("x", [1, 70000])],
            [out()],
            [numbers("shape", [70000, 70000])],
        )
    )

    assert [v.op for v in graph.nodes] == ["MatMul"]
    assert [w.bytes for w in graph.weights] == [4 * 70000**2]


def test_constant_nodes_are_weights_too():
    constant = node("Constant", "", "w", value=stored("", 4, 5))

    graph = from_onnx(model([constant, node("MatMul", "x w", "y")], [value("x", [3, 4])], [out()]))

    assert [(w.bytes, w.consumers) for w in graph.weights] == [(80, (0,))]


def test_shapes_axes_and_single_numbers_are_no_weights():
    graph = from_onnx(
        model(
            [node("Mul", "x half", "a"), node("Reshape", "a shape", "y")],
            [value("x", [3, 4])],
            [out()],
            [numbers("half", 0.5, np.float32), numbers("shape", [12])],
        )
    )

    assert graph.weights == ()


def test_weights_in_files_that_are_not_there_are_counted_by_their_shapes():
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4, 5])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="missing.bin")

    graph = from_onnx(model([node("MatMul", "x w", "y")], [value("x", [3, 4])], [out()], [weight]))

    assert graph.weight_bytes == 80


def test_a_tensor_with_several_consumers_is_one_and_a_result_nobody_reads_is_none():
    body = [
        node("Dropout", "x", "d mask"),
        node("Split", "d", "a b c", axis=0, num_outputs=3),
        node("Add", "a b", "s"),
        node("Mul", "a s", "y"),
    ]

    graph = from_onnx(model(body, [value("x", [6, 2])], [out()]))

    assert [v.op for v in graph.nodes] == ["Split", "Add", "Mul"]
    assert [(k.producer, k.bytes, k.consumers) for k in graph.tensors] == [
        (0, 16, (1, 2)),
        (0, 16, (1,)),
        (1, 16, (2,)),
        (2, 16, ()),
    ]


def test_nodes_from_which_no_output_is_reached_are_dropped():
    body = [node("Relu", "x", "y"), node("MatMul", "x w", "unused")]

    graph = from_onnx(model(body, [value("x", [3, 4])], [out()], [stored("w", 4, 4)]))

    assert [v.op for v in graph.nodes] == ["Relu"]
    assert graph.weights == ()


def test_nodes_in_any_order_are_sorted():
    body = [node("Exp", "b", "y"), node("Relu", "x", "a"), node("Tanh", "a", "b")]

    graph = from_onnx(model(body, [value("x", [3])], [out()]))

    assert [v.op for v in graph.nodes] == ["Relu", "Tanh", "Exp"]


def test_shapes_are_computed_as_exporters_compute_them():
    # Half of the last dimension, by arithmetic on the shape of the input.
    body = [
        node("Shape", "x", "shape"),
        node("Gather", "shape last", "size"),
        node("Cast", "size", "size_f", to=FLOAT),
        node("Div", "size_f two", "half_f"),
        node("Floor", "half_f", "floor"),
        node("Cast", "floor", "half", to=INT64),
        node("Unsqueeze", "half zero", "half_1"),
        node("Slice", "x start half_1 axis", "y"),
    ]
    constants = [numbers("last", 1), numbers("two", 2, np.float32), numbers("zero", [0])]
    constants += [numbers("start", [0]), numbers("axis", [1])]

    graph = from_onnx(model(body, [value("x", [4, 10])], [out()], constants))

    assert [v.op for v in graph.nodes] == ["Slice"]
    assert graph.tensors[0].bytes == 4 * 4 * 5


def test_a_mask_of_a_second_input_is_cloned_into_the_layers_that_use_it():
    layers = [node("Sub", "mask one", "m"), node("Mul", "m low", "bias")]
    previous = "x"
    for i in range(3):
        layers += [node("MatMul", f"{previous} w", f"a{i}"), node("Add", f"a{i} bias", f"h{i}")]
        previous = f"h{i}"
    layers[-1].output[0] = "y"
    constants = [stored("w", 8, 8), numbers("one", 1, np.float32), numbers("low", -1e4, np.float32)]

    graph = from_onnx(
        model(layers, [value("x", [8, 8]), value("mask", [1, 8])], [out()], constants)
    )

    assert [v.op for v in graph.nodes] == ["MatMul", "Add"] * 3
    assert graph.nodes[1].flops == 64 + 2 * 8


def test_free_dimensions_take_the_sizes_that_the_user_gives():
    free = model([node("Relu", "x", "y")], [value("x", ["batch", None, 3])], [out()])

    graph = from_onnx(free, dims={"batch": 2, "x:1": 5})

    assert graph.tensors[0].bytes == 4 * 2 * 5 * 3


def test_free_dimensions_without_a_size_are_named():
    free = model([node("Relu", "x", "y")], [value("x", ["batch", None, 3])], [out()])

    with pytest.raises(InputError, match=r"free dimensions x:1 \(of input 'x'\): expected a size"):
        from_onnx(free, dims={"batch": 2})
    with pytest.raises(InputError, match=r"free dimensions batch \(of input 'x'\), x:1 \(of"):
        from_onnx(free)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"batch": 2, "btach": 2}, "no dimension is named 'btach', it has: batch, x:0"),
        ({"batch": 0}, "dimension 'batch' is 0, expected a whole number > 0"),
        ({"batch": 1.5}, "dimension 'batch' is 1.5, expected a whole number > 0"),
        ({"batch": True}, "dimension 'batch' is True, expected a whole number > 0"),
    ],
)
def test_sizes_that_fit_no_dimension_are_refused(dims, message):
    with pytest.raises(InputError, match=message):
        from_onnx(model([node("Relu", "x", "y")], [value("x", ["batch", 3])], [out()]), dims=dims)


def test_element_bytes_counts_floats_alone():
    mixed = [node("Gather", "w ids", "rows"), node("MatMul", "rows u", "y")]
    inputs, weights = [value("ids", [5], INT64)], [stored("w", 100, 8), stored("u", 8, 8)]

    graph = from_onnx(model(mixed, inputs, [out()], weights), element_bytes=1)

    assert graph.element_bytes == 1
    assert [w.bytes for w in graph.weights] == [800, 64]
    assert graph.nodes[0].bytes_accessed == 40 + 5 * 8 + 40  # 64-bit indices stay


def test_a_model_in_half_precision_says_so():
    half = [node("MatMul", "x w", "y")]
    weight = stored("w", 4, 4, dtype=np.float16)

    graph = from_onnx(
        model(
            half,
            [value("x", [3, 4], TensorProto.FLOAT16)],
            [out("y", TensorProto.FLOAT16)],
            [weight],
        ),
        name="h",
    )

    assert (graph.name, graph.element_bytes, graph.weight_bytes) == ("h", 2, 32)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_element_bytes_must_be_positive(wrong):
    with pytest.raises(InputError, match="element_bytes"):
        from_onnx(model([node("Relu", "x", "y")], [value("x", [3])], [out()]), element_bytes=wrong)


def test_an_operator_of_another_domain_is_counted_by_its_shapes_and_named():
    custom = helper.make_node("Sparkle", ["x"], ["a"], domain="acme")
    described = model(
        [custom, node("Relu", "a", "y")], [value("x", [3])], [out()], value_info=[value("a", [6])]
    )
    described.opset_import.append(helper.make_opsetid("acme", 1))

    with pytest.warns(UserWarning, match=r"no cost rule for acme\.Sparkle; counted by shapes"):
        graph = from_onnx(described)

    assert graph.nodes[0].flops == 6
    assert graph.nodes[0].bytes_accessed == 4 * (3 + 6)


def test_known_operators_bring_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single("Relu", [3])
