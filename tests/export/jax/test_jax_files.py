"""Stages as files: loaded and run by a process that does not have the function."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax import export
from jax.interpreters.mlir import make_ir_context
from jaxlib import xla_client
from jaxlib.mlir.dialects import stablehlo

import jaxpart
from jaxpart.cli import main
from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.jax import files as jax_files
from jaxpart.export.jax.files import load_stage
from jaxpart.export.manifest import read_stages
from jaxpart.export.running.run import run_stages
from jaxpart.export.running.runtimes import load_stages
from jaxpart.export.running.workers import run_pipeline
from tests.support.functions import CASES, assert_same, floats, made, rising_chips
from tests.support.modules import unit_module

pytest.importorskip("flatbuffers", reason="stages of JAX are written with the extra `export`")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def saved(name, folder, seed=2):
    case = made(name)
    trace = jaxpart.trace(case.fn, *case.args, **case.options)
    trace.stages(rising_chips(trace.graph, seed)).save(folder)
    params = trace.imported.params
    leaves = jax.tree.leaves([a for i, a in enumerate(case.args) if i not in params])
    return case, leaves


def raw(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def run(folder, leaves):
    """The model's outputs, from the files alone."""
    manifest = read_stages(folder)
    known = {info.name: raw(x) for info, x in zip(manifest.inputs, leaves, strict=True)}
    for stage in manifest.stages:
        given = {tensor.name: known[tensor.name] for tensor in stage.inputs}
        known.update(load_stage(folder, stage)(given))
    return [known[info.name] for info in manifest.outputs]


@pytest.mark.parametrize("name", CASES)
def test_files_give_what_the_function_gives(name, tmp_path):
    case, leaves = saved(name, tmp_path / "out")
    expected = [raw(x) for x in map(jnp.asarray, jax.tree.leaves(jax.jit(case.fn)(*case.args)))]
    assert_same(run(tmp_path / "out", leaves), expected, 1e-5)


LOAD = """
import json, sys, numpy as np
from jaxpart.export.jax.files import load_stage
from jaxpart.export.manifest import read_stages
from jaxpart.export.running.run import run_stages
from jaxpart.export.running.runtimes import load_stages
from jaxpart.export.running.workers import run_pipeline
folder = sys.argv[1]
manifest = read_stages(folder)
known = dict(np.load(sys.argv[2]))
for stage in manifest.stages:
    known.update(load_stage(folder, stage)({t.name: known[t.name] for t in stage.inputs}))
np.savez(sys.argv[3], *[np.asarray(known[info.name]) for info in manifest.outputs])
"""


def test_a_fresh_process_runs_the_files(tmp_path):
    case, leaves = saved("mlp_with_skips", tmp_path / "out")
    names = [info.name for info in read_stages(tmp_path / "out").inputs]
    np.savez(tmp_path / "in.npz", **dict(zip(names, leaves, strict=True)))
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", LOAD, tmp_path / "out", tmp_path / "in.npz", tmp_path / "y"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "y.npz") as file:
        np.testing.assert_allclose(file["arr_0"], case.fn(*case.args), rtol=1e-5, atol=1e-5)


def test_the_manifest_says_who_feeds_whom(tmp_path):
    def fn(w, x, y):
        first = jnp.sin(x) @ w["a"]
        return {"first": first, "x": x, "last": jnp.cos(first @ w["b"]) + x, "again": first}, 2

    args = {"a": floats(0, 4, 4), "b": floats(1, 4, 4)}, floats(2, 3, 4), floats(3, 2)
    trace = jaxpart.trace(fn, *args, param_argnums=0, name="two")
    assert [node.name for node in trace.graph.nodes][:2] == ["sin_0", "dot_general_0"]
    mcm = unit_module(2)
    chips = [0, 0, *[1] * (len(trace.graph.nodes) - 2)]
    trace.stages(jaxpart.evaluate(trace.graph, mcm, chips)).save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (content["kind"], content["graph"], content["mcm"]) == ("jax", "two", mcm.name)
    assert content["graph_sha256"] == trace.graph.rescaled(mcm.element_bytes or 4).sha256
    assert [t["name"] for t in content["inputs"]] == ["x", "y"]
    names = [t["name"] for t in content["outputs"]]
    assert names == ["output[0]['again']", "output[0]['first']", "output[0]['last']", "x",
                     "output[1]"]  # fmt: skip
    one, two = content["stages"]
    assert [(t["name"], t["from"]) for t in one["inputs"]] == [("x", "host")]
    assert {t["name"]: t["to"] for t in one["outputs"]} == {
        "output[0]['again']": [1, "host"],
        "output[0]['first']": ["host"],
        "output[1]": ["host"],
    }
    assert [(t["name"], t["from"]) for t in two["inputs"]] == [
        ("output[0]['again']", 0),
        ("x", "host"),
    ]
    assert (one["weight_bytes"], two["weight_bytes"]) == (64, 64)
    files = ["result.json", "stage-00.jaxexport", "stage-00.mlirbc", "stage-00.npz"]
    assert sorted(one["sha256"]) == files


def test_stages_run_as_a_pipeline_from_the_command_line(tmp_path, capsys):
    case, leaves = saved("mlp_with_skips", tmp_path / "out")
    manifest = read_stages(tmp_path / "out")
    names = [info.name for info in manifest.inputs]
    np.savez(tmp_path / "in.npz", **dict(zip(names, leaves, strict=True)))

    arguments = [str(tmp_path / "out"), "--inputs", str(tmp_path / "in.npz"), "--count", "3"]
    assert main(["run", *arguments]) == 0

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = [row for row in rows if row and row[0] in {str(s.chip) for s in manifest.stages}]
    assert len(table) == len(manifest.stages)
    for row in table:  # chips were given without costs: nothing is predicted
        assert row[1:3] == ["-", "-"]
        assert float(row[3].replace(",", "")) > 0
    programs = load_stages(tmp_path / "out", manifest)
    feed = dict(zip(names, leaves, strict=True))
    done = run_pipeline(manifest, programs, lambda k: feed, 2, keep=2)
    (name,) = (info.name for info in manifest.outputs)
    for outputs in done.outputs:
        np.testing.assert_allclose(outputs[name], case.fn(*case.args), rtol=1e-5, atol=1e-5)


def test_the_costs_that_a_result_predicted_are_shown_beside_the_measured(tmp_path):
    case = made("mlp_with_skips")
    trace = jaxpart.trace(case.fn, *case.args, **case.options)
    result = jaxpart.partition(trace.graph, jaxpart.load_mcm("mcm4"), method="greedy")
    trace.stages(result).save(tmp_path / "out")

    report = run_stages(tmp_path / "out", count=2)

    assert report.predicted_per_s == result.throughput_per_s
    costs = result.costs
    for stage in report.stages:
        c = stage.chip
        expected = max(costs.compute_s[c], costs.in_s[c], costs.out_s[c])
        assert stage.predicted_s == pytest.approx(float(expected))


def test_saved_twice_is_byte_for_byte_the_same_and_names_no_path(tmp_path):
    saved("attention_with_a_cloned_mask", tmp_path / "one")
    saved("attention_with_a_cloned_mask", tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert str(Path(__file__).parents[3]).encode() not in content
        assert b".py" not in content


def test_the_portable_artifact_is_the_stage_with_weights_as_arguments(tmp_path):
    saved("mlp_with_skips", tmp_path / "out")
    for stage in read_stages(tmp_path / "out").stages:
        content = (tmp_path / "out" / stage.file).with_suffix(".mlirbc").read_bytes()
        with make_ir_context() as context:
            text = str(stablehlo.deserialize_portable_artifact(context, content))
        main = re.search(r"@main\((.*?)\) ->", text)
        assert main is not None
        weights = stage.weight_bytes // (8 * 8 * 4)
        types = re.findall(r"tensor<.*?>", main[1])
        assert types == ["tensor<8x8xf32>"] * weights + ["tensor<3x8xf32>"] * len(stage.inputs)


def compiled(content):
    """What XLA makes of a portable artifact, without JAX: a function of arrays to arrays."""
    device = jax.devices()[0]
    with make_ir_context() as context:
        text = str(stablehlo.deserialize_portable_artifact(context, content))
    options = xla_client.CompileOptions()
    program = device.client.compile_and_load(text, xla_client.DeviceList((device,)), options)

    def call(*arrays):
        done = program.execute_sharded([jax.device_put(a, device) for a in arrays])
        return [np.asarray(one) for (one,) in done.disassemble_into_single_device_arrays()]

    return call


def test_the_portable_artifacts_give_what_the_function_gives(tmp_path):
    """Compiled by XLA's client as another tool would: weights in their order, inputs, results."""
    case, leaves = saved("mlp_with_skips", tmp_path / "out")
    manifest = read_stages(tmp_path / "out")
    assert len(manifest.stages) > 1
    known = {info.name: x for info, x in zip(manifest.inputs, leaves, strict=True)}
    for stage in manifest.stages:
        path = tmp_path / "out" / stage.file
        with np.load(path.with_suffix(".npz")) as file:
            weights = [file[f"w{i}"] for i in range(len(file.files))]
        results = compiled(path.with_suffix(".mlirbc").read_bytes())(
            *weights, *(known[tensor.name] for tensor in stage.inputs)
        )
        known |= {t.name: x for t, x in zip(stage.outputs, results, strict=True)}
    (name,) = (info.name for info in manifest.outputs)
    np.testing.assert_allclose(known[name], case.fn(*case.args), rtol=1e-5, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    saved("integers_and_narrow_floats", tmp_path / "out")
    return tmp_path / "out"


def test_a_stage_refuses_inputs_that_are_not_its_own(folder):
    stage = next(s for s in read_stages(folder).stages if s.inputs)
    load = load_stage(folder, stage)
    name = stage.inputs[0].name
    with pytest.raises(InputError, match=f"the input '{name}' is missing"):
        load({})
    with pytest.raises(InputError, match=r"is float32\[1\], expected float32\[4, 8\]"):
        load({t.name: jnp.ones(1) for t in stage.inputs})


def test_files_that_are_no_stage_are_refused(folder):
    stage = read_stages(folder).stages[0]
    file = folder / stage.file
    whole = file.read_bytes()
    for content in (b"", b"\0" * 64, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"expected a stage of jax\.export"):
            load_stage(folder, stage)
    file.write_bytes(whole)
    other = msgspec.structs.replace(stage, outputs=())
    with pytest.raises(FileFormatError, match="its outputs are not those of the manifest"):
        load_stage(folder, other)


def test_files_that_hold_no_weights_are_refused(folder):
    stage = next(s for s in read_stages(folder).stages if s.weight_bytes)
    file = (folder / stage.file).with_suffix(".npz")
    for content in (b"", b"PK\3\4", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match="holds no weights"):
            load_stage(folder, stage)
    np.savez(file, w0=np.zeros((2, 2), np.uint8), w1=np.zeros((2, 2), np.uint8))
    with pytest.raises(FileFormatError, match=r"w\d is .*expected"):
        load_stage(folder, stage)
    file.unlink()
    with pytest.raises(InputError):
        load_stage(folder, stage)


def test_weights_without_a_hash_are_not_read(folder, tmp_path):
    """Not even those that a link leads to, out of the folder."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    stage = next(s for s in manifest["stages"] if s["weight_bytes"])
    name = f"stage-{stage['chip']:02}.npz"
    del stage["sha256"][name]
    (folder / name).rename(tmp_path / "outside.npz")
    (folder / name).symlink_to(tmp_path / "outside.npz")
    whole = path.read_bytes()
    path.write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match=rf"sha256 has no hash of '{name}', which the stage"):
        run_stages(folder, count=1)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=rf"{name}: is a link"):
        run_stages(folder, count=1)


def test_what_jax_of_another_version_exported_is_refused(folder):
    stage = read_stages(folder).stages[0]
    file = folder / stage.file
    exported = export.deserialize(bytearray(file.read_bytes()))
    newer = dataclasses.replace(exported, calling_convention_version=99)
    file.write_bytes(newer.serialize())
    with pytest.raises(FileFormatError, match=r"version 99 of jax\.export, expected \d+ to \d+ \("):
        load_stage(folder, stage)


def test_what_cannot_be_saved_is_said_before(tmp_path, monkeypatch):
    case = made("mlp_with_skips")
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), case.args[0])
    trace = jaxpart.trace(case.fn, shapes, case.args[1], param_argnums=0)
    stages = trace.stages([0] * len(trace.graph.nodes))
    with pytest.raises(InputError, match="no parameters are placed"):
        stages.save(tmp_path / "out")
    stages.place(case.args[0])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(InputError, match="holds other files"):
        stages.save(tmp_path / "other")
    monkeypatch.setattr(jax_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jaxpart\[export\]"):
        stages.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_callback_into_python_cannot_be_saved(tmp_path):
    def fn(x):
        return jnp.sin(jax.pure_callback(np.cos, jax.ShapeDtypeStruct(x.shape, x.dtype), x))

    trace = jaxpart.trace(fn, floats(0, 4))
    with pytest.raises(InputError, match="chip 0: JAX cannot export the stage"):
        trace.stages([0] * len(trace.graph.nodes)).save(tmp_path / "out")


def test_the_setting_for_places_is_put_back(tmp_path):
    before = jax.config.values["jax_traceback_in_locations_limit"]
    saved("fused_mlp", tmp_path / "out")
    assert jax.config.values["jax_traceback_in_locations_limit"] == before
