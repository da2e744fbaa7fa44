"""Sizes that ONNX models compute from constants, and messages for those that are not known."""

import numpy as np
import pytest
from onnx import TensorProto

from jaxpart.errors import InputError
from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import (
    BOOL,
    INT64,
    body,
    far,
    model,
    node,
    numbers,
    out,
    value,
)


def floats(name, values):
    return numbers(name, values, np.float32)


# fmt: off
# Nodes that make the size `n`, their constants, and the size.
COMPUTED = {
    "Reciprocal": (
        [node("Reciprocal", "a", "r"), node("Mul", "r b", "f"), node("Cast", "f", "n", to=INT64)],
        [floats("a", [0.25]), floats("b", [1.5])],
        6,
    ),
    "Abs": ([node("Abs", "a", "n")], [numbers("a", [-6])], 6),
    "Sign": ([node("Sign", "a", "s"), node("Add", "s a", "n")], [numbers("a", [5])], 6),
    "Clip": (
        [node("Clip", "a lo hi", "n")],
        [numbers("a", [99]), numbers("lo", 1), numbers("hi", 6)],
        6,
    ),
    "Exp": (
        [node("Exp", "a", "e"), node("Floor", "e", "f"), node("Cast", "f", "n", to=INT64)],
        [floats("a", [1.8])],
        6,
    ),
    "Log": (
        [node("Log", "a", "e"), node("Ceil", "e", "f"), node("Cast", "f", "n", to=INT64)],
        [floats("a", [300])],
        6,
    ),
    "ReduceMean": ([node("ReduceMean", "a", "n", keepdims=1)], [numbers("a", [2, 10])], 6),
    "ReduceL1": ([node("ReduceL1", "a", "n", keepdims=1)], [numbers("a", [2, -4])], 6),
    "ArgMax": ([node("ArgMax", "a", "n", keepdims=1)], [numbers("a", [0, 0, 0, 0, 0, 0, 1])], 6),
    "CumSum": (
        [node("CumSum", "a zero", "c"), node("Slice", "c two three", "n")],
        [numbers("a", [1, 2, 3]), numbers("zero", 0), numbers("two", [2]), numbers("three", [3])],
        6,
    ),
    "GatherND": ([node("GatherND", "a i", "n")], [numbers("a", [5, 6, 7]), numbers("i", [[1]])], 6),
    "GatherElements": (
        [node("GatherElements", "a i", "n")],
        [numbers("a", [5, 6, 7]), numbers("i", [1])],
        6,
    ),
    "Tile": (
        [node("Tile", "a k", "t"), node("ReduceSum", "t", "n", keepdims=1)],
        [numbers("a", [2]), numbers("k", [3])],
        6,
    ),
    "TopK": ([node("TopK", "a k", "n i")], [numbers("a", [5, 6, 1]), numbers("k", [1])], 6),
    "NonZero": (
        [
            node("NonZero", "a", "z"),
            node("ReduceSum", "z", "s", keepdims=0),
            node("Reshape", "s one", "n"),
        ],
        [numbers("a", [0, 1, 1, 1]), numbers("one", [1])],
        6,
    ),
    "OneHot": (
        [
            node("OneHot", "a depth both", "o"),
            node("ReduceSum", "o", "s", keepdims=0),
            node("Reshape", "s one", "n"),
        ],
        [numbers("a", [0, 1]), numbers("depth", 4), numbers("both", [0, 3]), numbers("one", [1])],
        6,
    ),
    "Trilu": (
        [
            node("Trilu", "a", "t", upper=0),
            node("ReduceSum", "t", "s", keepdims=0),
            node("Reshape", "s one", "n"),
        ],
        [numbers("a", [[1, 9], [2, 3]]), numbers("one", [1])],
        6,
    ),
    "Flatten": (
        [node("Flatten", "a", "t", axis=0), node("Squeeze", "t zero", "n")],
        [numbers("a", [6]), numbers("zero", [0])],
        6,
    ),
    "Sum": ([node("Sum", "a b b", "n")], [numbers("a", [2]), numbers("b", [2])], 6),
    "Range": (
        [node("Range", "zero seven one", "r"), node("ReduceMax", "r", "n", keepdims=1)],
        [numbers("zero", 0), numbers("seven", 7), numbers("one", 1)],
        6,
    ),
    "sequence that is split": (
        [node("SplitToSequence", "a one", "q"), node("SequenceAt", "q last", "n")],
        [numbers("a", [4, 5, 6]), numbers("one", 1), numbers("last", -1)],
        6,
    ),
    "sequence that is joined": (
        [
            node("SequenceConstruct", "a b", "q"),
            node("SequenceInsert", "q a", "p"),
            node("ConcatFromSequence", "p", "c", axis=0),
            node("ReduceProd", "c", "n", keepdims=1),
        ],
        [numbers("a", [2]), numbers("b", [3])],
        12,
    ),
    "length of a sequence": (
        [
            node("SplitToSequence", "a", "q"),
            node("SequenceLength", "q", "s"),
            node("Reshape", "s one", "n"),
        ],
        [numbers("a", [7, 7, 7, 7, 7]), numbers("one", [1])],
        5,
    ),
    "SequenceMap": (
        [
            node("SplitToSequence", "a", "q"),
            node("SequenceMap", "q b", "p", body=body(
                [node("Mul", "e f", "t")],
                [value("e", [1], INT64), value("f", [1], INT64)], [value("t", [1], INT64)])),
            node("SequenceAt", "p one", "n"),
        ],
        [numbers("a", [2, 3]), numbers("b", [4]), numbers("one", 1)],
        12,
    ),
    "optional": (
        [node("Optional", "a", "o"), node("OptionalGetElement", "o", "n")],
        [numbers("a", [6])],
        6,
    ),
    "Loop": (
        [node("Loop", "three _ a", "n", body=body(
            [node("Mul", "h two", "next"), node("Identity", "go", "still")],
            [value("i", [], INT64), value("go", [], BOOL), value("h", [1], INT64)],
            [value("still", [], BOOL), value("next", [1], INT64)]))],
        [numbers("three", 3), numbers("a", [1]), numbers("two", [2])],
        8,
    ),
    "Loop that ends by its condition": (
        [
            node("Loop", "_ yes a", "last rows", body=body(
                [node("Add", "h i", "next"), node("Less", "next twenty", "still")],
                [value("i", [], INT64), value("go", [], BOOL), value("h", [1], INT64)],
                [value("still", [1], BOOL), value("next", [1], INT64), value("next", [1], INT64)])),
            node("Shape", "rows", "s"),  # 0, 1, 3, 6, 10, 15, 21: seven rows of one
            node("ReduceProd", "s", "n", keepdims=1),
        ],
        [numbers("yes", True, bool), numbers("a", [0]), numbers("twenty", 20)],
        7,
    ),
    "Scan": (
        [node("Scan", "a b", "n rows", num_scan_inputs=1, body=body(
            [node("Add", "s e", "t"), node("Identity", "t", "row")],
            [value("s", [1], INT64), value("e", [1], INT64)],
            [value("t", [1], INT64), value("row", [1], INT64)]))],
        [numbers("a", [1]), numbers("b", [[2], [3]])],
        6,
    ),
    "rows of a Scan backwards": (
        [
            node("Scan", "a b", "last rows", num_scan_inputs=1, scan_input_axes=[1],
                 scan_input_directions=[1], scan_output_directions=[1], body=body(
                [node("Mul", "s e", "t"), node("Identity", "t", "row")],
                [value("s", [1], INT64), value("e", [1], INT64)],
                [value("t", [1], INT64), value("row", [1], INT64)])),
            # The states are 1 * 5 and 5 * 2; the first of the rows is the last state.
            node("Gather", "rows zero", "n", axis=0),
        ],
        [numbers("a", [1]), numbers("b", [[2, 5]]), numbers("zero", 0)],
        10,
    ),
    "Einsum": (
        [node("Einsum", "a", "s", equation="i->"), node("Reshape", "s one", "n")],
        [numbers("a", [2, 4]), numbers("one", [1])],
        6,
    ),
    "LpNormalization": (
        [
            node("LpNormalization", "a", "l"),
            node("Mul", "l ten", "f"),
            node("Cast", "f", "c", to=INT64),
            node("ReduceSum", "c", "n", keepdims=1),
        ],
        [floats("a", [3, 4]), floats("ten", [10.5])],  # 0.6 and 0.8 of 10.5
        6 + 8,
    ),
    "HardSwish": (
        [node("HardSwish", "a", "f"), node("Cast", "f", "n", to=INT64)],
        [floats("a", [6])],
        6,
    ),
    "Celu": ([node("Celu", "a", "f"), node("Cast", "f", "n", to=INT64)], [floats("a", [6])], 6),
    "Softmax": (
        [
            node("Softmax", "a", "p"),
            node("Mul", "p ten", "f"),
            node("Cast", "f", "c", to=INT64),
            node("ReduceMax", "c", "n", keepdims=1),
        ],
        [floats("a", [1, 1]), floats("ten", [10.5])],
        5,
    ),
    "Resize by 1": (
        [node("Resize", "a _ one", "f"), node("Cast", "f", "n", to=INT64)],
        [floats("a", [6]), floats("one", [1])],
        6,
    ),
    "MaxPool": (
        [
            node("Reshape", "a three", "r"),
            node("MaxPool", "r", "p", kernel_shape=[3]),
            node("Cast", "p", "c", to=INT64),
            node("Reshape", "c one", "n"),
        ],
        [floats("a", [2, 6, 3]), numbers("three", [1, 1, 3]), numbers("one", [1])],
        6,
    ),
}
# fmt: on


@pytest.mark.parametrize("name", COMPUTED)
def test_sizes_are_computed_with_any_operator_of_numbers(name):
    nodes, stored, size = COMPUTED[name]
    hidden = [node("Expand", "x n", "y")]

    graph = from_onnx(model([*nodes, *hidden], [value("x", [1])], [out()], stored))

    assert [k.bytes for k in graph.tensors if not k.consumers] == [4 * size]


def test_an_operator_without_shape_inference_is_named():
    unknown = [node("Sparkle", "x", "a", domain="local"), node("Relu", "a", "y")]

    with pytest.raises(InputError, match=r"operator local\.Sparkle; expected its type and shape"):
        from_onnx(model(unknown, [value("x", [3])], [out()]))


def scripted(declared):
    """A loop of unknown length that collects one row for each step, as torch.jit.script writes."""
    step = body(
        [
            node("Relu", "h", "next"),
            node("Identity", "go", "still"),
            node("ReduceSum", "next", "row", keepdims=0),
        ],
        [value("i", [], INT64), value("go", [], BOOL), value("h", [3])],
        [value("still", [], BOOL), value("next", [3]), value("row", [])],
    )
    loop = node("Loop", "steps _ x", "last rows", body=step)
    inputs = [value("x", [3]), value("steps", [], INT64)]
    return model([loop], inputs, [declared])


def test_the_message_for_a_loop_of_unknown_length_says_what_to_pass():
    with pytest.raises(InputError, match=r"expected a size for rows:0 \(dims\)"):
        from_onnx(scripted(out("rows")))
    with pytest.raises(InputError, match=r"expected a size for length \(dims\)"):
        from_onnx(scripted(value("rows", ["length"])))

    by_place = from_onnx(scripted(out("rows")), dims={"rows:0": 7})
    by_name = from_onnx(scripted(value("rows", ["length"])), dims={"length": 7})
    assert [k.bytes for k in by_place.tensors] == [k.bytes for k in by_name.tensors] == [7 * 4]


def test_sizes_of_axes_that_are_known_are_refused():
    known = model([node("Relu", "x", "a"), node("Relu", "a", "y")], [value("x", [3])], [out()])

    with pytest.raises(InputError, match=r"'a:0'.* expected only sizes that the model leaves open"):
        from_onnx(known, dims={"a:0": 4})


def test_a_small_tensor_in_another_file_is_named_where_a_shape_needs_it():
    away = far("shape", 2, dtype=TensorProto.INT64)

    with pytest.raises(InputError, match="it depends on 'shape', which is in another file"):
        from_onnx(model([node("Reshape", "x shape", "y")], [value("x", [6])], [out()], [away]))


def test_values_that_only_the_run_knows_are_not_blamed_on_an_operator():
    places = [node("NonZero", "x", "places"), node("Transpose", "places", "y")]

    with pytest.raises(InputError, match=r"'places'.*as it runs; expected a size for places:1"):
        from_onnx(model(places, [value("x", [3])], [out(dtype=INT64)]))


def sized(nodes, constants, **fields):
    hidden = node("Expand", "x n", "y", name="widen")
    return model([*nodes, hidden], [value("x", [1])], [out()], constants, **fields)


CAST = node("Cast", "f", "n", to=INT64, name="cast")


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([node("Div", "a z", "n", name="d")], [numbers("a", [6])], r"d \(Div\) divides integers"),
        ([node("Mod", "a z", "n", name="d")], [numbers("a", [6])], r"d \(Mod\) .* \('a' by 'z'\)"),
        (
            [node("Mod", "a z", "n", fmod=1, name="d")],
            [numbers("a", [6])],
            r"d \(Mod\) divides integers by zero",
        ),
        (
            [node("ReduceMean", "a", "n", name="mean")],
            [numbers("a", np.zeros(0, int))],
            r"mean \(ReduceMean\) divides integers by zero",
        ),
        (
            [node("If", "c", "n", then_branch=body(
                [node("Div", "z z", "q", name="d")], [], [value("q", [1], INT64)]),
                else_branch=body([node("Abs", "z", "p")], [], [value("p", [1], INT64)]))],
            [numbers("c", True, bool)],
            r"d \(Div\) divides integers by zero",
        ),
        ([node("Div", "a o", "f"), CAST], [floats("a", [6])], r"cast \(Cast\): .* which is inf"),
        ([node("Div", "o o", "f"), CAST], [], r"cast \(Cast\): .* 'f', which is nan"),
        ([node("Log", "a", "f"), CAST], [floats("a", [-1])], r"cast \(Cast\): .* which is nan"),
        (
            [node("Reciprocal", "o", "f"), node("CastLike", "f z", "n", name="cast")],
            [],
            r"cast \(CastLike\): .* which is inf; expected a finite number",
        ),
    ],
)  # fmt: skip
def test_a_size_that_is_divided_by_zero_is_refused(nodes, constants, message):
    zeros = [numbers("z", [0]), floats("o", [0])]

    with pytest.raises(InputError, match=rf"^model: .*{message}") as caught:
        from_onnx(sized(nodes, [*constants, *zeros]))
    assert "\n" not in str(caught.value)
    assert "as it runs" not in str(caught.value)


def test_an_infinity_that_no_size_needs_is_no_fault():
    # A guard: what is divided by zero is not taken.
    nodes = [node("Div", "a o", "f"), node("Min", "f a", "m"), node("Cast", "m", "n", to=INT64)]
    zeros = [floats("a", [6]), floats("o", [0])]

    assert [k.bytes for k in from_onnx(sized(nodes, zeros)).tensors] == [6 * 4]


def test_an_infinite_scale_of_a_resize_is_refused():
    nodes = [node("Reciprocal", "o", "s"), node("Resize", "x _ s", "y")]

    with pytest.raises(InputError, match=r"\(Resize\), cannot be inferred: 's' is \[inf\]"):
        from_onnx(model(nodes, [value("x", [2])], [out()], [floats("o", [0])]))


def test_a_negative_size_is_named():
    with pytest.raises(InputError, match=r"widen \(Expand\), .*: 'n' is \[-3\], .* does not fit"):
        from_onnx(sized([node("Sub", "a b", "n")], [numbers("a", [3]), numbers("b", [6])]))


# Values that do not depend on the run, and are not computed: nodes, constants, the message.
RANDOM = node("RandomUniform", "", "f", shape=[1], name="dice")
ENDLESS = body(
    [node("Identity", "h", "next"), node("Identity", "go", "still")],
    [value("i", [], INT64), value("go", [], BOOL), value("h", [1], INT64)],
    [value("still", [], BOOL), value("next", [1], INT64)],
)
# fmt: off
NOT_COMPUTED = {
    "another domain": (
        [node("Sparkle", "a", "n", domain="local", name="s")], [numbers("a", [3])],
        r"'n', made by s \(Sparkle\): operator local\.Sparkle is not computed"),
    "ONNX Runtime": (
        [node("Gelu", "a", "f", domain="com.microsoft", name="g"), CAST], [floats("a", [3])],
        r"'f', made by g \(Gelu\): operator com\.microsoft\.Gelu is not computed"),
    "random": ([RANDOM, CAST], [], r"'f', made by dice \(RandomUniform\): operator Random"),
    "no reference": (
        [node("GlobalLpPool", "a", "p"), node("Reshape", "p one", "f"), CAST],
        [floats("a", [[[6]]]), numbers("one", [1])],
        r"operator GlobalLpPool has no reference implementation"),
    "many floats": (
        [node("ArgMax", "a", "n", keepdims=1)], [floats("a", np.arange(100))],
        "'a', 100 floats; expected sizes that depend on fewer"),
    "many integers": (
        [node("ReduceMax", "a", "n", keepdims=1)], [numbers("a", np.arange(2000))],
        "the contents of 'a', 2,000 elements; expected sizes that depend on at most 1,024"),
    "another file": (
        [node("Abs", "a", "n")], [far("a", 1, dtype=INT64)],
        "'a', which is in another file; expected small tensors in the model itself"),
    "large result": (
        [node("Tile", "a k", "t", name="t"), node("ReduceMax", "t", "n", keepdims=1)],
        [numbers("a", [3]), numbers("k", [2000])],
        r"'t', made by t \(Tile\): it has 2,000 elements; expected at most 1,024"),
    "many operations": (
        [node("Einsum", "a a a", "s", equation="i,j,k->", name="e"), node("Reshape", "s one", "n")],
        [numbers("a", np.ones(1000)), numbers("one", [1])],
        r"made by e \(Einsum\): it may take over 1,048,576 elements"),
    "wide padding": (
        [node("Reshape", "a three", "r"),
         node("MaxPool", "r", "p", kernel_shape=[2], dilations=[10**9], pads=[10**9, 0],
              strides=[10**9], name="wide"),
         node("Reshape", "p one", "f"), CAST],
        [floats("a", [6, 6, 6]), numbers("three", [1, 1, 3]), numbers("one", [1])],
        r"made by wide \(MaxPool\): it may take over 1,048,576 elements"),
    "endless": (
        [node("Loop", "_ yes a", "n", name="walk", body=ENDLESS)],
        [numbers("yes", True, bool), numbers("a", [3])],
        r"'n', made by walk \(Loop\): bodies of nodes take more than 20,000 steps"),
}
# fmt: on


@pytest.mark.parametrize("name", NOT_COMPUTED)
def test_what_no_size_is_computed_from_is_named_and_the_run_is_not_blamed(name):
    nodes, constants, message = NOT_COMPUTED[name]
    described = [value("n", [1], INT64)]  # the shape of "n" is known, its content is not

    with pytest.raises(InputError, match=rf"widen \(Expand\), cannot .*{message}") as caught:
        from_onnx(sized(nodes, constants, value_info=described))
    assert "as it runs" not in str(caught.value)


def test_a_small_weight_counts_as_it_is_stored_where_sizes_are_computed():
    # The scale of a weight is small and known, as sizes are: it is no size.
    nodes = [
        node("DequantizeLinear", "q scale", "w"),
        node("Mul", "x w", "h"),
        node("Abs", "six", "n"),
        node("Expand", "h n", "y"),
    ]
    constants = [numbers("q", np.arange(8), np.int8), floats("scale", 0.5), numbers("six", [6, 8])]

    graph = from_onnx(model(nodes, [value("x", [8])], [out()], constants))

    assert [w.bytes for w in graph.weights] == [8]
    assert [k.bytes for k in graph.tensors] == [8 * 4, 48 * 4]
