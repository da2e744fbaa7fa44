"""A search keeps a few good partitions that differ from each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxpart
from jaxpart.errors import InputError
from jaxpart.runtime.alternatives import Alternatives
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

APART = 3  # of so few nodes


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 40))
def test_what_is_kept_is_distinct_and_the_best(seed, most, offered):
    rng = np.random.default_rng(seed)
    kept = Alternatives(most, 8)
    ranks = {}
    for _ in range(offered):
        assignment = rng.integers(2, size=8)
        rank = (float(rng.integers(5)), float(rng.integers(3)), 0.0)
        rank = ranks.setdefault(assignment.tobytes(), rank)
        kept.add(rank, assignment)

    found = kept.assignments
    assert 1 <= len(found) <= most
    own = [ranks[one.tobytes()] for one in found]
    assert own == sorted(own)
    assert own[0] == min(ranks.values())
    for i, one in enumerate(found):
        assert all(np.count_nonzero(one != other) > APART for other in found[:i])
    assert kept.limit == (own[-1][0] if len(found) == most else np.inf)


def test_a_better_one_takes_the_place_of_those_near_it():
    kept = Alternatives(3, 10)
    far = np.ones(10, np.int64)
    first, second = np.zeros(10, np.int64), np.zeros(10, np.int64)
    second[:2] = 1
    kept.add((3.0, 0, 0), far)
    kept.add((2.0, 0, 0), first)
    kept.add((2.5, 0, 0), second)  # near the first, and worse
    assert [one.tolist() for one in kept.assignments] == [first.tolist(), far.tolist()]

    kept.add((1.0, 0, 0), second)

    assert [one.tolist() for one in kept.assignments] == [second.tolist(), far.tolist()]


def test_none_is_kept_where_none_is_wanted():
    kept = Alternatives(0, 10)

    kept.add((1.0, 0, 0), np.zeros(10, np.int64))

    assert kept.assignments == ()
    assert kept.limit == np.inf


@pytest.mark.parametrize("method", ["auto", "slice"])
def test_a_result_has_distinct_valid_alternatives(method):
    graph = parallel_chains(3, 8)
    options = {"method": method, "max_samples": 400, "time_limit_s": None, "relative_gap": 0.0}

    found = jaxpart.partition(graph, THREE_CHIPS, alternatives=3, **options)
    alone = jaxpart.partition(graph, THREE_CHIPS, **options)

    assert alone.alternatives == ()
    assert 1 <= len(found.alternatives) <= 3
    assert found.bottleneck_s == alone.bottleneck_s
    everyone = [found, *found.alternatives]
    times = [one.bottleneck_s for one in everyone]
    assert times == sorted(times)
    for i, one in enumerate(everyone):
        assert one.valid
        scored = jaxpart.evaluate(graph, THREE_CHIPS, one.assignment)
        assert scored.bottleneck_s == one.bottleneck_s
        for other in everyone[:i]:
            assert np.count_nonzero(one.assignment != other.assignment) > APART


def test_a_negative_number_of_alternatives_is_refused():
    with pytest.raises(InputError, match="alternatives is -1, expected 0 or more"):
        jaxpart.partition(parallel_chains(2, 3), THREE_CHIPS, alternatives=-1)
