"""Graph files of every format: what is read, and what is refused with one clear line."""

import codecs
import gzip
import json

import numpy as np
import onnx
import pytest

from jaxpart import datasets
from jaxpart.datasets import shipped
from jaxpart.errors import (
    CostError,
    CycleError,
    DuplicateNameError,
    EmptyGraphError,
    FileFormatError,
    InputError,
    MCMError,
    UnknownNodeError,
)
from jaxpart.ingest.load import load_with_module
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip, Constraints

SMALL = Graph((Node("a", "dot", 8, 12), Node("b", "relu", 4, 8)), (Tensor(0, 4, (1,)),), name="own")


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path."""

    def write(content, name="input"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def assert_refused(path, error, message, **options):
    with pytest.raises(error, match=message) as caught:
        load_with_module(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


# The four formats


def test_the_format_is_recognised_whatever_the_name(file):
    own = json.dumps(
        {
            "format": "jaxpart-graph",
            "version": 1,
            "nodes": [{"name": "a", "op": "dot", "flops": 8, "bytes_accessed": 12}],
            "tensors": [],
            "weights": [],
        }
    )
    relu = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["n"])],
            [onnx.helper.make_tensor_value_info("y", 1, ["n"])],
        )
    )
    cases = {
        own: "a",
        "\n  " + own: "a",
        json.dumps(max_load_input()): "10",
        profile(): "node1",
    }
    for content, first in cases.items():
        assert load_with_module(file(content))[0].nodes[0].name == first
        assert load_with_module(file(gzip.compress(content.encode())))[0].nodes[0].name == first
    graph, brought = load_with_module(file(relu.SerializeToString()), dims={"n": 5})
    assert [v.op for v in graph.nodes] == ["Relu"]
    assert graph.tensors[0].bytes == 20
    assert brought is None


def test_a_graph_that_was_saved_comes_back_without_a_machine(tmp_path):
    for name in ("g.json", "g.json.gz"):
        SMALL.save(tmp_path / name)

        assert load_with_module(tmp_path / name) == (SMALL, None)


UNKNOWN_FIELD = {"format": "jaxpart-graph", "version": 1, "nodes": [], "tensors": []}
UNKNOWN_FIELD |= {"weights": [], "colour": 1}
# fmt: off
NO_GRAPHS = [
    (b"", FileFormatError, "the file is empty, expected a graph"),
    (b" \n\t", FileFormatError, "the file is empty, expected a graph"),
    (gzip.compress(b"", mtime=0), FileFormatError, "the file is empty, expected a graph"),
    (gzip.compress(b"{}", mtime=0)[:-6], FileFormatError, "broken gzip file"),
    (b"{", FileFormatError, "JSON|truncated"),
    (b'{"format": "jaxpart-graph", "version": 1, "nod', FileFormatError, "truncated"),
    (b"[]", FileFormatError, "Expected `object`, got `array`"),
    (b"{}", FileFormatError, "missing required field `format`"),
    (b'{"format": "else"}', FileFormatError, r"Invalid enum value 'else' - at `\$\.format`"),
    (b'{"format": "jaxpart-graph", "version": 2}', FileFormatError, r"2 - at `\$\.version`"),
    (json.dumps(UNKNOWN_FIELD).encode(), FileFormatError, "unknown field `colour`"),
    (b"hello world", FileFormatError, "line 1: expected a graph: JSON"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", FileFormatError, "is a picture, expected an ONNX model or text"),
    (b"PK\x03\x04" + bytes(99), FileFormatError, "a broken zip file .*torch.export"),
    (codecs.BOM_UTF8, FileFormatError, "the file is empty, expected a graph"),
    (codecs.BOM_UTF8 * 2 + b"{}", FileFormatError, "expected an ONNX model"),
    (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), FileFormatError,
     "is gzip within gzip, expected it compressed once"),
    (bytes(range(256)), FileFormatError, "expected an ONNX model"),
]
# fmt: on


@pytest.mark.parametrize(("content", "error", "message"), NO_GRAPHS)
def test_what_is_no_graph_is_refused_by_its_place(file, content, error, message):
    assert_refused(file(content), error, message)


def own_text():
    node = {"name": "größe", "op": "dot", "flops": 8, "bytes_accessed": 12}
    own = {"format": "jaxpart-graph", "version": 1, "nodes": [node], "tensors": [], "weights": []}
    return json.dumps(own, ensure_ascii=False)


def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_text(file):
    for text, count in ((own_text(), 1), (json.dumps(max_load_input()), 4), (profile(), 3)):
        marked = codecs.BOM_UTF8 + text.encode()
        for content in (marked, gzip.compress(marked)):
            assert load_with_module(file(content)) == load_with_module(file(text))
            assert len(load_with_module(file(content))[0].nodes) == count
    assert Graph.load(file(codecs.BOM_UTF8 + own_text().encode())).nodes[0].name == "größe"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_encoding_is_called_so(file, encoding):
    kind = rf"input: is {encoding[:6].upper()} text, expected .* in UTF-8"
    for text in (own_text(), profile()):
        for content in (text.encode(encoding), gzip.compress(text.encode(encoding))):
            assert_refused(file(content), FileFormatError, kind)
    with pytest.raises(FileFormatError, match=kind):
        Graph.load(file(own_text().encode(encoding)))


def test_every_truncation_of_a_graph_file_is_refused(tmp_path, file):
    SMALL.save(tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_bytes()

    for length in range(len(whole)):
        with pytest.raises(FileFormatError, match=r"^/.*input: "):
            load_with_module(file(whole[:length]))


def test_text_under_the_name_of_an_onnx_model_is_a_broken_model(file):
    assert_refused(file(b"hello world", "m.onnx"), FileFormatError, "expected an ONNX model")


def test_a_folder_and_a_missing_file_cannot_be_read(tmp_path):
    assert_refused(tmp_path, InputError, "cannot be read")
    assert_refused(tmp_path / "none.json", InputError, "cannot be read")


def test_a_rule_that_the_graph_breaks_is_told_with_the_file(file):
    no_nodes = {"format": "jaxpart-graph", "version": 1, "nodes": [], "tensors": [], "weights": []}

    assert_refused(file(json.dumps(no_nodes)), EmptyGraphError, "no nodes")


# Max-load inputs


def max_load_input(**changes):
    """Nodes in an order that is no topological one; 30 feeds two others."""
    nodes = [
        {"id": 20, "fpgaLatency": 2.5, "size": 100, "colorClass": 7, "name": "second"},
        {"id": 10, "fpgaLatency": 1, "size": 0, "colorClass": 7, "cpuLatency": 5},
        {"id": 30, "fpgaLatency": 0.5, "size": 8.5, "supportedOnFpga": 1, "isBackwardNode": 0},
        {"id": 40, "fpgaLatency": 0, "size": 1, "colorClass": None, "supportedOnFpga": True},
    ]
    edges = [
        {"sourceId": 10, "destId": 20, "cost": 0.25, "size": 99},
        {"sourceId": 10, "destId": 40, "cost": 0.25},
        {"sourceId": 20, "destId": 30, "cost": 0},
        {"sourceId": 30, "destId": 40, "cost": 3},
    ]
    whole = {"maxSizePerFPGA": 1000.5, "maxFPGAs": 3, "maxCPUs": 0, "nodes": nodes, "edges": edges}
    return whole | changes


def test_a_max_load_input_brings_its_graph_and_its_machine(file):
    graph, mcm = load_with_module(file(json.dumps(max_load_input()), "bert.v2.json"))

    assert graph == Graph(
        nodes=(
            Node("10", "operator", 0, 0, seconds=1, colocate=7),
            Node("20", "operator", 0, 0, seconds=2.5, colocate=7),
            Node("30", "operator", 0, 0, seconds=0.5),
            Node("40", "operator", 0, 0, seconds=0),
        ),
        tensors=(Tensor(0, 0.25, (1, 3)), Tensor(1, 0, (2,)), Tensor(2, 3, (3,))),
        weights=(Weight(100, (1,)), Weight(0, (0,)), Weight(8.5, (2,)), Weight(1, (3,))),
        name="bert",
        element_bytes=None,
    )
    assert mcm == MCM(
        "bert",
        "host",
        (Chip(1, 1, 1000.5),) * 3,
        link_bandwidth=1,
        overlap=False,
        memory_model="weights",
        constraints=Constraints(acyclic=True, no_skip=True, triangle=False, memory=True),
    )
    assert graph.rescaled(1) is graph


def changed(part, position, **fields):
    whole = max_load_input()
    whole[part][position].update(fields)
    return whole


# fmt: off
BAD_MAX_LOADS = [
    (changed("nodes", 2, isBackwardNode=1), FileFormatError,
     r"node 30 is a backward node - at `\$\.nodes\[2\]`: a training input, expected inference"),
    (changed("nodes", 3, supportedOnFpga=False), FileFormatError,
     r"node 40 does not run on an accelerator - at `\$\.nodes\[3\]`"),
    (changed("nodes", 1, id="20"), DuplicateNameError,
     r"node 20 is there twice - at `\$\.nodes\[1\]`: expected unique ids"),
    (changed("nodes", 0, fpgaLatency="fast"), FileFormatError, "Expected `float`, got `str`"),
    (changed("nodes", 0, fpgaLatency=-1), CostError,
     r"node 20: fpgaLatency is -1\.0 - at `\$\.nodes\[0\]\.fpgaLatency`: expected a finite number"),
    (changed("nodes", 0, size=-1), CostError, "node 20: size is -1"),
    (changed("nodes", 1, cpuLatency=-5), CostError,
     r"node 10: cpuLatency is -5\.0 - at `\$\.nodes\[1\]\.cpuLatency`"),
    (changed("nodes", 1, cpuLatency="slow"), FileFormatError, r"nodes\[1\]\.cpuLatency"),
    (changed("nodes", 0, size=True), FileFormatError, r"`float`, got `bool` - at .*\.size"),
    (changed("nodes", 0, fpgaLatency=False), FileFormatError, r"got `bool` - at .*fpgaLatency"),
    (changed("nodes", 0, supportedOnFpga=2), FileFormatError, r"<= 1 - at .*\.supportedOnFpga"),
    (changed("nodes", 0, supportedOnFpga=-1), FileFormatError, r">= 0 - at .*\.supportedOnFpga"),
    (changed("nodes", 0, supportedOnFpga=1.0), FileFormatError, r"got `float` - at .*OnFpga"),
    (changed("nodes", 0, isBackwardNode=-1), FileFormatError, r">= 0 - at .*\.isBackwardNode"),
    (changed("nodes", 0, isBackwardNode="no"), FileFormatError, r"got `str` - at .*isBackward"),
    (changed("nodes", 0, colorClass=1.5), FileFormatError, r"got `float` - at .*\.colorClass"),
    (changed("nodes", 0, colorClass=True), FileFormatError, r"got `bool` - at .*\.colorClass"),
    (changed("nodes", 0, colorClass=-1), FileFormatError, r">= 0 - at .*\.colorClass"),
    (changed("nodes", 0, colorClass=10**30), FileFormatError, r"<= \d+ - at .*\.colorClass"),
    (changed("nodes", 0, id=2.5), FileFormatError, r"got `float` - at .*\.id"),
    (changed("nodes", 0, id=True), FileFormatError, r"got `bool` - at .*\.id"),
    (changed("edges", 1, cost=True), FileFormatError, r"got `bool` - at .*\.cost"),
    (changed("edges", 1, destId=50), UnknownNodeError, "edge 1 names node 50"),
    (changed("edges", 1, cost=-2), CostError,
     r"edge 1: cost is -2\.0 - at `\$\.edges\[1\]\.cost`: expected a finite number, 0 or more"),
    (changed("edges", 3, destId=10), CycleError, "'20' -> '30' -> '10' -> '20'"),
    (max_load_input(nodes=[], edges=[]), EmptyGraphError, "no nodes"),
    (max_load_input(maxFPGAs=0), MCMError, "maxFPGAs is 0, expected 1 or more"),
    (max_load_input(maxFPGAs=10**10), MCMError, "maxFPGAs is 10000000000, .* at most 4,096"),
    (max_load_input(maxFPGAs=2.0), FileFormatError, r"got `float` - at `\$\.maxFPGAs`"),
    (max_load_input(maxFPGAs=True), FileFormatError, r"got `bool` - at `\$\.maxFPGAs`"),
    (max_load_input(maxCPUs=-5), MCMError, "maxCPUs is -5, expected 0 or more, at most 1,000,000"),
    (max_load_input(maxCPUs=10**30), MCMError, "maxCPUs is 1000000000000000000000000000000, exp"),
    (max_load_input(maxCPUs=1.5), FileFormatError, r"got `float` - at `\$\.maxCPUs`"),
    (max_load_input(maxCPUs=False), FileFormatError, r"got `bool` - at `\$\.maxCPUs`"),
    (max_load_input(maxSizePerFPGA=0), MCMError, "maxSizePerFPGA is 0.0, expected a positive num"),
    (max_load_input(maxSizePerFPGA=-1), MCMError, "maxSizePerFPGA is -1"),
    (max_load_input(maxSizePerFPGA=True), FileFormatError, r"got `bool` - at `\$\.maxSizePer"),
    (max_load_input(maxSizePerFPGA=1e308), MCMError, r"maxSizePerFPGA is 1e\+308"),
    (changed("nodes", 0, fpgaLatency=1e308), CostError, r"fpgaLatency is 1e\+308"),
    (changed("edges", 1, cost=1e308), CostError, r"cost is 1e\+308"),
    (changed("edges", 1, destId="\x1b[31m"), UnknownNodeError, r"edge 1 names node \\x1b\[31m"),
    ({"maxFPGAs": 2}, FileFormatError, "missing required field"),
]
# fmt: on


@pytest.mark.filterwarnings("ignore:.*differ in cost")
@pytest.mark.parametrize(("content", "error", "message"), BAD_MAX_LOADS)
def test_a_bad_max_load_input_is_refused(file, content, error, message):
    assert_refused(file(json.dumps(content)), error, message)


def test_edges_of_one_tensor_that_differ_in_cost_count_as_the_largest_and_say_so(file):
    path = file(json.dumps(changed("edges", 1, cost=0.75)))

    with pytest.warns(UserWarning, match=r"edges out of node 10 differ in cost; the largest"):
        graph, _ = load_with_module(path)

    assert graph.tensors[0] == Tensor(0, 0.75, (1, 3))


def test_cpus_that_are_left_out_are_told(file):
    message = r"its 1 CPUs are left out: .* those of the 3 accelerators alone"
    with pytest.warns(UserWarning, match=message):
        load_with_module(file(json.dumps(max_load_input(maxCPUs=1))))


def test_many_edges_that_differ_in_cost_are_told_in_one_line(file):
    whole = max_load_input()
    whole["edges"] += [{**edge, "cost": edge["cost"] + 1} for edge in whole["edges"]]

    with pytest.warns(UserWarning, match=r"node 10 \(and of \d more nodes\) differ") as caught:
        load_with_module(file(json.dumps(whole)))
    assert len(caught) == 1


def test_inputs_of_piper_are_answered_by_their_name(file):
    # The keys of the published inputs, for example bert32a100.json.
    piper = {"maxMemoryPerDevice": 1.6e10, "maxDevices": 8, "bandwidth": 2.5e10, "mbsInBatch": 480}
    layer = {"timePerSample": 0.1, "parameterSize": 8.0, "memoryUsageA": 1, "memoryUsageB": 1}
    piper |= {"nodes": [{"id": 1, "TMPCs": {"1": [{"id": "vanilla", **layer}]}}], "edges": []}

    assert_refused(
        file(json.dumps(piper)), FileFormatError, "a Piper input .* training .* expected inference"
    )


def test_a_decompression_bomb_is_refused(file):
    bomb = gzip.compress(b'{"format":"' + b"a" * (130 << 20), compresslevel=1)

    assert_refused(file(bomb), FileFormatError, "expands to more than 128 MiB")


# PipeDream profiles


def profile():
    """Lines in the order and with the spelling of the published files."""
    times = "backward_compute_time=9.000"
    return (
        f"node2 -- Embedding(320, 10, padding_idx=0) -- forward_compute_time=0.500, {times}, "
        "activation_size=[64.0; 16.0], parameter_size=12800.000\n"
        f"node1 -- Input0 -- forward_compute_time=0.000, {times}, activation_size=8.0, "
        "parameter_size=0.000\n"
        f"node3 -- LSTM(  (a): LSTM(1, 2)  (b): LSTM(2, 2)) -- forward_compute_time=2.000, {times},"
        " activation_size=0.0, parameter_size=40.000\n"
        "\tnode1 -- node2\n"
        "\tnode1 -- node3\n"
        "\tnode2 -- node3\n"
    )


def test_a_profile_brings_its_graph_and_no_machine(file):
    graph, mcm = load_with_module(file(profile(), "gnmt.txt"))

    assert mcm is None
    assert graph == Graph(
        nodes=(
            Node("node1", "Input0", 0, 0, seconds=0),
            Node("node2", "Embedding", 0, 0, seconds=0.0005),
            Node("node3", "LSTM", 0, 0, seconds=0.002),
        ),
        tensors=(Tensor(1, 80, (2,)), Tensor(0, 8, (1, 2)), Tensor(2, 0, ())),
        weights=(Weight(12800, (1,)), Weight(0, (0,)), Weight(40, (2,))),
        name="gnmt",
        element_bytes=None,
    )


def test_numbers_of_a_profile_are_decimal_however_they_are_written(file):
    written = {"8.0": 8, "12": 12, "+1.5e3": 1500, ".5": 0.5, "5.": 5, "1E-3": 0.001, "[8]": 8}
    written |= {"[ 8.0 ;4.0]": 12, "0": 0, "-0.0": 0, " 7 ": 7}
    for text, size in written.items():
        content = profile().replace("activation_size=8.0", f"activation_size={text}")
        graph, _ = load_with_module(file(content))
        assert next(k.bytes for k in graph.tensors if k.producer == 0) == size


# fmt: off
BAD_PROFILES = [
    (("LSTM(  (a)", "LSTM -(  (a)"), ("\tnode1 -- node2", "node1 > node2"), FileFormatError,
     "line 4: expected 'ID -- layer -- name=value, ...' or an indented 'ID -- ID'"),
    (("forward_compute_time=2.000, ", ""), FileFormatError,
     "line 3: forward_compute_time is missing"),
    (("parameter_size=40.000", "parameter_size=many"), FileFormatError,
     "line 3: parameter_size is 'many', expected a number"),
    *[
        (("activation_size=8.0", f"activation_size={no_number}"), FileFormatError,
         r"line 2: activation_size is .*, expected a number or a list such as \[8\.0; 4\.0\]")
        for no_number in (
            "", "[]", "[[[[", "[[[[8.0]]]]", "[8.0", "8.0]", "[8.0;]", "[8.0, 4.0]", "8.0; 4.0",
            "\uff11\uff16", "1_0", "1e1_0", "1e", "0x10", "nan", "inf", "-inf", "Infinity",
            "8.0 4.0", "8.0MB", "[8.0; nan]", "[8.0; \uff14]", "\u30008",
        )
    ],
    (("activation_size=8.0", "activation_size=8.0, activation_size=9.0"), FileFormatError,
     "line 2: activation_size is there twice, expected it once"),
    (("activation_size=8.0", "activation_size=[8.0; -4.0]"), CostError,
     "line 2: activation_size is .*: -4 bytes, expected a finite number, 0 or more"),
    (("parameter_size=40.000", "parameter_size=-40"), CostError,
     "line 3: parameter_size is -40: -40 bytes, expected a finite number, 0 or more"),
    (("forward_compute_time=2.000", "forward_compute_time=-2"), CostError,
     "line 3: forward_compute_time is -2: -0.002 s"),
    (("\tnode2 -- node3", "\tnode2 -- node9"), FileFormatError,
     "line 6: node9 is no node of the file"),
    (("activation_size=8.0", "activation_size=[1e308; 1e308]"), CostError,
     r"line 2: .*: 1e\+308 bytes"),
    (("activation_size=8.0", "activation_size=" + "9" * 5000), CostError, "line 2: .*: inf bytes"),
    (("forward_compute_time=2.000", "forward_compute_time=1e300"), CostError, "is 1e300: "),
    (("\tnode2 -- node3", "\tnode2 -- \x1b[31m"), FileFormatError, r"line 6: \\x1b\[31m is no"),
    (("parameter_size=40.000", "parameter_size=\x07"), FileFormatError, r"is '\\x07', expected"),
    (("forward_compute_time=2.000", "a" * 3_000_000), FileFormatError, "line 3: forward_compute"),
    (("node1 -- Input0", "node2 -- Input0"), DuplicateNameError,
     "line 2: node2 is there twice"),
    (("\tnode1 -- node2", "\tnode3 -- node2"), CycleError,
     "'node2' -> 'node3' -> 'node2'"),
]
# fmt: on


@pytest.mark.parametrize("case", BAD_PROFILES)
def test_a_bad_profile_is_refused_by_its_line(file, case):
    *replacements, error, message = case
    content = profile()
    for old, new in replacements:
        assert old in content
        content = content.replace(old, new)

    assert_refused(file(content), error, message)


def test_a_profile_has_a_largest_size(file):
    content = profile() + "\n" * (16 << 20)

    assert_refused(file(content), FileFormatError, "is larger than 16 MiB, the limit")


def test_a_profile_that_is_no_text_is_refused_by_its_byte(file):
    content = profile().encode() + b"\xff\xfe"

    assert_refused(file(content), FileFormatError, f"byte {len(content) - 2} is no UTF-8 text")


# Shipped graphs


def test_shipped_graphs_are_listed_and_load_by_name():
    assert "bert-large" in datasets.names()
    assert datasets.names() == sorted(datasets.names())
    for name in datasets.names():
        graph = datasets.load(name)
        assert graph.name == name
        assert datasets.resolve(name) == (graph, None)


def test_an_unknown_name_brings_those_that_come_near():
    with pytest.raises(InputError, match=r"no shipped graph is named 'bert-larg' \(perhaps bert-l"):
        datasets.load("bert-larg")
    with pytest.raises(InputError, match=r"'bert-larg' is no file, and no shipped graph .*bert-l"):
        datasets.resolve("bert-larg")
    with pytest.raises(InputError, match=r"no shipped graph is named '7' \(--help lists them\)"):
        datasets.load("7")


def test_a_path_is_read_with_the_machine_that_it_brings(file):
    graph, mcm = datasets.resolve(str(file(json.dumps(max_load_input()))))

    assert len(graph.nodes) == 4
    assert mcm is not None
    assert mcm.num_chips == 3


def test_inside_an_installed_package_its_own_folder_comes_first(tmp_path, monkeypatch):
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    for folder, name in ((inside, "in"), (beside, "out")):
        folder.mkdir()
        SMALL.save(folder / f"{name}.json.gz")
    (inside / "notes.txt").write_text("not a graph")
    monkeypatch.setattr(shipped, "_FOLDERS", (inside, beside))

    assert datasets.names() == ["in"]

    monkeypatch.setattr(shipped, "_FOLDERS", (tmp_path / "none", beside))

    assert datasets.names() == ["out"]


def test_random_bytes_bring_no_other_error_than_one_clear_line(file):
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 10, 100, 1000):
        for start in (b"", b"{", b"\x1f\x8b", b"\x08\x07", b"node1 -- "):
            assert_refused(file(start + rng.bytes(length)), FileFormatError, "input: ")
