"""Sets as words, and the loops on them, against Python's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxpart.bounds.ideals import bitsets

NUMBERS = st.sets(st.integers(0, 199), max_size=40)


def row_of(numbers: set[int]) -> np.ndarray:
    row = np.zeros(bitsets.words_for(200), np.uint64)
    for i in numbers:
        bitsets.add(row, i)
    return row


@given(NUMBERS, NUMBERS)
def test_sets_are_pythons(first, second):
    row, other = row_of(first), row_of(second)

    assert bitsets.members(row).tolist() == sorted(first)
    assert bitsets.size_of(row) == len(first)
    for start in range(257):
        expected = min((i for i in first if i >= start), default=-1)
        assert bitsets.next_in(row, start) == expected
    assert bitsets.size_of_both(row, other) == len(first & second)
    assert bitsets.have_common(row, other) == bool(first & second)
    assert set(bitsets.members(bitsets.union(row, other))) == first | second
    assert set(bitsets.members(bitsets.intersection(row, other))) == first & second
    assert [bitsets.has(row, i) for i in range(200)] == [i in first for i in range(200)]
    for i in second:
        bitsets.discard(row, i)
    assert set(bitsets.members(row)) == first - second


@given(st.lists(st.integers(0, 5).map(float), max_size=30))
def test_order_is_that_of_a_stable_sort(keys):
    keys = np.array(keys)

    assert bitsets.order_of(keys).tolist() == np.argsort(keys, kind="stable").tolist()


def test_random_numbers_are_spread_evenly_and_the_same_for_a_state():
    state, same = np.array([7], np.uint64), np.array([7], np.uint64)

    drawn = np.array([bitsets.uniform(state) for _ in range(20_000)])

    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert (np.abs(counts - 1000) < 150).all()  # five standard deviations
    assert np.abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.04
    assert [bitsets.uniform(same) for _ in range(100)] == drawn[:100].tolist()
    assert {bitsets.below(same, 3) for _ in range(200)} == {0, 1, 2}
