"""Cuts that are made from shapes alone, against arrays of positions."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxpart.ingest.axes import (
    AxisCut,
    Window,
    elementwise_cuts,
    letter_cuts,
    reshape_cuts,
    same_axes_cuts,
    window_ways,
)


@st.composite
def reshapes(draw):
    """Two shapes of equally many elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=5))
    shapes = []
    for _ in range(2):
        shape = [1]
        for factor in draw(st.permutations(factors)):
            if draw(st.booleans()):
                shape.append(factor)
            else:
                shape[-1] *= factor
        shapes.append(tuple(shape))
    return shapes


def parts(x, axis, ways):
    """The elements of each slice."""
    return [set(part.ravel()) for part in np.split(x, ways, axis)]


@given(reshapes())
def test_slices_of_a_reshape_have_the_same_elements_on_both_sides(shapes):
    before, after = (np.arange(math.prod(shape)).reshape(shape) for shape in shapes)
    found = {(c.operands[0], c.results[0]): c.ways for c in reshape_cuts(*shapes)}
    for left, n in enumerate(shapes[0]):
        for right, m in enumerate(shapes[1]):
            ways = [
                w
                for w in range(2, min(n, m) + 1)
                if n % w == 0 == m % w and parts(before, left, w) == parts(after, right, w)
            ]
            assert found.get((left, right)) == max(ways, default=None)


@st.composite
def windows(draw):
    """Windows of a convolution on one axis."""
    length, size = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    stride, dilation, holes = (draw(st.integers(1, 3)) for _ in range(3))
    low, high = (draw(st.integers(-2, 4)) for _ in range(2))
    covered = (length - 1) * holes + 1 + low + high - (size - 1) * dilation
    return Window(length, max(0, (covered - 1) // stride + 1), size, stride, low, dilation, holes)


@given(windows())
def test_a_halo_is_what_the_windows_of_a_part_reach_beyond_its_share(window):
    reach = 0.0
    for start in range(window.results):
        for stop in range(start + 1, window.results + 1):
            places = [
                o * window.stride - window.low + k * window.dilation
                for o in range(start, stop)
                for k in range(window.size)
            ]
            read = [p // window.holes for p in places if p % window.holes == 0]
            read = [p for p in read if 0 <= p < window.length]
            if read:
                share = window.length / window.results
                reach = max(reach, start - min(read) / share, (max(read) + 1) / share - stop)
    # With holes and dilation not every position between the first and the last is read.
    exact = window.holes == 1 or window.dilation == 1
    assert window.halo == pytest.approx(reach) if exact else window.halo >= reach - 1e-9
    ways = window_ways(window)
    assert ways in (0, window.results)
    assert not ways or 2 * window.halo < ways - 1


def test_windows_that_reach_over_most_of_an_axis_do_not_cut_it():
    assert window_ways(Window(7, 7, 3, 1, 1)) == 7
    assert window_ways(Window(7, 7, 7, 1, 3)) == 0
    assert window_ways(Window(7, 1, 7)) == 0
    assert window_ways(Window(0, 0)) == 0
    assert Window(5, 5).is_plain
    assert not Window(5, 5, 3, 1, 1).is_plain


def test_letters_cut_what_all_results_have_and_sum_what_none_has():
    ways = {"b": 2, "m": 3, "n": 1, "k": 4}
    cuts = letter_cuts(["bmk", "bkn"], ["bmn"], ways, "k")
    assert cuts == (
        AxisCut(2, (0,), (0, 0)),
        AxisCut(3, (1,), (1, None)),
        AxisCut(4, (None,), (2, 1)),
    )
    assert letter_cuts(["mm"], ["m"], {"m": 3}) == ()  # a diagonal
    assert letter_cuts(["mk"], ["m", "k"], {"m": 3, "k": 2}) == ()  # one result lacks it
    assert letter_cuts(["m"], [["m", None]], {"m": 3}) == (AxisCut(3, (0,), (0,)),)


def test_operands_repeat_along_what_they_lack():
    assert elementwise_cuts([(4, 3), (3,), (1, 3), ()], [(4, 3)]) == (
        AxisCut(4, (0,), (0, None, None, None)),
        AxisCut(3, (1,), (1, 0, 1, None)),
    )
    assert elementwise_cuts([(2, 3)], [(2, 3), (3, 2)]) == ()
    assert elementwise_cuts([(2, 3)], [(3,)]) == ()
    assert elementwise_cuts([], []) == ()


def test_axes_of_one_number_are_cut_together():
    assert same_axes_cuts([(4, 3), (4, 5), ()], [(4, 8)], {0: 4}) == (
        AxisCut(4, (0,), (0, 0, None)),
    )
    assert same_axes_cuts([(4,)], [], {0: 4}) == ()
