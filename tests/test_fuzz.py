"""Damaged and hostile files of every kind: refused in one clear line, or accepted rightly.

A valid small file is changed in one to three places: bytes flipped, cut out or put in, tokens
replaced, doubled or removed, huge numbers, deep nesting, control characters. The examples are the
same in every run.
"""

import gzip
import hashlib
import json
import re
import tempfile
import warnings
from pathlib import Path

import jax
import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from jaxpart.errors import InputError
from jaxpart.ingest.load import load_with_module
from jaxpart.methods.policy.checkpoint import Policy, example_inputs
from jaxpart.methods.policy.network import NetworkConfig, PolicyNetwork
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip, MCMFile
from jaxpart.problem.problem import Problem
from jaxpart.results.evaluation import evaluation_of
from jaxpart.results.file import StoredResult, read_partition
from jaxpart.results.report import headline

CHIP = Chip(peak_flops=1e12, sram_bandwidth=100e9, sram_bytes=2**20)
PAIR = MCM("pair", "chain", (CHIP, CHIP), link_bandwidth=1e9, element_bytes=1)
GRAPH = Graph(
    (Node("a", "dot", 8, 12.5), Node("b", "relu", 0, 8, seconds=0.25, colocate=3, pin=1)),
    (Tensor(0, 4, (1,)), Tensor(1, 0, (), fixed=True)),
    (Weight(16, (0, 1)),),
    name="small",
    element_bytes=2,
)
GRAPH_JSON = (
    b'{"format":"jaxpart-graph","version":1,"name":"small","element_bytes":2,'
    b'"nodes":[{"name":"a","op":"dot","flops":8,"bytes_accessed":12.5},'
    b'{"name":"b","op":"relu","flops":0,"bytes_accessed":8,"seconds":0.25,"colocate":3,"pin":1}],'
    b'"tensors":[{"producer":0,"bytes":4,"consumers":[1]},'
    b'{"producer":1,"bytes":0,"consumers":[],"fixed":true}],'
    b'"weights":[{"bytes":16,"consumers":[0,1]}]}'
)
MODULE = b"""\
name = "grid"
topology = "mesh"
overlap = true
memory_model = "full"
rows = 2
cols = 1
element_bytes = 1
[constraints]
acyclic = true
triangle = true
[[chips]]
count = 2
peak_flops = 1e12
sram_bandwidth = 100e9
sram_bytes = 1048576
speed = 1.0
[links]
bandwidth = 1e9
"""
RESULT = json.dumps(
    {
        "format": "jaxpart-result",
        "version": 1,
        "graph": "small",
        "graph_sha256": "00",
        "mcm": PAIR.description(),
        "assignment": {"a": 0, "b": 1},
        "valid": True,
        "bottleneck_s": 0.25,
        "throughput_per_s": 4.0,
        "baseline_s": None,
        "improvement": None,
        "lower_bound_s": 0.125,
        "bound_method": "ideals",
        "gap": 1.0,
        "stages": [
            {"chip": c, "compute_s": 0.25, "in_s": 0.0, "out_s": 0.0, "memory_bytes": 8.0}
            for c in range(2)
        ],
        "links": [{"from": 0, "to": 1, "busy_s": 1e-9}],
        "search": {"method": "auto", "samples": 12, "wall_s": 0.5, "seed": 0},
    }
).encode()
PARTITION = b'{"a": 0, "b": 1}'
MAX_LOAD = json.dumps(
    {
        "maxFPGAs": 2,
        "maxSizePerFPGA": 100.0,
        "nodes": [
            {"id": 1, "fpgaLatency": 1.5, "size": 1.0, "supportedOnFpga": 1, "colorClass": 1},
            {"id": "x", "fpgaLatency": 0.5, "size": 2.0, "isBackwardNode": 0},
        ],
        "edges": [{"sourceId": 1, "destId": "x", "cost": 0.5}],
    }
).encode()
PROFILE = b"""\
node1 -- Input0 -- forward_compute_time=0.0, activation_size=0.0, parameter_size=0.0
node2 -- Embedding(32320, 1024) -- forward_compute_time=0.073, backward_compute_time=6.9, \
activation_size=[6291456.0; 8.0], parameter_size=132382720.0
\tnode1 -- node2
"""
SIZES = NetworkConfig(width=4, layers=1, heads=2, rank=1)


def onnx_model():
    weight = numpy_helper.from_array(np.zeros((4, 3), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Reshape", ["h", "to"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        helper.make_node("Softmax", ["t"], ["y"], axis=-1),
    ]
    to = numpy_helper.from_array(np.array([3, 2], np.int64), "to")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "model", inputs, outputs, [weight, to])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return model.SerializeToString()


def policy_file():
    shapes = jax.eval_shape(lambda: PolicyNetwork(SIZES).init(jax.random.key(0), *example_inputs()))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    with tempfile.TemporaryDirectory() as folder:
        Policy(params, SIZES, {"seed": 0}).save(Path(folder) / "p")
        return (Path(folder) / "p").read_bytes()


# Changes

# What takes the place of a token of a text.
HOSTILE = [
    b"9" * 5000,
    b"-1",
    b"0",
    b"1e308",
    b"1e-320",
    b"1e999",
    b"1e9",
    b"1000000000",
    b"0.5",
    b"NaN",
    b"inf",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b"[" * 3000,
    b"[" * 3000 + b"]" * 3000,
    b'{"a":' * 3000,
    b'"\\ud800"',
    b'"\\u001b]0;x\\u0007"',
    b'"\x1b[31m"',
    b'"\\u202e$_{"',
    b'"\xff"',
    b'"' + b"x" * 5000 + b'"',
    b"[1e308; 1e308]",
    b"\0",
    b"\n",
]
TOKEN = re.compile(rb'"[^"]*"|[\w.+-]+|\S')


@st.composite
def changed_text(draw, content):
    """A text with some of its tokens replaced, doubled, removed or swapped, or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        tokens = [match.span() for match in TOKEN.finditer(content)]
        if not tokens:
            return content
        start, end = tokens[draw(st.integers(0, len(tokens) - 1))]
        token = content[start:end]
        kind = draw(st.sampled_from(["hostile"] * 4 + ["twice", "gone", "other", "cut", "bytes"]))
        if kind == "hostile":
            content = content[:start] + draw(st.sampled_from(HOSTILE)) + content[end:]
        elif kind == "twice":
            content = content[:end] + b"," + token + content[end:]
        elif kind == "gone":
            content = content[:start] + content[end:]
        elif kind == "other":
            first, last = tokens[draw(st.integers(0, len(tokens) - 1))]
            content = content[:start] + content[first:last] + content[end:]
        elif kind == "cut":
            content = content[:start]
        else:
            content = draw(changed_bytes(content))
    return content


@st.composite
def changed_bytes(draw, content):
    """Bytes of which some are others, missing or surplus."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        few = draw(st.binary(max_size=4))
        skipped = draw(st.sampled_from([0, len(few), 1, 20, len(content)]))
        content = content[:place] + few + content[place + skipped :]
    return content


@st.composite
def changed_gzip(draw):
    """A gzip file, damaged outside or inside."""
    if draw(st.booleans()):
        return gzip.compress(draw(changed_text(GRAPH_JSON)), mtime=0)
    return draw(changed_bytes(gzip.compress(GRAPH_JSON, mtime=0)))


@st.composite
def changed_policy(draw, content):
    """A policy with a changed header, or changed weights under a hash that is right for them."""
    line, _, weights = content.partition(b"\n")
    if draw(st.booleans()):
        return draw(changed_text(line)) + b"\n" + weights
    weights = draw(changed_bytes(weights))
    header = json.loads(line)
    header |= {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    return json.dumps(header).encode() + b"\n" + weights


# Checks


def is_clear(message, path):
    """One printable line of bounded length that names the file."""
    return message.startswith(f"{path}: ") and message.isprintable() and len(message) <= 2000


def refusal(read, *arguments):
    """The message with which the arguments are refused; empty if they are not."""
    try:
        read(*arguments)
    except InputError as error:
        return str(error)
    return ""


def refused_or(content, accept, suffix=""):
    """Reads a file with this content: `accept` may refuse it by an `InputError` with one line."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of importers, on what they leave out
        path = Path(folder) / f"input{suffix}"
        path.write_bytes(content)
        message = refusal(accept, path)
        assert not message or is_clear(message, path)


def loads(path):
    """A graph that loads is saved and loaded as the same, and is a problem on a small module."""
    graph, brought = load_with_module(path)
    copy = path.with_name("copy.json")
    graph.save(copy)
    assert Graph.load(copy) == graph
    message = refusal(Problem.build, graph, brought or PAIR)
    assert message.isprintable()
    if not message:
        problem = Problem.build(graph, brought or PAIR)
        assert np.isfinite(problem.node_s).all()
        assert np.isfinite(problem.mean_load_s)
        assert all(line.isprintable() for line in headline(problem).split("\n"))


def loads_module(path):
    mcm = MCM.load(path)
    assert msgspec.convert(mcm.description(), MCMFile).resolve() == mcm


def reads_result(path):
    stored = read_partition(path)
    if isinstance(stored, StoredResult):
        scored = evaluation_of(Problem.build(GRAPH, PAIR), np.array([0, 1]))
        notes = stored.notes(scored)
        assert stored.mcm.num_chips == len(stored.file.stages)
        assert len(notes) <= 7
    chips = stored.on(GRAPH, PAIR)
    assert chips.shape == (2,)
    assert set(chips.tolist()) <= {0, 1}


def loads_policy(path):
    policy = Policy.load(path)
    shapes = jax.tree.map(np.shape, policy.params)
    assert shapes == jax.tree.map(np.shape, Policy.load(path).params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(policy.params))


def test_the_files_are_valid_before_they_are_changed(tmp_path):
    path = tmp_path / "input"
    for content, accept in [
        (GRAPH_JSON, loads),
        (gzip.compress(GRAPH_JSON, mtime=0), loads),
        (MODULE, loads_module),
        (RESULT, reads_result),
        (PARTITION, reads_result),
        (MAX_LOAD, loads),
        (PROFILE, loads),
        (onnx_model(), loads),
        (policy_file(), loads_policy),
    ]:
        path.write_bytes(content)
        accept(path)
    path.write_bytes(GRAPH_JSON)
    assert Graph.load(path) == GRAPH


@settings(max_examples=600)
@given(changed_text(GRAPH_JSON))
def test_graphs(content):
    refused_or(content, loads)


@settings(max_examples=200)
@given(changed_gzip())
def test_compressed_graphs(content):
    refused_or(content, loads, ".json.gz")


@settings(max_examples=500)
@given(changed_text(MODULE))
def test_modules(content):
    refused_or(content, loads_module, ".toml")


@settings(max_examples=600)
@given(st.one_of(changed_text(RESULT), changed_text(PARTITION)))
def test_results_and_partitions(content):
    refused_or(content, reads_result)


@settings(max_examples=500)
@given(changed_text(MAX_LOAD))
def test_max_load_inputs(content):
    refused_or(content, loads)


@settings(max_examples=500)
@given(changed_text(PROFILE))
def test_profiles(content):
    refused_or(content, loads)


@settings(max_examples=300)
@given(changed_bytes(onnx_model()))
def test_onnx_models(content):
    refused_or(content, loads, ".onnx")


@settings(max_examples=200)
@given(changed_policy(policy_file()))
def test_policies(content):
    refused_or(content, loads_policy, ".policy")
