"""Runs one measurement in a process of its own, so that a crash, hang or leak affects only it.

CPU affinity gives the child a fixed number of cores, the same for solvers, XLA and partitioners.
The child has its own session; all processes of the session are killed at the time limit.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_MODELS = _HERE.parent / "dataset"
_MOST_CHARACTERS = 200  # of the last line of output of a child that died


def measure(
    module: str, function: str, arguments: dict[str, Any], *, threads: int, limit_s: float
) -> dict[str, Any]:
    """Calls a function in a fresh process.

    Args:
      module: in this folder, or any other that Python finds.
      function: name of a function in `module`; it returns a dict that JSON can hold.
      arguments: keyword arguments of the function; JSON must be able to hold them.
      threads: cores that the process may use, on systems with CPU affinity.
      limit_s: seconds after which the process is killed.

    Returns:
      The function's answer, with the seconds since the process was started as "process_s"; or
      {"died": reason}.
    """
    spec = {"module": module, "function": function, "arguments": arguments, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        out, said = Path(folder, "out.json"), Path(folder, "said.txt")
        with said.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, __file__, str(out)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                child.communicate(json.dumps(spec | {"began": time.time()}).encode(), limit_s)
                died = f"exit code {child.returncode}"
            except subprocess.TimeoutExpired:
                died = f"killed after {limit_s:.0f} s"
            finally:
                _end(child)
        if child.returncode == 0 and out.exists():
            return json.loads(out.read_bytes())
        last = said.read_text(errors="replace").strip().rsplit("\n", 1)[-1][-_MOST_CHARACTERS:]
        return {"died": f"{died}: {last}" if last else died}


def peak_bytes() -> dict[str, int]:
    """Peak resident memory in bytes of this process, and of the largest child that has ended."""
    # `ru_maxrss` is in KiB, on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        name: unit * resource.getrusage(who).ru_maxrss
        for name, who in (
            ("peak_bytes", resource.RUSAGE_SELF),
            ("worker_peak_bytes", resource.RUSAGE_CHILDREN),
        )
    }


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kills the rest of the child's session, because workers outlive a child that died."""
    with contextlib.suppress(ProcessLookupError):  # the session has no process left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _main() -> None:
    spec = json.load(sys.stdin)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    sys.path[:0] = [str(_HERE), str(_MODELS)]
    function = getattr(importlib.import_module(spec["module"]), spec["function"])
    answer = function(**spec["arguments"])
    seconds = time.time() - spec["began"]
    Path(sys.argv[1]).write_text(json.dumps(answer | {"process_s": seconds}))


if __name__ == "__main__":
    _main()
