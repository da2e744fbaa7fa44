"""ONNX Loops: how often they run, and what `dims` say of that."""

import warnings

import numpy as np
import pytest
from onnx import TensorProto

from jaxpart.errors import InputError
from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import BOOL, INT64, body, model, node, numbers, out, stored, value

TRIP = 2 * 4**3 + 15  # FLOPs: a product of 4 x 4 matrices, and the sum of 16 elements


def step(*conditions, rows=1):
    """A body that multiplies its state by itself and gives sums of it; it makes `still`."""
    names = [f"row{i}" for i in range(rows)]
    nodes = [
        node("MatMul", "h h", "next"),
        *(conditions or [node("Identity", "go", "still")]),
        *(node("ReduceSum", "next", name, keepdims=0) for name in names),
    ]
    return body(
        nodes,
        [value("i", [], INT64), value("go", [], BOOL), value("h", [4, 4])],
        [value("still", [], BOOL), value("next", [4, 4]), *(value(n, []) for n in names)],
    )


def loop(trips, declared, inner=None, condition=None, nodes=(), constants=()):
    """A Loop with one result that has a row for each trip; `trips` None: an input says how many."""
    inputs, held = [value("x", [4, 4])], list(constants)
    if trips is None:
        inputs.append(value("trips", [], INT64))
    else:
        held.append(numbers("trips", trips))
    if condition is not None:
        held.append(numbers("c", condition, bool))
    operands = f"trips {'_' if condition is None else 'c'} x"
    looped = node("Loop", operands, "last rows", name="walk", body=inner or step())
    return model([*nodes, looped], inputs, [declared], held)


def quiet(made, **dims):
    """The Loop and the bytes of its rows; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = from_onnx(made, dims=dims.get("dims"))
    return graph.nodes[-1].flops, [k.bytes for k in graph.tensors]


@pytest.mark.parametrize(
    ("declared", "dims"),
    [
        (value("rows", ["N"]), {"N": 7}),
        (out("rows"), {"rows:0": 7}),
        (value("rows", [7]), {}),
        (out("rows"), {"last:trips": 7}),
        (out("rows"), {"rows:trips": 7}),
        (value("rows", ["N"]), {"N": 7, "last:trips": 7}),
    ],
)
def test_what_is_told_of_the_rows_of_a_loop_is_how_often_it_runs(declared, dims):
    assert quiet(loop(None, declared), dims=dims) == (7 * TRIP, [7 * 4])


def only_a_state(trips, *conditions, constants=()):
    inner = step(*conditions, rows=0)
    inputs = [value("x", [4, 4]), *([value("trips", [], INT64)] if trips is None else [])]
    held = [*constants, *([] if trips is None else [numbers("trips", trips)])]
    looped = node("Loop", "trips _ x", "y", name="walk", body=inner)
    return model([looped], inputs, [value("y", [4, 4])], held)


def test_a_loop_of_unknown_length_counts_once_and_says_what_to_pass():
    unknown = only_a_state(None)

    with pytest.warns(UserWarning, match=r"walk \(Loop\) counts one trip.* as y:trips \(dims\)"):
        once = from_onnx(unknown)
    assert once.nodes[0].flops == 2 * 4**3
    assert quiet(unknown, dims={"y:trips": 9})[0] == 9 * 2 * 4**3


# The loop goes on as long as its state is below a limit.
ENDS = [node("ReduceMax", "next", "top", keepdims=0), node("Less", "top limit", "still")]
LIMIT = [numbers("limit", 1, np.float32)]


def test_a_loop_that_may_end_early_counts_the_most_trips_and_says_so():
    early = only_a_state(5, *ENDS, constants=LIMIT)

    with pytest.warns(UserWarning, match=r"walk \(Loop\) counts 5 trips, the most; .*y:trips"):
        graph = from_onnx(early)
    assert graph.nodes[0].flops == 5 * (2 * 4**3 + 15 + 1)
    assert quiet(early, dims={"y:trips": 2})[0] == 2 * (2 * 4**3 + 15 + 1)
    with pytest.raises(InputError, match=r"'y:trips' is 6 .*walk \(Loop\) makes at most 5 trips"):
        from_onnx(early, dims={"y:trips": 6})


def test_a_while_loop_whose_trip_count_is_the_largest_number_counts_once():
    # As exporters write `while`: only the condition ends it.
    with pytest.warns(UserWarning, match="counts one trip"):
        graph = from_onnx(only_a_state(2**63 - 1, *ENDS, constants=LIMIT))
    assert graph.nodes[0].flops == 2 * 4**3 + 15 + 1


@pytest.mark.parametrize(
    ("trips", "count"), [(5, 5), (1, 1), (0, 0), (-1, 0), (-(2**63), 0), (10**9, 10**9)]
)
@pytest.mark.parametrize("condition", [None, True])
def test_a_constant_trip_count_gives_the_size_of_the_rows(trips, count, condition):
    made = loop(trips, out("rows"), condition=condition)

    assert quiet(made) == (count * TRIP, [4 * count])


# The nodes that make the condition, their FLOPs, and how often the Loop runs.
CONDITIONS = {
    "passed on": ([node("Identity", "go", "still")], 0, 5),
    "cast": ([node("Cast", "go", "still", to=TensorProto.BOOL)], 1, 5),
    "and": ([node("Not", "no", "yes"), node("And", "go yes", "still")], 2, 5),
    "constant": ([node("Identity", "yes", "still")], 0, 5),
    "false": ([node("Identity", "no", "still")], 0, 1),
    "negated": ([node("Not", "go", "still")], 1, 1),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_that_does_not_depend_on_the_run_is_computed(name):
    condition, flops, trips = CONDITIONS[name]
    constants = [numbers("no", False, bool), numbers("yes", True, bool)]
    if name == "and":
        constants = constants[:1]

    made = loop(5, out("rows"), step(*condition), constants=constants)

    assert quiet(made) == (trips * (TRIP + flops), [4 * trips])


def test_a_loop_whose_condition_is_false_at_the_start_never_runs():
    assert quiet(loop(5, out("rows"), condition=False)) == (0, [0])


def test_a_trip_count_that_is_computed_from_shapes_counts_though_all_shapes_are_known():
    nodes = [node("Shape", "x", "s"), node("ReduceSum", "s", "trips", keepdims=0)]
    looped = node("Loop", "trips _ x", "y", body=step(rows=0))
    made = model([*nodes, looped], [value("x", [4, 4])], [value("y", [4, 4])])

    assert quiet(made)[0] == 8 * 2 * 4**3


def test_more_trips_than_any_loop_makes_are_refused():
    with pytest.raises(InputError, match=r"walk \(Loop\) makes 4,611,.* expected at most 1,000,00"):
        from_onnx(loop(2**62, out("rows")))
    with pytest.raises(InputError, match=r"walk .*10,000,000,000 trips \('rows:0'\), expected at"):
        from_onnx(loop(None, out("rows")), dims={"rows:0": 10**10})


@pytest.mark.parametrize(
    ("trips", "declared", "dims", "message"),
    [
        (5, value("rows", ["N"]), {"N": 7}, r"'N' is 7 .*'rows', made by walk .* the size 5"),
        (5, out("rows"), {"rows:0": 7}, r"'rows:0' is 7 .* has the size 5"),
        (5, out("rows"), {"last:trips": 7}, r"'last:trips' is 7 .* walk \(Loop\) makes 5 trips"),
        (5, out("rows"), {"last:trips": 5}, r"expected only numbers that the model leaves open"),
        (5, value("rows", [7]), {}, r"makes 5 trips by its trip count 'trips', but 'rows:0' is 7"),
        (None, out("rows"), {"rows:0": 3, "last:trips": 4}, r"'rows:0' is 3 .* the size 4"),
        (None, value("rows", [3]), {"last:trips": 4}, r"4 trips \('last:trips'\).*'rows:0' is 3"),
        (None, out("rows"), {"x:trips": 4, "rows:0": 4}, "no dimension is named 'x:trips'"),
    ],
)
def test_numbers_that_contradict_the_trips_of_a_loop_are_refused(trips, declared, dims, message):
    with pytest.raises(InputError, match=message) as caught:
        from_onnx(loop(trips, declared), dims=dims)
    assert "\n" not in str(caught.value)


def test_rows_of_one_loop_that_differ_are_refused():
    looped = node("Loop", "trips _ x", "last a b", name="walk", body=step(rows=2))
    inputs = [value("x", [4, 4]), value("trips", [], INT64)]
    made = model([looped], inputs, [value("a", [3]), value("b", [4])])

    with pytest.raises(InputError, match=r"walk \(Loop\) makes 3 trips \('a:0'\), but 'b:0' is 4"):
        from_onnx(made)


def test_trips_that_depend_on_a_number_that_is_none_are_refused():
    nodes = [node("Reciprocal", "z", "r"), node("Cast", "r", "trips", to=INT64)]
    looped = node("Loop", "trips _ x", "y", name="walk", body=step(rows=0))
    constants = [numbers("z", 0, np.float32)]
    made = model([*nodes, looped], [value("x", [4, 4])], [value("y", [4, 4])], constants)

    with pytest.raises(InputError, match=r"the trips of walk .*'r', which is inf.* y:trips"):
        from_onnx(made)
    assert from_onnx(made, dims={"y:trips": 2}).nodes[0].flops == 2 * 2 * 4**3


def test_a_loop_in_a_branch_runs_as_often_as_its_trip_count_says():
    looped = node("Loop", "five _ x", "last rows", body=step())
    side = body([looped, node("ReduceSum", "rows", "s", keepdims=0)], [], [value("s", [])])
    other = body([node("ReduceMax", "x", "m", keepdims=0)], [], [value("m", [])])
    either = node("If", "c", "y", then_branch=side, else_branch=other)
    inputs = [value("x", [4, 4]), value("c", [], BOOL)]

    made = model([either], inputs, [value("y", [])], [numbers("five", 5)])

    assert quiet(made)[0] == 5 * TRIP + 4  # and the sum of five rows


def test_a_state_that_keeps_its_shape_needs_no_declared_one():
    looped = node("Loop", "three _ x", "y", body=step(rows=0))

    made = model([looped], [value("x", [4, 4])], [out()], [numbers("three", 3)])

    assert quiet(made) == (3 * 2 * 4**3, [64])


def test_a_state_whose_shape_grows_is_not_taken_for_one_that_keeps_it():
    grown = body(
        [node("Concat", "h h", "next", axis=0), node("Identity", "go", "still")],
        [value("i", [], INT64), value("go", [], BOOL), value("h", None)],
        [value("still", [], BOOL), value("next", None)],
    )
    looped = node("Loop", "three _ x", "y", body=grown)

    with pytest.raises(InputError, match=r"the shape of 'y', made by a node \(Loop\), cannot"):
        from_onnx(model([looped], [value("x", [4])], [out()], [numbers("three", 3)]))


# Of one operator each: its results, whose axis 0 is named N, have another size than N.
OTHERS = {
    "Scan": (
        node("Scan", "s x", "t y", num_scan_inputs=1, body=body(
            [node("Add", "a b", "c"), node("Identity", "c", "d")],
            [value("a", [4]), value("b", [4])], [value("c", [4]), value("d", [4])])),
        [value("s", [4]), value("x", [9, 4])], ["N", 4]),
    "LSTM": (
        node("LSTM", "x w r", "y", hidden_size=6), [value("x", [9, 2, 5])], ["N", 1, 2, 6]),
    "If": (
        node("If", "c", "y",
             then_branch=body([node("Relu", "x", "a")], [], [value("a", [9, 2])]),
             else_branch=body([node("Abs", "x", "b")], [], [value("b", [9, 2])])),
        [value("x", [9, 2]), value("c", [], BOOL)], ["N", 2]),
    "Relu": (node("Relu", "x", "y"), [value("x", [9])], ["N"]),
    "Expand": (node("Expand", "x nine", "y"), [value("x", [1])], ["N"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_sizes_of_results_that_contradict_the_model_are_refused(name):
    operator, inputs, shape = OTHERS[name]
    constants = [stored("w", 1, 24, 5), stored("r", 1, 24, 6), numbers("nine", [9])]
    made = model([operator], inputs, [value("y", shape)], constants)

    with pytest.raises(InputError, match=r"'N' is 7 \(dims\), but axis 0 of 'y', .* the size 9"):
        from_onnx(made, dims={"N": 7})
    quiet(made, dims={"N": 9})


def test_a_branch_gives_one_of_the_sizes_of_its_sides():
    short = body([node("Relu", "x", "a")], [], [value("a", [3])])
    long = body([node("Concat", "x x", "b", axis=0)], [], [value("b", [6])])
    either = node("If", "c", "y", then_branch=short, else_branch=long)
    made = model([either], [value("x", [3]), value("c", [], BOOL)], [value("y", ["N"])])

    assert quiet(made, dims={"N": 6}) == (3, [6 * 4])
    with pytest.raises(InputError, match=r"'N' is 7 .* has the size 3 or 6"):
        from_onnx(made, dims={"N": 7})


def test_a_name_that_a_model_gives_to_unlike_sizes_is_mentioned_and_the_real_size_counts():
    # Exporters name the dimensions of results by hand; the name is that of an input.
    made = model(
        [node("Concat", "x x", "y", axis=0)], [value("x", ["N"])], [value("y", ["N"])]
    )  # fmt: skip

    with pytest.warns(UserWarning, match="'N' is 7 .*, but axis 0 of 'y', .* 14, which counts"):
        graph = from_onnx(made, dims={"N": 7})
    assert [k.bytes for k in graph.tensors] == [14 * 4]
