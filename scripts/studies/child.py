"""One measurement in a process of its own: one that dies, hangs or leaks costs itself alone.

A child is given so many cores and no more, by affinity, so that solvers, XLA and partitioners have
the same; it has a session of its own, which is killed whole when the time is over.
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
_MOST_WORDS = 200  # of what a child that died has said last


def measure(
    module: str, function: str, arguments: dict[str, Any], *, threads: int, limit_s: float
) -> dict[str, Any]:
    """What the function gives in a fresh process; where it gives nothing, why.

    Args:
      module: of this folder, or any that Python finds.
      function: in it; it takes the arguments and gives what JSON can hold.
      arguments: by name; what JSON can hold.
      threads: cores that the process may use, where the system can say so.
      limit_s: it is killed after so many seconds.

    Returns:
      The function's answer; or {"died": why}.
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
        last = said.read_text(errors="replace").strip().rsplit("\n", 1)[-1][-_MOST_WORDS:]
        return {"died": f"{died}: {last}" if last else died}


def peak_bytes() -> dict[str, int]:
    """Most resident bytes that this process ever had, and that the largest of its ended children.

    `ru_maxrss` is in KiB, on macOS in bytes.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        name: unit * resource.getrusage(who).ru_maxrss
        for name, who in (
            ("peak_bytes", resource.RUSAGE_SELF),
            ("worker_peak_bytes", resource.RUSAGE_CHILDREN),
        )
    }


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the child's session: workers outlive a child that died."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
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
