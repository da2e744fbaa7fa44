"""The folder of stages: written whole, and checked on the way in."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.manifest import (
    Manifest,
    Stage,
    StageInput,
    StageOutput,
    TensorInfo,
    check_folder,
    read_stages,
    write_stages,
)

X = {"name": "x", "dtype": "float32", "shape": (2,)}
T = {"name": "t", "dtype": "int4", "shape": (2, 3)}
Y = {"name": "y", "dtype": "float32", "shape": ()}
MANIFEST = Manifest(
    kind="onnx",
    graph="model",
    graph_sha256="0" * 64,
    mcm="mcm4",
    inputs=(TensorInfo(**X),),
    outputs=(TensorInfo(**Y),),
    stages=(
        Stage(
            0,
            "one",
            12,
            (StageInput(**X, source="host"),),
            (StageOutput(**T, to=(2,)),),
            {"one": "", "shared": ""},
        ),
        Stage(
            2,
            "two",
            0,
            (StageInput(**T, source=0), StageInput(**X, source="host")),
            (StageOutput(**Y, to=("host",)),),
            {"two": "", "shared": ""},
        ),
    ),
)
FILES = {"one": b"1", "two": b"2", "shared": lambda path: path.write_bytes(b"s")}


@pytest.fixture
def folder(tmp_path):
    write_stages(tmp_path / "stages", MANIFEST, FILES)
    return tmp_path / "stages"


def test_what_is_written_is_read_again(folder):
    manifest = read_stages(folder)

    assert manifest.stages[1].inputs == MANIFEST.stages[1].inputs
    assert manifest.stages[0].sha256["one"].startswith("6b86b273ff34")  # of "1"
    assert sorted(file.name for file in folder.iterdir()) == [
        "manifest.json",
        "one",
        "shared",
        "two",
    ]
    text = (folder / "manifest.json").read_text()
    assert text.startswith('{\n "format": "jaxpart-stages",\n "version": 1,\n "kind": "onnx",')
    keys = json.loads(text)["stages"][1]["inputs"][0]
    assert keys == {"name": "t", "dtype": "int4", "shape": [2, 3], "from": 0}


def test_the_folder_is_readable_for_others(folder):
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("before", ["nothing", "empty", "stages"])
def test_an_empty_folder_and_one_of_stages_are_replaced(before, tmp_path):
    folder = tmp_path / "stages"
    if before != "nothing":
        folder.mkdir()
    if before == "stages":
        one = replace(MANIFEST.stages[1], inputs=(), file="old", sha256={"old": ""})
        old = replace(MANIFEST, stages=(one,))
        write_stages(folder, old, {"old": b"old"})

    write_stages(folder, MANIFEST, FILES)

    assert len(list(folder.iterdir())) == 4
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("beside", ["nothing", "stages", "another manifest"])
def test_other_files_stay(beside, tmp_path):
    home = tmp_path / "home"
    if beside == "stages":
        write_stages(home, MANIFEST, FILES)
    else:
        home.mkdir()
    if beside == "another manifest":
        (home / "manifest.json").write_text('{"short_name": "of a web page"}')
    (home / "letter").write_text("mine")
    before = {file.name: file.read_bytes() for file in home.iterdir()}

    with pytest.raises(InputError, match="holds other files"):
        write_stages(home, MANIFEST, FILES)

    assert {file.name: file.read_bytes() for file in home.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected the name of a folder"),
        ("..", "expected the name of a folder"),
        ("no/where", "the folder .*no does not exist"),
        ("file", "is a file, expected a folder"),
        ("link", "is a link, expected a folder"),
        ("a\0b", "is no valid path"),
        ("\ud800", "is no valid path"),
    ],
)
def test_a_place_where_no_folder_can_be_is_refused(name, message, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)

    with pytest.raises(InputError, match=message):
        check_folder(Path(name) if name in ("", "..") else tmp_path / name)


@pytest.mark.parametrize("when", ["a file", "a content", "the manifest", "the rename"])
def test_a_write_that_fails_leaves_the_old_stages(when, folder, tmp_path, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write, rename = Path.write_bytes, Path.rename

    def fail(path):
        raise full

    def write_until(self, data):
        if self.name == {"a file": "two", "the manifest": "manifest.json"}.get(when):
            raise full
        return write(self, data)

    def rename_until(self, target):
        new = self.name.startswith(".jaxpart.") and ".new." in self.name
        if when == "the rename" and new:
            raise full
        return rename(self, target)

    monkeypatch.setattr(Path, "write_bytes", write_until)
    monkeypatch.setattr(Path, "rename", rename_until)
    files = {**FILES, "two": b"new", **({"shared": fail} if when == "a content" else {})}
    with pytest.raises(InputError, match=r"cannot write here \(No space left on device\)"):
        write_stages(folder, MANIFEST, files)

    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def changed(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def at(*keys, to):
    """A change of the value at some keys; `to` is the new value."""

    def change(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("format", to="jaxpart-graph"), "format"),
        (at("version", to=2), "version"),
        (at("kind", to="tflite"), "kind"),
        (at("speed", to=1), "unknown field `speed`"),
        (at("stages", 0, "speed", to=1), "unknown field `speed`"),
        (at("inputs", 0, "from", to="host"), "unknown field `from`"),
        (lambda m: m.pop("graph_sha256"), "missing required field `graph_sha256`"),
        (lambda m: m["stages"][0].pop("sha256"), "missing required field `sha256`"),
        (at("stages", to=[]), "stages is empty"),
        (at("stages", 0, "chip", to=-1), ">= 0"),
        (at("stages", 0, "weight_bytes", to=-1), ">= 0"),
        (at("stages", 0, "outputs", 0, "to", to=["chip2"]), "Invalid enum value 'chip2'"),
        (at("inputs", 0, "shape", to=[-1]), ">= 0"),
        (at("inputs", 0, "shape", to=["batch"]), "Expected `int`"),
        (at("stages", 0, "chip", to=2), "chip 2 after chip 2, expected order"),
        (at("stages", 0, "chip", to=3), "chip 2 after chip 3, expected order"),
        (at("stages", 0, "file", to="three"), r"sha256 has no hash of 'three'"),
        (at("stages", 1, "inputs", 0, "from", to="host"), "the host does not send 't' to it"),
        (at("stages", 1, "inputs", 0, "from", to=1), "chip 1 does not send 't' to it"),
        (at("stages", 1, "inputs", 0, "from", to=2), "chip 2 does not send 't' to it"),
        (at("stages", 1, "inputs", 0, "name", to="u"), "chip 0 does not send 'u' to it"),
        (at("stages", 0, "outputs", 0, "to", to=["host"]), "chip 0 does not send 't' to it"),
        (at("stages", 0, "outputs", 0, "to", to=[1, 2]), "sends 't' to chip 1, expected a later"),
        (at("stages", 0, "outputs", 0, "to", to=[0, 2]), "sends 't' to chip 0, expected a later"),
        (at("stages", 1, "inputs", 1, "dtype", to="int8"), "'x' is sent with another dtype"),
        (at("stages", 1, "inputs", 0, "shape", to=[2]), "'t' is sent with another dtype or shape"),
        (at("outputs", 0, "shape", to=[1]), r"\$.outputs: 'y' is sent with another dtype or shape"),
        (at("outputs", 0, "name", to="z"), "no stage sends 'z' to the host"),
        (at("stages", 1, "outputs", 0, "to", to=[]), "no stage sends 'y' to the host"),
        (lambda m: m["stages"][1].update(inputs=m["stages"][1]["inputs"] * 2), "'t' stands twice"),
        (lambda m: m["stages"][0].update(outputs=m["stages"][0]["outputs"] * 2), "stands twice"),
    ],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_refused(change, message, folder):
    changed(folder, change)

    with pytest.raises(FileFormatError, match=message):
        read_stages(folder)


@pytest.mark.parametrize(
    "name",
    ["../one", "/etc/passwd", "..", ".", "", "sub/one", "sub\\one", "C:one", "one\0"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, folder):
    changed(folder, lambda m: m["stages"][0]["sha256"].update({name: "0"}))
    with pytest.raises(FileFormatError, match="is not within the folder"):
        read_stages(folder)

    changed(folder, lambda m: m["stages"][0].update(file=name))
    with pytest.raises(FileFormatError, match="is not within the folder"):
        read_stages(folder)


@pytest.mark.parametrize("name", ["one", "shared"])
def test_a_file_that_is_not_as_it_was_is_named(name, folder, tmp_path):
    (folder / name).write_bytes(b"other")
    with pytest.raises(InputError, match=rf"{name}: was changed since it was exported"):
        read_stages(folder)

    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: is missing, expected the file of chip 0"):
        read_stages(folder)

    (folder / name).symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=rf"{name}: is a link"):
        read_stages(folder)

    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}: is a folder"):
        read_stages(folder)


def test_what_is_no_folder_of_stages_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="is no folder, expected a folder of stages"):
        read_stages(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"manifest.json: cannot be read \(No such file"):
        read_stages(tmp_path)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(FileFormatError, match="expected a manifest"):
        read_stages(folder)
    (folder / "manifest.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(FileFormatError, match="UTF-16"):
        read_stages(folder)


def test_a_manifest_that_is_cut_off_is_refused(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for end in range(0, len(whole) - 2, 29):
        path.write_bytes(whole[:end])
        with pytest.raises(FileFormatError, match=r"manifest\.json: "):
            read_stages(folder)


def test_a_copied_folder_is_still_good(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")

    assert read_stages(tmp_path / "copy") == read_stages(folder)


SLOW = """
import sys, time
from pathlib import Path
from jaxpart.export import manifest
from tests.export.test_manifest import FILES, MANIFEST

def wait(*_):
    print("waits", flush=True)
    time.sleep(99)

folder, where = Path(sys.argv[1]), sys.argv[2]
if where == "writing":
    manifest.write_stages(folder, MANIFEST, {**FILES, "shared": wait})
else:  # between the two renames
    real = Path.rename
    Path.rename = lambda self, to: real(self, to) if self == folder else wait()
    manifest.write_stages(folder, MANIFEST, FILES)
"""


@contextlib.contextmanager
def export_that_waits(folder, where):
    """A process that exports into a folder, and stands still in the middle."""
    command = [sys.executable, "-c", SLOW, str(folder), where]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"waits\n"
            yield process
        finally:
            process.kill()


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".jaxpart.")]


def test_a_killed_export_is_tidied_up_by_the_next_one_into_the_same_place(tmp_path):
    target = tmp_path / "stages"
    with export_that_waits(target, "writing") as process:
        write_stages(target, MANIFEST, FILES)
        assert len(hidden(tmp_path)) == 1, "that of a living process stays"
        process.kill()  # SIGKILL: nothing of its own tidies up
    assert len(hidden(tmp_path)) == 1

    write_stages(tmp_path / "other", MANIFEST, FILES)
    assert len(hidden(tmp_path)) == 1, "another place"
    write_stages(target, MANIFEST, FILES)
    assert hidden(tmp_path) == []
    assert len(read_stages(target).stages) == 2


def test_stages_that_a_killed_export_had_moved_away_come_back(folder):
    before = (folder / "manifest.json").read_bytes()
    with export_that_waits(folder, "replacing"):
        assert not folder.exists()
    assert len(hidden(folder.parent)) == 2

    with pytest.raises(InputError, match="cannot write here"):
        write_stages(folder, MANIFEST, {**FILES, "shared": lambda path: (path / "no").touch()})

    assert (folder / "manifest.json").read_bytes() == before
    assert hidden(folder.parent) == []
