"""Scripts: bad arguments are refused in one line, before anything is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("pretrain.py", ["run", "--seed", "1_0"], "--seed: '1_0', expected a whole number"),
        (
            "pretrain.py",
            ["run", "--steps", "0"],
            "--steps: '0', expected a whole number, 1",
        ),
        (
            "pretrain.py",
            ["run", "--minutes", "nan"],
            "--minutes: 'nan', expected a positive",
        ),
        ("pretrain.py", [""], "folder: '', expected the name of a file or a folder"),
        ("pretrain.py", ["run", "--train", "-"], "--train: '-', expected a name"),
        ("finetune.py", ["gnmt", "--out", ""], "--out: '', expected the name of a file"),
        ("finetune.py", ["gnmt", "--mcm", ""], "--mcm: '', expected a name"),
        ("finetune.py", ["gnmt", "--samples", "-1"], "--samples: '-1', expected a whole number"),
        ("benchmark.py", ["--seconds", "inf"], "--seconds: 'inf', expected a number, 0 or more"),
        ("benchmark.py", ["--seeds", "1.5"], "--seeds: '1.5', expected a whole number, 0 or more"),
    ],
)
def test_a_bad_argument_of_a_script_is_refused_in_one_line(tmp_path, script, arguments, expected):
    command = [sys.executable, SCRIPTS / script, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: argument ")
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []
