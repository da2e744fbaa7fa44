"""ONNX models that lie: one clear line, bounded time and memory."""

import os

import numpy as np
import pytest
from onnx import helper

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.load import load_graph
from jaxpart.ingest.onnx.importer import from_onnx
from tests.support.onnx_models import (
    BOOL,
    INT64,
    body,
    far,
    model,
    node,
    numbers,
    out,
    value,
)


def function(name, calls):
    """A local function that calls others one after another."""
    names = ["a", *(f"t{i}" for i in range(len(calls) - 1)), "b"]
    nodes = [
        node(called, names[i], names[i + 1], domain="" if called == "Relu" else "local")
        for i, called in enumerate(calls)
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, opsets)


def calling(*functions):
    caller = node("F0", "x", "y", domain="local")
    return model([caller], [value("x", [3])], [out()], functions=functions)


@pytest.mark.parametrize(
    "functions",
    [
        [("F0", ["F0"])],
        [("F0", ["F1"]), ("F1", ["F2", "F0"]), ("F2", ["Relu"])],
    ],
)
def test_functions_that_call_themselves_are_refused(functions):
    with pytest.raises(FileFormatError, match="model: functions call themselves in a circle"):
        from_onnx(calling(*(function(*f) for f in functions)))


def test_functions_that_grow_too_wide_are_refused_before_they_are_opened():
    wide = [function(f"F{i}", [f"F{i + 1}"] * 10) for i in range(30)]

    with pytest.raises(FileFormatError, match=r"over 10\^18 nodes after all functions"):
        from_onnx(calling(*wide, function("F30", ["Relu"])))
    graph = from_onnx(calling(*wide[28:], *[function("F30", ["Relu"])], function("F0", ["F28"])))
    assert len(graph.nodes) == 100


def sized(*nodes, stored=()):
    """A model that broadcasts its input to the size `n`."""
    return model([*nodes, node("Expand", "x n", "y")], [value("x", [1])], [out()], stored)


# fmt: off
LARGE = {
    "ConstantOfShape": sized(node("ConstantOfShape", "a", "n"), stored=[numbers("a", [10**12])]),
    "Range": sized(node("Range", "a b c", "n"),
                   stored=[numbers("a", 0), numbers("b", 10**12), numbers("c", 1)]),
    "Range of fractions": sized(node("Range", "a b c", "f"), node("Cast", "f", "n", to=INT64),
                                stored=[numbers(k, v, np.float32)
                                        for k, v in (("a", 0), ("b", 1), ("c", 1e-12))]),
    "Tile": sized(node("Tile", "a b", "n"), stored=[numbers("a", [2]), numbers("b", [10**12])]),
    "Pad": sized(node("Pad", "a b", "n"), stored=[numbers("a", [2]), numbers("b", [10**12, 0])]),
    "OneHot": sized(node("OneHot", "a b c", "o"), node("Reshape", "o d", "n"),
                    stored=[numbers("a", [2]), numbers("b", 10**12), numbers("c", [0, 1]),
                            numbers("d", [-1])]),
    "Where": sized(node("Where", "a b c", "o"), node("ReduceMax", "o", "m", keepdims=0),
                   node("Reshape", "m d", "n"),
                   stored=[numbers("a", np.ones((1024, 1, 1)), bool),
                           numbers("b", np.ones((1, 1024, 1))), numbers("c", np.ones((1, 1, 1024))),
                           numbers("d", [1])]),
}
# fmt: on


@pytest.mark.parametrize("name", LARGE)
def test_what_would_take_gigabytes_is_not_computed(name):
    with pytest.raises(InputError, match=r"^model: the shape of '.*, cannot be inferred") as caught:
        from_onnx(LARGE[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["../w.bin", "/etc/hostname", "a/../../w.bin", "..", "C:\\w.bin", "..\\w.bin", ""]
)
def test_external_data_outside_of_the_folder_is_refused(path):
    inner = body(
        [node("MatMul", "x v", "t")], [], [value("t", [3, 4])], [far("v", 4, 4, path=path)]
    )
    branch = node("If", "c", "y", then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["w"], value=far("w", 4, 4, path=path))
    inputs = [value("x", [3, 4]), value("c", [], BOOL)]
    for hostile in (
        model([node("MatMul", "x w", "y")], inputs, [out()], [far("w", 4, 4, path=path)]),
        model([constant, node("MatMul", "x w", "y")], inputs, [out()]),
        model([branch], inputs, [value("y", [3, 4])]),
    ):
        with pytest.raises(FileFormatError, match="expected a path within the folder of the model"):
            from_onnx(hostile)


def test_external_data_without_a_place_is_refused():
    with pytest.raises(FileFormatError, match="'w' is in another file, expected its location"):
        from_onnx(
            model([node("MatMul", "x w", "y")], [value("x", [3, 4])], [out()],
                  [far("w", 4, 4, path=None)])
        )  # fmt: skip


@pytest.fixture
def stored(tmp_path):
    """Writes a model with one tensor at a path in its folder, and gives the path of the model."""
    (tmp_path / "folder" / "sub").mkdir(parents=True)

    def write(location="w.bin", name="m.onnx"):
        path = tmp_path / "folder" / name
        tensors = [far("w", 4, 4, path=location)]
        proto = model([node("MatMul", "x w", "y")], [value("x", [3, 4])], [out()], tensors)
        path.write_bytes(proto.SerializeToString())
        return path

    return write


def read_both(path):
    """The graph, by both ways to read a file; the errors are the same."""
    graph = from_onnx(path)
    assert load_graph(path) == graph
    return graph


def test_external_data_may_be_missing_or_anything_that_is_a_regular_file(stored):
    path = stored()
    folder = path.parent
    missing = read_both(path)
    assert missing.weight_bytes == 4 * 4 * 4
    (folder / "w.bin").write_bytes(b"a pointer of Git LFS")
    assert read_both(path) == missing
    (folder / "sub" / "real.bin").write_bytes(b"")
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("sub/real.bin")
    assert read_both(path) == missing
    (folder / "sub" / "real.bin").unlink()  # now the link leads to nothing, within the folder
    assert read_both(path) == missing


def test_external_data_by_a_link_out_of_the_folder_is_refused(stored, tmp_path):
    (tmp_path / "secret").write_bytes(b"contents")
    links = {
        "file": ("w.bin", tmp_path / "secret"),
        "relative": ("w.bin", "../secret"),
        "missing": ("w.bin", "../nothing"),
        "folder": ("away/secret", tmp_path),
        "device": ("w.bin", "/dev/zero"),
    }
    for location, target in links.values():
        path = stored(location)
        link = path.parent / location.split("/")[0]
        link.symlink_to(target)
        for read in (from_onnx, load_graph):
            with pytest.raises(FileFormatError, match="expected a file within the folder") as error:
                read(path)
            assert str(error.value).startswith(
                f"{path}: tensor 'w' is in the file '{location}', a li"
            )
        link.unlink()


def test_a_folder_of_a_name_that_begins_alike_is_another(stored, tmp_path):
    (tmp_path / "folder-of-others").mkdir()
    (tmp_path / "folder-of-others" / "w.bin").write_bytes(b"")
    path = stored()
    (path.parent / "w.bin").symlink_to("../folder-of-others/w.bin")

    with pytest.raises(FileFormatError, match="expected a file within the folder of the model"):
        from_onnx(path)


def test_external_data_beside_the_file_that_the_model_links_to_is_accepted(stored, tmp_path):
    # The cache of Hugging Face: blobs/ has the files, snapshots/ links to them.
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    stored("m.onnx_data").rename(blobs / "aa")
    (blobs / "bb").write_bytes(b"weights")
    (snapshot / "m.onnx").symlink_to("../../blobs/aa")
    (snapshot / "m.onnx_data").symlink_to("../../blobs/bb")

    assert read_both(snapshot / "m.onnx").weight_bytes == 4 * 4 * 4


def test_external_data_that_is_no_regular_file_is_refused_and_not_opened(stored):
    path = stored()
    made = path.parent / "w.bin"
    os.mkfifo(made)
    with pytest.raises(FileFormatError, match="which is a FIFO, expected a regular file or none"):
        from_onnx(path)
    made.unlink()
    made.mkdir()
    with pytest.raises(FileFormatError, match="which is a folder, expected a regular file"):
        from_onnx(path)
    made.rmdir()
    made.symlink_to("w.bin")
    with pytest.raises(FileFormatError, match=r"'w.bin', which cannot be read \(Too many levels"):
        from_onnx(path)
    for location, reason in (
        (".", "which is a folder"),
        ("m.onnx/w.bin", r"cannot be read \(Not a directory\)"),
        ("x" * 5000, r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(FileFormatError, match=reason):
            from_onnx(stored(location))


def test_a_model_is_found_from_where_the_program_runs(stored, monkeypatch):
    path = stored()
    monkeypatch.chdir(path.parent)
    os.mkfifo("w.bin")

    for name in ("m.onnx", "./m.onnx", "sub/../m.onnx"):
        with pytest.raises(FileFormatError, match="which is a FIFO"):
            from_onnx(name)


def test_no_other_file_is_read(tmp_path, monkeypatch):
    # A file of this name lies where the program runs; its contents would be another shape.
    np.array([6], np.int64).tofile(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    inner = body([node("Add", "x v", "t")], [], [value("t", [1])], [far("v", 1, dtype=INT64)])
    branch = node("If", "c", "y", then_branch=inner, else_branch=inner)
    inputs = [value("x", [1], INT64), value("c", [], BOOL)]

    graph = from_onnx(model([branch], inputs, [value("y", [1], INT64)]))

    assert [v.op for v in graph.nodes] == ["If"]
    with pytest.raises(InputError, match="it depends on 'n', which is in another file"):
        from_onnx(sized(stored=[far("n", 1, dtype=INT64)]))


def nested(levels):
    inner = body([node("Relu", "x", "y0")], [], [value("y0", [3])])
    for i in range(levels):
        branch = node("If", "c", f"y{i + 1}", then_branch=inner, else_branch=inner)
        inner = body([branch], [], [value(f"y{i + 1}", [3])])
    return inner


def test_bodies_that_are_nested_too_deep_are_refused():
    branch = body([node("Relu", "x", "y0")], [], [value("y0", [3])])
    for i in range(29):
        other = body([node("Relu", "x", f"e{i}")], [], [value(f"e{i}", [3])])
        inner = node("If", "c", f"y{i + 1}", then_branch=branch, else_branch=other)
        branch = body([inner], [], [value(f"y{i + 1}", [3])])
    inputs = [value("x", [3]), value("c", [], BOOL)]

    with pytest.raises(FileFormatError, match="nested in more than 28 levels"):
        from_onnx(model(branch.node, inputs, [value("y29", [3])]))


def test_bodies_that_double_at_each_level_are_bounded():
    inner = nested(12)  # 2^12 bodies in all

    graph = from_onnx(
        model(inner.node, [value("x", [3]), value("c", [], BOOL)], [value("y12", [3])])
    )

    assert [(v.op, v.flops) for v in graph.nodes] == [("If", 3)]


@pytest.mark.parametrize(
    "hostile",
    [
        model([node("Relu", "x", "y")], [value("x", [2**62] * 20)], [out()]),
        model([node("Relu", "x", "y")], [value("x", [2**62, 4])], [out()]),
        model([node("Conv", "x w", "y")], [value("x", [1, 1, 2**41])], [out()],
              [far("w", 1, 1, 2**40)]),
    ],
)  # fmt: skip
def test_sizes_beyond_all_measure_are_refused(hostile):
    with pytest.raises(InputError, match=r"^model: .*expected") as caught:
        from_onnx(hostile)
    assert "\n" not in str(caught.value)
