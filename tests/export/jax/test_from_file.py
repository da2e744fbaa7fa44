"""Models of files taken away by way of JAX: what the stages give is what the model gives."""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxpart
from jaxpart.cli import main
from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.jax.files import load_stage
from jaxpart.export.jax.from_file import trace_file
from jaxpart.export.manifest import read_stages
from jaxpart.export.running.run import run_stages
from jaxpart.ingest.stablehlo.module import parse
from jaxpart.problem.mcm import Constraints
from tests.support.full_disk import FULL, fill_up
from tests.support.functions import rising_chips
from tests.support.lowered_functions import CASES
from tests.support.modules import unit_module

pytest.importorskip("flatbuffers", reason="stages of JAX are written with the extra `export`")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PROGRAMS = Path(__file__).parents[2] / "ingest" / "programs"
FREE = dataclasses.replace(unit_module(4), constraints=Constraints(no_skip=False, triangle=False))
NAMES = ("mlp", "convolutions", "scan", "branches", "while", "composite", "lookups", "layouts")


def filled(tree, seed=0):
    random = np.random.default_rng(seed)

    def fill(aval):
        if jnp.issubdtype(aval.dtype, jnp.integer):
            return random.integers(0, 5, aval.shape).astype(aval.dtype)
        return random.normal(size=aval.shape).astype(aval.dtype)

    return jax.tree.map(fill, tree)


def taken_away(path, out, param_argnums=(), seed=1):
    """Exports the file on up to four chips."""
    graph = jaxpart.load_graph(path, param_argnums=param_argnums)
    chips = dict(zip([v.name for v in graph.nodes], rising_chips(graph, seed), strict=True))
    options = {"to": "stablehlo", "out": out, "mcm": FREE, "param_argnums": param_argnums}
    return jaxpart.export(path, chips, **options)


def outputs(folder, arrays):
    """What the stages in a folder give, run in order from the files alone."""
    manifest = read_stages(folder)
    known = dict(zip([info.name for info in manifest.inputs], arrays, strict=True))
    for stage in manifest.stages:
        known.update(load_stage(folder, stage)({t.name: known[t.name] for t in stage.inputs}))
    return [np.asarray(known[info.name]) for info in manifest.outputs]


def assert_equal(found, expected):
    for one, other in zip(found, jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "name"),
    [*(("text", n) for n in NAMES), *(("exported", n) for n in ("mlp", "scan", "branches"))],
)
def test_stages_of_a_module_give_what_the_module_gives(form, name, tmp_path):
    fn, *shapes = CASES[name]
    path, leaves = tmp_path / "model", jax.tree.leaves(shapes)
    if form == "text":
        path.write_text(jax.jit(fn, keep_unused=True).lower(*shapes).as_text())
        params = range(len(jax.tree.leaves(shapes[0])))
    else:
        exported = export.export(jax.jit(fn, keep_unused=True))(*shapes)
        path.write_bytes(exported.serialize())
        params = (0,)
    given = filled(shapes)

    taken_away(path, tmp_path / "out", tuple(params))

    manifest = read_stages(tmp_path / "out")
    assert len(manifest.inputs) == len(leaves)
    assert all(stage.weight_bytes == 0 for stage in manifest.stages)
    assert_equal(outputs(tmp_path / "out", jax.tree.leaves(given)), jax.jit(fn)(*given))


def closed_over(x):
    wide = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    narrow = wide.astype(jnp.bfloat16)
    turned = wide + 1j * wide.T
    x = jnp.tanh(x @ wide)
    x = (x.astype(jnp.bfloat16) @ narrow).astype(jnp.float32)
    return jnp.sin(x) @ wide.T, jnp.abs(x.astype(jnp.complex64) @ turned.astype(np.complex64))


@pytest.mark.parametrize("form", ["text", "exported"])
def test_constants_are_weights_with_the_values_of_the_file(form, tmp_path):
    given = filled(jax.ShapeDtypeStruct((4, 32), jnp.float32))
    path = tmp_path / "model"
    if form == "text":
        path.write_text(jax.jit(closed_over).lower(given).as_text())
    else:
        path.write_bytes(export.export(jax.jit(closed_over))(given).serialize())

    taken_away(path, tmp_path / "out", seed=3)

    manifest = read_stages(tmp_path / "out")
    assert [info.name for info in manifest.inputs] == ["arg0"]
    assert sum(stage.weight_bytes for stage in manifest.stages) >= 32 * 32 * (4 + 2 + 8)
    assert_equal(outputs(tmp_path / "out", [given]), jax.jit(closed_over)(given))


def test_types_of_64_bits_are_kept_between_stages(tmp_path):
    with jax.enable_x64(True):

        def fn(x, i):
            y = jnp.cos(x * 2)
            return jnp.sin(y)[i], i + (y > 0).sum()

        given = np.linspace(0, 1, 7), np.arange(3, dtype=np.int64)
        path = tmp_path / "model.mlir"
        path.write_text(jax.jit(fn).lower(*given).as_text())
        expected = jax.tree.map(np.asarray, jax.jit(fn)(*given))

    taken_away(path, tmp_path / "out")

    assert {info.dtype for info in read_stages(tmp_path / "out").inputs} == {"float64", "int64"}
    assert_equal(outputs(tmp_path / "out", given), expected)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "cache"])
def test_stages_of_a_pt2_hold_its_weights_and_give_what_torch_gives(name, tmp_path):
    with np.load(PROGRAMS / "runs.npz") as runs:
        given = [runs[f"{name} in {i}"] for i in range(9) if f"{name} in {i}" in runs]
        expected = [runs[f"{name} out {i}"] for i in range(99) if f"{name} out {i}" in runs]

    taken_away(PROGRAMS / f"{name}.pt2", tmp_path / "out")

    manifest = read_stages(tmp_path / "out")
    states = [  # a buffer that is written is fed, and comes back
        np.zeros(info.shape, info.dtype) for info in manifest.inputs[: -len(given) or None]
    ]
    assert sum(stage.weight_bytes for stage in manifest.stages) > 0
    found = outputs(tmp_path / "out", [*states, *given])
    for one, other in zip(found[-len(expected) :], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_command_writes_stages_that_run_and_agree_with_the_model(tmp_path, capsys):
    fn, *shapes = CASES["mlp"]
    path = tmp_path / "mlp.mlir"
    path.write_text(jax.jit(fn).lower(*shapes).as_text())
    graph = jaxpart.load_graph(path, param_argnums=(0, 1, 2, 3))
    mcm = jaxpart.load_mcm("mcm4")
    jaxpart.partition(graph, mcm, method="greedy").save(tmp_path / "result.json")
    common = [str(path), str(tmp_path / "result.json"), "--param-argnums", "0-3"]

    assert main(["export", *common, "--to", "stablehlo", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", *common, "--to", "mpmd", "--out", str(tmp_path / "mpmd.mlir")]) == 0

    assert "mpmd.fragment" in str(parse((tmp_path / "mpmd.mlir").read_bytes(), "mpmd"))
    report = run_stages(tmp_path / "out", count=2, model=path)
    assert report.compared == 2
    assert report.agrees
    assert report.predicted_per_s is not None
    capsys.readouterr()
    wrong = ["export", *common[:2], "--to", "stablehlo", "--out", str(tmp_path / "other")]
    assert main(wrong) == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_pt2_with_a_free_size_is_compared_with_its_stages(tmp_path, capsys):
    path, out = PROGRAMS / "dynamic.pt2", tmp_path / "out"
    with pytest.raises(InputError) as refused:
        trace_file(path)
    symbol = str(refused.value).split("hangs on ")[1].split(",")[0]
    graph = jaxpart.load_graph(path, dims={symbol: 4})
    chips = dict(zip([v.name for v in graph.nodes], rising_chips(graph, 1), strict=True))
    jaxpart.export(path, chips, to="stablehlo", out=out, mcm=FREE, dims={symbol: 4})
    run = ["run", str(out), "--count", "2", "--model", str(path)]

    assert main([*run, "--dim", f"{symbol}=4"]) == 0

    assert "compared    2 inferences with the whole model: outputs " in capsys.readouterr().out
    assert main(run) == 2
    assert f"its size hangs on {symbol}, which is free" in capsys.readouterr().err


MINE = """func.func @main(%x: tensor<4x8xf32>) -> (tensor<4x8xf32>, tensor<4x8xf32>) {
  %0 = stablehlo.custom_call @mine(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %1 = stablehlo.tanh %x : tensor<4x8xf32>
  %2 = stablehlo.sine %1 : tensor<4x8xf32>
  return %1, RESULT : tensor<4x8xf32>, tensor<4x8xf32>
}"""


def test_what_jax_cannot_run_is_refused_where_an_output_needs_it(tmp_path):
    path = tmp_path / "mine.mlir"
    path.write_text(MINE.replace("RESULT", "%0"))
    with pytest.raises(InputError, match="holds custom_call_mine, which JAX has no function for"):
        trace_file(path)

    path.write_text(MINE.replace("RESULT", "%2"))
    assert len(trace_file(path).graph.nodes) == 2


SORT = """func.func @main(%x: tensor<5xf32>, %y: tensor<5xi32>) -> (tensor<5xf32>, tensor<5xi32>) {
  %0:2 = "stablehlo.sort"(%x, %y) <{dimension = 0 : i64, is_stable = true}> ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>, %c: tensor<i32>, %d: tensor<i32>):
      %1 = stablehlo.compare HOW : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %1 : tensor<i1>
  }) : (tensor<5xf32>, tensor<5xi32>) -> (tensor<5xf32>, tensor<5xi32>)
  return %0#0, %0#1 : tensor<5xf32>, tensor<5xi32>
}"""


def test_a_sort_is_run_if_it_is_one_of_jax_and_else_refused(tmp_path):
    path = tmp_path / "sort.mlir"
    given = np.array([3, 1, 2, 5, 4], np.float32), np.arange(5, dtype=np.int32)

    path.write_text(SORT.replace("HOW", "LT, %a, %b, FLOAT"))
    taken_away(path, tmp_path / "out")
    assert_equal(outputs(tmp_path / "out", given), lax.sort([*map(jnp.asarray, given)], num_keys=1))

    def two_keys(x, y):
        return lax.sort((y, x), num_keys=2)

    path.write_text(jax.jit(two_keys).lower(*given).as_text())
    taken_away(path, tmp_path / "out")
    assert_equal(outputs(tmp_path / "out", given), two_keys(*given))

    for how in ("GT, %a, %b, FLOAT", "LT, %b, %a, FLOAT"):
        path.write_text(SORT.replace("HOW", how))
        with pytest.raises(InputError, match="holds sort, which JAX"):
            trace_file(path)
        assert jaxpart.load_graph(path).total_flops > 0


def test_constants_that_the_file_leaves_out_are_refused(tmp_path):
    path = tmp_path / "elided.mlir"
    path.write_text("""func.func @main(%x: tensor<2x64xf32>) -> tensor<2x64xf32> {
      %w = stablehlo.constant dense_resource<__elided__> : tensor<64x64xf32>
      %0 = stablehlo.dot %x, %w : (tensor<2x64xf32>, tensor<64x64xf32>) -> tensor<2x64xf32>
      return %0 : tensor<2x64xf32>
    }""")

    with pytest.raises(FileFormatError, match=r"constant of float32\[64, 64\] has no elements"):
        trace_file(path)


def changed_pt2(path, change):
    """A copy of an archive with another list of weights, or none."""
    with zipfile.ZipFile(PROGRAMS / "mlp.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("weights_config.json"):
                config = json.loads(content)
                content = change(config["config"]) or json.dumps(config).encode()
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("scale") and None, "'scale' is not listed in the archive"),
        (lambda c: c["scale"].update(use_pickle=True), "'scale' is pickled"),
        (lambda c: c["scale"].update(path_name="weight_9"), "no member mlp/data/weights/weight_9"),
        (lambda c: c["scale"]["tensor_meta"].update(dtype=8), r"is float64\[4\], expected float32"),
        (
            lambda c: c["scale"]["tensor_meta"].update(storage_offset={"as_int": 1}),
            "has 16 bytes, expected more",
        ),
        (
            lambda c: c["scale"]["tensor_meta"].update(strides=[{"as_int": -1}]),
            "a size that is not known",
        ),
        (lambda c: b"{", "Input data was truncated"),
    ],
)
def test_weights_of_a_pt2_that_are_missing_or_damaged_are_refused(change, said, tmp_path):
    changed_pt2(tmp_path / "mlp.pt2", change)

    with pytest.raises(InputError, match=said):
        trace_file(tmp_path / "mlp.pt2")


def test_weights_that_share_a_storage_are_views_of_it(tmp_path):
    def share(config):
        meta = config["second.weight"]["tensor_meta"]  # [4, 16], rows one after the other
        meta["strides"] = [{"as_int": 0}, {"as_int": 2}]
        meta["storage_offset"] = {"as_int": 3}

    changed_pt2(tmp_path / "mlp.pt2", share)
    before, after = (trace_file(p / "mlp.pt2").args for p in (PROGRAMS, tmp_path))

    (old,), (new,) = ([x for x in args if x.shape == (4, 16)] for args in (before, after))
    assert all(np.array_equal(row, old.reshape(-1)[3:35:2]) for row in new)


def test_each_kind_of_model_goes_where_it_can_and_is_told_so(tmp_path):
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"\x08\x0a\x12\x04mine:\x00")
    mlir = tmp_path / "model.mlir"
    mlir.write_text(MINE)
    out = tmp_path / "out"

    with pytest.raises(FileFormatError, match="an ONNX model goes --to onnx"):
        jaxpart.export(onnx, {}, to="stablehlo", out=out)
    with pytest.raises(FileFormatError, match="is StableHLO, expected an ONNX model"):
        jaxpart.export(mlir, {}, to="onnx", out=out)
    with pytest.raises(FileFormatError, match=r"a zip, as torch\.export saves"):
        jaxpart.export(PROGRAMS / "mlp.pt2", {}, to="onnx-annotated", out=out)
    with pytest.raises(InputError, match="says itself what its parameters are"):
        jaxpart.export(PROGRAMS / "mlp.pt2", {}, to="mpmd", out=out, param_argnums=0)
    with pytest.raises(InputError, match="expected copy_data of ONNX alone"):
        jaxpart.export(mlir, {}, to="mpmd", out=out, copy_data=True)
    mlir.write_text("{}")
    with pytest.raises(InputError, match="is JSON"):
        jaxpart.export(mlir, {}, to="mpmd", out=out)
    assert not out.exists()


def test_a_disk_that_fills_up_leaves_the_old_text_of_shardy(tmp_path, monkeypatch):
    out = tmp_path / "placed.mlir"
    out.write_bytes(b"old")
    fill_up(monkeypatch)

    chips = [0] * len(jaxpart.load_graph(PROGRAMS / "mlp.pt2").nodes)
    with pytest.raises(InputError, match=f"placed.mlir: {FULL}"):
        jaxpart.export(PROGRAMS / "mlp.pt2", chips, to="mpmd", out=out, mcm=FREE)

    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]
