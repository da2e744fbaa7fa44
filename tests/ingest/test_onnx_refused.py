"""ONNX models: what no graph can be made of is refused by file and place."""

import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from jaxpart.errors import CycleError, EmptyGraphError, FileFormatError, InputError
from jaxpart.ingest.onnx.importer import from_onnx, from_onnx_bytes
from tests.support.onnx_models import (
    INT64,
    model,
    node,
    numbers,
    out,
    stored,
    value,
)

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


def test_a_circle_of_nodes_is_refused_by_its_names():
    body = [
        node("Add", "x b", "a", name="first"),
        node("Relu", "a", "b", name="second"),
        node("Relu", "b", "y"),
    ]

    with pytest.raises(CycleError, match=r"first \(Add\) -> second \(Relu\) -> first"):
        from_onnx(model(body, [value("x", [3])], [out()]))


# fmt: off
BROKEN = [
    (model([node("Add", "x z", "y")], [value("x", [3])], [out()]),
     FileFormatError, r"node 0, a node \(Add\), reads 'z', expected"),
    (model([node("Relu", "x", "a")], [value("x", [3])], [out()]),
     FileFormatError, "nothing makes the output 'y'"),
    (model([node("Relu", "x", "y"), node("Exp", "x", "y")], [value("x", [3])], [out()]),
     FileFormatError, "value 'y' is made twice"),
    (model([node("MatMul", "x w", "y")], [value("x", [3])], [out()], [stored("w", 4, 5)]),
     FileFormatError, "broken ONNX model .*Incompatible dimensions"),
    (model([node("Relu", "x", "y")], [value("x", None)], [out()]),
     InputError, "input 'x' has no shape"),
    (model([node("NonZero", "x", "y")], [value("x", [3])], [out(dtype=INT64)]),
     InputError, r"the shape of 'y', made by a node \(NonZero\), cannot be inferred"),
    (model([node("SequenceConstruct", "x", "s"), node("SequenceAt", "s i", "y")],
           [value("x", [3])], [out()], [numbers("i", 0)]),
     FileFormatError, "'s', made by a node \\(SequenceConstruct\\), is no tensor"),
    (model([], [value("x", [3])], [value("x", [3])]),
     EmptyGraphError, "no node depends on an input"),
    (model([node("Identity", "x", "y")], [value("x", [3])], [out()]),
     EmptyGraphError, "no node depends on an input"),
]
# fmt: on


@pytest.mark.parametrize(("broken", "error", "message"), BROKEN)
def test_a_model_that_cannot_be_is_refused_by_file_and_place(tmp_path, broken, error, message):
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken.SerializeToString())

    with pytest.raises(error, match=message) as caught:
        from_onnx(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_model_are_refused():
    for content in (b"", b"\x00\x01rubbish", b"\x08\x03"):
        with pytest.raises(FileFormatError, match=r"^some\.onnx: .*expected an ONNX model"):
            from_onnx_bytes(content, "some.onnx")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        from_onnx(tmp_path / "none.onnx")


def relu(opset=18):
    return model([node("Relu", "x", "y")], [value("x", (2, 2))], [out("y")], opset=opset)


def in_function(opset):
    """A local function that states its own version of the operators."""
    opsets = [helper.make_opsetid("", opset)]
    inner = helper.make_function("local", "f", ["a"], ["b"], [node("Relu", "a", "b")], opsets)
    call = [node("f", "x", "y", domain="local")]
    return model(call, [value("x", (2, 2))], [out("y")], functions=[inner])


def test_a_later_version_than_the_onnx_package_knows_is_refused():
    newest, version = onnx.defs.onnx_opset_version(), re.escape(onnx.__version__)
    assert len(from_onnx(relu(newest)).nodes) == 1
    for later in (relu(newest + 1), relu(999), in_function(999)):
        message = rf"^some\.onnx: opset \d+, expected at most {newest} \(onnx {version}\)$"
        with pytest.raises(FileFormatError, match=message):
            from_onnx_bytes(later.SerializeToString(), "some.onnx")
    later = relu()
    later.ir_version = 99
    message = rf"^some\.onnx: IR version 99, expected at most {onnx.IR_VERSION} \(onnx {version}\)$"
    with pytest.raises(FileFormatError, match=message):
        from_onnx_bytes(later.SerializeToString(), "some.onnx")


def test_a_model_that_is_cut_off_is_refused_unless_all_but_versions_of_other_domains_is_there():
    """Behind the graph stand the versions of the operators; that of the standard ones is first."""
    content = relu().SerializeToString()
    for twentieth in range(20):
        with pytest.raises(FileFormatError, match=r"^some\.onnx: .*expected"):
            from_onnx_bytes(content[: twentieth * len(content) // 20], "some.onnx")
    graph = relu().graph.SerializeToString()
    read = []
    for end in range(content.index(graph) + len(graph), len(content)):
        try:
            assert from_onnx_bytes(content[:end], "some.onnx").nodes == from_onnx(relu()).nodes
            read.append(onnx.load_model_from_string(content[:end]).opset_import)
        except FileFormatError:
            pass
    assert [[o.domain for o in opsets] for opsets in read] == [[""], ["", "com.microsoft"]]


def test_damaged_bytes_never_bring_another_error_than_one_clear_line():
    source = (DATA / "light" / "light_squeezenet.onnx").read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for trial in range(60):
        damaged = bytearray(source)
        if trial % 3:
            for place in rng.integers(0, len(source), 3):
                damaged[place] = rng.integers(0, 256)
        else:
            del damaged[rng.integers(0, len(source)) :]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a damaged operator is one without a rule
                from_onnx_bytes(bytes(damaged), "damaged.onnx")
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(m.startswith("damaged.onnx: ") and "\n" not in m for m in refused)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (node("Gemm", "x _", "y"), "has no operand 1"),
        (node("Loop", "_ _ x", "y"), "has no attribute 'body'"),
        (node("Split", "x", "y z", num_outputs=1), "expected num_outputs, 1"),
        (node("Einsum", "x", "y", equation=b"\xff"), "expected ASCII"),
    ],
)
def test_a_node_without_what_its_operator_needs_is_refused_before_inference(broken, message):
    with pytest.raises(InputError, match=message):
        from_onnx(model([broken], [value("x", (2, 2))], [value("y", (2, 2))]))
