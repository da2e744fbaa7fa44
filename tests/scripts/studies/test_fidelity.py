"""The study of fidelity: its statistics, its cuts, and a tiny run that is taken up again."""

import json
from pathlib import Path

import export_tables
import fidelity
import fidelity_figures
import fidelity_models
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from jaxpart.problem.graph import Graph, Node
from tests.support.onnx_models import model, node, numbers, out, value
from tests.support.stages import save


def test_a_prediction_is_compared_with_what_was_measured():
    measured = np.array([1.0, 2.0, 4.0, 3.0])

    same = fidelity_figures.fidelity(measured, measured)
    thrice = fidelity_figures.fidelity(3 * measured, measured)
    reverse = fidelity_figures.fidelity(5 - measured, measured)
    # The ranks agree; ratios are 1, 2, 4 and 3, with the median 2.5.
    square = fidelity_figures.fidelity(measured**2, measured)

    assert (same.pearson, same.spearman, same.error, same.scaled) == pytest.approx((1, 1, 0, 0))
    assert (thrice.pearson, thrice.error, thrice.scaled) == pytest.approx((1, 2, 0))
    assert (reverse.pearson, reverse.spearman) == pytest.approx((-1, -1))
    assert square.spearman == pytest.approx(1)
    assert square.error == pytest.approx((0 + 1 + 3 + 2) / 4)
    assert square.scaled == pytest.approx((0.6 + 0.2 + 0.6 + 0.2) / 4)
    assert square.count == 4


def test_equal_bottlenecks_have_no_correlation():
    found = fidelity_figures.fidelity(np.ones(5), np.arange(1.0, 6.0))

    assert np.isnan(found.pearson)
    assert np.isnan(found.spearman)


def row_of_nodes(name, rng, factor=1.0, runtime="onnx"):
    flops, accessed = (10 ** rng.uniform(5, 9, 20) for _ in range(2))
    seconds = factor * (np.maximum(flops / 1e11, accessed / 1e10) + 1e-6)
    columns = {"flops": flops, "bytes": accessed, "seconds": seconds}
    row = {"part": "nodes", "graph": name, "runtime": runtime, "device": "d"}
    row["ops"] = ["even", "odd"] * 10
    return row | {key: column.tolist() for key, column in columns.items()}


def row_of_partition(nodes, cuts):
    stages = [sum(part) for part in np.split(np.array(nodes["seconds"]), cuts)]
    row = {"part": "partition", "graph": nodes["graph"], "method": "even", "seed": sum(cuts)}
    halves = [stages, [2 * s for s in stages]]
    return {**row, "chips": len(stages), "cuts": cuts, "measured_s": stages, "halves_s": halves}


def test_each_model_is_predicted_from_the_others_of_its_runtime():
    rng = np.random.default_rng(0)
    nodes = [row_of_nodes(name, rng) for name in "abc"]
    nodes += [row_of_nodes("slow", rng, 100.0), row_of_nodes("alone", rng, 1.0, "jax")]
    partitions = [row_of_partition(one, [k, k + 4]) for one in nodes for k in range(1, 15, 3)]

    judged = {one.model: one for one in fidelity_figures.judge([*nodes, *partitions])}

    assert list(judged) == ["a", "b", "c", "slow"]  # the last one has no others
    slow = judged["slow"]
    for name, one in judged.items():
        profiled = fidelity_figures.fidelity(one.predicted_s["profiled"], one.measured_s)
        assert profiled.error == pytest.approx(0, abs=1e-9), name
    # Fitted to the others, which are a hundred times as fast; ranks are right all the same.
    launch = fidelity_figures.fidelity(slow.predicted_s["launch"], slow.measured_s)
    assert launch.error == pytest.approx(0.99, abs=0.001)
    assert launch.spearman == pytest.approx(1)
    assert launch.scaled < 1e-3
    # Only the time of starting a node is missing; the chip of the presets is another one.
    assert (slow.predicted_s["calibrated"] < slow.predicted_s["launch"]).all()
    assert (slow.predicted_s["uncalibrated"] < slow.predicted_s["calibrated"]).all()
    assert (slow.ceiling.pearson, slow.ceiling.error) == pytest.approx((1, 0.5))
    whole = fidelity_figures.overall([slow], "launch")
    expected = (launch.pearson, launch.spearman, launch.error, launch.scaled)
    assert (whole.pearson, whole.spearman, whole.error, whole.scaled) == pytest.approx(expected)


def test_the_table_has_a_line_for_each_prediction_and_model():
    rng = np.random.default_rng(0)
    nodes = [row_of_nodes(name, rng) for name in "ab"]
    partitions = [row_of_partition(one, [k, k + 4]) for one in nodes for k in range(1, 15, 3)]

    judged = fidelity_figures.judge([*nodes, *partitions])
    rows = json.loads(json.dumps([one.row() for one in judged]))
    lines = export_tables.fidelity(rows).splitlines()

    assert lines[5] == (
        "| profiled: the sum of measured nodes | 10 | 1.000 | 1.000 | 0.0% | 0.0% |"
    )
    assert lines[7].startswith("| model | runtime | nodes | partitions | uncalibrated |")
    assert lines[9].startswith("| a | onnx | 20 | 5 | ")
    assert lines[10].endswith("| 1.000, 0.0% | 1.000, 50.0% |")
    assert lines[12].startswith("| model | operator | nodes | prediction |")
    again = [fidelity_figures.Judged.of(row) for row in rows]
    assert fidelity.report(again) == fidelity.report(judged)


def test_the_operator_that_takes_longer_in_stages_is_named():
    nodes = row_of_nodes("a", np.random.default_rng(0))
    nodes["seconds"] = [1e-3] * 20
    partitions = [row_of_partition(nodes, [k, k + 5]) for k in range(1, 14)]
    nodes["seconds"] = [1e-3, 2e-4] * 10  # "odd" was predicted to take a fifth of what it does

    found = fidelity_figures.failures(nodes, partitions, np.array(nodes["seconds"]), "profiled")

    worst = max(found, key=lambda one: one.share)
    assert (worst.operator, worst.nodes) == ("odd", 10)
    assert worst.predicted_s == pytest.approx(2e-3)
    assert worst.found_s == pytest.approx(1e-2, rel=0.1)
    assert worst.share == pytest.approx(0.4, rel=0.1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.sampled_from(["random", "even"]))
def test_cuts_leave_no_stage_empty(seed, chips, kind):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(chips, 30))
    flops = rng.choice([0.0, 1.0, 1e6], count)
    graph = Graph(tuple(Node(f"n{v}", "op", f, 1.0) for v, f in enumerate(flops.tolist())))

    cuts = fidelity.cuts_of(graph, chips, kind, rng)

    assigned = fidelity.chips_of(cuts, count)
    assert sorted(assigned) == assigned
    assert set(assigned) == set(range(chips))
    assert cuts == [assigned.index(chip) for chip in range(1, chips)]


def test_even_cuts_share_out_the_flops():
    graph = Graph(tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(1000)))

    cuts = fidelity.cuts_of(graph, 4, "even", np.random.default_rng(0))

    sizes = np.diff([0, *cuts, 1000])
    assert sizes.min() > 250 * (1 - 2 * 0.3)
    assert sizes.max() < 250 * (1 + 2 * 0.3) + 2


def test_a_light_model_gets_weights_that_are_stored():
    light = model(
        [node("ConstantOfShape", "shape", "w"), node("MatMul", "x w", "y")],
        [value("x", [2, 3])],
        [value("y", [2, 4])],
        [numbers("shape", [3, 4])],
    )

    heavy = fidelity_models.with_weights(light)

    onnx.checker.check_model(heavy)
    assert [n.op_type for n in heavy.graph.node] == ["MatMul"]
    weights = {t.name: numpy_helper.to_array(t) for t in heavy.graph.initializer}
    assert weights["w"].shape == (3, 4)
    assert len(np.unique(weights["w"])) == 12


def tiny(name, folder):
    """Two models of each runtime, of milliseconds."""
    if name.startswith("jax"):
        arguments = fidelity_models._transformer(1, 8 * int(name[-1]), 4, name == "jax1")
        return fidelity_models._Traced(name, *arguments)
    size = 16 * int(name[-1])
    rng = np.random.default_rng(0)
    layers = [node("MatMul", f"t{k} w", f"t{k + 1}", name=f"layer {k}") for k in range(9)]
    whole = model(
        layers,
        [value("t0", [size, size])],
        [out("t9")],
        [numbers("w", rng.normal(size=(size, size)) / size, np.float32)],
    )
    return fidelity_models.Onnx(name, save(folder / f"{name}.onnx", whole))


def test_a_tiny_study_runs_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    asked = []

    def subject(name, folder):
        asked.append(name)
        return tiny(name, folder)

    monkeypatch.setattr(fidelity, "subject", subject)
    path, picture = tmp_path / "fidelity.json", tmp_path / "fidelity.png"
    names = ["onnx1", "onnx2", "jax1", "jax2"]

    def run(partitions, *more):
        arguments = ["--json", str(path), "--count", "1", "--partitions", str(partitions), *more]
        monkeypatch.setattr("sys.argv", ["fidelity.py", "--models", *names, *arguments])
        return fidelity.main()

    assert run(1) == 0
    assert run(2, "--picture", str(picture)) == 0

    assert asked == names * 2
    rows = json.loads(path.read_text())["rows"]
    parts = ["nodes", "partition"] * 4 + ["partition"] * 4 + ["judged"] * 4
    assert [row["part"] for row in rows] == parts
    for row in rows:
        if row["part"] == "partition":
            assert len(row["measured_s"]) == row["chips"] == len(row["cuts"]) + 1
            assert min(row["measured_s"]) > 0 or row["graph"].startswith("jax")
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.endswith("%")]
    assert len([line for line in lines if " profiled " in line]) == 2 * 5
    assert len([line for line in lines if " itself " in line]) == 2 * 4
    assert picture.read_bytes().startswith(b"\x89PNG")

    assert run(2) == 0
    assert asked == names * 2  # nothing was left to measure
    assert run(2, "--seed", "1") == 2
    assert "made with" in capsys.readouterr().err


def test_an_unknown_model_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fidelity.py", "--models", "none"])

    assert fidelity.main() == 2

    assert "no model is named 'none', expected one of squeezenet" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_of_the_data_set_can_be_run_stage_by_stage():
    one = fidelity_models.subject("lstm-lm", Path())
    count = len(one.graph.nodes)

    taken = one.walk(fidelity.chips_of([count // 2], count))(1)

    assert len(taken) == 2
    assert min(taken) > 0
    assert one.graph.element_bytes == 4
