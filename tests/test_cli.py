"""The command line: exit codes, one clear line for bad input, files, interrupts."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jaxpart.cli import main
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.results.result import Result

MIB = 2**20
MODULE = """\
name = "pair"
topology = "chain"
overlap = true
element_bytes = 1
[[chips]]
count = 2
peak_flops = 1e12
sram_bandwidth = 100e9
sram_bytes = 1048576
[links]
bandwidth = 1e9
"""
MAX_LOAD = {
    "maxFPGAs": 2,
    "maxCPUs": 1,
    "maxSizePerFPGA": 100.0,
    "nodes": [
        {
            "id": i,
            "supportedOnFpga": 1,
            "cpuLatency": 2.0,
            "fpgaLatency": 1.0,
            "isBackwardNode": 0,
            "colorClass": i,
            "size": 1.0,
        }
        for i in range(2)
    ],
    "edges": [{"sourceId": 0, "destId": 1, "cost": 0.5}],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, cache):
    """Every test runs in a folder of its own; compiled programs stay out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair.toml").write_text(MODULE)
    return tmp_path


def path_graph(count=6, weight_bytes=1e5, **of_first):
    """A path of `count` nodes of 1e8 FLOP each."""
    nodes = tuple(
        Node(f"n{v}", "add", 1e8, 1e3, **(of_first if v == 0 else {})) for v in range(count)
    )
    tensors = tuple(Tensor(v, 1e3, (v + 1,)) for v in range(count - 1))
    weights = tuple(Weight(weight_bytes, (v,)) for v in range(count))
    return Graph(nodes, tensors, weights, "path", 1)


def file_of(**changes):
    """The text of a small graph file, with some of its keys replaced."""
    node = {"op": "add", "flops": 1e6, "bytes_accessed": 1e3}
    content = {
        "format": "jaxpart-graph",
        "version": 1,
        "nodes": [{"name": "a", **node}, {"name": "b", **node}],
        "tensors": [{"producer": 0, "bytes": 8, "consumers": [1]}],
        "weights": [],
    }
    return json.dumps(content | changes)


def nodes_of(*changes):
    node = {"op": "add", "flops": 1e6, "bytes_accessed": 1e3}
    return [{"name": f"n{v}", **node, **change} for v, change in enumerate(changes)]


def run(command, *more):
    """The exit code, whether it is returned or raised by the argument parser."""
    try:
        return main([*command.split(), *more])
    except SystemExit as stop:
        return stop.code


def refused(capsys, *argv):
    """The one line on stderr of a command that ends with exit code 2."""
    assert run(*argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert len(lines[0]) <= 2000
    return lines[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        (file_of()[:-9], "truncated"),
        ("not json at all", "bad.json"),
        (file_of(extra=1), "unknown field `extra`"),
        (file_of(version=2), "$.version"),
        (file_of(nodes=[]), "no nodes, expected at least one"),
        (file_of(nodes=nodes_of({}, {"name": "n0"})), "node 1 ('n0'): another node has this name"),
        (file_of(nodes=nodes_of({"flops": -1}, {})), "node 0 ('n0'): flops is -1"),
        (file_of(nodes=nodes_of({"flops": float("nan")}, {})), "bad.json"),
        (file_of(nodes=nodes_of({"flops": float("inf")}, {})), "bad.json"),
        (file_of(nodes=nodes_of({}, {"seconds": -1e-3})), "node 1 ('n1'): seconds is -0.001"),
        (file_of(nodes=nodes_of({"colour": 1}, {})), "$.nodes[0]"),
        (file_of(weights=[{"bytes": -4, "consumers": [0]}]), "weight 0: bytes is -4"),
        (
            file_of(tensors=[{"producer": 0, "bytes": 8, "consumers": [2]}]),
            "tensor 0: consumer 2 is no node, expected 0 to 1",
        ),
        (
            file_of(
                tensors=[
                    {"producer": 0, "bytes": 8, "consumers": [1]},
                    {"producer": 1, "bytes": 8, "consumers": [0]},
                ]
            ),
            "the edges close a cycle: 'a' -> 'b' -> 'a'",
        ),
        (
            file_of(tensors=[{"producer": 1, "bytes": 8, "consumers": [0]}]),
            "expected nodes in a topological order",
        ),
        (
            file_of(nodes=nodes_of({"pin": 2}, {})),
            "node 0 ('n0'): fixed to chip 2, but pair has chips 0 to 1",
        ),
        (
            file_of(nodes=nodes_of({"pin": 0, "colocate": 1}, {"pin": 1, "colocate": 1})),
            "node 1 ('n1'): fixed to chip 1",
        ),
    ],
)
def test_a_bad_graph_is_refused_in_one_line_that_names_the_place(place, capsys, content, expected):
    (place / "bad.json").write_text(content)

    line = refused(capsys, "partition", "bad.json", "--mcm", "pair.toml")

    assert line.startswith("error: bad.json: ")
    assert expected in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "name"),
        ("name = ", "module.toml"),
        (MODULE.replace("chain", "ring"), "$.topology"),
        (MODULE + "colour = 1\n", "$.links"),
        (re.sub(r"\[\[chips\]\].*(?=\[links\])", "", MODULE, flags=re.S), "chips"),
        (MODULE.replace("[[chips]]\ncount = 2", "[[chips]]\ncount = 0"), "count is 0"),
        (MODULE.replace("1048576", "-1"), "chip 0: sram_bytes is -1"),
        (MODULE.replace("1e9", "inf"), "links: bandwidth is inf"),
        (MODULE.replace("1e12", "nan"), "chip 0: peak_flops is nan"),
        (MODULE.replace("overlap", "rows = 2\noverlap"), "rows and cols belong to a mesh"),
        (MODULE + "[constraints]\nacyclic = false\n", "expected acyclic = true"),
    ],
)
def test_a_bad_module_is_refused_in_one_line_that_names_the_place(place, capsys, content, expected):
    path_graph().save("path.json")
    (place / "module.toml").write_text(content)

    line = refused(capsys, "partition", "path.json", "--mcm", "module.toml")

    assert line.startswith("error: module.toml: ")
    assert expected in line


DOT = """func.func @main(%w: tensor<2048x1024xf32>, %x: tensor<4x2048xf32>) -> tensor<4x1024xf32> {
  %0 = stablehlo.dot %x, %w : (tensor<4x2048xf32>, tensor<2048x1024xf32>) -> tensor<4x1024xf32>
  %1 = stablehlo.tanh %0 : tensor<4x1024xf32>
  return %1 : tensor<4x1024xf32>
}
"""


def test_arguments_of_a_stablehlo_module_become_its_weights(capsys):
    Path("dot.mlir").write_text(DOT)
    Path("all.json").write_text('{"dot_general_0": 0, "tanh_0": 0}')

    assert main(["evaluate", "dot.mlir", "all.json", "--param-argnums", "0"]) == 0

    assert re.search(r"2 nodes.*, weights 2(\.0)? MiB", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-graph"], "no-such-graph"),
        (["nowhere.json"], "nowhere.json"),
        (["path.json", "--mcm", "mcm5"], "'mcm5' is neither a module"),
        (["path.json", "--mcm", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["path.json", "--method", "magic"], "'magic'"),
        (["path.json", "--time-limit", "0"], "--time-limit: '0', expected a positive number"),
        (["path.json", "--time-limit", "nan"], "--time-limit: 'nan', expected"),
        (["path.json", "--samples", "-3"], "--samples: '-3', expected a whole number"),
        (["path.json", "--samples", "1.5"], "--samples: '1.5', expected a whole number"),
        (["path.json", "--seed", "99999999999"], "--seed: '99999999999', expected"),
        *[
            (["path.json", option, text], f"{option}: {text!r}, expected a")
            for option in ("--time-limit", "--samples", "--seed", "--gap", "--element-bytes")
            for text in ("1_0", "\uff11", "\u0661", "1e1_0", " 1", "inf", "nan", "0x1", "")
        ],
        (["path.json", "--processes", "\uff12"], "--processes: '\uff12', expected a whole"),
        (["path.json", "--dim", "a=\uff11"], "expected NAME=SIZE"),
        (["path.json", "--dim", "a=1_0"], "expected NAME=SIZE"),
        (["path.json", "--gap", "-1"], "--gap: '-1', expected a number, 0 or more"),
        (["path.json", "--colour"], "unrecognized arguments: --colour"),
        ([], "required: GRAPH"),
        (["path.json", "--out", "missing/r.json"], "missing/r.json: cannot write here"),
        (["path.json", "--plot", "missing/p.png"], "missing/p.png: cannot write here"),
        (["path.json", "--out", "."], ".: is a folder"),
        (["path.json", "--plot", "p.bmp"], "p.bmp: a picture ends in .png, .svg, .pdf"),
        (["path.json", "--out", "x.png", "--plot", "x.png"], "x.png: named for both"),
        (["path.json", "--init", "nowhere.json"], "nowhere.json: cannot be read"),
        (["path.json", "--init", "path.json"], "path.json: "),
        *[
            (
                ["path.json", option, text],
                f"argument {option}: '{text}', expected the name of a file",
            )
            for option in ("--init", "--out", "--plot")
            for text in ("", "-")
        ],
        *[
            (
                ["path.json", option, text],
                f"argument {option}: '{text}', expected a name, or the na",
            )
            for option in ("--policy", "--mcm")
            for text in ("", "-")
        ],
        ([""], "argument GRAPH: '', expected a name, or the name of a file"),
        (
            ["-"],
            "argument GRAPH: '-', expected a name, or the name of a file; standard inp",
        ),
        (
            ["path.json", "--out", "-"],
            "standard output has the summary (a file of this name is ./-)",
        ),
        (["path.json", "--out", "new/"], "new/: is a folder"),
        (["path.json", "--out", "x" * 300], "cannot write here"),
        (["path.json", "--out", "a\0b"], r"'a\x00b': is no valid path"),
        (["path.json", "--out", "\ud800"], r"'\ud800': is no valid path"),
        (["path.json", "--out", "path.json"], "path.json: is an input (path.json)"),
        (["path.json", "--out", "../{}/path.json"], "is an input (path.json)"),
        (["path.json", "--plot", "link.png"], "link.png: is a link"),
        (["path.json", "--out", "fifo"], "fifo: is a FIFO, expected a file to write"),
        (["path.json", "--out", "/dev/null"], "/dev/null: is a device"),
        (["path.json", "--mcm", "pair.toml", "--out", "pair.toml"], "pair.toml: is an input"),
        (["/dev/zero"], "/dev/zero: cannot be read (it is a device)"),
        (["fifo"], "fifo: cannot be read (it is a FIFO)"),
        (["."], ".: cannot be read (it is a folder)"),
        (["x" * 5000], "is no file"),
        (["\x1b[31m\x07\u202e"], r"'\x1b[31m\x07\u202e' is no file"),
        (["path.json", "--\x1b[31m"], r"unrecognized arguments: --\x1b[31m"),
        (["path.json", "--seed", "\x1b[31m"], r"--seed: '\x1b[31m', expected"),
        (["path.json", "--dim", "a=" + "9" * 5000], "--dim"),
        (["path.json", "--dim", "a=" + "9" * 17], "expected NAME=SIZE"),
        (["path.json", "--dim", "\n\x1b"], "--dim"),
        (["path.json", "--dim", "b=1", "--dim", "b=2"], "--dim: b is 1 and 2, expected one size"),
        (["path.json", "--dim", "batch=1"], "path.json: its sizes are all known"),
        (["alexnet", "--dim", "batch=1", "--dim", "length=2"], "but got batch, length"),
        *[
            (["path.json", "--param-argnums", text], "expected positions such as 0 or 0-198,201")
            for text in ("", "w", "-1", "3-1", "0,", "0-999999", "1_0", "\uff11")
        ],
        (["path.json", "--param-argnums", "0"], "path.json: says itself what its parameters are"),
        (["alexnet", "--param-argnums", "0"], "alexnet: says itself what its parameters are"),
        (["dot.mlir", "--param-argnums", "0-2"], "argument 2, expected 0 to 1"),
        (["dot.mlir", "--dim", "b=1"], "dot.mlir: its sizes are all known"),
        (["open.json"], "open.json: Input data was truncated; expected a graph"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(capsys, arguments, expected):
    path_graph().save("path.json")
    os.mkfifo("fifo")
    os.symlink("nowhere.png", "link.png")
    Path("open.json").write_text("{")
    Path("dot.mlir").write_text(DOT)
    arguments = [argument.replace("{}", Path.cwd().name) for argument in arguments]

    assert expected in refused(capsys, "partition", *arguments)
    assert path_graph().sha256 == Graph.load("path.json").sha256
    assert not Path("nowhere.png").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "path.json", ""], "argument RESULT: '', expected the name of a file"),
        (["evaluate", "path.json", "-"], "argument RESULT: '-', expected the name of a file"),
        (["evaluate", "", "r.json"], "argument GRAPH: '', expected a name"),
        (["evaluate", "path.json", "r.json", "--mcm", ""], "argument --mcm: '', expected a name"),
        (["graphs", "--plot", ""], "argument --plot: '', expected the name of a file"),
        (["graphs", "alexnet", "--plot", "-"], "argument --plot: '-', expected the name of a file"),
        (["graphs", "alexnet", "--plot", "p.svg"], "p.svg: this picture is a PNG, expected a name"),
        (["graphs", "alexnet", "--plot", "p.bmp"], "p.bmp: a picture ends in .png"),
        (["graphs", "alexnet", "--plot", "missing/p.png"], "missing/p.png: cannot write here"),
        (["graphs", "--show", ""], "argument --show: '', expected a name"),
        (["graphs", ""], "argument NAME: '', expected a name"),
    ],
)
def test_names_of_files_of_the_other_commands_are_checked(place, capsys, arguments, expected):
    assert expected in refused(capsys, *arguments)
    assert [path.name for path in place.iterdir()] == ["pair.toml"]


def test_a_file_may_have_the_name_of_a_stream(place, capsys):
    path_graph().save(place / "-")

    assert run("partition", "./-", "--mcm", "pair.toml", "--method", "greedy", "--out", "./r-") == 0
    assert (place / "r-").exists()


def test_bad_input_is_found_before_the_search_and_leaves_no_file(place, capsys):
    path_graph().save("path.json")
    before = sorted(place.iterdir())

    refused(capsys, "partition", "path.json", "--out", "missing/r.json")

    assert sorted(place.iterdir()) == before


def test_a_graph_that_brings_its_machine_takes_no_other(place, capsys):
    (place / "load.json").write_text(json.dumps(MAX_LOAD))

    line = refused(capsys, "partition", "load.json", "--mcm", "mcm4")

    assert "load.json: " in line
    assert "expected no --mcm" in line


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (
            path_graph(weight_bytes=5e5),
            "the weights take 2.9 MiB, all 2 chips together have 2.0 MiB",
        ),
        (path_graph(weight_bytes=2e6), "the weights of 'n0' take 1.9 MiB"),
        (
            Graph(
                (Node("a", "add", 1, 1, pin=1), Node("b", "add", 1, 1, pin=0)),
                (Tensor(0, 8, (1,)),),
            ),
            "'a' is fixed to chip 1, but feeds 'b', which is fixed to chip 0",
        ),
    ],
)
def test_an_infeasible_problem_ends_with_code_1_and_the_reason(place, capsys, graph, expected):
    graph.save("graph.json")

    assert run("partition", "graph.json", "--mcm", "pair.toml") == 1
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.splitlines()[-1].startswith("infeasible: ")
    assert not list(place.glob("*.result.json"))


def test_a_partition_is_found_written_drawn_and_told(place, capsys):
    path_graph().save("path.json.gz")

    assert run("partition", "path.json.gz", "--mcm", "pair.toml", "--time-limit", "1") == 0

    printed = capsys.readouterr().out
    assert "bottleneck   300.00 us, 3,333.33 inferences/s" in printed
    assert "proven optimal" in printed
    assert "written: path-pair.result.json and path-pair.png" in printed
    result = Result.load(place / "path-pair.result.json", path_graph())
    assert result.assignment.tolist() == [0, 0, 0, 1, 1, 1]
    assert (place / "path-pair.png").read_bytes()[:4] == b"\x89PNG"


def test_out_and_plot_name_the_files_exactly(place):
    path_graph().save("path.json")
    assert run("partition path.json --mcm pair.toml --out r --plot p.svg") == 0

    assert json.loads((place / "r").read_text())["format"] == "jaxpart-result"
    assert "<svg" in (place / "p.svg").read_text()
    assert {path.name for path in place.iterdir()} == {"path.json", "pair.toml", "r", "p.svg"}


def test_names_are_escaped_wherever_they_are_printed_and_shortened_in_names_of_files(place, capsys):
    graph = path_graph()
    hostile = "\x1b]0;title\x07\n$_{" + "ö" * 5000
    nodes = tuple(
        Node(f"\x1b[{v}m", *msgspec.structs.astuple(n)[1:]) for v, n in enumerate(graph.nodes)
    )
    Graph(nodes, graph.tensors, graph.weights, hostile, 1).save("\x9b.json")
    (place / "own.json").write_text(
        json.dumps({node.name: int(v < 3) for v, node in enumerate(nodes)})
    )

    assert run("partition \x9b.json --mcm pair.toml --method greedy") == 0
    assert run("evaluate \x9b.json own.json --mcm pair.toml") == 1

    printed = capsys.readouterr()
    assert r"\x1b]0;title\x07\n$_{ö" in printed.out
    assert r"'\x1b[2m' (chip 1) -> '\x1b[3m' (chip 0)" in printed.out
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))
    (written,) = place.glob("*.result.json")
    assert len(os.fsencode(written.name)) < 220
    assert written.name.startswith("-0-title-_-ööö")


def run_alone(*arguments, **streams):
    """The exit code and stderr of the command in a process of its own."""
    code = "import sys; from jaxpart.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        **streams,
    )
    return done.returncode, done.stderr


def test_output_into_a_closed_pipe_ends_quietly_and_writes_its_files(place):
    path_graph().save("path.json")
    read, write = os.pipe()
    os.close(read)
    command = "partition path.json --mcm pair.toml --method greedy --out r.json --plot p.png"
    code, said = run_alone(*command.split(), stdout=write)
    os.close(write)

    assert code == 0, said
    assert "roken" not in said
    assert "Traceback" not in said
    assert Result.load(place / "r.json", path_graph()).costs.valid
    assert (place / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_output_onto_a_full_disk_is_said():
    with open("/dev/full", "w") as full:
        code, said = run_alone("graphs", "elmo", stdout=full)

    assert code == 2
    assert said == "error: standard output cannot be written (No space left on device)\n"


def test_rescaled_bytes_are_said(capsys):
    graph = path_graph()
    Graph(graph.nodes, graph.tensors, graph.weights, "path", 4).save("path.json")
    assert run("partition", "path.json", "--mcm", "pair.toml", "--method", "greedy") == 0

    assert "bytes rescaled from 4 to 1 per element" in capsys.readouterr().out


def test_a_search_starts_from_a_partition_of_ones_own(place, capsys):
    path_graph().save("path.json")
    (place / "own.json").write_text(json.dumps({f"n{v}": int(v > 2) for v in range(6)}))
    arguments = "partition path.json --mcm pair.toml --method greedy --init own.json --out r.json"
    assert run(arguments) == 0
    # A result is a partition to start from, too.
    assert run(arguments.replace("own.json", "r.json")) == 0

    (place / "own.json").write_text(json.dumps({f"n{v}": 2 for v in range(6)}))
    capsys.readouterr()
    assert "own.json: assignment: 'n0' is on chip 2" in refused(capsys, *arguments.split())


def test_evaluate_agrees_with_the_result_and_uses_its_module(place, capsys):
    path_graph().save("path.json")
    run("partition path.json --mcm pair.toml --out r.json")
    capsys.readouterr()

    assert run("evaluate", "path.json", "r.json") == 0
    printed = capsys.readouterr().out
    assert "pair: 2 chips" in printed
    assert "verdict      valid" in printed
    assert "bottleneck   300.00 us" in printed
    assert "note" not in printed


def test_evaluate_ends_with_code_1_where_a_rule_is_broken(place, capsys):
    path_graph().save("path.json")
    (place / "own.json").write_text(json.dumps({f"n{v}": int(v < 3) for v in range(6)}))

    assert run("evaluate path.json own.json --mcm pair.toml") == 1
    printed = capsys.readouterr().out
    assert "NOT VALID" in printed
    assert "BROKEN  1 of 5 edges flow backward, as 'n2' (chip 1) -> 'n3' (chip 0)" in printed


def test_evaluate_says_when_graph_or_module_are_others(place, capsys):
    path_graph().save("path.json")
    run("partition path.json --mcm pair.toml --out r.json")
    path_graph(weight_bytes=1e4).save("path.json")
    (place / "pair.toml").write_text(MODULE.replace("100e9", "50e9"))
    capsys.readouterr()

    assert run("evaluate path.json r.json --mcm pair.toml") == 0
    printed = capsys.readouterr().out
    assert "made for another graph (path)" in printed
    assert "made for another module (pair)" in printed


def test_evaluate_says_what_contradicts_the_partition_and_refuses_nonsense(place, capsys):
    path_graph().save("path.json")
    run("partition path.json --mcm pair.toml --out r.json")
    right = json.loads(Path("r.json").read_text())
    capsys.readouterr()

    (place / "r.json").write_text(json.dumps(right | {"throughput_per_s": 1e9, "improvement": 5}))
    assert run("evaluate", "path.json", "r.json") == 0
    printed = capsys.readouterr().out
    assert "1e+09 inferences/s for the throughput, it is 3333.33 inferences/s" in printed
    assert "the file says 5x for the improvement, it is 1x" in printed

    (place / "r.json").write_text(json.dumps(right | {"lower_bound_s": 1.0}))
    line = refused(capsys, "evaluate", "path.json", "r.json")
    assert "r.json: lower_bound_s is 1.0, expected at most bottleneck_s, 0.0003" in line


def test_evaluate_refuses_names_that_are_not_the_graphs(place, capsys):
    path_graph().save("path.json")
    (place / "own.json").write_text(json.dumps({"x": 0}))

    line = refused(capsys, "evaluate", "path.json", "own.json")

    assert "own.json: assignment: expected the 6 nodes of path, but 'n0' is missing" in line


def test_simulate_runs_the_pipeline_of_a_result_and_draws_it(place, capsys):
    path_graph().save("path.json")
    run("partition path.json --mcm pair.toml --out r.json")
    capsys.readouterr()

    assert run("simulate path.json r.json --count 50 --buffers 2 --plot busy.png") == 0

    printed = capsys.readouterr().out
    assert "pair: 2 chips" in printed
    assert "simulated   50 inferences, 2 buffers" in printed
    assert "3,333.33 in the last half (100.00% of 1/T)" in printed
    assert printed.endswith("\nwritten: busy.png\n")
    assert (place / "busy.png").read_bytes().startswith(b"\x89PNG")


def test_simulate_says_when_the_result_is_for_another_graph_and_refuses_other_names(place, capsys):
    path_graph().save("path.json")
    run("partition path.json --mcm pair.toml --out r.json")
    path_graph(weight_bytes=1e4).save("path.json")
    capsys.readouterr()

    assert run("simulate path.json r.json") == 0
    assert "made for another graph (path)" in capsys.readouterr().out
    path_graph(count=5).save("path.json")
    assert "'n5' is no node of it" in refused(capsys, "simulate", "path.json", "r.json")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--count 0", "argument --count: '0', expected a whole number, 1 or more"),
        ("--count 2000000", "count is 2000000, expected 1 to 1,000,000 inferences"),
        ("--buffers 0", "argument --buffers: '0', expected a whole number, 1 or more"),
        ("--buffers many", "argument --buffers: 'many', expected a whole number"),
        ("--plot p.gif", "p.gif: a picture ends in .png, .svg, .pdf, not .gif"),
        ("--plot own.png", "own.png: "),  # it is an input
        ("", "own.png: not valid for path on pair (acyclic dataflow: 1 of 5 edges flow backward"),
    ],
)
def test_simulate_refuses_bad_input(place, capsys, more, expected):
    path_graph().save("path.json")
    backward = {f"n{v}": int(v < 3 and not more) for v in range(6)}
    (place / "own.png").write_text(json.dumps(backward))

    command = f"simulate path.json own.png --mcm pair.toml {more}"
    assert expected in refused(capsys, *command.split())


def test_the_help_lists_graphs_modules_methods_and_exit_codes(capsys):
    assert run("partition", "--help") == 0
    text = capsys.readouterr().out

    for part in ("bert-large", "mcm36", "mesh6x6", "slice", "exit codes", "examples:"):
        assert part in text


@pytest.mark.parametrize("count", [1, 2])
def test_edgeless_and_single_node_graphs_work(count):
    graph = Graph(tuple(Node(f"n{v}", "add", 1e8, 1e3) for v in range(count)), name="loose")
    graph.save("loose.json")

    assert run("partition", "loose.json", "--mcm", "pair.toml", "--time-limit", "1") == 0


def test_a_gzip_file_that_is_cut_off_is_refused(place, capsys):
    (place / "cut.json.gz").write_bytes(gzip.compress(file_of().encode())[:-12])

    assert "cut.json.gz: broken gzip file" in refused(capsys, "partition", "cut.json.gz")


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTSTP, signal.SIGCONT, signal.SIGTERM], 143),
    ],
)
def test_a_signal_writes_the_best_so_far_and_its_number_is_in_the_exit_code(place, numbers, code):
    # Never proven at a gap of 0: the search goes on until it is interrupted.
    path_graph(40, weight_bytes=1e4).save("path.json")
    command = "partition path.json --mcm pair.toml --method slice --gap 0 --time-limit 300"
    program = "import sys; from jaxpart.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command.split(), "--out", "r.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "best" in line:
                break
        for number in numbers:
            process.send_signal(number)
            if number == signal.SIGTSTP:
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()

    assert process.returncode == code, err
    assert err.endswith("interrupted: the best so far is in r.json\n")
    assert "(interrupted)" in out or len(numbers) > 1
    assert "Traceback" not in err
    assert Result.load(place / "r.json", path_graph(40, weight_bytes=1e4)).costs.valid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_anything_is_found_says_so(place, number):
    code = (
        "import os, signal, sys\n"
        "from jaxpart.commands import partition\n"
        f"partition.graph_and_mcm = lambda *_: os.kill(os.getpid(), {int(number)})\n"
        "from jaxpart import cli\n"
        "sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "partition", "bert-large"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )

    assert done.returncode == 128 + number
    assert done.stderr == "interrupted before there was anything to write\n"
    assert not list(place.glob("*.result.json"))


def test_the_package_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "jaxpart", "graphs", "--help"], capture_output=True, text=True
    )

    assert done.returncode == 0
    assert done.stdout.startswith("usage: jaxpart graphs ")
