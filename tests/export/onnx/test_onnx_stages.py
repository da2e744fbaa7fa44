"""Stages of ONNX models: run one after the other they give what the whole model gives."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import jaxpart
from jaxpart.export.manifest import read_stages
from tests.support.onnx_models import BOOL, FLOAT, INT64, body, model, node, numbers, out, value
from tests.support.stages import (
    FREE,
    assert_same,
    check_places,
    exported,
    random_feeds,
    run_stages,
    run_whole,
    save,
    spread,
    stage_models,
    with_random_weights,
)

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def weight(name, *shape, seed=0):
    rng = np.random.default_rng([seed, len(name), *shape])
    return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def sent(folder):
    """(sender, receiver, name) of each tensor that crosses, the host included."""
    found = {
        ("host", s["chip"], t["name"])
        for s in manifest_of(folder)["stages"]
        for t in s["inputs"]
        if t["from"] == "host"
    }
    return found | {
        (s["chip"], place, t["name"])
        for s in manifest_of(folder)["stages"]
        for t in s["outputs"]
        for place in t["to"]
    }


LIGHT_NAMES = sorted(path.stem for path in LIGHT.glob("light_*.onnx"))
assert len(LIGHT_NAMES) == 9, "the onnx package comes with nine"


@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_stages_of_a_light_model_give_its_outputs(name, tmp_path):
    light = with_random_weights(onnx.load(LIGHT / f"{name}.onnx"))

    folder = exported(tmp_path, light, 4)

    stages = manifest_of(folder)["stages"]
    assert len(stages) > 2
    graph = jaxpart.from_onnx(tmp_path / "model.onnx")
    total = sum(stage["weight_bytes"] for stage in stages)
    assert total == pytest.approx(sum(weight.bytes for weight in graph.weights), rel=0.01)


def test_the_manifest_names_what_crosses_and_where_to(tmp_path):
    """x -> a (chip 0) -> b (chip 1) -> c (chip 2), which reads a and x too; b is an output."""
    chain = model(
        [
            node("MatMul", "x w", "a", name="first"),
            node("Relu", "a", "b", name="second"),
            node("Sum", "b a x", "c", name="third"),
        ],
        [value("x", [2, 2])],
        [out("c"), out("b")],
        [weight("w", 2, 2)],
    )

    folder = exported(tmp_path, chain, {"first": 0, "second": 1, "third": 2})

    assert sent(folder) == {
        ("host", 0, "x"),
        ("host", 2, "x"),
        (0, 1, "a"),
        (0, 2, "a"),
        (1, 2, "b"),
        (1, "host", "b"),
        (2, "host", "c"),
    }
    manifest = manifest_of(folder)
    assert [stage["weight_bytes"] for stage in manifest["stages"]] == [16, 0, 0]
    assert [each["name"] for each in manifest["outputs"]] == ["c", "b"]
    assert manifest["kind"] == "onnx"
    assert manifest["mcm"] == "free"
    graph = jaxpart.from_onnx(tmp_path / "model.onnx")
    assert manifest["graph_sha256"] == graph.sha256
    assert read_stages(folder).stages[1].outputs[0].to == (2, "host")
    result = jaxpart.Result.load(folder / "result.json", graph)
    assert result.chips() == {"first": 0, "second": 1, "third": 2}
    assert [p.name for p in sorted(folder.iterdir())] == [
        "manifest.json",
        "result.json",
        "stage-00.onnx",
        "stage-01.onnx",
        "stage-02.onnx",
    ]


def test_a_weight_that_two_chips_share_is_no_edge(tmp_path):
    tied = model(
        [
            node("MatMul", "x w", "a", name="a"),
            node("Relu", "a", "b", name="b"),
            node("Transpose", "w", "t", perm=[1, 0]),
            node("MatMul", "b t", "c", name="c"),
        ],
        [value("x", [2, 4])],
        [out("c")],
        [weight("w", 4, 4)],
    )

    folder = exported(tmp_path, tied, {"a": 0, "b": 1, "c": 2})

    assert {(source, name) for source, _, name in sent(folder)} == {
        ("host", "x"),
        (0, "a"),
        (1, "b"),
        (2, "c"),
    }
    assert [stage["weight_bytes"] for stage in manifest_of(folder)["stages"]] == [64, 0, 64]
    models = stage_models(folder)
    assert [n.op_type for n in models[2].graph.node] == ["Transpose", "MatMul"]


def test_a_shape_that_is_read_far_away_is_stored_there(tmp_path):
    far = model(
        [
            node("Conv", "x w", "a", name="a", kernel_shape=[1, 1]),
            node("Shape", "a", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Unsqueeze", "n axes", "n1"),
            node("Concat", "n1 minus", "to", axis=0),
            node("Relu", "a", "b", name="b"),
            node("Sigmoid", "b", "c", name="c"),
            node("Reshape", "c to", "d", name="d"),
            node("Size", "x", "size"),
            node("Cast", "size", "scale", to=FLOAT),
            node("Div", "d scale", "e", name="e"),
        ],
        [value("x", [2, 3, 4, 4])],
        [out("e")],
        [weight("w", 5, 3, 1, 1), numbers("zero", 0), numbers("axes", [0]), numbers("minus", [-1])],
    )

    folder = exported(tmp_path, far, {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4})

    assert sent(folder) == {
        ("host", 0, "x"),
        (0, 1, "a"),
        (1, 2, "b"),
        (2, 3, "c"),
        (3, 4, "d"),
        (4, "host", "e"),
    }
    assert not any(
        n.op_type == "Shape" for m in stage_models(folder).values() for n in m.graph.node
    )


def test_cheap_work_on_inputs_is_in_each_stage_that_needs_it(tmp_path):
    """A mask of the input is cloned into both layers, and is no edge between them."""
    masked = model(
        [
            node("Cast", "mask", "m", to=FLOAT, name="cast"),
            node("Mul", "m big", "bias", name="bias"),
            node("MatMul", "x w0", "a", name="a"),
            node("Add", "a bias", "b", name="b"),
            node("MatMul", "b w1", "c", name="c"),
            node("Add", "c bias", "d", name="d"),
        ],
        [value("x", [8, 16]), value("mask", [1, 16], BOOL)],
        [out("d")],
        [weight("w0", 16, 16), weight("w1", 16, 16), numbers("big", -1e4, np.float32)],
    )
    save(tmp_path / "model.onnx", masked)
    names = [n.name for n in jaxpart.from_onnx(tmp_path / "model.onnx").nodes]
    assert names == ["a", "b", "c", "d"]

    folder = exported(tmp_path, masked, {"a": 0, "b": 1, "c": 2, "d": 3})

    held = {chip: [n.name for n in m.graph.node] for chip, m in stage_models(folder).items()}
    assert held == {0: ["a"], 1: ["cast", "bias", "b"], 2: ["c"], 3: ["cast", "bias", "d"]}
    assert {("host", 1, "mask"), ("host", 3, "mask")} <= sent(folder)


def test_an_output_may_be_an_input_a_constant_or_another_name(tmp_path):
    """Also one that only cloned work makes, and a constant that a node makes."""
    plain = model(
        [
            node("MatMul", "x w", "a", name="a"),
            node("Relu", "a", "b", name="b"),
            node("Identity", "b", "renamed"),
            node("Identity", "x", "copied"),
            node("Identity", "w", "held"),
            node("Neg", "w", "made"),
            node("Shape", "b", "shape"),
        ],
        [value("x", [2, 2]), value("unused", [3])],
        [
            out("b"),
            out("renamed"),
            out("copied"),
            out("held"),
            out("made"),
            value("w", [2, 2]),
            out("shape", INT64),
        ],
        [weight("w", 2, 2)],
    )

    folder = exported(tmp_path, plain, {"a": 0, "b": 1})

    to_host = {name: chip for chip, place, name in sent(folder) if place == "host"}
    assert to_host == {"b": 1, "renamed": 1, "copied": 0, "held": 0, "made": 0, "w": 0, "shape": 0}
    assert [t["name"] for t in manifest_of(folder)["inputs"]] == ["x", "unused"]


def test_an_output_that_is_the_input_itself_comes_from_the_host(tmp_path):
    passed = model(
        [node("Relu", "x", "y", name="y")], [value("x", [2])], [out("y"), value("x", [2])]
    )

    folder = exported(tmp_path, passed, {"y": 0})

    assert [t["name"] for t in manifest_of(folder)["outputs"]] == ["y", "x"]
    assert sent(folder) == {("host", 0, "x"), (0, "host", "y")}
    read_stages(folder)


def branches(name, *more):
    """Two branches that read outer tensors and outer weights."""
    then = body([node("MatMul", "a v", "t"), *more], [], [out("t")])
    other = body([node("Add", "x u", "e")], [], [out("e")], [weight("u", 2, 2)])
    return node("If", "go", name, name=name, then_branch=then, else_branch=other)


def test_an_if_finds_what_its_bodies_read(tmp_path):
    whole = model(
        [
            node("MatMul", "x w", "a", name="a"),
            node("Relu", "a", "b", name="b"),
            branches("c"),
            node("Add", "b c", "d", name="d"),
        ],
        [value("x", [2, 2]), value("go", [], BOOL)],
        [out("d")],
        [weight("w", 2, 2), weight("v", 2, 2)],
    )
    places = {"a": 0, "b": 1, "c": 2, "d": 3}
    path = save(tmp_path / "model.onnx", whole)
    folder = exported(tmp_path, path, places)

    for go in (True, False):
        feeds = {**random_feeds(path), "go": np.array(go)}
        assert_same(run_stages(folder, feeds), run_whole(path, feeds))
    assert {(0, 2, "a"), ("host", 2, "x"), ("host", 2, "go")} <= sent(folder)
    assert [s["weight_bytes"] for s in manifest_of(folder)["stages"]] == [16, 0, 32, 0]


def test_an_if_that_is_decided_before_the_run_is_its_branch(tmp_path):
    """Two such Ifs whose branches use the same names inside."""

    def decided(name, operand):
        then = body(
            [
                node("Neg", operand, "t", name=f"{name}/neg"),
                node("Exp", "t", "r", name=f"{name}/exp"),
            ],
            [],
            [out("r")],
        )
        other = body([node("Abs", operand, "t"), node("Relu", "t", "r")], [], [out("r")])
        return node("If", "yes", name, name=name, then_branch=then, else_branch=other)

    whole = model(
        [node("Tanh", "x", "a", name="a"), decided("b", "a"), decided("c", "b")],
        [value("x", [2, 2])],
        [out("c")],
        [numbers("yes", True, bool)],
    )
    path = save(tmp_path / "model.onnx", whole)
    names = [n.name for n in jaxpart.from_onnx(path).nodes]
    assert names == ["a", "b/neg", "b/exp", "c/neg", "c/exp"]

    exported(tmp_path, path, dict(zip(names, [0, 0, 1, 1, 2], strict=True)))


def loop(trips="trips"):
    """state -> state @ w + a, collected; reads the outer w and a."""
    step = body(
        [
            node("MatMul", "state w", "m"),
            node("Add", "m a", "next"),
            node("Identity", "next", "row"),
            node("Identity", "go_in", "go_out"),
        ],
        [value("i", [], INT64), value("go_in", [], BOOL), value("state", [2, 2])],
        [value("go_out", [], BOOL), value("next", [2, 2]), value("row", [2, 2])],
    )
    return node("Loop", f"{trips} _ x", "last rows", name="loop", body=step)


def test_a_loop_finds_what_its_body_reads(tmp_path):
    whole = model(
        [
            node("Tanh", "x", "a", name="a"),
            node("Relu", "a", "b", name="b"),
            loop(),
            node("ReduceSum", "rows", "sum", name="sum", keepdims=0),
            node("Add", "sum b", "c", name="c"),
        ],
        [value("x", [2, 2])],
        [out("c"), out("last")],
        [numbers("trips", 3), weight("w", 2, 2)],
    )

    folder = exported(tmp_path, whole, {"a": 0, "b": 1, "loop": 2, "sum": 3, "c": 4})

    assert (0, 2, "a") in sent(folder)
    assert [s["weight_bytes"] for s in manifest_of(folder)["stages"]] == [0, 0, 16, 0, 0]


def test_a_scan_finds_what_its_body_reads(tmp_path):
    step = body(
        [
            node("MatMul", "row w", "m"),
            node("Add", "m bias", "n"),
            node("Add", "n sum", "next"),
            node("Identity", "next", "made"),
        ],
        [value("sum", [4]), value("row", [4])],
        [value("next", [4]), value("made", [4])],
    )
    whole = model(
        [
            node("Tanh", "x", "a", name="a"),
            node("ReduceMax", "x axes", "bias", name="bias", keepdims=0),
            node("Scan", "zero a", "end rows", name="scan", body=step, num_scan_inputs=1),
            node("Add", "rows end", "y", name="y"),
        ],
        [value("x", [3, 4])],
        [out("y")],
        [weight("w", 4, 4), weight("zero", 4), numbers("axes", [0])],
    )

    exported(tmp_path, whole, {"a": 0, "bias": 1, "scan": 2, "y": 3})


def test_nodes_of_a_local_function_may_be_on_two_chips(tmp_path):
    opsets = [helper.make_opsetid("", 18)]
    inner = helper.make_function(
        "local",
        "Layer",
        ["p", "q"],
        ["r"],
        [node("MatMul", "p q", "s", name="product"), node("Relu", "s", "r", name="relu")],
        opsets,
    )
    whole = model(
        [
            node("Layer", "x w", "a", "local", name="one"),
            node("Layer", "a w", "b", "local", name="two"),
        ],
        [value("x", [2, 2])],
        [out("b")],
        [weight("w", 2, 2)],
        functions=[inner],
    )
    path = save(tmp_path / "model.onnx", whole)
    names = [n.name for n in jaxpart.from_onnx(path).nodes]
    assert len(names) == 4

    folder = exported(tmp_path, path, dict(zip(names, range(4), strict=True)))

    assert all(not m.functions for m in stage_models(folder).values())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_weights_and_tensors_are_kept_as_they_are(dtype, tmp_path):
    code = {"int8": TensorProto.INT8, "int4": TensorProto.INT4}[dtype]
    rng = np.random.default_rng(0)
    packed = helper.make_tensor("w", code, [8, 8], rng.integers(-8, 8, 64))
    zero = helper.make_tensor("zero", code, [], [0])
    whole = model(
        [
            node("DequantizeLinear", "w scale", "wf"),
            node("MatMul", "x wf", "a", name="a"),
            node("QuantizeLinear", "a scale zero", "q", name="q"),
            node("DequantizeLinear", "q scale", "d", name="d"),
            node("MatMul", "d wf", "e", name="e"),
        ],
        [value("x", [2, 8])],
        [out("e")],
        [packed, zero, numbers("scale", 0.25, np.float32)],
        opset=21,
    )

    folder = exported(tmp_path, whole, {"a": 0, "q": 0, "d": 1, "e": 2})

    crossing = next(t for t in manifest_of(folder)["stages"][0]["outputs"] if t["name"] == "q")
    assert crossing["dtype"] == dtype
    size = 64 if dtype == "int8" else 32
    assert [s["weight_bytes"] for s in manifest_of(folder)["stages"]] == [size, 0, size]


@pytest.mark.parametrize("opset", range(13, 24))
def test_stages_keep_the_versions_of_the_operators(opset, tmp_path):
    rng = np.random.default_rng(0)
    whole = model(
        [
            node("LSTM", "x w r _ _ h", "_ h1", name="lstm", hidden_size=4),
            node("Split", "h1 sizes", "p q", name="split", axis=2),
            node("Clip", "p _ one", "c", name="clip"),
            node("Softmax", "q", "s", name="softmax", axis=-1),
            node("Add", "c s", "y", name="y"),
        ],
        [value("x", [3, 1, 2])],
        [out("y")],
        [
            weight("w", 1, 16, 2),
            weight("r", 1, 16, 4),
            weight("h", 1, 1, 4),
            numbers("sizes", [2, 2]),
            numbers("one", rng.normal(), np.float32),
        ],
        opset=opset,
    )

    folder = exported(tmp_path, whole, {"lstm": 0, "split": 1, "clip": 2, "softmax": 3, "y": 4})

    for stage in stage_models(folder).values():
        assert {"": opset}.items() <= {o.domain: o.version for o in stage.opset_import}.items()
        onnx.checker.check_model(stage, full_check=True)


def test_integer_models_agree_bit_for_bit_and_names_may_be_odd(tmp_path):
    odd = ["/layer.0/Add:0", "名前", "a b\n", '"{}', "x" * 300]
    whole = model(
        [
            helper.make_node("Add", ["in put", "w/0"], [odd[0]], name="Add"),
            helper.make_node("Mul", [odd[0], "w/0"], [odd[1]], name="Add"),
            helper.make_node("BitShift", [odd[1], odd[0]], [odd[2]], direction="LEFT"),
            helper.make_node("Mod", [odd[2], "w/0"], [odd[3]], name="Add_0"),
            helper.make_node("Sub", [odd[3], odd[0]], [odd[4]], name="\t"),
        ],
        [value("in put", [64], TensorProto.UINT64)],
        [out(odd[4], TensorProto.UINT64)],
        [numbers("w/0", np.arange(1, 65), np.uint64)],
    )
    path = save(tmp_path / "model.onnx", whole)
    names = [n.name for n in jaxpart.from_onnx(path).nodes]
    folder = tmp_path / "stages"

    jaxpart.export(path, dict(zip(names, range(5), strict=True)), out=folder, mcm=FREE)

    for each in whole.graph.node:  # ONNX Runtime wants different names of nodes
        each.name = ""
    feeds = random_feeds(path)
    assert_same(run_stages(folder, feeds), run_whole(save(tmp_path / "plain.onnx", whole), feeds))
    assert [t["name"] for s in manifest_of(folder)["stages"] for t in s["outputs"]] == odd


@pytest.mark.filterwarnings("ignore:.*no cost rule for StringConcat")
def test_texts_pass_between_stages(tmp_path):
    whole = model(
        [
            node("StringConcat", "x x", "a", name="a"),
            node("StringConcat", "a x", "b", name="b"),
        ],
        [value("x", [2], TensorProto.STRING)],
        [out("b", TensorProto.STRING)],
        opset=20,
    )
    path = save(tmp_path / "model.onnx", whole)

    jaxpart.export(path, {"a": 0, "b": 1}, out=tmp_path / "stages", mcm=FREE)

    assert manifest_of(tmp_path / "stages")["stages"][1]["inputs"] == [
        {"name": "a", "dtype": "string", "shape": [2], "from": 0},
        {"name": "x", "dtype": "string", "shape": [2], "from": "host"},
    ]
    check_places(tmp_path / "stages", {"a": 0, "b": 1})


def test_free_dimensions_get_the_sizes_of_the_partition(tmp_path):
    whole = model(
        [
            node("MatMul", "x w", "a", name="a"),
            node("Shape", "a", "s"),
            node("ConstantOfShape", "s", "zeros"),
            node("Max", "a zeros", "b", name="b"),
        ],
        [value("x", ["batch", 4])],
        [value("b", ["batch", 4])],
        [weight("w", 4, 4)],
    )
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}

    folder = exported(tmp_path, whole, {"a": 0, "b": 1}, feeds, dims={"batch": 3})

    assert manifest_of(folder)["inputs"][0]["shape"] == [3, 4]


def test_old_models_list_their_weights_among_the_inputs(tmp_path):
    whole = model(
        [node("MatMul", "x w", "a", name="a"), node("Relu", "a", "b", name="b")],
        [value("x", [2, 2]), value("w", [2, 2])],
        [out("b")],
        [weight("w", 2, 2)],
        opset=13,
    )
    whole.ir_version = 3

    folder = exported(tmp_path, whole, {"a": 0, "b": 1})

    assert [t["name"] for t in manifest_of(folder)["inputs"]] == ["x"]


def test_sparse_weights_stay_sparse(tmp_path):
    sparse = helper.make_sparse_tensor(
        numbers("w", [1.0, 2.0], np.float32), numbers("", [0, 3]), [2, 2]
    )
    whole = model(
        [node("MatMul", "x w", "a", name="a"), node("MatMul", "a w", "b", name="b")],
        [value("x", [2, 2])],
        [out("b")],
        sparse_initializer=[sparse],
    )

    folder = exported(tmp_path, whole, {"a": 0, "b": 1})

    assert all(len(m.graph.sparse_initializer) == 1 for m in stage_models(folder).values())


def test_the_same_export_twice_writes_the_same_bytes(tmp_path):
    light = with_random_weights(onnx.load(LIGHT / "light_shufflenet.onnx"))
    path = save(tmp_path / "model.onnx", light)
    places = spread(jaxpart.from_onnx(path), 4)

    for name in ("one", "two", "two"):  # the second replaces itself
        jaxpart.export(path, places, out=tmp_path / name, mcm=FREE)

    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1]


@st.composite
def random_models(draw):
    """Layers of operators on 3 x 3 tensors that read earlier tensors, weights and inputs."""
    inputs = [f"in{i}" for i in range(draw(st.integers(1, 3)))]
    weights = [f"w{i}" for i in range(3)]
    # Side chains: cheap work on inputs that later layers read, and that is cloned.
    nodes = [
        node("Neg", "in0", "side0"),
        node("Add", "side0 w0", "side1"),
        node("Abs", "side1", "side2"),
    ]
    sides = ["side0", "side1", "side2"] * draw(st.integers(0, 2))
    values = [*inputs]
    kinds = ("MatMul", "MatMul", "Add", "Mul", "Neg", "Identity", "Reshape", "If")
    for i in range(draw(st.integers(4, 16))):
        kind = draw(st.sampled_from(kinds))
        one = draw(st.sampled_from(values[-4:]))
        two = draw(st.sampled_from(values + weights + sides))
        made = f"v{i}"
        if kind in ("Neg", "Identity"):
            nodes.append(node(kind, one, made, name=made))
        elif kind == "Reshape":
            nodes += [node("Shape", two, f"s{i}"), node("Reshape", f"{one} s{i}", made, name=made)]
        elif kind == "If":
            then = body(
                [node("Add", f"{one} {two}", f"t{i}")],
                [],
                [value(f"t{i}", [3, 3], TensorProto.INT32)],
            )
            other = body(
                [node("Neg", two, f"e{i}")], [], [value(f"e{i}", [3, 3], TensorProto.INT32)]
            )
            nodes.append(node("If", "go", made, name=made, then_branch=then, else_branch=other))
        else:
            nodes.append(node(kind, f"{one} {two}", made, name=made))
        values.append(made)
    made = values[len(inputs) :]
    results = sorted({made[-1], *draw(st.lists(st.sampled_from([*made, "side1"]), max_size=2))})
    rng = np.random.default_rng(0)
    stored = [numbers(name, rng.integers(-2, 3, (3, 3)), np.int32) for name in weights]
    declared = [value(name, [3, 3], TensorProto.INT32) for name in inputs]
    return (
        model(
            nodes,
            [*declared, value("go", [], BOOL)],
            [value(name, [3, 3], TensorProto.INT32) for name in results],
            stored,
        ),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 99)),
    )


@settings(max_examples=60)
@given(random_models())
def test_stages_of_any_model_of_integers_give_its_outputs_bit_for_bit(tmp_path_factory, drawn):
    whole, chips, seed = drawn
    folder = tmp_path_factory.mktemp("random")
    path = save(folder / "model.onnx", whole)
    try:
        jaxpart.from_onnx(path)
    except jaxpart.EmptyGraphError:
        return  # nothing but constants
    exported(folder, path, chips, seed=seed)
