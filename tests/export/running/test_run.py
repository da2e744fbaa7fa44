"""Stages run as a pipeline: times, outputs, inputs from files, and failures."""

import dataclasses
import hashlib
import json
import sys
import threading

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

import jaxpart
from jaxpart.cli import main
from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.manifest import (
    Manifest,
    Stage,
    StageInput,
    StageOutput,
    TensorInfo,
)
from jaxpart.export.running.run import RunReport, StageTime, run_stages
from jaxpart.export.running.runtimes import load_model, load_onnx
from jaxpart.export.running.tensors import difference, feed_of, random_feed
from jaxpart.export.running.workers import run_pipeline
from tests.support.onnx_models import INT64, model, node, numbers, out, value
from tests.support.stages import FREE, save

PLACES = {"a": 0, "b": 1, "c": 4}


def chain(scale=1.0):
    """y = relu(x w) + x, z = index; in three stages."""
    rng = np.random.default_rng(0)
    return model(
        [
            node("MatMul", "x w", "t", name="a"),
            node("Relu", "t", "u", name="b"),
            node("Add", "u x", "y", name="c"),
        ],
        [value("x", [2, 4])],
        [out("y"), out("t")],
        [numbers("w", scale * rng.normal(size=(4, 4)), np.float32)],
    )


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "model.onnx", chain())


@pytest.fixture
def folder(path, tmp_path):
    jaxpart.export(path, PLACES, out=tmp_path / "stages", mcm=FREE)
    return tmp_path / "stages"


def test_the_stages_are_timed_and_compared_with_the_model(path, folder):
    told = []

    report = run_stages(folder, count=10, model=path, callback=told.append)

    assert told == list(range(1, 11))
    assert (report.inferences, report.compared, report.difference) == (10, 8, 0)
    assert [stage.chip for stage in report.stages] == [0, 1, 4]
    scored = jaxpart.evaluate(jaxpart.from_onnx(path), FREE, PLACES)
    for stage in report.stages:
        assert stage.predicted_s == pytest.approx(float(scored.costs.stage_s[stage.chip]))
        assert 0 < stage.measured_s < report.wall_s
        costs = scored.costs
        times = [float(t[stage.chip]) for t in (costs.compute_s, costs.in_s, costs.out_s)]
        assert stage.binds == ("compute", "in", "out")[int(np.argmax(times))]
    assert report.predicted_per_s == scored.throughput_per_s
    assert report.latency_s < report.wall_s


def test_the_command_shows_what_binds(path, folder, capsys):
    code = main(["run", str(folder), "--count", "3", "--model", str(path)])

    text = capsys.readouterr().out
    assert code == 0
    assert text.startswith("model: 3 stages of free, 3 inferences\n")
    assert "compared    3 inferences with the whole model: outputs equal\n" in text
    assert "<- " in text


def test_another_model_is_not_the_same(folder, tmp_path, capsys):
    other = save(tmp_path / "other.onnx", chain(scale=1.001))

    code = main(["run", str(folder), "--count", "2", "--model", str(other)])

    assert code == 1
    assert "expected at most 1e-05: NOT THE SAME" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "bits"), [("FLOAT16", 10), ("BFLOAT16", 7), ("FLOAT", 99)])
def test_narrow_floats_may_differ_by_their_rounding(dtype, bits, tmp_path):
    code = TensorProto.DataType.Value(dtype)
    whole = model(
        [node("Cast", "x", "t", name="a", to=code), node("Cast", "t", "y", name="b", to=1)],
        [value("x", [2])],
        [out("y")],
    )
    path = save(tmp_path / "model.onnx", whole)
    jaxpart.export(path, {"a": 0, "b": 1}, out=tmp_path / "s", mcm=FREE)

    assert run_stages(tmp_path / "s", count=1).tolerance == max(1e-5, 4 * 2.0**-bits)


def test_a_model_of_other_outputs_is_refused(folder, tmp_path):
    other = chain()
    del other.graph.output[1]

    with pytest.raises(InputError, match="has no output 't', expected the model of the stages"):
        run_stages(folder, count=1, model=save(tmp_path / "other.onnx", other))


def test_the_summary_marks_what_binds():
    times = (StageTime(0, 2e-6, 3e-3), StageTime(12, 4e-6, 1.5e-3, "out"))
    report = RunReport("g", "m", times, 250e3, 8, 0.1, 0.02, 4, 3e-4)

    lines = report.summary().splitlines()

    assert lines[4].split() == ["0", "2.0", "50.0", "3,000.0", "100.0", "<-", "measured"]
    assert lines[5].split() == ["12", "4.0", "100.0", "1,500.0", "50.0", "<-", "predicted", "(out)"]
    assert lines[7] == "throughput  80 inferences/s, predicted 250,000"
    assert "0.0003 of the largest, expected at most 1e-05: NOT THE SAME" in lines[9]
    assert "scripts/calibrate.py describes this one" in lines[10]
    assert "--seconds" in lines[10]
    near = dataclasses.replace(
        report, stages=(StageTime(0, 1e-3, 3e-3, "in"),), link="the link from 0 to 1 binds, 9 us"
    )
    assert near.summary().splitlines()[4].endswith("<- predicted (in) and measured")
    assert near.summary().splitlines()[8] == "predicted   the link from 0 to 1 binds, 9 us"
    assert "calibrate" not in near.summary()
    assert not report.agrees
    assert dataclasses.replace(report, difference=1e-6).agrees
    assert dataclasses.replace(report, difference=None).agrees


def test_inputs_come_from_a_file_row_by_row(path, folder, tmp_path):
    rows = np.random.default_rng(1).normal(size=(3, 2, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=rows)
    np.savez(tmp_path / "one.npz", x=rows[1])
    inputs = [TensorInfo("x", "float32", (2, 4))]

    assert run_stages(folder, inputs=tmp_path / "in.npz", count=4, model=path).difference == 0

    feed = feed_of(tmp_path / "in.npz", inputs)
    np.testing.assert_array_equal(feed(4)["x"], rows[1])
    np.testing.assert_array_equal(feed_of(tmp_path / "one.npz", inputs)(7)["x"], rows[1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "'x' is missing, expected arrays named x"),
        ({"x": np.zeros((2, 4), np.float32), "z": 1}, "'z' is no input"),
        ({"x": np.zeros((2, 4))}, r"'x' is float64 \[2, 4\], expected float32 \[2, 4\]"),
        ({"x": np.zeros((4, 2), np.float32)}, r"'x' is float32 \[4, 2\], expected"),
        ({"x": np.zeros((0, 2, 4), np.float32)}, "or rows of that in front"),
        ({"x": np.zeros((1, 1, 2, 4), np.float32)}, "or rows of that in front"),
        ({"x": np.array({}, object)}, "is no .npz file of NumPy .*pickle"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arrays, message, folder, tmp_path):
    np.savez(tmp_path / "in.npz", **arrays)

    with pytest.raises(FileFormatError, match=message):
        run_stages(folder, inputs=tmp_path / "in.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is no .npz file"), (b"PK\3\4...", "is no .npz file"), (b"x = 1", "is no .npz file")],
)
def test_a_file_that_holds_no_arrays_is_refused(content, message, tmp_path):
    (tmp_path / "in.npz").write_bytes(content)

    with pytest.raises(FileFormatError, match=message):
        feed_of(tmp_path / "in.npz", [])


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros(3))

    with pytest.raises(FileFormatError, match="is one array, expected an"):
        feed_of(tmp_path / "in.npy", [])


def test_random_inputs_are_those_of_their_seed_and_number():
    inputs = [
        TensorInfo("f", "bfloat16", (3,)), TensorInfo("i", "int64", (40,)),
        TensorInfo("b", "bool", ()), TensorInfo("s", "string", (2,)),
    ]  # fmt: skip
    feed, same, other = random_feed(inputs, 0), random_feed(inputs, 0), random_feed(inputs, 1)

    for name, array in feed(3).items():
        np.testing.assert_array_equal(array, same(3)[name])
    assert (feed(3)["f"] != other(3)["f"]).any()
    assert (feed(3)["f"] != feed(4)["f"]).any()
    assert feed(0)["f"].dtype == ml_dtypes.bfloat16
    assert set(feed(0)["i"]) == {0, 1}
    assert feed(0)["b"].dtype == np.bool_
    assert feed(0)["b"].shape == ()
    with pytest.raises(InputError, match="input 'q' is int4, of which two or more share a byte"):
        random_feed([TensorInfo("q", "int4", (2,))], 0)
    with pytest.raises(InputError, match="input 'q' is posit8, which NumPy lacks"):
        random_feed([TensorInfo("q", "posit8", (2,))], 0)


@pytest.mark.parametrize("dtype", ["STRING", "BFLOAT16", "FLOAT8E4M3FN", "INT4", "DOUBLE"])
@pytest.mark.filterwarnings("ignore:.*no cost rule for StringConcat")
def test_tensors_of_all_types_pass_between_stages(dtype, tmp_path):
    code = TensorProto.DataType.Value(dtype)
    if dtype == "STRING":
        nodes = [
            node("StringConcat", "x x", "t", name="a"),
            node("StringConcat", "t x", "y", name="b"),
        ]
        given = value("x", [2], code)
    else:
        nodes = [node("Cast", "x", "t", name="a", to=code), node("Cast", "t", "y", name="b", to=1)]
        given = value("x", [2])
    whole = model(nodes, [given], [out("y", code if dtype == "STRING" else 1)], opset=21)
    path = save(tmp_path / "model.onnx", whole)
    jaxpart.export(path, {"a": 0, "b": 1}, out=tmp_path / "s", mcm=FREE)

    assert run_stages(tmp_path / "s", count=3, model=path).difference == 0


def test_inputs_of_narrow_floats_reach_the_runtime(tmp_path):
    whole = model(
        [node("Cast", "x", "t", name="a", to=1), node("Neg", "t", "y", name="b")],
        [value("x", [2], TensorProto.BFLOAT16)],
        [out("y")],
    )
    path = save(tmp_path / "model.onnx", whole)
    jaxpart.export(path, {"a": 0, "b": 1}, out=tmp_path / "s", mcm=FREE)

    assert run_stages(tmp_path / "s", count=2, model=path).difference == 0


def line_of(*programs):
    """A manifest of stages in a row that pass `t0`, `t1` ... on."""
    info = {"dtype": "float32", "shape": ()}
    last = len(programs)
    stages = tuple(
        Stage(
            s, f"f{s}", 0,
            (StageInput(name=f"t{s}", source="host" if s == 0 else s - 1, **info),),
            (StageOutput(name=f"t{s + 1}", to=("host" if s + 1 == last else s + 1,), **info),),
            {},
        )
        for s in range(last)
    )  # fmt: skip
    ends = (TensorInfo(name="t0", **info),), (TensorInfo(name=f"t{last}", **info),)
    return Manifest("onnx", "g", "", "m", *ends, stages)


def feed(number):
    return {"t0": np.array(float(number))}


def step(s, change=lambda value: value + 1):
    return lambda values: {f"t{s + 1}": change(values[f"t{s}"])}


def test_the_outputs_of_the_first_inferences_are_kept_in_order():
    programs = [step(0), step(1, lambda value: value * 10)]

    done = run_pipeline(line_of(*programs), programs, feed, 20, keep=3)

    assert [float(each["t2"]) for each in done.outputs] == [10, 20, 30]
    assert [len(times) for times in done.stage_s] == [20, 20]
    assert len(done.latency_s) == 20


def test_a_stage_works_on_the_next_inference_while_another_has_the_last():
    """Each waits until the other works too, which never comes true one after the other."""
    meeting = threading.Barrier(2, timeout=30)

    def first(value):
        if value > 0:  # nobody works beside it on the first inference
            meeting.wait()
        return value

    def second(value):
        if value < 4:  # nor on the last
            meeting.wait()
        return value

    programs = [step(0, first), step(1, second)]
    done = run_pipeline(line_of(*programs), programs, feed, 5, keep=5)

    assert len(done.outputs) == 5


@pytest.mark.parametrize("where", ["feed", "first", "last"])
def test_a_failure_ends_all_workers_and_is_told(where):
    def fail(value):
        if value >= 7:
            raise InputError(f"{where} is broken")
        return value

    def feed_until(number):
        return {"t0": fail(np.array(float(number)))} if where == "feed" else feed(number)

    programs = [
        step(0, fail if where == "first" else lambda value: value),
        step(1, lambda value: value),
        step(2, fail if where == "last" else lambda value: value),
    ]
    before = threading.active_count()

    with pytest.raises(InputError, match=f"{where} is broken"):
        run_pipeline(line_of(*programs), programs, feed_until, 1000)

    assert threading.active_count() == before


def test_without_onnx_runtime_the_error_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    assert main(["run", str(folder)]) == 2

    assert "pip install 'jaxpart[export]'" in capsys.readouterr().err


def test_a_whole_model_of_another_kind_than_the_stages_is_refused(path):
    with pytest.raises(InputError, match="expected StableHLO, what jax"):
        load_model(path, "jax")


def test_a_stage_that_is_no_program_is_refused(folder, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a")

    with pytest.raises(InputError, match="ONNX Runtime cannot load it"):
        load_onnx(tmp_path / "broken.onnx")


def test_a_program_that_fails_names_its_file(tmp_path):
    gather = model(
        [node("Gather", "w i", "y", name="a")],
        [value("i", [1], INT64)],
        [out("y")],
        [numbers("w", np.zeros((2, 2)), np.float32)],
    )
    program = load_onnx(save(tmp_path / "gather.onnx", gather))

    with pytest.raises(InputError, match=r"gather\.onnx: ONNX Runtime cannot run it"):
        program({"i": np.array([5])})


def test_a_result_of_another_graph_is_noticed(folder, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    result["graph_sha256"] = "0" * 64
    (folder / "result.json").write_text(json.dumps(result))
    digest = hashlib.sha256((folder / "result.json").read_bytes()).hexdigest()
    for stage in manifest["stages"]:
        stage["sha256"]["result.json"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(InputError, match=r"result\.json: is of another graph or module"):
        run_stages(folder)


def replaced(folder, content):
    """Puts other bytes in the place of the first stage, and their hash in the manifest."""
    (folder / "stage-00.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"][0]["sha256"]["stage-00.onnx"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../secret.data", "is in the file '../secret.data', expected a path within the folder"),
        ("secret.data", r"sha256 has no hash of 'secret\.data', which the stage reads"),
    ],
)
def test_a_stage_whose_weights_are_no_hashed_file_is_not_run(location, message, folder, tmp_path):
    """Its own bytes have the hash of the manifest."""
    stage = onnx.load(folder / "stage-00.onnx")
    (weight,) = stage.graph.initializer
    secret = tmp_path / "secret.data"
    secret.write_bytes(weight.raw_data)
    (folder / "secret.data").symlink_to(secret)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    replaced(folder, stage.SerializeToString())

    with pytest.raises(FileFormatError, match=message):
        run_stages(folder, count=1)


def test_a_folder_that_changed_is_not_run(folder, capsys):
    with open(folder / "stage-01.onnx", "ab") as file:
        file.write(b"\0")

    assert main(["run", str(folder)]) == 2
    assert "stage-01.onnx: was changed since it was exported" in capsys.readouterr().err


@given(hnp.arrays(np.float32, (3, 2), elements=st.floats(-4, 4, width=32)))
def test_a_difference_is_a_share_of_the_largest_number(expected):
    largest = np.abs(expected).max()
    found = expected.copy()
    found[1, 1] += 0.5

    assert difference(expected, expected) == 0
    if largest > 1e-3:
        gap = abs(float(found[1, 1]) - float(expected[1, 1])) / float(largest)
        assert difference(found, expected) == pytest.approx(gap)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.zeros(2, np.float32), np.zeros(3, np.float32)),
        (np.zeros(2, np.float32), np.zeros(2)),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array(["a"], object), np.array(["b"], object)),
        (np.array([np.nan]), np.array([0.0])),
        (np.array([0.0]), np.array([np.inf])),
        (np.array([-np.inf, 1]), np.array([np.inf, 1])),
    ],
)
def test_what_cannot_be_rounding_differs_without_limit(found, expected):
    assert difference(found, expected) == np.inf


def test_nans_and_infinities_in_the_same_places_are_equal():
    odd = np.array([np.nan, np.inf, -np.inf, 1.0])

    assert difference(odd.copy(), odd) == 0
    assert difference(odd + np.array([0, 0, 0, 0.5]), odd) == 0.5
