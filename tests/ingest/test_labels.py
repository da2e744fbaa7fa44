"""Labels of axes on cases worked by hand."""

from __future__ import annotations

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.labels import Held, Work, divisions
from jaxpart.problem.division import Division


def test_a_cut_passes_from_one_operation_to_the_next():
    works = [
        Work(["x", "w"], ["y"], [AxisCut(8, (0,), (None, 1)), AxisCut(4, (None,), (0, 0))]),
        Work(["y"], ["z"], [AxisCut(8, (0,), (0,))]),
    ]
    assert divisions(works, {"y": 0, "z": 1}, {"w": [Held(3, (0, 1))]}) == [
        (Division(8, "a0", weights=((3, "a0"),)), Division(4, "a1", "sum", weights=((3, "a1"),))),
        (Division(8, "a0", reads=((0, "a0"),)),),
    ]


def test_no_label_names_two_axes_of_a_value():
    scores = Work(["x", "x"], ["s"], [AxisCut(5, (0,), (0, None)), AxisCut(5, (1,), (None, 0))])
    softmax = Work(["s"], ["p"], [AxisCut(5, (0,), (0,))])
    values = Work(["p", "x"], ["o"], [AxisCut(5, (0,), (0, None)), AxisCut(5, (None,), (1, 0))])
    first = Work([], ["x"], [AxisCut(5, (0,), ())])
    found = divisions([first, scores, softmax, values], {v: k for k, v in enumerate("xspo")}, {})
    assert found[0] == (Division(5, "a0"),)
    # Both rows and columns of the scores come from all of x, as the other operand reads it whole.
    assert found[1] == (Division(5, "a0"), Division(5, "a1"))
    assert found[3] == (
        Division(5, "a0", reads=((2, "a0"),)),
        # The axis is that of an operand which the result does not have.
        Division(5, "a2", "sum", reads=((2, "a2"), (0, "a0"))),
    )


def test_what_is_read_along_two_axes_is_read_whole():
    works = [
        Work([], ["x"], [AxisCut(4, (0,), ()), AxisCut(4, (1,), ())]),
        Work(["x", "x"], ["y"], [AxisCut(4, (0,), (0, 1))]),  # x + x.T
    ]
    assert divisions(works, {"x": 0, "y": 1}, {})[1] == (Division(4, "a0"),)


def test_a_weight_without_the_axis_is_held_whole_and_a_constant_has_no_label():
    work = Work(["w", "c"], ["y"], [AxisCut(4, (0,), (0, 0)), AxisCut(2, (None,), (1, 1))])
    held = {"w": [Held(0, (None, None)), Held(1, (1, None))], "c": []}
    assert divisions([work], {"y": 0}, held) == [
        (Division(4, "a0", weights=((1, "a0"),)), Division(2, "a1", "sum")),
    ]


def test_a_weight_of_two_nodes_has_one_label():
    works = [
        Work(["a", "w"], ["y"], [AxisCut(4, (0,), (None, 1))]),
        Work(["b", "t"], ["z"], [AxisCut(4, (None,), (0, 0))]),  # its transpose
    ]
    held = {"w": [Held(0, (0, 1))], "t": [Held(0, (1, 0))]}
    (one,), (other,) = divisions(works, {"y": 0, "z": 1}, held)
    assert one.weights == other.weights == ((0, "a0"),)
