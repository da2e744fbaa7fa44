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
}


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
