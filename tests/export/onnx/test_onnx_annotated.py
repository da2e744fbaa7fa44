"""One ONNX file that says where each node runs."""

import numpy as np
import onnx
import onnxruntime
import pytest

import jaxpart
from jaxpart.errors import FileFormatError
from jaxpart.export.onnx.annotated import check_places
from tests.support.onnx_models import FLOAT, model, node, numbers, out, value
from tests.support.stages import FREE, assert_same, random_feeds, run_whole, save, stage_models

PLACES = {"a": 0, "b": 0, "c": 3, "d": 5}


@pytest.fixture
def placed(tmp_path):
    """The annotated model; the Transpose serves two chips, the Cast one."""
    rng = np.random.default_rng(0)
    whole = model(
        [
            node("Transpose", "w", "t", name="turn"),
            node("MatMul", "x t", "p", name="a"),
            node("Relu", "p", "q", name="b"),
            node("MatMul", "q t", "r", name="c"),
            node("Cast", "half", "scale", name="cast", to=FLOAT),
            node("Mul", "r scale", "y", name="d"),
        ],
        [value("x", [2, 4])],
        [out("y")],
        [numbers("w", rng.normal(size=(4, 4)), np.float32), numbers("half", 0.5, np.float16)],
    )
    path = save(tmp_path / "model.onnx", whole)
    jaxpart.export(path, PLACES, to="onnx-annotated", out=tmp_path / "placed.onnx", mcm=FREE)
    return tmp_path / "placed.onnx"


def test_each_node_has_the_place_of_its_chip(placed):
    loaded = onnx.load(placed)

    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.ir_version >= 11
    (configuration,) = loaded.configuration
    assert list(configuration.device) == ["chip00", "chip03", "chip05"]
    assert configuration.num_devices == 3
    stages = {
        n.name: [p.pipeline_stage for p in n.device_configurations] for n in loaded.graph.node
    }
    layers = {n.name: [(p.key, p.value) for p in n.metadata_props] for n in loaded.graph.node}
    assert stages == {"turn": [], "a": [0], "b": [0], "c": [1], "cast": [2], "d": [2]}
    assert layers["turn"] == []
    assert layers["c"] == [("layer_ann", "chip03")]
    check_places(loaded, "model")


def test_the_annotated_file_computes_what_the_model_computes(placed, tmp_path):
    feeds = random_feeds(tmp_path / "model.onnx")

    assert_same(run_whole(placed, feeds), run_whole(tmp_path / "model.onnx", feeds))


def test_onnx_runtime_accepts_the_file_and_rules_for_its_places(placed):
    """No more: a build for CPUs has one device, and places all nodes there by any rule."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.layer_assignment_settings", "cpu(chip00, chip03)")

    onnxruntime.InferenceSession(str(placed), options, providers=["CPUExecutionProvider"])


def test_a_place_is_not_stated_twice(placed, tmp_path):
    again = tmp_path / "again.onnx"

    jaxpart.export(placed, {**PLACES, "d": 4}, to="onnx-annotated", out=again, mcm=FREE)

    jaxpart.export(placed, PLACES, out=tmp_path / "stages", mcm=FREE)
    for stage in stage_models(tmp_path / "stages").values():
        assert not any(n.device_configurations or n.metadata_props for n in stage.graph.node)
    last = onnx.load(again).graph.node[-1]
    assert len(last.device_configurations) == 1
    assert [entry.value for entry in last.metadata_props] == ["chip04"]


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        (
            "configuration_id",
            "other",
            "is placed by 'other', expected a configuration of the model",
        ),
        ("pipeline_stage", 3, "is in pipeline stage 3, expected 0 to 2"),
        ("pipeline_stage", -1, "is in pipeline stage -1, expected 0 to 2"),
    ],
)
def test_a_place_that_does_not_exist_is_noticed(field, wrong, message, placed):
    """The onnx package accepts it."""
    loaded = onnx.load(placed)
    setattr(loaded.graph.node[1].device_configurations[0], field, wrong)
    onnx.checker.check_model(loaded)

    with pytest.raises(FileFormatError, match=message):
        check_places(loaded, "model")
