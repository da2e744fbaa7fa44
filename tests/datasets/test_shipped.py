"""The shipped set of graphs: its split, its manifest, and the tools that make and show it."""

import dataclasses
import hashlib
import json
from collections import Counter

import build
import pytest
from models import catalog

from jaxpart import datasets
from jaxpart.bounds.ideals.pairs import count_ideals
from jaxpart.datasets import manifest, shipped
from jaxpart.errors import FileFormatError, InputError
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from jaxpart.problem.structure import depth, topology_hash, width

ENTRIES = datasets.contents().graphs


def test_the_split_has_the_sizes_of_the_paper_and_no_family_on_two_sides():
    sizes = Counter(entry.split for entry in ENTRIES)
    assert (sizes["train"], sizes["valid"], sizes["test"]) == (66, 5, 16)
    assert {side: len(datasets.split(side)) for side in datasets.SPLITS} == dict(sizes)
    sides = {(entry.family, entry.split) for entry in ENTRIES}
    assert len(sides) == len({entry.family for entry in ENTRIES})


def test_each_side_has_both_kinds_and_both_shapes():
    for side in ("train", "valid", "test"):
        chosen = [entry for entry in ENTRIES if entry.split == side]
        assert {entry.kind for entry in chosen} == {"cnn", "rnn"}
        for kind in ("cnn", "rnn"):
            assert any(
                e.ideals is None or e.ideals > 10 * e.nodes for e in chosen if e.kind == kind
            )
        assert any(e.ideals is not None and e.ideals < 2 * e.nodes for e in chosen)


def test_structures_are_distinct_and_many_are_wide():
    chosen = [entry for entry in ENTRIES if entry.split != "extra"]
    assert len({entry.topology for entry in chosen}) >= 80
    assert sum(entry.kind == "rnn" for entry in chosen) >= 20
    assert sum(e.ideals is None or e.ideals > 10 * e.nodes for e in chosen) >= 25
    assert sum(not entry.fused for entry in chosen) >= 24
    assert all(entry.largest_flops_share < 0.5 for entry in chosen)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_manifest_says_what_the_file_holds(entry):
    path = shipped._folder() / f"{entry.name}.json.gz"
    content = path.read_bytes()
    graph = datasets.load(entry.name)

    assert hashlib.sha256(content).hexdigest() == entry.sha256
    assert len(content) == entry.bytes
    assert (len(graph.nodes), graph.num_edges) == (entry.nodes, entry.edges)
    assert len(graph.weights) == entry.weights
    assert graph.weight_bytes / 2**20 == pytest.approx(entry.weight_mib, abs=1e-4)
    assert graph.total_flops / 1e9 == pytest.approx(entry.gflop, abs=1e-6)
    assert graph.element_bytes == 1
    assert (depth(graph), width(graph)) == (entry.depth, entry.width)
    assert topology_hash(graph) == entry.topology


def test_counts_of_ideals_are_those_of_the_manifest():
    for entry in ENTRIES:
        if entry.ideals is not None and entry.ideals < 2000:
            problem = Problem.build(datasets.load(entry.name), load_mcm("mcm36"))
            assert count_ideals(problem, 2000) == entry.ideals


def test_every_graph_has_a_model_and_every_model_a_graph():
    models = {model.name: model for model in catalog.models()}
    assert sorted(models) == datasets.names()
    for entry in ENTRIES:
        model = models[entry.name]
        for field in ("family", "kind", "split", "source", "license", "config", "fused"):
            assert getattr(entry, field) == getattr(model, field)


def test_names_and_families_are_checked():
    model = catalog.models()[0]
    other = "test" if model.split != "test" else "train"
    with pytest.raises(ValueError, match="two models are named"):
        catalog.check([model, model])
    with pytest.raises(ValueError, match=f"family {model.family!r} stands on the sides"):
        catalog.check([model, dataclasses.replace(model, name="twin", split=other)])


def test_a_side_or_a_name_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="no side of the split is named 'dev', expected train"):
        datasets.split("dev")
    with pytest.raises(InputError, match=r"no shipped graph is named 'resnet5'.*resnet50"):
        datasets.entry("resnet5")


def test_a_manifest_survives_writing_and_damage_is_told(tmp_path):
    path = tmp_path / "manifest.json"
    manifest.write(path, datasets.contents())
    assert manifest.read(path) == datasets.contents()

    document = json.loads(path.read_text())
    document["graphs"].append(document["graphs"][0])
    path.write_text(json.dumps(document))
    with pytest.raises(
        FileFormatError, match=r"manifest.json: graphs\[96\] is named .* like another"
    ):
        manifest.read(path)
    document["graphs"][0]["nodes"] = "many"
    path.write_text(json.dumps(document))
    with pytest.raises(
        FileFormatError, match=r"Expected `int`, got `str` - at `\$.graphs\[0\].nodes`"
    ):
        manifest.read(path)


def test_a_build_goes_on_where_it_was_and_tells_what_differs(tmp_path, capsys):
    model = next(model for model in catalog.models() if model.name == "clockwork-rnn")
    assert build.build_all([model], tmp_path, jobs=1, again=False) == 0
    assert "0 graphs are up to date, 1 to build" in capsys.readouterr().out
    built = (tmp_path / "clockwork-rnn.json.gz").read_bytes()

    assert build.build_all([model], tmp_path, jobs=1, again=False) == 0
    assert "1 graphs are up to date, 0 to build" in capsys.readouterr().out
    assert build.check([model], tmp_path, jobs=1) == 0

    datasets.load("mgu").save(tmp_path / "clockwork-rnn.json.gz")
    assert build.check([model], tmp_path, jobs=1) == 1
    assert "clockwork-rnn: the file is not the one of the manifest" in capsys.readouterr().err
    assert build.build_all([model], tmp_path, jobs=1, again=False) == 0
    assert (tmp_path / "clockwork-rnn.json.gz").read_bytes() == built
