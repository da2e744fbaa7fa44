"""The study of real pipelines: two processes, and the simulation beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_pipeline import simulated

import jaxpart
from tests.support.onnx_models import model, node, out, value
from tests.support.stages import FREE, save

ROOT = Path(__file__).parents[3]
STUDIES = ROOT / "scripts" / "studies"
# A program: a spawned worker imports what started it.
STUDY = """
import json, sys
from pathlib import Path
from real_stages import run

if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), 20, 0)))
"""


def test_two_processes_run_as_a_pipeline(tmp_path):
    net = model(
        [
            node("Sin", "x", "t", name="a"),
            node("Cos", "t", "u", name="b"),
            node("Add", "u t", "y", name="c"),
        ],
        [value("x", [64])],
        [out("y")],
    )
    path = save(tmp_path / "net.onnx", net)
    jaxpart.export(path, {"a": 0, "b": 1, "c": 1}, out=tmp_path / "stages", mcm=FREE)
    program = tmp_path / "study.py"
    program.write_text(STUDY)
    paths = os.pathsep.join([str(ROOT), str(STUDIES)])
    done = subprocess.run(
        [sys.executable, program, tmp_path / "stages"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    real = json.loads(done.stdout)
    assert len(real["in_pipeline_s"]) == 2
    assert 0 < real["real_per_s"] < 1 / max(real["in_pipeline_s"]) * 1.5


def test_the_simulation_is_that_of_stages_of_these_seconds():
    # 20 inferences at the pace of the slower stage, and one pass through the other.
    assert simulated([2e-3, 1e-3], 20) == pytest.approx(20 / (20 * 2e-3 + 1e-3))
