"""Nodes measured on the device at hand: ONNX files by their runtime, traces of JAX one by one."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import jaxpart
import jaxpart.export.measuring.profile as profiling
from jaxpart.cli import main
from jaxpart.errors import InputError
from jaxpart.export.measuring import profile_jax, timing
from jaxpart.export.measuring.profile_jax import TimedStages, prepared
from jaxpart.export.measuring.timing import clock_of, in_rounds, median_seconds, stage_seconds
from jaxpart.export.measuring.unfinished import read_unfinished
from jaxpart.export.targets import write_onnx_stages
from jaxpart.ingest.seconds import read_seconds
from tests.support.functions import made
from tests.support.onnx_models import body, model, node, numbers, out, value
from tests.support.stages import FREE, save

WIDE = 512


def uneven():
    """A product of 512 x 512 between two additions of 8 numbers, under awkward names."""
    rng = np.random.default_rng(0)
    return model(
        [
            node("Add", "x x", "a", name="first, small"),
            node("MatMul", "a w", "b", name='the "large" one'),
            node("ReduceMax", "b axes", "c", keepdims=0),
            node("Add", "c c", "y"),
        ],
        [value("x", [WIDE, WIDE])],
        [out("y")],
        [
            numbers("w", rng.normal(size=(WIDE, WIDE)), np.float32),
            numbers("axes", [0]),
        ],
    )


def names_of(graph):
    return [node.name for node in graph.nodes]


def test_every_node_of_a_file_is_measured_and_the_large_one_most(tmp_path):
    path = save(tmp_path / "net.onnx", uneven())
    told = []

    found = jaxpart.profile(path, count=3, callback=told.append)

    assert told == [1, 2, 3, 3]
    assert list(found.seconds) == names_of(jaxpart.from_onnx(path))
    large = found.seconds['the "large" one']
    assert large > 4 * max(s for name, s in found.seconds.items() if "large" not in name)
    assert large > 1e-5
    assert found.graph.nodes[1].seconds == large
    assert "MatMul" in found.summary()
    assert "one core of a CPU" in found.summary()


def test_nodes_that_stand_for_none_do_not_take_the_place_of_others(tmp_path):
    """ONNX Runtime names the nameless by operator and position, as other models name their own."""
    whole = model(
        [
            # The first two read no input; they stand for no node, and take milliseconds.
            node("Tile", "block times", "w"),
            node("ReduceSum", "w", "s"),
            node("Relu", "x", "a", name="Tile_0"),
            node("Add", "a s", "y"),
        ],
        [value("x", [1, 2])],
        [out("y")],
        [numbers("block", np.ones((2, 2**9)), np.float32), numbers("times", [1, 2**14])],
    )
    path = save(tmp_path / "net.onnx", whole)

    found = jaxpart.profile(path, count=15)

    assert list(found.seconds) == ["Tile_0", "Add_0"]
    assert max(found.seconds.values()) < 1e-3  # the median: most of 15 would have to be disturbed


def test_a_loop_is_one_node_whatever_runs_in_it(tmp_path):
    inner = body(
        [node("Identity", "go", "on"), node("MatMul", "s w", "t", name="product")],
        [value("i", [], 7), value("go", [], 9), value("s", [WIDE, WIDE])],
        [value("on", [], 9), value("t", [WIDE, WIDE])],
    )
    whole = model(
        [
            node("Loop", "trips _ x", "z", name="loop", body=inner),
            node("Add", "z z", "y", name="product"),  # a name that the body has too
        ],
        [value("x", [WIDE, WIDE])],
        [out("y")],
        [numbers("trips", 4), numbers("w", np.eye(WIDE), np.float32)],
    )
    path = save(tmp_path / "net.onnx", whole)

    found = jaxpart.profile(path, count=3).seconds

    assert list(found) == ["loop", "product"]
    assert found["loop"] > 4 * found["product"]


@pytest.mark.parametrize("is_random", [False, True])
def test_a_file_is_cut_unless_both_sides_would_draw_the_same_numbers(
    tmp_path, monkeypatch, is_random
):
    ways = []

    def counted(walks, count):
        ways.append(len(walks))
        return in_rounds(walks, count)

    monkeypatch.setattr(profiling, "in_rounds", counted)
    monkeypatch.setattr(profiling, "_ASIDE", 1e9)  # drawing stands for no node
    nodes = [node("Add", f"t{k} r", f"t{k + 1}", name=f"n{k}") for k in range(12)]
    inputs = [value("t0", [2]), value("r", [2])]
    if is_random:
        nodes = [node("RandomNormal", "", "r", shape=[2]), *nodes]
        inputs.pop()
    path = save(tmp_path / "net.onnx", model(nodes, inputs, [out("t12")]))

    found = jaxpart.profile(path, count=1)

    assert list(found.seconds) == names_of(jaxpart.from_onnx(path))
    assert ways == ([] if is_random else [2])
    assert len(found.notes) == is_random
    assert ("draws random numbers that chips" in found.summary()) == is_random


@pytest.mark.parametrize("is_external", [False, True])
def test_weights_take_their_room_once_however_often_a_model_is_cut(
    tmp_path, monkeypatch, is_external
):
    held = []

    def counted(walks, count):
        files = {}
        for file in (tmp_path / "t").rglob("*"):
            files[file.stat().st_ino] = file.stat().st_size
        held.append(sum(files.values()))
        return in_rounds(walks, count)

    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    monkeypatch.setattr(profiling, "in_rounds", counted)
    whole = model(
        [node("MatMul", f"t{k} w{k}", f"t{k + 1}", name=f"n{k}") for k in range(12)],
        [value("t0", [2, 256])],
        [out("t12")],
        [numbers(f"w{k}", np.full((256, 256), k), np.float32) for k in range(12)],
    )
    weights = sum(len(tensor.raw_data) for tensor in whole.graph.initializer)
    options = {"save_as_external_data": True, "location": "w.data"} if is_external else {}
    onnx.save(whole, tmp_path / "net.onnx", **options)

    found = jaxpart.profile(tmp_path / "net.onnx", count=1)

    assert found.notes == ()
    assert weights <= held[0] < 1.2 * weights


def test_a_disk_that_is_full_is_told_and_not_taken_for_a_model_that_cannot_be_cut(
    tmp_path, monkeypatch
):
    written = []

    def full(imported, result, path, folder, **options):
        written.append(folder)
        if len(written) > 1:
            raise InputError(f"{folder}: cannot be written (No space left on device)")
        return write_onnx_stages(imported, result, path, folder, **options)

    monkeypatch.setattr(profiling, "write_onnx_stages", full)
    nodes = [node("Relu", f"t{k}", f"t{k + 1}", name=f"n{k}") for k in range(12)]
    path = save(tmp_path / "net.onnx", model(nodes, [value("t0", [2])], [out("t12")]))

    with pytest.raises(InputError, match="No space left"):
        jaxpart.profile(path, count=1)


def test_a_folder_is_checked_once_and_loaded_once_unless_it_is_large(tmp_path, monkeypatch):
    path = save(tmp_path / "net.onnx", uneven())
    places = dict(zip(names_of(jaxpart.from_onnx(path)), [0, 3, 5, 5], strict=True))
    jaxpart.export(path, places, out=tmp_path / "stages", mcm=FREE)
    calls = []
    for name in ("read_stages", "load_stages"):
        original = getattr(timing, name)
        monkeypatch.setattr(
            timing, name, lambda *a, f=original, n=name: (calls.append(n), f(*a))[1]
        )

    in_rounds([timing.walk_of(tmp_path / "stages")], 6)
    assert calls == ["read_stages", "load_stages"]
    calls.clear()
    in_rounds([timing.walk_of(tmp_path / "stages", beside=2**13)], 6)
    assert calls == ["read_stages", "load_stages", "load_stages"]


def test_a_file_of_stablehlo_is_profiled_by_way_of_jax(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def fn(w, x):
        return jnp.sin(x @ w)

    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    (tmp_path / "net.mlir").write_text(jax.jit(fn).lower(shape, shape).as_text())

    assert main(["profile", "net.mlir", "--count", "1", "--param-argnums", "0"]) == 0

    assert "on jax " in capsys.readouterr().out
    graph = jaxpart.load_graph("net.mlir", param_argnums=(0,))
    assert list(read_seconds("net.seconds.csv")) == names_of(graph)
    found = jaxpart.profile("net.mlir", count=1, param_argnums=0)
    assert found.graph.weights
    assert jaxpart.profile(jaxpart.trace_file("net.mlir"), count=1).runs == 1
    with pytest.raises(InputError, match="runs on JAX"):
        jaxpart.profile("net.mlir", out="s.csv")
    assert main(["profile", "net.mlir", "--inputs", "x.npz"]) == 2
    assert "expected --inputs of an ONNX file alone" in capsys.readouterr().err


def test_the_command_writes_what_other_commands_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "net.onnx", uneven())

    assert main(["profile", "net.onnx", "--count", "2"]) == 0

    printed = capsys.readouterr()
    assert printed.out.startswith("net: 4 nodes, ")
    assert printed.out.endswith("written: net.seconds.csv\n")
    seconds = read_seconds("net.seconds.csv")
    assert list(seconds) == names_of(jaxpart.from_onnx("net.onnx"))
    common = ["--mcm", "mcm4", "--seconds", "net.seconds.csv"]
    assert main(["partition", "net.onnx", "--samples", "1", "--out", "r.json", *common]) == 0
    assert "warning" not in capsys.readouterr().err
    # A partition for measured seconds is taken away with them, and not without.
    export = ["export", "net.onnx", "r.json", "--to", "onnx", "--out", "stages"]
    assert main(export) == 2
    assert "made for another graph" in capsys.readouterr().err
    assert main([*export, "--seconds", "net.seconds.csv"]) == 0


def test_a_measurement_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiling, "_BLOCK_S", 0.0)
    path = save(tmp_path / "net.onnx", uneven())
    file = tmp_path / "net.seconds.csv"

    def stop(done):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxpart.profile(path, count=6, out=file, callback=stop)

    # What there is serves other commands already.
    names = names_of(jaxpart.from_onnx(path))
    so_far = read_seconds(file)
    assert set(so_far) >= set(names)
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert rows[0] == ["name", "seconds", "runs_us", "measured"]
    before = read_unfinished(file, rows[-1][3].strip('"'))
    assert {len(times) for times in before.values()} == {2}
    kept = file.read_bytes()

    # Another seed, model or file is another measurement.
    assert jaxpart.profile(path, count=1, seed=1, out=file).resumed == 0
    other = uneven()
    other.graph.node[3].op_type = "Mul"
    save(tmp_path / "net.onnx", other)
    file.write_bytes(kept)
    assert jaxpart.profile(path, count=1, out=file).resumed == 0
    save(tmp_path / "net.onnx", uneven())
    for other in (b"name,seconds\na,1\n", b"name,seconds,runs_us,measured\n1\n", b"\xff", b""):
        file.write_bytes(other)
        assert jaxpart.profile(path, count=1, out=file).resumed == 0

    file.write_bytes(kept)
    told = []
    found = jaxpart.profile(path, count=6, out=file, callback=told.append)
    assert found.resumed == 2
    assert told[0] == 3
    after = read_unfinished(file, rows[-1][3].strip('"'))
    assert all(after[name][:2] == before[name] for name in names)
    for name in names:
        assert found.seconds[name] == pytest.approx(np.mean(sorted(after[name])[:2]))
        assert len(after[name]) == 6
    file.write_bytes(kept)
    assert main(["profile", "net.onnx", "--count", "6"]) == 0
    assert "6 runs, 2 of them from before" in capsys.readouterr().out
    assert file.read_text().startswith("name,seconds\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.onnx"], "none.onnx: cannot be read"),
        (["net.json"], "is JSON, expected an ONNX model"),
        (["net.onnx", "--out", "net.onnx"], "is an input (net.onnx)"),
        (["net.onnx", "--out", "none/s.csv"], "none/s.csv: cannot write here"),
        (["net.onnx", "--inputs", "net.json"], "is no .npz file"),
        (["net.onnx", "--dim", "batch=1"], "no dimension is named 'batch'"),
        (["odd.onnx"], "ONNX Runtime cannot"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_written(
    tmp_path, monkeypatch, capsys, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "net.onnx", uneven())
    odd = model([node("Odd", "x", "y", domain="local")], [value("x", [2])], [value("y", [2])])
    save(tmp_path / "odd.onnx", odd)
    (tmp_path / "net.json").write_text("{}")
    before = sorted(tmp_path.iterdir())

    assert main(["profile", *arguments]) == 2

    assert expected in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_profile_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    path = save(tmp_path / "net.onnx", uneven())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxpart.profile(path, callback=stop)

    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"count": 0}, "count is 0"), ({"dims": {"n": 1}}, "of a file alone")],
)
def test_options_that_make_no_sense_are_refused(options, expected):
    with pytest.raises(InputError, match=expected):
        jaxpart.profile(jaxpart.trace(jnp.sin, jnp.float32(1)), **options)


def layers(count=3, width=256):
    def fn(weights, x):
        for w in weights:
            x = jnp.sin(x @ w)
        return x

    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    weights = [shape((width, width))] * count
    return jaxpart.trace(fn, weights, shape((width, width)), param_argnums=0)


def test_every_node_of_a_trace_is_measured_alone_and_with_others(monkeypatch):
    trace, told, timed = layers(), [], []

    def once(run, count, clock):
        timed.append(count)
        return median_seconds(run, count, clock)

    monkeypatch.setattr(profile_jax, "median_seconds", once)
    found = jaxpart.profile(trace, count=3, callback=told.append)

    assert told == [1, 2, 3, 4, 5, 6, 7]
    # The empty call, a product and a sine; then all nodes as one program, compiled and in a round.
    assert timed == [3, 3, 3, 1, 3]
    assert list(found.seconds) == names_of(trace.graph)
    products = [v.seconds or 0 for v in found.graph.nodes if v.op == "dot_general"]
    assert len(products) == 3
    assert products == pytest.approx([products[0]] * 3, rel=1e-3)
    assert products[0] > 1e-5


def test_a_node_whose_result_nobody_needs_takes_no_time():
    def fn(x):
        y = jnp.sin(x)
        jnp.cos(y)  # traced, and dropped
        return y * 2

    found = jaxpart.profile(jaxpart.trace(fn, jnp.ones((64, 64))), count=1)

    taken = {v.op: v.seconds for v in found.graph.nodes}
    assert taken["sin"]
    assert taken.get("cos", 0.0) == 0.0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["unrolled_scan", "attention_with_a_cloned_mask", "random_keys", "fused_mlp"]
)
def test_any_function_is_measured_node_by_node(name):
    case = made(name)
    trace = jaxpart.trace(case.fn, *case.args, **case.options)

    found = jaxpart.profile(trace, count=1)

    assert list(found.seconds) == names_of(trace.graph)
    assert all(s >= 0 for s in found.seconds.values())


def test_stages_of_a_function_are_timed_one_by_one_and_equal_ones_once():
    trace = layers(count=4)
    stages = trace.stages([0, 0, 0, 0, 1, 1, 2, 2])
    programs = {}
    timed = TimedStages(stages, prepared(stages), programs)

    seconds = timed.seconds(5)

    assert len(seconds) == 3
    assert min(seconds) > 0
    assert seconds[1] == seconds[2]
    assert len(programs) == 2


def test_exported_stages_are_timed_one_by_one(tmp_path):
    path = save(tmp_path / "net.onnx", uneven())
    places = dict(zip(names_of(jaxpart.from_onnx(path)), [0, 3, 5, 5], strict=True))
    jaxpart.export(path, places, out=tmp_path / "stages", mcm=FREE)

    seconds = stage_seconds(tmp_path / "stages", count=3)

    assert len(seconds) == 3
    assert min(seconds) > 0


def test_the_median_of_warm_calls_is_taken(monkeypatch):
    durations = iter([50.0, 3.0, 1.0, 2.0, 0.0])  # the first one warms up
    now = [0.0]

    def run():
        now[0] += next(durations)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    # Three of them took more than two seconds.
    assert median_seconds(run, 10, lambda: now[0]) == 2.0
    assert next(durations) == 0.0


def test_the_least_of_rounds_is_kept_for_each_stage():
    asked = []

    def walk_of_two(name, seconds):
        rows = iter(seconds)

        def walk(count):
            asked.append((name, count))
            return next(rows)

        return walk

    one, other = walk_of_two("a", [(3.0, 1.0), (2.0, 5.0)]), walk_of_two("b", [(7.0,), (8.0,)])

    found = in_rounds([one, other], 5)

    assert asked == [("a", 3), ("b", 3), ("a", 2), ("b", 2)]
    assert [rounds.tolist() for rounds in found] == [[[3, 1], [2, 5]], [[7], [8]]]
    assert len(in_rounds([walk_of_two("a", [(1.0,)] * 9)], 9, longest_s=0.0)[0]) == 1


def test_a_process_with_one_core_reads_its_own_clock(monkeypatch):
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert clock_of("cpu") is time.process_time
    assert clock_of("gpu") is time.perf_counter
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert clock_of("cpu") is time.perf_counter
