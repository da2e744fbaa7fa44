"""Bad StableHLO, one by one: each is refused by its file and place."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import random
import re
import zlib

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jaxlib.mlir.dialects import stablehlo

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.load import load_graph
from jaxpart.ingest.stablehlo import module
from jaxpart.ingest.stablehlo.importer import from_stablehlo
from jaxpart.ingest.stablehlo.module import parse
from tests.support.lowered_functions import CASES, array

MLP = CASES["mlp"][0], CASES["mlp"][1:]


def text() -> bytes:
    fn, arguments = MLP
    return jax.jit(fn).lower(*arguments).as_text().encode()


def artifact() -> bytes:
    parsed = parse(text(), "mlp")
    return stablehlo.serialize_portable_artifact(parsed, stablehlo.get_minimum_version())


def exported() -> bytes:
    fn, arguments = MLP
    return bytes(export.export(jax.jit(fn))(*arguments).serialize())


@pytest.fixture
def file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "model.mlir"
        path.write_bytes(content)
        return path

    return write


def body(lines: str, arguments: str = "%x: tensor<4xf32>", result: str = "tensor<4xf32>") -> bytes:
    return f"func.func @main({arguments}) -> {result} {{\n{lines}\n}}".encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"module {", r"line 1: expected operation name"),
        (body("return %y : tensor<4xf32>"), r"line 2: use of undeclared SSA value"),
        (body("%0 = stablehlo.frob %x : tensor<4xf32>"), r"line 2: .*'stablehlo.frob'"),
        (
            body(
                "%0 = stablehlo.dot %x, %x : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>\n"
                "return %0 : tensor<4xf32>"
            ),
            r"line 2: inferred shape .* is incompatible with .*; expected a module of StableHLO",
        ),
        (
            body("return %x : tensor<?xf32>", "%x: tensor<?xf32>", "tensor<?xf32>"),
            r"@main: a value of type tensor<\?xf32>, expected a shape of whole numbers",
        ),
        (
            body("return %x : tensor<4xi3>", "%x: tensor<4xi3>", "tensor<4xi3>"),
            r"@main: elements of type i3, expected JAX's",
        ),
        (
            body("return %x : i32", "%x: i32", "i32"),
            r"@main: a value of type i32, expected an array",
        ),
        (
            b"func.func @one(%x: tensor<f32>) -> tensor<f32> { return %x : tensor<f32> }\n"
            b"func.func @two(%x: tensor<f32>) -> tensor<f32> { return %x : tensor<f32> }",
            r"2 public functions and none is @main",
        ),
        (b"module { }", r"0 public functions and none is @main"),
        (
            b"func.func private @main(%x: tensor<f32>) -> tensor<f32>",
            r"@main has no body, expected one",
        ),
        (
            body(
                "%0 = func.call @other(%x) : (tensor<4xf32>) -> tensor<4xf32>\n"
                "return %0 : tensor<4xf32>"
            )
            + b"\nfunc.func private @other(tensor<4xf32>) -> tensor<4xf32>",
            r"@main: func.call \(line 2\): calls @other, expected a function of the module",
        ),
        (
            b"func.func @main(%x: !quant.uniform<i8:f32, 0.1:3>) { return }",
            r"line 1: .*quant",
        ),
    ],
)
def test_a_bad_text_is_refused_by_its_line(file, content, message):
    path = file(content)
    with pytest.raises(FileFormatError, match=f"^{re.escape(str(path))}: {message}"):
        load_graph(path)


def test_a_program_that_calls_itself_is_refused(file):
    call = "%0 = func.call @main(%x) : (tensor<4xf32>) -> tensor<4xf32>\nreturn %0 : tensor<4xf32>"
    with pytest.raises(FileFormatError, match="calls @main, which calls itself"):
        load_graph(file(body(call)))


def test_a_program_of_several_devices_is_refused(file):
    mesh = jax.sharding.AbstractMesh((2,), ("a",))
    spec = jax.sharding.PartitionSpec("a")
    mapped = jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=spec, out_specs=spec)
    content = export.export(jax.jit(mapped))(array(4)).mlir_module().encode()
    with pytest.raises(FileFormatError, match="several devices, expected one for a single device"):
        load_graph(file(content))


@pytest.mark.parametrize(("make", "ends"), [(text, 40), (artifact, 5), (exported, 5)])
def test_every_truncation_is_refused_and_nothing_is_printed(file, make, ends, capfd):
    content = make()
    step = max(1, len(content) // ends)
    for end in range(30, len(content) - 8, step):
        with pytest.raises(InputError, match=r"model\.mlir: "):
            load_graph(file(content[:end]))
    assert capfd.readouterr().err == ""


def test_bytecode_with_flipped_bits_ends_no_process(file):
    content = artifact()
    random_bits = random.Random(0)
    for _ in range(6):
        damaged = bytearray(content)
        damaged[random_bits.randrange(len(damaged))] ^= 1 << random_bits.randrange(8)
        with contextlib.suppress(InputError):
            load_graph(file(bytes(damaged)))


def test_what_crashes_the_parser_is_refused(file):
    deep = 200_000
    content = b"module {" * deep + b"}" * deep
    with pytest.raises(FileFormatError, match=r"crashes the parser \(SIGSEGV\); expected"):
        load_graph(file(content))


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("import os; os.abort()", FileFormatError, r"StableHLO_v.*: crashes the parser \(SIGABRT"),
        ("import time; time.sleep(99)", FileFormatError, "keeps the parser busy for more than 2 s"),
        ("raise ImportError('no parser')", RuntimeError, "did not start: ImportError: no parser"),
    ],
)
def test_a_parser_that_ends_or_hangs_is_told(file, program, error, message, tmp_path, monkeypatch):
    child = tmp_path / "child.py"
    child.write_text(program)
    monkeypatch.setattr(module, "_CHILD", child)
    monkeypatch.setattr(module, "_LIMIT_S", 2.0)

    with pytest.raises(error, match=message):
        load_graph(file(artifact()))


def test_bodies_that_are_nested_too_deep_are_refused(file):
    deep = 490
    inner = "stablehlo.return %x : tensor<4xf32>"
    for _ in range(deep):
        branch = "{ " + inner + " }"
        inner = (
            f'%r = "stablehlo.if"(%p) ({branch}, {{ stablehlo.return %x : tensor<4xf32> }})'
            " : (tensor<i1>) -> tensor<4xf32> stablehlo.return %r : tensor<4xf32>"
        )
    head = "func.func @main(%x: tensor<4xf32>, %p: tensor<i1>) -> tensor<4xf32> { "
    content = head + inner.rpartition("stablehlo.return")[0] + "return %r : tensor<4xf32> }"
    with pytest.raises(FileFormatError, match="nested too deep"):
        load_graph(file(content.encode()))


def test_damaged_text_brings_no_other_error(file):
    content = text()
    random_bytes = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[random_bytes.randrange(len(damaged))] = random_bytes.randrange(256)
        with contextlib.suppress(InputError):
            load_graph(file(bytes(damaged)))


def test_what_jax_of_another_version_exported_is_named(file):
    whole = export.deserialize(bytearray(exported()))
    newer = dataclasses.replace(whole, calling_convention_version=99).serialize()
    with pytest.raises(FileFormatError, match=r"version 99 of jax\.export, expected \d+ to \d+"):
        load_graph(file(bytes(newer)))


def test_a_version_that_is_too_new_is_named(file):
    content = re.sub(rb"StableHLO_v[\d.]+\0", b"StableHLO_v99.0.0\0", artifact())
    with pytest.raises(FileFormatError, match=r"StableHLO_v99.*up to StableHLO 1\."):
        load_graph(file(content[:200]))


def test_without_flatbuffers_the_extra_is_named(file, monkeypatch):
    content = exported()
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith(("flatbuffers", "jax._src.export.serialization")):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'jaxpart\[export\]'"):
        load_graph(file(content))


def test_symbolic_shapes_are_refused_by_their_type(file):
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4"), jnp.float32)
    content = export.export(jax.jit(lambda x: x + 1))(shape).serialize()
    with pytest.raises(FileFormatError, match=r"tensor<\?x4xf32>, expected a shape of whole numb"):
        load_graph(file(content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param_argnums": 5}, "param_argnums names argument 5, expected 0 to 4"),
        ({"param_argnums": (0, 1), "state_argnums": 1}, "argument 1 is named in param_argnums and"),
        ({"element_bytes": 0}, "element_bytes is 0, expected a positive number"),
        ({"unroll_limit": -1}, "unroll_limit is -1, expected 0 or more"),
        ({"param_argnums": "w"}, "param_argnums is 'w', expected positions"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        from_stablehlo(text(), **options)


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(InputError, match="a source of type int, expected a path"):
        from_stablehlo(3)
    with pytest.raises(FileFormatError, match="no module, expected StableHLO"):
        from_stablehlo(zlib.compress(b"something else"))


def test_options_of_other_formats_are_refused(file):
    with pytest.raises(InputError, match="its sizes are all known"):
        load_graph(file(text()), dims={"batch": 1})
    with pytest.raises(InputError, match="says itself what its parameters are"):
        load_graph(file(b'{"format": "jaxpart-graph"}'), param_argnums=(0,))
