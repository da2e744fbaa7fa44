"""Programs of `torch.export`: what torch says of them, and the numbers that torch computes."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import warnings
import zipfile
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpart
from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.pt2.archive import read_program
from jaxpart.ingest.pt2.importer import _traced, from_pt2
from jaxpart.ingest.pt2.retrace import DTYPES
from jaxpart.problem.graph import Graph

PROGRAMS = Path(__file__).parent / "programs"
EXPECTED = json.loads((PROGRAMS / "expected.json").read_text())
RUNS = np.load(PROGRAMS / "runs.npz")
SIZES = {"dynamic": 4}  # a free batch
PRODUCTS = ("dot_general", "conv_general_dilated")


def sizes_of(name: str) -> dict[str, int]:
    """A size for each symbol of a program, as far as there are some."""
    if name not in SIZES:
        return {}
    with pytest.raises(InputError) as refused:
        from_pt2(PROGRAMS / f"{name}.pt2")
    symbol = str(refused.value).split("hangs on ")[1].split(",")[0]
    return {symbol: SIZES[name]}


def imported(name: str) -> Graph:
    return from_pt2(PROGRAMS / f"{name}.pt2", dims=sizes_of(name))


def products(graph: Graph) -> float:
    return sum(node.flops for node in graph.nodes if node.op in PRODUCTS)


def stored(name: str, folder: str) -> dict[str, np.ndarray]:
    """The weights or constants in an archive, by their names in the module."""
    with zipfile.ZipFile(PROGRAMS / f"{name}.pt2") as archive:
        (config,) = (n for n in archive.namelist() if n.endswith(f"model_{folder}_config.json"))
        found = {}
        for key, about in json.loads(archive.read(config))["config"].items():
            meta = about["tensor_meta"]
            content = archive.read(str(Path(config).parent / about["path_name"]))
            array = np.frombuffer(content, jnp.dtype(DTYPES[meta["dtype"]]))
            found[key] = array.reshape([size["as_int"] for size in meta["sizes"]])
    return found


def run_of(name: str) -> list[np.ndarray]:
    """Outputs of a program on the inputs that torch ran it on."""
    path = PROGRAMS / f"{name}.pt2"
    with path.open("rb") as file:
        program = read_program(file, str(path))
    closed = _traced(program, sizes_of(name), str(path)).closed
    held = {**stored(name, "weights"), **stored(name, "constants")}
    given = iter(RUNS[f"{name} in {i}"] for i in range(9) if f"{name} in {i}" in RUNS)
    values = []
    for spec in program.graph_module.signature.input_specs:
        ((_, about),) = spec.items()
        key = about.parameter_name or about.buffer_name or about.tensor_constant_name
        values.append(held[key] if key else next(given))
    with jax.enable_x64(True):
        return jax.jit(jax.extend.core.jaxpr_as_fun(closed))(*values)


KNOWN = [name for name in EXPECTED if name != "unknown"]


@pytest.mark.parametrize("name", KNOWN)
def test_a_program_computes_what_torch_computes(name):
    outputs = run_of(name)

    expected = [RUNS[f"{name} out {i}"] for i in range(99) if f"{name} out {i}" in RUNS]
    for output, right in zip(outputs[-len(expected) :], expected, strict=True):
        assert output.dtype == right.dtype
        np.testing.assert_allclose(output, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in KNOWN if n not in ("recurrent", "branch")])
def test_flops_of_products_are_those_of_torch_and_weights_its_parameters(name):
    graph = imported(name)
    ours, torchs = products(graph), EXPECTED[name]["flops"]

    if name.startswith("layers"):  # torch counts padding as work
        assert 0.7 * torchs < ours < torchs
    else:
        assert ours == torchs
    assert sum(weight.bytes for weight in graph.weights) == EXPECTED[name]["weight_bytes"]


def test_cells_are_unrolled_and_counted_by_hand():
    graph = imported("recurrent")

    steps, batch = 4, 2
    lstm = 4 * 4 * (5 + 4) + 4 * 4 * (4 + 4)  # gates times state, times what they read
    gru = 2 * 3 * 3 * (4 + 3)
    # States are zeros at first: what the first step makes of them is folded.
    folded = 4 * 4 * 4 + 4 * 4 * 4 + 2 * 3 * 3 * 3
    assert products(graph) == 2 * batch * (steps * (lstm + gru) - folded)
    assert sum(weight.bytes for weight in graph.weights) == EXPECTED["recurrent"]["weight_bytes"]


def test_of_two_branches_the_costlier_is_counted():
    graph = imported("branch")

    assert [node.flops for node in graph.nodes if node.op == "cond"] == [2 * 8 * 8 + 8]


def test_a_buffer_that_is_written_is_state_and_no_node_is_folded_for_it():
    graph = imported("cache")

    assert products(graph) == 2 * 8 * 8 + 2 * 6 * 8
    assert max(weight.bytes for weight in graph.weights) >= 8 * 8 * 4


def test_core_operators_give_the_same_products_as_those_before():
    for name in ("convolutions", "encoder", "layers"):
        assert products(imported(name)) == products(imported(f"{name}-core"))


def test_batch_normalisation_on_parameters_alone_is_a_scale_and_an_offset():
    graph = imported("convolutions")

    assert not any(node.op in ("rsqrt", "sub") for node in graph.nodes)


def test_an_operator_without_a_rule_is_counted_by_its_shapes_and_named():
    with pytest.warns(UserWarning, match=r"no cost rule for aten\.special_i0; counted by shapes"):
        graph = imported("unknown")

    assert [(node.op, node.flops) for node in graph.nodes] == [
        ("dot_general", 2 * 4 * 4 * 4),
        ("aten.special_i0", 16),
    ]


def test_options_are_those_of_jax():
    path = PROGRAMS / "mlp.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, fused = from_pt2(path), from_pt2(path, fuse=True, element_bytes=1, name="other")

    assert len(fused.nodes) < len(plain.nodes)
    assert (plain.name, plain.element_bytes) == ("mlp", 4)
    assert (fused.name, fused.element_bytes) == ("other", 1)
    assert sum(w.bytes for w in fused.weights) * 4 == sum(w.bytes for w in plain.weights)
    with pytest.raises(InputError, match="unroll_limit is -1"):
        from_pt2(path, unroll_limit=-1)


def test_the_format_is_recognised_by_its_content(tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(PROGRAMS / "mlp.pt2", path)

    assert jaxpart.load_graph(path).nodes == from_pt2(PROGRAMS / "mlp.pt2").nodes
    with pytest.raises(InputError, match="says itself what its parameters are"):
        jaxpart.load_graph(path, param_argnums=(0,))


def test_a_free_size_is_asked_for_and_counted():
    sizes = sizes_of("dynamic")

    small = imported("dynamic")
    large = jaxpart.load_graph(PROGRAMS / "dynamic.pt2", dims=dict.fromkeys(sizes, 40))

    assert products(large) == 10 * products(small)
    with pytest.raises(InputError, match=r"input 2: its size hangs on s\d+, which is free \(exp"):
        from_pt2(PROGRAMS / "dynamic.pt2")


def test_a_size_that_no_dimension_has_is_refused():
    with pytest.raises(InputError, match=r"no dimension batch, expected sizes for s\d+$"):
        jaxpart.load_graph(PROGRAMS / "dynamic.pt2", dims={"batch": 4})
    with pytest.raises(InputError, match="no dimension batch, expected sizes for none: all are"):
        jaxpart.load_graph(PROGRAMS / "mlp.pt2", dims={"batch": 4})


# Bad archives, one by one.


def changed(tmp_path, change, name="mlp"):
    """A copy of a program of which the JSON is changed."""
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(PROGRAMS / f"{name}.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member.endswith("models/model.json"):
                program = json.loads(content)
                content = json.dumps(change(program) or program)
            new.writestr(member, content)
    return path


def graph_of(program):
    return program["graph_module"]["graph"]


def drop_first_type(program):
    del graph_of(program)["tensor_values"]["p_first_weight"]


def drop_result_type(program):
    del graph_of(program)["tensor_values"]["linear"]


def read_before_made(program):
    graph_of(program)["nodes"].reverse()


def other_shape(program):
    graph_of(program)["tensor_values"]["linear"]["sizes"][1]["as_int"] = 17


def other_type(program):
    graph_of(program)["tensor_values"]["x"]["dtype"] = 99


def no_argument(program):
    graph_of(program)["nodes"][0]["inputs"].pop(1)


def two_values(program):
    graph_of(program)["nodes"][0]["inputs"][0]["arg"] = {"as_int": 1, "as_float": 2.0}


def fewer_inputs(program):
    graph_of(program)["inputs"].pop()


def newer(program):
    program["schema_version"]["major"] = 9


def no_nodes(program):
    del graph_of(program)["nodes"]


def no_size(program):
    sizes = graph_of(program)["tensor_values"]["x"]["sizes"]
    sizes[0] = {"as_expr": {"expr_str": "__import__('os')"}}


def unbacked(program):
    graph_of(program)["tensor_values"]["linear"]["sizes"][0] = {
        "as_expr": {"expr_str": "Symbol('u0', integer=True)", "hint": None}
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_first_type, r"input 0: a tensor without type and shape"),
        (drop_result_type, r"node 0 \(aten.linear.default\): linear has no type and shape"),
        (read_before_made, r"node 0 \(aten.softmax.int\): reads mul, expected a value that is th"),
        (other_shape, r"node 0 \(aten.linear.default\): computes the shape \[3, 16\], but the fil"),
        (other_type, r"input 4: elements of torch's type 99, expected JAX's"),
        (no_argument, r"node 0 \(aten.linear.default\): arguments that do not fit it .*weight"),
        (two_values, r"node 0 \(aten.linear.default\): a value of 2 kinds, expected one known"),
        (fewer_inputs, r"4 inputs, expected 5 as in the signature"),
        (newer, r"mlp/models/model.json: schema version 9\.\d+, expected 8"),
        (no_nodes, r"mlp/models/model.json: .*missing required field `nodes`"),
        (no_size, r"input 4: a size .*, expected an expression of sizes"),
        (unbacked, r"node 0 \(aten.linear.default\): its size hangs on u0, which is free"),
    ],
)
def test_a_bad_program_is_refused_by_its_place(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"bad\.pt2: {message}"):
        from_pt2(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a/constants.pkl": "", "a/data.pkl": ""}, "a zip file that holds TorchScript"),
        ({"archive/data.pkl": ""}, "a zip file that holds pickled tensors and no program"),
        ({"data/aotinductor/model/x.so": ""}, "a zip file that holds a compiled program"),
        ({"readme.txt": ""}, r"a zip file that holds no models/\*\.json"),
        ({"m/models/a.json": "", "m/models/b.json": ""}, r"holds 2 programs \(a, b\)"),
        ({"m/models/model.json": "{"}, "m/models/model.json: Input data was truncated"),
        ({"m/models/model.json": "{}"}, "missing required field `schema_version`"),
    ],
)
def test_another_zip_file_is_told_by_what_it_holds(tmp_path, members, message):
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)

    with pytest.raises(FileFormatError, match=rf"bad\.pt2: .*{message}"):
        jaxpart.load_graph(path)


def test_every_truncation_and_missing_members_but_the_program(tmp_path):
    content = (PROGRAMS / "mlp.pt2").read_bytes()
    path = tmp_path / "bad.pt2"
    for end in range(4, len(content) - 1, len(content) // 40):
        path.write_bytes(content[:end])
        # Torch's sample inputs are a zip of their own, whose end can be taken for that of the file.
        with pytest.raises(FileFormatError, match=r"bad\.pt2: a (broken )?zip file"):
            jaxpart.load_graph(path)
    # Weights are not read: without them the graph is the same.
    with zipfile.ZipFile(PROGRAMS / "mlp.pt2") as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("serialized_exported_program.json", old.read("mlp/models/model.json"))
    assert from_pt2(path, name="mlp") == from_pt2(PROGRAMS / "mlp.pt2")


def places(value, path=()):
    """The path of every value in JSON, but for what is not read."""
    yield path
    below = value.items() if isinstance(value, dict) else ()
    below = enumerate(value) if isinstance(value, list) else below
    for key, inner in below:
        if key not in ("metadata", "module_call_graph", "strides", "device"):
            yield from places(inner, (*path, key))


@pytest.mark.parametrize("name", ["mlp", "branch"])
def test_a_program_that_is_changed_anywhere_brings_no_other_error(tmp_path, name):
    choice = random.Random(0)

    def change(program):
        *path, last = choice.choice([p for p in places(program) if p])
        for key in path:
            program = program[key]
        program[last] = choice.choice([None, 3, "x", [], {}, -1, 10**9, 0.5])

    for _ in range(40):
        with contextlib.suppress(InputError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            from_pt2(changed(tmp_path, change, name))
