"""Weights in other files: linked or copied in parts, never read for the annotated file."""

import errno
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import jaxpart
from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.manifest import read_stages
from tests.support.onnx_models import BOOL, body, model, node, out, value
from tests.support.stages import (
    FREE,
    assert_same,
    exported,
    random_feeds,
    run_stages,
    run_whole,
    save,
)

PLACES = {"a": 0, "b": 1, "c": 2}
SIZE = 8 * 8 * 4


def elsewhere(name, *dims, path="weights.bin", offset=None, length=None):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": path, "offset": offset, "length": length}
    for key, entry in entries.items():
        if entry is not None:
            tensor.external_data.add(key=key, value=str(entry))
    return tensor


def with_data(*weights):
    """a = x w0; b = a w1, or a w2, as an If decides; c = b w0."""
    then = body([node("MatMul", "a w1", "t")], [], [out("t")])
    other = body([node("MatMul", "a w2", "e")], [], [out("e")])
    return model(
        [
            node("MatMul", "x w0", "a", name="a"),
            node("If", "go", "b", name="b", then_branch=then, else_branch=other),
            node("MatMul", "b w0", "c", name="c"),
        ],
        [value("x", [2, 8]), value("go", [], BOOL)],
        [out("c")],
        weights
        or [
            elsewhere("w0", 8, 8, length=SIZE),
            elsewhere("w1", 8, 8, offset=SIZE, length=SIZE),
            elsewhere("w2", 8, 8, path="more/w2.bin"),
        ],
    )


@pytest.fixture
def path(tmp_path):
    """A model with its weights in two files, of which the first has more than the weights."""
    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    rng.normal(size=192).astype(np.float32).tofile(tmp_path / "weights.bin")
    rng.normal(size=64).astype(np.float32).tofile(tmp_path / "more" / "w2.bin")
    return save(tmp_path / "model.onnx", with_data())


def names(folder):
    return sorted(file.name for file in folder.iterdir())


STAGES = ["stage-00.onnx", "stage-01.onnx", "stage-02.onnx"]


def test_a_data_file_gets_a_second_name_and_no_copy(path, tmp_path):
    folder = exported(tmp_path, path, PLACES)

    linked = ["weights-00.data", "weights-01.data"]
    assert names(folder) == ["manifest.json", "result.json", *STAGES, *linked]
    assert (folder / linked[0]).samefile(tmp_path / "weights.bin")
    assert (folder / linked[1]).samefile(tmp_path / "more" / "w2.bin")
    stages = read_stages(folder).stages
    assert [sorted(stage.sha256)[2:] for stage in stages] == [linked[:1], linked, linked[:1]]
    assert [stage.weight_bytes for stage in stages] == [SIZE, 2 * SIZE, SIZE]
    feeds = {**random_feeds(path), "go": np.array(False)}
    assert_same(run_stages(folder, feeds), run_whole(path, feeds))


@pytest.mark.parametrize("why", ["asked for", "another file system"])
def test_else_each_stage_has_a_copy_of_what_it_reads(why, path, tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if why == "another file system":
        monkeypatch.setattr(os, "link", refuse)
    folder = exported(tmp_path, path, PLACES, copy_data=why == "asked for")

    copies = ["stage-00.data", "stage-01.data", "stage-02.data"]
    assert [name for name in names(folder) if name.endswith(".data")] == copies
    assert [(folder / name).stat().st_size for name in copies] == [SIZE, 4096 + SIZE, SIZE]
    assert os.stat(tmp_path / "weights.bin").st_nlink == 1
    onnx.checker.check_model(folder / "stage-01.onnx")
    loaded = onnx.load(folder / "stage-02.onnx")
    assert loaded.graph.initializer[0].raw_data == (tmp_path / "weights.bin").read_bytes()[:SIZE]


def test_data_of_a_model_that_is_a_link_is_found(path, tmp_path):
    """As the cache of Hugging Face keeps it: names are links to files in another folder."""
    cache = tmp_path / "cache" / "snapshot"
    (cache / "more").mkdir(parents=True)
    for name in ("model.onnx", "weights.bin", "more/w2.bin"):
        blob = tmp_path / "cache" / "blobs" / name.replace("/", "-")
        blob.parent.mkdir(exist_ok=True)
        (tmp_path / name).rename(blob)
        (cache / name).symlink_to(blob)
    linked = cache / "model.onnx"
    assert os.path.realpath(linked).endswith("blobs/model.onnx")
    folder = tmp_path / "stages"

    jaxpart.export(linked, PLACES, out=folder, mcm=FREE)

    assert (folder / "weights-01.data").samefile(tmp_path / "cache" / "blobs" / "more-w2.bin")


@pytest.mark.parametrize("missing", ["weights.bin", "more/w2.bin"])
def test_a_stage_needs_its_weights_and_names_what_is_missing(missing, path, tmp_path):
    (tmp_path / missing).unlink()

    with pytest.raises(InputError, match=f"'{missing}', which is missing"):
        jaxpart.export(path, PLACES, out=tmp_path / "stages", mcm=FREE)

    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"offset": 3 * SIZE - 1}, r"ends at byte 1,023 of 'weights.bin', which has 768 bytes"),
        ({"offset": "-1"}, "offset is '-1', expected a number of bytes"),
        ({"offset": "1e3"}, "offset is '1e3', expected a number of bytes"),
        ({"length": SIZE - 1}, "has 255 bytes in 'weights.bin', expected 256"),
        ({"length": "9" * 30}, "expected a number of bytes"),
    ],
)
def test_a_place_that_is_none_is_refused(broken, message, path, tmp_path):
    good = [elsewhere("w1", 8, 8), elsewhere("w2", 8, 8)]
    save(path, with_data(elsewhere("w0", 8, 8, **broken), *good))

    with pytest.raises(FileFormatError, match=message):
        jaxpart.export(path, PLACES, out=tmp_path / "stages", mcm=FREE)


def test_a_linked_file_that_changes_later_is_noticed(path, tmp_path):
    folder = exported(tmp_path, path, PLACES)
    with open(tmp_path / "weights.bin", "r+b") as file:
        file.write(b"\0\0\0\0")

    with pytest.raises(InputError, match=r"weights-00\.data: was changed since it was exported"):
        read_stages(folder)


def test_the_annotated_file_needs_no_weights(path, tmp_path):
    (tmp_path / "weights.bin").unlink()

    jaxpart.export(path, PLACES, to="onnx-annotated", out=tmp_path / "placed.onnx", mcm=FREE)

    placed = onnx.load(tmp_path / "placed.onnx", load_external_data=False)
    places = {t.name: t.external_data[0].value for t in placed.graph.initializer}
    assert places == {"w0": "weights.bin", "w1": "weights.bin", "w2": "more/w2.bin"}


def test_the_annotated_file_is_beside_the_data_or_refused(path, tmp_path):
    """Their places are relative to its folder."""
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"tensor 'w0' .* in the file 'weights.bin' beside the"):
        jaxpart.export(
            path, PLACES, to="onnx-annotated", out=tmp_path / "other" / "placed.onnx", mcm=FREE
        )
    assert not any((tmp_path / "other").iterdir())

    jaxpart.export(path, PLACES, to="onnx-annotated", out=tmp_path / "placed.onnx", mcm=FREE)
    feeds = {**random_feeds(path), "go": np.array(True)}
    assert_same(run_whole(tmp_path / "placed.onnx", feeds), run_whole(path, feeds))
