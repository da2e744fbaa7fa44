"""The throughput of device programs: inputs, the budget of time, forecasts and the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import inner_loops
import jax
import numpy as np
import pytest
from inner_loops import Bench, Floor
from pairs import greedy_start
from program_runs import Forecast, run_of

ROOT = Path(__file__).parents[3]
SMALL = "squeezenet", "mcm4"


@pytest.fixture
def rates(monkeypatch):
    """The device's rates, not measured."""
    monkeypatch.setattr(inner_loops, "_additions_per_s", lambda calls, size, steps: 1e9)


@pytest.fixture(scope="module")
def small():
    return greedy_start(*SMALL)


def test_orders_that_are_timed_are_orders_of_the_graph(small):
    problem, start = small

    run = run_of("order", problem, start, 4, 0)

    orders = np.asarray(run.call())
    position = np.argsort(orders, axis=1)
    first, second = problem.contracted_pairs.T
    assert (position[:, first] < position[:, second]).all()
    assert len({tuple(order) for order in orders.tolist()}) == 4
    assert run.candidates == 4
    assert run.num_bytes > 2 * 4 * orders.size  # keys and orders, and the problem


@pytest.mark.parametrize("name", ["sample", "gradient"])
def test_programs_get_a_value_for_each_input(small, name):
    problem, start = small
    run = run_of(name, problem, start, 4, 0)

    assert jax.tree.leaves(jax.eval_shape(run.call))  # a shape in place of a value would raise
    assert (run.candidates, run.devices) == (4, 1)


def test_a_forecast_is_that_of_the_device_if_there_is_one(tmp_path):
    row = {"program": "evaluate", "target": "h100", "devices": 1, "predicted_per_s": 5.0}
    rows = [
        {**row, "batch": 64, "launches": 40},
        {**row, "batch": 4096, "launches": 46},
        {**row, "batch": 4096, "launches": 9, "devices": 4},
        {**row, "batch": 512, "error": "no memory"},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": rows}))

    h100 = Forecast.of("NVIDIA H100 80GB HBM3", "gpu", path)
    assert h100.target == "h100"
    known = {"launches": 46, "predicted_candidates_per_s": 5.0, "forecast_devices": 1}
    assert h100.figures("evaluate", 4096) == known
    assert h100.figures("evaluate", 2048) == {**known, "predicted_candidates_per_s": None}
    nothing = dict.fromkeys(known)
    assert h100.figures("project", 64) == nothing
    assert Forecast.of("NVIDIA A100", "gpu", path).figures("evaluate", 64) == nothing
    assert Forecast.of("TPU v5 lite", "tpu").target == "v5e"
    assert Forecast.of("cpu", "cpu").figures("evaluate", 64)["launches"] > 1000


def test_a_forecast_for_one_device_is_told_apart_from_that_for_several(tmp_path):
    row = {"program": "evaluate", "target": "h100", "batch": 4096}
    rows = [
        {**row, "devices": 1, "launches": 46, "predicted_per_s": 5.0},
        {**row, "devices": 4, "launches": 47, "predicted_per_s": 20.0},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": rows}))
    h100 = Forecast.of("NVIDIA H100 80GB HBM3", "gpu", path)

    def figures(batch, devices):
        return tuple(h100.figures("evaluate", batch, devices).values())

    assert figures(4096, 1) == (46, 5.0, 1)
    assert figures(4 * 4096, 4) == (47, 20.0, 4)  # a batch of the file is that of each device
    assert figures(4096, 4) == (47, None, 4)
    assert figures(2 * 4096, 2) == (46, None, 1)


PROGRAM = """
import json, jax
import tests.conftest
from pairs import greedy_start
from program_runs import run_of

problem, start = greedy_start("squeezenet", "mcm4")
found = {}
for devices in (1, 2):
    jax.local_device_count = lambda: devices
    run = run_of("act", problem, start, 8, 0)
    drawn = jax.eval_shape(run.call)
    found[devices] = [run.devices, run.num_bytes, drawn.actions.taken.shape]
print(json.dumps(found))
"""


def test_two_devices_that_share_a_batch_of_the_policy_draw_it_once(tmp_path):
    studies = ROOT / "scripts" / "studies"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{studies}",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    (one, one_bytes, shape), (two, two_bytes, shape_of_two) = found["1"], found["2"]

    assert (one, two) == (1, 2)
    assert shape_of_two == shape
    assert shape[-1] == 8
    assert one_bytes < two_bytes < 2 * one_bytes  # both read the inputs, one writes each result


def test_a_row_has_the_time_of_one_program_and_its_floor(rates, monkeypatch):
    taken_s = iter([3.02, 0.02, 0.01, 0.03])
    monkeypatch.setattr(inner_loops, "_seconds", lambda run: next(taken_s))
    bench = Bench(3, 60.0)

    bench.add("temper", "4 sweeps", 8, lambda: None, Floor(2000, 0), devices=1, calls=4)

    (row,) = bench.rows
    assert row["loop"] == "temper"
    assert row["device"] == jax.devices()[0].device_kind
    assert row["run_s"] == pytest.approx(0.02 / 4)
    assert row["compile_s"] == pytest.approx(3.0)
    assert row["candidates_per_s"] == pytest.approx(8 / row["run_s"])
    # Eight bytes for each addition in memory.
    assert row["floor_candidates_per_s"] == pytest.approx(8e9 / 2000)


def test_batches_without_time_are_left_out_but_never_the_first(rates):
    bench = Bench(1, 0.0)
    for program in ("a", "b"):
        bench.share(1)
        assert bench.has_time_for(64)
        assert not bench.has_time_for(4096)
        bench.leave_out(program, 4096)
    assert bench.left_out == [{"loop": "a", "batch": 4096}, {"loop": "b", "batch": 4096}]
    bench = Bench(1, 100.0)
    bench.share(2)
    assert bench.has_time_for(64)
    assert bench.has_time_for(4096)


def test_every_program_is_measured_in_its_batches_and_the_file_is_that_of_the_device(
    rates, tmp_path, monkeypatch
):
    asked = []
    for name in ("_labels", "_orders", "_program"):
        monkeypatch.setattr(
            inner_loops,
            name,
            lambda bench, name, problem, start, batch, _: asked.append((name, batch)),
        )
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    options = ["--graph", SMALL[0], "--mcm", SMALL[1], "--batch", "4096", "64", "--orders", "512"]
    monkeypatch.setattr(sys, "argv", ["inner_loops", *options, "--json", str(tmp_path)])

    assert inner_loops.main() == 0

    assert asked[:2] == [("evaluate", 64), ("evaluate", 4096)]
    assert ("slice", 64) in asked
    assert ("probe", 512) in asked
    assert {name for name, _ in asked} == set(inner_loops._PROGRAMS)
    assert max(batch for name, batch in asked if name == "gradient") < 4096
    document = json.loads((tmp_path / "inner.json").read_bytes())
    assert document["settings"]["seconds"] == 1800
    assert inner_loops.file_of("NVIDIA H100 80GB HBM3") == "inner-nvidia-h100-80gb-hbm3.json"
