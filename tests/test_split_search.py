"""Partitions of graphs whose large operations are split, beside the graph as it is."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest

import jaxpart
from jaxpart.cli import main
from jaxpart.cost.greedy import baseline
from jaxpart.errors import InfeasibleError, InputError
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.results.result import Result
from jaxpart.results.splitting import SplitInfo
from tests.support import oracle
from tests.support.graphs import layers, line
from tests.support.modules import unit_module
from tests.support.strategies import random_divided_graph, random_mcm

MCM8 = load_mcm("mcm8")


def searched(graph, mcm=MCM8, samples=2_000, split: str | int = "auto", **options) -> Result:
    return jaxpart.partition(
        graph, mcm, method="ideals", max_samples=samples, time_limit_s=None, split=split, **options
    )


def heavy(divide=True) -> Graph:
    """Two nodes; the weight of the second fits no chip of 8 bytes, its halves do."""
    ways = (Division(4, "a", weights=((1, "a"),)),) if divide else ()
    nodes = (Node("a", "op", 1.0, 0.0), Node("b", "op", 4.0, 0.0, divide=ways))
    return Graph(
        nodes, (Tensor(0, 0.0, (1,)),), (Weight(1.0, (0,)), Weight(12.0, (1,))), "heavy", 1
    )


def test_an_operation_that_is_most_of_the_work_no_longer_binds():
    graph = layers()
    whole, result = searched(graph, split="off"), searched(graph)

    largest_s = Problem.build(graph, MCM8).node_s.max()
    assert whole.bottleneck_s >= largest_s
    assert result.bottleneck_s < largest_s / 3
    assert result.split is not None
    assert result.split.whole_s == pytest.approx(whole.bottleneck_s)
    assert result.bound_method.endswith("of the graph with these parts and copies")
    costs = oracle.evaluate(result.problem.graph, MCM8, result.assignment.tolist())
    assert costs.valid
    assert costs.bottleneck_s == pytest.approx(result.bottleneck_s)


def test_what_is_reported_of_a_split_is_what_the_graph_has():
    result = searched(layers())
    graph, split = result.problem.graph, result.split
    assert split is not None
    parts = [node for node in graph.nodes if node.part is not None]
    assert split.parts == len(parts)
    assert split.operations == len({node.part.of for node in parts if node.part})
    assert split.copies == sum(node.op == "copy" for node in graph.nodes)
    assert split.sums == sum(node.op == "sum" for node in graph.nodes)
    assert split.nodes == 8
    assert f"{split.operations} of 8 operations into {split.parts} parts" in result.summary()


def test_a_layer_that_fits_no_chip_is_split_over_several():
    mcm = unit_module(3, capacity=9.0)
    with pytest.raises(InfeasibleError):
        searched(heavy(), mcm, split="off")
    with pytest.raises(InfeasibleError):
        searched(heavy(divide=False), mcm)

    result = searched(heavy(), mcm)

    assert result.split is not None
    assert result.split.whole_s is None
    assert "nothing valid was found without" in result.summary()
    assert oracle.evaluate(result.problem.graph, mcm, result.assignment.tolist()).valid


def test_splitting_never_makes_it_worse_and_the_outcome_is_valid():
    rng = np.random.default_rng(5)
    improved = 0
    for _ in range(12):
        graph, mcm = random_divided_graph(rng, 6), random_mcm(rng, 3)
        nodes = tuple(msgspec.structs.replace(node, pin=None) for node in graph.nodes)
        graph = dataclasses.replace(graph, nodes=nodes)
        try:
            whole_s = searched(graph, mcm, split="off").bottleneck_s
        except (InfeasibleError, jaxpart.NothingFoundError):
            whole_s = np.inf
        try:
            result = searched(graph, mcm)
        except (InfeasibleError, jaxpart.NothingFoundError):
            assert whole_s == np.inf
            continue
        improved += result.bottleneck_s < whole_s * (1 - 1e-9)
        assert result.bottleneck_s <= whole_s * (1 + 1e-9)
        costs = oracle.evaluate(result.problem.graph, mcm, result.assignment.tolist())
        assert costs.valid
        assert costs.bottleneck_s == pytest.approx(result.bottleneck_s)
    assert improved


def test_a_graph_that_is_used_to_the_full_stays_whole():
    graph = line([1.0] * 4, [0] * 3)
    result = searched(graph, unit_module(4))
    assert result.split is None
    assert result.problem.graph == graph


def test_a_graph_that_cannot_be_divided_stays_whole():
    graph = line([1.0, 5.0, 1.0], [1] * 2)
    result = searched(graph, unit_module(2))
    assert result.split is None
    assert result.bottleneck_s == searched(graph, unit_module(2), split="off").bottleneck_s


def test_parts_are_no_more_than_asked_for():
    result = searched(layers(), split=2)
    parts = [node.part for node in result.problem.graph.nodes if node.part is not None]
    assert parts
    assert result.split is not None
    assert result.split.parts <= 2 * 8 + result.split.operations * 2


def test_same_seed_and_samples_same_answer():
    first, second = searched(layers(), seed=2), searched(layers(), seed=2)
    assert first.problem.graph == second.problem.graph
    assert first.assignment.tolist() == second.assignment.tolist()


def test_a_users_start_is_that_of_the_graph_as_it_is():
    graph = layers()
    start = baseline(Problem.build(graph, MCM8))
    result = searched(graph, initial_assignment=start)
    assert result.split is not None


def test_the_samples_are_those_of_all_searches():
    told = []
    result = searched(layers(), callback=told.append)
    assert result.search.samples >= max(one.samples for one in told)
    assert result.search.samples <= 2_000


@pytest.mark.parametrize("split", ["on", 1, 0, True, 2.5, None])
def test_bad_values_are_refused(split):
    with pytest.raises(InputError, match="expected 'auto', 'off' or a number"):
        searched(layers(), split=split)


def test_rules_name_nodes_of_the_graph_as_it_is():
    with pytest.raises(InputError, match="not with rules"):
        searched(layers(), rules=[lambda f: np.ones(f.shape[1], bool)])


INFO = SplitInfo(2, 5, (("a", 3), ("b", 2)), 1, 2, 8, 1.25, 0.05, 3e-6, 1e-6)


def test_sentences_count_in_words():
    assert INFO.sentences(2e-6) == (
        "2 of 8 operations into 5 parts, and 1 sum and 2 copies; a into 3, b into 2",
        "compute +25.0%: +20.0% by parts that read again, +5.0% by sums and copies",
        "1.500x over 3 us without, from 3.000 to 2.000 mean loads of the graph as it was",
    )
    alone = dataclasses.replace(INFO, operations=4, sums=0, copies=0, whole_s=None)
    what, _, outcome = alone.sentences(2e-6)
    assert what == "4 of 8 operations into 5 parts; a into 3, b into 2, ..."
    assert outcome == (
        "nothing valid was found without, now 2.000 mean loads of the graph as it was"
    )


def test_copies_alone_are_not_called_operations_that_were_split():
    info = dataclasses.replace(INFO, operations=0, parts=0, largest=(), sums=0, copies=3)
    assert info.sentences(2e-6)[0] == "no operation split; 3 copies"


def test_a_result_can_be_checked_against_the_saved_graph(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers().save("layers.json")
    options = "--mcm mcm8 --method ideals --samples 2000 --split auto --save-graph split.json"
    assert main(["partition", "layers.json", *options.split(), "--out", "result.json"]) == 0
    assert "operations into" in capsys.readouterr().out

    assert main(["evaluate", "split.json", "result.json"]) == 0
    assert "valid" in capsys.readouterr().out
    assert main(["evaluate", "layers.json", "result.json"]) == 2
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["graph_sha256"] == Graph.load("split.json").sha256


def test_the_parts_are_saved_beside_the_result_where_no_file_is_named(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    layers().save("layers.json")
    options = "--mcm mcm8 --method ideals --samples 2000 --split auto --out best.json"
    assert main(["partition", "layers.json", *options.split()]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "written: best.json, best.graph.json.gz and layers-mcm8.png"
    assert main(["evaluate", "best.graph.json.gz", "best.json"]) == 0

    line([1.0] * 2, [0]).save("line.json")
    options = "--mcm mcm8 --method greedy --split auto --out whole.json"
    assert main(["partition", "line.json", *options.split()]) == 0
    assert not (tmp_path / "whole.graph.json.gz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "1"], "expected auto, off or a number"),
        (["--split", "some"], "expected auto, off or a number"),
        (["--save-graph", "layers.json"], "layers.json"),
        (["--save-graph", "r.json", "--out", "r.json"], "expected two files"),
        (["--split", "auto", "--measure", "2"], "parts of operations are not exported yet"),
    ],
)
def test_bad_arguments_are_refused(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers().save("layers.json")
    try:
        code = main(["partition", "layers.json", "--mcm", "mcm8", *options])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert message in capsys.readouterr().err
