"""Measured seconds: read from CSV and from ONNX Runtime's profiler, joined by the nodes' names."""

import gzip
import json
import re
import statistics
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxpart
from jaxpart.cli import main
from jaxpart.errors import InputError
from jaxpart.ingest.seconds import read_seconds, with_seconds, write_seconds
from jaxpart.problem.graph import Graph, Node, Tensor

NAMES = ["a", "b, c", 'd "e"\nf', "ü", " g "]


def graph_of(*names):
    nodes = tuple(Node(name, "add", 1e6, 1e3) for name in names)
    tensors = tuple(Tensor(v, 1e3, (v + 1,)) for v in range(len(names) - 1))
    return Graph(nodes, tensors, name="net")


def saved(tmp_path, content, name="s.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
        st.floats(1e-21, 1e21) | st.just(0.0),
        min_size=1,
    )
)
def test_what_is_written_is_read_again(tmp_path_factory, seconds):
    path = tmp_path_factory.mktemp("seconds") / "s.csv"

    write_seconds(path, seconds)

    assert read_seconds(path) == seconds


def test_the_seconds_of_a_file_are_those_of_the_nodes(tmp_path):
    seconds = {name: 1e-6 * (v + 1) for v, name in enumerate(NAMES)}
    write_seconds(tmp_path / "s.csv", seconds)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = jaxpart.with_seconds(graph_of(*NAMES), tmp_path / "s.csv")
        same = with_seconds(graph_of(*NAMES), seconds)

    assert [node.seconds for node in graph.nodes] == list(seconds.values())
    assert graph == same
    assert graph.tensors == graph_of(*NAMES).tensors


@pytest.mark.parametrize(
    "content",
    [
        "name,seconds\na,1e-3\n",
        "\ufeffname,seconds\r\na,1e-3\r\n",
        "op,seconds,name\nConv, 0.001 ,a\n\n",
        '"name","seconds"\n"a","1e-3"',
        gzip.compress(b"name,seconds\na,1e-3\n", mtime=0),
    ],
)
def test_csv_is_read_in_all_its_forms(tmp_path, content):
    assert read_seconds(saved(tmp_path, content)) == {"a": 1e-3}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        (" \n\t", "the file is empty"),
        ("name,seconds\n", "has no row"),
        ("node,seconds\na,1\n", "line 1: no column 'name', expected one"),
        ("name;seconds\na;1\n", "the columns are 'name;seconds'"),
        ("name,seconds,seconds\na,1,1\n", "line 1: 2 column 'seconds'"),
        ("name,seconds\na,-1e-3\n", "line 2: 'a': seconds is -0.001"),
        ("name,seconds\na,nan\n", "line 2: seconds is 'nan'"),
        ("name,seconds\na,inf\n", "line 2: seconds is 'inf'"),
        ("name,seconds\na,1e999\n", "line 2: 'a': seconds is inf"),
        ("name,seconds\na,1e-30\n", "line 2: 'a': seconds is 1e-30"),
        ("name,seconds\na,1_0\n", "line 2: seconds is '1_0'"),
        ("name,seconds\na,\n", "line 2: seconds is ''"),
        ("name,seconds\na,1 ms\n", "line 2: seconds is '1 ms'"),
        ("name,seconds\na,1\nb,1\na,1\n", "line 4: 'a' stands twice"),
        ("name,seconds\na\n", "line 2: 1 fields, expected 2"),
        ("name,seconds\na,1,2\n", "line 2: 3 fields, expected 2"),
        ('name,seconds\n"a,1\n', "broken CSV"),
        ("name,seconds\na,1\n".encode("utf-16"), "is UTF-16 text, expected CSV in UTF-8"),
        ("name,seconds\na,1\n".encode("utf-16-le"), "is UTF-16 text, expected CSV in UTF-8"),
        ("name,seconds\nü,1\n".encode("latin-1"), "is no UTF-8 text (byte 13)"),
        (b"PK\x03\x04\xff", "is a zip archive, expected CSV in UTF-8"),
        ("[]", "no event is of a node"),
        ("{}", "expected what ONNX Runtime's profiler writes"),
        ("[1]", "expected what ONNX Runtime's profiler writes"),
        ('[{"name": "a_kernel_time", "cat": "Node"', "truncated"),
        ('[{"name": "a_kernel_time", "cat": "Node", "dur": 1}]', "no event is a run of the model"),
        ('[{"name": "a_kernel_time", "cat": "Node", "dur": -1}]', "event 0 ('a_kernel_time')"),
        ('[{"name": "a", "cat": "Node", "ts": -1}]', "event 0 ('a'): began at -1 us"),
        ('[{"name": "a", "cat": "Node", "dur": "5"}]', "$[0].dur"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, content, expected):
    path = saved(tmp_path, content)

    with pytest.raises(InputError) as caught:
        read_seconds(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        with_seconds(graph_of("a"), tmp_path / "none.csv")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "1", None])
def test_a_value_that_is_no_time_is_refused(value):
    with pytest.raises(InputError, match=r"^'a': seconds is "):
        with_seconds(graph_of("a"), {"a": value})


def test_what_does_not_match_is_told_both_ways():
    graph = graph_of("a", "b", "c", "d", "e")

    with pytest.warns(UserWarning, match="no seconds|no nodes") as caught:
        timed = with_seconds(graph, {"a": 1.0, "y": 2.0, "x": 3.0})

    assert [str(w.message) for w in caught] == [
        "seconds: 4 of 5 nodes of net have no seconds ('b', 'c', 'd', ...); the cost model's own "
        "time stands for them",
        "seconds: 2 of 3 names are no nodes of net ('x', 'y'); they are ignored",
    ]
    assert [node.seconds for node in timed.nodes] == [1.0, None, None, None, None]


@pytest.mark.parametrize(("seconds", "what"), [({"x": 1.0}, "it has 'x'"), ({}, "it has none")])
def test_names_of_another_graph_alone_are_refused(seconds, what):
    with pytest.raises(InputError, match=f"no name is a node of net.* such as 'a', but {what}"):
        with_seconds(graph_of("a", "b"), seconds)


def event(name, ts, dur, cat="Node", tid=1):
    fields = {"cat": cat, "pid": 7, "tid": tid, "dur": dur, "ts": ts, "ph": "X", "args": {}}
    return {**fields, "name": name if cat == "Session" else f"{name}_kernel_time"}


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_median_over_the_runs_is_taken_without_the_first(tmp_path_factory, durations):
    events, ts = [event("session_initialization", 0, 5, "Session")], 10
    for run in durations:
        events.append(event("model_run", ts, sum(run) + 2, "Session"))
        ts += 1
        for name, dur in zip("abc", run, strict=True):
            events.append(event(name, ts, dur))
            ts += dur
        ts += 10
    path = tmp_path_factory.mktemp("profile") / "p.json"
    path.write_text(json.dumps(events))

    found = read_seconds(path)

    warm = np.array(durations[1:] or durations)
    for name, column in zip("abc", warm.T.tolist(), strict=True):
        assert found[name] == pytest.approx(1e-6 * statistics.median(column))


def test_nodes_of_bodies_are_part_of_the_node_that_runs_them(tmp_path):
    events = [
        event("model_run", 0, 100, "Session"),
        event("loop", 1, 50),
        event("a", 2, 10),  # in the body: the graph has another node of this name
        event("a", 20, 12),
        event("b", 51, 3),  # begins where the loop ends
        event("a", 60, 5),
        event("b", 61, 4, tid=2),  # beside it, in another thread; a second time in this run
        event("fence_before", 70, 5, "Api"),
        event("late", 120, 5),  # in no run
    ]
    path = saved(tmp_path, json.dumps(events), "p.json")

    assert read_seconds(path) == pytest.approx({"loop": 50e-6, "a": 5e-6, "b": 7e-6})


MODULE = """\
name = "pair"
topology = "chain"
overlap = true
[[chips]]
count = 2
peak_flops = 1e12
sram_bandwidth = 100e9
sram_bytes = 1048576
[links]
bandwidth = 1e9
"""


def test_the_commands_take_measured_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    graph_of("a", "b", "c", "d").save("net.json")
    saved(tmp_path, MODULE, "pair.toml")
    saved(tmp_path, "name,seconds\na,3\nb,1\nc,1\nx,9\n")
    saved(tmp_path, '{"a": 0, "b": 1, "c": 1, "d": 1}', "f.json")
    common = ["--mcm", "pair.toml", "--seconds", "s.csv"]

    partition = ["partition", "net.json", "--samples", "1", "--method", "slice", *common]
    assert main(partition) == 0
    printed = capsys.readouterr()
    assert re.search(r"bottleneck +3000000 us", printed.out)
    assert "warning: s.csv: 1 of 4 nodes of net have no seconds ('d')" in printed.err
    assert "warning: s.csv: 1 of 4 names are no nodes of net ('x')" in printed.err

    assert main(["evaluate", "net.json", "f.json", *common]) == 0
    assert re.search(r"bottleneck +3000000 us", capsys.readouterr().out)
    assert main(["simulate", "net.json", "f.json", "--count", "3", *common]) == 0
    capsys.readouterr()
    assert main(["evaluate", "net.json", "f.json", "--mcm", "pair.toml", "--seconds", "no"]) == 2
    assert capsys.readouterr().err.startswith("error: no: cannot be read")
    assert main([*partition, "--out", "s.csv"]) == 2
    assert "is an input (s.csv)" in capsys.readouterr().err
