"""What `export` refuses, by which words; and that nothing is left half written."""

import dataclasses
import errno
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import jaxpart
from jaxpart.cli import main
from jaxpart.errors import FileFormatError, InputError
from jaxpart.problem.mcm import Constraints
from tests.support.full_disk import FULL, WHEN, fill_up
from tests.support.onnx_models import model, node, numbers, out, value
from tests.support.stages import FREE, save

PLACES = {"a": 0, "b": 0, "c": 1}


def chain(width=4, names="abc"):
    a, b, c = names
    return model(
        [
            node("MatMul", "x w", "t", name=a),
            node("Relu", "t", "u", name=b),
            node("MatMul", "u w", "y", name=c),
        ],
        [value("x", [2, width])],
        [out("y")],
        [numbers("w", np.ones((width, width)), np.float32)],
    )


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "model.onnx", chain())


@pytest.fixture
def result(path, tmp_path):
    """The file of a result for the model."""
    graph = jaxpart.from_onnx(path)
    found = jaxpart.partition(graph, jaxpart.load_mcm("mcm4"), method="greedy")
    found.save(tmp_path / "result.json")
    return tmp_path / "result.json"


def command(*arguments, capsys):
    """Exit code and the line on stderr."""
    code = main(["export", *map(str, arguments)])
    return code, capsys.readouterr().err.strip()


def test_the_command_writes_the_folder_of_a_result(path, result, tmp_path, capsys):
    out = tmp_path / "stages"

    code = main(["export", str(path), str(result), "--to", "onnx", "--out", str(out)])

    assert code == 0
    assert capsys.readouterr().out == f"written: {out}, chips in use: 2\n"
    assert (out / "result.json").read_bytes() == result.read_bytes()
    loaded = jaxpart.Result.load(result, jaxpart.from_onnx(path))
    assert jaxpart.export(path, loaded, out=tmp_path / "again").chips() == loaded.chips()
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (
        out / "manifest.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        (chain(width=8), "the file says .* for compute_s of chip 0, it is"),
        (chain(names="abd"), "expected the 3 nodes of model, but 'd' is missing"),
    ],
)
def test_a_model_that_changed_since_is_refused_with_the_place(
    changed, place, path, result, tmp_path, capsys
):
    save(path, changed)

    code, said = command(path, result, "--to", "onnx", "--out", tmp_path / "s", capsys=capsys)

    assert code == 2
    assert said.startswith(f"error: {result}: ")
    with pytest.raises(InputError, match=place):
        jaxpart.export(path, result, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_change_that_no_figure_shows_is_refused_too(path, result, tmp_path):
    """Another operator with the same costs."""
    other = chain()
    other.graph.node[1].op_type = "Neg"
    save(path, other)

    with pytest.raises(InputError, match=r"no figure of the file shows; expected .*--seconds"):
        jaxpart.export(path, result, out=tmp_path / "s")


def changed_weight():
    other = chain()
    other.graph.initializer[0].CopyFrom(numbers("w", np.zeros((4, 4)), np.float32))
    return other


@pytest.mark.parametrize("given", ["a file", "a result"])
def test_a_change_that_no_graph_shows_is_refused_where_the_result_knows_the_model(
    given, path, result, tmp_path
):
    """Other values of a weight; results of graphs alone do not know what file they were."""
    loaded = jaxpart.Result.load(result, jaxpart.from_onnx(path))
    loaded.save(result, model=path)
    loaded = jaxpart.Result.load(result, jaxpart.from_onnx(path))
    assert json.loads(result.read_text())["model_sha256"] == loaded.model_sha256
    partition = result if given == "a file" else loaded
    jaxpart.export(path, partition, out=tmp_path / "s")
    assert (tmp_path / "s" / "result.json").read_bytes() == result.read_bytes()

    save(path, changed_weight())
    with pytest.raises(InputError, match=r"model\.onnx: the model changed since .* was made"):
        jaxpart.export(path, partition, out=tmp_path / "s")

    loaded = dataclasses.replace(loaded, model_sha256=None)
    jaxpart.export(path, loaded, out=tmp_path / "s")


def test_the_command_partition_stores_the_hash_of_a_model_s_file(path, tmp_path, capsys):
    out = tmp_path / "r.json"
    options = ("--mcm", "mcm4", "--method", "greedy", "--out", str(out))
    assert main(["partition", str(path), *options, "--plot", str(tmp_path / "r.png")]) == 0
    assert json.loads(out.read_text())["model_sha256"] == sha256(path.read_bytes()).hexdigest()

    assert command(path, out, "--to", "onnx", "--out", tmp_path / "s", capsys=capsys)[0] == 0
    save(path, changed_weight())
    code, said = command(path, out, "--to", "onnx", "--out", tmp_path / "s", capsys=capsys)
    assert (code, "the model changed since" in said) == (2, True)

    jaxpart.from_onnx(path).save(tmp_path / "graph.json")
    assert main(["partition", str(tmp_path / "graph.json"), *options]) == 0
    assert "model_sha256" not in json.loads(out.read_text())


@pytest.mark.parametrize("wrong", [None, "", "0" * 63, "G" * 64, 5])
def test_a_hash_that_is_none_is_refused(wrong, path, result):
    content = json.loads(result.read_text())
    result.write_text(json.dumps({**content, "model_sha256": wrong}))

    with pytest.raises(FileFormatError, match="model_sha256"):
        jaxpart.export(path, result, out=path.parent / "s")


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        (chain(width=8), "node 'a': flops 64 -> 256, bytes_accessed "),
        (chain(names="abd"), "node 'c' is now 'd'; expected .* options .*: --dim, --param-argnums"),
    ],
)
def test_a_result_in_memory_of_another_graph_is_refused(changed, place, path, result, tmp_path):
    loaded = jaxpart.Result.load(result, jaxpart.from_onnx(path))
    save(path, changed)

    with pytest.raises(InputError, match=place):
        jaxpart.export(path, loaded, out=tmp_path / "s")


def test_an_invalid_partition_is_refused_by_its_rule(path, tmp_path, capsys):
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"a": 1, "b": 0, "c": 0}))

    code, said = command(path, plain, "--to", "onnx", "--out", tmp_path / "s", capsys=capsys)

    assert code == 2
    assert "not valid for model on mcm36 (acyclic dataflow" in said
    plain.write_text(json.dumps({"a": 0, "b": 1, "c": 1}))
    arguments = (path, plain, "--to", "onnx", "--out", tmp_path / "s", "--mcm", "mcm4")
    assert command(*arguments, capsys=capsys) == (0, "")
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["mcm"] == "mcm4"


def test_stages_that_cannot_run_in_chip_order_are_refused(path, tmp_path):
    free = dataclasses.replace(
        FREE, constraints=Constraints(acyclic=False, no_skip=False, triangle=False)
    )

    with pytest.raises(InputError, match=r"b \(Relu\) on chip 0 reads 't' from chip 1, expected"):
        jaxpart.export(path, {"a": 1, "b": 0, "c": 0}, out=tmp_path / "s", mcm=free)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "coreml"}, "cannot export to 'coreml', expected onnx or onnx-annotated"),
        ({"mcm": None}, "brings no module, expected one"),
        ({"partition": {"a": 0, "b": 0}}, "'c' is missing"),
        ({"partition": [0, 0]}, "expected"),
        ({"partition": {**PLACES, "c": 99}}, "'c' is on chip 99"),
        ({"model": "bert-large"}, r"bert-large: cannot be read \(No such file"),
        ({"out": "model.onnx"}, "is a file, expected a folder"),
        ({"out": "nowhere/s"}, "the folder .*nowhere does not exist"),
        ({"out": "."}, "expected the name of a folder"),
        ({"out": "full"}, "holds other files"),
        ({"to": "onnx-annotated", "out": "model.onnx"}, "is an input"),
        ({"to": "onnx-annotated", "out": "full"}, "is a folder"),
    ],
)
def test_wrong_arguments_are_refused(options, message, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    given = {"model": "model.onnx", "partition": PLACES, "out": "s", "mcm": FREE} | options

    with pytest.raises(InputError, match=message):
        jaxpart.export(given.pop("model"), given.pop("partition"), **given)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "model.onnx"]


def test_a_stage_is_not_replaced_by_its_own_stages(path, tmp_path):
    out = tmp_path / "s"
    jaxpart.export(path, {"a": 0, "b": 0, "c": 0}, out=out, mcm=FREE)

    with pytest.raises(InputError, match="holds the model"):
        jaxpart.export(out / "stage-00.onnx", PLACES, out=out, mcm=FREE)

    jaxpart.export(path, out / "result.json", out=out)  # what was read is written again


def test_a_result_s_own_module_is_the_one_that_counts(path, result, tmp_path):
    with pytest.raises(InputError, match="brings its own module, expected no other"):
        jaxpart.export(path, result, out=tmp_path / "s", mcm=FREE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty, expected an ONNX model"),
        (b'{"format": "jaxpart-graph"}', "is JSON, expected an ONNX model"),
        (b"node1 -- Input0 -- ...", "expected an ONNX model"),
    ],
)
def test_a_file_that_is_no_model_is_refused(content, message, tmp_path):
    (tmp_path / "graph").write_bytes(content)

    with pytest.raises(FileFormatError, match=message):
        jaxpart.export(tmp_path / "graph", PLACES, out=tmp_path / "s", mcm=FREE)


def test_random_numbers_that_two_chips_need_are_refused(tmp_path):
    """Each chip would draw its own."""
    drawn = model(
        [
            node("RandomNormal", "", "noise", name="noise", shape=[2, 2]),
            node("Add", "x noise", "t", name="a"),
            node("Mul", "t noise", "y", name="b"),
        ],
        [value("x", [2, 2])],
        [out("y")],
    )
    path = save(tmp_path / "model.onnx", drawn)

    with pytest.raises(InputError, match=r"noise \(RandomNormal\) draws random numbers that chips"):
        jaxpart.export(path, {"a": 0, "b": 1}, out=tmp_path / "s", mcm=FREE)

    jaxpart.export(path, {"a": 1, "b": 1}, out=tmp_path / "s", mcm=FREE)


@pytest.mark.parametrize("before", ["nothing", "an earlier export"])
def test_a_disk_that_fills_up_leaves_what_was_there(before, path, tmp_path, monkeypatch):
    out = tmp_path / "s"
    if before != "nothing":
        jaxpart.export(path, {"a": 0, "b": 0, "c": 0}, out=out, mcm=FREE)
    contents = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    written = []
    write = Path.write_bytes

    def fail(self, data):
        written.append(self.name)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match="cannot write here \\(No space left on device\\)"):
        jaxpart.export(path, PLACES, out=out, mcm=FREE)

    assert len(written) == 2
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == contents
    assert out.exists() == (before != "nothing")


@pytest.mark.parametrize("when", WHEN)
def test_a_disk_that_fills_up_leaves_no_part_of_one_annotated_file(
    when, path, tmp_path, monkeypatch
):
    out = tmp_path / "placed.onnx"
    fill_up(monkeypatch, when)

    with pytest.raises(InputError, match=f"placed.onnx: {FULL}"):
        jaxpart.export(path, PLACES, to="onnx-annotated", out=out, mcm=FREE)

    assert list(tmp_path.iterdir()) == [path]
