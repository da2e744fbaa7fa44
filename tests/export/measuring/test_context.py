"""What programs of several nodes take is shared out among the nodes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpart.export.measuring.context import piece_cuts, shared_out


def segments_of(count):
    ends = [[0, *cuts, count] for cuts in piece_cuts(count)]
    return [pair for places in ends for pair in itertools.pairwise(places)]


@given(st.integers(1, 2000))
def test_pieces_are_of_about_equal_size_and_never_tiny(count):
    cuts = piece_cuts(count)

    assert cuts[0] == []
    for places in cuts[1:]:
        sizes = np.diff([0, *places, count])
        assert sizes.min() >= 4
        assert np.ptp(sizes) <= 1
    assert len(cuts) == 7 or count < 4 * 21


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_seconds_in_programs_are_found_from_times_alone_and_of_programs(seed):
    """Operators of three kinds take a part of their time alone, and a program 20 us to start."""
    rng = np.random.default_rng(seed)
    count = 150
    kinds = rng.integers(0, 3, count)
    alone = 10 ** rng.uniform(-6, -3, count)
    inside = alone * np.array([1.0, 0.5, 0.1])[kinds]
    programs = segments_of(count)
    taken = [inside[first:end].sum() + 2e-5 for first, end in programs]

    found, start_s = shared_out(programs, taken, alone.tolist(), [f"op{k}" for k in kinds])

    assert (found >= 0).all()
    assert start_s >= 0
    cuts = np.sort(rng.choice(np.arange(1, count), 5, replace=False))  # other programs
    for part, true in zip(np.split(found, cuts), np.split(inside, cuts), strict=True):
        assert abs(part.sum() - true.sum()) < 0.1 * inside.sum() / 6 + 0.1 * true.sum()
    whole = taken[0]
    assert found.sum() + start_s == pytest.approx(whole, rel=0.05)


def test_equal_nodes_share_equally_and_times_in_proportion():
    found, start_s = shared_out([(0, 3)], [1e-3], [2e-4, 2e-4, 4e-4], ["a", "b", "c"])

    assert found == pytest.approx([2.5e-4, 2.5e-4, 5e-4], rel=0.02)
    assert start_s == pytest.approx(0, abs=1e-6)


def test_nodes_that_took_no_time_alone_share_what_their_program_takes():
    found, start_s = shared_out([(0, 2)], [1e-3], [0.0, 0.0], ["a", "a"])

    assert found[0] == pytest.approx(found[1])
    assert found.sum() + start_s == pytest.approx(1e-3, rel=1e-3)
