"""What device programs would do on accelerators that are not there.

On an H100 a program waits for each kernel and, in a loop of unknown length, for the host before
each step. No program may be of that kind there, nor may any add floats by a scatter, which is
broken there with jaxlib 0.10.2 to 0.11.0.

What is compiled here for an H100 and a TPU needs the extra `aot`, which `.ci/run` does not install:
as little as holds the limits. `scripts/device_programs.py` has the whole table.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import program_gate
import pytest
import targets
from hlo import Counts
from pairs import greedy_start
from program_gate import Case, Program, line_of, sizes_of
from targets import TARGETS

from jaxpart.cost.device import bucket_size, lower
from jaxpart.cost.evaluate import evaluate
from jaxpart.cost.kernel_gate import unchecked_version
from jaxpart.problem.problem import Problem
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

ROOT = Path(__file__).parents[3]
# The most launches of a call on an H100. The first two hold for BERT-large on `mcm36`, whatever the
# batch. The others, whose compilation takes long, are compiled for a small graph and four devices:
# the table in data/benchmarks has them for BERT-large.
MOST_LAUNCHES = {"evaluate": 400, "project": 400}
MOST_LAUNCHES_SMALL = {
    "sample": 150,
    "order": 40,
    "slice": 125,
    "probe": 100,
    "act": 160,
    "gradient": 320,
}
# What four devices exchange, where it is not nothing: the mean of the gradients.
EXCHANGES = {"gradient": 1}
MOST_LAUNCHES_BESIDE_MOVES, MOST_LAUNCHES_A_MOVE = 400, 12  # of a sweep of annealing
SMALL = "squeezenet"  # a graph that compiles fast
ABSENT = targets.missing(TARGETS["h100"])
NOT_AOT = ABSENT + targets.missing(TARGETS["v5e"])


def gate(tmp_path, *options):
    """The rows that the script writes, by program and batch; it runs in a process of its own."""
    path = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "scripts" / "device_programs.py", *options, "--json", path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return json.loads(path.read_bytes()), done.stdout


@pytest.mark.skipif(
    bool(ABSENT), reason=f"needs {', '.join(ABSENT)} of the extra `aot`: pip install '.[aot]'"
)
def test_whole_array_programs_start_few_kernels_on_an_h100(tmp_path):
    options = ("--programs", *MOST_LAUNCHES, "temper", "--targets", "h100", "--batch", "4096")
    document, _ = gate(tmp_path, *options, "--devices", "1")

    rows = {row["program"]: row for row in document["rows"]}
    assert list(rows) == [*MOST_LAUNCHES, "temper"]
    problem, _ = greedy_start("bert-large", "mcm36")
    moves = bucket_size(problem.num_contracted + 1)
    most = MOST_LAUNCHES_BESIDE_MOVES + MOST_LAUNCHES_A_MOVE * moves
    for program, row in rows.items():
        assert row["form"] == "arrays"
        assert row["unknown_loops"] == row["float_scatters"] == 0, row
        assert row["launches"] <= MOST_LAUNCHES.get(program, most), row
        assert row["predicted_per_s"] > 0
    assert document["environment"]["jax-cuda12-plugin"]


@pytest.mark.skipif(
    bool(ABSENT), reason=f"needs {', '.join(ABSENT)} of the extra `aot`: pip install '.[aot]'"
)
def test_four_devices_start_few_kernels_and_wait_at_most_for_their_gradients(tmp_path):
    options = ("--programs", *MOST_LAUNCHES_SMALL, "--targets", "h100", "--batch", "16")
    document, _ = gate(tmp_path, *options, "--devices", "4", "--graph", SMALL, "--mcm", "mcm4")

    rows = document["rows"]
    assert [row["program"] for row in rows] == list(MOST_LAUNCHES_SMALL)
    for row in rows:
        assert row["devices"] == 4
        assert row["collectives"] == EXCHANGES.get(row["program"], 0), row
        assert row["unknown_loops"] == row["float_scatters"] == 0, row
        assert row["launches"] <= MOST_LAUNCHES_SMALL[row["program"]], row


def test_all_programs_but_moves_can_be_shared_and_have_a_limit(small):
    problem, start = small
    limited = {*MOST_LAUNCHES, *MOST_LAUNCHES_SMALL}
    for name, make in program_gate.PROGRAMS.items():
        if name != "kernel":
            assert (make(Case(problem, start, 8)).axes is not None) == (name in limited), name


@pytest.mark.skipif(
    bool(NOT_AOT), reason=f"needs {', '.join(NOT_AOT)} of the extra `aot`: pip install '.[aot]'"
)
def test_the_kernel_compiles_for_a_gpu_and_a_tpu(tmp_path):
    options = ("--programs", "kernel", "--targets", "h100", "v5e", "cpu", "--batch", "64")
    document, _ = gate(tmp_path, *options, "--devices", "1", "--graph", SMALL, "--mcm", "mcm4")

    rows = document["rows"]
    assert [(row["target"], row["form"]) for row in rows] == [("h100", "kernel"), ("v5e", "kernel")]
    for row in rows:
        assert row["unknown_loops"] == row["known_loops"] == row["questions"] == 0
        assert row["launches"] <= 40, row
        assert row["operations"] > 1e4 * 64  # those of the kernel, too


def test_the_whole_array_form_has_no_loop_of_unknown_length_on_a_cpu_either(tmp_path):
    options = ("--targets", "cpu", "--batch", "64", "--graph", SMALL, "--form", "arrays")
    document, text = gate(tmp_path, "--programs", "evaluate", *options)

    (row,) = document["rows"]
    assert (row["program"], row["form"]) == ("evaluate", "arrays")
    assert row["unknown_loops"] == 0, row
    assert row["launches"] >= row["kernels_outside"] > 0
    assert row["predicted_per_s"] is None
    assert "evaluate cpu" in text


def test_the_form_of_the_programs_can_be_chosen(small, monkeypatch):
    problem, start = small

    def row_of(form):
        target, devices = TARGETS["cpu"], targets.devices_of(TARGETS["cpu"])
        (row,) = program_gate._rows(problem, start, 8, target, form, ["evaluate"], devices)
        return row

    row = row_of("rows")
    assert row["unknown_loops"] >= 5
    assert row["launches_are"] == "estimated"
    assert row["questions"] > problem.num_nodes
    monkeypatch.setattr(program_gate, "compiled", lambda *_: {})
    assert [row_of(form)["form"] for form in ("rows", "arrays", None)] == ["rows", "arrays", "rows"]


def test_sizes_are_numbers_and_mean_lengths_of_segments():
    problem = Problem.build(parallel_chains(2, 6), THREE_CHIPS)
    device = lower(problem)

    sizes = sizes_of(Program(evaluate, (device,), {}))

    assert sizes["problem.num_nodes"] == problem.num_nodes
    edges, producers = len(problem.edge_consumer), problem.num_tensors
    assert sizes["problem.tensor_edges"] == pytest.approx(edges / producers)
    assert "problem.node_s" not in sizes


@pytest.fixture(scope="module")
def small():
    """A small problem and its greedy baseline."""
    return greedy_start(SMALL, "mcm4")


@pytest.fixture(scope="module")
def cases(small):
    """The small problem in each form."""
    (problem, start), found = small, {}
    for form, backend in (("rows", "cpu"), ("arrays", "gpu")):
        with program_gate._as_on(backend):
            found[form] = Case(problem, start, 8)
            found[form].task  # noqa: B018  made once, in this form
    return found


@pytest.mark.parametrize("name", program_gate.PROGRAMS)
def test_every_program_is_made_and_traced(name, cases):
    if name == "kernel" and unchecked_version():
        pytest.skip(f"the kernel {unchecked_version()}")
    program = program_gate.PROGRAMS[name](cases["rows"])

    traced = program.function.lower(*program.arguments, **program.static)

    assert "func.func public @main" in traced.as_text()


def test_a_sweep_of_moves_on_whole_arrays_has_no_loop_of_unknown_length(cases):
    def loops(form, backend):
        with program_gate._as_on(backend):
            program = program_gate.PROGRAMS["temper"](cases[form])
            traced = program.function.trace(*program.arguments, **program.static)
        return str(traced.jaxpr).count("while[")

    assert loops("arrays", "gpu") == 0
    assert loops("rows", "cpu") > 5


def test_the_prediction_adds_waiting_to_the_longer_of_moving_and_computing():
    h100 = TARGETS["h100"]
    moving = Counts(launches=100, questions=10, num_bytes=3.35e9, operations=1.48e9)

    assert h100.seconds(moving) == pytest.approx(100 * 3e-6 + 10 * 1e-5 + 1e-3)
    computing = Counts(num_bytes=3.35e9, operations=1.48e11)
    assert h100.seconds(computing) == pytest.approx(1e-2)
    assert TARGETS["cpu"].seconds(moving) is None


def test_a_row_says_what_is_estimated_and_what_failed():
    known = {"program": "order", "target": "h100", "devices": 1, "form": "arrays", "batch": 64}
    counts = {
        "unknown_loops": 2,
        "known_loops": 0,
        "kernels_outside": 3,
        "kernels_inside": 4,
        "launches": 5000,
        "questions": 1000,
        "collectives": 0,
        "temp_bytes": 2**20,
        "compile_s": 1.0,
        "predicted_per_s": 1234.5,
    }

    assert "~5,000" in line_of({**known, **counts, "launches_are": "estimated"})
    least = line_of({**known, **counts, "launches_are": "least"})
    assert ">5,000" in least
    assert "<1,234" in least
    assert line_of({**known, "error": "no memory"}).endswith("no memory")


def test_environment_variables_come_before_jax():
    with pytest.raises(RuntimeError, match="jax is imported"):
        targets.prepare()


@pytest.mark.parametrize("name", [*MOST_LAUNCHES, *MOST_LAUNCHES_SMALL, "temper"])
def test_on_an_accelerator_no_floats_are_scattered_and_added(name):
    problem, start = greedy_start(SMALL, "mcm4")
    with program_gate._as_on("gpu"):
        program = program_gate.PROGRAMS[name](Case(problem, start, 8))
        traced = program.function.trace(*program.arguments, **program.static)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()

    scatters = re.findall(r'"stablehlo\.scatter".*?stablehlo\.return', text, re.DOTALL)
    added = [one for one in scatters if re.search(r"stablehlo\.add .*tensor<f", one)]
    assert not added, added[0]
