"""ONNX models: what becomes a node, a weight, a tensor, and what it costs."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxpart.errors import CycleError, EmptyGraphError, FileFormatError, InputError
from jaxpart.ingest.onnx.importer import from_onnx, from_onnx_bytes

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
LIGHT = sorted(path.stem.removeprefix("light_") for path in DATA.glob("light/light_*.onnx"))


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def stored(name, *shape, dtype: type = np.float32):
    return numpy_helper.from_array(np.zeros(shape, dtype), name)


def numbers(name, values, dtype: type = np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(nodes, inputs, outputs, stored=(), opset=17, **fields):
    graph = helper.make_graph(nodes, "model", inputs, outputs, list(stored), **fields)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def out(name="y", dtype: int = FLOAT):
    """An output whose shape inference finds."""
    return helper.make_value_info(name, helper.make_tensor_type_proto(dtype, None))


def single(op, shape, *operands, outputs="y", dtype=FLOAT, opset=17, **attributes):
    """The graph of one node on an input `x` and stored tensors."""
    names = " ".join(["x", *(tensor.name for tensor in operands)])
    body = [node(op, names, outputs, **attributes)]
    return from_onnx(model(body, [value("x", shape)], [out(dtype=dtype)], operands, opset=opset))


def edges(graph):
    return {
        (graph.nodes[k.producer].name, graph.nodes[q].name)
        for k in graph.tensors
        for q in k.consumers
    }


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
        node("Split", "d", "a b c", axis=0),
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


def body_of(*nodes, inputs=(), outputs=(), weights=()):
    return helper.make_graph(list(nodes), "body", list(inputs), list(outputs), list(weights))


def test_a_branch_is_one_node_that_costs_as_much_as_its_costlier_side():
    big = body_of(node("MatMul", "x w", "t"), outputs=[value("t", [4, 4])])
    small = body_of(node("Relu", "x", "e"), outputs=[value("e", [4, 4])])
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
    squeeze = body_of(node("Squeeze", "x axes", "t"), outputs=[out("t")], weights=[])
    keep = body_of(node("Mul", "x w", "e"), outputs=[out("e")])
    body = [
        node("Shape", "x", "shape"),
        node("Gather", "shape last", "size"),
        node("Equal", "size one", "is_one"),
        node("If", "is_one", "b", then_branch=squeeze, else_branch=keep),
        node("Relu", "b", "y"),
    ]
    constants = [numbers("last", 1), numbers("one", 1), numbers("axes", [1]), stored("w", 5)]

    one = from_onnx(model(body, [value("x", [4, 1])], [out()], constants))
    five = from_onnx(model(body, [value("x", [4, 5])], [out()], constants))

    assert [v.op for v in one.nodes] == ["Squeeze", "Relu"]
    assert [v.op for v in five.nodes] == ["Mul", "Relu"]
    assert (one.weight_bytes, five.weight_bytes) == (0, 20)


def loop(trips):
    body = body_of(
        node("MatMul", "h u", "next"),
        node("Identity", "go", "still"),
        inputs=[value("i", [], INT64), value("go", [], BOOL), value("h", [4, 4])],
        outputs=[value("still", [], BOOL), value("next", [4, 4])],
        weights=[stored("u", 4, 4)],
    )
    inputs = [value("x", [4, 4]), *([value("trips", [], INT64)] if trips is None else [])]
    constants = [] if trips is None else [numbers("trips", trips)]
    return model(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        inputs,
        [value("y", [4, 4])],
        constants,
    )


@pytest.mark.parametrize(("trips", "times"), [(7, 7), (None, 1)])
def test_a_loop_is_one_node_with_its_trips_where_they_are_known_and_one_elsewhere(trips, times):
    graph = from_onnx(loop(trips))

    assert [v.op for v in graph.nodes] == ["Loop"]
    assert graph.nodes[0].flops == times * 2 * 4**3
    assert [(w.bytes, w.consumers) for w in graph.weights] == [(64, (0,))]


def test_a_scan_is_one_node_that_costs_its_steps():
    body = body_of(
        node("Add", "s e", "t"),
        inputs=[value("s", [4]), value("e", [4])],
        outputs=[value("t", [4])],
    )
    scan = helper.make_node("Scan", ["s0", "x"], ["y"], body=body, num_scan_inputs=1)

    graph = from_onnx(model([scan], [value("s0", [4]), value("x", [9, 4])], [value("y", [4])]))

    assert graph.nodes[0].flops == 9 * 4


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


def test_a_local_function_is_opened():
    twice = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [node("Add", "a a", "b")],
        [helper.make_opsetid("", 17)],
    )
    caller = helper.make_node("Twice", ["x"], ["y"], domain="local")
    whole = model([caller], [value("x", [3])], [value("y", [3])])
    whole.functions.append(twice)
    whole.opset_import.append(helper.make_opsetid("local", 1))

    graph = from_onnx(whole)

    assert [v.op for v in graph.nodes] == ["Add"]


def test_the_model_given_stays_as_it_was():
    given = loop(3)
    before = given.SerializeToString(deterministic=True)

    from_onnx(given)

    assert given.SerializeToString(deterministic=True) == before


def test_a_circle_of_nodes_is_refused_by_its_names():
    body = [
        node("Add", "x b", "a", name="first"),
        node("Relu", "a", "b", name="second"),
        node("Relu", "b", "y"),
    ]

    with pytest.raises(CycleError, match=r"first \(Add\) -> second \(Relu\) -> first"):
        from_onnx(model(body, [value("x", [3])], [out()]))


# fmt: off
BROKEN = [
    (model([node("Add", "x z", "y")], [value("x", [3])], [out()]),
     FileFormatError, r"node 0, a node \(Add\), reads 'z', expected"),
    (model([node("Relu", "x", "a")], [value("x", [3])], [out()]),
     FileFormatError, "nothing makes the output 'y'"),
    (model([node("Relu", "x", "y"), node("Exp", "x", "y")], [value("x", [3])], [out()]),
     FileFormatError, "value 'y' is made twice"),
    (model([node("MatMul", "x w", "y")], [value("x", [3])], [out()], [stored("w", 4, 5)]),
     FileFormatError, "broken ONNX model .*Incompatible dimensions"),
    (model([node("Relu", "x", "y")], [value("x", None)], [out()]),
     InputError, "input 'x' has no shape"),
    (model([node("NonZero", "x", "y")], [value("x", [3])], [out(dtype=INT64)]),
     InputError, r"the shape of 'y', made by a node \(NonZero\), cannot be inferred"),
    (model([node("SequenceConstruct", "x", "s"), node("SequenceAt", "s i", "y")],
           [value("x", [3])], [out()], [numbers("i", 0)]),
     FileFormatError, "'s', made by a node \\(SequenceConstruct\\), is no tensor"),
    (model([], [value("x", [3])], [value("x", [3])]),
     EmptyGraphError, "no node depends on an input"),
    (model([node("Identity", "x", "y")], [value("x", [3])], [out()]),
     EmptyGraphError, "no node depends on an input"),
]
# fmt: on


@pytest.mark.parametrize(("broken", "error", "message"), BROKEN)
def test_a_model_that_cannot_be_is_refused_by_file_and_place(tmp_path, broken, error, message):
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken.SerializeToString())

    with pytest.raises(error, match=message) as caught:
        from_onnx(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_model_are_refused():
    for content in (b"", b"\x00\x01rubbish", b"\x08\x03"):
        with pytest.raises(FileFormatError, match=r"^some\.onnx: .*expected an ONNX model"):
            from_onnx_bytes(content, "some.onnx")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        from_onnx(tmp_path / "none.onnx")


def test_damaged_bytes_never_bring_another_error_than_one_clear_line():
    source = (DATA / "light" / "light_squeezenet.onnx").read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for trial in range(60):
        damaged = bytearray(source)
        if trial % 3:
            for place in rng.integers(0, len(source), 3):
                damaged[place] = rng.integers(0, 256)
        else:
            del damaged[rng.integers(0, len(source)) :]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a damaged operator is one without a rule
                from_onnx_bytes(bytes(damaged), "damaged.onnx")
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(m.startswith("damaged.onnx: ") and "\n" not in m for m in refused)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Gemm", ["x", ""], ["y"]), "has no operand 1"),
        (helper.make_node("Loop", ["", "", "x"], ["y"]), "has no attribute 'body'"),
        (helper.make_node("Split", ["x"], ["y", "z"], num_outputs=1), "expected num_outputs, 1"),
        (helper.make_node("Einsum", ["x"], ["y"], equation=b"\xff"), "expected ASCII"),
    ],
)
def test_a_node_without_what_its_operator_needs_is_refused_before_inference(node, message):
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2, 2)) for name in ("x", "y")
    ]
    graph = helper.make_graph([node], "bad", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(InputError, match=message):
        from_onnx(model)
