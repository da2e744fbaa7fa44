"""Throughput by number of chips, and by resource."""

import dataclasses
import json
import math

import numpy as np
import pytest

import jaxpart
from jaxpart.cli import main
from jaxpart.commands.sweep import counts
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.sweep import ChipsRow, Sweep, _closed, _merged, first_chips, sweep
from tests.support import oracle
from tests.support.graphs import ladder, line
from tests.support.modules import MODULES, unit_module

HEAVY = Graph(
    tuple(Node(f"v{i}", "op", 1.0, 0.0) for i in range(4)),
    tuple(Tensor(i, 0.0, (i + 1,)) for i in range(3)),
    tuple(Weight(4.0, (i,)) for i in range(4)),
)


def exact_sweep(graph, mcm, chips=None):
    return sweep(graph, mcm, chips, method="ideals", max_samples=10_000)


@pytest.mark.parametrize("topology", ["chain", "host"])
def test_each_number_of_chips_has_the_optimum_of_brute_force(topology):
    graph, mcm = ladder(7), unit_module(3, topology=topology, bandwidth=1e-3)
    for row in exact_sweep(graph, mcm).rows:
        best_s, _ = oracle.best(graph, first_chips(mcm, row.chips)) or (None, [])
        assert row.bottleneck_s == pytest.approx(best_s)
        assert row.gap == pytest.approx(0, abs=1e-4)
        assert row.assignment is not None
        costs = oracle.evaluate(graph, mcm, row.assignment.tolist())
        assert costs.bottleneck_s == pytest.approx(row.bottleneck_s)
        assert row.chips_used == len(set(row.assignment.tolist())) <= row.chips


def test_too_few_chips_are_proven_to_be_too_few():
    found = exact_sweep(HEAVY, unit_module(4, capacity=9.0))
    assert [row.is_infeasible for row in found.rows] == [True, False, False, False]
    assert found.rows[0].bottleneck_s is None
    assert "-" in found.summary().splitlines()[5]


def test_the_fewest_chips_for_a_rate_are_named_with_what_is_known_of_fewer():
    graph = line([1.0] * 6, [0] * 5)
    found = exact_sweep(graph, unit_module(6), [1, 2, 3, 6])
    assert [row.bottleneck_s for row in found.rows] == pytest.approx([6, 3, 2, 1])
    fewest = [found.fewest(rate) for rate in (0.5, 0.51, 1.01)]
    assert [row and row.chips for row in fewest] == [3, 6, None]
    assert "3 chips, proven to be the fewest of these" in found.summary(0.5)
    assert "proven to be out of reach" in found.summary(1.01)


def test_a_resource_pays_as_far_as_it_binds():
    graph = line([4.0, 4.0], [8])
    found = exact_sweep(graph, unit_module(2, bandwidth=1.0))
    gains = {row.resource: row for row in found.doubled}
    assert found.rows[-1].bottleneck_s == 8  # on one chip as well as on two
    assert gains["FLOP/s"].searched_s == pytest.approx(4)
    assert gains["link bandwidth"].searched_s == pytest.approx(4)
    assert gains["SRAM size"].same_s == gains["SRAM size"].searched_s == 8


def test_neighbours_are_merged_where_it_costs_least():
    graph = line([1.0, 5.0, 1.0, 1.0], [0] * 3)
    for chips, expected in ((3, [0, 1, 2, 2]), (1, [0, 0, 0, 0])):
        problem = jaxpart.Problem.build(graph, unit_module(chips))
        np.testing.assert_array_equal(_merged(problem, np.arange(4)), expected)
    assert _merged(problem, None) is None


def test_merges_prefer_chips_whose_memory_fits():
    problem = jaxpart.Problem.build(
        Graph(HEAVY.nodes, HEAVY.tensors, (Weight(9.0, (2,)), Weight(1.0, (3,)))),
        unit_module(3, capacity=9.0),
    )
    np.testing.assert_array_equal(_merged(problem, np.arange(4)), [0, 0, 1, 2])


def test_what_holds_for_fewer_chips_holds_for_more_and_bounds_the_other_way():
    one = np.zeros(2, np.int64)
    rows = [
        ChipsRow(1, 5.0, 1.0, 1, "links", one),
        ChipsRow(2, 6.0, 2.0, 2, "compute", one),
        ChipsRow(3, None, 0.0, why="nothing found in time"),
        ChipsRow(4, 4.0, 0.5, 4, "compute", one),
    ]
    closed = _closed(rows)
    assert [row.chips for row in closed] == [1, 2, 3, 4]
    assert [row.bottleneck_s for row in closed] == [5.0, 5.0, 5.0, 4.0]
    assert [row.chips_used for row in closed] == [1, 1, 1, 4]
    assert [row.lower_bound_s for row in closed] == [2.0, 2.0, 0.5, 0.5]
    assert not closed[2].why


def test_same_seed_and_samples_same_tables():
    graph, mcm = ladder(9), unit_module(3, bandwidth=1e-3)
    first, second = (sweep(graph, mcm, max_samples=200, seed=3).to_dict() for _ in range(2))
    assert first | {"wall_s": 0} == second | {"wall_s": 0}


def test_a_sweep_as_json_is_plain_and_finite():
    found = exact_sweep(HEAVY, unit_module(2, capacity=9.0))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["chips"][0]["infeasible"]
    assert data["chips"][0]["lower_bound_s"] is None
    assert data["chips"][1]["throughput_per_s"] == pytest.approx(0.5)


def test_a_table_without_any_partition_says_why():
    problem = jaxpart.Problem.build(HEAVY, unit_module(1, capacity=9.0))
    found = Sweep(problem, (ChipsRow(1, None, math.inf, why="no room"),), (), 0.1)
    assert "no room" in found.summary()
    assert "proven to be out of reach" in found.summary(1.0)


@pytest.mark.parametrize(
    ("chips", "message"),
    [((), "chips is empty"), ((0, 2), "chips has 0"), ((1, 5), "chips has 5, expected 1 to 4")],
)
def test_bad_numbers_of_chips_are_refused(chips, message):
    with pytest.raises(InputError, match=message):
        sweep(HEAVY, unit_module(4), chips)


def test_a_mesh_has_no_first_chips():
    with pytest.raises(InputError, match="is a mesh"):
        sweep(HEAVY, dataclasses.replace(MODULES["mesh"], name="square"))


def test_ranges_of_chips_are_read():
    assert counts("1..3,8,7..8") == (1, 2, 3, 7, 8)


@pytest.mark.parametrize("text", ["", "0..3", "3..1", "a", "1-3", "1..5000", "1...3"])
def test_what_is_no_range_of_chips_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "bert-large", "--chips", text])
    assert "--chips" in capsys.readouterr().err


def test_the_command_shows_tables_and_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line([1e6, 2e6, 3e6], [10, 10]).save("line.json")
    options = "--mcm mcm4 --chips 1..2 --samples 50 --rate 1 --json sweep.json"
    code = main(["sweep", "line.json", *options.split()])
    shown = capsys.readouterr().out
    assert code == 0
    assert "1 inferences/s: 1 chips, proven to be the fewest" in shown
    rows = json.loads((tmp_path / "sweep.json").read_text())["chips"]
    assert [row["chips"] for row in rows] == [1, 2]
