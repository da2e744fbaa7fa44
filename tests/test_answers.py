"""A few searches answer what they always have: `scripts/studies/answers.py` has all of them."""

import json
from pathlib import Path

import pytest
from answers import answer, key_of

RECORDED = {
    key_of(row): row
    for row in json.loads(
        (Path(__file__).parents[1] / "data" / "benchmarks" / "answers.json").read_bytes()
    )["rows"]
}
# What float64 and whole numbers decide: the same on every processor.
CHOSEN = [
    key
    for key in RECORDED
    if key[0] in ("pointnet", "squeezenet", "alexnet") and key[2] in ("greedy", "ideals", "exact")
]


def test_there_are_answers_to_compare_with():
    assert len(CHOSEN) == 9
    assert len({(graph, mcm) for graph, mcm, _, _ in RECORDED}) == 40


@pytest.mark.parametrize("key", CHOSEN)
def test_a_search_answers_what_was_recorded(key):
    row = json.loads(json.dumps(answer(*key)))

    assert row == RECORDED[key]
