"""The fastest of a few partitions by measurement is the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpart
from jaxpart.cli import main
from jaxpart.export.measuring import choice
from jaxpart.export.measuring.choice import Measured, chosen, measured, table
from jaxpart.export.targets import read_model
from jaxpart.results.result import Result
from tests.support.onnx_models import model, node, numbers, out, value
from tests.support.stages import save

LAYERS = 12


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    layers = [node("MatMul", f"t{k} w", f"t{k + 1}", name=f"layer {k}") for k in range(LAYERS)]
    whole = model(
        layers,
        [value("t0", [32, 32])],
        [out(f"t{LAYERS}")],
        [numbers("w", rng.normal(size=(32, 32)) / 8, np.float32)],
    )
    return save(tmp_path / "net.onnx", whole)


@pytest.fixture
def result(path):
    graph = jaxpart.from_onnx(path)
    mcm = jaxpart.load_mcm("mcm4")
    return jaxpart.partition(graph, mcm, alternatives=3, max_samples=200, time_limit_s=None)


def test_the_result_and_its_alternatives_are_measured(path, result):
    told = []

    found = measured(read_model(str(path), None), str(path), result, count=2, callback=told.append)

    assert [one.scored for one in found] == [result, *result.alternatives]
    assert len(found) > 1
    assert told == list(range(1, len(found) + 1))
    for one in found:
        assert len(one.stage_s) == one.scored.chips_used
        assert min(one.stage_s) > 0
        assert 0 < one.call_s < 1e-3


def test_partitions_take_turns(path, result, monkeypatch):
    begun = []
    original = choice.walk_of

    def walk_of(folder, **options):
        walk = original(folder, **options)
        return lambda count: (begun.append(folder.name), walk(count))[1]

    monkeypatch.setattr(choice, "walk_of", walk_of)
    found = measured(read_model(str(path), None), str(path), result, count=6)

    assert begun == 2 * [str(i) for i in range(len(found))]


def test_partitions_of_a_file_of_stablehlo_are_measured_on_jax(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def fn(w, x):
        for _ in range(6):
            x = jnp.sin(x @ w)
        return x

    shape = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    (tmp_path / "net.mlir").write_text(jax.jit(fn).lower(shape, shape).as_text())
    common = ["--mcm", "mcm4", "--samples", "200", "--param-argnums", "0"]

    assert main(["partition", "net.mlir", *common, "--measure", "2"]) == 0

    printed = capsys.readouterr().out
    assert printed.count("<- chosen") == 1
    assert "each stage alone on jax " in printed
    assert "us of each stage start it" in printed


def test_the_fastest_by_measurement_is_chosen(result):
    other = result.alternatives[0]
    found = [Measured(result, (1.0, 3.0)), Measured(other, (2.0,) * other.chips_used)]

    best = chosen(result, found)

    assert best.assignment is other.assignment
    assert best.costs is other.costs
    assert (best.lower_bound_s, best.search) == (result.lower_bound_s, result.search)
    assert best.notes[-1].startswith("the fastest of 2 by measurement; by the cost model another")
    assert found[0].binds == 1
    lines = table(found).splitlines()
    assert lines[-1].endswith("<- chosen")
    assert "2,000,000.0" in lines[-1]
    same = chosen(result, [found[1], Measured(result, (0.5,))])
    assert same.assignment is result.assignment
    assert same.notes[-1] == "the fastest of 2 by measurement, too"


def test_the_command_measures_and_saves_what_it_chose(path, capsys):
    code = main(["partition", "net.onnx", "--mcm", "mcm4", "--samples", "200", "--measure", "3"])

    printed = capsys.readouterr().out
    assert code == 0
    assert printed.count("<- chosen") == 1
    assert "distinct partitions, each stage alone on ONNX Runtime" in printed
    graph = jaxpart.from_onnx(path)
    saved = Result.load("net-mcm4.result.json", graph)
    row = next(line for line in printed.splitlines() if line.endswith("<- chosen"))
    predicted_us = float(row.split()[1].replace(",", ""))
    assert saved.bottleneck_s * 1e6 == pytest.approx(predicted_us, abs=0.06)


def test_what_cannot_be_measured_is_refused_before_the_search(path, capsys):
    jaxpart.from_onnx(path).save("net.json")

    assert main(["partition", "net.json", "--mcm", "mcm4", "--measure", "3"]) == 2
    assert "net.json: is JSON, expected an ONNX model" in capsys.readouterr().err
    assert main(["partition", "bert-large", "--measure", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: bert-large: cannot be read")
    assert not list(path.parent.glob("*.result.json"))


def test_partitions_for_measured_seconds_are_measured_too(path, capsys):
    assert main(["profile", "net.onnx", "--count", "2"]) == 0

    common = ["--mcm", "mcm4", "--samples", "200", "--seconds", "net.seconds.csv"]
    assert main(["partition", "net.onnx", *common, "--measure", "2"]) == 0

    printed = capsys.readouterr()
    assert printed.out.count("<- chosen") == 1
    assert "warning" not in printed.err
