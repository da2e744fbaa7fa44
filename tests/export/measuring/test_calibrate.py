"""A device is fitted to measured nodes: the true one is found, in spite of noise and odd nodes."""

import dataclasses
from pathlib import Path

import calibrate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpart.errors import InputError
from jaxpart.export.measuring.calibrate import Device, calibrated, toml
from jaxpart.ingest.seconds import read_seconds, with_seconds, write_seconds
from jaxpart.problem.graph import Graph, Node
from jaxpart.problem.mcm import load_mcm
from jaxpart.problem.problem import Problem
from tests.support.onnx_models import model, node, out, value
from tests.support.stages import save


def nodes_of(rng, count, launch_s=0.0, peak=1e11, bandwidth=1e10):
    """Nodes as a device of these figures takes them, bound by the one and the other."""
    flops = 10 ** rng.uniform(4, 9, count)
    accessed = flops / (peak / bandwidth) * 10 ** rng.uniform(-2, 2, count)
    seconds = np.maximum(flops / peak, accessed / bandwidth) + launch_s
    return flops, accessed, seconds


def graph_of(flops, accessed, seconds):
    rows = zip(flops.tolist(), accessed.tolist(), seconds.tolist(), strict=True)
    return Graph(tuple(Node(f"n{v}", "op", f, b, seconds=s) for v, (f, b, s) in enumerate(rows)))


@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(8, 14),
    st.floats(8, 12),
    st.sampled_from([0.0, 1e-6, 1e-4]),
)
def test_a_device_is_found_from_its_own_times(seed, peak, bandwidth, launch_s):
    rng = np.random.default_rng(seed)
    peak, bandwidth = 10**peak, 10**bandwidth
    graph = graph_of(*nodes_of(rng, 40, launch_s, peak, bandwidth))

    device = calibrated([graph])

    assert device.error < 1e-3
    assert device.peak_flops == pytest.approx(peak, rel=0.02)
    assert device.sram_bandwidth == pytest.approx(bandwidth, rel=0.02)
    assert device.launch_s == pytest.approx(launch_s, rel=0.05, abs=2e-3 * max_s(graph))
    assert device.nodes == 40


def max_s(graph):
    return max(node.seconds for node in graph.nodes)


def test_noise_and_a_few_odd_nodes_change_little():
    rng = np.random.default_rng(0)
    flops, accessed, seconds = nodes_of(rng, 300, 5e-6)
    seconds *= np.exp(rng.normal(0, 0.1, 300))
    odd = rng.choice(300, 15, replace=False)
    seconds[odd] *= 20

    device = calibrated([graph_of(flops, accessed, seconds)])

    assert device.peak_flops == pytest.approx(1e11, rel=0.15)
    assert device.sram_bandwidth == pytest.approx(1e10, rel=0.15)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_no_device_near_the_fitted_one_is_better_by_a_hundredth(seed):
    rng = np.random.default_rng(seed)
    flops, accessed, seconds = nodes_of(rng, 30, 1e-5)
    seconds *= np.exp(rng.normal(0, 0.5, 30))
    graph = graph_of(flops, accessed, seconds)
    device = calibrated([graph])

    def error(one):
        gaps = np.array(list(one.seconds(graph).values())) - seconds
        sums = [gaps[k : k + size].sum() for size in (1, 4, 16) for k in range(0, 30, size)]
        return np.abs(sums).sum() / (3 * seconds.sum())

    assert error(device) == pytest.approx(device.error)
    assert device.launch_s >= 0
    for _ in range(30):
        factors = np.exp(rng.normal(0, 0.05, 3))
        other = dataclasses.replace(
            device,
            peak_flops=device.peak_flops * factors[0],
            sram_bandwidth=device.sram_bandwidth * factors[1],
            launch_s=device.launch_s * factors[2],
        )
        assert error(other) >= 0.99 * device.error


def test_sums_of_nodes_count_as_nodes_do():
    """Half of the nodes take twice as long, in turn: the median is either, the sum is between."""
    rng = np.random.default_rng(0)
    flops = 10 ** rng.uniform(8, 8.1, 64)
    seconds = flops / 1e11 * np.where(np.arange(64) % 16 < 9, 1.0, 3.0)
    graph = graph_of(flops, np.full(64, 8.0), seconds)

    device = calibrated([graph])

    assert sum(device.seconds(graph).values()) == pytest.approx(seconds.sum(), rel=0.1)


def test_a_slow_graph_counts_no_more_than_a_quick_one():
    rng = np.random.default_rng(0)
    flops, accessed, seconds = nodes_of(rng, 40)
    quick = [graph_of(flops, accessed, seconds * 1e-3)] * 3

    device = calibrated([*quick, graph_of(flops, accessed, seconds)])

    assert device.seconds(quick[0])["n0"] == pytest.approx(seconds[0] * 1e-3, rel=0.01)


def test_what_no_node_shows_is_said():
    rng = np.random.default_rng(0)
    flops = 10 ** rng.uniform(6, 9, 20)
    graph = graph_of(flops, np.full(20, 8.0), flops / 1e11)

    device = calibrated([graph])

    assert device.peak_flops == pytest.approx(1e11)
    assert device.notes == (
        "no measured node is bound by sram_bandwidth: it is the highest rate seen",
    )
    assert device.error < 1e-6


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], "0 nodes were measured"),
        ([(1e6, 1e3, None)] * 5, "0 nodes were measured"),
        ([(1e6, 1e3, 1.0)] * 2, "2 nodes were measured"),
        ([(1e6, 1e3, 0.0)] * 5, "0 of them in more than no time"),
        ([(0.0, 1e3, 1.0)] * 5, "no measured node has FLOP"),
        ([(1e6, 0.0, 1.0)] * 5, "no measured node has FLOP, or none accesses bytes"),
    ],
)
def test_too_little_to_fit_is_refused(nodes, expected):
    made = tuple(Node(f"n{v}", "op", f, b, seconds=s) for v, (f, b, s) in enumerate(nodes))

    with pytest.raises(InputError, match=expected):
        calibrated([Graph(made)] if made else [])


def test_the_file_is_a_module_that_predicts_what_was_fitted(tmp_path):
    device = Device(1.5e11, 2.5e10, 3e-6, 0.125, 40, ("a note\nof two lines",))
    path = tmp_path / "cpu.toml"

    path.write_text(toml(device, device.module('my "cpu"', 3, 2**30, 8e9), "a\ncpu"))

    mcm = load_mcm(path)
    assert (mcm.name, mcm.num_chips, mcm.element_bytes) == ("my 'cpu'", 3, None)
    text = path.read_text()
    assert "# Starting a node takes 3 us more" in text
    assert "# Fitted to 40 measured nodes; error 12.5% of the time." in text
    graph = Graph((Node("a", "op", 3e8, 1e3), Node("b", "op", 1.0, 1e6)))
    expected = list(device.seconds(graph, launch=False).values())
    assert Problem.build(graph, mcm).node_s[:, 0].tolist() == pytest.approx(expected)
    assert device.seconds(graph)["a"] == pytest.approx(expected[0] + 3e-6)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph = graph_of(*nodes_of(np.random.default_rng(0), 30, 1e-5))
    bare = Graph(tuple(Node(v.name, v.op, v.flops, v.bytes_accessed) for v in graph.nodes))
    bare.save("net.json")
    write_seconds("net.csv", {v.name: v.seconds or 0.0 for v in graph.nodes})
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["calibrate.py", *arguments])
    return calibrate.main()


def test_the_script_describes_a_device_from_what_was_measured(files, monkeypatch, capsys):
    common = ["net.json", "--measured", "net.csv", "--out", "cpu.toml", "--chips", "2"]

    assert run(monkeypatch, *common, "--predicted", ".") == 0

    mcm = load_mcm("cpu.toml")
    assert mcm.num_chips == 2
    assert mcm.chips[0].peak_flops == pytest.approx(1e11, rel=0.02)
    printed = capsys.readouterr().out
    assert "starting        10 us a node" in printed
    assert "--mcm cpu.toml leaves the time of starting nodes out;" in printed
    assert "--seconds FILE, of the files below, brings it in:" in printed
    predicted = read_seconds("net.seconds.csv")
    measured = read_seconds("net.csv")
    assert predicted == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["net.json", "net.json", "--measured", "net.csv"], "1 files for 2 models"),
        (["none.json", "--measured", "net.csv"], "none.json"),
        (["net.json", "--measured", "none.csv"], "none.csv: cannot be read"),
        (["net.json"], "is JSON, expected an ONNX model"),
        (["net.json", "a/net.json", "--predicted", "."], "would both go to net.seconds.csv"),
        (["net.json", "net.json", "--dim", "n=1"], "no input of a model has a dimension 'n'"),
        (["net.json", "--resume", "none"], "none: is no folder"),
        (["net.json", "--measured", "net.csv", "--predicted", "none"], "none: is no folder"),
        (["cpu.toml", "--measured", "net.csv"], "cpu.toml: is an input"),
    ],
)
def test_the_script_refuses_what_it_cannot_use(files, monkeypatch, capsys, arguments, expected):
    if "cpu.toml" in arguments:
        (files / "cpu.toml").write_text("")
    before = sorted(files.iterdir())

    assert run(monkeypatch, *arguments, "--out", "cpu.toml") == 2

    printed = capsys.readouterr().err
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert sorted(files.iterdir()) == before


def free(name, dim):
    """Twelve sums, in a batch of free size."""
    nodes = [node("Mul", f"t{k} t{k}", f"t{k + 1}", name=f"n{k}") for k in range(12)]
    return save(Path(name), model(nodes, [value("t0", [dim, 4096])], [out("t12")]))


def test_the_script_sets_free_sizes_and_goes_on_where_it_was_stopped(files, monkeypatch, capsys):
    (files / "a").mkdir()
    free("a/net.onnx", "batch")
    free("net.onnx", "rows")
    jobs = ["a/net.onnx", "net.onnx", "--dim", "batch=4", "--dim", "rows=8", "--count", "3"]
    calls = []
    profile = calibrate.profile

    def noted(*arguments, **options):
        calls.append(profile(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(calibrate, "profile", noted)

    assert run(monkeypatch, *jobs, "--out", "cpu.toml", "--resume", "a") == 0
    assert run(monkeypatch, *jobs, "--out", "cpu.toml", "--resume", "a") == 0

    assert [found.resumed for found in calls] == [0, 0, 3, 3]
    assert [found.graph.nodes[0].flops for found in calls[:2]] == [4 * 4096, 8 * 4096]
    assert "--predicted DIR writes seconds" in capsys.readouterr().out


def test_fitted_seconds_are_those_of_with_seconds():
    graph = graph_of(*nodes_of(np.random.default_rng(1), 5))
    device = Device(1e11, 1e10, 1e-6, 0.0, 5)

    timed = with_seconds(graph, device.seconds(graph))

    assert [v.seconds for v in timed.nodes] == list(device.seconds(graph).values())
