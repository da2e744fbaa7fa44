"""Programs in a process of their own, in which the CPU is four devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
# The programs are so small that to compile them is all their time: code need not be fast.
_FLAGS = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)


def printed_by(program: str) -> Any:
    """The JSON in the last line that a program prints, which runs in the project's folder."""
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=_ROOT,
        env={**os.environ, "XLA_FLAGS": _FLAGS, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])
